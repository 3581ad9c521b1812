"""SIGKILL, to whom and when the dice say: the same command ends with the bits of a run that nobody disturbed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import runs
from trial import A_RUN, EPOCH, PROMPTLY, ROUNDS, Attempt, Trial, turns

pytestmark = pytest.mark.timeout(60 * (5 + ROUNDS))
A_WORKER = "a loader worker"
EPOCHS = 24  # ranks that lose their launcher train on for six seconds, some twenty steps of these 120


def kill_somebody(attempt: Attempt, dice: random.Random) -> str:
    """SIGKILL to the launcher, a rank, a loader worker, or to all as when the machine goes down; says to whom."""
    living = {"the launcher": attempt.launcher(), "a rank": attempt.ranks(), A_WORKER: attempt.workers()}
    living = {name: processes for name, processes in living.items() if processes}
    if not living:
        return "nobody"
    name = dice.choice([*living, "all"])
    for victim in attempt.processes() if name == "all" else [dice.choice(living[name])]:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    return name


def kill_until_finished(trial: Trial, kills: int, dice: random.Random) -> int:
    """So many kills one after the other, and how many of them there were when the run had finished all the same."""
    for number, step in enumerate(sorted(dice.randint(1, trial.last_step) for _ in range(kills))):
        done, attempt = trial.steps(), trial.launch()
        if dice.random() < 0.25 or done == trial.last_step:  # while it starts, or makes up what it had begun to finish
            when, delay = "the start", dice.uniform(0, 9)
        else:  # in a step, a save, an evaluation or a finish
            when, delay = f"step {max(step, done + 1)}", dice.uniform(0, 1.5 if step == trial.last_step else 0.4)
            assert trial.wait_for_step(attempt, max(step, done + 1)), attempt.said()
        time.sleep(delay)
        victim, began = kill_somebody(attempt, dice), time.monotonic()
        if victim == A_WORKER and is_not_missed(trial, attempt):
            victim = "a loader worker that had done its work, so all"
            attempt.kill()
        attempt.wait(PROMPTLY)
        print(f"{delay:.2f} s after {when}: {victim}; all gone after {time.monotonic() - began:.1f} s")
        status = runs.status(trial.folder)["status"] if (trial.folder / "status.json").exists() else "unfinished"
        if victim == "nobody" or status == "finished":
            assert status == "finished", attempt.said()
            return number
        assert status == "unfinished", f"{victim}: {attempt.said()}"
        if victim == A_WORKER:
            trial.assert_failed(attempt, "lost another process", status="unfinished")
    return kills


def is_not_missed(trial: Trial, attempt: Attempt) -> bool:
    """Whether the run goes on without a loader worker that was killed, as it does without one that had handed over its last batch."""
    later = trial.steps() + 2 * EPOCH
    if later > trial.last_step:
        attempt.wait()
        return False
    return attempt.wait_until(lambda: trial.steps() >= later, f"step {later}")


def test_a_run_that_is_killed_again_and_again_ends_with_the_bits_of_an_unbroken_one(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, tmp_path: Path
) -> None:
    expected, left = unbroken(2, EPOCHS), ROUNDS
    while left:  # a run may be through, all the same, before all kills have struck
        trial = trial_of(2, epochs=EPOCHS, folder=tmp_path / f"before-{left}")
        left -= kill_until_finished(trial, left, dice)
        trial.finish()
        trial.assert_result_of(expected)


@turns(5)
def test_ranks_whose_launcher_dies_before_they_have_met_wait_for_nobody(
    trial_of: Callable[..., Trial], dice: random.Random, turn: int
) -> None:
    attempt = trial_of(2).launch()
    assert attempt.wait_until(lambda: len(attempt.ranks()) == 2, "two ranks"), attempt.said()
    time.sleep(dice.uniform(0, 3))  # of the five or more that they take to import
    attempt.launcher()[0].kill()
    attempt.wait(A_RUN)  # most of it for the rest of that, where others share the machine; they would wait ten minutes for each other
    assert "the launcher does not answer at " in attempt.last_words()
