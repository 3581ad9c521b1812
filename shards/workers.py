"""Processes that work for this one, and never outlive it.

Spawned, not forked, so that they share nothing; a task and its result travel by pickle.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any


def worker_pool(count: int, prepare: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
    """A pool of `count` processes that end at once, silently, on Ctrl-C and when this process is killed.

    Each begins with `prepare(*arguments)`; what is shared between processes can only be handed over so.
    """
    return _Pool(count, multiprocessing.get_context("spawn"), _begin, (prepare, arguments))


class _Pool(ProcessPoolExecutor):
    def submit(self, *task: Any, **options: Any) -> Future[Any]:
        """Starts the workers, too, when there is something to do: with Ctrl-C held back, which they inherit and end in `_begin`."""
        held_back = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*task, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held_back)


def _begin(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    _end_with_the_parent()
    if prepare:
        prepare(*arguments)


def _end_with_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a terminal sends Ctrl-C to all; the parent is the one to speak of it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:  # a killed parent closes nothing: without this its workers would wait for a task for ever
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
