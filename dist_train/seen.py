"""What a model has seen, known by the pictures' files: however they are called elsewhere, and however they were cut.

best/
  seen.safetensors    trained_on, chosen_on: of the files of those pictures, the first 64 bits of the SHA-256

Copies of a picture that were resized or compressed again are other files: those the data doctor finds, before a build.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dist_train.collection import Collection, file_number
from dist_train.errors import ConfigError
from dist_train.tensor_files import save_tensors
from shards.manifest import Shards

SEEN = "seen.safetensors"


@dataclass(frozen=True)
class SeenFiles:
    """The files that a model was trained on, and those by which its epoch was chosen: int64 [files] each, as `file_numbers` has them."""

    trained_on: np.ndarray
    chosen_on: np.ndarray

    @classmethod
    def of(cls, collection: Collection, chooser: str) -> SeenFiles:
        """Of a run on `collection` whose epoch is chosen by the part `chooser`."""
        members = collection.members
        trained_on, chosen_on = (np.unique(np.concatenate([m.files[m.parts[part]] for m in members])) for part in ("train", chooser))
        return cls(trained_on.view(np.int64), chosen_on.view(np.int64))

    @classmethod
    def read(cls, path: Path) -> SeenFiles:
        """As it was saved in `path`. Raises ConfigError when something else lies there."""
        try:
            tensors = load_file(path)
            return cls(tensors["trained_on"].numpy(), tensors["chosen_on"].numpy())
        except (SafetensorError, OSError, LookupError) as error:
            raise ConfigError(f"{path}: is no list of files of this version ({error}); without it nobody knows what was seen") from error

    def save(self, path: Path) -> None:
        """Replaces the file `path` at once."""
        save_tensors(path, {"trained_on": torch.from_numpy(self.trained_on), "chosen_on": torch.from_numpy(self.chosen_on)})


def file_numbers(shards: Shards) -> np.ndarray:
    """The number of each picture's file (`file_number`): int64 [images]."""
    return np.fromiter((file_number(row, shards) for row in shards.image_rows()), np.uint64, len(shards)).view(np.int64)
