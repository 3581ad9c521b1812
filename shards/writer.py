"""Photographs in, tar shards out: planned as a whole, written shard by shard, never half.

The plan decides everything from the table and the picture headers: which image goes into which shard, the layout, the
boxes. Writing a shard is then a pure function of the plan and the pictures, so the bytes are the same for any number of
workers, and a build that was interrupted goes on with the shards that are not there yet. A shard is written under a
temporary name, synced and renamed; a small record beside it in `.build/` says that it is complete. The manifest comes last.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.datasets import DataSet, Row
from shards.manifest import FORMAT, IMAGE_COLUMNS, Layout, ShardError, Shards, file_sha256, fingerprint_of
from shards.patches import cut, is_enlarged, patch_boxes, resize, resized_size
from shards.photographs import decode_photograph, decoder_versions, photograph_size
from shards.splits import all_splits, write_split


@dataclass(frozen=True)
class Settings:
    """What a user may choose about a build."""

    patch_size: int = 224
    patches: int = 25
    seed: int = 0
    layout: str = "auto"  # canvas, patches, or auto: whichever takes fewer bytes
    resize: str | None = None  # None: the data set's own rule
    shard_bytes: int = 128 << 20  # pixels per shard, about; one image more than fits is never split


@dataclass(frozen=True)
class Picture:
    """One image of the plan: its row, its upright size and the size at which it is stored."""

    row: Row
    size: tuple[int, int]
    stored: tuple[int, int]


@dataclass(frozen=True)
class ShardTask:
    """All that a worker needs to write one shard."""

    file: str
    layout: Layout
    seed: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Plan:
    """The whole build before a pixel is read."""

    data_set: DataSet
    settings: Settings
    resize: str
    layout: Layout
    tasks: tuple[ShardTask, ...]
    splits: dict[str, dict[str, str]]

    def digest(self) -> str:
        """A hash of everything that decides the bytes, but for the pictures' contents."""
        rows = [
            (p.row.id, p.row.opinion, p.row.std, p.row.group, p.row.file.stat().st_size, p.size, p.stored)
            for t in self.tasks
            for p in t.pictures
        ]
        decisive = [asdict(self.settings), asdict(self.layout), self.resize, asdict(self.data_set.label), self.data_set.name, rows]
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def plan_build(data_set: DataSet, settings: Settings) -> Plan:
    """Reads every picture's header, chooses the layout and deals the images to shards.

    Raises ShardError for the first picture that is missing or unreadable, and for settings that make no sense.
    """
    if settings.patch_size < 8 or settings.patches < 1:
        raise ShardError(
            f"--size {settings.patch_size} --patches {settings.patches}: a patch is at least 8 pixels wide, and an image has at least one"
        )
    rule = settings.resize or data_set.resize
    splits = all_splits(data_set.rows, settings.seed)
    pictures = []
    for row in data_set.rows:
        size = photograph_size(row.file)
        stored = resized_size(*size, rule, settings.patch_size)
        if max(stored) > np.iinfo(np.uint16).max:
            raise ShardError(
                f"{row.file}: would be stored at {stored[0]}x{stored[1]}, and a side has at most 65,535 pixels; use --resize short:PIXELS"
            )
        pictures.append(Picture(row, size, stored))
    layout = _choose_layout(pictures, settings)
    tasks = [
        ShardTask(f"shard-{number:06d}.tar", layout, settings.seed, tuple(share))
        for number, share in enumerate(_shares(pictures, layout, settings.shard_bytes))
    ]
    return Plan(data_set, settings, rule, layout, tuple(tasks), splits)


def build(plan: Plan, out: Path, workers: int = 1) -> Shards:
    """Writes what is not yet written of `plan` below `out`, and opens the result.

    Raises ShardError when `out` holds another build, or when a picture cannot be decoded; what was complete stays.
    """
    notes = out / ".build"
    digest = plan.digest()
    _refuse_another_build(out, digest)
    notes.mkdir(parents=True, exist_ok=True)
    (notes / "plan").write_text(digest)
    for leftover in [*out.glob("*.part"), *notes.glob("*.part")]:
        leftover.unlink()
    records = {task.file: record for task in plan.tasks if (record := _complete_record(out, task))}
    waiting = [task for task in plan.tasks if task.file not in records]
    done = sum(len(task.pictures) for task in plan.tasks) - sum(len(task.pictures) for task in waiting)
    with tqdm(
        total=done + sum(len(task.pictures) for task in waiting), initial=done, unit=" images", desc="shards", dynamic_ncols=True
    ) as bar:
        for task, record in _write_all(out, waiting, workers):
            records[task.file] = record
            bar.update(len(task.pictures))
    _finish(plan, out, [records[task.file] for task in plan.tasks], digest)
    return Shards(out)


def write_shard(out: Path, task: ShardTask) -> dict[str, Any]:
    """Writes one shard and its record; returns the record (file, bytes, sha256 and a row per image)."""
    part = out / f"{task.file}.part"
    rows = []
    with part.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for picture in task.pictures:
                content = picture.row.file.read_bytes()
                row, pixels = _image_record(picture, content, task)
                _add(tar, f"{picture.row.id}.json", json.dumps(row, ensure_ascii=False, sort_keys=True).encode())
                member = _npy(pixels)
                offset = _add(tar, f"{picture.row.id}.pixels.npy", member) + len(member) - pixels.nbytes
                rows.append(
                    row
                    | {
                        "offset": offset,
                        "plane_height": pixels.shape[1],
                        "plane_width": pixels.shape[2],
                        "checksums": [zlib.crc32(plane) for plane in pixels],
                    }
                )
        file.flush()
        os.fsync(file.fileno())
    record = {"file": task.file, "bytes": part.stat().st_size, "sha256": file_sha256(part), "rows": rows}
    part.replace(out / task.file)
    _write_atomically(out / ".build" / f"{task.file}.json", json.dumps(record).encode())
    return record


def _image_record(picture: Picture, content: bytes, task: ShardTask) -> tuple[dict[str, Any], np.ndarray]:
    """What <id>.json says of an image, and its pixels [planes, height, width, 3]."""
    row, layout = picture.row, task.layout
    pixels = decode_photograph(content, row.file)
    if pixels.shape[1::-1] != picture.size:
        raise ShardError(
            f"{row.file}: decodes to {pixels.shape[1]}x{pixels.shape[0]}, its header says {picture.size[0]}x{picture.size[1]}; replace the file"
        )
    canvas = resize(pixels, *picture.stored)
    corners = patch_boxes(row.id, task.seed, *picture.stored, layout.patch_size, layout.patches)
    one_by_one = layout.name == "patches"
    boxes = [[k, 0, 0] if one_by_one else [0, int(y), int(x)] for k, (y, x) in enumerate(corners)]
    record = {
        "id": row.id,
        "opinion": row.opinion,
        "std": row.std,
        "group": row.group,
        "width": picture.stored[0],
        "height": picture.stored[1],
        "enlarged": is_enlarged(*picture.size, *picture.stored),
        "source": row.file.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "patch_size": layout.patch_size,
        "boxes": boxes,
        "corners": corners.tolist(),
    }
    return record, cut(canvas, corners, layout.patch_size) if one_by_one else canvas[None]


def _choose_layout(pictures: Sequence[Picture], settings: Settings) -> Layout:
    choices = [Layout(name, settings.patch_size, settings.patches) for name in ("canvas", "patches")]
    if settings.layout != "auto":
        return next(choice for choice in choices if choice.name == settings.layout)
    return min(choices, key=lambda layout: sum(layout.image_bytes(*picture.stored) for picture in pictures))


def _shares(pictures: Sequence[Picture], layout: Layout, shard_bytes: int) -> Iterator[list[Picture]]:
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


def _write_all(out: Path, tasks: Sequence[ShardTask], workers: int) -> Iterator[tuple[ShardTask, dict[str, Any]]]:
    """Writes the tasks, in this process or in several, yielding each with its record as it is complete."""
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, write_shard(out, task)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(write_shard, out, task): task for task in tasks}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is being written is finished, nothing new is begun
            raise


def _refuse_another_build(out: Path, digest: str) -> None:
    plan, manifest = out / ".build" / "plan", out / "manifest.json"
    found = plan.read_text() if plan.is_file() else json.loads(manifest.read_text()).get("plan") if manifest.is_file() else digest
    if found != digest:
        raise ShardError(f"{out}: holds shards of another table, or built with other settings; choose another --out, or delete that folder")


def _complete_record(out: Path, task: ShardTask) -> dict[str, Any] | None:
    """The record of a shard that is already there, whole; None when it must be written."""
    note, shard = out / ".build" / f"{task.file}.json", out / task.file
    if not note.is_file() or not shard.is_file():
        return None
    record: dict[str, Any] = json.loads(note.read_text())
    return record if record["bytes"] == shard.stat().st_size else None


def _finish(plan: Plan, out: Path, records: Sequence[dict[str, Any]], digest: str) -> None:
    """Index, table for people, splits, and last of all the manifest."""
    rows = [(number, row) for number, record in enumerate(records) for row in record["rows"]]
    index = np.zeros(len(rows), plan.layout.index_dtype())
    for entry, (shard, row) in zip(index, rows, strict=True):
        entry["shard"], entry["offset"], entry["opinion"] = shard, row["offset"], row["opinion"]
        entry["height"], entry["width"] = row["plane_height"], row["plane_width"]
        entry["checksums"], entry["corners"] = row["checksums"], row["corners"]
    _write_atomically(out / "index.npy", _npy(index))
    table = io.StringIO()
    writer = csv.DictWriter(table, IMAGE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"enlarged": int(row["enlarged"])} for _, row in rows)
    _write_atomically(out / "images.csv", table.getvalue().encode())
    shutil.rmtree(out / "splits", ignore_errors=True)
    for name, parts in plan.splits.items():
        write_split(out / "splits" / f"{name}.csv", parts)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "data_set": plan.data_set.name,
        "label": asdict(plan.data_set.label),
        "layout": asdict(plan.layout),
        "resize": {"rule": plan.resize, "filter": "bilinear"},
        "seed": plan.settings.seed,
        "images": len(rows),
        "enlarged": sum(row["enlarged"] for _, row in rows),
        "index_sha256": file_sha256(out / "index.npy"),
        "images_sha256": file_sha256(out / "images.csv"),
        "shards": [{"file": r["file"], "bytes": r["bytes"], "sha256": r["sha256"], "images": len(r["rows"])} for r in records],
        "plan": digest,
        "versions": {"numpy": np.__version__, **decoder_versions()},
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    _write_atomically(out / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Adds a member with no trace of when and by whom; returns the offset of its content in the tar file."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o644, 0
    tar.addfile(member, io.BytesIO(content))
    padded = -len(content) % tarfile.BLOCKSIZE + len(content)
    return int(tar.offset) - padded


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
