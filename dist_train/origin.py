"""The model that a run starts from (model.start_from): what the run must know of it, and keeps for when that model is gone.

RUN/
  origin.safetensors    what it had seen, as in seen.safetensors, and in the metadata the rest of `Origin`

All its weights and buffers are taken over but for `output_scale`: what the target network says of the worst and of the best picture
on the old label is mapped onto the worst and the best of the new one. So a MOS of 1 to 5 begins where one of 0 to 100 has ended, and
a DMOS does not begin upside down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from dist_train.collection import SPAN, Collection
from dist_train.config import Config, Model
from dist_train.errors import ConfigError
from dist_train.loss import leaves_scale_open
from dist_train.model import HyperIQA
from dist_train.model_folder import TrainedModel, find_weights, open_model
from dist_train.seen import SeenFiles
from dist_train.status import how_far_the_run_is
from dist_train.tensor_files import read_about

KEPT = "origin.safetensors"


@dataclass(frozen=True)
class Origin:
    """What is known of a model that a run starts from, besides its weights."""

    place: str  # as model.start_from names it
    epoch: int | None
    weights: str  # their SHA-256
    architecture: Mapping[str, Any]
    worst: float  # what its target network says of the worst picture on the label that it was trained on ...
    best: float  # ... and of the best
    trained_on: Mapping[str, Mapping[str, str]]  # its data sets by name, and those of models before it, as run_folder.about_data has them
    doubt: str | None  # that its run had not ended
    is_open: bool  # its loss left the scale of its scores open
    seen: SeenFiles

    @classmethod
    def of(cls, place: Path) -> Origin:
        """Raises ConfigError when there is no model of ours in `place`, as `open_model` does."""
        trained = open_model(place)
        worst, best = _worst_and_best(trained)
        return cls(
            str(place),
            trained.about.get("epoch"),
            trained.about["weights"],
            _architecture(trained.config.model, trained.patch_size),
            worst,
            best,
            trained.about.get("trained_on", {}),
            how_far_the_run_is(find_weights(place)),
            leaves_scale_open(trained.config.loss),
            trained.seen or SeenFiles.unknown(),
        )

    @classmethod
    def read(cls, path: Path) -> Origin:
        """As it was saved in `path`. Raises ConfigError when something else lies there."""
        try:
            return cls(**read_about(path)["origin"], seen=SeenFiles.read(path))
        except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"{path}: was damaged ({error}); delete it, and what it held is read from model.start_from again, where that model is there"
            ) from error

    def save(self, path: Path) -> None:
        """Replaces the file `path` at once."""
        self.seen.save(path, {"origin": {name: value for name, value in vars(self).items() if name != "seen"}})

    def __str__(self) -> str:
        epoch = "" if self.epoch is None else f", epoch {self.epoch}"
        return f"{self.place}{epoch}, trained on {', '.join(self.trained_on) or 'nobody knows what'}; with a new Adam and schedule"

    @property
    def files(self) -> np.ndarray:
        """The files that it was trained on, as `Member.files` has them: uint64 [files]."""
        return self.seen.trained_on.view(np.uint64)

    def output_scale(self, worst: float, best: float) -> tuple[float, float]:
        """What the target network's 0 and 100 become where its own worst and best are to be `worst` and `best`."""
        of_one = (best - worst) / (self.best - self.worst)
        return worst - self.worst * of_one, worst + (100 - self.worst) * of_one

    def refuse_another_architecture(self, model: Model, patch_size: int) -> None:
        """Raises ConfigError, with all that differs, when its weights do not fit a run of these settings."""
        ours = _architecture(model, patch_size)
        differences = [f"{key} is {ours[key]} here, {theirs} there" for key, theirs in self.architecture.items() if ours[key] != theirs]
        if differences:
            raise ConfigError(
                f"model.start_from={self.place}: that model is built otherwise than this run's ({'; '.join(differences)}); "
                f"set here what is set there (a patch size by building the set once more with --size), or start from another model"
            )

    def worth_knowing(self, collection: Collection) -> list[str]:
        """What makes the figures of a run on `collection` weaker than they look, because it starts from this model, in words."""
        notes = [self.doubt] if self.doubt else []
        if self.is_open:
            notes.append("the model that this run starts from was trained by a loss that leaves its scale open: scores may begin on any")
        if not self.seen.is_all:
            notes.append("nobody knows all that the model was trained on that this run starts from: images of val and test may be among it")
        known = {said["data_set"] for said in self.trained_on.values()}
        for member in collection.members:
            for part in ("val", "test"):
                if len(seen := member.in_train_before(member.parts[part])):
                    notes.append(
                        f"WARNING: {member.name}: the model that this run starts from was trained on {len(seen):,} of the "
                        f"{len(member.parts[part]):,} images in {part}, such as '{member.shards.ids[seen[0]]}': figures of {part} are too "
                        f"good; put these images into train, or start from another model"
                    )
            test = member.parts["test"]
            if chosen := int(np.isin(member.files[test], self.seen.chosen_on.view(np.uint64)).sum()):
                notes.append(
                    f"WARNING: {member.name}: the epoch of the model that this run starts from was chosen on {chosen:,} of the "
                    f"{len(test):,} images in test: figures of test are too good; put these images into train or val, or start from "
                    f"another model"
                )
            name = member.shards.manifest["data_set"]
            if name in known and not np.isin(member.files, self.files).any():  # as KonIQ-10k is distributed at two sizes
                notes.append(
                    f"WARNING: {member.name}: the model that this run starts from was trained on other files called {name}: copies of "
                    f"images in val and test may be among them"
                )
        return notes

    def fill(self, model: HyperIQA) -> None:
        """Gives `model` the weights and buffers, with an output scale of its own.

        Raises ConfigError when the model is gone, or is another than was planned for.
        """
        trained = open_model(Path(self.place))
        if trained.about["weights"] != self.weights:
            raise ConfigError(
                f"model.start_from={self.place}: holds other weights than when this run began; start again in another run.folder"
            )
        model.load_state_dict(trained.model.state_dict() | {"output_scale": model.output_scale})


def open_origin(config: Config) -> Origin | None:
    """What is known of the model that a run starts from: as its run folder keeps it, else as the model says; None without one."""
    place, kept = config.model.start_from, config.run.folder / KEPT
    if place is None:
        return None
    if kept.is_file() and (origin := Origin.read(kept)).place == str(place):
        return origin
    return Origin.of(place)


def all_trained_on(own: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """The data sets of a run, and those of the models before it, by name; others of an equal name get a number."""
    found = dict(own)
    for name, said in before.items():
        if said not in found.values():
            free = (f"{name}-{number}" for number in count(2))
            found[name if name not in found else next(each for each in free if each not in found)] = said
    return found


def _architecture(model: Model, patch_size: int) -> dict[str, Any]:
    """The settings that decide which weights there are, and what they mean."""
    settings = {f"model.{name}": getattr(model, name) for name in ("backbone", "stages", "stage_attention")}
    return settings | {"the patch size of the shards": patch_size}


def _worst_and_best(trained: TrainedModel) -> tuple[float, float]:
    """What the target network says at the ends of the label. Where those are not stated, it is taken to speak on 0 to 100."""
    offset, of_one = trained.model.output_scale.tolist()
    label = next(iter(trained.scales.values())).label
    if len(trained.scales) > 1:
        low, high, rises = -SPAN, SPAN, True
    elif label.low is None or label.high is None:
        low, high, rises = offset, offset + 100 * of_one, label.higher_is_better == (of_one > 0)
    else:
        low, high, rises = label.low, label.high, label.higher_is_better
    said = [float(f"{(end - offset) / of_one:.6g}") for end in (low, high)]  # the buffer is in float32, whose last digits are none
    return (said[0], said[1]) if rises else (said[1], said[0])
