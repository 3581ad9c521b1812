"""Files that are whole or not there: written under a temporary name, synced, renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is on the disk, and leaves nothing behind when it fails."""
    part = part_path(path)
    try:
        with part.open("wb") as file:
            yield file
        put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces the file `path` at once."""
    with whole_file(path) as file:
        file.write(content)


def write_once(path: Path, content: bytes) -> None:
    """Writes the file `path` unless somebody was first: whatever happens at the same time, one content is there, and stays."""
    part = part_path(path)
    try:
        part.write_bytes(content)
        sync(part)
        try:
            os.link(part, path)  # the one step that a shared file system lets just one machine take
        except FileExistsError:
            pass
        except OSError:
            if not path.exists():  # a file system without hard links, such as that of a memory stick
                part.replace(path)
    except FileNotFoundError:  # swept away, by whoever was first
        if not path.exists():
            raise
    finally:
        part.unlink(missing_ok=True)


def part_path(path: Path) -> Path:
    """A temporary name for `path`, of this one use: two writers that meet must not write into one file.

    It says for people who writes there. That is not enough: two containers may agree in host and process number.
    """
    return path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}.part")


def put_in_place(part: Path, path: Path) -> None:
    """Gives a finished file its name, once its content is on the disk."""
    sync(part)
    part.replace(path)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
