"""SIGKILL, to whom and when the dice say: the same command ends with the bits of a run that nobody disturbed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest
from trial import PROMPTLY, ROUNDS, STEPS, Attempt, Trial

pytestmark = pytest.mark.timeout(60 * (5 + ROUNDS))


def kill_somebody(attempt: Attempt, dice: random.Random) -> str:
    """SIGKILL to the launcher, a rank, a loader worker, or to all as when the machine goes down; says to whom."""
    living = {"the launcher": attempt.launcher(), "a rank": attempt.ranks(), "a loader worker": attempt.workers()}
    living = {name: processes for name, processes in living.items() if processes}
    if not living:
        return "nobody"
    name = dice.choice([*living, "all"])
    for victim in attempt.processes() if name == "all" else [dice.choice(living[name])]:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    return name


def test_a_run_that_is_killed_again_and_again_ends_with_the_bits_of_an_unbroken_one(
    trial_of: Callable[..., Trial], unbroken: Callable[[int], Trial], dice: random.Random
) -> None:
    expected, trial = unbroken(2), trial_of(2)
    # How far the run has come at each kill, and how long ago: it is starting, or in a step, a save or an evaluation, or finishing.
    for step in sorted(dice.randint(0, STEPS) for _ in range(ROUNDS)):
        delay = dice.uniform(0, {0: 9.0, STEPS: 1.5}.get(step, 0.4))
        attempt = trial.start()
        reached = trial.wait_for_step(attempt, step)
        time.sleep(delay)
        victim = kill_somebody(attempt, dice)
        began = time.monotonic()
        attempt.wait(PROMPTLY)
        print(f"{delay:.2f} s after step {step}: {victim}; all gone after {time.monotonic() - began:.1f} s")
        assert reached and victim != "nobody", attempt.said()
    trial.finish()
    trial.assert_result_of(expected)
