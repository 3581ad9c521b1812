"""What goes wrong in one rank ends all, is told last, and costs nothing once it is mended."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import runs
from broken import Fault, break_calls, fails, is_left_out, is_no_number, tells_the_weights
from trial import EPOCH, Trial, turns

from dist_train.config import load_config
from dist_train.plan import make_plan

pytestmark = pytest.mark.timeout(900)


def fault(rank: int, of: str, way: Callable[..., Any], first: int, last: int | None = None) -> Fault:
    """That the calls `first` to `last` of a function go another way on one rank; says so."""
    print(f"on rank {rank}, calls {first} to {last or first} of {of}: {way.__name__}")
    return rank, partial(break_calls, of, way, first, last or first)


@turns(5)
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
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, of: str, calls: int, turn: int
) -> None:
    expected, trial = unbroken(2), trial_of(2)
    attempt = trial.start(fault(dice.randint(0, 1), of, fails, dice.randint(1, calls)))
    trial.wait_for_step(attempt, 1)
    trial.assert_failed(attempt, "RuntimeError: this was injected", within=90)
    trial.finish()
    trial.assert_result_of(expected)


@turns(5)
def test_a_loss_that_is_no_number_on_one_rank_is_a_step_that_no_rank_takes(
    trial_of: Callable[..., Trial], dice: random.Random, turn: int, tmp_path: Any
) -> None:
    """The same as a run of which each rank is told by us to leave that step out, weights, moments and verdicts."""
    trial, without = trial_of(2), trial_of(2, folder=tmp_path / "without")
    step, both = dice.randint(1, trial.last_step), (0, 1)
    telling = [fault(rank, "dist_train.training:_finish", tells_the_weights, 1) for rank in both]
    attempt = trial.start(fault(dice.choice(both), "dist_train.gradient:training_loss", is_no_number, step), *telling)
    assert attempt.wait() == 0, attempt.said()
    told = runs.status(trial.folder)
    assert (told["status"], told["skipped_steps"]) == ("finished", 1)
    assert [record["step"] for record in runs.records(trial.folder, "step") if record["grad_norm"] is None] == [step]
    hashes = re.findall("a rank's weights: (.*)", attempt.said())
    assert len(hashes) == 2 and len(set(hashes)) == 1

    left_out = (
        "accelerate.optimizer:AcceleratedOptimizer.step",
        "dist_train.training:refuse_still_groups",
    )  # who would refuse to stand still
    other = without.start(*(fault(rank, of, is_left_out, step) for rank in both for of in left_out))
    assert other.wait() == 0, other.said()
    assert runs.status(without.folder)["skipped_steps"] == 0
    assert runs.records(trial.folder, "epoch") == runs.records(without.folder, "epoch")
    trial.assert_weights_of(without)


@turns(5)
def test_losses_that_stay_no_number_on_one_rank_end_all_and_the_images_are_named(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, turn: int
) -> None:
    expected, trial = unbroken(2), trial_of(2, "save.every_steps=null")
    first = EPOCH * dice.randint(0, 3) + dice.randint(1, 3)  # all three in one epoch, so that no checkpoint tells of a step skipped
    attempt = trial.start(fault(dice.randint(0, 1), "dist_train.gradient:training_loss", is_no_number, first, first + 2))
    trial.wait_for_step(attempt, 1)
    plan = make_plan(load_config(trial.folder / "config.yaml"), 2)
    images = plan.collection.training_images[plan.order.batch(first + 1).images]
    names = ", ".join(plan.collection.name_of(int(image)) for image in images)
    assert len(images) == 8
    why = f"step {first + 2}: the gradient was not finite 3 times in a row; the images of this batch are {names};"
    trial.assert_failed(attempt, why, within=90)
    trial.finish()
    trial.assert_result_of(expected)
