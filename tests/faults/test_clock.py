"""A clock that jumps hours forth and back in mid-run changes nothing: what waits or measures here asks the clock that only counts on."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from trial import Trial

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


@pytest.mark.skipif(not LIBRARIES, reason="needs Debian's package libfaketime")
@pytest.mark.timeout(900)
def test_a_clock_that_jumps_changes_nothing(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, tmp_path: Path
) -> None:
    expected, trial = unbroken(1), trial_of(1)  # libfaketime breaks time.sleep in torchrun, which several ranks need
    clock = tmp_path / "clock"
    clock.write_text("+0")
    faked = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    attempt = trial.start(LD_PRELOAD=str(LIBRARIES[0]), **faked)
    for step in sorted(dice.sample(range(1, trial.last_step), 6)):
        assert trial.wait_for_step(attempt, step), attempt.said()
        clock.write_text(f"{dice.uniform(-48, 48):+.1f}h")
    assert attempt.wait() == 0, attempt.said()
    trial.assert_result_of(expected)
