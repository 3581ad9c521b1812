"""What a config means for these data and so many processes: every derived number, and what would not be reproducible.

Making the plan is also the check that the run can work: what does not divide or does not exist is an error here, before a
model is built.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from dist_train.config import Config, ConfigError
from dist_train.optim import LAST_RATIO_EPOCH, STEP_EPOCHS, learning_rates
from dist_train.order import Order
from shards.manifest import PARTS, Shards


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
        if not len(parts[part]):
            raise ConfigError(
                f"{shards.folder}: split '{split}' has no images in '{part}'; "
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
    plan = Plan(config, shards, split, parts, order, world, share, micro_batch)
    if plan.output_scale[0] == plan.output_scale[1]:
        raise ConfigError(f"{shards.folder}: all training opinions are {plan.output_scale[0]:g}, so there is nothing to learn")
    return plan


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
        ("per process", f"{plan.world} process(es) x {plan.share} images, through the model {plan.micro_batch} at a time"),
        ("steps", f"{plan.steps_per_epoch:,} per epoch ({visits:,} visits), {plan.total_steps:,} in {config.train.epochs} epochs at most"),
        ("output", f"{config.model.output}: scores on {low:g} to {high:g}"),
    ]
    width = max(len(title) for title, _ in lines)
    text = [f"{title:<{width}}  {line}" for title, line in lines]
    text += ["", f"{'epoch':>5} {'lr hyper':>10} {'lr backbone':>12}   (at its first step)"]
    for epoch in _telling_epochs(config):
        rates = plan.rates(epoch * plan.steps_per_epoch)
        text.append(f"{epoch:>5} {rates['hyper']:>10.2e} {rates['backbone']:>12.2e}")
    text += [
        "",
        "would not be reproducible:",
        *(f"  - {reason}" for reason in irreproducible(config, plan.world)),
    ]
    return "\n".join(text)


def irreproducible(config: Config, world: int) -> list[str]:
    """What could make the same run come out differently elsewhere, in words."""
    reasons = [
        f"on {world} process(es) the numbers are the same every time; on another number, sums are rounded in another order, and the "
        f"difference, at first in the last digits, grows with the steps"
    ]
    if config.model.batch_norm == "train":
        reasons.append(
            f"BatchNorm, if the backbone has it, normalises over one micro-batch: the same on {world} process(es) every time, "
            f"other numbers on another number of them (model.batch_norm=frozen gives the same on any)"
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
