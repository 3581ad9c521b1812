"""A trained model on rated data sets, its own or others': the scores of each in a csv, and one table over all of them.

DIR/
  scores-SET.csv     image, opinion, score, spread, content, as training writes them; the scores as the model speaks them
  evaluation.json    all figures, and what the model has seen of each set

Batches, precision and memory format are the run's, so on its own test part a model gets the figures and the csv of its training
again, to the last bit, on any number of processes (but for run.compile, which is not used here).

Correlations carry the sign of quality. A model speaks in the direction of the label that it was trained on; on a set whose label
runs the other way, as a DMOS does for a model of MOS, its scores are turned before they are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dist_train import ranks
from dist_train.collection import NO_FILES, Member, Scale
from dist_train.config import Data, load_config
from dist_train.device import open_accelerator
from dist_train.errors import ConfigError
from dist_train.evaluation import score_images
from dist_train.intervals import what_was_drawn
from dist_train.launch import refuse_another_world
from dist_train.loss import leaves_scale_open
from dist_train.model_folder import SETTINGS, Cutting, TrainedModel, find_weights, open_model
from dist_train.report import cross_table
from dist_train.seen import file_numbers
from dist_train.status import how_far_the_run_is
from dist_train.tested import RESULTS
from dist_train.whole_files import finite_or_none, write_json
from shards.manifest import ShardError, Shards, file_sha256

ALL = "all"  # every image, whatever its part


class Seen(NamedTuple):
    """What a model has seen of the images that it is to score. None: nobody knows."""

    trained_on_set: bool | None
    trained_on_images: int | None  # how many of them
    chosen_on_images: int | None  # how many of them chose the best epoch
    trained_too: int | None  # how many of them it was trained on, by their contents, too: known of the sets of the run alone
    told: str


@dataclass(frozen=True)
class RatedSet:
    """A data set that a model is to score."""

    name: str
    shards: Shards
    part: str  # train, val, test or all
    split: str | None  # None for all
    images: np.ndarray
    scale: Scale  # on which the model's scores are told
    seen: Seen
    other_resize: tuple[str, ...]  # the rules by which the training resized this set, where its own is none of them; else empty

    @property
    def resize(self) -> str:
        """The rule by which its pictures were resized."""
        return Cutting.of(self.shards).resize

    @property
    def is_turned(self) -> bool:
        """Whether the model's scores run the other way round than the opinions."""
        return self.scale.label.higher_is_better != self.shards.label.higher_is_better


def evaluate(
    checkpoint: Path, shards: Sequence[str], split: str | None, part: str | None, out: Path | None, settings: Sequence[str]
) -> None:
    """Scores every data set with the model in `checkpoint`, writes the files and prints the table. Started by every rank.

    `shards` are folders or addresses, none for the data of the run; `split` and `part` are as for `choose_sets`; `out` is the
    folder to write, evaluation/ beside the model when None; `settings` change the run's own, as section.key=value.
    Raises ConfigError or ShardError for what the user can mend, before anything is scored.
    """
    weights = find_weights(checkpoint)
    config = load_config(weights.with_name(SETTINGS), settings)
    accelerator = open_accelerator(config)
    refuse_another_world(accelerator.num_processes, None)
    ranks.connect()
    trained = open_model(weights)
    sets = choose_sets(trained, shards, split, part)
    folder = out or (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "evaluation"
    ranks.first_does(lambda: _refuse_older_results(folder))
    if ranks.is_first() and (note := how_far_the_run_is(weights)):
        print(f"WARNING: {note}", flush=True)

    model = accelerator.prepare_model(trained.model.to(memory_format=torch.channels_last), evaluation_mode=True)
    panels: dict[str, dict[str, Any]] = {}
    for one in sets:
        spoken = score_images(model, one.shards, one.images, config, accelerator.device)
        if spoken is not None:
            scores = replace(spoken, patches=one.scale.to_opinions(spoken.patches))
            scores.write_csv(folder / f"scores-{one.name}.csv", one.shards)
            panels[one.name] = scores.final_panel(one.shards, one.scale.label, scale_is_open=leaves_scale_open(config.loss))
    if ranks.is_first():
        about = {"model": str(weights), "model_sha256": file_sha256(weights), "epoch": trained.about.get("epoch")}
        write_json(folder / RESULTS, finite_or_none(about | {"sets": {one.name: _about(one) | panels[one.name] for one in sets}}))
        print(describe(weights, sets, panels), flush=True)
        print(f"\n{folder}", flush=True)
    ranks.disconnect()


def choose_sets(trained: TrainedModel, shards: Sequence[str], split: str | None, part: str | None) -> list[RatedSet]:
    """What to score, opened and checked: the data sets in `shards`, or those that the model was trained on when there are none.

    Without a `part`: all of a set that the model was not trained on, where no `split` is named either; else test. Without a `split`:
    the one that it was trained with, else the official one, else the first round. Scores are told on the scale of the set where the
    model knows it, else on its first. Raises ConfigError or ShardError, with a line per set, when some cannot be opened, do not fit,
    or have no such part.
    """
    if part == ALL and split is not None:
        raise ConfigError(f"--part all takes every image, whatever its part: leave out --split {split}")
    sets: list[RatedSet] = []
    refusals: list[ConfigError | ShardError] = []
    for place in shards or _own_places(trained.config.data):
        try:
            sets.append(_choose(trained, Shards(place), split, part))
        except (ConfigError, ShardError) as refusal:
            refusals.append(refusal)
    if len(refusals) > 1:
        raise ConfigError("\n".join(map(str, refusals)))
    if refusals:
        raise refusals[0]
    for number, one in enumerate(sets):
        for other in sets[:number]:
            if one.name == other.name:
                raise ConfigError(
                    f"--shards: {other.shards.folder} and {one.shards.folder} are both called '{one.name}'; evaluate one at a time"
                )
    return sets


def _own_places(data: Data) -> list[str]:
    found = [chosen.shards for chosen in data.sets.values()] or ([] if data.shards is None else [data.shards])
    if not found:
        raise ConfigError("the model does not say what data it was trained on: name shard folders with --shards")
    return found


def _choose(trained: TrainedModel, shards: Shards, split: str | None, part: str | None) -> RatedSet:
    size = shards.layout.patch_size
    if size != trained.patch_size:
        raise ConfigError(
            f"{shards.folder}: has patches of {size} pixels, but the model takes {trained.patch_size}; "
            f"build the set once more, with --size {trained.patch_size}, in another folder"
        )
    own = _own_name(trained, shards)
    name = own or shards.manifest["data_set"]
    part = part or ("test" if own or split else ALL)
    images, found = np.arange(len(shards)), None
    if part != ALL:
        found, parts = shards.split(split or (trained.about["trained_on"][own]["split"] if own else None))
        images = parts[part]
    if not len(images):
        raise ConfigError(f"{shards.folder}: split '{found}' has no images in '{part}'; choose another with --split or --part")
    scale = trained.scales.get(name) or next(iter(trained.scales.values()))
    seen = _what_was_seen(trained, own, shards, images)
    return RatedSet(name, shards, part, found, images, scale, seen, _other_resize(trained, shards, seen))


def _what_was_seen(trained: TrainedModel, own: str | None, shards: Shards, images: np.ndarray) -> Seen:
    """What `trained`, which calls these shards `own`, has seen of `images`, by the pictures' files."""
    if trained.seen is None:
        return Seen(None, None, None, None, "what the model was trained on is not known")
    files = file_numbers(shards)
    known = [np.isin(files, seen) for seen in (trained.seen.trained_on, trained.seen.chosen_on)]
    trained_on, chosen_on = (int(one[images].sum()) for one in known)
    name = shards.manifest["data_set"]
    same_name = name in (said["data_set"] for said in trained.about.get("trained_on", {}).values())
    of_this_set = own is not None or bool(np.any(known))
    if same_name and not of_this_set:  # as KonIQ-10k is distributed at two sizes
        told = f"WARNING: the model was trained on other files called {name}: copies of these images may be among them"
        return Seen(None, None, None, None, told)
    told = "the model was not trained on this data set: it has seen none of these files"
    if of_this_set:
        told = "the model was trained on other images of this data set"
    if not trained.seen.is_all:
        told = "the model started from one of which nobody knows what it was trained on"
    trained_too = _trained_too(trained, own, shards, images) if own else None
    if trained_on or trained_too:
        what = f"{trained_on:,}" if trained_on >= (trained_too or 0) else f"the contents of {trained_too:,}"
        told = f"WARNING: the model was trained on {what} of these images: its figures are too good"
    if chosen_on:
        told += f"; {'WARNING: ' * (not told.startswith('WARNING'))}its best epoch was chosen on {chosen_on:,} of these images"
    none = 0 if trained.seen.is_all else None
    return Seen(of_this_set or (False if trained.seen.is_all else None), trained_on or none, chosen_on or none, trained_too, told)


def _other_resize(trained: TrainedModel, shards: Shards, seen: Seen) -> tuple[str, ...]:
    """The rules by which the training resized the set that these shards are of; none where theirs is among them, or it is a new set."""
    trained_on: Mapping[str, Mapping[str, str]] = trained.about.get("trained_on", {})
    named = [name for name, said in trained_on.items() if said["data_set"] == shards.manifest["data_set"]]
    alike = [name for name in named if name in trained.cuttings]
    if named and not alike:  # the model that its run started from was trained on it, by a rule that is not known
        return ()
    if not trained_on:  # an imported model names no data set, but its label does: MOS_zscore is KonIQ-10k's
        alike = [name for name, scale in trained.scales.items() if scale.label == shards.label]
    if not alike and seen.trained_on_set:  # its pictures are known, but not of which of the sets they are
        alike = list(trained.cuttings)
    rules = sorted({trained.cuttings[name].resize for name in alike})
    return () if Cutting.of(shards).resize in rules else tuple(rules)


def _trained_too(trained: TrainedModel, own: str, shards: Shards, images: np.ndarray) -> int | None:
    """How many of `images` are in train, or show a content that is, in the split of the run; None where that split is no more."""
    try:
        split, parts = shards.split(trained.about["trained_on"][own]["split"])
    except ShardError:
        return None
    before = NO_FILES if trained.seen is None else trained.seen.trained_on.view(np.uint64)
    return len(Member(own, shards, split, parts, Scale(shards.label), 1.0, before).trained_too(images))


def _own_name(trained: TrainedModel, shards: Shards) -> str | None:
    """What the run called these very shards; None when it was not trained on them."""
    sets: Mapping[str, Mapping[str, str]] = trained.about.get("trained_on", {})
    return next((name for name, said in sets.items() if said["data_fingerprint"] == shards.fingerprint), None)


def describe(weights: Path, sets: Sequence[RatedSet], panels: Mapping[str, Mapping[str, Any]]) -> str:
    """The cross-data-set table, and below it what each of its rows is about."""
    lines = [f"model: {weights}", "", cross_table(panels), ""]
    for one in sets:
        indent, panel = " " * len(one.name), panels[one.name]
        which = "all images" if one.split is None else f"{one.part} of split '{one.split}'"
        turned = "; the model's scores are turned" * one.is_turned
        lines.append(f"{one.name}: {which}; {one.shards.label}{turned}; resize {one.resize}")
        lines.append(f"{indent}  {one.seen.told}")
        if one.other_resize:
            rules = " or ".join(one.other_resize)
            lines.append(
                f"{indent}  WARNING: its pictures were resized by {one.resize}, but in training by {rules}: its figures may be too low; "
                f"build the set once more, with --resize {one.other_resize[0]}, in another folder"
            )
        if how := what_was_drawn(panel["images"], panel["contents"], panel["effective_contents"]):
            lines.append(f"{indent}  intervals: {how}")
    return "\n".join(lines)


def _about(one: RatedSet) -> dict[str, Any]:
    """What evaluation.json says of a set, besides its figures."""
    return {
        "shards": str(one.shards.folder),
        "data_fingerprint": one.shards.fingerprint,
        "split": one.split,
        "part": one.part,
        "label": str(one.shards.label),
        "scores_on": str(one.scale.label),
        "turned": one.is_turned,
        "resize": one.resize,
        "other_resize_in_training": list(one.other_resize),
        "trained_on_set": one.seen.trained_on_set,
        "trained_on_images": one.seen.trained_on_images,
        "chosen_on_images": one.seen.chosen_on_images,
        "trained_too": one.seen.trained_too,
    }


def _refuse_older_results(folder: Path) -> None:
    if (folder / RESULTS).exists():
        raise ConfigError(f"{folder}: holds an evaluation already; name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
