"""Everything a run needs to go on, in a folder that is either whole or not there.

    checkpoints/
      step-00000500/
        model.safetensors    weights and buffers
        optimizer.pt         Adam's moments, as plain tensors
        average.safetensors  the averaged weights, where the config wants them (else it holds nothing)
        scores.safetensors   the training scores of the epoch so far, for its metrics
        progress.json        step, early stop, what data and config it belongs to, and the SHA-256 of the files above

A checkpoint is written under a temporary name, synced and renamed. The newest one whose files are as it says is resumed
from; a damaged one is passed over, aloud.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dist_train.whole_files import save_tensors, write_json
from shards.manifest import file_sha256
from shards.whole_files import sync

FILES = ("model.safetensors", "optimizer.pt", "average.safetensors", "scores.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What is saved and what comes back. `progress` is plain JSON."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Tensor]
    scores: dict[str, Tensor]
    progress: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps taken so far."""
        return int(self.progress["step"])


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `folder`/step-*, complete or not at all, then removes all but the newest `keep`."""
    target = folder / f"step-{checkpoint.step:08d}"
    part, replaced = folder / f".{target.name}.part", folder / f".{target.name}.replaced"
    for leftover in folder.glob(".step-*"):  # of a save that was cut off
        shutil.rmtree(leftover)
    part.mkdir(parents=True)
    try:
        save_tensors(part / "model.safetensors", checkpoint.model)
        torch.save(checkpoint.optimizer, part / "optimizer.pt")
        save_tensors(part / "average.safetensors", checkpoint.average)
        save_tensors(part / "scores.safetensors", checkpoint.scores)
        files = {name: file_sha256(part / name) for name in FILES}
        write_json(part / "progress.json", checkpoint.progress | {"files": files})
        for path in (part / "optimizer.pt", part):  # the other files have been synced as they were written
            sync(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # so that a full disk has room for the status that says so
        raise
    if target.exists():
        target.rename(replaced)  # whole until its successor stands
    part.rename(target)
    sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    for old in [path for path in _newest_first(folder) if path.name <= target.name][keep:]:  # a later one is damaged and does not count
        shutil.rmtree(old)
    return target


def newest_complete_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint below `folder` whose files are whole; None when there is none. Damaged ones are said aloud."""
    for path in _newest_first(folder):
        try:
            progress = _read_progress(path)
            changed = [name for name in FILES if file_sha256(path / name) != progress["files"][name]]
        except (OSError, ValueError, LookupError, TypeError) as error:
            changed = [str(error)]
        if not changed:
            return path
        say(f"checkpoint {path} is damaged ({', '.join(changed)}); going back to the one before")
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """What was saved at `path`, on the CPU. Nothing is unpickled."""
    return Checkpoint(
        load_file(path / "model.safetensors"),
        torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
        load_file(path / "average.safetensors"),
        load_file(path / "scores.safetensors"),
        _read_progress(path),
    )


def _read_progress(path: Path) -> dict[str, Any]:
    progress: dict[str, Any] = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    return progress


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)
