"""Signals that do not kill: SIGTERM saves, SIGSTOP makes all wait, and both end with the bits of a run that nobody disturbed."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import pytest
import runs
from trial import ROUNDS, Attempt, Trial, times, turns

pytestmark = pytest.mark.timeout(60 * (5 + ROUNDS))


def start(trial: Trial, launched: bool, **environment: str) -> Attempt:
    """Under torchrun, which has a say in what signals do, or without a launcher, as on several hosts."""
    print("launched" if launched else "without a launcher")
    return trial.launch(**environment) if launched else trial.start()


@turns(10)
def test_a_run_that_is_told_to_stop_again_and_again_ends_with_the_bits_of_an_unbroken_one(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, world: int
) -> None:
    epochs = 2 * times(5)  # a strike comes some steps after the one before at the earliest, and none after the last step
    expected, trial = unbroken(world, epochs), trial_of(world, "save.every_steps=null", epochs=epochs)  # nothing is lost: the signal saves
    for step in sorted(dice.randint(1, trial.last_step // 2) for _ in range(times(5))):
        attempt = start(trial, dice.random() < 0.5)
        assert trial.wait_for_step(attempt, max(step, trial.steps() + 1)), attempt.said()
        time.sleep(dice.uniform(0, 0.2))
        dice.choice([*attempt.launcher(), *attempt.ranks()]).terminate()
        attempt.wait()
        told = runs.status(trial.folder)
        assert told["status"] == "unfinished" and "SIGTERM" in told["reason"], attempt.said()
        assert (trial.folder / "checkpoints" / f"step-{told['steps']:08d}").is_dir() and told["steps"] == trial.steps()
    trial.finish()
    trial.assert_result_of(expected)


@turns(10)
def test_a_process_that_stands_still_for_seconds_changes_nothing(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, world: int
) -> None:
    expected, trial = unbroken(world), trial_of(world)
    attempt = start(trial, world > 1)
    for step in sorted(dice.sample(range(1, trial.last_step), 4)):
        assert trial.wait_for_step(attempt, step), attempt.said()
        one = dice.choice([*attempt.launcher(), *attempt.ranks(), *attempt.workers()])
        one.send_signal(signal.SIGSTOP)
        time.sleep(dice.uniform(1, 4))
        one.send_signal(signal.SIGCONT)
    assert attempt.wait() == 0, attempt.said()
    trial.assert_result_of(expected)


@turns(5)
def test_a_rank_that_stands_still_for_good_is_named_in_bounded_time_and_costs_nothing(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, turn: int
) -> None:
    expected, trial, launched = unbroken(2), trial_of(2, "run.timeout_minutes=0.25"), turn % 2 == 0
    attempt = start(trial, launched, TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3")  # what torchrun gives a stopped rank to end; 30 unless told
    assert trial.wait_for_step(attempt, dice.randint(1, trial.last_step - 1)), attempt.said()
    number = dice.randint(0, 1) if launched else 1  # without a launcher rank 0 keeps the key-value store
    rank = attempt.ranks()[number]
    rank.send_signal(signal.SIGSTOP)
    if not launched:
        assert attempt.wait_until(lambda: attempt.ranks() == [rank], "the other rank to end", limit=15 + 60)
        rank.kill()
    trial.assert_failed(attempt, f"rank {number} (process {rank.pid} on ", "is silent", within=15 + 60, status="unfinished")
    trial.finish()
    trial.assert_result_of(expected)


@turns(10)
@pytest.mark.parametrize("minutes", [0.1, 0.6], ids=["gloo gives up first", "the last resort comes first"])
def test_where_the_key_value_store_stands_still_too_the_other_rank_ends_by_itself_and_it_costs_nothing(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, minutes: float, turn: int
) -> None:
    """The launcher keeps it, or else rank 0: nobody can say who is missing, and nobody ends the rank that waits."""
    expected, trial, launched = unbroken(2), trial_of(2, f"run.timeout_minutes={minutes}"), turn % 2 == 0
    attempt = start(trial, launched)
    assert trial.wait_for_step(attempt, dice.randint(1, trial.last_step - 1)), attempt.said()
    number, ranks = dice.randint(0, 1) if launched else 0, attempt.ranks()
    for process in (*attempt.launcher(), ranks[number]):
        process.send_signal(signal.SIGSTOP)
    assert attempt.wait_until(lambda: ranks[1 - number] not in attempt.processes(), "the other rank to end", limit=60 * minutes + 30 + 30)
    (said,) = [line for line in attempt.said().splitlines() if line.startswith(f"rank {1 - number} ends: ")]
    assert "key-value store" in said and "does not answer" in said
    attempt.kill()
    trial.finish()
    trial.assert_result_of(expected)
