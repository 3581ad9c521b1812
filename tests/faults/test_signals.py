"""Signals that do not kill: SIGTERM saves, SIGSTOP makes all wait, and both end with the bits of a run that nobody disturbed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import pytest
import runs
from trial import ROUNDS, Trial

pytestmark = pytest.mark.timeout(60 * (5 + ROUNDS))


def test_a_run_that_is_told_to_stop_again_and_again_ends_with_the_bits_of_an_unbroken_one(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random
) -> None:
    expected, trial = unbroken(2), trial_of(2, "save.every_steps=null")  # nothing is lost: the signal saves
    for step in sorted(dice.randint(1, trial.last_step - 1) for _ in range(max(1, ROUNDS // 10))):
        attempt = trial.start()
        assert trial.wait_for_step(attempt, step), attempt.said()
        dice.choice([*attempt.launcher(), *attempt.ranks()]).terminate()
        attempt.wait()
        told = runs.status(trial.folder)
        assert told["status"] == "unfinished" and "SIGTERM" in told["reason"], attempt.said()
        assert (trial.folder / "checkpoints" / f"step-{told['steps']:08d}").is_dir() and told["steps"] == trial.steps()
    trial.finish()
    trial.assert_result_of(expected)


def test_a_rank_that_stands_still_for_seconds_changes_nothing(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random
) -> None:
    expected, trial = unbroken(2), trial_of(2)
    attempt = trial.start()
    for step in sorted(dice.sample(range(1, trial.last_step), 3)):
        assert trial.wait_for_step(attempt, step), attempt.said()
        rank = dice.choice(attempt.ranks())
        rank.send_signal(signal.SIGSTOP)
        time.sleep(dice.uniform(1, 4))
        rank.send_signal(signal.SIGCONT)
    assert attempt.wait() == 0, attempt.said()
    trial.assert_result_of(expected)


def test_a_rank_that_stands_still_for_good_is_named_in_bounded_time_and_costs_nothing(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random
) -> None:
    expected, trial = unbroken(2), trial_of(2, "run.timeout_minutes=0.25")
    attempt = trial.start(TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3")  # what torchrun gives a stopped rank to end by itself; 30 unless told
    assert trial.wait_for_step(attempt, dice.randint(1, trial.last_step - 1)), attempt.said()
    number = dice.randint(0, 1)
    rank = attempt.ranks()[number]
    rank.send_signal(signal.SIGSTOP)
    trial.assert_failed(attempt, f"rank {number} (process {rank.pid} on ", "is silent", within=15 + 60)
    trial.finish()
    trial.assert_result_of(expected)
