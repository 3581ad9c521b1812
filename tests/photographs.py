"""Small folders of real photographs with a score table, made on the spot, and shards of them."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.datasets import read_table
from shards.demo import cut_content
from shards.manifest import Label, Shards
from shards.plan import Plan, Settings, plan_build
from shards.writer import build

NAMES = tuple(f"cup{number:02d}.png" for number in range(12))
LAYOUTS = ("canvas", "patches")


def crop(number: int, width: int = 96, height: int = 72) -> np.ndarray:
    """Another piece of one photograph for every number: uint8 [height, width, 3]."""
    y, x = number * 37 % (385 - height), number * 53 % (513 - width)
    return cut_content("coffee")[y : y + height, x : x + width]


def make_folder(folder: Path, names: Sequence[str] = NAMES, width: int = 96, height: int = 72, **columns: Sequence[object]) -> Path:
    """`folder` with a picture for each of `names` below images/, and scores.csv with an opinion for each, and more columns."""
    for number, name in enumerate(names):
        file = folder / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop(number, width, height)).save(file)
    write_table(folder, {"image": names, "score": [1 + number / 4 for number in range(len(names))], **columns})
    return folder


def write_table(folder: Path, columns: Mapping[str, Sequence[object]]) -> None:
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def plan_of(folder: Path, label: Label | None = None, **settings: object) -> Plan:
    """A build of such a folder: 8 patches of 32 pixels and two images per shard, unless told otherwise."""
    chosen = {"patch_size": 32, "patches": 8, "shard_bytes": 50_000, **settings}
    return plan_build(read_table(folder / "scores.csv", folder / "images", "cups", label), Settings(**chosen))  # type: ignore[arg-type]


def shards_of(folder: Path, out: Path, workers: int = 1, **settings: object) -> Shards:
    return build(plan_of(folder, **settings), out, workers)


def all_patches(shards: Shards) -> list[np.ndarray]:
    return [shards.read_patches(image, range(shards.layout.patches)) for image in range(len(shards))]


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder`, by its relative name."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stamps(out: Path) -> dict[str, int]:
    """When each shard was written, by its name."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])  # the header is whole, the pixels are not


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
