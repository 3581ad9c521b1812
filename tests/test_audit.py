"""What the audit catches: tensors out of place, and groups that stand still."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from in_process import train_here
from torch import nn

from dist_train import state, training
from dist_train.audit import GroupNorms, copy_weights, measure_groups, refuse_bad_groups, refuse_still_groups
from dist_train.config import History, Loss
from dist_train.errors import TrainingError
from dist_train.history import forget_hyper_gradient
from dist_train.loss import Targets, any_slope
from dist_train.optim import build_adam
from dist_train.state import Training


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


def optimizer_of(first: list[nn.Parameter], second: list[nn.Parameter]) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD([{"name": "first", "params": first}, {"name": "second", "params": []}], lr=0.5)
    optimizer.param_groups[1]["params"] = second  # torch itself refuses some of what is tried here
    return optimizer


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", r"1 tensors are in no parameter group .* such as 1\.bias"),
        ("twice in one", r"would be updated twice: 1\.weight"),
        ("in two groups", r"would be updated twice: 0\.weight"),
        ("empty group", "the parameter group 'second' is empty"),
        ("not trainable", "not trainable tensors of the model"),
    ],
)
def test_a_tensor_out_of_place_is_named(kind: str, complaint: str) -> None:
    model = two_layers()
    first, second = list(model[0].parameters()), list(model[1].parameters())
    refuse_bad_groups(model, optimizer_of(first, second))
    if kind == "missing":
        second = second[:1]
    elif kind == "twice in one":
        second = [*second, second[0]]
    elif kind == "in two groups":
        second = [*second, first[0]]
    elif kind == "empty group":
        first, second = [*first, *second], []
    else:
        first[0].requires_grad_(False)
    with pytest.raises(TrainingError, match=complaint):
        refuse_bad_groups(model, optimizer_of(first, second))


def test_an_iterator_that_is_used_up_is_caught_before_a_step() -> None:
    model = two_layers()
    used_up = filter(lambda _: True, model[0].parameters())
    list(used_up)
    with pytest.raises(TrainingError, match="is empty: nothing of it would be trained"):
        refuse_bad_groups(model, optimizer_of(list(used_up), list(model[1].parameters())))


def test_norms_are_of_the_change_and_of_the_weights_after_it() -> None:
    model = two_layers()
    optimizer = optimizer_of(list(model[0].parameters()), list(model[1].parameters()))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(1.0)
            tensor.grad = torch.full_like(tensor, 2.0)
    before = copy_weights(optimizer)
    optimizer.step()  # 1 - 0.5 * 2 = 0
    found = measure_groups(optimizer, before)
    assert found["first"].gradient == pytest.approx(math.sqrt(6 * 4))
    assert found["first"].update == pytest.approx(math.sqrt(6))
    assert found["first"].weights == 0.0


def norms_of_a_step_without_the_second_layer(weight_decay: float, zeros: bool = False) -> dict[str, GroupNorms]:
    model = two_layers()
    optimizer = optimizer_of(list(model[0].parameters()), list(model[1].parameters()))
    for group in optimizer.param_groups:
        group["weight_decay"] = weight_decay
    (model[0](torch.ones(1, 2)).sum() + model[1](torch.ones(1, 2)).sum() * 0).backward()
    if not zeros:
        model[1].zero_grad()
    before = copy_weights(optimizer)
    optimizer.step()
    return measure_groups(optimizer, before)


@pytest.mark.parametrize("zeros", [False, True], ids=["none", "of zeros"])
def test_a_group_without_a_gradient_is_caught_in_one_step_at_any_rate_and_whatever_weight_decay_does(zeros: bool) -> None:
    norms = norms_of_a_step_without_the_second_layer(0.1, zeros)
    assert (norms["second"].update > 0) == zeros  # zeros are a gradient to the optimiser, which then decays the weights
    for rate in (0.5, 1e-30):
        with pytest.raises(TrainingError, match=rf"step 7: the group 'second' got no gradient, though its rate is {rate}"):
            refuse_still_groups(norms, {"first": 0.5, "second": rate}, {"first", "second"}, 7)
    refuse_still_groups(norms, {"first": 0.5, "second": 0.0}, (), 7)  # a rate of zero may stand still


def test_a_group_whose_step_rounds_away_is_caught_unless_its_rate_is_a_trifle_of_its_first() -> None:
    norms = norms_of_a_step_without_the_second_layer(0.0)
    norms["second"] = GroupNorms(gradient=1.0, update=0.0, weights=2.0)
    rates = {"first": 0.5, "second": 1e-12}
    with pytest.raises(
        TrainingError, match="step 7: no weight of the group 'second' changed, though its rate is 1e-12, which is too small"
    ):
        refuse_still_groups(norms, rates, (), 7)
    refuse_still_groups(norms, rates, {"second"}, 7)


@pytest.mark.parametrize("warmup", [0, 20_000], ids=["at its full rate", "early in a long warm-up"])
def test_the_exhausted_filter_of_the_old_code_ends_a_run_at_the_first_step_without_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmup: int
) -> None:
    exhausted = History(exhausted_hyper_group=True)
    monkeypatch.setattr(training, "forget_hyper_gradient", lambda _, *more: forget_hyper_gradient(exhausted, *more))
    with pytest.raises(TrainingError, match=r"step 6: the group 'hyper' got no gradient, though its rate is (0\.001|3e-07)"):
        train_here(tmp_path, shards, "train.epochs=2", "log.every_steps=100", f"optim.warmup_steps={warmup}")
    assert runs.status(tmp_path)["status"] == "failed"
    first, *others = runs.records(tmp_path, "step")
    assert all(first[f"{what}_{group}"] > 0 for what in ("gradient", "update", "weights") for group in ("hyper", "backbone"))
    assert len(others) == 4 and "update_hyper" not in others[0]  # five steps an epoch; the sixth was not told


def test_groups_that_lack_a_tensor_are_found_before_the_first_step(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*settings: Any) -> torch.optim.Optimizer:
        optimizer = build_adam(*settings)
        optimizer.param_groups[0]["params"].pop()
        return optimizer

    monkeypatch.setattr(state, "build_adam", build)
    with pytest.raises(TrainingError, match="1 tensors are in no parameter group"):
        train_here(tmp_path, shards)
    assert not runs.records(tmp_path, "step")


def test_a_group_that_is_empty_after_an_epoch_ends_the_run_there(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(run: Training, *more: Any) -> Any:
        run.optimizer.param_groups[0]["params"].clear()
        return as_ever(run, *more)

    as_ever = training._judge
    monkeypatch.setattr(training, "_judge", judge)
    with pytest.raises(TrainingError, match=r"the parameter group '\w+' is empty: nothing of it would be trained"):
        train_here(tmp_path, shards, "train.epochs=2")
    assert len(runs.records(tmp_path, "step")) == 5  # an epoch


def test_a_batch_of_equal_opinions_may_leave_a_correlation_without_a_gradient() -> None:
    sets, plcc = torch.tensor([0, 0, 1, 1]), Loss(regression="plcc")
    equal, other = (Targets(torch.tensor([1.0, 1.0, 2.0, last]), sets, 1.0) for last in (2.0, 3.0))
    assert not any_slope(equal, plcc, 1) and any_slope(other, plcc, 1) and any_slope(equal, Loss(), 1)
    assert not any_slope(other, Loss(regression="plcc", scope="rank"), 2)  # each rank has one image of the second set
