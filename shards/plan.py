"""What a build will write, decided from the table and the picture headers before a pixel is read.

Which image goes into which shard, the layout and the sizes are all here, so that writing a shard is a pure function of its
task and the pictures: the bytes are the same for any number of workers, and after any interruption.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from shards.datasets import DataSet, naming, refuse_missing_pictures
from shards.manifest import FORMAT, Layout, ShardError, pieces_sha256
from shards.patches import LONGEST_SIDE, is_too_large, resized_size
from shards.photographs import photograph_size
from shards.progress import progress_bar
from shards.rows import Row, Rows
from shards.scratch import Scratch
from shards.splits import RATIO, all_splits, split_table

_MOST_PATCHES = 10_000  # a row of the index names every one, and all are in memory when they are cut


Header = tuple[int, int, int, int, int]  # the bytes of a file, its upright width and height, those at which it is stored


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
    path: str  # of the file, from the data set's root on, with slashes
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
        rows = [(p.row.id, p.row.opinion, p.row.std, p.row.group, p.path, p.file_bytes, p.size, p.stored) for p in self.pictures]
        return _digest([FORMAT, asdict(self.layout), self.seed, rows])


class PlannedPictures(Sequence[Picture]):
    """The images of a plan in the order of their ids, on the disk. A slice is a list of them."""

    def __init__(self, rows: Rows, root: Path, headers: Iterable[Header]) -> None:
        """`headers` has one for each of `rows`, whose pictures are named from `root` on."""
        self._rows, self._root, self._scratch = rows, root, Scratch()
        self._scratch.execute("create table headers (file_bytes, width, height, stored_width, stored_height)")
        self._scratch.executemany("insert into headers values (?, ?, ?, ?, ?)", headers)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, number: int) -> Picture: ...
    @overload
    def __getitem__(self, number: slice) -> list[Picture]: ...
    def __getitem__(self, number: int | slice) -> Picture | list[Picture]:
        if isinstance(number, int):
            number = range(len(self))[number]
            return self[number : number + 1][0]
        first, last, step = number.indices(len(self))
        headers = self._scratch.execute("select * from headers where rowid > ? and rowid <= ? order by rowid", (first, last))
        found = [
            Picture(row, _path_from(self._root, row.file), file_bytes, (width, height), (stored_width, stored_height))
            for row, (file_bytes, width, height, stored_width, stored_height) in zip(self._rows[first:last], headers, strict=True)
        ]
        return found[::step]

    def bytes_in(self, layout: Layout) -> Iterator[int]:
        """Bytes of the pixels of each image."""
        return (
            layout.image_bytes(*stored)
            for stored in self._scratch.execute("select stored_width, stored_height from headers order by rowid")
        )


@dataclass(frozen=True)
class Tasks(Sequence[ShardTask]):
    """The shards to be written, each made up of its pictures when it is asked for. A slice holds no more than that."""

    pictures: PlannedPictures
    layout: Layout
    seed: int
    shares: Sequence[tuple[str, range]]  # the file of each shard and the numbers of its images

    def __len__(self) -> int:
        return len(self.shares)

    @overload
    def __getitem__(self, number: int) -> ShardTask: ...
    @overload
    def __getitem__(self, number: slice) -> Tasks: ...
    def __getitem__(self, number: int | slice) -> ShardTask | Tasks:
        if isinstance(number, slice):
            return replace(self, shares=self.shares[number])
        file, images = self.shares[number]
        return ShardTask(file, self.layout, self.seed, tuple(self.pictures[images.start : images.stop]))

    def where(self, holds: Callable[[ShardTask], bool]) -> Tasks:
        """The tasks of which something holds."""
        return replace(self, shares=[share for share, task in zip(self.shares, self, strict=True) if holds(task)])

    @property
    def images(self) -> int:
        """How many images all of them have."""
        return sum(len(images) for _, images in self.shares)


@dataclass(frozen=True)
class Plan:
    """The whole build before a pixel is read."""

    data_set: DataSet
    settings: Settings
    resize: str
    layout: Layout
    pictures: PlannedPictures
    tasks: Tasks
    splits: dict[str, np.ndarray]  # by name, as shards.splits says

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
        return _digest([self.choices(), [task.digest() for task in self.tasks], self.split_sha256])

    @cached_property
    def split_sha256(self) -> dict[str, str]:
        """The SHA-256 of the table of each split."""
        return {name: pieces_sha256(split_table(self.data_set.rows.ids(), parts)) for name, parts in self.splits.items()}


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
    resized_size(1, 1, rule, settings.patch_size)  # a rule that is none is no matter of a picture
    try:
        splits = all_splits(data_set.rows, settings.seed, settings.rounds, settings.ratio)
    except ShardError as error:
        raise ShardError(f"{data_set.table}: {error}") from None
    refuse_missing_pictures(data_set)
    pictures = PlannedPictures(data_set.rows, data_set.root, _headers(data_set.rows, rule, settings.patch_size))
    layout = _choose_layout(pictures, settings)
    shares = [(f"shard-{number:06d}.tar", images) for number, images in enumerate(dealt(pictures.bytes_in(layout), settings.shard_bytes))]
    return Plan(data_set, settings, rule, layout, pictures, Tasks(pictures, layout, settings.seed, shares), splits)


def _path_from(root: Path, file: Path) -> str:
    """The same wherever the root lies and however it is written; a file that the table names elsewhere, by its whole path, keeps that."""
    whole, file = Path(os.path.abspath(root)), Path(os.path.abspath(file))
    return (file.relative_to(whole) if file.is_relative_to(whole) else file).as_posix()


def _headers(rows: Rows, rule: str, patch_size: int) -> Iterator[Header]:
    for row in progress_bar("picture headers", len(rows), rows, leave=False, delay=2):
        with naming(row):
            size = photograph_size(row.file)
            stored = resized_size(*size, rule, patch_size)
            if is_too_large(*stored):
                raise ShardError(
                    f"{row.file}: {size[0]}x{size[1]} would be stored at {stored[0]}x{stored[1]}, and a side has at most "
                    f"{LONGEST_SIDE:,} pixels, all of them 2 GiB; choose a smaller --resize, or take its row out of the table"
                )
        yield row.file.stat().st_size, *size, *stored


def _choose_layout(pictures: PlannedPictures, settings: Settings) -> Layout:
    choices = [Layout(name, settings.patch_size, settings.patches, settings.codec) for name in ("canvas", "patches")]
    if settings.layout != "auto":
        return next(choice for choice in choices if choice.name == settings.layout)
    return min(choices, key=lambda layout: sum(pictures.bytes_in(layout)))


def dealt(image_bytes: Iterable[int], shard_bytes: int) -> Iterator[range]:
    """The numbers of the images of each shard in turn, from the bytes of each image."""
    first = number = filled = 0
    for number, needed in enumerate(image_bytes):
        if number > first and filled + needed > shard_bytes:
            yield range(first, number)
            first, filled = number, 0
        filled += needed
    yield range(first, number + 1)


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
