"""The promises of slurm/train.sh to whoever submits it: however nodes, cores and GPUs are asked for, there is one launcher per node.

What is tested is the script and Slurm. A probe stands in for torchrun: it says how it was started, and fails or hangs as it is told to.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from cluster import Cluster, Job
from trainings import ONE, TWO, submit

pytestmark = pytest.mark.timeout(120)
LIMIT = 60

PROBE = r"""#!/bin/bash
asked=$(grep -oE -- '--(nnodes|nproc-per-node|rdzv-endpoint)=[^ ]+' <<<"$*" | tr '\n' ' ')
echo "probe on $SLURMD_NODENAME: ${asked}gpus=$CUDA_VISIBLE_DEVICES home=${HOME:+known}"
eval "$PROBE"
sleep 1.5 # the other may have begun later, and would be ended with this one
exit 1
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment whose torchrun is the probe."""
    folder = tmp_path_factory.mktemp("venv")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (folder / "bin" / "torchrun").write_text(PROBE)
    for file in (folder / "bin").iterdir():
        file.chmod(0o755)
    return folder


def probed(
    cluster: Cluster,
    venv: Path,
    place: Path,
    shards: Path,
    *options: str,
    site: str = "",
    probe: str = "",
    setting: str = "run.seed=0",
    **variables: str,
) -> tuple[Job, list[str]]:
    """A job that has ended, and what its probes have said, one line of each node."""
    (place / "site.sh").write_text(f"{site}\n")
    words = {"VENV": str(venv), "DIST_TRAIN_SITE": str(place / "site.sh"), "PROBE": probe} | variables
    job = submit(cluster, place / "run", shards, setting, options=options, **words)
    job.wait_until_ended(limit=LIMIT)
    return job, sorted(re.findall(r"^probe on (.*)$", job.log(), re.MULTILINE))


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        (("--nodes=2", "--gpus-per-node=2", "--ntasks-per-gpu=1"), 2),
        (("--nodes=2", "--ntasks-per-node=2", "--gpus-per-task=1"), 2),
        (("--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=4"), 2),
        (("--nodes=2", "--gpus=4"), 2),
        (("--nodes=2", "--ntasks=3"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_however_it_is_asked_for_there_is_one_launcher_per_node_with_all_its_gpus(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path, options: tuple[str, ...], processes: int
) -> None:
    job, probes = probed(cluster, venv, tmp_path, shards, *options)
    port = re.findall(r"--rdzv-endpoint=10\.77\.77\.1:(\d+)", job.log())
    gpus = "0,1" if processes == 2 else ""
    assert len(set(port)) == 1, job.log()
    said = f"--nnodes=2 --nproc-per-node={processes} --rdzv-endpoint=10.77.77.1:{port[0]} gpus={gpus} home=known"
    assert probes == [f"n1: {said}", f"n2: {said}"], job.log()
    assert job.restarts() == 0 and "run failed (the training did not begin" in job.log()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--ntasks-per-node=2", "--cpus-per-task=4"), "4 core(s) and 2 thread(s) each"),  # 8 cores for 2 processes
        (("--ntasks-per-node=1", "--cpus-per-task=8"), "4 core(s) and 2 thread(s) each"),
        (("--exclusive", "--cpus-per-task=4"), "8 core(s) and 4 thread(s) each"),  # all 16
    ],
)
def test_however_cores_are_asked_for_all_of_a_node_are_used(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    job, probes = probed(cluster, venv, tmp_path, shards, *ONE, "--gpus-per-node=2", *options, site="unset OMP_NUM_THREADS")
    assert len(probes) == 1 and told in job.log(), job.log()


def test_gpus_that_are_spread_unevenly_are_told_with_how_to_ask_for_them(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path
) -> None:
    job, probes = probed(cluster, venv, tmp_path, shards, "--nodes=2", "--gpus=3")
    assert not probes and re.search(
        r"error: the 3 GPUs of job \d+ are not spread evenly, .*; ask for them with sbatch --gpus-per-node", job.log()
    )
    assert job.fields("JobState") == ["FAILED"] and job.restarts() == 0


def test_a_job_that_was_submitted_from_within_another_is_itself(cluster: Cluster, venv: Path, shards: Path, tmp_path: Path) -> None:
    others = cluster.submit(tmp_path / "other", "--array=7", "--wrap=sleep 50")
    inherited = {"SLURM_ARRAY_JOB_ID": others.number, "SLURM_ARRAY_TASK_ID": "7", "SLURM_RESTART_COUNT": "5", "SLURM_MEM_PER_NODE": "100"}
    inherited["SLURM_GPUS_ON_NODE"] = "5"
    not_met = 'echo "error: x (the processes have not met)"'
    job, _ = probed(cluster, venv, tmp_path, shards, "--nodes=1", "--mem-per-cpu=50", probe=not_met, MAX_LOSSES="2", **inherited)
    assert job.restarts() == 1 and "restart 0: run unfinished" in job.log() and "restart 1: run unfinished" in job.log()
    assert "restart 0: 1 processes, 1 on each of n" in job.log()
    assert others.restarts() == 0 and others.fields("JobState") == ["RUNNING"]
    cluster("scancel", others.number)


def test_a_number_of_processes_that_the_config_insists_on_is_not_overridden(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path
) -> None:
    job, _ = probed(cluster, venv, tmp_path, shards, *ONE, probe='echo "told: $*"', setting="run.processes=8")
    told = re.search(r"^told: (.*)$", job.log(), re.MULTILINE)
    assert told and re.findall(r"run\.processes=\S+", told[1]) == ["run.processes=8"], job.log()


def test_a_controller_that_is_restarting_is_asked_again_to_put_the_job_back(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path
) -> None:
    site = f"""scontrol() {{
        if [ "$1" = requeue ] && mkdir {tmp_path / "refused"} 2>/dev/null; then
            echo "Unable to contact slurm controller (connect failure)" >&2
            return 1
        fi
        command scontrol "$@"
    }}"""
    not_met = 'echo "error: x (the processes have not met)"'
    job, _ = probed(cluster, venv, tmp_path, shards, *ONE, site=site, probe=not_met, MAX_LOSSES="2")
    assert job.restarts() == 1 and job.log().count("Unable to contact slurm controller") == 1, job.log()


def test_a_controller_that_does_not_answer_at_the_start_ends_no_job(cluster: Cluster, venv: Path, shards: Path, tmp_path: Path) -> None:
    site = """scontrol() { if [ "$1 $2" = "show job" ]; then return 1; fi; command scontrol "$@"; }"""
    job, probes = probed(cluster, venv, tmp_path, shards, *ONE, site=site)
    assert len(probes) == 1, job.log()


def test_a_stop_file_that_a_killed_job_has_left_stops_no_other(cluster: Cluster, venv: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    stop = tmp_path / "run" / "stop"
    stop.write_text("the time limit of job 4000000\n")
    probed(cluster, venv, tmp_path, shards, *ONE)
    assert not stop.exists()
    other = cluster.submit(tmp_path / "other", "--wrap=sleep 50")
    for kept in ("", f"the time limit of job {other.number}\n"):  # a person's, and one of a job that is there
        stop.write_text(kept)
        probed(cluster, venv, tmp_path, shards, *ONE)
        assert stop.read_text() == kept
    cluster("scancel", other.number)


def test_what_goes_wrong_before_the_launchers_start_does_not_make_a_loss_final(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path
) -> None:
    not_met = 'echo "error: x (the processes have not met)"'
    job, _ = probed(cluster, venv, tmp_path, shards, *ONE, site='echo "error: Stale file handle"', probe=not_met, MAX_LOSSES="2")
    assert job.restarts() == 1 and "so many losses without a new checkpoint are enough (MAX_LOSSES)" in job.log()


def test_a_node_that_has_said_that_it_is_here_is_not_called_silent_where_errors_have_a_file_of_their_own(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path
) -> None:
    not_met = 'echo "error: x (the processes have not met)" >&2'
    errors = tmp_path / "errors"
    job, _ = probed(cluster, venv, tmp_path, shards, *TWO, f"--error={errors}", probe=not_met, MAX_LOSSES="1")
    assert errors.read_text().count(" is here\n") == 2 and "run unfinished (the processes have not met; the log says why)" in job.log()


def test_an_environment_that_sbatch_was_told_not_to_hand_on_is_the_scripts_own_and_reaches_the_launchers(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path
) -> None:
    handed_on = f"--export=PROCESSES_PER_NODE=3,VENV={venv},DIST_TRAIN_SITE={tmp_path / 'site.sh'},PATH={cluster.folder}/bin:/usr/bin:/bin"
    job, probes = probed(cluster, venv, tmp_path, shards, *TWO, handed_on, site="export HOME=/somewhere")
    assert len(probes) == 2 and all("--nproc-per-node=3 " in probe and "home=known" in probe for probe in probes), job.log()


def test_a_port_that_is_taken_is_passed_over(cluster: Cluster, venv: Path, shards: Path, tmp_path: Path) -> None:
    listens = f"{sys.executable} -m http.server $((10000 + SLURM_JOB_ID % 20000)) &>/dev/null & sleep 2"
    job, probes = probed(cluster, venv, tmp_path, shards, *ONE, site=listens)
    port = 10000 + int(job.number) % 20000
    assert f"port {port} of n1 is taken, so the next one is tried" in job.log()
    # One node is named, not addressed: its launcher meets nobody from another.
    assert len(probes) == 1 and f"--rdzv-endpoint=n1:{port + 1} " in probes[0], job.log()


def test_launchers_that_do_not_meet_are_a_loss_and_the_silent_node_is_named(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path
) -> None:
    silent = """container=(bash -c 'if [ "$SLURMD_NODENAME" = n2 ]; then sleep 60; fi; exec "$@"' hanging)"""
    meets_nobody = 'echo "torch.distributed.elastic.rendezvous.api.RendezvousTimeoutError"'
    job, probes = probed(cluster, venv, tmp_path, shards, *TWO, site=silent, probe=meets_nobody, MAX_LOSSES="2")
    assert [probe[:3] for probe in probes] == ["n1:", "n1:"] and job.restarts() == 1, job.log()
    assert job.log().count("run unfinished (the processes have not met, and these nodes have not said that they are here: n2)") == 2
    assert "so many losses without a new checkpoint are enough (MAX_LOSSES)" in job.log()


@pytest.mark.parametrize(
    ("owner", "turns"), [("Slurm job 999999", 2), ("process 1 on a workstation", 1)], ids=["has ended", "is not of Slurm"]
)
def test_a_lock_of_a_job_that_has_ended_does_not_keep_a_job_from_the_queue(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path, owner: str, turns: int
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text(f"{owner}\n")
    job, probes = probed(cluster, venv, tmp_path, shards, "--nodes=1", probe='echo "error: x (the processes have not met)"', MAX_LOSSES="2")
    assert len(probes) == turns, job.log()
    assert ("not put back into the queue, for the run folder is another job's (process 1 on a workstation" in job.log()) == (turns == 1)


def test_a_site_file_that_ends_in_a_false_test_is_told_of_and_ends_nothing(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path
) -> None:
    job, probes = probed(cluster, venv, tmp_path, shards, "--nodes=1", site="[ -d /nowhere ] && module load nothing")
    assert len(probes) == 1 and "== note: the last command of" in job.log()


def test_a_launcher_that_ends_well_without_a_training_is_not_called_finished(
    cluster: Cluster, venv: Path, shards: Path, tmp_path: Path
) -> None:
    job, probes = probed(cluster, venv, tmp_path, shards, "--nodes=1", probe="exit 0")
    assert len(probes) == 1 and job.fields("JobState") == ["FAILED"]
    assert "run failed (the training did not begin" in job.log()
