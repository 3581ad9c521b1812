"""Photographs in, tar shards out: written shard by shard, never half.

A build that was interrupted goes on with the shards that are not there yet, also after a bad picture was replaced or taken
out of the table. A shard is written under a temporary name, synced and renamed; a small record in `.build/` says that it is
complete, and of which images. The manifest comes last.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from shards.manifest import FORMAT, IMAGE_COLUMNS, ShardError, Shards, file_sha256, fingerprint_of, manifest_sha256
from shards.patches import cut, is_enlarged, patch_boxes, resize
from shards.photographs import decode_photograph, decoder_versions
from shards.plan import Picture, Plan, ShardTask
from shards.splits import split_table
from shards.workers import worker_pool


def build(plan: Plan, out: Path, workers: int = 1) -> Shards:
    """Writes what is not yet written of `plan` below `out`, and opens the result.

    Raises ShardError when `out` holds anything but this build, or when a picture cannot be decoded; what was complete stays.
    """
    versions = _enter(out, plan)
    records = {task.file: record for task in plan.tasks if (record := _complete_record(out, task))}
    waiting = [task for task in plan.tasks if task.file not in records]
    if waiting and versions != decoder_versions():
        raise ShardError(
            f"{out}: was begun with {_listed(versions)}, and this is {_listed(decoder_versions())}: "
            f"the pixels might differ; go on with those versions, choose another --out, or delete that folder"
        )
    images, to_write = len(plan.pictures), sum(len(task.pictures) for task in waiting)
    with tqdm(total=images, initial=images - to_write, unit=" images", desc="shards", dynamic_ncols=True) as bar:
        for task, record in _write_all(out, waiting, workers):
            records[task.file] = record
            bar.update(len(task.pictures))
    _finish(plan, out, [records[task.file] for task in plan.tasks], versions)
    return Shards(out)


def write_shard(out: Path, task: ShardTask) -> dict[str, Any]:
    """Writes one shard and its record; returns the record (file, bytes, sha256 and a row per image)."""
    shard, note, rows = out / task.file, _record_path(out, task), []
    note.unlink(missing_ok=True)  # it must never speak of a shard that has been replaced since
    with _whole_file(shard) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for picture in task.pictures:
            row, pixels = _image_record(picture, task)
            _add(tar, f"{picture.row.id}.json", json.dumps(row, ensure_ascii=False, sort_keys=True).encode())
            member = _npy(pixels)
            offset = _add(tar, f"{picture.row.id}.pixels.npy", member) + len(member) - pixels.nbytes
            place = {"offset": offset, "plane_height": pixels.shape[1], "plane_width": pixels.shape[2]}
            rows.append(row | place | {"checksums": [zlib.crc32(plane) for plane in pixels]})
    record = {"task": task.digest(), "file": task.file, "bytes": shard.stat().st_size, "sha256": file_sha256(shard), "rows": rows}
    _write(note, json.dumps(record).encode())
    return record


def _image_record(picture: Picture, task: ShardTask) -> tuple[dict[str, Any], np.ndarray]:
    """What <id>.json says of an image, and its pixels [planes, height, width, 3]."""
    row, layout, (width, height) = picture.row, task.layout, picture.size
    try:
        content = row.file.read_bytes()
    except OSError as error:
        raise ShardError(f"{row.file}: cannot be read ({error.strerror}); put the file back, or take its row out of the table") from error
    pixels = decode_photograph(content, row.file)
    if pixels.shape != (height, width, 3):
        raise ShardError(f"{row.file}: decodes to {pixels.shape[1]}x{pixels.shape[0]}, its header says {width}x{height}; save it anew")
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


def _write_all(out: Path, tasks: Sequence[ShardTask], workers: int) -> Iterator[tuple[ShardTask, dict[str, Any]]]:
    """Writes the tasks, in this process or in several, yielding each with its record as it is complete.

    No worker has a second task in store: after an error what is being written is finished, and nothing new is begun.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield task, write_shard(out, task)
        return
    waiting = iter(tasks)
    try:
        with worker_pool(workers) as pool:
            running = {pool.submit(write_shard, out, task): task for task in islice(waiting, workers)}
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    task, record = running.pop(future), future.result()
                    running |= {pool.submit(write_shard, out, following): following for following in islice(waiting, 1)}
                    yield task, record
    except BrokenProcessPool as error:
        raise ShardError(
            f"{out}: a worker process was killed, perhaps for want of memory; "
            f"run the same command with fewer --workers, it goes on where this one stopped"
        ) from error


def _enter(out: Path, plan: Plan) -> dict[str, str]:
    """Makes `out` ready for a plan; returns the versions of the decoders that its shards are begun with.

    Raises ShardError when `out` holds another build, or files that are no build of ours.
    """
    note = out / ".build" / "plan.json"
    begun, finished = _read_json(note), _read_json(out / "manifest.json")
    if finished and finished.get("plan") != plan.digest():
        raise ShardError(f"{out}: holds the shards of another table or of other settings; choose another --out, or delete that folder")
    strangers = sorted(path.name for path in out.glob("*") if path != note.parent)
    if strangers and not begun and not finished:
        raise ShardError(f"{out}: is not empty ({strangers[0]}) and holds no build of ours; choose a new or empty folder as --out")
    begun = begun or {"choices": plan.choices(), "versions": finished["versions"] if finished else decoder_versions()}
    if changed := [name for name, choice in plan.choices().items() if begun["choices"].get(name) != choice]:
        raise ShardError(f"{out}: was begun with another {', '.join(changed)}; choose another --out, or delete that folder")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
    for leftover in [*out.glob("*.part"), *out.glob("*/*.part")]:
        leftover.unlink(missing_ok=True)
    _write(note, json.dumps(begun).encode())
    versions: dict[str, str] = begun["versions"]
    return versions


def _record_path(out: Path, task: ShardTask) -> Path:
    return out / ".build" / f"{task.file}.json"


def _complete_record(out: Path, task: ShardTask) -> dict[str, Any] | None:
    """The record of a shard that is already there, whole; None when it must be written."""
    record, shard = _read_json(_record_path(out, task)), out / task.file
    complete = record and record["task"] == task.digest() and shard.is_file() and record["bytes"] == shard.stat().st_size
    return record if complete else None


def _read_json(path: Path) -> dict[str, Any] | None:
    """What a file of ours says; None when it is missing or damaged."""
    try:
        said: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return said


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _finish(plan: Plan, out: Path, records: Sequence[dict[str, Any]], versions: Mapping[str, str]) -> None:
    """Index, table for people, splits, and last of all the manifest."""
    (out / "splits").mkdir(exist_ok=True)
    for surplus in {path.name for path in out.glob("shard-*.tar")} - {record["file"] for record in records}:
        (out / surplus).unlink()  # of a table that was longer when the build was begun
    rows = [(number, row) for number, record in enumerate(records) for row in record["rows"]]
    index = np.zeros(len(rows), plan.layout.index_dtype())
    for entry, (shard, row) in zip(index, rows, strict=True):
        entry["shard"], entry["offset"], entry["opinion"] = shard, row["offset"], row["opinion"]
        entry["height"], entry["width"] = row["plane_height"], row["plane_width"]
        entry["checksums"], entry["corners"] = row["checksums"], row["corners"]
    table = io.StringIO()
    writer = csv.DictWriter(table, IMAGE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"enlarged": int(row["enlarged"])} for _, row in rows)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "data_set": plan.data_set.name,
        "label": asdict(plan.data_set.label),
        "layout": asdict(plan.layout),
        "resize": {"rule": plan.resize, "filter": "bilinear"},
        "seed": plan.settings.seed,
        "images": len(rows),
        "enlarged": sum(row["enlarged"] for _, row in rows),
        "index_sha256": _write(out / "index.npy", _npy(index)),
        "images_sha256": _write(out / "images.csv", table.getvalue().encode()),
        "splits": {name: _write(out / "splits" / f"{name}.csv", split_table(parts)) for name, parts in plan.splits.items()},
        "shards": [{"file": r["file"], "bytes": r["bytes"], "sha256": r["sha256"], "images": len(r["rows"])} for r in records],
        "plan": plan.digest(),
        "versions": versions,
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    manifest["sha256"] = manifest_sha256(manifest)
    for folder in (out / "splits", out):  # a name is on the disk only when its folder is, and the manifest's must come last
        _sync_folder(folder)
    _write(out / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")


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


def _write(path: Path, content: bytes) -> str:
    """Replaces the file `path` at once; returns the SHA-256 of its content."""
    with _whole_file(path) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is on the disk, and leaves nothing behind when it fails.

    Host and process are in the temporary name: two builds that meet in one folder must not write into one file.
    """
    part = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise ShardError(f"{path}: cannot be written ({error.strerror}); mend that and run the same command again") from error
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
