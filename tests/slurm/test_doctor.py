"""slurm/doctor.sh, on a real Slurm: it tells of every node, and a training that depends on it begins only where the nodes are fit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from cluster import Cluster
from runs import TINY

pytestmark = pytest.mark.timeout(300)
LIMIT = 140
TWO_BY_TWO = ("--nodes=2", "--gpus-per-node=2")  # the GPUs are pretended; tests/tiny.yaml computes on CPUs


def test_the_doctor_tells_of_every_node_and_finds_what_is_wrong(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    settings = (TINY, f"run.folder={tmp_path / 'run'}")
    good = cluster.submit(tmp_path / "good.log", *TWO_BY_TWO, "slurm/doctor.sh", *settings, f"data.shards={shards}")
    assert good.wait_until_ended(limit=LIMIT) == ["COMPLETED"], good.log()
    assert {"== n1 is here", "== n2 is here"} <= {*good.log().splitlines()}
    assert re.search(r"^clocks +ok +found +n2 [+-]", good.log(), re.MULTILINE), good.log()
    assert "seen by 4 of 4 ranks" in " ".join(good.log().split()) and re.search(r"^verdict: fit", good.log(), re.MULTILINE)
    assert not (tmp_path / "run").exists()

    cut = Path(shutil.copytree(shards, tmp_path / "cut"))
    (cut / "shard-000001.tar").write_bytes(b"")
    bad = cluster.submit(tmp_path / "bad.log", *TWO_BY_TWO, "slurm/doctor.sh", *settings, f"data.shards={cut}")
    after = ("--dependency", f"afterok:{bad.number}", "--kill-on-invalid-dep=yes")
    training = cluster.submit(tmp_path / "train.log", *after, *TWO_BY_TWO, "slurm/train.sh", *settings, f"data.shards={cut}")
    assert bad.wait_until_ended(limit=LIMIT) == ["FAILED"], bad.log()
    assert "n1 (ranks 0, 1), n2 (ranks 2, 3)" in " ".join(bad.log().split()) and "verdict: not fit (1 error)" in bad.log()
    assert training.wait_until_ended(limit=60) == ["CANCELLED"]
    assert not (tmp_path / "run").exists() and not (tmp_path / "train.log").exists()  # it was not begun


def test_a_node_that_does_not_come_is_known_by_its_silence(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.sh"
    site.write_text(
        """container=(bash -c 'if [ "$SLURMD_NODENAME" = n2 ]; then sleep 200; fi; exec "$@"' hanging)\n"""
        "declare +x SLURM_JOB_NODELIST; SLURM_JOB_NODELIST='n[1-2],m[1-60000]'\n"  # srun knows it is two; the script has many names to read
    )
    settings = (TINY, f"run.folder={tmp_path / 'run'}", f"data.shards={shards}")
    job = cluster.submit(tmp_path / "log", "--nodes=2", "slurm/doctor.sh", *settings, PATIENCE="10", DIST_TRAIN_SITE=str(site))
    assert job.wait_until_ended(limit=LIMIT) == ["FAILED"], job.log()
    assert "== n1 is here" in job.log() and "== n2 is here" not in job.log()
    assert "not all of n[1-2],m[1-60000] came within 10 s: look for the node that has not said it is here" in job.log()
