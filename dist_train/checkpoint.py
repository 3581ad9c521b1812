"""Everything a run needs to go on, in a folder that is either whole or not there.

    checkpoints/
      step-00000500/
        model.safetensors      weights and buffers
        optimizer.safetensors  Adam's moments, each under the name of its weight (moments.py)
        average.safetensors    the averaged weights, where the config wants them
        progress.json          step, early stops, rates, fp16's scale, what data it belongs to, what decides how numbers round,
                               and the SHA-256 of the files above and of itself

A checkpoint is written under a temporary name, synced and renamed, and never written to after that: a later one of the same step
takes its place whole. The newest one whose files are as it says is resumed from; a damaged one is passed over, aloud.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from dist_train.errors import ConfigError
from dist_train.retention import Retention
from dist_train.tensor_files import save_tensors
from dist_train.whole_files import as_json, write_json
from shards.manifest import file_sha256
from shards.whole_files import sync

NEEDED = ("model.safetensors", "optimizer.safetensors")
FORMAT = 2  # of what a checkpoint holds and means; 1 took the loss in units of the label
AVERAGE = "average.safetensors"
PROGRESS = "progress.json"


@dataclass(frozen=True)
class Checkpoint:
    """What is saved and what comes back. `average` is empty where the config wants none; `progress` is plain JSON."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]
    progress: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps taken so far."""
        return int(self.progress["step"])


def save_checkpoint(folder: Path, checkpoint: Checkpoint, retention: Retention, still_ours: Callable[[], None] = lambda: None) -> Path:
    """Writes `folder`/step-*, complete or not at all, then removes those that `retention` lets go.

    `still_ours` raises when the folder belongs to another job by now: then nothing is written, and nothing gets its name.
    """
    still_ours()
    target = folder / f"step-{checkpoint.step:08d}"
    part, replaced = folder / f".{target.name}.part", folder / f".{target.name}.replaced"
    for leftover in folder.glob(".step-*.part"):  # of a save that was cut off
        _remove(leftover)
    while part.exists():  # one that could not be removed
        part = part.with_suffix(".again.part")
    part.mkdir(parents=True)
    try:
        tensors = dict(zip(NEEDED, (checkpoint.model, checkpoint.optimizer), strict=True))
        if checkpoint.average:
            tensors[AVERAGE] = checkpoint.average
        for name, content in tensors.items():
            save_tensors(part / name, content)
        told = checkpoint.progress | {"format": FORMAT, "files": {name: file_sha256(part / name) for name in tensors} | {PROGRESS: ""}}
        told["files"][PROGRESS] = _sha256(as_json(told))
        write_json(part / PROGRESS, told)
        sync(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # so that a full disk has room for the status that says so
        raise
    still_ours()
    if target.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        target.rename(replaced)  # whole, and found, until its successor stands
    part.rename(target)
    sync(folder)
    standing = {_step_of(path): path for path in _standing(folder)}
    for old in [*folder.glob(".step-*.replaced"), *(standing[step] for step in retention.superseded(standing, checkpoint.step))]:
        _remove(old)
    return target


def _remove(path: Path) -> None:
    """Takes away what is not needed any more. Where that cannot be done, it is said: the run goes on, for its checkpoint is whole."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        print(f"note: {path} could not be removed ({error}), so it stays; delete it when you can", file=sys.stderr, flush=True)


def newest_complete_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint below `folder` whose files are whole; None when there is none. Damaged ones are said aloud.

    Raises ConfigError for one that cannot be read just now, as where a file server does not answer: it need not be damaged, and who began
    anew would lose it.
    """
    try:
        names = os.listdir(folder)  # Path.glob takes a folder that cannot be listed for an empty one
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(folder, error) from error
    of_a_step = re.compile(r"step-\d+|\.step-\d+\.replaced")  # where both are of one step, a save was cut off at its very end
    found = [folder / name for name in sorted(names) if of_a_step.fullmatch(name)]
    found.sort(key=_step_of)
    while found:
        path = found.pop()
        try:
            damage = _damage(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            damage = [f"{type(error).__name__}: {error}"]
        except (ValueError, LookupError, TypeError) as error:
            damage = [f"{PROGRESS}: {type(error).__name__}: {error}"]
        except OSError as error:
            raise _unreadable(path, error, ", and the run goes on from the checkpoint before it") from error
        if not damage:
            return path
        instead = f"going back to {found[-1].name}" if found else "there is none before it, so the run begins anew"
        say(f"checkpoint {path} is damaged ({', '.join(damage)}); {instead}")
    return None


def _unreadable(path: Path, error: OSError, instead: str = "") -> ConfigError:
    return ConfigError(
        f"{error.filename or path}: cannot be read ({error.strerror}); see that the disk is there and that you may read it, and "
        f"the same command goes on; where it is lost for good, delete {path}{instead}"
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """What was saved at `path`, on the CPU. Raises ConfigError for what another version of dist_train has saved."""
    progress = _read_progress(path)
    if (found := progress.get("format", 1)) != FORMAT:
        raise ConfigError(
            f"{path}: was saved by another version of dist_train (format {found}, here {FORMAT}), whose steps are others: go on with that "
            f"version, or train in another run.folder"
        )
    model, optimizer = (load_file(path / name) for name in NEEDED)
    average = load_file(path / AVERAGE) if AVERAGE in progress["files"] else {}
    return Checkpoint(model, optimizer, average, progress)


def _damage(path: Path) -> list[str]:
    """What is not as it was written; where progress.json cannot be read, what that raises."""
    content = (path / PROGRESS).read_bytes().decode()
    progress = json.loads(content)
    files, steps = progress["files"], {progress["step"], progress["progress"]["step"]}
    if missing := [name for name in (*NEEDED, PROGRESS) if name not in files]:
        return [f"{PROGRESS} does not tell of {name}" for name in missing]
    if _sha256(content.replace(files[PROGRESS], "")) != files[PROGRESS]:
        return [f"{PROGRESS} has changed"]
    if steps != {_step_of(path)}:
        return [f"{PROGRESS} is of step {' and '.join(map(str, steps))}"]
    return [f"{name} has changed" for name in files if name != PROGRESS and file_sha256(path / name) != files[name]]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_progress(path: Path) -> dict[str, Any]:
    progress: dict[str, Any] = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
    return progress


def _standing(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal()]


def _step_of(path: Path) -> int:
    return int(path.name.lstrip(".").removeprefix("step-").removesuffix(".replaced"))
