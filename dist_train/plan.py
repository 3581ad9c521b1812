"""What a config means for these data and so many processes: every derived number, and what would not be reproducible.

Making the plan is also the check that the run can work: what does not divide or does not exist is an error here, before a
model is built.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from dist_train.config import Config
from dist_train.errors import ConfigError
from dist_train.model_folder import build_model
from dist_train.optim import LAST_RATIO_EPOCH, STEP_EPOCHS, learning_rates
from dist_train.order import Order
from shards.manifest import PARTS, Shards

FEWEST_IMAGES = 3  # of which a correlation says anything
FEW_IMAGES = 50  # below this, one lucky image moves it


@dataclass(frozen=True)
class Plan:
    """A config, resolved against the data and the number of processes."""

    config: Config
    shards: Shards
    split: str
    parts: dict[str, np.ndarray]  # image numbers of train, val and test
    order: Order
    world: int
    share: int  # images per rank and step
    micro_batch: int  # of them, images that go through the model at a time
    num_parameters: int

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.config.train.epochs * self.steps_per_epoch

    @property
    def output_scale(self) -> tuple[float, float]:
        """(low, high) of the opinions: as stated, or as seen in the training part; (0, 100) when the output stays raw."""
        label = self.shards.label
        if self.config.model.output == "raw":
            return 0.0, 100.0
        if label.low is not None and label.high is not None:
            return label.low, label.high
        seen = self.shards.opinions[self.parts["train"]]
        return float(seen.min()), float(seen.max())

    def split_fingerprint(self) -> str:
        """A short name for exactly these images in train, val and test."""
        return hashlib.sha256(b"/".join(self.parts[part].tobytes() for part in PARTS)).hexdigest()[:16]

    def rates(self, step: int) -> dict[str, float]:
        return learning_rates(self.config.optim, step, self.steps_per_epoch, self.config.train.epochs)


def make_plan(config: Config, world: int) -> Plan:
    """Opens the data and derives the numbers. Raises ConfigError or ShardError for what cannot work."""
    if config.data.shards is None:
        raise ConfigError("data.shards is not set: name a shard folder, such as data.shards=demo/shards")
    shards = Shards(config.data.shards)
    split, parts = shards.split(config.data.split)
    for part in PARTS:
        found, needed = len(parts[part]), 1 if part == "train" else FEWEST_IMAGES
        may_be_missing = part == "val" and config.stop.select_on == "test"
        if found < needed and not (found == 0 and may_be_missing):
            raise ConfigError(
                f"{shards.folder}: split '{split}' has {found or 'no'} images in '{part}', at least {needed} are needed; "
                f"choose another with data.split ({', '.join(shards.split_names())})"
            )
    stored, shown, batch = shards.layout.patches, config.data.patches_per_image, config.train.global_batch
    if shown > stored:
        raise ConfigError(f"data.patches_per_image={shown}, but {shards.folder} stores {stored} patches per image")
    if batch % world:
        fitting = [size for size in (batch - batch % world, batch - batch % world + world) if size]
        raise ConfigError(
            f"train.global_batch={batch} does not divide among {world} processes; "
            f"use {' or '.join(map(str, fitting))}, or another number of processes"
        )
    share = batch // world
    micro_batch = min(config.train.micro_batch or share, share)
    if share % micro_batch:
        raise ConfigError(
            f"train.micro_batch={micro_batch} does not divide the {share} images that each of {world} processes takes per step"
        )
    order = Order(config.run.seed, len(parts["train"]), stored, shown, config.data.passes or max(1, stored // shown), batch)
    opinions = shards.opinions[parts["train"]]
    if opinions.min() == opinions.max():
        raise ConfigError(f"{shards.folder}: all training opinions are {opinions[0]:g}, so there is nothing to learn")
    with torch.device("meta"):  # shapes without memory: does the model exist, and take these patches?
        model = build_model(config, shards.layout.patch_size, (0.0, 100.0))
    num_parameters = sum(tensor.numel() for tensor in model.parameters())
    return Plan(config, shards, split, parts, order, world, share, micro_batch, num_parameters)


def describe_plan(plan: Plan) -> str:
    """The plan for a person: numbers, rates, and what would not be reproducible."""
    config, order, shards, layout = plan.config, plan.order, plan.shards, plan.shards.layout
    parts = ", ".join(f"{part} {len(plan.parts[part]):,}" for part in PARTS)
    shown = min(layout.patches, order.passes * order.patches_per_image)
    visits, batch, show = order.passes * order.num_images, order.global_batch, order.patches_per_image
    low, high = plan.output_scale
    lines = [
        ("data", f"{shards.manifest['data_set']} ({shards.folder}), fingerprint {shards.fingerprint}, label {shards.label}"),
        ("split", f"{plan.split}: {parts} images; the best epoch is chosen on {config.stop.select_on}"),
        (
            "patches",
            f"{layout.patches} of {layout.patch_size}x{layout.patch_size} stored per image; an epoch shows {shown}, {show} per visit",
        ),
        ("global batch", f"{batch} images x {show} patches = {batch * show} patches per step"),
        ("processes", f"{plan.world}, each takes {plan.share} of these images, {plan.micro_batch} at a time through the model"),
        ("model", f"HyperIQA on {config.model.backbone}, {plan.num_parameters:,} parameters"),
        ("steps", f"{plan.steps_per_epoch:,} per epoch ({visits:,} visits), {plan.total_steps:,} in {config.train.epochs} epochs at most"),
        ("output", f"{config.model.output}: scores on {low:g} to {high:g}"),
    ]
    width = max(len(title) for title, _ in lines)
    text = [f"{title:<{width}}  {line}" for title, line in lines]
    text += ["", "rates at the first step of the epochs where they turn:", f"{'epoch':>5} {'lr hyper':>10} {'lr backbone':>12}"]
    for epoch in _telling_epochs(config):
        rates = plan.rates(epoch * plan.steps_per_epoch)
        text.append(f"{epoch:>5} {rates['hyper']:>10.2e} {rates['backbone']:>12.2e}")
    if notes := worth_knowing(plan):
        text += ["", "worth knowing:", *(f"  - {note}" for note in notes)]
    text += [
        "",
        "would not be reproducible:",
        *(f"  - {reason}" for reason in irreproducible(config, plan.world)),
    ]
    return "\n".join(text)


def worth_knowing(plan: Plan) -> list[str]:
    """What of the data makes the figures of this run weaker than they look, in words."""
    notes = [
        f"{part} has {len(plan.parts[part])} images: below {FEW_IMAGES}, a SRCC is rough, and the best epoch is partly luck"
        for part in ("val", "test")
        if 0 < len(plan.parts[part]) < FEW_IMAGES
    ]
    if not len(plan.parts["val"]):
        notes.append("the split has no val part: the epoch is chosen on test")
    if plan.shards.label.low is None and plan.config.model.output == "range":
        low, high = plan.output_scale
        notes.append(f"the scale of the opinions is not stated: scores are spoken on {low:g} to {high:g}, as seen in train")
    return notes


def irreproducible(config: Config, world: int) -> list[str]:
    """What could make the same run come out differently elsewhere, in words."""
    reasons = [
        f"on {world} {'process' if world == 1 else 'processes'} the numbers are the same every time; on another number, sums are "
        f"rounded in another order, and the difference, at first in the last digits, grows with the steps"
    ]
    if config.model.batch_norm == "train":
        reasons.append(
            "BatchNorm, if the backbone has it, normalises over one micro-batch: another number of processes, or another "
            "train.micro_batch, gives other numbers (model.batch_norm=frozen gives the same on any)"
        )
    if config.model.batch_norm == "sync":
        reasons.append(
            "BatchNorm, if the backbone has it, normalises over the micro-batches of all processes together: where each takes its whole "
            "share at once, another number of processes gives the same up to rounding; another train.micro_batch gives other numbers"
        )
    if config.run.precision != "no":
        reasons.append(f"run.precision={config.run.precision} rounds differently on different hardware")
    if config.run.device != "cpu":
        reasons.append(
            "on a GPU, some kernels add up in no fixed order (attention, pooling to sizes that do not divide), and convolutions in "
            "run.precision=no round to TF32: equal runs agree closely, not to the last bit"
        )
    if config.stop.select_on == "test":
        reasons.append(
            "stop.select_on=test chooses the epoch on the test part: the test figures are then too good, and every report says so"
        )
    return reasons


def _telling_epochs(config: Config) -> list[int]:
    """The first and last epochs and those where the schedule turns."""
    last = config.train.epochs - 1
    turns = {
        "step": [*range(0, last + 1, STEP_EPOCHS), LAST_RATIO_EPOCH + 1],
        "cosine": [round(last * k / 4) for k in range(5)],
        "constant": [0],
    }
    return sorted({epoch for epoch in [*turns[config.optim.schedule], last] if epoch <= last})
