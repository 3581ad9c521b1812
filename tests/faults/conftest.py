"""Runs that a test may break, the unbroken ones beside them, and the dice that choose the moments."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("trial")  # a failure then shows both sides
from trial import ROUNDS, Trial  # noqa: E402

SEED = os.environ.get("FAULT_SEED") or secrets.token_hex(4)


def pytest_report_header() -> str:
    return f"faults: FAULT_SEED={SEED} FAULT_ROUNDS={ROUNDS}"


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Chooses this test's moments and victims; FAULT_SEED repeats them."""
    print(f"FAULT_SEED={SEED}")  # shown when the test fails
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def world(turn: int) -> int:
    """How many ranks this turn has: one and two by turns."""
    return 1 + turn % 2


@pytest.fixture
def trial_of(shards: Path, tmp_path: Path) -> Iterator[Callable[..., Trial]]:
    """Makes a run of so many ranks, on the test's shards or on a copy, that leaves no process behind."""
    made = []

    def make(world: int, *settings: str, **options: object) -> Trial:
        made.append(Trial(world, settings=settings, **{"folder": tmp_path / "run", "shards": shards} | options))
        return made[-1]

    yield make
    for trial in made:
        trial.kill()


@pytest.fixture(scope="session")
def unbroken(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Trial]]:
    """The run of so many ranks and epochs that nothing disturbs, made once."""
    made: dict[tuple[int, int], Trial] = {}

    def make(world: int, epochs: int = 4) -> Trial:
        if (world, epochs) not in made:
            made[world, epochs] = Trial(world, tmp_path_factory.mktemp("unbroken") / "run", shards, epochs)
            made[world, epochs].finish()
        return made[world, epochs]

    yield make
    for trial in made.values():
        trial.kill()
