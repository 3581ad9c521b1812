"""Processes that work for this one, and never outlive it.

Spawned, not forked, so that they share nothing; a task and its result travel by pickle.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerPool(ProcessPoolExecutor):
    """A pool of `count` processes that end at once, silently, on Ctrl-C and when this process is killed."""

    def __init__(self, count: int, prepare: Callable[..., None] | None = None, *arguments: Any) -> None:
        """Each process begins with `prepare(*arguments)`; what is shared between processes can only be handed over so."""
        super().__init__(count, multiprocessing.get_context("spawn"), _begin, (prepare, arguments))
        self._count = count

    def submit(self, *task: Any, **options: Any) -> Future[Any]:
        """Starts the workers, too, when there is something to do: with Ctrl-C held back, which they inherit and end in `_begin`."""
        held_back = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*task, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held_back)

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item], at_once: int) -> Iterator[Result]:
        """What `function` makes of each item; `at_once` items travel together, and few of them wait.

        Unlike `map` it cancels nothing when it ends early: Python 3.11 stumbles over a cancelled task when a worker has died.
        """
        rest, running = iter(items), deque[Future[list[Result]]]()
        while some := list(islice(rest, at_once)):
            running.append(self.submit(_each, function, some))
            if len(running) > 2 * self._count:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()


def _each(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [function(item) for item in items]


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
