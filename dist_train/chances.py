"""Dropout and stochastic depth by arithmetic: what is dropped depends on seed, step, visit and patch, never on the process.

A patch brings one number in [0, 1) for every unit and every residual branch that may be dropped, and drops those whose
number is below the rate. The numbers come from `order.bits`, so a step drops the same on any number of ranks and in any
micro-batch, and a resumed run needs no state of a random generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
    """A residual branch that each patch takes or skips by a chance of its own, set before every forward in training.

    A backbone may go through it several times in one forward, each time with another column of chances. Where a branch has
    several rows per patch, such as windows or pixels, the patch takes or skips them together; its rows lie side by side.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.turns = 0  # how often one forward comes by
        self._turn = 0
        self._chances: Tensor | None = None

    def set_chances(self, chances: Tensor) -> None:
        """`chances` [n, turns] of the next forward, and of what the backward pass may compute again of it."""
        self._chances, self._turn = chances, 0

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        assert self._chances is not None, "chances are set by HyperIQA.forward"
        chances = self._chances[:, self._turn % self.turns]  # starting over, for the backward pass
        self._turn += 1
        chances = chances.repeat_interleave(len(branch) // len(chances))
        return drop(branch, chances.view(-1, *[1] * (branch.dim() - 1)), self.rate)


def choose_paths(backbone: nn.Module) -> list[ChosenPath]:
    """Puts a ChosenPath in the place of every DropPath that timm made and that may drop; returns them, in the order of the modules."""
    places = [(parent, name, child) for parent in backbone.modules() for name, child in parent.named_children()]
    chosen = []
    for parent, name, child in places:
        if isinstance(child, DropPath) and child.drop_prob:
            chosen.append(ChosenPath(child.drop_prob))
            setattr(parent, name, chosen[-1])
    return chosen


@contextmanager
def counted_turns(paths: Sequence[ChosenPath]) -> Iterator[None]:
    """Within, one forward is run, and every path learns how often it comes by."""

    def count(path: ChosenPath, *_: object) -> None:
        path.turns += 1

    hooks = [path.register_forward_hook(count) for path in paths]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
