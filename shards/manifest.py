"""What a shard folder holds: described, opened, read at an offset, verified and fingerprinted here.

    koniq10k/
      manifest.json       label, patch size, patches per image, resize rule, layout, decoder, shards, fingerprint
      images.csv          a row per image for people: id, opinion, std, group, width, height, source file and its sha256
      index.npy           a row per image for machines: shard, offset, size, checksums, boxes; memory-mapped
      splits/<name>.csv   id -> train | val | test
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
    decisive = {key: value for key, value in manifest.items() if key not in ("fingerprint", "versions")}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces of a megabyte."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class Shards:
    """An opened shard folder. Cheap to open, safe to share with forked workers, reads each patch at its offset."""

    def __init__(self, folder: str | Path) -> None:
        """Opens `folder` and checks that every file it names is there and of the right length.

        Raises ShardError naming the first file that is missing, truncated or not ours.
        """
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.label = Label(**self.manifest["label"])
        self.layout = Layout(**self.manifest["layout"])
        self.fingerprint: str = self.manifest["fingerprint"]
        self.files: list[dict[str, Any]] = self.manifest["shards"]
        for record in self.files:
            self._check_length(record)
        self.index = self._open_index()
        self._descriptors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a spawned worker opens the folder anew: descriptors do not travel

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    @property
    def opinions(self) -> np.ndarray:
        """One opinion per image, float64 [images], on the scale of `label`."""
        return self.index["opinion"]

    @cached_property
    def ids(self) -> list[str]:
        """One id per image, in the order of the index."""
        return [row["id"] for row in self.image_rows()]

    def image_rows(self) -> Iterator[dict[str, str]]:
        """The rows of images.csv as they stand."""
        with (self.folder / "images.csv").open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)

    def split_names(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "splits").glob("*.csv"))

    def split(self, name: str | None = None) -> tuple[str, dict[str, np.ndarray]]:
        """The split's name and, for each of train, val and test, the image numbers of that part, ascending.

        Without a name: the official split when there is one, else the first round.
        Raises ShardError when there is no such split, when it names an unknown image or part, or one image twice.
        """
        names = self.split_names()
        chosen = name or ("official" if "official" in names else "round-01")
        if chosen not in names:
            raise ShardError(f"{self.folder}: there is no split '{chosen}'; there are: {', '.join(names) or 'none'}")
        path = self.folder / "splits" / f"{chosen}.csv"
        number_of = {image_id: number for number, image_id in enumerate(self.ids)}
        parts: dict[str, list[int]] = {part: [] for part in PARTS}
        seen: set[str] = set()
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                image_id, part = row.get("id"), row.get("part")
                if image_id not in number_of or part not in parts:
                    raise ShardError(
                        f"{path}, line {line}: '{image_id},{part}' names no image of this folder, or a part other than {PARTS}"
                    )
                if image_id in seen:
                    raise ShardError(f"{path}, line {line}: image '{image_id}' stands there a second time")
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
        shard = int(row["shard"])
        if shard not in self._descriptors:
            self._descriptors[shard] = os.open(self._path(shard), os.O_RDONLY)
        content = os.pread(self._descriptors[shard], length, int(row["offset"]) + plane * length)
        if len(content) != length or zlib.crc32(content) != int(row["checksums"][plane]):
            raise ShardError(
                f"{self._path(shard)}: image '{self.ids[image]}' is damaged (its checksum does not match); "
                f"delete this shard and run the same `python -m shards build` again, which writes only what is missing"
            )
        return np.frombuffer(content, np.uint8).reshape(height, width, 3)

    def _path(self, shard: int) -> Path:
        return self.folder / self.files[shard]["file"]

    def _check_length(self, record: Mapping[str, Any]) -> None:
        path = self.folder / record["file"]
        found = path.stat().st_size if path.is_file() else None
        if found != record["bytes"]:
            state = "is missing" if found is None else f"has {found} bytes, not {record['bytes']}"
            raise ShardError(f"{path} {state}; run the same `python -m shards build` again, which writes only what is missing")

    def _open_index(self) -> np.ndarray:
        path = self.folder / "index.npy"
        try:
            index = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ShardError(f"{path}: cannot be read ({error}); run the same `python -m shards build` again") from error
        if index.dtype != self.layout.index_dtype() or len(index) != self.manifest["images"]:
            raise ShardError(f"{path}: is not the index of this manifest; run the same `python -m shards build` again")
        return index


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        hint = (
            "an unfinished build lies there: run the same `python -m shards build` again"
            if (folder / ".build").is_dir()
            else "build one with `python -m shards build`"
        )
        raise ShardError(f"{folder}: holds no shards (no manifest.json); {hint}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        form = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: is not a manifest of ours ({error})") from error
    if form != FORMAT:
        raise ShardError(f"{path}: format {form}, this version reads format {FORMAT}; build the shards again")
    if fingerprint_of(manifest) != manifest.get("fingerprint"):
        raise ShardError(f"{path}: was changed after it was written (its fingerprint does not match); build the shards again")
    return manifest
