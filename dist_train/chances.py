"""Dropout and stochastic depth by arithmetic: what is dropped depends on seed, step, visit and patch, never on the process.

A patch brings one number in [0, 1) for every unit and every residual branch that may be dropped, and drops those whose
number is below the rate. The numbers come from `order.bits`, so a step drops the same on any number of ranks and in any
micro-batch, and a resumed run needs no state of a random generator.
"""

from __future__ import annotations

import numpy as np
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from dist_train.order import DROPOUT, bits


def draw_chances(seed: int, step: int, visits: np.ndarray, patches: int, width: int) -> Tensor:
    """float32 [visits, patches, width], uniform in [0, 1). `visits` [n] are places in the global batch of step `step`."""
    place = visits[:, None, None] * patches + np.arange(patches)[:, None]
    drawn = bits(seed, DROPOUT, place * width + np.arange(width), step) >> np.uint64(40)  # float32 has 24 bits
    return torch.from_numpy(drawn.astype(np.float32) * np.float32(2**-24))


def drop(values: Tensor, chances: Tensor, rate: float) -> Tensor:
    """`values` where the chance is at least `rate`, scaled so that the expectation stays; 0 elsewhere. Shapes broadcast."""
    return values * (chances >= rate).to(values.dtype) / (1 - rate)


class ChosenPath(nn.Module):
    """A residual branch that each patch takes or skips by its own chance [n], set before every forward in training."""

    chances: Tensor | None = None

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        assert self.chances is not None, "chances are set by HyperIQA.forward"
        return drop(branch, self.chances.view(-1, *[1] * (branch.dim() - 1)), self.rate)


def choose_paths(backbone: nn.Module) -> list[ChosenPath]:
    """Puts a ChosenPath in the place of every DropPath that timm made; returns them, in the order of the modules."""
    places = [(parent, name, child) for parent in backbone.modules() for name, child in parent.named_children()]
    chosen = []
    for parent, name, child in places:
        if isinstance(child, DropPath):
            chosen.append(ChosenPath(child.drop_prob))
            setattr(parent, name, chosen[-1])
    return chosen
