"""Processes of dist_train that need not spend seven seconds on importing torch: they are forked from one that has done that already.

What they run is `python -m dist_train ...`, in a process, a process group and a memory of their own, over gloo as ever. Only the
launcher is left out, so the tests of what a launcher does, of signals and of failures use runs.start.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import torch
from torch.multiprocessing import start_processes

from dist_train.__main__ import main

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "dist_train.__main__",
        "dist_train.training",
        "dist_train.evaluate",
        "dist_train.predict",
        "torch._dynamo",
        "scipy.stats",
        "scipy.optimize",
        "matplotlib.pyplot",
    ]
)
_PORTS_EACH = 400
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 20
_PORTS = cycle(range(20_000 + _PORTS_EACH * _WORKER, 20_000 + _PORTS_EACH * (_WORKER + 1)))
_GRACE = 30  # seconds that the other ranks have to end by themselves once one has failed


@dataclass(frozen=True)
class Running:
    """A command of dist_train under way on its ranks; it can be asked what a Popen can, and answers for all of them."""

    words: Sequence[str]
    ranks: Sequence[ForkServerProcess]
    logs: tuple[Path, Path]

    def poll(self) -> int | None:
        """The worst exit code of all ranks; None as long as one runs."""
        codes = [rank.exitcode for rank in self.ranks]
        return None if None in codes else max(abs(code or 0) for code in codes)

    def said(self) -> list[str]:
        """What stands on stdout, and on stderr, so far."""
        return [log.read_text() if log.exists() else "" for log in self.logs]

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Waits for the end and returns what was printed; raises TimeoutError as `run` does."""
        _wait_for(self.ranks, time.monotonic() + timeout)
        stdout, stderr = self.said()
        if late := [number for number, rank in enumerate(self.ranks) if rank.exitcode is None]:
            raise TimeoutError(
                f"{self.words}: of {len(self.ranks)} ranks, {late} had not ended in {timeout} s, or {_GRACE} s after another failed:\n"
                f"{stdout}{stderr}"
            )
        return stdout, stderr

    def kill(self) -> None:
        """SIGKILL to all that is left of it, its loader workers too, so quickly that no rank hears of the end of another."""
        kill_family(*(rank.pid or 0 for rank in self.ranks if rank.exitcode is None))
        for rank in self.ranks:
            rank.join()


@contextmanager
def running(*arguments: object, world: int = 1, work: Callable[[Sequence[str]], int] = main) -> Iterator[Running]:
    """Starts a command of dist_train, or the `work` in its place, on `world` ranks, of which none is left afterwards."""
    words = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as place:
        logs = Path(place) / "stdout", Path(place) / "stderr"
        started = Running(words, start(words, world, logs, work), logs)
        try:
            yield started
        finally:
            started.kill()


def run(
    *arguments: object, world: int = 1, limit: float = 150, work: Callable[[Sequence[str]], int] = main
) -> subprocess.CompletedProcess[str]:
    """Runs a command of dist_train on `world` ranks; returns what subprocess.run would, with the worst exit code of all ranks.

    Raises TimeoutError when one has to be killed: after `limit` seconds, or when it does not end although another has failed. Whatever
    happens, none of them is left, nor a loader worker of one that was killed.
    """
    with running(*arguments, world=world, work=work) as started:
        said = started.communicate(limit)
        return subprocess.CompletedProcess(started.words, started.poll() or 0, *said)


def start(
    words: Sequence[str], world: int, logs: tuple[Path, Path], work: Callable[[Sequence[str]], int] = main
) -> list[ForkServerProcess]:
    """Starts `world` ranks that do work(words), which gives their exit codes; who starts them also ends them."""
    ranks = [_SERVER.Process(target=_rank, args=(words, os.environ | of_rank, Path.cwd(), *logs, work)) for of_rank in environments(world)]
    for rank in ranks:
        rank.start()
    return ranks


def environments(world: int) -> list[dict[str, str]]:
    """What a launcher tells each rank: where they meet, how many they are, and who it is. One alone needs no telling."""
    if world == 1:
        return [{}]
    to_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [to_all | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def spawn(work: Callable[..., None], *arguments: object, world: int, limit: float = 150) -> None:
    """Runs work(rank, port, *arguments) in `world` processes, as torch's spawn does; raises what one of them did, or TimeoutError."""
    started = start_processes(work, (free_port(), *arguments), nprocs=world, join=False, start_method="forkserver")
    end = time.monotonic() + limit
    while not started.join(timeout=1):
        if time.monotonic() > end:
            for process in started.processes:
                kill_family(process.pid or 0)
            raise TimeoutError(f"{work.__name__} on {world} ranks has not ended in {limit} s")


def _wait_for(ranks: Sequence[ForkServerProcess], end: float) -> None:
    """Returns when all have ended, or it is too late; once one has failed, the others have a grace period."""
    failed = False
    while (running := [rank.sentinel for rank in ranks if rank.exitcode is None]) and time.monotonic() < end:
        wait(running, timeout=max(0.0, end - time.monotonic()))
        if not failed and any(rank.exitcode for rank in ranks):
            failed, end = True, min(end, time.monotonic() + _GRACE)


def kill_family(*pids: int) -> None:
    """SIGKILL to processes and to all below them, if they are there."""
    family = list[psutil.Process]()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            family += [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()


def free_port() -> int:
    """A port that rank 0 can bind in some seconds: below those that systems give away by themselves, and of this xdist worker's own."""
    for port in islice(_PORTS, _PORTS_EACH):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            return port
    raise OSError(f"{_PORTS_EACH} ports are all taken")


def _rank(
    words: Sequence[str], environment: Mapping[str, str], folder: Path, stdout: Path, stderr: Path, work: Callable[[Sequence[str]], int]
) -> None:
    """What the server is, but for what it has imported, must not show: it may have been started by another test."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    for number, log in ((1, stdout), (2, stderr)):
        with log.open("ab") as file:
            os.dup2(file.fileno(), number)
    code = work(words)
    atexit._run_exitfuncs()  # as at the end of every other process; those of multiprocessing leave it out
    sys.exit(code)
