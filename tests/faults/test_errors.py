"""What goes wrong in one rank ends all, is told last, and costs nothing once it is mended."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import runs
from trial import BROKEN, Trial

pytestmark = pytest.mark.timeout(900)


def strike(trial: Trial, rank: int, what: str, of: str, first: int, last: int) -> Any:
    """Starts the command, with this fault in it."""
    print(f"{what} in calls {first} to {last} of {of} on rank {rank}")
    return trial.start(FAULT=json.dumps({"rank": rank, "what": what, "of": of, "calls": [first, last]}))


@pytest.mark.parametrize(
    ("of", "calls"),
    [
        ("dist_train.training:accumulate_gradient", 20),
        ("dist_train.evaluation:patch_batches", 4),
        ("dist_train.stopping:EarlyStop.judge", 4),
    ],
    ids=["in training", "in evaluation", "at the verdict"],
)
def test_an_exception_on_one_rank_ends_all_is_told_last_and_costs_nothing(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, of: str, calls: int
) -> None:
    expected, trial = unbroken(2), trial_of(2, program=BROKEN)
    call = dice.randint(1, calls)
    attempt = strike(trial, dice.randint(0, 1), "raise", of, call, call)
    trial.wait_for_step(attempt, 1)
    trial.assert_failed(attempt, f"RuntimeError: injected into {of}", within=90)
    trial.finish()
    trial.assert_result_of(expected)


def test_a_loss_that_is_no_number_on_one_rank_is_skipped_by_all(trial_of: Callable[..., Trial], dice: random.Random) -> None:
    trial = trial_of(2, program=BROKEN)
    step = dice.randint(1, trial.last_step)
    attempt = strike(trial, dice.randint(0, 1), "nan", "dist_train.gradient:training_loss", step, step)
    assert attempt.wait() == 0, attempt.said()
    told = runs.status(trial.folder)
    assert (told["status"], told["skipped_steps"]) == ("finished", 1)
    assert [record["step"] for record in runs.records(trial.folder, "step") if record["grad_norm"] is None] == [step]


def test_losses_that_stay_no_number_on_one_rank_end_all_and_the_images_are_named(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random
) -> None:
    expected, trial = unbroken(2), trial_of(2, "save.every_steps=null", program=BROKEN)
    first = 5 * dice.randint(0, 3) + dice.randint(1, 3)  # all three in one epoch, so that no checkpoint tells of a step skipped
    attempt = strike(trial, dice.randint(0, 1), "nan", "dist_train.gradient:training_loss", first, first + 2)
    trial.assert_failed(attempt, f"step {first + 2}: the gradient was not finite 3 times in a row; the images of this batch are", within=90)
    trial.finish()
    trial.assert_result_of(expected)
