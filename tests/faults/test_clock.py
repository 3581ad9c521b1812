"""Clocks that jump hours forth and back in mid-run change nothing: what waits or measures here asks the clock that only counts on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from trial import Trial, turns

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
FAKED = {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@pytest.mark.skipif(not LIBRARIES, reason="needs Debian's package libfaketime")
@pytest.mark.timeout(900)
@turns(10)
def test_clocks_that_jump_each_for_itself_change_nothing(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, tmp_path: Path, world: int
) -> None:
    # a worker that is forked while a thread of its rank asks libfaketime finds it locked for ever; of two ranks each has more threads
    expected, trial = unbroken(world), trial_of(world, *["data.workers=0"] * (world > 1))
    clocks = [tmp_path / f"clock-{rank}" for rank in range(world)]
    for clock in clocks:
        clock.write_text("+0")
    attempt = trial.launch_by_hand(  # libfaketime breaks time.sleep in torchrun
        [FAKED | {"LD_PRELOAD": str(LIBRARIES[0]), "FAKETIME_TIMESTAMP_FILE": str(clock)} for clock in clocks]
    )
    for step in sorted(dice.sample(range(1, trial.last_step), 6)):
        assert trial.wait_for_step(attempt, step), attempt.said()
        dice.choice(clocks).write_text(f"{dice.uniform(-48, 48):+.1f}h")
    assert attempt.wait() == 0, attempt.said()
    trial.assert_result_of(expected)
