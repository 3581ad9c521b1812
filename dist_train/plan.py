"""What a config means for these data and so many processes: every derived number, and what would not be reproducible.

Making the plan is also the check that the run can work: what does not divide or does not exist is an error here, before a
model is built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from shlex import quote

import numpy as np
import torch

from dist_train.collection import NO_FILES, SPAN, Collection, Member, open_collection
from dist_train.config import Config
from dist_train.data import loader_workers
from dist_train.device import NEED_A_GPU, refuse_without_gpu
from dist_train.errors import ConfigError
from dist_train.history import historical_rates
from dist_train.idle_settings import idle_settings
from dist_train.intervals import FEW_CONTENTS, effective_contents
from dist_train.loss import CORRELATIONS, needs_deviations
from dist_train.mixture import Mixture, seed_of_set, shares_of
from dist_train.model_folder import build_model
from dist_train.optim import LAST_RATIO_EPOCH, STEP_EPOCHS
from dist_train.order import Order
from dist_train.origin import Origin, open_origin
from shards.manifest import PARTS
from shards.splits import FEW_IMAGES, FEWEST_IMAGES

FEW_STEPS = 100  # in all; the demo, on few images and at a high rate, takes 215


@dataclass(frozen=True)
class Plan:
    """A config, resolved against the data and the number of processes."""

    config: Config
    collection: Collection
    order: Order | Mixture
    world: int
    share: int  # images per rank and step
    micro_batch: int  # of them, images that go through the model at a time
    num_parameters: int
    origin: Origin | None = None  # the model that it starts from

    @property
    def steps_per_epoch(self) -> int:
        return self.order.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.config.train.epochs * self.steps_per_epoch

    @property
    def output_scale(self) -> tuple[float, float]:
        """What the target network's 0 and 100 mean, in targets.

        The ends of their scale; what a model that the run starts from makes of these; or (0, 100) when the output stays raw.
        """
        if self.config.model.output == "raw":
            return 0.0, 100.0
        return self.target_scale if self.origin is None else self.origin.output_scale(*self.worst_and_best)

    @property
    def worst_and_best(self) -> tuple[float, float]:
        """The targets of the worst and of the best picture."""
        low, high = self.target_scale
        rises = len(self.collection.members) > 1 or self.collection.members[0].shards.label.higher_is_better
        return (low, high) if rises else (high, low)

    @property
    def target_scale(self) -> tuple[float, float]:
        """The lowest and the highest target.

        One set: the ends of its scale, as stated or as seen in the training part. Several sets: 2.5 standard deviations below and above
        the mean.
        """
        if len(self.collection.members) > 1:
            return -SPAN, SPAN
        only = self.collection.members[0]
        if only.shards.label.low is not None and only.shards.label.high is not None:
            return only.shards.label.low, only.shards.label.high
        seen = only.shards.opinions[only.parts["train"]]
        return float(seen.min()), float(seen.max())

    @property
    def point(self) -> float:
        """What one point, in which the loss is computed, is worth in targets: a hundredth of their scale."""
        low, high = (0.0, 100.0) if self.config.model.output == "raw" else self.target_scale
        return (high - low) / 100

    @cached_property
    def label_std(self) -> float:
        """The standard deviation of the training targets: of the opinions, or 1 where they were standardised."""
        only = self.collection.members[0]
        return 1.0 if len(self.collection.members) > 1 else float(only.shards.opinions[only.parts["train"]].std())

    def rates(self, step: int) -> dict[str, float]:
        config = self.config
        return historical_rates(config.history, config.optim, step, self.steps_per_epoch, config.train.epochs)


def most_nodes(config: Config, at_most: int, processes_per_node: int) -> tuple[int, ConfigError | None]:
    """The greatest number of nodes, `at_most` at most, on which the run can be planned, and why not on more; raises that for none."""
    first: ConfigError | None = None
    for nodes in range(at_most, 0, -1):
        try:
            if config.run.processes not in (None, nodes * processes_per_node):
                raise ConfigError(f"run.processes={config.run.processes} are not the {nodes * processes_per_node} of {nodes} node(s)")
            make_plan(config, nodes * processes_per_node)
            return nodes, first
        except ConfigError as refusal:
            first = first or refusal
    assert first is not None, "at_most is at least 1"
    raise first


def make_plan(config: Config, world: int, device: str | None = None) -> Plan:
    """Opens the data and derives the numbers. Raises ConfigError or ShardError for what cannot work.

    `device` is the kind that a run finds itself on; None where it is only planned for.
    """
    if config.run.device == "cpu":
        refuse_without_gpu(config.run.precision, "run.device=cpu takes none")
    if config.model.batch_norm == "sync" and world > 1:
        _refuse_sync_without_gpus("cpu" if config.run.device == "cpu" else device, world)
    origin = open_origin(config)
    collection = open_collection(config.data, config.stop.select_on, NO_FILES if origin is None else origin.files)
    if origin is not None:
        origin.refuse_another_architecture(config.model, collection.patch_size)
    if len(collection.members) > 1 and config.model.output == "raw":
        raise ConfigError("model.output=raw leaves scores as they are, but those of several data.sets are standardised: leave it out")
    shown, batch = config.data.patches_per_image, config.train.global_batch
    for member in collection.members:
        _refuse_small_parts(member, config)
        if needs_deviations(config.loss):
            _refuse_unknown_deviations(member)
        stored = member.shards.layout.patches
        if shown > stored:
            raise ConfigError(
                f"data.patches_per_image={shown}, but {member.shards.folder} stores {stored} patches per image; "
                f"lower it to {stored}, or build shards with --patches {shown}"
            )
    if config.loss.consistency_weight and shown == 1:
        raise ConfigError("loss.consistency_weight compares the patches of an image: set data.patches_per_image to 2 or more")
    if batch % world:
        fitting = [size for size in (batch - batch % world, batch - batch % world + world) if size]
        raise ConfigError(
            f"train.global_batch={batch} does not divide among {world} processes; "
            f"use {' or '.join(map(str, fitting))}, or another number of processes"
        )
    share = batch // world
    micro_batch = min(config.train.micro_batch or share, share)
    if share % micro_batch:
        fitting = [number for number in range(1, share + 1) if share % number == 0]
        below, above = max(number for number in fitting if number < micro_batch), min(number for number in fitting if number > micro_batch)
        raise ConfigError(
            f"train.micro_batch={micro_batch} does not divide the {share} images that each of {world} processes takes per step; "
            f"use {below} or {above}"
        )
    order = _order(collection, config)
    _refuse_too_few_to_compare(config, collection, order, world)
    with torch.device("meta"):  # shapes without memory: does the model exist, and take these patches?
        model = build_model(config, collection.patch_size, (0.0, 100.0))
        trains_alone = config.model.batch_norm == "train" or (config.model.batch_norm == "sync" and world == 1)
        if micro_batch * shown == 1 and trains_alone and not model.normalises(1, collection.patch_size):
            raise ConfigError(
                f"one patch goes through the model at a time, and of patches of {collection.patch_size} pixels BatchNorm in "
                f"{config.model.backbone} sees a single value per channel, which it cannot normalise: raise train.micro_batch, "
                f"train.global_batch or data.patches_per_image, or set model.batch_norm=frozen"
            )
    num_parameters = sum(tensor.numel() for tensor in model.parameters())
    return Plan(config, collection, order, world, share, micro_batch, num_parameters, origin)


def _refuse_sync_without_gpus(device: str | None, world: int) -> None:
    if device not in (None, "cuda"):
        raise ConfigError(
            f"model.batch_norm=sync needs a GPU for each of the {world} processes, and these run on the {device}; "
            f"model.batch_norm=frozen takes the same steps on any number of processes, with the pretrained statistics"
        )


def _refuse_small_parts(member: Member, config: Config) -> None:
    shards = member.shards
    for part in PARTS:
        found, needed = len(member.parts[part]), 1 if part == "train" else FEWEST_IMAGES
        may_be_missing = part == "val" and config.stop.select_on == "test"
        if found < needed and not (found == 0 and may_be_missing):
            others = ", ".join(name for name in shards.split_names() if _is_large_enough(shards.split(name)[1], may_be_missing))
            raise ConfigError(
                f"{shards.folder}: split '{member.split}' has {found or 'no'} images in '{part}', at least {needed} are needed; "
                + f"choose another with data.split ({others}), or " * bool(others)
                + f"make some, python -m shards split {quote(str(shards.folder))} --rounds 10 --ratio 60/20/20 --name wide, and add "
                f"data.split=wide-01"
            )
    for part, why in (("train", "there is nothing to learn"), (config.stop.select_on, "no epoch can be the best")):
        opinions = shards.opinions[member.parts[part]]
        if opinions.min() == opinions.max():
            raise ConfigError(f"{shards.folder}: all opinions in {part} of split '{member.split}' are {opinions[0]:g}, so {why}")


def _is_large_enough(parts: Mapping[str, np.ndarray], without_val: bool) -> bool:
    """Whether a split has training images, and enough in each other part that a run needs."""
    return bool(len(parts["train"])) and all(len(parts[part]) >= FEWEST_IMAGES for part in ("val", "test")[without_val:])


def _refuse_unknown_deviations(member: Member) -> None:
    known = np.isfinite(member.deviations[member.parts["train"]])
    if not known.all():
        raise ConfigError(
            f"loss.fidelity_truth=soft: {member.shards.folder} does not have the standard deviation of the ratings (std) of "
            f"{np.sum(~known):,} of its {len(known):,} training images; use loss.fidelity_truth=binary, or build it from a table with it"
        )


def _order(collection: Collection, config: Config) -> Order | Mixture:
    """The line of visits; of several sets, each with its share of the batch."""
    members, shown = collection.members, config.data.patches_per_image
    if len(members) > config.train.global_batch:
        raise ConfigError(f"train.global_batch={config.train.global_batch} is smaller than the number of data.sets, {len(members)}")
    passes = config.data.passes or max(1, min(member.shards.layout.patches for member in members) // shown)
    orders = [
        Order(seed_of_set(config.run.seed, number), len(member.parts["train"]), member.shards.layout.patches, shown, passes, share)
        for number, (member, share) in enumerate(
            zip(members, shares_of([member.weight for member in members], config.train.global_batch), strict=True)
        )
    ]
    return orders[0] if len(orders) == 1 else Mixture(tuple(orders), passes)


def _seen_together(order: Order | Mixture, config: Config, world: int) -> list[tuple[int, int]]:
    """How many images of each set the loss sees at a time, at least and at most: those of the global batch, or of one rank's."""
    orders, ranks = order.orders if isinstance(order, Mixture) else (order,), world if config.loss.scope == "rank" else 1
    return [(line.global_batch // ranks, -(-line.global_batch // ranks)) for line in orders]


def _refuse_too_few_to_compare(config: Config, collection: Collection, order: Order | Mixture, world: int) -> None:
    """Raises ConfigError where a term of the loss would be constant: a correlation of any set, or the ranking of all of them."""
    seen = _seen_together(order, config, world)
    loss, batch = config.loss, f"train.global_batch={config.train.global_batch}" + ", loss.scope=rank" * (config.loss.scope == "rank")
    one_each = loss.regression_level == "image" or config.data.patches_per_image == 1
    needed = 3 if one_each else 2  # any two points lie on a line; two images of several patches need not
    for member, (number, _) in zip(collection.members, seen, strict=True):
        if loss.regression in CORRELATIONS and number < needed:
            raise ConfigError(
                f"loss.regression={loss.regression} needs {needed} images of a set to learn from, and sees {number} of {member.name} at a "
                f"time ({batch}): raise train.global_batch" + (" or the weight of the set" if len(seen) > 1 else "")
            )
    if loss.rank_weight and max(most for _, most in seen) < 2:
        raise ConfigError(
            f"loss.rank_weight={loss.rank_weight:g}: a ranking needs 2 images of a set, and never sees more than 1 at a time ({batch}): "
            f"raise train.global_batch, or set loss.rank_weight=0"
        )


def describe_plan(plan: Plan) -> str:
    """The plan for a person: numbers, rates, and what would not be reproducible."""
    config, order, members = plan.config, plan.order, plan.collection.members
    visits, batch, show = order.passes * order.num_images, order.global_batch, order.patches_per_image
    low, high = plan.target_scale
    known = config.data.workers is not None or plan.world == 1 or "LOCAL_WORLD_SIZE" in os.environ  # else, how many share a machine
    lines = []
    for member, line in zip(members, order.orders if isinstance(order, Mixture) else (order,), strict=True):
        shards, layout = member.shards, member.shards.layout
        parts = ", ".join(f"{part} {len(member.parts[part]):,}" for part in PARTS)
        shown = min(layout.patches, order.passes * show)
        size = f"{layout.patch_size}x{layout.patch_size}"
        lines += [
            ("data", f"{member.name} ({shards.folder}), fingerprint {shards.fingerprint}, label {shards.label}"),
            ("split", f"{member.split}: {parts} images"),
            ("patches", f"{layout.patches} of {size} stored per image; an epoch shows {shown} of them, {show} at each visit"),
        ]
        if len(members) > 1:
            lines.append(("share", f"{line.global_batch} of the {batch} images of every batch"))
    lines += [
        ("best epoch", _choice(config, len(members))),
        ("global batch", f"{batch} images x {_counted(show, 'patch', 'patches')} = {_counted(batch * show, 'patch', 'patches')} per step"),
        ("processes", f"{plan.world}, each takes {plan.share} of these images, {plan.micro_batch} at a time through the model"),
        ("workers", f"{loader_workers(config.data)} for each process" if known else "half of the cores of each process, one to four"),
        ("model", f"HyperIQA on {config.model.backbone}, {plan.num_parameters:,} parameters"),
        *([("starts from", str(plan.origin))] if plan.origin else []),
        (
            "steps",
            f"{plan.steps_per_epoch:,} per epoch ({visits:,} visits of images, {batch} a step), "
            f"at most {plan.total_steps:,} in {_counted(config.train.epochs, 'epoch')}",
        ),
        (
            "scores",
            f"from {low:g} to {high:g}"
            + " standard deviations of each set" * (len(members) > 1)
            + f" (model.output={config.model.output})"
            + _beginning(plan),
        ),
    ]
    width = max(len(title) for title, _ in lines)
    text = [f"{title:<{width}}  {line}" for title, line in lines]
    text += ["", f"learning rates at the first step of these epochs, counted from 0; {_course(config)}:"]
    text.append(f"{'epoch':>5} {'hyper network':>14} {'backbone':>9}")
    for epoch in _telling_epochs(config):
        rates = plan.rates(epoch * plan.steps_per_epoch)
        text.append(f"{epoch:>5} {rates['hyper']:>14.2e} {rates['backbone']:>9.2e}")
    if notes := worth_knowing(plan):
        text += ["", "worth knowing:", *(f"  - {note}" for note in notes)]
    text += [
        "",
        "where the same settings would give other numbers:",
        *(f"  - {reason}" for reason in irreproducible(config, plan.world)),
    ]
    return "\n".join(text)


def _choice(config: Config, sets: int) -> str:
    by, patience = "the mean SRCC of the sets" if sets > 1 else "its SRCC", config.stop.patience
    end = "all epochs are trained" if patience is None else f"training ends after {_counted(patience, 'epoch')} without a better one"
    return f"chosen on {config.stop.select_on}, by {by}; {end}"


def _beginning(plan: Plan) -> str:
    if plan.origin is None or plan.config.model.output == "raw" or plan.origin.is_open:
        return ""
    worst, best = plan.worst_and_best
    return f"; what the model that it starts from calls worst and best begins as {worst:g} and {best:g}"


def _course(config: Config) -> str:
    """What the rates do between the epochs that the table shows."""
    between = {
        "step": "they stay until the next one shown",
        "cosine": "in between they fall with every step",
        "constant": "they stay the same",
    }[config.optim.schedule]
    warmup = config.optim.warmup_steps
    return between + (f", after a climb over the first {_counted(warmup, 'step')}" if warmup else "")


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def worth_knowing(plan: Plan) -> list[str]:
    """What of the data and the settings makes the figures of this run weaker than they look, in words."""
    notes = []
    if plan.total_steps < FEW_STEPS:
        per_epoch = -(-FEW_STEPS // plan.config.train.epochs)
        passes = -(-per_epoch * plan.order.global_batch // plan.order.num_images)
        notes.append(
            f"the whole run takes only {_counted(plan.total_steps, 'step')}: fewer than {FEW_STEPS} leave a pretrained model about as it "
            f"was; data.passes={passes} would take {FEW_STEPS} or more"
        )
    if plan.origin is not None:
        notes += plan.origin.worth_knowing(plan.collection)
        notes += _of_a_raw_start(plan, plan.origin)
    chooser = plan.config.stop.select_on
    for member in plan.collection.members:
        notes += [
            f"{member.name}: {part} has {_counted(len(member.parts[part]), 'image')}: below {FEW_IMAGES}, a SRCC is rough"
            + ", and so is the choice of the epoch by it" * (part == chooser)
            for part in ("val", "test")
            if 0 < len(member.parts[part]) < FEW_IMAGES
        ]
        counted = {part: effective_contents(member.contents[member.parts[part]]) for part in ("val", "test")}
        notes += [
            f"{member.name}: the images in {part} count as {number:.1f} contents: below {FEW_CONTENTS}, another draw of contents moves a "
            f"SRCC far" + ", and the choice of the epoch by it" * (part == chooser)
            for part, number in counted.items()
            if 0 < number < FEW_CONTENTS and len(member.parts[part]) >= FEW_IMAGES
        ]
        for part in ("val", "test"):
            if len(copies := member.in_train_too(member.parts[part])):
                notes.append(
                    f"{member.name}: {len(copies):,} of the {len(member.parts[part]):,} images in {part} show a content, or are the very "
                    f"file, that is in train, too, such as '{member.shards.ids[copies[0]]}': figures of {part} are too good; "
                    f"`python -m shards split` makes splits by content, and `python -m shards doctor` finds copies"
                )
        opinions = member.shards.opinions
        if doubt := member.shards.label.doubt(float(opinions.min()), float(opinions.max())):
            notes.append(f"{member.name}: {doubt} Build it again with the --range that people rated on")
        if not len(member.parts["val"]):
            notes.append(f"{member.name}: the split has no val part: the epoch is chosen on test")
    if plan.config.stop.select_on == "test":
        notes.append("stop.select_on=test chooses the epoch on the test part: the test figures are then too good, and every report says so")
    if plan.config.loss.regression in CORRELATIONS:
        notes.append(
            f"loss.regression={plan.config.loss.regression} leaves the scale of the scores open: their RMSE means nothing before a "
            f"logistic has mapped them to the opinions"
        )
    notes += idle_settings(plan.config)
    if old := [name for name, on in plan.config.history if on]:
        notes.append(f"old bugs are switched back on: {', '.join(old)}")
    if plan.config.model.batch_norm == "sync" and plan.world > 1 and not torch.cuda.is_available():
        notes.append("model.batch_norm=sync needs a GPU for each process, and this machine has none: here the run would be refused")
    if plan.config.run.device == "cuda" and not torch.cuda.is_available():
        notes.append("run.device=cuda, and this machine has no GPU: here the run would be refused")
    if plan.config.run.precision in NEED_A_GPU and not torch.cuda.is_available():
        notes.append(f"run.precision={plan.config.run.precision} needs a GPU, and here the run has none: it would be refused")
    if plan.config.train.global_batch > (images := len(plan.collection.training_images)):
        times = plan.config.train.global_batch / images
        notes.append(
            f"train.global_batch={plan.config.train.global_batch} is more than the {images} training images: "
            f"a step shows each {times:.1f} times on average"
        )
    if plan.config.loss.scope == "rank":
        notes.append("loss.scope=rank: each rank's share is its own batch, so another number of processes takes other steps")
    if plan.config.loss.rank_weight:
        seen = _seen_together(plan.order, plan.config, plan.world)
        alone = [member.name for member, (_, most) in zip(plan.collection.members, seen, strict=True) if most < 2]
        notes += [f"{name}: the loss sees one image of it at a time, so it is never ranked; give it a larger weight" for name in alone]
    label = plan.collection.members[0].shards.label
    if len(plan.collection.members) == 1 and label.low is None and plan.config.model.output == "range":
        low, high = plan.target_scale
        notes.append(f"the scale of the opinions is not stated: scores are spoken on {low:g} to {high:g}, as seen in train")
    return notes


def _of_a_raw_start(plan: Plan, origin: Origin) -> list[str]:
    worst, best = plan.worst_and_best
    if plan.config.model.output != "raw" or np.allclose((worst, best), (origin.worst, origin.best)):
        return []
    return [
        f"model.output=raw maps nothing: the model that this run starts from says {origin.worst:g} of the worst picture and "
        f"{origin.best:g} of the best, where {worst:g} and {best:g} are right here, and the first steps go into that; "
        f"model.output=range begins on the scale of these opinions"
    ]


def irreproducible(config: Config, world: int) -> list[str]:
    """What could make the same run come out differently elsewhere, in words."""
    reasons = [
        f"on another number of processes than {world}: sums are rounded in another order, and the difference, at first in the last digits, "
        f"grows with the steps"
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
    if config.run.compile:
        reasons.append("run.compile=true orders sums as its compiler likes, which differs between machines and versions")
    if config.run.precision != "no":
        reasons.append(f"run.precision={config.run.precision} rounds differently on different hardware")
    if config.run.device != "cpu":
        reasons.append(
            "on a GPU, some kernels add up in no fixed order (attention, pooling to sizes that do not divide): equal runs agree closely, "
            "not to the last bit"
        )
    return reasons


def _telling_epochs(config: Config) -> list[int]:
    """The first and last epochs and those where the schedule turns."""
    last, late = config.train.epochs - 1, int(config.history.rebuilt_adam)
    turns = {
        "step": [turn + late for turn in (0, *range(STEP_EPOCHS, last + 1, STEP_EPOCHS), LAST_RATIO_EPOCH + 1)] + [0],
        "cosine": [round(last * k / 4) for k in range(5)],
        "constant": [0],
    }
    return sorted({epoch for epoch in [*turns[config.optim.schedule], last] if epoch <= last})
