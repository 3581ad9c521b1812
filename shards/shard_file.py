"""One shard: the pictures of a task in, a tar file and the record of it out.

A pure function of the task and its pictures, so it can run in any process, and in several at once. The record, in `.build/`,
says that the shard is complete, and of which images; it is written after the shard, so a shard without one is written again.

    .build/shard-000000.tar.json     a line of JSON: the digest of the task, the file, its bytes and sha256
                                     and a line per image: what images.csv and index.npy need to know
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.codecs import CODECS
from shards.datasets import naming
from shards.manifest import Layout, ShardError, row_checksum
from shards.patches import cut, is_enlarged, patch_boxes, resize
from shards.photographs import upright_photograph
from shards.plan import Picture, ShardTask
from shards.whole_files import whole_file, write_bytes

_CLOCKS = 60  # seconds by which the clocks of machines that share a file system may differ
_AT_ONCE = 16 << 20  # bytes of a member that go to the file in one piece; with the 16 KiB of tarfile itself that takes twice as long


def write_shard(out: Path, task: ShardTask, report: Callable[[int], None]) -> None:
    """Writes one shard and its record, unless both are there by now; tells `report` the bytes of the pixels of each image.

    One image is in memory at a time. Another process may write the same shard meanwhile, to the same bytes; once it has
    finished the folder, it sweeps away what is unfinished: what counts is that the shard is there.
    """
    if complete_record(out, task):
        for _ in task.pictures:
            report(0)
        return
    try:
        _write_shard(out, task, report)
    except (OSError, ShardError):
        if not complete_record(out, task):
            raise


def _write_shard(out: Path, task: ShardTask, report: Callable[[int], None]) -> None:
    shard, note, codec, rows = out / task.file, record_path(out, task), CODECS[task.layout.codec], []
    note.unlink(missing_ok=True)  # it must never speak of a shard that has been replaced since
    with explained(shard), whole_file(shard) as file:
        content = _Content(file)
        tar = tarfile.TarFile(fileobj=content, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_AT_ONCE)  # type: ignore[arg-type]
        for picture in task.pictures:
            row, pixels = image_record(picture, task.layout, task.seed)
            _add(tar, f"{picture.row.id}.json", json.dumps(row, ensure_ascii=False, sort_keys=True).encode())
            head, planes = codec.head(pixels.shape), [codec.encode(plane) for plane in pixels]
            offset = len(head) + _add(tar, f"{picture.row.id}.pixels.{codec.suffix}", b"".join([head, *planes]))
            place = {"offset": offset, "lengths": [len(plane) for plane in planes], "checksums": [zlib.crc32(plane) for plane in planes]}
            rows.append(json.dumps(row | place).encode())
            report(pixels.nbytes)
        tar.close()
        about = {"task": task.digest(), "file": task.file, "bytes": file.tell(), "sha256": content.sha256.hexdigest()}
    with explained(note):
        write_bytes(note, b"\n".join([json.dumps(about).encode(), *rows]))


class _Content:
    """A file for tarfile, which writes from the beginning to the end, and the SHA-256 of what has gone there."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.tell, self.sha256 = file, file.tell, hashlib.sha256()

    def write(self, piece: bytes) -> int:
        self.sha256.update(piece)
        return self._file.write(piece)


def index_rows(rows: Sequence[Mapping[str, Any]], shard: int, layout: Layout, plan: str) -> np.ndarray:
    """The rows of index.npy for the images of shard number `shard`, from its record and the digest of the plan."""
    index = np.zeros(len(rows), layout.index_dtype())
    for entry, row in zip(index, rows, strict=True):
        entry["shard"], entry["offset"] = shard, row["offset"]
        entry["height"], entry["width"] = row["shape"][1:3]
        entry["lengths"], entry["checksums"], entry["corners"] = row["lengths"], row["checksums"], row["corners"]
        entry["row_checksum"] = row_checksum(entry, plan)
    return index


def record_path(out: Path, task: ShardTask) -> Path:
    """Where the record of a shard lies."""
    return out / ".build" / f"{task.file}.json"


def complete_record(out: Path, task: ShardTask) -> dict[str, Any] | None:
    """What the record says of a shard (file, bytes, sha256) that is already there, whole; None when it must be written."""
    try:
        with record_path(out, task).open("rb") as note:
            record: dict[str, Any] = json.loads(note.readline())
        complete = record["task"] == task.digest() and record["bytes"] == (out / task.file).stat().st_size
    except (OSError, ValueError, KeyError):
        return None
    return record if complete else None


def replaced_pictures(out: Path, task: ShardTask) -> list[Path]:
    """The pictures of a complete shard that are not those that it was written from; of other shards none.

    Read are those alone that the disk has touched since the record was written, or shortly before, because clocks of machines may
    differ: the file, a folder on the way to it from the root on, or a link or a folder before that which was renamed, since that
    brings files that nobody has touched.
    """
    if not complete_record(out, task):
        return []
    since, replaced = record_path(out, task).stat().st_mtime - _CLOCKS, []
    folders: dict[Path, float] = {}  # when each was touched
    for picture, row in zip(task.pictures, record_rows(out, task), strict=True):
        file, within = picture.row.file, len(Path(picture.path).parts)
        for number, folder in enumerate(file.parents):
            if folder not in folders:
                folders[folder] = _touched(folder) if number < within else _renamed(folder)
        touched = max(_touched(file), *(folders[folder] for folder in file.parents))
        if touched > since and hashlib.sha256(file.read_bytes()).hexdigest() != row["sha256"]:
            replaced.append(file)
    return replaced


def _touched(place: Path) -> float:
    """When the disk last touched a file or folder, or the link to it, in seconds since 1970."""
    return max(place.stat().st_ctime, place.lstat().st_ctime)


def _renamed(folder: Path) -> float:
    """When a folder, or the link to it, got its name, at the latest; 0 where its entries have changed since: much goes on before a root."""
    found, link = folder.stat(), folder.lstat()
    return max(found.st_ctime if found.st_ctime_ns > found.st_mtime_ns else 0, link.st_ctime if folder.is_symlink() else 0)


def record_rows(out: Path, task: ShardTask) -> list[dict[str, Any]]:
    """What the record says of each image of a complete shard. Raises OSError or ValueError when it is missing or damaged."""
    with record_path(out, task).open("rb") as note:
        return [json.loads(line) for line in islice(note, 1, None)]


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the disk answers while `path` is written becomes a ShardError about it."""
    try:
        yield
    except OSError as error:
        raise ShardError(f"{path}: cannot be written ({error.strerror}); mend that and run the same command again") from error


def image_record(picture: Picture, layout: Layout, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """What <id>.json says of an image, and its pixels [planes, height, width, 3]."""
    row, (width, height) = picture.row, picture.size
    with naming(row):
        try:
            content = row.file.read_bytes()
        except OSError as error:
            to_do = "put the file back, or take its row out of the table"
            raise ShardError(f"{row.file}: cannot be read ({error.strerror}); {to_do}") from error
        photograph = upright_photograph(content, row.file)
        if photograph.size != (width, height):
            found = "{}x{}".format(*photograph.size)
            raise ShardError(f"{row.file}: decodes to {found}, its header says {width}x{height}; save it anew")
    canvas = resize(photograph, *picture.stored)
    corners = patch_boxes(row.id, seed, *picture.stored, layout.patch_size, layout.patches)
    places = corners.tolist()
    one_by_one = layout.name == "patches"
    stored = cut(canvas, corners, layout.patch_size) if one_by_one else canvas[None]
    boxes = [[k, 0, 0] if one_by_one else [0, y, x] for k, (y, x) in enumerate(places)]
    record = {
        "id": row.id,
        "opinion": row.opinion,
        "std": row.std,
        "group": row.group,
        "width": picture.stored[0],
        "height": picture.stored[1],
        "enlarged": is_enlarged(*picture.size, *picture.stored),
        "path": picture.path,
        "sha256": hashlib.sha256(content).hexdigest(),
        "patch_size": layout.patch_size,
        "boxes": boxes,
        "corners": places,
        "codec": layout.codec,
        "shape": stored.shape,
    }
    return record, stored


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Adds a member with no trace of when and by whom; returns the offset of its content in the tar file."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), 0o644, 0
    tar.addfile(member, io.BytesIO(content))
    padded = -len(content) % tarfile.BLOCKSIZE + len(content)
    return int(tar.offset) - padded
