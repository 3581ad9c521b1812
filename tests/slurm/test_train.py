"""The promises of slurm/train.sh, on a real Slurm: whatever happens to a job, it ends as one that nothing happened to."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import runs
from cluster import Cluster, Job
from runs import TINY, assert_equal_up_to_rounding, largest_difference, records, status, weights

pytestmark = pytest.mark.timeout(300)  # a job of 4 processes takes 15 s on a quiet machine, most of it to import torch
LIMIT = 140  # seconds for one turn of a job, or for Slurm to notice that a node is gone
TWO_BY_TWO = ("--nodes=2", "--gpus-per-node=2")  # the GPUs are pretended; tests/tiny.yaml computes on CPUs
TWO = ("--nodes=2",)
ONE = ("--nodes=1",)
ONE_EPOCH = ("train.epochs=1",)
SIX_EPOCHS = ("train.epochs=6", "stop.patience=null", "save.every_steps=2", "save.keep=20")
LAST = 30  # step: 40 images in batches of 8 are 5 steps per epoch
ENDLESS = ("train.epochs=1000", "stop.patience=null", "save.every_steps=2")


def submit(cluster: Cluster, folder: Path, shards: Path, *settings: str, options: tuple[str, ...] = TWO_BY_TWO, **variables: str) -> Job:
    """Submits a training, its log going beside its run folder."""
    words = (TINY, f"run.folder={folder}", f"data.shards={shards}", *settings)
    return cluster.submit(folder.with_suffix(".log"), *options, "slurm/train.sh", *words, **variables)


def wait_for_step(job: Job, folder: Path, step: int) -> None:
    """Returns once the run in `folder` has taken so many steps; fails at once when the job has ended before."""
    end = time.monotonic() + LIMIT
    while len(steps(folder)) < step:
        assert time.monotonic() < end, f"waited {LIMIT} s for step {step}\n{job.log()}"
        job.wait("PENDING", "RUNNING", "COMPLETING", limit=LIMIT)


def steps(folder: Path) -> list[int]:
    """The steps that the run's journal tells of."""
    return [record["step"] for record in records(folder, "step")]


def assert_requeued_and_finished(job: Job, folder: Path) -> None:
    """Once requeued, to the end, with no step lost or repeated."""
    assert job.wait_until_ended(limit=LIMIT) == ["COMPLETED"], job.log()
    assert job.restarts() == 1
    assert "restart 0: " in job.log() and "restart 1: run finished" in job.log()
    assert status(folder)["status"] == "finished" and steps(folder) == [*range(1, LAST + 1)]


@pytest.fixture(scope="module")
def unbroken(whole_cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a job of 2 nodes and 4 processes that nothing happens to; its log is beside it."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    job = submit(whole_cluster, folder, shards, *ONE_EPOCH, HF_TOKEN="a-secret-of-mine")
    assert job.wait_until_ended(limit=LIMIT) == ["COMPLETED"], job.log()
    return folder


@pytest.fixture(scope="module")
def unbroken_on_two(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two processes on one machine without Slurm."""
    folder = tmp_path_factory.mktemp("two") / "run"
    runs.train(2, folder, shards, *SIX_EPOCHS)
    return folder


@pytest.fixture(scope="module")
def cancelled(whole_cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    """A job that was cancelled in the middle of its run, and its run folder."""
    folder = tmp_path_factory.mktemp("cancelled") / "run"
    job = submit(whole_cluster, folder, shards, *ENDLESS, options=ONE, PROCESSES_PER_NODE="2")
    wait_for_step(job, folder, 3)
    whole_cluster("scancel", job.number)
    job.wait_until_ended(limit=LIMIT)
    return job, folder


def test_a_job_on_two_nodes_takes_the_steps_of_one_process(unbroken: Path, shards: Path, tmp_path: Path) -> None:
    runs.train(1, tmp_path / "alone", shards, *ONE_EPOCH)
    assert status(unbroken)["status"] == "finished" and status(unbroken)["world_size"] == 4
    assert steps(unbroken) == [1, 2, 3, 4, 5]
    assert_equal_up_to_rounding(weights(unbroken, 5), weights(tmp_path / "alone", 5))


def test_the_log_names_nodes_processes_and_the_end_and_nothing_secret(unbroken: Path) -> None:
    log = unbroken.with_suffix(".log").read_text()
    assert f"restart 0: 4 processes, 2 on each of n[1-2]; 1 thread(s) and 1 loader worker(s) each; run folder {unbroken}\n" in log
    assert "restart 0: run finished (all 1 epochs are done)\n" in log
    assert "a-secret-of-mine" not in log


def test_a_preempted_job_saves_makes_room_and_goes_on_where_it_was(
    cluster: Cluster, unbroken_on_two: Path, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = submit(cluster, folder, shards, *SIX_EPOCHS, options=TWO)
    wait_for_step(job, folder, 3)
    urgent = cluster.submit(tmp_path / "urgent.log", "--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 1")
    assert urgent.wait_until_ended(limit=LIMIT) == ["COMPLETED"]
    assert_requeued_and_finished(job, folder)
    assert "restart 0: run unfinished (asked to stop by SIGTERM)" in job.log()
    assert largest_difference(weights(folder, LAST), weights(unbroken_on_two, LAST)) == 0


def test_a_node_that_dies_in_the_middle_of_an_epoch_is_replaced_by_another(
    cluster: Cluster, unbroken_on_two: Path, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = submit(cluster, folder, shards, *SIX_EPOCHS, options=TWO)
    wait_for_step(job, folder, 3)
    cluster.machine("crash", "n1")  # that of the job's shell and of rank 0
    cluster("scontrol", "update", "nodename=n1", "state=down", "reason=crashed")
    assert_requeued_and_finished(job, folder)
    assert "restart 1: 2 processes, 1 on each of n[2-3];" in job.log()
    assert largest_difference(weights(folder, LAST), weights(unbroken_on_two, LAST)) == 0
    assert status(folder)["test"] == status(unbroken_on_two)["test"]


def test_a_job_that_loses_a_node_and_gets_no_other_goes_on_with_fewer(
    cluster: Cluster, unbroken_on_two: Path, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = submit(cluster, folder, shards, *SIX_EPOCHS, options=("--nodes=1-2", "--exclude=n3", "--cpus-per-task=2"))
    wait_for_step(job, folder, 3)
    cluster.machine("crash", "n2")  # and Slurm notices by itself
    assert_requeued_and_finished(job, folder)
    assert "restart 0: 2 processes, 1 on each of n[1-2];" in job.log()
    assert "restart 1: 1 processes, 1 on each of n1;" in job.log()
    assert_equal_up_to_rounding(weights(folder, LAST), weights(unbroken_on_two, LAST))


def test_a_job_that_reaches_its_time_limit_or_loses_a_process_is_requeued_only_so_often(
    cluster: Cluster, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    job = submit(cluster, folder, shards, *ENDLESS, options=(*ONE, "--time=1"), MAX_RESTARTS="1")
    wait_for_step(job, folder, 1)
    job.wait("PENDING", "COMPLETING", limit=LIMIT)  # Slurm looks at its clock every 30 s, and finds that less than 120 s are left
    before = status(folder)
    assert (before["status"], before["reason"]) == (
        "unfinished",
        f"asked to stop by the file `stop` in the run folder (the time limit of job {job.number})",
    )
    cluster("scontrol", "update", f"jobid={job.number}", "timelimit=60")  # or the signal would come in the next turn, too
    wait_for_step(job, folder, before["steps"] + 3)  # by then a checkpoint of this turn is whole
    assert not (folder / "stop").exists()
    cluster.machine("exec", "n1", "pkill", "--signal", "KILL", "--full", f"^\\S*python\\S* -u -m dist_train train .*run.folder={folder}")
    assert job.wait_until_ended(limit=LIMIT) == ["FAILED"]
    assert job.restarts() == 1
    assert "restart 1: run unfinished (training)" in job.log() and "1 restarts are enough" in job.log()
    assert status(folder)["status"] == "unfinished" and steps(folder) == [*range(1, len(steps(folder)) + 1)]


def test_a_cancelled_job_saves_and_stays_ended(cancelled: tuple[Job, Path]) -> None:
    job, folder = cancelled
    assert job.fields("JobState") == ["CANCELLED"] and job.restarts() == 0
    assert status(folder)["status"] == "unfinished" and status(folder)["world_size"] == 2
    assert (folder / "checkpoints" / f"step-{steps(folder)[-1]:08d}").is_dir()


def test_a_run_that_a_person_stops_is_not_requeued(cluster: Cluster, shards: Path, cancelled: tuple[Job, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(cancelled[1], tmp_path / "run"))
    taken = steps(folder)[-1]
    job = submit(cluster, folder, shards, *ENDLESS, options=ONE)
    wait_for_step(job, folder, taken + 1)
    (folder / "stop").touch()
    cluster("scancel", "--batch", "--signal=USR1", job.number)  # as if the time were up, too
    assert job.wait_until_ended(limit=LIMIT) == ["COMPLETED"]
    assert job.restarts() == 0
    assert status(folder)["status"] == "unfinished" and steps(folder) == [*range(1, status(folder)["steps"] + 1)]


def test_a_wrong_config_ends_at_once_without_a_requeue(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    job = submit(cluster, tmp_path / "run", shards, "train.batch_size=8", options=ONE)
    assert job.wait_until_ended(limit=60) == ["FAILED"]
    assert job.restarts() == 0
    assert "did you mean 'train.global_batch'?" in job.log() and "restart 0" not in job.log()


def test_other_settings_than_an_unfinished_run_has_end_the_job_without_a_requeue(
    cluster: Cluster, shards: Path, cancelled: tuple[Job, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(cancelled[1], tmp_path / "run"))  # its status.json says: unfinished, asked to stop by SIGTERM
    job = submit(cluster, folder, shards, *ENDLESS, "optim.lr=1", options=ONE)
    assert job.wait_until_ended(limit=LIMIT) == ["FAILED"]
    assert job.restarts() == 0
    assert "optim.lr was 0.0001, is 1.0" in job.log() and "run failed (the training did not begin" in job.log()
    assert status(folder) == status(cancelled[1])


def test_the_settings_of_a_site_are_read_from_a_file_outside_the_repository(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "site.sh").write_text('echo "modules are loaded"\ncontainer=(env IN_CONTAINER=yes)\nfalse_friend=$never_set\n')
    job = submit(cluster, tmp_path / "run", shards, "train.batch_size=8", options=ONE, DIST_TRAIN_SITE=str(tmp_path / "site.sh"))
    assert job.wait_until_ended(limit=60) == ["FAILED"]
    assert "modules are loaded" in job.log() and "did you mean" in job.log()
