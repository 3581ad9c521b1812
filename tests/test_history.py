"""The old bugs, switched on, against a loop that has them: the authors', written down from the facts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from dist_train.config import History, Optim
from dist_train.history import forget_hyper_gradient, forget_moments, historical_rates
from dist_train.optim import learning_rates, set_rates

EPOCHS, STEPS = 16, 3
OLD = History(exhausted_hyper_group=True, constant_backbone_rate=True, rebuilt_adam=True)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.res, self.hyper = nn.Linear(4, 3, dtype=torch.float64), nn.Linear(3, 1, dtype=torch.float64)

    def loss(self, number: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(number)
        value: torch.Tensor = self.hyper(self.res(torch.randn(5, 4, generator=generator, dtype=torch.float64))).abs().mean()
        return value


def the_original() -> Iterator[tuple[int, Network, torch.optim.Adam]]:
    """Step by step: the network and its Adam after each, with the epoch, as the authors' solver goes about it."""
    network = Network()
    backbone = [id(tensor) for tensor in network.res.parameters()]
    hyper_params = filter(lambda tensor: id(tensor) not in backbone, network.parameters())  # an iterator: its first use is its last
    lr, ratio, decay = 2e-5, 10.0, 5e-4
    groups = [{"params": hyper_params, "lr": lr * ratio}, {"params": network.res.parameters(), "lr": lr}]
    solver = torch.optim.Adam(groups, weight_decay=decay)
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            network.zero_grad()
            network.loss(epoch * STEPS + step).backward()
            solver.step()
            yield epoch, network, solver
        if epoch > 8:
            ratio = 1.0
        groups = [{"params": hyper_params, "lr": lr / 10 ** (epoch // 6) * ratio}, {"params": network.res.parameters(), "lr": lr}]
        solver = torch.optim.Adam(groups, weight_decay=decay)


def ours(history: History) -> Iterator[tuple[int, Network, torch.optim.Adam]]:
    """The same with our own steps."""
    network, optim = Network(), Optim()
    groups = [{"name": "hyper", "params": list(network.hyper.parameters())}, {"name": "backbone", "params": list(network.res.parameters())}]
    adam = torch.optim.Adam(groups, lr=optim.lr, weight_decay=optim.weight_decay)
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            set_rates(adam, historical_rates(history, optim, epoch * STEPS + step, STEPS, EPOCHS))
            adam.zero_grad()
            network.loss(epoch * STEPS + step).backward()
            forget_hyper_gradient(history, adam, epoch)
            adam.step()
            yield epoch, network, adam
        forget_moments(history, adam)


def test_all_three_bugs_together_are_the_original_to_the_last_bit() -> None:
    for (epoch, theirs, solver), (_, mine, adam) in zip(the_original(), ours(OLD), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(theirs.parameters(), mine.parameters(), strict=True)), epoch
        trained = [theirs.res.weight, theirs.res.bias] + ([theirs.hyper.weight, theirs.hyper.bias] if epoch == 0 else [])
        counterparts = [mine.res.weight, mine.res.bias] + ([mine.hyper.weight, mine.hyper.bias] if epoch == 0 else [])
        assert len(solver.state) == len(adam.state) == len(trained)
        for one, other in zip(trained, counterparts, strict=True):
            for moment in ("exp_avg", "exp_avg_sq", "step"):
                assert torch.equal(solver.state[one][moment], adam.state[other][moment]), (epoch, moment)


def test_the_rates_with_all_three_bugs_are_the_table_of_the_facts() -> None:
    hyper = [2e-4] * 7 + [2e-5] * 3 + [2e-6] * 3 + [2e-7] * 3  # epochs 1-7, 8-10, 11-13, 14-16
    rates = [historical_rates(OLD, Optim(), epoch * STEPS, STEPS, EPOCHS) for epoch in range(EPOCHS)]
    assert [rate["hyper"] for rate in rates] == pytest.approx(hyper, rel=1e-12)
    assert [rate["backbone"] for rate in rates] == pytest.approx([2e-5] * EPOCHS, rel=1e-12)


def test_without_history_the_original_is_not_repeated() -> None:
    steps = list(zip(the_original(), ours(History()), strict=True))
    (_, theirs, _), (_, mine, adam) = steps[-1]
    assert not torch.equal(theirs.hyper.weight, mine.hyper.weight)
    assert {int(state["step"]) for state in adam.state.values()} == {EPOCHS * STEPS}


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
@pytest.mark.parametrize("flag", list(History.model_fields))
def test_a_warm_up_is_the_same_with_and_without_each_bug(flag: str, schedule: str) -> None:
    optim = Optim.model_validate({"schedule": schedule, "warmup_steps": 4})  # into the second epoch
    late = STEPS if flag == "rebuilt_adam" else 0
    for step in range(EPOCHS * STEPS):
        warm = historical_rates(History.model_validate({flag: True}), optim, step, STEPS, EPOCHS)
        full = learning_rates(optim.model_copy(update={"warmup_steps": 0}), max(0, step - late), STEPS, EPOCHS)
        full |= {"backbone": optim.lr} if flag == "constant_backbone_rate" else {}
        assert warm == pytest.approx({name: rate * min(1, (step + 1) / 4) for name, rate in full.items()}, rel=1e-12)


@pytest.mark.parametrize("flag", list(History.model_fields))
def test_each_bug_alone_does_what_its_name_says_and_nothing_else(flag: str) -> None:
    history = History.model_validate({flag: True})
    rates = [historical_rates(history, Optim(), epoch * STEPS, STEPS, EPOCHS) for epoch in range(EPOCHS)]
    right = [historical_rates(History(), Optim(), epoch * STEPS, STEPS, EPOCHS) for epoch in range(EPOCHS)]
    assert ([rate["backbone"] for rate in rates] == [2e-5] * EPOCHS) == (flag == "constant_backbone_rate")
    assert ([rate["hyper"] for rate in rates] == [rate["hyper"] for rate in right]) == (flag != "rebuilt_adam")
    hyper, counts = [], []
    for _, network, adam in ours(history):
        hyper.append(network.hyper.weight.detach().clone())
        counts.append(max(int(state["step"]) for state in adam.state.values()))
    assert torch.equal(hyper[STEPS], hyper[STEPS - 1]) == (flag == "exhausted_hyper_group")
    assert max(counts) == (STEPS if flag == "rebuilt_adam" else EPOCHS * STEPS)
