"""The promises of the processes that work for another: results in order, few tasks in store, and a quiet end."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator

from shards.workers import WorkerPool


def doubled(number: int) -> int:
    time.sleep(0.02)
    return 2 * number


def test_results_come_in_order_and_few_tasks_are_in_store() -> None:
    taken = []

    def numbers() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    with WorkerPool(2) as pool:
        results = pool.in_order(doubled, numbers(), at_once=3)
        assert next(results) == 0
        assert len(taken) == 3 * (2 * 2 + 1)
        assert list(results) == list(range(2, 100, 2))


def test_workers_that_die_after_an_early_end_cost_no_traceback() -> None:
    """As on Ctrl-C, which a terminal sends to all; pytest makes an error of what a thread of the pool complains of."""
    with WorkerPool(2) as pool:
        results = pool.in_order(doubled, range(50), at_once=1)
        assert next(results) == 0
        results.close()
        for worker in multiprocessing.active_children():
            worker.kill()
