"""Is everything that should be trained being trained? Checked at the start, at every epoch, and on measured steps.

The old code handed Adam an iterator that was empty from its second use on, and for years nobody saw that most of the hyper
network was never trained. Here a group that gets no gradient, or stands still, while its rate is not zero ends the run after one
step. Weight decay moves a group without a gradient, and a tiny rate may not move one that has it, so both are looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dist_train.errors import TrainingError


class GroupNorms(NamedTuple):
    """Euclidean norms over all tensors of a parameter group: of the gradient, of what its step changed, and of the weights after it."""

    gradient: float
    update: float
    weights: float


def refuse_bad_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raises TrainingError unless every trainable tensor is in exactly one group and no group is empty."""
    names = {id(tensor): name for name, tensor in model.named_parameters() if tensor.requires_grad}
    grouped: list[int] = []
    for group in optimizer.param_groups:
        if not group["params"]:
            raise TrainingError(f"the parameter group '{group['name']}' is empty: nothing of it would be trained")
        grouped += [id(tensor) for tensor in group["params"]]
    if forgotten := [name for key, name in names.items() if key not in set(grouped)]:
        raise TrainingError(f"{len(forgotten)} tensors are in no parameter group and would not be trained, such as {forgotten[0]}")
    if strange := [key for key in grouped if key not in names]:
        raise TrainingError(f"{len(strange)} tensors of the parameter groups are not trainable tensors of the model")
    if len(grouped) > len(names):
        twice = next(names[key] for key in grouped if grouped.count(key) > 1)
        raise TrainingError(f"a tensor is in two parameter groups, and would be updated twice: {twice}")


def copy_weights(optimizer: torch.optim.Optimizer) -> list[list[Tensor]]:
    """A copy of every tensor of every group, to measure the next step against."""
    return [[tensor.detach().clone() for tensor in group["params"]] for group in optimizer.param_groups]


def measure_groups(optimizer: torch.optim.Optimizer, before: list[list[Tensor]]) -> dict[str, GroupNorms]:
    """The norms of every group, by its name, since `before` was copied; while the gradient of the step is still there."""
    norms = {}
    for group, copies in zip(optimizer.param_groups, before, strict=True):
        gradient = _norm([tensor.grad for tensor in group["params"] if tensor.grad is not None])
        update = _norm([new.detach() - old for new, old in zip(group["params"], copies, strict=True)])
        norms[group["name"]] = GroupNorms(gradient, update, _norm([tensor.detach() for tensor in group["params"]]))
    return norms


def refuse_still_groups(norms: Mapping[str, GroupNorms], rates: Mapping[str, float], asleep: Collection[str], step: int) -> None:
    """Raises TrainingError when at step `step` a group had no gradient, or did not move, although its rate is not zero.

    The groups `asleep` have rates so small that float32 may not show a step.
    """
    for name, found in norms.items():
        if found.gradient == 0 and rates[name] > 0:
            raise TrainingError(
                f"step {step}: the group '{name}' got no gradient, though its rate is {rates[name]:.3g}: nothing of it is trained; "
                f"see that all of it takes part in the scores, and that the optimiser holds the tensors themselves"
            )
        if found.update == 0 and rates[name] > 0 and name not in asleep:
            raise TrainingError(
                f"step {step}: no weight of the group '{name}' changed, though its rate is {rates[name]:.3g}, which is too small for "
                f"float32 (weights of norm {found.weights:.3g}, gradient {found.gradient:.3g}): raise optim.lr or optim.lr_ratio"
            )


def _norm(tensors: list[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
