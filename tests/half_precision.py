"""What the tests of half precision share, on CPUs and on a GPU: how far it goes from float32, what stays in that, and spoiled steps."""

from __future__ import annotations

import csv
import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dist_train import gradient, model
from dist_train.checkpoint import Checkpoint, load_checkpoint
from dist_train.config import load_config
from dist_train.gradient import accumulate_gradient
from dist_train.loss import Targets, training_loss
from dist_train.model import target_network
from dist_train.model_folder import build_model
from shards.manifest import Shards

FIFTY_STEPS = ("data.passes=10", "optim.lr=3e-5")  # a rate at which rounding does not yet grow into another run
ROUNDING = 1e-5  # of float32, relative, after the five layers of a target network or the sums of a loss; bf16 has 4e-3


FEW_PATCHES = (
    "train.global_batch=4",
    "data.patches_per_image=1",
    "optim.lr=1e-6",
    "optim.clip_norm=1",
    "save.every_steps=1",
    "save.keep=99",
)


@dataclass
class Seen:
    """What a run was observed to compute with."""

    branch_types: set[torch.dtype] = field(default_factory=set)
    target_types: set[torch.dtype] = field(default_factory=set)
    loss_types: set[torch.dtype] = field(default_factory=set)
    target_errors: list[float] = field(default_factory=list)  # relative to the same inputs in float64, per forward
    loss_errors: list[float] = field(default_factory=list)


def watch(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Looks over the shoulder of every training that follows."""
    found = Seen()

    def watched_branches(
        self: model.LocalDistortionBranches, maps: list[Tensor], original: Any = model.LocalDistortionBranches.forward
    ) -> Tensor:
        vector: Tensor = original(self, maps)
        found.branch_types.add(vector.dtype)
        return vector

    def watched_target(vector: Tensor, weights: list[Tensor], biases: list[Tensor], *more: Any) -> Tensor:
        scores = target_network(vector, weights, biases, *more)
        found.target_types |= {tensor.dtype for tensor in (vector, *weights, *biases, scores)}
        with torch.no_grad(), torch.autocast(vector.device.type, enabled=False):
            exact = target_network(vector.double(), [w.double() for w in weights], [b.double() for b in biases], *more)
            found.target_errors.append(float((scores - exact).abs().max() / exact.abs().max()))
        return scores

    def watched_loss(scores: Tensor, targets: Targets, *more: Any) -> Any:
        parts = training_loss(scores, targets, *more)
        found.loss_types |= {tensor.dtype for tensor in (scores, targets.opinions, *parts)}
        exact = training_loss(scores.detach().double(), replace(targets, opinions=targets.opinions.double()), *more)
        found.loss_errors.append(abs(float(parts.total.detach()) / float(exact.total) - 1))
        return parts

    monkeypatch.setattr(model.LocalDistortionBranches, "forward", watched_branches)
    monkeypatch.setattr(model, "target_network", watched_target)
    monkeypatch.setattr(gradient, "training_loss", watched_loss)
    return found


def apart(exact: Path, mixed: Path) -> dict[str, float]:
    """How far two runs of fifty steps have come apart: in the loss, in the scores of the test part, in the weights.

    losses: mean absolute difference over the steps / mean loss. scores: root mean square difference / standard deviation.
    weights: Euclidean distance of all weights / how far the exact run has moved from the start.
    """
    losses = [np.array([record["loss"] for record in runs.records(folder, "step")]) for folder in (exact, mixed)]
    assert len(losses[0]) == len(losses[1]) == 50
    scores = [scores_in(folder / "scores-test.csv") for folder in (exact, mixed)]
    assert {tensor.dtype for tensor in runs.weights(mixed, 50).values()} == {torch.float32}
    return {
        "first loss": abs(losses[0][0] - losses[1][0]) / losses[0][0],
        "losses": float(np.abs(losses[0] - losses[1]).mean() / losses[0].mean()),
        "scores": float(np.sqrt(np.mean((scores[0] - scores[1]) ** 2)) / scores[0].std()),
        "weights": weights_apart(exact, mixed, 50),
    }


def weights_apart(exact: Path, other: Path, step: int) -> float:
    """The Euclidean distance of all weights of two runs after `step` / how far the exact one has moved from the start."""
    torch.manual_seed(0)
    config = load_config(exact / "config.yaml")
    start = build_model(config, Shards(Path(str(config.data.shards))).layout.patch_size, (0.0, 100.0)).state_dict()
    one, two = runs.weights(exact, step), runs.weights(other, step)
    trained = [name for name in one if "running" not in name and "num_batches" not in name]
    return distance(*({name: of[name] for name in trained} for of in (one, two))) / distance({name: one[name] for name in trained}, start)


def scores_in(path: Path) -> np.ndarray:
    """The column `score` of a csv."""
    with path.open() as file:
        return np.array([float(row["score"]) for row in csv.DictReader(file)])


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one))


def checkpoint_of(folder: Path, step: int) -> Checkpoint:
    return load_checkpoint(folder / "checkpoints" / f"step-{step:08d}")


class Poison:
    """Spoils some steps of a training, counted from 1.

    {3: 'gradient'} of one tensor is nan; 'norm': it is finite, and too large for float32 to hold its square; 'activation': the pixels
    are infinite.
    """

    def __init__(self, steps: dict[int, str], here: bool = True, first: int = 1) -> None:
        self.steps, self.here, self.number = steps, here, first
        self.weights: list[str] = []  # a hash of this rank's, before each step

    def __call__(self, accelerator: Accelerator, wrapped: nn.Module, *more: Any) -> Any:
        bare: Any = accelerator.unwrap_model(wrapped)
        digest = hashlib.sha256()
        for tensor in bare.parameters():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.weights.append(digest.hexdigest())
        kind = self.steps.get(self.number) if self.here else None
        self.number += 1
        if kind in ("gradient", "norm"):
            spoiled = math.nan if kind == "gradient" else 1e38
            hook = next(bare.hyper.parameters()).register_hook(lambda gradient: torch.full_like(gradient, spoiled))
        else:
            hook = bare.backbone.register_forward_pre_hook(lambda _, inputs: (inputs[0] * (math.inf if kind else 1),))
        try:
            return accumulate_gradient(accelerator, wrapped, *more)
        finally:
            hook.remove()
