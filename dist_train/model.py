"""HyperIQA (Su et al., "Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network", CVPR 2020).

    patch -> backbone -> four maps -> local-distortion branches -> a vector of 224
                              |                                        |
                              +-> hyper network -> weights -> target network -> score

The hyper network writes the weights of a small target network for each patch, and the target network reads the patch's
local-distortion vector with them.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from dist_train.backbone import batch_norms, channels_first, features_only, recompute_in_backward, refusal_of_size, statistics_of_this_pass
from dist_train.branches import LocalDistortionBranches
from dist_train.chances import choose_paths, counted_turns
from dist_train.errors import ConfigError
from dist_train.hyper import ATTENTION_WIDTH, TARGET_WIDTHS, HyperNetwork, in_full_precision, target_network


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
        stages: the maps that the hyper network reads: the last one, or all four.
        stage_attention: weigh those four by an attention; needs all of them.
        gradient_checkpointing: keep little of the backbone's forward pass and compute it again in the backward pass.

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
        stages: Literal["last", "all"] = "last",
        stage_attention: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        assert stages == "all" or not stage_attention, "one stage needs no attention"
        self.frozen_batch_norm = frozen_batch_norm
        self.dropout = dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.backbone = features_only(backbone, patch_size, stochastic_depth)
        self._paths = choose_paths(self.backbone)
        self._read = slice(None) if stages == "all" else slice(-1, None)
        low, high = output_scale
        described = self.backbone.pretrained_cfg  # of one that is named by its source (local-dir:, hf-hub:), what stands there
        for statistic, of_imagenet in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(statistic, 255 * torch.tensor(described.get(statistic) or of_imagenet).view(3, 1, 1))
        self.register_buffer("output_scale", torch.tensor([low, (high - low) / 100]))
        channels, sizes = self._try(backbone, patch_size)
        self.branches = LocalDistortionBranches(channels, sizes)
        self.hyper = HyperNetwork(channels[self._read], sizes[self._read], stage_attention)
        if gradient_checkpointing:
            recompute_in_backward(self.backbone, backbone)

    @property
    def num_chances(self) -> int:
        """How many numbers a patch needs in training: one per residual branch, and per hidden unit, that may be dropped."""
        return sum(self._chance_widths)

    @property
    def _chance_widths(self) -> list[int]:
        """Of the residual branches, of the attention, of the target network."""
        return [
            sum(path.turns for path in self._paths),
            ATTENTION_WIDTH if self.hyper.attention is not None else 0,
            sum(TARGET_WIDTHS[1:-1]) if self.dropout else 0,
        ]

    def forward(self, patches: Tensor, chances: Tensor | None = None) -> Tensor:
        """Scores [n], float32, on the scale of the opinions, of patches [n, 3, height, width], uint8.

        `chances` [n, num_chances] in [0, 1) say what is dropped; training needs them, evaluation drops nothing.
        """
        of_attention = of_units = None
        if self.training and self.num_chances:
            assert chances is not None, "training drops by chances"
            of_paths, of_attention, of_units = torch.split(chances, self._chance_widths, dim=1)
            for path, columns in zip(self._paths, torch.split(of_paths, [path.turns for path in self._paths], dim=1), strict=True):
                path.set_chances(columns)
        recomputed = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        with statistics_of_this_pass(self.backbone) if recomputed else nullcontext():
            maps = self._maps(patches)
        vector: Tensor = self.branches(maps)
        weights, biases = self.hyper(maps[self._read], of_attention)
        with torch.autocast(vector.device.type, enabled=False):
            raw = target_network(in_full_precision(vector), weights, biases, self.dropout if self.training else 0.0, of_units)
            return self.output_scale[0] + self.output_scale[1] * raw

    def train(self, mode: bool = True) -> HyperIQA:
        super().train(mode)
        if self.frozen_batch_norm:
            for layer in batch_norms(self.backbone):
                layer.eval()
        return self

    def normalises(self, patches: int, patch_size: int) -> bool:
        """Whether BatchNorm can train on so many patches at a time: a channel needs two values or more, also where maps are 1 x 1."""
        try:
            for layer in batch_norms(self.eval().backbone):
                layer.train()
            with torch.no_grad():
                self._maps(torch.zeros(patches, 3, patch_size, patch_size, dtype=torch.uint8))
        except ValueError:
            return False
        finally:
            self.train()
        return True

    def _maps(self, patches: Tensor) -> list[Tensor]:
        return channels_first(self.backbone, self.backbone((patches - self.mean) / self.std))

    def _try(self, backbone: str, patch_size: int) -> tuple[list[int], list[int]]:
        """One forward pass in evaluation mode tells the channels and the sizes of the maps, and how often each path is taken."""
        try:
            with torch.no_grad(), counted_turns(self._paths):
                maps = self.eval()._maps(torch.zeros(1, 3, patch_size, patch_size, dtype=torch.uint8))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(refusal_of_size(backbone, patch_size, error)) from error
        finally:
            self.train()
        return [m.shape[1] for m in maps], [m.shape[-1] for m in maps]
