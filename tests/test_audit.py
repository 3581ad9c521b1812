"""What the audit catches: tensors out of place, and groups that stand still."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import runs
import torch
from in_process import train_here
from torch import nn

from dist_train import training
from dist_train.audit import copy_weights, measure_groups, refuse_bad_groups, refuse_still_groups
from dist_train.config import History
from dist_train.errors import TrainingError
from dist_train.history import forget_hyper_gradient


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
    assert found["first"].update == pytest.approx(math.sqrt(6))
    assert found["first"].weights == 0.0


def test_a_group_that_stands_still_though_its_rate_is_not_zero_is_caught_in_one_step() -> None:
    model = two_layers()
    optimizer = optimizer_of(list(model[0].parameters()), list(model[1].parameters()))
    model[0](torch.ones(1, 2)).sum().backward()  # the second layer gets no gradient
    before = copy_weights(optimizer)
    optimizer.step()
    norms = measure_groups(optimizer, before)
    with pytest.raises(TrainingError, match=r"step 7: no weight of the group 'second' changed, though its rate is 0\.5"):
        refuse_still_groups(norms, {"first": 0.5, "second": 0.5}, 7)
    refuse_still_groups(norms, {"first": 0.5, "second": 0.0}, 7)  # a rate of zero may stand still


def test_the_exhausted_filter_of_the_old_code_ends_a_run_at_the_first_step_without_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exhausted = History(exhausted_hyper_group=True)
    monkeypatch.setattr(training, "forget_hyper_gradient", lambda _, *more: forget_hyper_gradient(exhausted, *more))
    with pytest.raises(TrainingError, match=r"step 6: no weight of the group 'hyper' changed, though its rate is 0\.001"):
        train_here(tmp_path, shards, "train.epochs=2", "log.every_steps=100")
    assert runs.status(tmp_path)["status"] == "failed"
    first, *others = runs.records(tmp_path, "step")
    assert all(first[f"{what}_{group}"] > 0 for what in ("update", "weights") for group in ("hyper", "backbone"))
    assert len(others) == 4 and "update_hyper" not in others[0]  # five steps an epoch; the sixth was not told
