"""Scores for pictures that nobody has rated: decoded, resized and cut as the training shards were, of several sets those of one.

A picture of the training shards gets the patches it has there, when it is named by the same path, and so the same score.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dist_train.device import fix_arithmetic
from dist_train.errors import ConfigError
from dist_train.living import refuse_long_temporary_folder
from dist_train.model_folder import Cutting, TrainedModel
from shards.datasets import image_id
from shards.manifest import ShardError
from shards.patches import LONGEST_SIDE, cut, is_too_large, patch_boxes, resize, resized_size
from shards.photographs import SUFFIXES, decode_photograph
from shards.tables import csv_text

_TABLES = (".csv", ".json", ".txt", ".xlsx")


class Prediction(NamedTuple):
    """A picture's name, its score on the scale of the model's label, the spread of its patch scores, and its id in shards."""

    picture: str
    score: float
    spread: float
    id: str


class _Picture(NamedTuple):
    path: Path
    name: str  # as it is written into the table: below the folder that was named
    id: str  # as it would be in shards


class _Pictures(Dataset[tuple[int, torch.Tensor | str]]):
    """Patches of picture `number`: uint8 [patches, 3, size, size]; or why there are none."""

    def __init__(self, pictures: Sequence[_Picture], cutting: Cutting) -> None:
        self._pictures = pictures
        self._cutting = cutting

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, number: int) -> tuple[int, torch.Tensor | str]:
        try:
            return number, torch.from_numpy(_patches(self._pictures[number], self._cutting)).movedim(-1, 1)
        except (ShardError, OSError) as error:
            return number, str(error)


def predict(
    trained: TrainedModel,
    data_set: str,
    pictures: Sequence[Path],
    device: torch.device | str = "cpu",
    batch_images: int = 4,
    workers: int = 0,
) -> Iterator[Prediction | str]:
    """A prediction per picture, in order; for a picture that cannot be scored, the sentence that says why. In float32.

    `pictures` are files, or folders with all pictures below them. They are cut as those of `data_set`, one of the sets that the model
    was trained on, and scores are told on its scale. `workers` are loader processes; 0 decodes in this one.
    Raises ConfigError, at the first prediction, where there is no such picture or folder.
    """
    if workers:
        refuse_long_temporary_folder()
    fix_arithmetic("no")
    named = [picture for place in pictures for picture in _found(place)]
    scale = trained.scales[data_set]
    loader = DataLoader(_Pictures(named, trained.cuttings[data_set]), batch_images, num_workers=workers, collate_fn=list)
    model = trained.model.to(device)
    with tqdm(total=len(named), unit=" images", desc="predict", dynamic_ncols=True, disable=not sys.stderr.isatty()) as bar:
        for batch in loader:
            readable = [patches for _, patches in batch if isinstance(patches, torch.Tensor)]
            scores: Iterator[np.ndarray] = iter(())
            if readable:
                with torch.inference_mode():
                    found = model(torch.cat(readable).to(device)).double().cpu().numpy()
                scores = iter(scale.to_opinions(found).reshape(len(readable), -1))
            for number, patches in batch:
                if isinstance(patches, str):
                    yield patches
                else:
                    of_patches = next(scores)
                    yield Prediction(named[number].name, float(of_patches.mean()), float(of_patches.std()), named[number].id)
            bar.update(len(batch))


def write_predictions(predictions: Iterator[Prediction | str], file: TextIO) -> int:
    """image, score, spread, id, a row per picture, as csv; what cannot be scored is said on stderr and counted.

    The id is what the csv files of training and evaluation call `image`.
    """
    file.write(csv_text([["image", "score", "spread", "id"]]))
    failed = 0
    for found in predictions:
        if isinstance(found, str):
            failed += 1
            print(f"error: {found}", file=sys.stderr)
        else:
            file.write(csv_text([[found.picture, f"{found.score:.6g}", f"{found.spread:.4g}", found.id]]))
    return failed


def _found(place: Path) -> list[_Picture]:
    """The picture, or every picture below the folder, in the order of their names."""
    if place.is_file():
        if place.suffix.lower() in _TABLES:
            raise ConfigError(f"{place}: is no picture; name pictures, or the folder of the pictures that it is about")
        return [_Picture(place, str(place), image_id(place.name, str(place)))]
    if not place.is_dir():
        raise ConfigError(f"{place}: there is no such picture or folder")
    names = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not names:
        raise ConfigError(f"{place}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return [_Picture(place / name, name, image_id(name, str(place / name))) for name in names]


def _patches(picture: _Picture, cutting: Cutting) -> np.ndarray:
    """uint8 [patches, size, size, 3], cut as the shards cut them."""
    pixels = decode_photograph(picture.path.read_bytes(), picture.path)
    width, height = resized_size(pixels.shape[1], pixels.shape[0], cutting.resize, cutting.patch_size)
    if is_too_large(width, height):
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ShardError(
            f"{picture.path}: {size} would become {width}x{height} before patches are cut, more than {LONGEST_SIDE:,} pixels on a side "
            f"or 2 GiB in all; leave it out"
        )
    corners = patch_boxes(picture.id, cutting.seed, width, height, cutting.patch_size, cutting.patches)
    return cut(resize(pixels, width, height), corners, cutting.patch_size)
