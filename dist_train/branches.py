"""The local-distortion branches: each of the four maps, narrowed and pooled, becomes a part of one vector of 224.

For a 224-pixel patch and strides 4, 8, 16 and 32 every size below is the authors' own; other maps are pooled to as many cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BRANCH_CHANNELS = (16, 32, 64)  # of the first three branches; the last one pools its map as it is
BRANCH_CELLS = (8, 4, 2)  # each of those maps is pooled to so many cells a side
BRANCH_WIDTHS = (16, 16, 16, 176)  # together the 224 inputs of the target network


class LocalDistortionBranches(nn.Module):
    """Four maps in, the vector that the target network reads out: [n, 224]. No activation, as in the authors' code."""

    def __init__(self, channels: list[int], sizes: list[int]) -> None:
        super().__init__()
        narrow = zip(channels[:3], BRANCH_CHANNELS, sizes[:3], BRANCH_CELLS, strict=True)
        self.pools = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, thin, 1, bias=False), average_pool(size, cells)) for wide, thin, size, cells in narrow
        )
        self.pools.append(average_pool(sizes[3], 1))
        lengths = [thin * cells**2 for thin, cells in zip(BRANCH_CHANNELS, BRANCH_CELLS, strict=True)] + [channels[3]]
        self.linears = nn.ModuleList(nn.Linear(length, width) for length, width in zip(lengths, BRANCH_WIDTHS, strict=True))
        initialise_kaiming(self)

    def forward(self, maps: list[Tensor]) -> Tensor:
        branches = zip(maps, self.pools, self.linears, strict=True)
        return torch.cat([linear(pool(m).flatten(1)) for m, pool, linear in branches], dim=1)


def average_pool(size: int, cells: int) -> nn.Module:
    """Mean pooling of a `size` x `size` map to `cells` x `cells`: plain windows where they fit, adaptive ones otherwise.

    The plain kind has a deterministic gradient on every device.
    """
    if size == cells:
        return nn.Identity()
    return nn.AvgPool2d(size // cells) if size % cells == 0 else nn.AdaptiveAvgPool2d(cells)


def initialise_kaiming(module: nn.Module) -> None:
    """Kaiming-normal weights for every convolution and linear layer inside, as the authors start branches and generators."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
