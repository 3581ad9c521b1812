"""A place on the disk for what would not fit into memory, for the time of a process: SQLite's temporary database.

A few MB of it are kept in memory, so a small one never touches the disk. The rest lies in a file without a name, in the folder
that SQLITE_TMPDIR or TMPDIR says, else in /var/tmp, and is gone when the process is, however that ends.
"""

from __future__ import annotations

import sqlite3

_CACHE = 16 << 10  # KiB; sorting takes as much again


class Scratch(sqlite3.Connection):
    """A database of its own, empty and writable. Whatever the disk refuses is a sqlite3.Error."""

    def __init__(self) -> None:
        super().__init__("", check_same_thread=False)  # used by one thread, and thrown away by whichever comes along
        self.executescript(f"pragma journal_mode = off; pragma synchronous = off; pragma cache_size = -{_CACHE}")  # nothing to keep

    def __del__(self) -> None:
        self.close()
