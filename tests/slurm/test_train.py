"""The promises of slurm/train.sh, on a real Slurm: whatever happens to a job, it ends as one that nothing happened to.

Starts of torch take most of the time, so one run keeps many promises. Its first job is cancelled, a person stops its second, its third
reaches the time limit, is preempted, and is preempted once more while it starts, and its fourth comes to the end.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, Job
from runs import assert_equal_up_to_rounding, largest_difference, status, weights
from trainings import (
    LAST,
    LIMIT,
    ONE,
    RUN,
    SAVES_AT_THE_END,
    TWO_BY_TWO,
    make_room,
    refuse_secrets,
    signal,
    steps,
    submit,
    taken,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.timeout(600)  # a job of 4 processes takes 15 s on a quiet machine, most of it to import torch


@pytest.fixture(scope="module")
def cancelled(whole_cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    """A job of 2 nodes and 4 processes that was cancelled in the middle of its run, and its run folder."""
    folder = tmp_path_factory.mktemp("cancelled") / "run"
    job = submit(whole_cluster, folder, shards, *RUN, *SAVES_AT_THE_END)
    wait_for_step(job, folder, 3)
    folder.with_name("listening").write_text("\n".join([*whole_cluster.listening("n1"), *whole_cluster.listening("n2")]))
    whole_cluster("scancel", job.number)
    job.wait_until_ended(limit=LIMIT)
    return job, folder


def go_on(before: Path, place: Path) -> Path:
    """A copy of a run folder, to go on with."""
    return Path(shutil.copytree(before, place / "run"))


@pytest.fixture(scope="module")
def stopped(
    whole_cluster: Cluster, shards: Path, cancelled: tuple[Job, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, Path]:
    """A job that goes on with that run, until a person stops it."""
    folder = go_on(cancelled[1], tmp_path_factory.mktemp("stopped"))
    job = submit(whole_cluster, folder, shards, *RUN, *SAVES_AT_THE_END)
    wait_for_step(job, folder, steps(cancelled[1])[-1] + 1)
    (folder / "stop").touch()
    whole_cluster("scancel", "--batch", "--signal=USR1", job.number)  # as if the time were up, too
    job.wait_until_ended(limit=LIMIT)
    return job, folder


@pytest.fixture(scope="module")
def interrupted(
    whole_cluster: Cluster, shards: Path, stopped: tuple[Job, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, Path]:
    """A job that goes on with that run through a time limit and two preemptions, of which the second comes while torch is imported."""
    folder = go_on(stopped[1], tmp_path_factory.mktemp("interrupted"))
    options = (*TWO_BY_TWO, "--time=2")
    job = submit(whole_cluster, folder, shards, *RUN, *SAVES_AT_THE_END, options=options, MAX_RESTARTS="2")

    def time_is_up() -> bool:  # Slurm looks at its clock every 30 s, and finds that less than 120 s are left
        return (folder / "stop").exists() or "the time limit" in status(folder)["reason"]

    wait_until(lambda: bool(taken(job.log())), job, "it trains")
    signal(whole_cluster, "STOP", folder, "n1", "n2")  # or the run would be over by then
    wait_until(time_is_up, job, "the time is up")
    signal(whole_cluster, "CONT", folder, "n1", "n2")
    job.wait("PENDING", "COMPLETING", limit=LIMIT)
    whole_cluster("scontrol", "update", f"jobid={job.number}", "timelimit=60")  # or the signal would come in the next turn, too

    wait_until(lambda: bool(taken(job.log().partition("restart 1: ")[2])), job, "it trains again")
    make_room(whole_cluster, folder.with_name("urgent.log"))
    wait_until(lambda: job.log().partition("restart 2: ")[2].count(" is here") == 2, job, "both nodes begin once more")
    make_room(whole_cluster, folder.with_name("urgent.log"))
    job.wait_until_ended(limit=LIMIT)
    return job, folder


@pytest.fixture(scope="module")
def finished(
    whole_cluster: Cluster, shards: Path, interrupted: tuple[Job, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Job, Path]:
    """A job that goes on with that run to its end."""
    folder = go_on(interrupted[1], tmp_path_factory.mktemp("finished"))
    job = submit(whole_cluster, folder, shards, *RUN, *SAVES_AT_THE_END)
    assert job.wait_until_ended(limit=LIMIT) == ["COMPLETED"], job.log()
    return job, folder


def test_a_cancelled_job_saves_and_stays_ended(cancelled: tuple[Job, Path]) -> None:
    job, folder = cancelled
    assert job.fields("JobState") == ["CANCELLED"] and job.restarts() == 0
    assert status(folder)["status"] == "unfinished" and status(folder)["world_size"] == 4
    assert (folder / "checkpoints" / f"step-{steps(folder)[-1]:08d}").is_dir()


def test_its_processes_listen_at_the_one_address_of_their_node(cancelled: tuple[Job, Path]) -> None:
    assert cancelled[1].with_name("listening").read_text().split() == ["10.77.77.1", "10.77.77.2"]


def test_a_run_that_a_person_stops_is_not_requeued(stopped: tuple[Job, Path]) -> None:
    job, folder = stopped
    assert job.fields("JobState") == ["COMPLETED"] and job.restarts() == 0, job.log()
    assert status(folder)["status"] == "unfinished" and status(folder)["reason"] == "asked to stop by the file `stop` in the run folder"
    assert (folder / "checkpoints" / f"step-{steps(folder)[-1]:08d}").is_dir() and not (folder / "stop").exists()


def test_a_run_that_a_person_stops_does_not_come_back_where_slurm_requeues_it_at_the_same_moment(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = submit(cluster, folder, shards, *RUN, "data.passes=100", options=ONE)
    wait_for_step(job, folder, 1)
    signal(cluster, "STOP", folder, "n1")
    (folder / "stop").touch()
    cluster("scontrol", "requeue", job.number)
    assert job.wait_until_ended(limit=LIMIT) == ["CANCELLED"] and "restart 1" not in job.log(), job.log()
    assert status(folder)["reason"] == "asked to stop by SIGTERM, the file `stop` in the run folder"


def test_a_job_that_reaches_its_time_limit_saves_and_goes_back_into_the_queue(interrupted: tuple[Job, Path]) -> None:
    job, folder = interrupted
    reason = f"asked to stop by the file `stop` in the run folder (the time limit of job {job.number})"
    assert f"restart 0: run unfinished ({reason})" in job.log() and "restart 1: 4 processes, 2 on each of n" in job.log()
    assert not (folder / "stop").exists()


def test_a_preempted_job_saves_makes_room_and_goes_back_into_the_queue(interrupted: tuple[Job, Path]) -> None:
    log = interrupted[0].log()
    assert "restart 1: run unfinished (asked to stop by SIGTERM)" in log and "restart 2: 4 processes, 2 on each of n" in log


def test_one_that_is_preempted_while_it_starts_does_too_but_none_does_more_often_than_it_may(interrupted: tuple[Job, Path]) -> None:
    job = interrupted[0]
    assert "restart 2: run unfinished (asked to stop by SIGTERM" in job.log() and ": 2 restarts are enough (MAX_RESTARTS)" in job.log()
    assert job.fields("JobState") == ["FAILED"] and job.restarts() == 2


def test_no_step_is_lost_or_taken_twice_and_the_result_is_that_of_one_process(
    cancelled: tuple[Job, Path],
    stopped: tuple[Job, Path],
    interrupted: tuple[Job, Path],
    finished: tuple[Job, Path],
    unbroken_on: Callable[[int], Path],
) -> None:
    logs, folder = [job.log() for job, _ in (cancelled, stopped, interrupted, finished)], finished[1]
    assert all(map(taken, logs)) and taken("\n".join(logs)) == steps(folder) == [*range(1, LAST + 1)]
    assert status(folder)["status"] == "finished" and status(folder)["world_size"] == 4
    assert_equal_up_to_rounding(weights(folder, LAST), weights(unbroken_on(1), LAST))
    assert largest_difference(weights(folder, LAST), weights(unbroken_on(4), LAST)) == 0


def test_the_log_names_nodes_processes_and_the_end(finished: tuple[Job, Path]) -> None:
    log = finished[0].log()
    assert f"restart 0: 4 processes, 2 on each of n[1-2]; 1 core(s) and 1 thread(s) each; run folder {finished[1]}\n" in log
    assert "1 core(s) of a node are little for 2 process(es) and their loader workers; sbatch --cpus-per-task asks for more" in log
    assert {"== n1 is here", "== n2 is here"} <= {*log.splitlines()}
    assert "restart 0: run finished (all 2 epochs are done)\n" in log


def test_the_environment_is_in_no_log_and_in_no_file_of_a_run_that_ends_well(finished: tuple[Job, Path]) -> None:
    refuse_secrets(*finished)


def test_a_wrong_config_ends_at_once_without_a_requeue_after_the_settings_of_a_site(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.sh"  # outside of the repository
    site.write_text('echo "modules are loaded"\ncontainer=(env IN_CONTAINER=yes)\nfalse_friend=$never_set\n')
    job = submit(cluster, tmp_path / "run", shards, "train.batch_size=8", options=ONE, DIST_TRAIN_SITE=str(site))
    assert job.wait_until_ended(limit=60) == ["FAILED"]
    assert job.restarts() == 0
    assert "modules are loaded" in job.log()
    assert "did you mean 'train.global_batch'?" in job.log() and "restart 0" not in job.log()


def test_other_settings_than_an_unfinished_run_has_end_the_job_without_a_requeue(
    cluster: Cluster, shards: Path, cancelled: tuple[Job, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cancelled[1], tmp_path / "run"))  # its status.json says: unfinished, asked to stop by SIGTERM
    site = tmp_path / "site.sh"
    site.write_text("srun_options=(--label)\n")  # each line of a task begins with its number
    options = (*ONE, "--cpus-per-task=16")
    job = submit(cluster, folder, shards, *RUN, "optim.lr=1", options=options, OMP_NUM_THREADS="", DIST_TRAIN_SITE=str(site))
    assert job.wait_until_ended(limit=LIMIT) == ["FAILED"]
    assert job.restarts() == 0
    assert re.search(r"^0: .*optim\.lr was 0\.0001, is 1\.0", job.log(), re.MULTILINE), job.log()
    assert "restart 0: 1 processes, 1 on each of n1; 16 core(s) and 12 thread(s) each" in job.log() and "little" not in job.log()
    assert "run failed (the training did not begin" in job.log()
    assert status(folder) == status(cancelled[1])
