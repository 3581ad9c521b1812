"""The three bugs that HyperIQA's training code has had for years, each by name, to measure what its fix is worth.

The authors' loop rebuilt Adam after every epoch, with the rates that the schedule has for the epoch that had just ended, handed
it the hyper network as an iterator that was empty from the second use on, and the backbone's rate without the schedule. So
rebuilt_adam is two things: the moments are lost, and the rates of both groups come an epoch late. The loop had no warm-up: where
the config has one, it is the same with and without each bug, so that what is measured is the bug.
"""

from __future__ import annotations

import torch

from dist_train.config import History, Optim
from dist_train.optim import learning_rates, warmth_at


def historical_rates(history: History, optim: Optim, step: int, steps_per_epoch: int, epochs: int) -> dict[str, float]:
    """The rate of each group at `step`, from 0 over the run: the schedule's, but for what history gets wrong."""
    late = steps_per_epoch if history.rebuilt_adam else 0
    rates = learning_rates(optim, step, steps_per_epoch, epochs, late)
    return rates | ({"backbone": optim.lr * warmth_at(optim, step)} if history.constant_backbone_rate else {})


def forget_hyper_gradient(history: History, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    """From the second epoch on, leaves the hyper group without a gradient, so that Adam passes over it."""
    if history.exhausted_hyper_group and epoch > 0:
        for group in optimizer.param_groups:
            if group["name"] == "hyper":
                for tensor in group["params"]:
                    tensor.grad = None


def forget_moments(history: History, optimizer: torch.optim.Optimizer) -> None:
    """After an epoch, what a new Adam does not know: the moments and the number of steps of every tensor."""
    if history.rebuilt_adam:
        optimizer.state.clear()
