"""The promises of launch/elastic.sh, on hosts that share the network and the disk alone, and of which one may be switched off."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import runs
from cluster import ROOT, Cluster
from runs import TINY, assert_equal_up_to_rounding, records, status, weights
from warm import free_port

from dist_train.run_lock import RunLock
from dist_train.status import write_status

pytestmark = pytest.mark.timeout(400)
LIMIT = 120  # seconds for whatever is waited for; on a quiet machine it takes 20
SETTINGS = (
    "data.passes=3",
    "train.global_batch=12",
    "train.epochs=3",
    "stop.patience=null",
    "save.every_steps=2",
    "save.keep=3",
)
LAST = 30  # step: 3 visits of 40 images in batches of 12 are 10 steps per epoch


class Host:
    """launch/elastic.sh on a machine, its log being `NODE.log` in a folder; a machine that was crashed is switched on for it."""

    def __init__(self, cluster: Cluster, node: str, run: Path, shards: Path, **variables: str) -> None:
        self.node, self._cluster, self._log = node, cluster, run.with_name(f"{node}.log")
        told = {"FIRST_HOST": "n1", "HOSTS": "1:3", "PROCESSES": "1", "OMP_NUM_THREADS": "1"} | variables
        words = [f"{name}={value}" for name, value in told.items()]
        line = ("bash", "launch/elastic.sh", str(TINY), f"run.folder={run}", f"data.shards={shards}", *SETTINGS)
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
        time.sleep(0.05)


def steps(run: Path) -> list[int]:
    return [record["step"] for record in records(run, "step")]


def train_on(run: Path, world: int, beyond: int) -> Callable[[], bool]:
    """Whether so many processes train, and have come beyond a step."""

    def check() -> bool:
        return (run / "status.json").exists() and status(run).get("world_size") == world and len(steps(run)) > beyond

    return check


@contextmanager
def suspended(run: Path, rank: int) -> Iterator[Callable[[], bool]]:
    """Holds a rank of a run, and with it all others; gives whether it has been told by SIGTERM to end meanwhile."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended meanwhile, or is not ours to look into
            if f"run.folder={run}" in process.cmdline() and process.environ().get("RANK") == str(rank) and "RANK" not in parent(process):
                found.append(process)
    (process,) = found

    def asked_to_end() -> bool:
        pending = re.findall(r"(?:Sig|Shd)Pnd:\t(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in pending)

    process.suspend()
    try:
        yield asked_to_end
    finally:
        process.resume()


def parent(process: psutil.Process) -> dict[str, str]:
    """The environment of its parent: torchrun has no rank, while the parent of a loader worker does."""
    above = process.parent()
    assert above
    return above.environ()


@pytest.fixture(scope="module")
def unbroken(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process that nothing happens to."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    runs.train(1, run, shards, *SETTINGS)
    return run


def test_a_host_that_dies_costs_a_restart_and_joins_when_it_is_back_and_a_stop_file_ends_all(
    cluster: Cluster, unbroken: Path, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    hosts = [Host(cluster, node, run, shards) for node in ("n1", "n2", "n3")]
    wait_until(train_on(run, world=3, beyond=3), hosts, "three train")
    assert [cluster.listening(host.node) for host in hosts] == [["10.77.77.1"], ["10.77.77.2"], ["10.77.77.3"]]
    hosts[2].lose_power()
    taken = len(steps(run))
    wait_until(train_on(run, world=2, beyond=1), hosts, "the two that are left train")
    assert 2 <= len(steps(run)) <= taken + 4 < LAST - 10, "the two did not begin at a checkpoint, or little is left to do"
    cluster.machine("boot", "n3")
    with suspended(run, rank=1) as asked_to_end:  # or the run might end before the third comes
        hosts[2] = Host(cluster, "n3", run, shards)
        wait_until(asked_to_end, hosts, "the third has come")
    wait_until(train_on(run, world=3, beyond=1), hosts, "the third has joined")
    (run / "stop").touch()
    assert [host.end() for host in hosts] == [0, 0, 0]
    assert status(run)["status"] == "unfinished" and status(run)["world_size"] == 3 and status(run)["steps"] < LAST
    runs.train(1, run, shards, *SETTINGS)
    assert status(run)["status"] == "finished"
    assert steps(run) == [*range(1, LAST + 1)]
    assert [record["epoch"] for record in records(run, "epoch")] == [0, 1, 2]
    assert_equal_up_to_rounding(weights(run, LAST), weights(unbroken, LAST))


def test_the_others_wait_for_the_first_host_and_a_failure_ends_all_for_good(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    run, own = tmp_path / "run", Path(shutil.copytree(shards, tmp_path / "shards"))
    hosts = [Host(cluster, node, run, own) for node in ("n1", "n2")]
    wait_until(train_on(run, world=2, beyond=3), hosts, "two train")
    hosts[0].lose_power()
    taken = len(steps(run))
    wait_until(lambda: "run unfinished" in hosts[1].log(), hosts, "the other has noticed")
    cluster.machine("boot", "n1")
    hosts[0] = Host(cluster, "n1", run, own)
    wait_until(lambda: len(steps(run)) > taken, hosts, "both go on")
    assert status(run)["world_size"] == 2
    for shard in own.glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert [host.end() for host in hosts] == [1, 1]
    assert status(run)["status"] == "failed" and "ShardError" in status(run)["reason"]
    assert [len(re.findall("run failed", host.log())) for host in hosts] == [1, 1]
    assert steps(run) == [*range(1, len(steps(run)) + 1)] and taken < len(steps(run)) < LAST


def here(run: Path, shards: Path, hosts: int = 1, **variables: str) -> list[tuple[int, str, str]]:
    """launch/elastic.sh on this machine, to its end, so many times at once: exit codes, outputs, errors."""
    with ExitStack() as ended:
        scripts = [ended.enter_context(started_here(run, shards, **variables)) for _ in range(hosts)]
        outputs = [script.communicate(timeout=LIMIT) for script in scripts]
        return [(script.returncode, *output) for script, output in zip(scripts, outputs, strict=True)]


@contextmanager
def started_here(run: Path, shards: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The same once, under way; ended if it does not end by itself."""
    environment = os.environ | {"FIRST_HOST": "localhost", "PROCESSES": "1", "DIST_TRAIN_SITE": "/dev/null", **variables}
    line = ("bash", "launch/elastic.sh", str(TINY), f"run.folder={run}", f"data.shards={shards}", *SETTINGS)
    with subprocess.Popen(line, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as script:
        try:
            yield script
        finally:
            script.terminate()


def test_numbers_of_hosts_on_which_the_training_could_not_go_on_are_refused(shards: Path, tmp_path: Path) -> None:
    ((code, said, error),) = here(tmp_path / "run", shards, HOSTS="1:5")
    assert code == 1 and not (tmp_path / "run").exists()
    assert "train.global_batch=12 does not divide among 5 processes" in error, said + error


def test_a_run_that_has_finished_is_not_waited_for(unbroken: Path, shards: Path) -> None:
    ((code, said, error),) = here(unbroken, shards, FIRST_HOST="long-gone.invalid")
    assert code == 0 and "run finished (all 3 epochs are done) already" in said, said + error


def test_a_run_that_the_others_finish_while_this_host_is_coming_is_left(unbroken: Path, shards: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(unbroken, tmp_path / "run"))
    finished = status(run)
    write_status(run, finished | {"status": "unfinished", "reason": "training"})
    with socket.create_server(("localhost", 0)) as other, started_here(run, shards, PORT=str(other.getsockname()[1])) as script:
        other.settimeout(LIMIT)
        other.accept()  # it asks who listens there, and has looked at the status before
        write_status(run, finished)
        other.close()
        said, error = script.communicate(timeout=LIMIT)
    assert script.returncode == 0 and "run finished (all 3 epochs are done) already" in said.splitlines()[-1], said + error


def test_another_program_at_the_port_is_told_of(shards: Path, tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as mute:
        port = mute.getsockname()[1]
        ((code, said, error),) = here(tmp_path / "run", shards, PORT=str(port))
    assert code == 1 and f"another program listens at port {port} of localhost; give all hosts the line with another PORT" in error, said
    assert not (tmp_path / "run").exists()


def test_a_folder_that_another_job_has_is_left_to_it(shards: Path, tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    lock.take()
    try:
        ended = here(tmp_path / "run", shards, 2, HOSTS="2:2", PORT=str(free_port()))
    finally:
        lock.release()
    for code, said, error in ended:  # by all hosts, of which one has rank 0
        assert code == 1 and said.count("run failed (before it began") == 1, said + error
        assert f"another job is writing here: process {os.getpid()} on " in error
