"""The command lines of launch/hosts.yaml, for several machines without Slurm, on two that have nothing but the network in common."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import ROOT, Cluster
from runs import TINY, status

LIMIT = 140
TEXT = (ROOT / "launch" / "hosts.yaml").read_text()


def command(launcher: str, number: int, folder: Path, shards: Path) -> list[str]:
    """The line that begins with this launcher, for the machine of this number: two processes on each, or one."""
    line = re.search(rf"^#   ({launcher} .*?)\n#(?!   )", TEXT, re.DOTALL | re.MULTILINE)
    assert line
    text = re.sub(r"\\\n#\s+", "", line[1])
    for word, replaced in {
        "--num_processes 8": "--num_processes 4",
        "--nproc-per-node 4": "--nproc-per-node 1",
        "--machine_rank 0": f"--machine_rank {number}",
        "--node-rank 0": f"--node-rank {number}",
        "FIRST_HOST": "n1",
        "CONFIG data.shards=... run.folder=...": f"{TINY} data.shards={shards} run.folder={folder} train.epochs=1",
    }.items():
        text = text.replace(word, replaced)
    assert "..." not in text
    return ["env", "ACCELERATE_USE_CPU=true", "OMP_NUM_THREADS=1", *f"{Path(sys.executable).parent}/{text}".split()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("launcher", "world"), [("accelerate launch", 4), ("torchrun", 2)])
def test_the_line_for_several_machines_makes_them_one_run(
    cluster: Cluster, shards: Path, tmp_path: Path, launcher: str, world: int
) -> None:
    hosts = [cluster.start(f"n{number + 1}", *command(launcher, number, tmp_path / "run", shards)) for number in (0, 1)]
    try:
        told = [host.communicate(timeout=LIMIT)[0] for host in hosts]
    except subprocess.TimeoutExpired:
        for number, host in enumerate(hosts):
            cluster.machine("crash", f"n{number + 1}")  # whatever hangs there; the next test finds the machine on again
            host.kill()
        raise
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(told)
    assert status(tmp_path / "run")["status"] == "finished" and status(tmp_path / "run")["world_size"] == world
