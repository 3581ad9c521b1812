"""A trained model in a folder, with all that is needed to score pictures with it.

best/
  model.safetensors    the weights; their metadata say on what scale they speak and how patches are cut
  config.yaml          every setting of the run
  seen.safetensors     which pictures it was trained and chosen on (see seen); nobody knows where it is missing
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dist_train.collection import Scale
from dist_train.config import Config, load_config, save_config
from dist_train.errors import ConfigError
from dist_train.model import HyperIQA
from dist_train.seen import SEEN, SeenFiles
from dist_train.tensor_files import digest_of, read_about, save_tensors
from shards.manifest import Label, Shards, is_plain_name

WEIGHTS, SETTINGS = "model.safetensors", "config.yaml"


@dataclass(frozen=True)
class Cutting:
    """How the patches of a picture are cut: what `shards.patches` needs to know besides the picture."""

    patch_size: int
    patches: int
    resize: str
    seed: int

    @classmethod
    def of(cls, shards: Shards) -> Cutting:
        """As the shards were built."""
        return cls(shards.layout.patch_size, shards.layout.patches, shards.manifest["resize"]["rule"], shards.manifest["seed"])


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, the config it was trained with, and what its scores mean."""

    model: HyperIQA
    config: Config
    scales: Mapping[str, Scale]  # by the name of the data set; a model of several speaks on none of theirs
    cuttings: Mapping[str, Cutting]  # likewise
    about: Mapping[str, Any]
    seen: SeenFiles | None  # None where nobody knows

    @property
    def patch_size(self) -> int:
        """Width and height, in pixels, of the patches that the model takes: those of every set."""
        return next(iter(self.cuttings.values())).patch_size


def build_model(config: Config, patch_size: int, output_scale: tuple[float, float]) -> HyperIQA:
    """The model that a config describes, with random weights. `output_scale` is (low, high) of its scores."""
    model = config.model
    return HyperIQA(
        model.backbone,
        patch_size,
        output_scale,
        model.dropout,
        model.stochastic_depth,
        model.batch_norm == "frozen",
        model.stages,
        model.stage_attention,
        model.gradient_checkpointing,
    )


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Config,
    scales: Mapping[str, Scale],
    cuttings: Mapping[str, Cutting],
    more: Mapping[str, Any],
) -> None:
    """Writes the folder, each file at once, the weights last. `more` is told with the weights, as JSON, and so is their SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / SETTINGS)
    of_sets = {name: {key: asdict(value) for key, value in of.items()} for name, of in (("scales", scales), ("cuttings", cuttings))}
    save_tensors(folder / WEIGHTS, weights, {**more, **of_sets, "weights": digest_of(weights)})


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a file of `save_model`, and what was told with them.

    Raises ValueError where they are not as they were written.
    """
    about, weights = read_about(path), load_file(path)
    if about["weights"] != digest_of(weights):
        raise ValueError("a number in it was changed after it was written: the SHA-256 is another")
    return weights, about


def open_model(place: Path) -> TrainedModel:
    """The model in `place`: a run folder, a model folder, or the weights file in one. Nothing is unpickled.

    Raises ConfigError when there is none, or when it is not one of ours.
    """
    path = find_weights(place)
    config = load_config(path.with_name(SETTINGS))
    try:
        weights, about = read_weights(path)
        scales = {name: Scale(**{**said, "label": Label(**said["label"])}) for name, said in about["scales"].items()}
        if odd := [name for name in (*scales, *about.get("trained_on", ())) if not is_plain_name(name)]:
            raise ValueError(f"'{odd[0]}' cannot be part of a file name")
        cuttings = {name: Cutting(**about["cuttings"][name]) for name in scales}
        model = build_model(config, next(iter(cuttings.values())).patch_size, (0.0, 100.0))
        model.load_state_dict(weights)  # the scale of the scores is among the buffers
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise ConfigError(f"{path}: holds no model of this version ({error}); train it again, or take another") from error
    known = path.with_name(SEEN)
    return TrainedModel(model.eval(), config, scales, cuttings, about, SeenFiles.read(known) if known.is_file() else None)


def find_weights(place: Path) -> Path:
    """The weights file that a run folder, a model folder or the file itself names. Raises ConfigError when there is none."""
    for path in (place, place / WEIGHTS, place / "best" / WEIGHTS):
        if path.is_file() and path.name == WEIGHTS and path.with_name(SETTINGS).is_file():  # a checkpoint of training has none
            return path
    raise ConfigError(
        f"{place}: holds no trained model ({WEIGHTS}, or best/{WEIGHTS} of a run that has judged an epoch); name a run folder or its best/"
    )
