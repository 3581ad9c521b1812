"""The promises of slurm/train.sh to a job that loses a node, a process or its time: it goes on, but not for ever without coming further."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import Cluster, Job
from runs import assert_equal_up_to_rounding, largest_difference, status, weights
from trainings import (
    LAST,
    LIMIT,
    RUN,
    SAVES_AT_THE_END,
    SAVES_OFTEN,
    TWO,
    make_room,
    ranks_on,
    refuse_secrets,
    signal,
    steps,
    submit,
    taken,
    wait_for_step,
    wait_until,
)

from dist_train.run_lock import Owner

pytestmark = pytest.mark.timeout(600)


def lose_processes(cluster: Cluster, shards: Path, folder: Path) -> Job:
    """A job that loses a process before it has entered the run folder, one before its first checkpoint, and one that stands still."""
    long = ("data.passes=100", "run.timeout_minutes=0.3")
    folder.mkdir()
    gone = Owner.of_this_process().model_copy(update={"machine": "n9", "turns": {"Slurm job 999999": 0}})
    (folder / "lock").write_text(f"{gone.model_dump_json()}\n000000000000\n")
    job = submit(cluster, folder, shards, *long, options=TWO, MAX_LOSSES="2")
    wait_until(lambda: "watching for" in job.log(), job, "it watches the lock")
    signal(cluster, "KILL", folder, "n2")
    wait_for_step(job, folder, 1)
    signal(cluster, "KILL", folder, "n2")
    wait_until(lambda: bool(taken(job.log().partition("restart 2: ")[2])), job, "it trains again")
    signal(cluster, "STOP", folder, "n2")
    job.wait_until_ended(limit=LIMIT)
    return job


def lose_time(cluster: Cluster, shards: Path, folder: Path) -> Job:
    """A job whose training stands still beyond its time limit, of which a process does not come in the next turn, and which may not go on
    when it is asked to stop in the third."""
    long = ("data.passes=100", "run.timeout_minutes=0.2")
    job = submit(cluster, folder, shards, *long, options=("--nodelist=n3",), PROCESSES_PER_NODE="2")  # the other has n1 and n2

    def turn(number: int) -> str:
        return job.log().partition(f"restart {number}: ")[2]

    wait_for_step(job, folder, 1)
    signal(cluster, "STOP", folder, "n3")
    cluster("scancel", "--batch", "--signal=USR1", job.number)
    cluster("scontrol", "update", f"jobid={job.number}", "endtime=now+1")  # it looks at its clock every 30 s
    wait_until(lambda: bool(turn(1)), job, "it has begun again")
    cluster("scontrol", "update", f"jobid={job.number}", "timelimit=60")

    wait_until(lambda: bool(ranks_on(cluster, "n3", folder)), job, "a process has started")
    cluster.machine("exec", "n3", "kill", "-STOP", ranks_on(cluster, "n3", folder)[-1])
    wait_until(lambda: "(the processes have not met)" in turn(1), job, "the other has waited for it")
    signal(cluster, "KILL", folder, "n3")

    wait_until(lambda: bool(taken(turn(2))), job, "it trains once more")
    cluster("scontrol", "update", f"jobid={job.number}", "requeue=0")
    cluster("scancel", "--batch", "--signal=USR1", job.number)
    job.wait_until_ended(limit=LIMIT)
    return job


@pytest.fixture(scope="module")
def losers(whole_cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Job, Path]]:
    """Jobs that lose something, at the same time, because they mostly wait; and their run folders."""
    folders = {lose: tmp_path_factory.mktemp("losses") / "run" for lose in (lose_processes, lose_time)}
    with ThreadPoolExecutor() as pool:
        jobs = {lose: pool.submit(lose, whole_cluster, shards, folder) for lose, folder in folders.items()}
    return {lose.__name__: (jobs[lose].result(), folder) for lose, folder in folders.items()}


@pytest.fixture(scope="module")
def lost(losers: dict[str, tuple[Job, Path]]) -> tuple[Job, Path]:
    return losers["lose_processes"]


@pytest.fixture(scope="module")
def late(losers: dict[str, tuple[Job, Path]]) -> tuple[Job, Path]:
    return losers["lose_time"]


def test_a_job_that_loses_a_node_goes_on_with_another_and_with_fewer_when_there_is_none(
    cluster: Cluster, unbroken_on: Callable[[int], Path], shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    one_or_two = ("--nodes=1-2", "--cpus-per-task=16")
    job = submit(cluster, folder, shards, *RUN, *SAVES_OFTEN, "data.workers=1", options=one_or_two)
    wait_for_step(job, folder, 3)
    cluster.machine("crash", "n1")  # that of the job's shell and of rank 0
    cluster("scontrol", "update", "nodename=n1", "state=down", "reason=crashed")
    wait_until(lambda: len(taken(job.log().partition("restart 1: ")[2])) >= 3, job, "another node has come for it")
    cluster.machine("crash", "n3")  # and Slurm notices by itself
    saved = max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    assert largest_difference(weights(folder, saved), weights(unbroken_on(2), saved)) == 0
    assert job.wait_until_ended(limit=LIMIT) == ["COMPLETED"], job.log()
    assert job.restarts() == 2
    for turn, (processes, nodes) in enumerate(((2, "n[1-2]"), (2, "n[2-3]"), (1, "n2"))):
        assert f"restart {turn}: {processes} processes, 1 on each of {nodes};" in job.log()
    assert saved in taken(job.log().partition("restart 1: ")[2]), "the second turn saved nothing"
    assert status(folder)["status"] == "finished" and steps(folder) == [*range(1, LAST + 1)]
    assert_equal_up_to_rounding(weights(folder, LAST), weights(unbroken_on(2), LAST))


def test_a_job_that_gets_a_number_of_nodes_that_cannot_share_the_batch_goes_on_on_fewer_of_them(
    cluster: Cluster, unbroken_on: Callable[[int], Path], shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    cluster("scontrol", "update", "nodename=n3", "state=drain", "reason=serviced")
    one_to_three = ("--nodes=1-3", "--cpus-per-task=16")
    job = submit(cluster, folder, shards, *RUN, *SAVES_AT_THE_END, "data.workers=1", options=one_to_three)
    wait_for_step(job, folder, 3)
    cluster("scontrol", "update", "nodename=n3", "state=resume")
    make_room(cluster, tmp_path / "urgent.log")
    assert job.wait_until_ended(limit=LIMIT) == ["COMPLETED"], job.log()
    assert "restart 0: 2 processes, 1 on each of n[1-2];" in job.log()
    assert "note: not on 3 nodes, because train.global_batch=8 does not divide among 3 processes" in job.log()
    assert "only 2 of n[1-3] do something, for what is said above, with 1 process(es) on each" in job.log()
    assert "restart 1: 2 processes, 1 on each of n[1-2];" in job.log()
    assert steps(folder) == [*range(1, LAST + 1)] == sorted(taken(job.log()))
    assert largest_difference(weights(folder, LAST), weights(unbroken_on(2), LAST)) == 0


def test_a_job_that_loses_processes_is_requeued_without_a_new_checkpoint_but_only_so_often(lost: tuple[Job, Path]) -> None:
    job, folder = lost
    assert job.fields("JobState") == ["FAILED"] and job.restarts() == 2
    assert "restart 0: run unfinished (it lost a process before it began; the log says why)" in job.log(), job.log()
    assert re.search(r"restart 1: run unfinished \((training|lost another process)", job.log()), job.log()
    assert re.search(r"restart 2: run unfinished \(.*rank 1 \(process \d+ on n2\) is silent", job.log()), job.log()
    assert "so many losses without a new checkpoint are enough (MAX_LOSSES)" in job.log()
    assert not (folder / "checkpoints").exists()


def test_a_job_that_does_not_save_before_its_time_limit_is_requeued_as_after_a_loss(late: tuple[Job, Path]) -> None:
    job, folder = late
    assert "restart 1: 2 processes, 2 on each of n3" in job.log()
    assert (folder / "slurm-losses").read_text().splitlines()[0].startswith(f"{job.number} ")


def test_a_job_whose_processes_do_not_meet_is_requeued_as_after_a_loss(late: tuple[Job, Path]) -> None:
    job, folder = late
    assert "restart 1: run unfinished (the processes have not met" in job.log() and "restart 2: 2 processes, 2 on each of n3" in job.log()
    assert len((folder / "slurm-losses").read_text().splitlines()) == 2


def test_a_job_that_may_not_go_back_into_the_queue_says_so_and_fails_although_it_has_saved(late: tuple[Job, Path]) -> None:
    job = late[0]
    assert (
        f"restart 2: run unfinished (asked to stop by the file `stop` in the run folder (the time limit of job {job.number}))" in job.log()
    )
    assert "it could not be put back into the queue, for what scontrol says above" in job.log()
    assert job.fields("JobState") == ["FAILED"] and job.restarts() == 2


def test_the_environment_is_in_no_log_and_in_no_file_of_a_run_that_fails(lost: tuple[Job, Path]) -> None:
    refuse_secrets(*lost)
