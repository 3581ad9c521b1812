"""Adam's moments under the names of the weights they belong to, so that a file of them needs neither pickle nor the model's order.

`hyper.score.weight.exp_avg`, `.exp_avg_sq` and `.step` are those of the weight `hyper.score.weight`. A weight that has not been
stepped yet has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dist_train.errors import ConfigError


def named_moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Everything the optimizer keeps of each tensor of `model`, which is the bare model: a wrapper would change the names."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{names[parameter]}.{kind}": value for parameter, kept in optimizer.state.items() for kind, value in kept.items()}


def group_settings(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """What the optimizer keeps of each group besides tensors: its rate, betas and so on, by the group's name. Plain JSON."""
    return {
        group["name"]: {key: value for key, value in group.items() if key not in ("name", "params")} for group in optimizer.param_groups
    }


def load_moments(
    optimizer: torch.optim.Optimizer, model: nn.Module, moments: Mapping[str, Tensor], settings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Gives an optimizer what named_moments and group_settings told of another, to the bit.

    Raises ConfigError when there are moments of a tensor that the model does not have.
    """
    left = dict(moments)
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept: dict[int, dict[str, Tensor]] = {}
    for number, parameter in enumerate(tensors):  # load_state_dict knows them by their number
        prefix = names[parameter] + "."
        own = {kind: left.pop(prefix + kind) for kind in ("step", "exp_avg", "exp_avg_sq") if prefix + kind in left}
        if own:
            kept[number] = {kind: _laid_out_as(parameter, value) for kind, value in own.items()}
    if left:
        raise ConfigError(f"the checkpoint holds moments of {next(iter(left))}, which this model does not have; choose another run.folder")
    groups = []
    for group in optimizer.state_dict()["param_groups"]:
        saved = settings[group["name"]]
        groups.append({**group, **saved, "betas": tuple(saved["betas"])})  # JSON has no tuples
    optimizer.load_state_dict({"state": kept, "param_groups": groups})


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """With the strides that a moment of `parameter` has when Adam makes it; files hold all tensors row by row."""
    return value if value.shape != parameter.shape else torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
