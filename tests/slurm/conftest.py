"""One cluster of three nodes for all tests of a process, each of which leaves it idle and whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import runs
from cluster import Cluster, running_cluster
from trainings import RUN, SAVES_AT_THE_END, SAVES_OFTEN


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    with running_cluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with nobody on it; afterwards jobs are ended and nodes that a test has crashed are switched on again."""
    yield whole_cluster
    whole_cluster("scancel", "--user", "root", "--signal", "KILL", "--full")
    whole_cluster("scancel", "--user", "root")
    whole_cluster.machine("up", "3")
    for node in ("n1", "n2", "n3"):
        whole_cluster.machine("wait", node, "idle", "60")


@pytest.fixture(scope="session")
def unbroken_on(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run folder of so many processes on one machine without Slurm, to which nothing happens; of two, with many checkpoints."""

    @cache
    def run(world: int) -> Path:
        folder = tmp_path_factory.mktemp(f"on-{world}") / "run"
        runs.train(world, folder, shards, *RUN, *(SAVES_OFTEN if world == 2 else SAVES_AT_THE_END))
        return folder

    return run
