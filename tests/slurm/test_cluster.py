"""The cluster of these tests is real, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from cluster import Cluster, running_cluster, traces_of

HOLD = "from cluster import running_cluster\nwith running_cluster(2) as it: print(it.folder, flush=True); input()"


def test_each_node_has_a_name_an_address_and_a_process_table_of_its_own(cluster: Cluster) -> None:
    told = cluster("srun", "--nodes=3", "bash", "-c", "echo $(hostname) $(hostname -I) $(cat /proc/1/comm)").split("\n")
    assert sorted(filter(None, told)) == [f"n{number} 10.77.77.{number} bash" for number in (1, 2, 3)]


def test_a_cluster_that_is_shut_down_leaves_no_trace() -> None:
    with running_cluster(1) as cluster:
        assert any("slurmd" in trace for trace in traces_of(cluster.folder))
    assert traces_of(cluster.folder) == []


def test_a_cluster_whose_owner_is_killed_leaves_no_trace() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD], cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout
    folder = Path(owner.stdout.readline().strip())
    assert any("slurmctld" in trace for trace in traces_of(folder))
    owner.kill()
    owner.communicate()
    end = time.monotonic() + 60
    while traces := traces_of(folder):
        assert time.monotonic() < end, traces
        time.sleep(0.2)
