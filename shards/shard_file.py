"""One shard: the pictures of a task in, a tar file and the record of it out.

A pure function of the task and its pictures, so it can run in any process. The record, in `.build/`, says that the shard is
complete, and of which images; it is written after the shard, so a shard without one is written again.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shards.manifest import ShardError, file_sha256
from shards.patches import cut, is_enlarged, patch_boxes, resize
from shards.photographs import decode_photograph
from shards.plan import Picture, ShardTask
from shards.whole_files import whole_file, write_bytes


def write_shard(out: Path, task: ShardTask) -> dict[str, Any]:
    """Writes one shard and its record; returns the record (file, bytes, sha256 and a row per image)."""
    shard, note, rows = out / task.file, record_path(out, task), []
    note.unlink(missing_ok=True)  # it must never speak of a shard that has been replaced since
    with explained(shard), whole_file(shard) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for picture in task.pictures:
            row, pixels = _image_record(picture, task)
            _add(tar, f"{picture.row.id}.json", json.dumps(row, ensure_ascii=False, sort_keys=True).encode())
            member = npy_bytes(pixels)
            offset = _add(tar, f"{picture.row.id}.pixels.npy", member) + len(member) - pixels.nbytes
            place = {"offset": offset, "plane_height": pixels.shape[1], "plane_width": pixels.shape[2]}
            rows.append(row | place | {"checksums": [zlib.crc32(plane) for plane in pixels]})
    record = {"task": task.digest(), "file": task.file, "bytes": shard.stat().st_size, "sha256": file_sha256(shard), "rows": rows}
    with explained(note):
        write_bytes(note, json.dumps(record).encode())
    return record


def record_path(out: Path, task: ShardTask) -> Path:
    """Where the record of a shard lies."""
    return out / ".build" / f"{task.file}.json"


def complete_record(out: Path, task: ShardTask) -> dict[str, Any] | None:
    """The record of a shard that is already there, whole; None when it must be written."""
    record, shard = read_json(record_path(out, task)), out / task.file
    complete = record and record["task"] == task.digest() and shard.is_file() and record["bytes"] == shard.stat().st_size
    return record if complete else None


def read_json(path: Path) -> dict[str, Any] | None:
    """What a file of ours says; None when it is missing or damaged."""
    try:
        said: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return said


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the disk answers while `path` is written becomes a ShardError about it."""
    try:
        yield
    except OSError as error:
        raise ShardError(f"{path}: cannot be written ({error.strerror}); mend that and run the same command again") from error


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


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Adds a member with no trace of when and by whom; returns the offset of its content in the tar file."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o644, 0
    tar.addfile(member, io.BytesIO(content))
    padded = -len(content) % tarfile.BLOCKSIZE + len(content)
    return int(tar.offset) - padded
