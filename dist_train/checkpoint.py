"""Everything a run needs to go on, in a folder that is either whole or not there.

    checkpoints/
      step-00000500/
        model.safetensors    weights and buffers
        optimizer.pt         Adam's moments, as plain tensors
        scores.safetensors   the training scores of the epoch so far, for its metrics
        progress.json        step, early stop, what data and config it belongs to, and the SHA-256 of the files above

A checkpoint is written under a temporary name, synced and renamed. The newest one whose files are as it says is resumed
from; a damaged one is passed over, aloud.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from shards.manifest import file_sha256


@dataclass(frozen=True)
class Checkpoint:
    """What is saved and what comes back. `progress` is plain JSON."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scores: dict[str, Tensor]
    progress: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps taken so far."""
        return int(self.progress["step"])


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes `folder`/step-*, complete or not at all, then removes all but the newest `keep`."""
    target = folder / f"step-{checkpoint.step:08d}"
    part = folder / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_tensors(part / "model.safetensors", checkpoint.model)
    torch.save(checkpoint.optimizer, part / "optimizer.pt")
    save_tensors(part / "scores.safetensors", checkpoint.scores)
    files = {path.name: file_sha256(path) for path in sorted(part.iterdir())}
    write_json(part / "progress.json", checkpoint.progress | {"files": files})
    for path in part.iterdir():
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    _sync(folder)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)
    return target


def newest_complete_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint below `folder` whose files are whole; None when there is none. Damaged ones are said aloud."""
    for path in _newest_first(folder):
        try:
            progress = _read_progress(path)
            changed = [name for name, digest in progress["files"].items() if file_sha256(path / name) != digest]
        except (OSError, ValueError, KeyError) as error:
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
        load_file(path / "scores.safetensors"),
        _read_progress(path),
    )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Writes safetensors atomically, with `about` as its metadata."""
    part = path.with_name(f".{path.name}.part")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, dict(about) if about else None)
    _sync(part)
    part.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON atomically."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _sync(part)
    part.replace(path)


def _read_progress(path: Path) -> dict[str, Any]:
    progress: dict[str, Any] = json.loads((path / "progress.json").read_text(encoding="utf-8"))
    return progress


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
