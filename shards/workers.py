"""Processes that work for this one, and never outlive it.

Spawned, not forked, so that they share nothing; a task and its result travel by pickle.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def worker_pool(count: int) -> ProcessPoolExecutor:
    """A pool of `count` processes that end at once, silently, on Ctrl-C and when this process is killed."""
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _end_with_the_parent)


def _end_with_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a terminal sends Ctrl-C to all; the parent is the one to speak of it
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:  # a killed parent closes nothing: without this its workers would wait for a task for ever
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
