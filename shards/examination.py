"""One look at every picture of a data set: can it be decoded, how large is it, of what kind, and what does it look like.

Each file is opened once, in a pool of processes. What is kept is about a kilobyte per picture.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from shards.datasets import DataSet
from shards.duplicates import Look, look_of
from shards.jpeg_files import has_end_marker
from shards.manifest import ShardError
from shards.photographs import DEEP, SUFFIXES, opened, orientation, photograph_size, upright_photograph
from shards.progress import progress_bar
from shards.rows import Row
from shards.workers import WorkerPool

_JPEG = ("JPEG", "MPO")  # the second is what telephones write: a photograph, and a preview or a map of depths behind it
_NEARLY_BLACK = 32  # of 256: what 13 of 16 bits reach
_KINDS = dict.fromkeys(("1", "L", "LA", *DEEP), "grey") | {"P": "palette", "PA": "palette", "CMYK": "CMYK"}


@dataclass(frozen=True)
class PictureFile:
    """What is known of one picture file."""

    missing: bool = False
    problem: str = ""  # why a build would refuse it
    size: tuple[int, int] | None = None  # width and height once upright
    traits: frozenset[str] = frozenset()  # JPEG, open end, turned, grey, palette, CMYK, 16 bits, transparent, animated, dark
    sha256: str = ""  # empty when only the header was read
    look: Look | None = None


@dataclass(frozen=True)
class Examination:
    """A data set and what was seen of it. `pictures` has one entry per row."""

    data_set: DataSet
    pictures: tuple[PictureFile, ...]
    unlisted: tuple[Path, ...]  # pictures in and below the same folders that no row names
    headers_only: bool

    def name(self, file: Path) -> str:
        """The file as a person would call it: from the table's folder on, when it lies below that."""
        folder = self.data_set.table.parent
        return str(file.relative_to(folder) if file.is_relative_to(folder) else file)

    def place(self, row: Row) -> str:
        """The row's picture, and where the table names it."""
        where = row.where.removeprefix(f"{self.data_set.table.parent}{os.sep}")
        return f"{self.name(row.file)} ({where})" if where else self.name(row.file)


def examine(data_set: DataSet, workers: int = 1, headers_only: bool = False) -> Examination:
    """Looks at every picture, in `workers` processes. With `headers_only` nothing is decoded, and duplicates cannot be found."""
    files = [row.file for row in data_set.rows]
    pictures = progress_bar("pictures", len(files), _seen(files, workers, headers_only))
    return Examination(data_set, tuple(pictures), tuple(_unlisted(files)), headers_only)


def picture_at(file: Path, headers_only: bool = False) -> PictureFile:
    """What there is to know of one file. Never raises for a bad one."""
    if not os.path.isfile(file):
        return PictureFile(missing=True)
    try:
        size = photograph_size(file)
        if headers_only:
            return PictureFile(size=size, traits=_traits(file, file))
        content = file.read_bytes()
        picture = upright_photograph(content, file)
        traits = _traits(io.BytesIO(content), file)
    except (ShardError, OSError) as error:
        return PictureFile(problem=str(error).removeprefix(f"{file}: ").split("; ")[0])
    if picture.size != size:
        return PictureFile(problem=f"decodes to {picture.width}x{picture.height}, its header says {size[0]}x{size[1]}")
    if "JPEG" in traits and not has_end_marker(content):
        traits |= {"open end"}
    if "16 bits" in traits and np.asarray(picture).max() < _NEARLY_BLACK:
        traits |= {"dark"}
    return PictureFile(False, "", size, traits, hashlib.sha256(content).hexdigest(), look_of(picture))


def _traits(source: Path | io.BytesIO, file: Path) -> frozenset[str]:
    """In what a picture is unlike an ordinary one. Raises ShardError about `file` where it is damaged behind its first picture."""
    with opened(source, file) as picture:
        found = {_KINDS.get(picture.mode, ""), "JPEG" if picture.format in _JPEG else ""}
        if orientation(picture) in range(2, 9):
            found.add("turned")
        if picture.mode in DEEP or any(";16" in str(tile) for tile in picture.tile):  # Pillow opens 16-bit colour as 8-bit
            found.add("16 bits")
        if picture.has_transparency_data:
            found.add("transparent")
        if getattr(picture, "is_animated", False) and picture.format not in _JPEG:
            found.add("animated")
    return frozenset(found - {""})


def _seen(files: Sequence[Path], workers: int, headers_only: bool) -> Iterator[PictureFile]:
    look = partial(picture_at, headers_only=headers_only)
    with ExitStack() as stack:
        if workers <= 1 or len(files) <= 1:
            yield from map(look, files)
            return
        pool = stack.enter_context(WorkerPool(workers))
        try:
            yield from pool.in_order(look, files, at_once=min(16, -(-len(files) // workers)))
        except BrokenProcessPool as error:
            raise ShardError("a worker process was killed, perhaps for want of memory; run the same with fewer --workers") from error


def _unlisted(files: Sequence[Path]) -> list[Path]:
    """The pictures in and below the folders of `files` that are none of them."""
    listed, folders = set(files), {file.parent for file in files}
    highest = [folder for folder in folders if folders.isdisjoint(folder.parents)]
    return sorted(file for folder in highest for file in _pictures_below(folder) if file not in listed)


def _pictures_below(folder: Path) -> Iterator[Path]:
    """But for what is hidden, or was hidden on a Mac: there each I01.png has a ._I01.png that is no picture."""
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__MACOSX"]
        yield from (Path(place, name) for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."))
