"""The gradient of one step, compared in float64 with the plain one: all images on one process, one backward pass."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from accelerate import Accelerator
from torch import nn

from dist_train import ranks
from dist_train.chances import draw_chances, drop
from dist_train.config import Loss
from dist_train.gradient import accumulate_gradient
from dist_train.loss import Targets, training_loss

IMAGES, PATCHES = 16, 3


class SmallNetwork(nn.Module):
    """Scores [n] of patches [n, 3, 4, 4], with dropout after its hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.last = nn.Linear(3 * 4 * 4, 8, dtype=torch.float64), nn.Linear(8, 1, dtype=torch.float64)

    def forward(self, patches: torch.Tensor, chances: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.last(drop(torch.sigmoid(self.first(patches.flatten(1))), chances, 0.25)).flatten()
        return scores


def chances(rank: int = 0, world: int = 1) -> torch.Tensor:
    return draw_chances(7, 11, np.arange(IMAGES)[rank::world], PATCHES, 8)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    pixels = torch.rand(IMAGES, PATCHES, 3, 4, 4, generator=generator, dtype=torch.float64)
    return pixels, torch.rand(IMAGES, generator=generator, dtype=torch.float64).round(decimals=1)  # some opinions are equal


def targets(opinions: torch.Tensor) -> Targets:
    return Targets(opinions, torch.arange(IMAGES) % 3 // 2, 0.4, 0.1 + torch.arange(IMAGES) % 5 / 10, 0.05)  # of two sets


def cases(world: int) -> list[tuple[Loss, int]]:
    """Every kind of term, at both levels, in one pass and in micro-batches."""
    losses = [Loss(rank_weight=weight, rank_level=level, rank_margin=0.05) for level in ("image", "patch") for weight in (0.7, 0.0)]
    losses += [
        Loss(regression="norm_in_norm", regression_level="image", rank_weight=0.5, rank_kind="fidelity", consistency_weight=0.3),
        Loss(regression="plcc"),
        Loss(rank_weight=0.5, rank_kind="fidelity", fidelity_truth="soft", scope="rank"),
        Loss(rank_weight=0.5, rank_kind="fidelity", fidelity_truth="soft", rank_level="patch"),
        Loss(regression="mse", consistency_weight=0.3),
        Loss(regression="smooth_l1", rank_weight=1.0, rank_margin_unit="std", scope="rank"),
        Loss(regression="norm_in_norm", rank_weight=0.5, rank_kind="fidelity", scope="rank"),
        Loss(regression="plcc", regression_level="image", scope="rank"),
    ]
    return [(loss, micro_batch) for loss in losses for micro_batch in (IMAGES // world, 2)]


def save_gradients(rank: int, port: int, world: int, out: Path) -> None:
    """What one process of a world does; rank 0 saves gradient, scores and loss of every case."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    ranks.connect()
    found = []
    for config, micro_batch in cases(world):
        model = SmallNetwork()
        wrapped = accelerator.prepare(model)
        pixels, opinions = batch()
        scores, loss = accumulate_gradient(
            accelerator, wrapped, pixels[rank::world], chances(rank, world), targets(opinions), config, micro_batch
        )
        found.append({"gradient": [p.grad for p in model.parameters()], "scores": scores, "loss": loss.total})
    if rank == 0:
        torch.save(found, out)
    ranks.disconnect()


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_and_micro_batches_give_the_gradient_of_the_whole_batch(world: int, tmp_path: Path) -> None:
    warm.spawn(save_gradients, world, tmp_path / "found.pt", world=world)
    for (config, _), found in zip(cases(world), torch.load(tmp_path / "found.pt"), strict=True):
        model = SmallNetwork()
        pixels, opinions = batch()
        scores = model(pixels.flatten(0, 1), chances().flatten(0, 1)).view(IMAGES, PATCHES)
        loss = training_loss(scores, targets(opinions), config, world)
        loss.total.backward()
        torch.testing.assert_close(found["gradient"], [p.grad for p in model.parameters()], rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(found["scores"], scores.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(found["loss"], loss.total.detach(), rtol=1e-12, atol=1e-13)
