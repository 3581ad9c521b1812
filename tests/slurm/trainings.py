"""Trainings as jobs, for the tests of slurm/train.sh: submitted, waited for, and read from their logs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from cluster import SECRET, Cluster, Job
from runs import TINY, records

LIMIT = 140  # seconds for one turn of a job, or for Slurm to notice that a node is gone
TWO_BY_TWO = ("--nodes=2", "--gpus-per-node=2")  # the GPUs are pretended; tests/tiny.yaml computes on CPUs
TWO = ("--nodes=2",)
ONE = ("--nodes=1",)
RUN = ("data.passes=4", "train.epochs=2", "stop.patience=null")
LAST = 40  # step: 4 visits of 40 images in batches of 8 are 20 steps per epoch
SAVES_OFTEN = ("save.every_steps=2", "save.keep=20")
SAVES_AT_THE_END = ("save.every_steps=null", "save.keep=20")  # of an epoch, or when it is asked to stop


def submit(cluster: Cluster, folder: Path, shards: Path, *settings: str, options: tuple[str, ...] = TWO_BY_TWO, **variables: str) -> Job:
    """Submits a training, its log going beside its run folder."""
    words = (TINY, f"run.folder={folder}", f"data.shards={shards}", *settings)
    return cluster.submit(folder.with_suffix(".log"), *options, "slurm/train.sh", *words, **variables)


def wait_until(true: Callable[[], bool], job: Job, what: str) -> None:
    """Returns once it is true; fails at once when the job has ended before."""
    end = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < end, f"waited {LIMIT} s until {what}\n{job.log()}"
        job.wait("PENDING", "RUNNING", "COMPLETING", limit=LIMIT)


def wait_for_step(job: Job, folder: Path, step: int) -> None:
    """Returns once the run in `folder` has taken so many steps."""
    wait_until(lambda: len(steps(folder)) >= step, job, f"step {step} is taken")


def steps(folder: Path) -> list[int]:
    """The steps that the run's journal tells of."""
    return [record["step"] for record in records(folder, "step")]


def taken(log: str) -> list[int]:
    """The steps that a log tells of: unlike the journal, it keeps those that were taken again."""
    return [int(step) for step in re.findall(r"^ +(\d+) +\d+ +\d+\.\d{4} ", log, re.MULTILINE)]


def signal(cluster: Cluster, name: str, folder: Path, *nodes: str) -> None:
    """A signal to the ranks of a run, and their loader workers, on these nodes; by the time that they are to go on, they may have ended."""
    ranks = f"^\\S*python\\S* -u -m dist_train train .*run.folder={folder}"
    for node in nodes:
        cluster.machine("exec", node, "pkill", "--signal", name, "--full", ranks, codes=(0, 1) if name == "CONT" else (0,))


def make_room(cluster: Cluster, log: Path) -> None:
    """Preempts whatever runs, and returns when the urgent job has ended."""
    urgent = cluster.submit(log, "--partition=urgent", "--nodes=3", "--exclusive", "--wrap=sleep 1")
    assert urgent.wait_until_ended(limit=LIMIT) == ["COMPLETED"]


def refuse_secrets(job: Job, folder: Path) -> None:
    """Fails when the log, or a file of the run folder, shows what is in the environment."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"status.json", "metrics.jsonl", "config.yaml"} <= {path.name for path in files}
    assert SECRET not in job.log() and not [path for path in files if SECRET.encode() in path.read_bytes()]
