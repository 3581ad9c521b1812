"""Tensors in safetensors files, each whole or not there, with a few words about them inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from shards.whole_files import part_path, put_in_place

_ABOUT = "dist_train"  # one key of metadata: safetensors writes several in random order, and equal files should be equal bytes


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any] | None = None) -> None:
    """Replaces the file `path` by safetensors, at once, with `about` as JSON in their metadata."""
    part = part_path(path)
    metadata = {_ABOUT: json.dumps(about)} if about else None
    try:
        part.touch()  # with the rights that this user gives to new files; safetensors would give its own
        rights = part.stat().st_mode & 0o777
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, metadata)
        part.chmod(rights)
        put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the tensors, their names, types and shapes, however they lie in memory."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_about(path: Path) -> dict[str, Any]:
    """What `save_tensors` was told about the tensors in `path`; empty for a file of somebody else."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    about: dict[str, Any] = json.loads(metadata.get(_ABOUT, "{}"))
    return about
