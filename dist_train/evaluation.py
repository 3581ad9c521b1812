"""Patch scores of every image, exactly once, brought to rank 0 and averaged there.

The batches are the same whatever the number of ranks, and they are dealt to the ranks, so ranks may have more or fewer. The
model here is the bare one, not its DDP wrapper: the wrapper synchronises buffers even in evaluation and would wait for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dist_train import ranks
from dist_train.collection import Collection, Member
from dist_train.config import Config
from dist_train.data import EvaluationVisits, PatchReader, loader_workers, patch_batches
from dist_train.intervals import effective_contents
from dist_train.metrics import image_figures, per_image, two_level_panel
from dist_train.order import SAMPLE, bits
from dist_train.whole_files import write_text
from shards.manifest import Label, ShardError, Shards
from shards.tables import csv_text


@dataclass(frozen=True)
class Scores:
    """What the model says of a part: image numbers [n] ascending, patch scores [n, patches], opinions [n]. float64."""

    images: np.ndarray
    patches: np.ndarray
    opinions: np.ndarray

    def panel(self) -> dict[str, float]:
        return two_level_panel(self.images, self.patches, self.opinions)

    def final_panel(self, shards: Shards, spoken: Label, *, scale_is_open: bool) -> dict[str, Any]:
        """The panel with all that a result is told with (`metrics.image_figures`): for the best epoch and the test.

        `spoken` is the label that the model was trained on, and so speaks. On a set whose label runs the other way, its scores
        are turned, so that more is better on both sides or on neither and correlations keep the sign of quality. Where the
        labels are not the same, or the loss left the scale of the scores open, raw errors mean nothing, and are nan; those of
        scores that were mapped to the opinions stay.
        """
        label = shards.label
        patches = self.patches if spoken.higher_is_better == label.higher_is_better else -self.patches
        rows = self._rows(shards)
        means, _, opinions = per_image(self.images, patches, self.opinions)
        stds = np.array([float(row["std"] or "nan") for row in rows])
        panel = two_level_panel(self.images, patches, self.opinions)
        panel = panel | image_figures(means, opinions, stds, np.array([row["group"] for row in rows]))
        raw = ("rmse",) if panel["mapped_by"] else ("rmse", "rmse_epsilon", "outlier_ratio")
        return panel if spoken == label and not scale_is_open else panel | dict.fromkeys(raw, np.nan)

    def write_csv(self, path: Path, shards: Shards) -> None:
        """image, opinion, score, spread, content: a row per image, in the order of the shard folder."""
        means, spreads, _ = per_image(self.images, self.patches, self.opinions)
        rows = (
            [row["id"], repr(float(opinion)), repr(float(mean)), repr(float(spread)), row["group"]]
            for row, opinion, mean, spread in zip(self._rows(shards), self.opinions, means, spreads, strict=True)
        )
        write_text(path, csv_text(chain([["image", "opinion", "score", "spread", "content"]], rows)))

    def _rows(self, shards: Shards) -> list[dict[str, str]]:
        """What images.csv says of each image."""
        wanted = np.isin(np.arange(len(shards)), self.images)
        return [row for row, here in zip(shards.image_rows(), wanted, strict=True) if here]


def score_part(model: nn.Module, collection: Collection, part: str, config: Config, device: torch.device) -> dict[str, Scores] | None:
    """The scores of a part of every data set, by its name and on its own scale; on rank 0, None elsewhere. A collective.

    Of train, those of a sample.
    """
    found = {}
    for member in collection.members:
        images = training_sample(member, config) if part == "train" else member.parts[part]
        scores = score_images(model, member.shards, images, config, device) if len(images) else None
        if scores is not None:
            found[member.name] = replace(scores, patches=member.scale.to_opinions(scores.patches))
    return found or None


def training_sample(member: Member, config: Config) -> np.ndarray:
    """The training images that are scored after every epoch, drawn by the seed of the run: int64, ascending."""
    train, wanted = member.parts["train"], config.evaluate.train_images
    number = (len(member.parts["val"]) or len(member.parts["test"])) if wanted is None else wanted
    return np.sort(train[np.argsort(bits(config.run.seed, SAMPLE, np.arange(len(train))), kind="stable")[:number]])


def panel_of(scores: dict[str, Scores], collection: Collection) -> dict[str, Any]:
    """The panel of the only data set; of several, the means of what has no unit, with each one's own panel under 'sets'.

    With the number of contents that the images count as, for who judges whether a difference is chance.
    """
    members = [member for member in collection.members if member.name in scores]
    found = {member.name: (member, scores[member.name]) for member in members}
    panels = {name: of.panel() | {"effective_contents": effective_contents(one.contents[of.images])} for name, (one, of) in found.items()}
    return mean_panel(panels, collection)


def final_panel_of(scores: dict[str, Scores], collection: Collection, part: str, *, scale_is_open: bool) -> dict[str, Any]:
    """The same with everything that is told of a part at a run's end: intervals, mappings, tolerance, and what was trained on, too."""
    panels = {}
    for member in (member for member in collection.members if member.name in scores):
        panel = scores[member.name].final_panel(member.shards, member.shards.label, scale_is_open=scale_is_open)
        panels[member.name] = panel | {"trained_too": len(member.trained_too(member.parts[part]))}
    return mean_panel(panels, collection)


def mean_panel(panels: dict[str, dict[str, float]], collection: Collection) -> dict[str, Any]:
    """One panel for several sets: means of the figures that have no unit (nan where a set has none), and all panels under 'sets'.

    Its `images`, and `effective_contents` and `trained_too` where the panels have them, are those of all sets together.
    """
    if len(collection.members) == 1:
        return next(iter(panels.values()))
    names = [name for name in next(iter(panels.values())) if name.endswith(("srcc", "plcc", "krcc"))]
    means: dict[str, Any] = {name: float(np.mean([panel[name] for panel in panels.values()])) for name in names}
    counts = [name for name in ("images", "effective_contents", "trained_too") if all(name in panel for panel in panels.values())]
    together = {name: sum(panel[name] for panel in panels.values()) for name in counts}
    return means | together | {"sets": panels}


def write_scores(folder: Path, stem: str, scores: dict[str, Scores], collection: Collection) -> None:
    """`stem`.csv, or `stem`-SET.csv for each of several data sets."""
    for member in (member for member in collection.members if member.name in scores):
        name = stem if len(collection.members) == 1 else f"{stem}-{member.name}"
        scores[member.name].write_csv(folder / f"{name}.csv", member.shards)


def score_images(model: nn.Module, shards: Shards, numbers: np.ndarray, config: Config, device: torch.device) -> Scores | None:
    """Scores of the images `numbers` of the shard folder, all their stored patches; on rank 0, None elsewhere.

    A collective. Leaves the model in the mode it was in. Raises ShardError naming the images that were scored twice or
    not at all.
    """
    visits = EvaluationVisits(numbers, shards.layout.patches, config.evaluate.batch_images, ranks.rank(), ranks.world())
    reader = PatchReader(shards, visits, 0, len(visits))
    mode = model.training
    model.eval()
    found: list[tuple[np.ndarray, np.ndarray]] = []
    with torch.inference_mode():
        for batch in patch_batches(reader, config.evaluate.batch_images, loader_workers(config.data)):
            scores = model(batch.pixels.to(device).flatten(0, 1)).view(len(batch.images), -1)
            found.append((batch.images.numpy(), scores.double().cpu().numpy()))
    model.train(mode)
    gathered = [pair for pairs in ranks.gather_first(found) for pair in pairs]
    return _collect(shards, numbers, gathered) if ranks.is_first() else None


def _collect(shards: Shards, numbers: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Scores:
    images = np.concatenate([images for images, _ in pairs])
    expected = np.sort(numbers)
    if not np.array_equal(np.sort(images), expected):
        values, counts = np.unique(images, return_counts=True)
        odd = [shards.ids[n] for n in [*np.setdiff1d(expected, values), *values[counts > 1]][:5]]
        raise ShardError(
            f"evaluation did not score every image of {shards.folder} exactly once: {', '.join(odd)}; "
            f"nothing of yours is wrong: this is a fault in dist_train, please report it"
        )
    order = np.argsort(images)
    scores = np.concatenate([scores for _, scores in pairs])[order]
    return Scores(images[order], scores, shards.opinions[images[order]])
