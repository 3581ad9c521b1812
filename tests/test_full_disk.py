"""Whoever finds no room to write, the error that is told names the folder, the disk and what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dist_train.errors import TrainingError
from dist_train.full_disk import naming_a_full_disk


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_an_error_for_want_of_room_names_the_folder_and_its_disk(tmp_path: Path, error: Exception) -> None:
    disk = next(folder for folder in tmp_path.parents if os.path.ismount(folder))
    said = rf"run: cannot be written, (No space|Disk quota).*: the disk {disk} has [\d,]+ MB left of"
    with pytest.raises(TrainingError, match=said), naming_a_full_disk(tmp_path / "run"):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), SafetensorError("(os error 5)"), ValueError("28"), OSError()])
def test_any_other_error_stays_what_it_is(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming_a_full_disk(tmp_path):
        raise error
    assert caught.value is error
