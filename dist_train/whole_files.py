"""Files that are whole or not there: written under a temporary name, synced, renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Replaces the file `path` at once."""
    part = _part(path)
    part.write_text(text, encoding="utf-8", newline="")
    sync(part)
    part.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces the file `path` by JSON, at once."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Replaces the file `path` by safetensors, at once, with `about` as their metadata."""
    part = _part(path)
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, dict(about) if about else None)
    part.chmod(0o644)  # safetensors makes files that only their owner can read
    sync(part)
    part.replace(path)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
