"""One Adam, its two groups, and the rates they run at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.config import Optim
from dist_train.model import HyperIQA
from dist_train.optim import build_adam, learning_rates, set_rates

schedules = st.builds(
    Optim,
    lr=st.floats(1e-8, 1.0),
    lr_ratio=st.floats(0.01, 100),
    schedule=st.sampled_from(["step", "cosine", "constant"]),
    warmup_steps=st.integers(0, 30),
)


@pytest.fixture(scope="module")
def resnet50() -> HyperIQA:
    return HyperIQA("resnet50.tv_in1k")


@pytest.fixture
def small() -> HyperIQA:
    return HyperIQA("convnext_atto", 64)


def test_the_step_schedule_is_the_table_of_the_swin_fork() -> None:
    table = [  # epoch, hyper, backbone: lr / 10 ** (epoch // 6), and ten times that for the hyper group through epoch 8
        *[(epoch, 2e-4, 2e-5) for epoch in range(6)],
        *[(epoch, 2e-5, 2e-6) for epoch in range(6, 9)],
        *[(epoch, 2e-6, 2e-6) for epoch in range(9, 12)],
        *[(epoch, 2e-7, 2e-7) for epoch in range(12, 16)],
    ]
    for epoch, hyper, backbone in table:
        for step in (epoch * 7, epoch * 7 + 6):  # an epoch's first and last step
            rates = learning_rates(Optim(), step, steps_per_epoch=7, epochs=16)
            assert rates == pytest.approx({"hyper": hyper, "backbone": backbone}, rel=1e-12)


@settings(max_examples=200, deadline=None)
@given(schedules, st.integers(1, 10), st.integers(1, 20))
def test_no_schedule_raises_a_rate_past_its_start_and_none_climbs_after_the_warm_up(config: Optim, steps: int, epochs: int) -> None:
    start = {"hyper": config.lr * config.lr_ratio, "backbone": config.lr}
    before = start
    for step in range(steps * epochs):
        rates = learning_rates(config, step, steps, epochs)
        for group, rate in rates.items():
            assert 0 <= rate <= start[group] * (1 + 1e-12)
            assert step < config.warmup_steps or rate <= before[group] * (1 + 1e-12), (group, step)
        before = rates if step >= config.warmup_steps else start


def test_the_cosine_falls_from_the_start_to_zero_over_the_run() -> None:
    config = Optim(lr=1.0, lr_ratio=10.0, schedule="cosine")
    found = [learning_rates(config, step, 25, 4) for step in (0, 25, 50, 75, 100)]
    assert [rates["backbone"] for rates in found] == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0], abs=1e-7)
    assert [rates["hyper"] for rates in found] == pytest.approx([10, 8.535534, 5, 1.464466, 0], abs=1e-6)


def test_the_constant_schedule_stays() -> None:
    config = Optim(lr=3e-5, lr_ratio=4.0, schedule="constant")
    assert all(
        learning_rates(config, step, 3, 100) == pytest.approx({"hyper": 1.2e-4, "backbone": 3e-5}, rel=1e-12) for step in range(0, 300, 7)
    )


def test_a_warm_up_climbs_in_equal_steps_to_the_schedule() -> None:
    config = Optim(lr=1.0, lr_ratio=2.0, schedule="constant", warmup_steps=4)
    found = [learning_rates(config, step, 10, 1) for step in range(6)]
    assert [rates["backbone"] for rates in found] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert [rates["hyper"] for rates in found] == pytest.approx([0.5, 1, 1.5, 2, 2, 2])


def test_the_groups_are_those_of_the_authors(resnet50: HyperIQA) -> None:
    optimizer = build_adam(resnet50, Optim())
    sizes = {group["name"]: sum(tensor.numel() for tensor in group["params"]) for group in optimizer.param_groups}
    assert sum(sizes.values()) == 27_375_369
    assert {name: round(size / 1e6, 2) for name, size in sizes.items()} == {"hyper": 3.39, "backbone": 23.98}


def test_the_branches_learn_with_the_backbone(small: HyperIQA) -> None:
    groups = {group["name"]: {id(tensor) for tensor in group["params"]} for group in build_adam(small, Optim()).param_groups}
    assert {id(tensor) for tensor in small.branches.parameters()} < groups["backbone"]
    assert {id(tensor) for tensor in small.hyper.parameters()} == groups["hyper"]


def test_it_is_adam_with_the_weight_decay_of_the_config(small: HyperIQA) -> None:
    optimizer = build_adam(small, Optim(weight_decay=0.03))
    assert type(optimizer) is torch.optim.Adam  # AdamW would decay the weights apart from the gradient
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.03, 0.03]
    assert not any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)


def test_the_branches_learn_with_the_hyper_network_when_told_so(small: HyperIQA) -> None:
    groups = {
        group["name"]: {id(tensor) for tensor in group["params"]} for group in build_adam(small, Optim(branches="hyper")).param_groups
    }
    assert {id(tensor) for tensor in small.branches.parameters()} < groups["hyper"]
    assert {id(tensor) for tensor in small.backbone.parameters()} == groups["backbone"]


def test_rates_are_set_in_place_and_the_moments_live_on(small: HyperIQA, tmp_path: Path) -> None:
    optimizer = build_adam(small, Optim())
    for tensor in small.parameters():
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    groups, moments = list(map(id, optimizer.param_groups)), {key: state["exp_avg"].clone() for key, state in optimizer.state.items()}
    set_rates(optimizer, {"hyper": 0.5, "backbone": 0.25})
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {"hyper": 0.5, "backbone": 0.25}
    assert list(map(id, optimizer.param_groups)) == groups
    assert all(torch.equal(optimizer.state[key]["exp_avg"], moment) for key, moment in moments.items())
