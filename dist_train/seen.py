"""What a model has seen, known by the pictures' files: however they are called elsewhere, and however they were cut.

best/
  seen.safetensors    trained_on, chosen_on: of the files of those pictures, the first 64 bits of the SHA-256; also of those that the
                      model had seen before the run, where it started from another (see origin)

Copies of a picture that were resized or compressed again are other files: those the data doctor finds, before a build.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dist_train.collection import Collection, file_number
from dist_train.errors import ConfigError
from dist_train.tensor_files import read_about, save_tensors
from shards.manifest import Shards

SEEN = "seen.safetensors"


@dataclass(frozen=True)
class SeenFiles:
    """The files that a model was trained on, and those by which its epoch was chosen: int64 [files] each, as `file_numbers` has them."""

    trained_on: np.ndarray
    chosen_on: np.ndarray
    is_all: bool = True  # False where it may have seen others, of which nobody knows

    @classmethod
    def of(cls, collection: Collection, chooser: str) -> SeenFiles:
        """Of a run on `collection` whose epoch is chosen by the part `chooser`."""
        members = collection.members
        trained_on, chosen_on = (np.unique(np.concatenate([m.files[m.parts[part]] for m in members])) for part in ("train", chooser))
        return cls(trained_on.view(np.int64), chosen_on.view(np.int64))

    @classmethod
    def unknown(cls) -> SeenFiles:
        """Of a model of which nobody knows."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), False)

    @classmethod
    def read(cls, path: Path) -> SeenFiles:
        """As it was saved in `path`. Raises ConfigError when something else lies there."""
        try:
            tensors = load_file(path)
            return cls(tensors["trained_on"].numpy(), tensors["chosen_on"].numpy(), read_about(path).get("is_all", True))
        except (SafetensorError, OSError, ValueError, LookupError) as error:
            raise ConfigError(f"{path}: is no list of files of this version ({error}); without it nobody knows what was seen") from error

    def joined(self, others: SeenFiles) -> SeenFiles:
        """These and others."""
        return SeenFiles(
            np.union1d(self.trained_on, others.trained_on), np.union1d(self.chosen_on, others.chosen_on), self.is_all and others.is_all
        )

    def save(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Replaces the file `path` at once. `about` is told with them, as JSON."""
        tensors = {"trained_on": torch.from_numpy(self.trained_on), "chosen_on": torch.from_numpy(self.chosen_on)}
        save_tensors(path, tensors, ({} if self.is_all else {"is_all": False}) | dict(about or {}))


def file_numbers(shards: Shards) -> np.ndarray:
    """The number of each picture's file (`file_number`): int64 [images]."""
    return np.fromiter((file_number(row, shards) for row in shards.image_rows()), np.uint64, len(shards)).view(np.int64)
