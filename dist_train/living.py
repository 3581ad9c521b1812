"""Loader workers that are known to live.

A worker is forked from a rank that has threads: gloo's, autograd's, the one that watches. The child inherits every lock as it
is at that moment, and one that another thread holds will never be opened there. In CPython before 3.11.8 any foreign thread that
is just entering the interpreter holds such a lock (cpython issue 112275): once in some thousand forks on a busy machine a worker
is stillborn, its rank waits for its first batch, and all others for that rank. So a worker says that it lives before anybody
counts on it, and one that says nothing is ended, and forked anew. Nor is there a worker that could read, and hand over nothing.
And of one that was killed its rank hears where it waits for it, and nowhere else.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from dist_train.errors import ConfigError, LostProcessError, TrainingError

LONGEST_TEMPORARY_FOLDER = 107 - len("/pymp-12345678/listener-12345678")  # bytes; the kernel takes 107 for a socket's name
PATIENCE = 10.0  # seconds; a living child needs milliseconds, on a machine that is far too busy a second
TRIES = 5
_A_MOMENT = 1.0  # seconds; what a process has open is closed a little before it has ended


class LivingProcess(ForkProcess):
    """A child whose `start` returns once it runs, or has ended by itself."""

    def run(self) -> None:
        torch.set_num_threads(1)  # the loader's first act: it takes locks too
        os.write(self._mouth, b"!")
        os.close(self._mouth)
        super().run()

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:  # what `start` calls to fork
        assert isinstance(process_obj, LivingProcess)
        for _ in range(TRIES):
            ear, process_obj._mouth = os.pipe()
            child = ForkProcess._Popen(process_obj)
            os.close(process_obj._mouth)
            heard, _, _ = select.select([ear], [], [], PATIENCE)  # something is heard, too, when a child ends without a word
            os.close(ear)
            if heard:
                return child
            print(f"loader worker {child.pid} did not come to life in {PATIENCE:g} s; forking another", file=sys.stderr, flush=True)
            child.kill()
            child.wait()
            child.close()
        raise RuntimeError(f"{TRIES} loader workers in a row did not come to life; data.workers=0 does without them")

    _mouth: int


class LivingContext(ForkContext):
    """What a DataLoader takes as multiprocessing_context; it remembers its workers."""

    def __init__(self) -> None:
        super().__init__()
        self._workers: list[LivingProcess] = []

    def Process(self, *arguments: Any, **named: Any) -> LivingProcess:  # type: ignore[override]  # a DataLoader calls it
        self._workers.append(LivingProcess(*arguments, **named))
        return self._workers[-1]

    def refuse_lost_workers(self) -> None:
        """Where a worker has not ended well, or is just ending, raises LostProcessError if it was killed, and else TrainingError.

        For whoever has waited for them and met an error: torch's own, after five seconds, or that of a broken connection.
        """
        if not any(worker.exitcode for worker in self._workers):
            ending = wait([worker.sentinel for worker in self._workers if worker.is_alive()], _A_MOMENT)
            for worker in self._workers:
                if worker.sentinel in ending:
                    worker.join()
        for worker in self._workers:
            if worker.exitcode == -signal.SIGKILL:
                raise LostProcessError(
                    f"lost another process: loader worker {worker.pid} was killed (SIGKILL, as where memory is short: fewer data.workers "
                    f"need less); the same command goes on"
                )
            if worker.exitcode:
                by = signal.strsignal(-worker.exitcode) if worker.exitcode < 0 else f"exit status {worker.exitcode}"
                hint = ": /dev/shm may be full" if worker.exitcode == -signal.SIGBUS else ""
                raise TrainingError(f"loader worker {worker.pid} has ended ({by}{hint}); data.workers=0 does without them")


def refuse_long_temporary_folder() -> None:
    """Workers hand over what they read through a socket there. Where its name is too long, a worker says so and its rank waits for ever.

    Raises ConfigError with the folder and its length.
    """
    folder = tempfile.gettempdir()
    length = len(os.fsencode(folder))
    if length > LONGEST_TEMPORARY_FOLDER:
        raise ConfigError(
            f"TMPDIR={folder}: {length} bytes, and loader workers make sockets there, whose names may be too long beyond "
            f"{LONGEST_TEMPORARY_FOLDER}; name another folder in TMPDIR, or set the number of workers to 0"
        )
