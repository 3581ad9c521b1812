"""What a build will write, decided from the table and the picture headers before a pixel is read.

Which image goes into which shard, the layout and the sizes are all here, so that writing a shard is a pure function of its
task and the pictures: the bytes are the same for any number of workers, and after any interruption.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.datasets import DataSet, Row, naming, refuse_missing_pictures
from shards.manifest import FORMAT, Layout, ShardError
from shards.patches import resized_size
from shards.photographs import photograph_size
from shards.splits import RATIO, all_splits, split_table

_LONGEST_SIDE = np.iinfo(np.uint16).max  # the index keeps sizes and corners in 16 bits
_MOST_PATCHES = 10_000  # a row of the index names every one, and all are in memory when they are cut
_LARGEST_PLANE = 2**31 - 2**16  # bytes; Linux reads no more at once, and the index keeps lengths in 32 bits


@dataclass(frozen=True)
class Settings:
    """What a user may choose about a build."""

    patch_size: int = 224
    patches: int = 25
    seed: int = 0
    layout: str = "auto"  # canvas, patches, or auto: whichever takes fewer bytes
    resize: str | None = None  # None: the data set's own rule
    shard_bytes: int = 128 << 20  # pixels per shard, about, before a codec packs them; one image more than fits is never split
    rounds: int | None = None  # numbered splits; None: ten where there is no official split
    ratio: str = RATIO  # of those rounds, in percent: train/val/test, or train/test
    codec: str = "raw"  # a name of shards.codecs


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of the plan: its row, how long its file is, its upright size and the size at which it is stored."""

    row: Row
    file_bytes: int
    size: tuple[int, int]
    stored: tuple[int, int]


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to write one shard."""

    file: str
    layout: Layout
    seed: int
    pictures: tuple[Picture, ...]

    def digest(self) -> str:
        """A hash of everything that decides the bytes of the shard, but for the pictures' contents."""
        rows = [(p.row.id, p.row.opinion, p.row.std, p.row.group, p.file_bytes, p.size, p.stored) for p in self.pictures]
        return _digest([FORMAT, asdict(self.layout), self.seed, rows])


@dataclass(frozen=True)
class Plan:
    """The whole build before a pixel is read."""

    data_set: DataSet
    settings: Settings
    resize: str
    layout: Layout
    tasks: tuple[ShardTask, ...]
    splits: dict[str, dict[str, str]]

    @property
    def pictures(self) -> list[Picture]:
        return [picture for task in self.tasks for picture in task.pictures]

    def choices(self) -> dict[str, Any]:
        """What the user chose, and cannot choose again while a build goes on."""
        return {
            "data set": self.data_set.name,
            "label": asdict(self.data_set.label),
            "resize": self.resize,
            "layout": self.layout.name,
            "codec": self.layout.codec,
            "size": self.layout.patch_size,
            "number of patches": self.layout.patches,
            "seed": self.settings.seed,
            "shard size": self.settings.shard_bytes,
            "number of rounds": self.settings.rounds,
            "ratio": self.settings.ratio,
        }

    def digest(self) -> str:
        """A hash of everything that decides the shard folder, but for the pictures' contents."""
        splits = {name: hashlib.sha256(split_table(parts)).hexdigest() for name, parts in self.splits.items()}  # one in memory at a time
        return _digest([self.choices(), [task.digest() for task in self.tasks], splits])


def plan_build(data_set: DataSet, settings: Settings) -> Plan:
    """Reads every picture's header, chooses the layout and deals the images to shards.

    Raises ShardError for the first picture that is missing or unreadable, and for settings that make no sense.
    """
    if settings.patch_size < 8 or not 1 <= settings.patches <= _MOST_PATCHES:
        raise ShardError(
            f"--size {settings.patch_size} --patches {settings.patches}: a patch is at least 8 pixels wide, "
            f"and an image has at least one and at most {_MOST_PATCHES:,}"
        )
    rule = settings.resize or data_set.resize
    try:
        splits = all_splits(data_set.rows, settings.seed, settings.rounds, settings.ratio)
    except ShardError as error:
        raise ShardError(f"{data_set.table}: {error}") from None
    refuse_missing_pictures(data_set)
    pictures = []
    for row in tqdm(data_set.rows, "picture headers", leave=False, delay=2, unit=" images", dynamic_ncols=True):
        with naming(row):
            size = photograph_size(row.file)
        stored = resized_size(*size, rule, settings.patch_size)
        if max(stored) > _LONGEST_SIDE or 3 * math.prod(stored) > _LARGEST_PLANE:
            raise ShardError(
                f"{row.file}: {size[0]}x{size[1]} would be stored at {stored[0]}x{stored[1]}, and a side has at most {_LONGEST_SIDE:,} "
                f"pixels, all of them 2 GiB; choose a smaller --resize, or take its row out of the table"
            )
        pictures.append(Picture(row, row.file.stat().st_size, size, stored))
    layout = _choose_layout(pictures, settings)
    tasks = [
        ShardTask(f"shard-{number:06d}.tar", layout, settings.seed, tuple(share))
        for number, share in enumerate(dealt(pictures, layout, settings.shard_bytes))
    ]
    return Plan(data_set, settings, rule, layout, tuple(tasks), splits)


def _choose_layout(pictures: Sequence[Picture], settings: Settings) -> Layout:
    choices = [Layout(name, settings.patch_size, settings.patches, settings.codec) for name in ("canvas", "patches")]
    if settings.layout != "auto":
        return next(choice for choice in choices if choice.name == settings.layout)
    return min(choices, key=lambda layout: sum(layout.image_bytes(*picture.stored) for picture in pictures))


def dealt(pictures: Sequence[Picture], layout: Layout, shard_bytes: int) -> Iterator[list[Picture]]:
    """The images of each shard in turn."""
    share: list[Picture] = []
    filled = 0
    for picture in pictures:
        needed = layout.image_bytes(*picture.stored)
        if share and filled + needed > shard_bytes:
            yield share
            share, filled = [], 0
        share.append(picture)
        filled += needed
    yield share


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
