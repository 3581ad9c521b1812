"""The promises of launch/elastic.sh, on hosts without Slurm that share the network and the disk alone: power cuts are real."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import runs
from cluster import Cluster
from runs import TINY, assert_equal_up_to_rounding, records, status, weights

pytestmark = pytest.mark.timeout(400)
LIMIT = 170  # seconds for whatever is waited for; on a quiet machine it takes 20
# Enough steps that there are some left when a host has come back.
SETTINGS = (
    "model.backbone=test_convnext",
    "data.passes=3",
    "train.global_batch=24",
    "stop.patience=null",
    "save.every_steps=2",
    "save.keep=3",
)
EPOCHS = 40
LONG = (*SETTINGS, f"train.epochs={EPOCHS}")
LAST = 5 * EPOCHS  # step: 3 visits of 40 images in batches of 24 are 5 steps per epoch


class Host:
    """launch/elastic.sh on a machine, its log being `NODE.log` in a folder; a machine that was crashed is switched on for it."""

    def __init__(self, cluster: Cluster, node: str, run: Path, shards: Path, *settings: str, **variables: str) -> None:
        self.node, self._cluster, self._log = node, cluster, run.with_name(f"{node}.log")
        told = {"FIRST_HOST": "n1", "HOSTS": "1:3", "PROCESSES": "1"} | variables
        words = [f"{name}={value}" for name, value in told.items()]
        line = ("bash", "launch/elastic.sh", str(TINY), f"run.folder={run}", f"data.shards={shards}", *settings)
        self.script = cluster.start(node, "env", *words, "bash", "-c", 'exec "$@" >>"$0" 2>&1', self._log, *line)

    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def lose_power(self) -> None:
        self._cluster.machine("crash", self.node)
        self.script.wait(timeout=20)

    def end(self) -> int:
        """The exit code of the script, once it has ended by itself."""
        try:
            return self.script.wait(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.node} has not ended in {LIMIT} s\n{self.log()}") from None


def wait_until(true: Callable[[], bool], hosts: list[Host], what: str) -> None:
    """Returns once it is true; fails when the scripts have all ended before, or it takes too long."""
    end = time.monotonic() + LIMIT
    while not true():
        logs = "\n".join(f"--- {host.node}\n{host.log()[-3000:]}" for host in hosts)
        assert time.monotonic() < end, f"waited {LIMIT} s until {what}\n{logs}"
        assert any(host.script.poll() is None for host in hosts), f"all have ended, but not {what}\n{logs}"
        time.sleep(0.1)


def steps(run: Path) -> list[int]:
    return [record["step"] for record in records(run, "step")]


def goes_on_with(run: Path, world: int, beyond: int) -> Callable[[], bool]:
    """Whether so many processes train, and have come beyond a step."""

    def check() -> bool:
        return (run / "status.json").exists() and status(run).get("world_size") == world and len(steps(run)) > beyond

    return check


@pytest.fixture(scope="module")
def unbroken(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two processes that nothing happens to."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    runs.train(2, run, shards, *LONG)
    return run


def assert_as_unbroken(run: Path, unbroken: Path) -> None:
    """The same steps, none lost and none repeated, to the same weights."""
    assert status(run)["status"] == "finished"
    assert steps(run) == [*range(1, LAST + 1)]
    assert [record["epoch"] for record in records(run, "epoch")] == [*range(EPOCHS)]
    assert_equal_up_to_rounding(weights(run, LAST), weights(unbroken, LAST))


def test_a_host_that_dies_costs_a_restart_on_the_others_and_joins_them_when_it_is_back(
    cluster: Cluster, unbroken: Path, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    hosts = [Host(cluster, node, run, shards, *LONG) for node in ("n1", "n2", "n3")]
    wait_until(goes_on_with(run, world=3, beyond=3), hosts, "three train")
    hosts[2].lose_power()
    taken = len(steps(run))
    wait_until(goes_on_with(run, world=2, beyond=1), hosts, "the two that are left train")
    assert len(steps(run)) <= taken + 2 < LAST, "the two did not begin at a checkpoint, or there is nothing left to do"
    cluster.machine("boot", "n3")
    hosts[2] = Host(cluster, "n3", run, shards, *LONG)
    wait_until(goes_on_with(run, world=3, beyond=1), hosts, "the third has joined")
    assert [host.end() for host in hosts] == [0, 0, 0]
    assert status(run)["world_size"] == 3
    assert_as_unbroken(run, unbroken)
