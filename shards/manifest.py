"""What a shard folder holds: described, opened, read at an offset, verified and fingerprinted here.

    koniq10k/
      manifest.json       label, patch size, patches per image, resize rule, layout, decoder, the SHA-256 of every file below
      images.csv          a row per image for people: id, opinion, std, group, width, height, source file and its sha256
      index.npy           a row per image for machines: shard, offset, size, checksums, boxes; memory-mapped
      splits/<name>.csv   id -> train | val | test; a table of your own may be added there, in a file of its own
      shard-000000.tar    ordinary WebDataset members <id>.json and <id>.pixels.npy

`pixels` is uint8 [planes, height, width, 3] and patch k is `pixels[n_k, y_k:y_k+size, x_k:x_k+size]`. Two layouts, one
format: 'patches' stores every patch cut out (a plane per patch), 'canvas' stores the image once (one plane), so that
overlapping patches share their pixels. A checksum per plane makes reading one patch as safe as reading the member.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
PARTS = ("train", "val", "test")
IMAGE_COLUMNS = ("id", "opinion", "std", "group", "width", "height", "enlarged", "source", "sha256")
BUILD_AGAIN = "run the same `python -m shards build` again, which writes only what is missing"
OPEN_FILES = 256  # shards held open at once; a process may usually open 1,024 files


class ShardError(ValueError):
    """Something about photographs, tables or shards is not as it must be: what, where, and what to do."""


@dataclass(frozen=True)
class Label:
    """What the opinions of a data set mean.

    `low` and `high` bound the scale as its makers state it, or are None when nobody stated it.
    """

    name: str
    low: float | None
    high: float | None
    higher_is_better: bool

    def __str__(self) -> str:
        span = "scale not stated" if self.low is None or self.high is None else f"{self.low:g} to {self.high:g}"
        return f"{self.name} ({span}, {'higher' if self.higher_is_better else 'lower'} is better)"


@dataclass(frozen=True)
class Layout:
    """How the patches of one image are stored."""

    name: str
    patch_size: int
    patches: int

    @property
    def planes(self) -> int:
        return self.patches if self.name == "patches" else 1

    def plane_size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) in pixels of one stored plane of an image of the given size."""
        return (self.patch_size, self.patch_size) if self.name == "patches" else (height, width)

    def image_bytes(self, width: int, height: int) -> int:
        """Bytes of the pixels of one image."""
        plane_height, plane_width = self.plane_size(width, height)
        return 3 * self.planes * plane_height * plane_width

    def index_dtype(self) -> np.dtype:
        """A row of index.npy: where the first pixel lies, the plane's size, a CRC-32 per plane, (y, x) per patch."""
        return np.dtype(
            [
                ("shard", "<u4"),
                ("offset", "<u8"),
                ("height", "<u2"),
                ("width", "<u2"),
                ("opinion", "<f8"),
                ("checksums", "<u4", (self.planes,)),
                ("corners", "<u2", (self.patches, 2)),
            ]
        )


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """A short name for exactly these data: a hash of everything in the manifest that decides a score."""
    return _digest_without(manifest, "fingerprint", "versions", "sha256")[:16]


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """A hash of all that the manifest says, versions included."""
    return _digest_without(manifest, "sha256")


def _digest_without(manifest: Mapping[str, Any], *left_out: str) -> str:
    said = {key: value for key, value in manifest.items() if key not in left_out}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces of a megabyte."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class Shards:
    """An opened shard folder. Safe to share with forked workers, reads each patch at its offset."""

    def __init__(self, folder: str | Path) -> None:
        """Opens `folder`: every shard must be there and of the right length, and the index unchanged.

        Raises ShardError naming the first file that is missing, truncated or not ours.
        """
        self.folder = Path(folder)
        self._descriptors: dict[int, int] = {}
        self.manifest = _read_manifest(self.folder)
        self.label = Label(**self.manifest["label"])
        self.layout = Layout(**self.manifest["layout"])
        self.fingerprint: str = self.manifest["fingerprint"]
        self.files: list[dict[str, Any]] = self.manifest["shards"]
        self.built_splits: dict[str, str] = self.manifest["splits"]
        for record in self.files:
            self._check_length(record)
        self.index: np.ndarray = np.load(self._unchanged("index.npy", self.manifest["index_sha256"]), mmap_mode="r", allow_pickle=False)
        assert self.index.dtype == self.layout.index_dtype() and len(self.index) == self.manifest["images"]

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a spawned worker opens the folder anew: descriptors do not travel

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_descriptors", {}).values():
            os.close(descriptor)

    @property
    def opinions(self) -> np.ndarray:
        """One opinion per image, float64 [images], on the scale of `label`."""
        return self.index["opinion"]

    @cached_property
    def ids(self) -> list[str]:
        """One id per image, in the order of the index."""
        return [row["id"] for row in self.image_rows()]

    def image_rows(self) -> Iterator[dict[str, str]]:
        """The rows of images.csv. Raises ShardError when it is missing or was changed."""
        with self._unchanged("images.csv", self.manifest["images_sha256"]).open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)

    def split_names(self) -> list[str]:
        """The splits that the build wrote, and those that somebody added."""
        return sorted({*self.built_splits, *(path.stem for path in (self.folder / "splits").glob("*.csv"))})

    def split(self, name: str | None = None) -> tuple[str, dict[str, np.ndarray]]:
        """The split's name and, for each of train, val and test, the image numbers of that part, ascending.

        Without a name: the official split when there is one, else the first round.
        Raises ShardError when there is no such split, when it names an unknown image or part, or one image twice, and
        when the build wrote it and it has been changed since: a split of your own goes into a file of its own.
        """
        names = self.split_names()
        chosen = name or ("official" if "official" in names else "round-01")
        if chosen not in names:
            raise ShardError(f"{self.folder}: there is no split '{chosen}'; there are: {', '.join(names) or 'none'}")
        path = self.folder / "splits" / f"{chosen}.csv"
        if chosen in self.built_splits:
            self._unchanged(
                f"splits/{chosen}.csv", self.built_splits[chosen], "; a split of your own goes into another file of that folder"
            )
        number_of = {image_id: number for number, image_id in enumerate(self.ids)}
        parts: dict[str, list[int]] = {part: [] for part in PARTS}
        seen: set[str] = set()
        for line, row in _split_rows(path):
            image_id, part = row.get("id"), row.get("part")
            if image_id not in number_of or part not in parts:
                raise ShardError(
                    f"{path}, line {line}: '{image_id},{part}' names no image of this folder, or no part of a split "
                    f"({', '.join(PARTS)}); the columns are id and part, and images.csv lists the ids"
                )
            if image_id in seen:
                raise ShardError(f"{path}, line {line}: image '{image_id}' stands there a second time; take one of its rows out")
            seen.add(image_id)
            parts[part].append(number_of[image_id])
        return chosen, {part: np.array(sorted(numbers), dtype=np.int64) for part, numbers in parts.items()}

    def read_patches(self, image: int, patches: Sequence[int]) -> np.ndarray:
        """Some patches of one image, verified: uint8 [len(patches), patch_size, patch_size, 3].

        `image` counts from 0 in the order of the index, and `patches` name stored patches, counted from 0.
        Raises ShardError when the file ends early or a byte is not the one that was written.
        """
        if self.layout.name == "patches":
            return np.stack([self._read_plane(image, patch) for patch in patches])
        canvas, size = self._read_plane(image, 0), self.layout.patch_size
        corners = self.index["corners"][image]
        return np.stack([canvas[y : y + size, x : x + size] for y, x in (corners[patch].astype(int) for patch in patches)])

    def _read_plane(self, image: int, plane: int) -> np.ndarray:
        row = self.index[image]
        height, width = int(row["height"]), int(row["width"])
        length = 3 * height * width
        path = self._path(int(row["shard"]))
        try:
            content = os.pread(self._descriptor(int(row["shard"])), length, int(row["offset"]) + plane * length)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); see that the disk is there, then go on") from error
        if len(content) != length or zlib.crc32(content) != int(row["checksums"][plane]):
            raise ShardError(
                f"{path}: image '{self.ids[image]}' is damaged (its checksum does not match); delete this shard and {BUILD_AGAIN}"
            )
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)

    def _descriptor(self, shard: int) -> int:
        if shard not in self._descriptors:
            if len(self._descriptors) == OPEN_FILES:
                os.close(self._descriptors.pop(next(iter(self._descriptors))))  # the one opened first
            self._descriptors[shard] = os.open(self._path(shard), os.O_RDONLY)
        return self._descriptors[shard]

    def _path(self, shard: int) -> Path:
        name: str = self.files[shard]["file"]
        return self.folder / name

    def _check_length(self, record: Mapping[str, Any]) -> None:
        path = self.folder / record["file"]
        found = path.stat().st_size if path.is_file() else None
        if found != record["bytes"]:
            state = "is missing" if found is None else f"has {found} bytes, not {record['bytes']}"
            raise ShardError(f"{path}: {state}; {BUILD_AGAIN}")

    def _unchanged(self, name: str, sha256: str, hint: str = "") -> Path:
        """The path of a file of this folder, once it is known to be as the build wrote it."""
        path = self.folder / name
        try:
            found = file_sha256(path)
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror}); {BUILD_AGAIN}") from error
        if found != sha256:
            raise ShardError(f"{path}: was changed after it was written (its SHA-256 is another); {BUILD_AGAIN}{hint}")
        return path


def _split_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            return [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ShardError(f"{path}: is not a csv file in UTF-8 ({error}); save it as one") from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        begun = (folder / ".build").is_dir()
        hint = f"an unfinished build lies there: {BUILD_AGAIN}" if begun else "build some with `python -m shards build`"
        raise ShardError(f"{folder}: holds no shards (no manifest.json); {hint}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        form = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: is not a manifest of ours ({error}); {BUILD_AGAIN}") from error
    if form != FORMAT:
        raise ShardError(f"{path}: format {form}, this version reads format {FORMAT}; build the shards again in another folder")
    if manifest_sha256(manifest) != manifest.get("sha256"):
        raise ShardError(f"{path}: was changed after it was written (its SHA-256 does not match); {BUILD_AGAIN}")
    return manifest
