"""All shards are there: what makes a folder of them is written here, the manifest last.

The records of the shards are read one after the other, and the files that hold a row per image are written as they come.
Several processes may finish one folder at once: they write the same bytes, and the first one to be done sweeps away what
the others have begun.
"""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from shards.manifest import FORMAT, IMAGE_COLUMNS, ShardError, file_sha256, fingerprint_of, manifest_sha256
from shards.plan import Plan, ShardTask
from shards.shard_file import complete_record, explained, index_rows, record_path, record_rows
from shards.splits import split_table
from shards.tables import csv_text
from shards.whole_files import sync, whole_file, write_bytes


def finish(plan: Plan, out: Path, versions: Mapping[str, str]) -> None:
    """Writes the index, the table for people and the splits, last of all the manifest, and leaves nothing else behind.

    Raises ShardError when a shard is not complete, or a file cannot be written.
    """
    try:
        _write_folder(plan, out, versions)
    except ShardError as error:
        if not _swept_away(error.__cause__):  # else another process has just finished this very folder
            raise
    files = {file for file, _ in plan.tasks.shares}
    for surplus in {path.name for path in out.glob("shard-*.tar")} - files:  # of a table that was longer when the build was begun
        (out / surplus).unlink(missing_ok=True)
        (out / ".build" / f"{surplus}.json").unlink(missing_ok=True)
    for unfinished in [*out.glob(".*.part"), *out.glob("*/.*.part")]:  # of processes that were killed, or came too late
        unfinished.unlink(missing_ok=True)


def _write_folder(plan: Plan, out: Path, versions: Mapping[str, str]) -> None:
    (out / "splits").mkdir(exist_ok=True)
    digest = plan.digest()
    shards, enlarged = _write_images(plan, out, digest)
    _write_splits(plan, out)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "data_set": plan.data_set.name,
        "label": asdict(plan.data_set.label),
        "layout": asdict(plan.layout),
        "resize": {"rule": plan.resize, "filter": "bilinear"},
        "seed": plan.settings.seed,
        "images": sum(shard["images"] for shard in shards),
        "enlarged": enlarged,
        "index_sha256": file_sha256(out / "index.npy"),
        "ids_sha256": file_sha256(out / "ids.npy"),
        "opinions_sha256": file_sha256(out / "opinions.npy"),
        "parts_sha256": file_sha256(out / "parts.npy"),
        "images_sha256": file_sha256(out / "images.csv"),
        "splits": plan.split_sha256,
        "shards": shards,
        "plan": digest,
        "versions": versions,
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    manifest["sha256"] = manifest_sha256(manifest)
    for folder in (out / "splits", out):  # a name is on the disk only when its folder is, and the manifest's must come last
        sync(folder)
    _write(out / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")


def _write_images(plan: Plan, out: Path, digest: str) -> tuple[list[dict[str, Any]], int]:
    """Writes what holds a row per image; returns what the manifest says of each shard, and how many images were enlarged."""
    images, ids_of_all = len(plan.pictures), plan.data_set.rows.ids()
    id_type = np.dtype(f"S{max(len(image.encode()) for image in ids_of_all)}")
    shards, enlarged = [], 0
    with (
        _array_file(out / "index.npy", plan.layout.index_dtype(), (images,)) as index,
        _array_file(out / "ids.npy", id_type, (images,)) as ids,
        _array_file(out / "opinions.npy", np.dtype("<f8"), (images,)) as opinions,
        _text_file(out / "images.csv") as text,
    ):
        text.write(csv_text([IMAGE_COLUMNS]))
        for number, task in enumerate(plan.tasks):
            record, rows = _record(out, task)
            index.write(index_rows(rows, number, plan.layout, digest).tobytes())
            ids.write(np.array([row["id"].encode() for row in rows], id_type).tobytes())
            opinions.write(np.array([row["opinion"] for row in rows], "<f8").tobytes())
            told = (row | {"enlarged": int(row["enlarged"])} for row in rows)
            text.write(csv_text([row[column] for column in IMAGE_COLUMNS] for row in told))
            shards.append({"file": task.file, "bytes": record["bytes"], "sha256": record["sha256"], "images": len(rows)})
            enlarged += sum(row["enlarged"] for row in rows)
    return shards, enlarged


def _record(out: Path, task: ShardTask) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of a shard and its rows, one per picture."""
    try:
        record, rows = complete_record(out, task), record_rows(out, task)
    except (OSError, ValueError):
        record, rows = None, []
    if not record or len(rows) != len(task.pictures):
        raise ShardError(
            f"{out / task.file}: is no longer what its record says, or the record was changed; "
            f"delete {record_path(out, task)} and run the same command again"
        )
    return record, rows


def _write_splits(plan: Plan, out: Path) -> None:
    for name, parts in plan.splits.items():
        path = out / "splits" / f"{name}.csv"
        with explained(path), whole_file(path) as table:
            table.writelines(split_table(plan.data_set.rows.ids(), parts))
    with _array_file(out / "parts.npy", np.dtype("u1"), (len(plan.splits), len(plan.pictures))) as file:
        for name in sorted(plan.splits):
            file.write(plan.splits[name].tobytes())


@contextmanager
def _array_file(path: Path, dtype: np.dtype, shape: Sequence[int]) -> Iterator[BinaryIO]:
    """A .npy file whose elements are written one after the other."""
    with explained(path), whole_file(path) as file:
        head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(file, head)
        yield file


@contextmanager
def _text_file(path: Path) -> Iterator[io.TextIOWrapper]:
    """A text file in UTF-8 whose lines end as they are written."""
    with explained(path), whole_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.detach()  # flushed, and left open: it gets its name first


def _write(path: Path, content: bytes) -> None:
    """Replaces the file `path` at once."""
    with explained(path):
        write_bytes(path, content)


def _swept_away(error: BaseException | None) -> bool:
    """Whether an unfinished file vanished under us; on a shared file system its handle is then stale."""
    return isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESTALE)
