"""One Adam for the whole run, two named groups, and their rates as a function of the step.

The group 'hyper' holds the hyper network; the group 'backbone' holds the backbone, with its local-distortion branches as in
the authors' code, where the branches live inside the backbone's module, unless the config puts them elsewhere. Rates are set
in place, so the moments live on.
"""

from __future__ import annotations

import math

import torch

from dist_train.config import Optim
from dist_train.model import HyperIQA

STEP_EPOCHS = 6  # the step schedule divides the rates by 10 every so many epochs
LAST_RATIO_EPOCH = 8  # and ends the hyper group's lead after this epoch, counted from 0


def build_adam(model: HyperIQA, config: Optim) -> torch.optim.Adam:
    """Adam over the model's two groups, which together hold every trainable tensor exactly once."""
    groups = {"hyper": list(model.hyper.parameters()), "backbone": list(model.backbone.parameters())}
    groups[config.branches] += model.branches.parameters()
    return torch.optim.Adam(
        [{"name": name, "params": tensors} for name, tensors in groups.items()], lr=config.lr, weight_decay=config.weight_decay
    )


def starting_rates(config: Optim) -> dict[str, float]:
    """The rate of each group that no schedule exceeds."""
    return {"hyper": config.lr * config.lr_ratio, "backbone": config.lr}


def learning_rates(config: Optim, step: int, steps_per_epoch: int, epochs: int, late: int = 0) -> dict[str, float]:
    """The rate of each group at `step`, counted from 0 over the run; `late` is by how many steps the schedule lags behind it.

    step: lr / 10 ** (epoch // 6) for the backbone, lr_ratio times that for the hyper group through epoch 8, the same from
    epoch 9 on (a ratio below 1 stays). cosine: both fall from their start to 0 over the run. constant: both stay. A warm-up
    climbs linearly to the schedule from below, so no rate is ever above its group's start.
    """
    warmth = warmth_at(config, step)
    step = max(0, step - late)
    epoch = step // steps_per_epoch
    backbone, ratio = config.lr, config.lr_ratio
    if config.schedule == "step":
        backbone /= 10 ** (epoch // STEP_EPOCHS)
        ratio = config.lr_ratio if epoch <= LAST_RATIO_EPOCH else min(1.0, config.lr_ratio)
    elif config.schedule == "cosine":
        backbone *= (1 + math.cos(math.pi * min(1.0, step / (steps_per_epoch * epochs)))) / 2
    return {"hyper": warmth * backbone * ratio, "backbone": warmth * backbone}


def warmth_at(config: Optim, step: int) -> float:
    """The part of the schedule's rates that the warm-up has reached at `step`."""
    return min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0


def set_rates(optimizer: torch.optim.Optimizer, rates: dict[str, float]) -> None:
    """Sets each named group's rate in place."""
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]]
