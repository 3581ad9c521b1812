"""Loader workers that are known to live.

A worker is forked from a rank that has threads: gloo's, autograd's, the one that watches. The child inherits every lock as it
is at that moment, and one that another thread holds will never be opened there. In CPython before 3.11.8 any foreign thread that
is just entering the interpreter holds such a lock (cpython issue 112275): once in some thousand forks on a busy machine a worker
is stillborn, its rank waits for its first batch, and all others for that rank. So a worker says that it lives before anybody
counts on it, and one that says nothing is ended, and forked anew. Nor is there a worker that could read, and hand over nothing.
And one that is killed is told of where it is waited for, and nowhere else.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from multiprocessing.process import BaseProcess
from types import FrameType

import torch

from dist_train.errors import ConfigError

LONGEST_TEMPORARY_FOLDER = 107 - len("/pymp-12345678/listener-12345678")  # bytes; the kernel takes 107 for a socket's name
PATIENCE = 10.0  # seconds; a living child needs milliseconds, on a machine that is far too busy a second
TRIES = 5
_SIGNAL_COMES = 1.0  # seconds; the sockets of a process close a moment before its parent is told of its end


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
    """What a DataLoader takes as multiprocessing_context."""

    Process = LivingProcess


class _PutOff:
    """torch's handler of SIGCHLD, which raises for a killed worker, heard only while workers are waited for."""

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self._handler = handler
        self.waits = False

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        if self.waits:
            self._handler(number, frame)


@contextmanager
def waiting_for_workers() -> Iterator[None]:
    """Around what waits for loader workers, in the thread that started them: here torch's RuntimeError tells of one that was killed.

    By itself torch raises it wherever this thread is just then: in the middle of a checkpoint, or of writing down why the run fails.
    """
    heard = signal.getsignal(signal.SIGCHLD)
    if not callable(heard):  # there are no workers
        yield
        return
    if not isinstance(heard, _PutOff):
        heard = _PutOff(heard)
        signal.signal(signal.SIGCHLD, heard)
    heard.waits = True
    try:
        heard(signal.SIGCHLD)  # one may have been killed before
        yield
    except (ConnectionError, EOFError):  # it was handing over what it had read
        time.sleep(_SIGNAL_COMES)
        raise
    finally:
        heard.waits = False


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
