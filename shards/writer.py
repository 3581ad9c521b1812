"""A plan in, a shard folder out: shard by shard, in one process or several, the manifest last.

A build that was interrupted goes on with the shards that are not there yet, also after a bad picture was replaced or taken
out of the table.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.manifest import FORMAT, IMAGE_COLUMNS, ShardError, Shards, fingerprint_of, manifest_sha256
from shards.photographs import decoder_versions
from shards.plan import Plan, ShardTask
from shards.shard_file import complete_record, explained, npy_bytes, read_json, write_shard
from shards.splits import split_table
from shards.whole_files import sync, write_bytes
from shards.workers import worker_pool


def build(plan: Plan, out: Path, workers: int = 1) -> Shards:
    """Writes what is not yet written of `plan` below `out`, and opens the result.

    Raises ShardError when `out` holds anything but this build, or when a picture cannot be decoded; what was complete stays.
    """
    versions = _enter(out, plan)
    records = {task.file: record for task in plan.tasks if (record := complete_record(out, task))}
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
    begun, finished = read_json(note), read_json(out / "manifest.json")
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
        "index_sha256": _write(out / "index.npy", npy_bytes(index)),
        "images_sha256": _write(out / "images.csv", table.getvalue().encode()),
        "splits": {name: _write(out / "splits" / f"{name}.csv", split_table(parts)) for name, parts in plan.splits.items()},
        "shards": [{"file": r["file"], "bytes": r["bytes"], "sha256": r["sha256"], "images": len(r["rows"])} for r in records],
        "plan": plan.digest(),
        "versions": versions,
    }
    manifest["fingerprint"] = fingerprint_of(manifest)
    manifest["sha256"] = manifest_sha256(manifest)
    for folder in (out / "splits", out):  # a name is on the disk only when its folder is, and the manifest's must come last
        sync(folder)
    _write(out / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False).encode() + b"\n")


def _write(path: Path, content: bytes) -> str:
    """Replaces the file `path` at once; returns the SHA-256 of its content."""
    with explained(path):
        write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()
