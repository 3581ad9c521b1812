"""What is said when there is no room for what a run writes: which folder, which disk, and what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_train.errors import TrainingError

_NO_ROOM = {number: os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)}
_IN_WORDS = re.compile(r"\bos error (\d+)\b")  # safetensors writes by itself, and has only words for what happened


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Raises TrainingError in place of any error that comes from a disk, or a quota, without room for `folder`."""
    try:
        yield
    except Exception as error:
        words = _IN_WORDS.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(words[1]) if words else None
        if number not in _NO_ROOM:
            raise
        disk = folder.absolute()
        while not os.path.ismount(disk):
            disk = disk.parent
        room = shutil.disk_usage(disk)
        raise TrainingError(
            f"{folder}: cannot be written, {_NO_ROOM[number]}: the disk {disk} has {room.free / 1e6:,.0f} MB left "
            f"of {room.total / 1e6:,.0f}; make room there and give the same command again, which goes on from the newest checkpoint"
        ) from error
