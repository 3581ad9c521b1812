"""A plan in, a shard folder out: every share of the shards by whoever takes it, the folder by whoever finds all of them there.

Any number of builds may work in one folder at once, on machines that share a file system, in any order, and each may be
killed at any moment. There are no locks that could go stale; it is correct because
- the bytes of a file follow from the plan and the pictures, so whoever writes a file twice writes the same bytes,
- a file gets its name when it is whole, and the record of a shard is written when the shard has its name,
- what is to be decided once, the versions of the decoders, is decided by whoever is first to write it down,
- only whoever has finished the folder sweeps away unfinished files, and a build that loses one so finds it complete.

A build that was interrupted goes on with the shards that are not there yet, also after a bad picture was replaced or taken
out of the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from shards.codecs import codec_versions
from shards.finish import finish
from shards.manifest import ShardError, Shards
from shards.photographs import decoder_versions
from shards.plan import Plan, ShardTask, Tasks
from shards.progress import Counts, Progress
from shards.shard_file import complete_record, explained, record_path, replaced_pictures, write_shard
from shards.whole_files import write_once
from shards.workers import WorkerPool

_PAUSE = 0.2  # seconds between two looks at what the workers have counted


@dataclass(frozen=True)
class Share:
    """One of `total` shares of the shards, `number` from 1: every `total`-th shard, so that all shares take about as long."""

    number: int = 1
    total: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def of(self, tasks: Tasks) -> Tasks:
        """The tasks of this share."""
        return tasks[self.number - 1 :: self.total]


def build(plan: Plan, out: Path, workers: int = 1) -> Shards:
    """Writes what is not yet written of `plan` below `out`, and opens the result.

    Raises ShardError when `out` holds anything but this build, or when a picture cannot be decoded; what was complete stays.
    """
    shards = build_share(plan, out, Share(), workers)
    assert shards is not None, "one share of one is all of them"
    return shards


def build_share(plan: Plan, out: Path, share: Share, workers: int = 1) -> Shards | None:
    """Writes what is not yet written of a share; finishes and opens the folder when that was the last, else returns None.

    Raises ShardError as `build` does.
    """
    versions = _enter(out, plan)
    own = share.of(plan.tasks)
    _forget_replaced(out, own)
    waiting = own.where(lambda task: not complete_record(out, task))
    if waiting and versions != _versions(plan):
        raise ShardError(
            f"{out}: was begun with {_listed(versions)}, and this is {_listed(_versions(plan))}: "
            f"the pixels might differ; go on with those versions, choose another --out, or delete that folder"
        )
    with Progress(own.images, done=own.images - waiting.images) as progress:
        _write_all(out, waiting, workers, progress)
    if share.total > 1 and missing_shards(plan, out):
        return None
    finish(plan, out, versions)
    return Shards(out)


def _forget_replaced(out: Path, tasks: Tasks) -> None:
    """So that shards whose pictures were replaced are written again. Raises ShardError where the folder is finished, and so fixed."""
    for task in tasks:
        replaced: list[Path] = []
        with suppress(OSError, ValueError):  # a record that is damaged, or that somebody writes just now
            replaced = replaced_pictures(out, task)
        if replaced and (out / "manifest.json").exists():
            raise ShardError(
                f"{replaced[0]}: was replaced since {out / task.file} was written from it; put the old one back, choose another --out, "
                f"or delete that folder"
            )
        if replaced:
            record_path(out, task).unlink(missing_ok=True)


def missing_shards(plan: Plan, out: Path) -> int:
    """How many shards of a plan are not complete."""
    return sum(complete_record(out, task) is None for task in plan.tasks)


def _write_all(out: Path, tasks: Tasks, workers: int, progress: Progress) -> None:
    """Writes the tasks, in this process or in several.

    No worker has a second task in store: after an error what is being written is finished, and nothing new is begun.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            progress.begin(task.file)
            write_shard(out, task, partial(progress.add, 1))
        return
    counts, waiting = Counts(workers), iter(tasks)
    try:
        with WorkerPool(workers, _count_in, counts) as pool:
            running: dict[Future[None], int] = {}  # each with its place among the counts

            def begin(place: int) -> None:
                for task in islice(waiting, 1):
                    progress.begin(task.file)
                    running[pool.submit(_write_and_count, out, task, place)] = place

            for place in range(workers):
                begin(place)
            while running:
                done, _ = wait(running, _PAUSE, FIRST_COMPLETED)
                for future in done:
                    place = running.pop(future)
                    future.result()
                    begin(place)
                progress.reach(*counts.total())
    except BrokenProcessPool as error:
        raise ShardError(
            f"{out}: a worker process was killed, perhaps for want of memory; "
            f"run the same command with fewer --workers, it goes on where this one stopped"
        ) from error


_counts: Counts  # of a worker process: shared with the one that it works for


def _count_in(counts: Counts) -> None:
    global _counts
    _counts = counts


def _write_and_count(out: Path, task: ShardTask, place: int) -> None:
    write_shard(out, task, partial(_counts.add, place))


def _enter(out: Path, plan: Plan) -> dict[str, str]:
    """Makes `out` ready for a plan; returns the versions of the decoders that its shards are begun with.

    Raises ShardError when `out` holds another build, or files that are no build of ours.
    """
    note = out / ".build" / "plan.json"
    strangers = sorted(path.name for path in out.glob("*") if path != note.parent)  # before the note: another build may be at its start
    begun, finished = _read_json(note), _read_json(out / "manifest.json")
    if finished and finished.get("plan") != plan.digest():
        raise ShardError(
            f"{out}: holds the shards of another table, of other settings or of an older version; choose another --out, "
            f"or delete that folder"
        )
    if strangers and not begun and not finished:
        raise ShardError(f"{out}: is not empty ({strangers[0]}) and holds no build of ours; choose a new or empty folder as --out")
    if not begun:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ShardError(f"{out}: cannot be made ({error.strerror}); choose another --out") from error
        own = {"choices": plan.choices(), "versions": finished["versions"] if finished else _versions(plan)}
        with explained(note):
            if note.exists() and not _read_json(note):  # it was damaged; another build's, which came since we looked, stays
                note.unlink()
            write_once(note, json.dumps(own).encode())
        begun = _read_json(note) or own
    if changed := [name for name, choice in plan.choices().items() if begun["choices"].get(name) != choice]:
        raise ShardError(f"{out}: was begun with another {', '.join(changed)}; choose another --out, or delete that folder")
    versions: dict[str, str] = begun["versions"]
    return versions


def _read_json(path: Path) -> dict[str, Any] | None:
    """What a file of ours says; None when it is missing or damaged."""
    with suppress(OSError, ValueError):
        said: dict[str, Any] = json.loads(path.read_bytes())
        return said
    return None


def _versions(plan: Plan) -> dict[str, str]:
    return decoder_versions() | codec_versions(plan.layout.codec)


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
