"""The hyper network, and the target network whose weights it writes for each patch.

    last map, or all four -> 7x7 -> 1x1 convolutions -> 112 x 7 x 7 -> weights and biases -> target network

The authors read the last map. The Swin variant reads all four, pooled to one size, and may weigh them by an attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dist_train.branches import average_pool, initialise_kaiming
from dist_train.chances import drop

HYPER_WIDTHS = {2048: (1024, 512)}  # of the 1x1 stack, by the channels of the last map: the authors' on ResNet-50 ...
HYPER_WIDTHS_ELSE = (512, 256)  # ... and what the Swin variant uses on its narrower maps
HYPER_TOP = 112  # channels that the weight generators read
HYPER_CELLS = 7  # cells a side of the map that the weights are read from
TARGET_WIDTHS = (224, 112, 56, 28, 14, 1)
ATTENTION_WIDTH = 256  # hidden units of the stage attention ...
ATTENTION_DROPOUT = 0.5  # ... and the rate at which training drops them


class HyperNetwork(nn.Module):
    """Maps in, weights and biases of five target layers per patch out.

    Weight i has the shape [n, out, in] and bias i [n, out]; layer i maps TARGET_WIDTHS[i] to TARGET_WIDTHS[i + 1].

    Args:
        channels, sizes: of the maps it reads, finest first.
        attention: weigh the maps, each patch by weights of its own.
    """

    def __init__(self, channels: Sequence[int], sizes: Sequence[int], attention: bool = False) -> None:
        super().__init__()
        self.pools = nn.ModuleList(average_pool(size, HYPER_CELLS) for size in sizes)
        self.attention = StageAttention(channels[-1], len(channels)) if attention else None
        widths = (sum(channels), *HYPER_WIDTHS.get(channels[-1], HYPER_WIDTHS_ELSE), HYPER_TOP)
        self.stack = nn.Sequential()
        for wide, thin in pairwise(widths):
            self.stack.extend([nn.Conv2d(wide, thin, 1), nn.ReLU(inplace=True)])
        top, cells = HYPER_TOP, HYPER_CELLS**2
        self.weight_maps = nn.ModuleList(nn.Conv2d(top, into * out // cells, 3, padding=1) for into, out in pairwise(TARGET_WIDTHS[:-1]))
        self.last_weight = nn.Linear(top, TARGET_WIDTHS[-2] * TARGET_WIDTHS[-1])
        self.biases = nn.ModuleList(nn.Linear(top, out) for out in TARGET_WIDTHS[1:])
        for generators in (self.weight_maps, self.last_weight, self.biases):
            initialise_kaiming(generators)  # the 1x1 stack keeps PyTorch's own initialisation, as the authors have it

    def forward(self, maps: Sequence[Tensor], chances: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """`chances` [n, ATTENTION_WIDTH] are what the attention drops by in training."""
        pooled = [pool(m) for pool, m in zip(self.pools, maps, strict=True)]
        if self.attention is not None:
            shares = self.attention(maps[-1], chances).unbind(1)
            pooled = [share[:, None, None, None] * m for share, m in zip(shares, pooled, strict=True)]
        top = self.stack(torch.cat(pooled, dim=1))
        mean = top.mean(dim=(2, 3))
        flat = [weight_map(top).flatten(1) for weight_map in self.weight_maps] + [self.last_weight(mean)]
        weights = [in_full_precision(w).view(-1, out, into) for w, (into, out) in zip(flat, pairwise(TARGET_WIDTHS), strict=True)]
        return weights, [in_full_precision(bias(mean)) for bias in self.biases]


class StageAttention(nn.Module):
    """The last map in, a weight per map out: [n, maps], which sum to 1."""

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, ATTENTION_WIDTH)
        self.weights = nn.Linear(ATTENTION_WIDTH, maps)

    def forward(self, last_map: Tensor, chances: Tensor | None) -> Tensor:
        hidden = torch.relu(self.hidden(last_map.mean(dim=(2, 3))))
        if self.training:
            assert chances is not None, "dropout needs chances"
            hidden = drop(hidden, chances, ATTENTION_DROPOUT)
        return torch.softmax(self.weights(hidden), dim=1)


def in_full_precision(values: Tensor) -> Tensor:
    """float32 of what mixed precision has rounded; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def target_network(
    vector: Tensor, weights: list[Tensor], biases: list[Tensor], dropout: float = 0.0, chances: Tensor | None = None
) -> Tensor:
    """Each patch's vector [n, 224] through its own network: scores [n]. A sigmoid after every layer but the last.

    With a `dropout` rate, `chances` [n, hidden units] in [0, 1) decide which units are dropped, layer by layer.
    """
    hidden, used = vector.unsqueeze(2), 0
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        hidden = torch.sigmoid(torch.baddbmm(bias.unsqueeze(2), weight, hidden))
        if dropout:
            assert chances is not None, "dropout needs chances"
            width = hidden.shape[1]
            hidden, used = drop(hidden, chances[:, used : used + width, None], dropout), used + width
    return torch.baddbmm(biases[-1].unsqueeze(2), weights[-1], hidden).flatten()
