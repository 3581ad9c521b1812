"""HyperIQA (Su et al., "Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network", CVPR 2020).

    patch -> backbone -> four maps -> local-distortion branches -> a vector of 224
                              |                                        |
                              +-> hyper network -> weights -> target network -> score

The hyper network writes the weights of a small target network for each patch, and the target network reads the patch's
local-distortion vector with them. Any timm backbone that offers `features_only` with four maps will do: for a 224-pixel
patch and strides 4, 8, 16 and 32 every size below is the authors' own.
"""

from __future__ import annotations

import difflib
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dist_train.chances import choose_paths, drop
from dist_train.errors import ConfigError

BRANCH_CHANNELS = (16, 32, 64)  # of the first three local-distortion branches; the last one pools its map as it is
BRANCH_CELLS = (8, 4, 2)  # each of those maps is pooled to so many cells a side
BRANCH_WIDTHS = (16, 16, 16, 176)  # together the 224 inputs of the target network
HYPER_WIDTHS = {2048: (1024, 512)}  # of the 1x1 stack on the last map, by that map's channels: the authors' on ResNet-50 ...
HYPER_WIDTHS_ELSE = (512, 256)  # ... and what the Swin variant uses on its narrower maps
HYPER_TOP = 112  # channels that the weight generators read
HYPER_CELLS = 7  # cells a side of the map that the weights are read from
TARGET_WIDTHS = (224, 112, 56, 28, 14, 1)


class HyperIQA(nn.Module):
    """Patches in, scores out.

    Args:
        backbone: a timm name.
        patch_size: width and height of the patches in pixels.
        output_scale: (low, high) of the opinions: the target network speaks on 0 to 100, and its output is mapped onto
            this scale. (0, 100) changes nothing.
        dropout: after each hidden layer of the target network.
        stochastic_depth: timm's drop_path_rate.
        frozen_batch_norm: keep the statistics of the backbone's BatchNorm as they were loaded.

    Raises ConfigError when timm has no such backbone, or the backbone does not fit.
    """

    backbone: Any
    mean: Tensor
    std: Tensor
    output_scale: Tensor

    def __init__(
        self,
        backbone: str,
        patch_size: int = 224,
        output_scale: tuple[float, float] = (0.0, 100.0),
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        frozen_batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.frozen_batch_norm = frozen_batch_norm
        self.dropout = dropout
        self.backbone = features_only(backbone, stochastic_depth)
        self._paths = choose_paths(self.backbone)
        self.channels_last = str(getattr(self.backbone, "output_fmt", "NCHW")).endswith("NHWC")
        low, high = output_scale
        described = timm.get_pretrained_cfg(backbone)
        self.register_buffer("mean", 255 * torch.tensor(described.mean if described else (0.485, 0.456, 0.406)).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(described.std if described else (0.229, 0.224, 0.225)).view(3, 1, 1))
        self.register_buffer("output_scale", torch.tensor([low, (high - low) / 100]))
        sizes = self._map_sizes(backbone, patch_size)
        channels: list[int] = self.backbone.feature_info.channels()
        self.branches = LocalDistortionBranches(channels, sizes)
        self.hyper = HyperNetwork(channels[-1], sizes[-1])

    @property
    def num_chances(self) -> int:
        """How many numbers a patch needs in training: one per residual branch, and per hidden unit, that may be dropped."""
        return len(self._paths) + (sum(TARGET_WIDTHS[1:-1]) if self.dropout else 0)

    def forward(self, patches: Tensor, chances: Tensor | None = None) -> Tensor:
        """Scores [n], float32, on the scale of the opinions, of patches [n, 3, height, width], uint8.

        `chances` [n, num_chances] in [0, 1) say what is dropped; training needs them, evaluation drops nothing.
        """
        unit_chances = None
        if self.training and chances is not None and self.num_chances:
            for path, column in zip(self._paths, chances.unbind(1), strict=False):
                path.chances = column
            unit_chances = chances[:, len(self._paths) :]
        maps = self._maps((patches - self.mean) / self.std)
        vector: Tensor = self.branches(maps)
        weights, biases = self.hyper(maps[-1])
        with torch.autocast(vector.device.type, enabled=False):
            raw = target_network(vector.float(), weights, biases, self.dropout if self.training else 0.0, unit_chances)
            return self.output_scale[0] + self.output_scale[1] * raw

    def train(self, mode: bool = True) -> HyperIQA:
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _maps(self, patches: Tensor) -> list[Tensor]:
        maps = self.backbone(patches)
        return [m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else maps

    def _map_sizes(self, backbone: str, patch_size: int) -> list[int]:
        try:
            with torch.no_grad():
                maps = self.eval()._maps(torch.zeros(1, 3, patch_size, patch_size))
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"model.backbone={backbone} does not take patches of {patch_size} pixels ({error}); "
                f"build shards with another --size, or choose another backbone"
            ) from error
        finally:
            self.train()
        return [m.shape[-1] for m in maps]


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
        _initialise_kaiming(self)

    def forward(self, maps: list[Tensor]) -> Tensor:
        branches = zip(maps, self.pools, self.linears, strict=True)
        return torch.cat([linear(pool(m).flatten(1)) for m, pool, linear in branches], dim=1)


class HyperNetwork(nn.Module):
    """The last map in, weights and biases of five target layers per patch out.

    Weight i has the shape [n, out, in] and bias i [n, out]; layer i maps TARGET_WIDTHS[i] to TARGET_WIDTHS[i + 1].
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        widths = (channels, *HYPER_WIDTHS.get(channels, HYPER_WIDTHS_ELSE), HYPER_TOP)
        self.stack = nn.Sequential(average_pool(size, HYPER_CELLS))
        for wide, thin in pairwise(widths):
            self.stack.extend([nn.Conv2d(wide, thin, 1), nn.ReLU(inplace=True)])
        top, cells = HYPER_TOP, HYPER_CELLS**2
        self.weight_maps = nn.ModuleList(nn.Conv2d(top, into * out // cells, 3, padding=1) for into, out in pairwise(TARGET_WIDTHS[:-1]))
        self.last_weight = nn.Linear(top, TARGET_WIDTHS[-2] * TARGET_WIDTHS[-1])
        self.biases = nn.ModuleList(nn.Linear(top, out) for out in TARGET_WIDTHS[1:])
        for generators in (self.weight_maps, self.last_weight, self.biases):
            _initialise_kaiming(generators)  # the 1x1 stack keeps PyTorch's own initialisation, as the authors have it

    def forward(self, last_map: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        top = self.stack(last_map)
        pooled = top.mean(dim=(2, 3))
        flat = [weight_map(top).flatten(1) for weight_map in self.weight_maps] + [self.last_weight(pooled)]
        weights = [w.float().view(-1, out, into) for w, (into, out) in zip(flat, pairwise(TARGET_WIDTHS), strict=True)]
        return weights, [bias(pooled).float() for bias in self.biases]


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


def average_pool(size: int, cells: int) -> nn.Module:
    """Mean pooling of a `size` x `size` map to `cells` x `cells`: plain windows where they fit, adaptive ones otherwise.

    The plain kind has a deterministic gradient on every device.
    """
    if size == cells:
        return nn.Identity()
    return nn.AvgPool2d(size // cells) if size % cells == 0 else nn.AdaptiveAvgPool2d(cells)


def features_only(backbone: str, stochastic_depth: float = 0.0) -> nn.Module:
    """The timm backbone that gives the last four of its maps, with random weights. Raises ConfigError when timm has none."""
    extra: dict[str, Any] = {"drop_path_rate": stochastic_depth} if stochastic_depth else {}
    try:
        return timm.create_model(backbone, features_only=True, pretrained=False, out_indices=(-4, -3, -2, -1), **extra)
    except (RuntimeError, AttributeError, TypeError, AssertionError, IndexError) as error:
        close = difflib.get_close_matches(backbone, [*timm.list_models(), *timm.list_models(pretrained=True)])
        hint = f"; did you mean {' or '.join(close)}?" if close and backbone not in close else ""
        raise ConfigError(f"model.backbone={backbone}: timm cannot make four feature maps of it ({error}){hint}") from error


def _initialise_kaiming(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
