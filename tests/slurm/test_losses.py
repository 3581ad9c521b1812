"""The promises of slurm/train.sh to a job that loses a node or a process: it goes on, but not for ever without coming further."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, Job
from runs import assert_equal_up_to_rounding, largest_difference, status, weights
from trainings import LAST, LIMIT, RUN, SAVES_OFTEN, TWO, refuse_secrets, signal, steps, submit, taken, wait_for_step, wait_until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def lost(whole_cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Path]:
    """A job that loses a process before its first checkpoint, and another, that stands still, in its next turn; and its run folder."""
    folder = tmp_path_factory.mktemp("lost") / "run"
    long = ("data.passes=100", "run.timeout_minutes=0.3")
    job = submit(whole_cluster, folder, shards, *long, options=TWO, MAX_LOSSES="2")
    wait_for_step(job, folder, 1)
    signal(whole_cluster, "KILL", folder, "n2")
    wait_until(lambda: bool(taken(job.log().partition("restart 1: ")[2])), job, "it trains again")
    signal(whole_cluster, "STOP", folder, "n2")
    job.wait_until_ended(limit=LIMIT)
    return job, folder


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


def test_a_job_that_loses_processes_is_requeued_without_a_new_checkpoint_but_only_so_often(lost: tuple[Job, Path]) -> None:
    job, folder = lost
    assert job.fields("JobState") == ["FAILED"] and job.restarts() == 1
    assert re.search(r"restart 0: run unfinished \((training|lost another process)", job.log()), job.log()
    assert re.search(r"restart 1: run failed \(.*rank 1 \(process \d+ on n2\) is silent", job.log()), job.log()
    assert "so many losses without a new checkpoint are enough (MAX_LOSSES)" in job.log()
    assert not (folder / "checkpoints").exists()


def test_the_environment_is_in_no_log_and_in_no_file_of_a_run_that_fails(lost: tuple[Job, Path]) -> None:
    refuse_secrets(*lost)
