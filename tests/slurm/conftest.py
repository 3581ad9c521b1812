"""One cluster of three nodes for all tests of a process, each of which leaves it idle and whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster, running_cluster


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
