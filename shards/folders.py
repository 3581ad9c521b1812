"""What a folder holds, compared with what a table says of it: wrong roots, half-unpacked archives, names that differ by a hair.

A name is found although the disk writes it in another case (I01.BMP, i01.bmp), in another Unicode form (macOS takes an
accent apart) or with the other slash; what is not found is counted, and the message says where to look.
"""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from pathlib import Path

from shards.manifest import ShardError
from shards.scratch import Scratch

_ARCHIVES = {".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".001", ".z01"}


class PictureFinder:
    """The files below a folder, found by the names that a table has for them. A folder is listed once, and only where it must be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: set[Path] = set()
        self._names = Scratch()
        self._names.executescript("create table names (folder, form, name); create index by_form on names (folder, form)")

    def find(self, name: str) -> Path:
        """The file called `name`, relative to the folder; the path as written where there is none."""
        written = self.folder / name
        if os.path.lexists(written):
            return written
        found = self.folder
        for part in re.split(r"[/\\]", name):
            alike = self._alike(found, part)
            found = found / (alike[0] if len(alike) == 1 else part)  # which of two is meant is not for us to say
        return found if os.path.exists(found) else written

    def _alike(self, folder: Path, name: str) -> list[str]:
        """The names in a folder that differ from `name` by a hair at most."""
        place = os.fsencode(folder)
        if folder not in self._listed:
            self._listed.add(folder)
            held = os.scandir(folder) if folder.is_dir() else ()
            names = ((place, _loosely(each.name), os.fsencode(each.name)) for each in held)
            self._names.executemany("insert into names values (?, ?, ?)", names)
        found = self._names.execute("select name from names where folder = ? and form = ?", (place, _loosely(name)))
        return [os.fsdecode(each) for (each,) in found]


class Root:
    """The folder that a public data set was unpacked to; a part that is not there is an error that says what to do."""

    def __init__(self, path: Path, title: str) -> None:
        self.path, self.title = path, title
        self._is_right = False  # once a part was found in it, its neighbours are not the root that was meant

    def optional(self, *names: str) -> Path | None:
        """The first of `names`, files or folders below the root, that is there, or None."""
        return next((found for name in names if (found := PictureFinder(self.path).find(name)).exists()), None)

    def part(self, *names: str) -> Path:
        """The first of `names`, files or folders below the root, that is there.

        Raises ShardError with what was expected and found, the root that has it when it is a level up or down, and the
        archives that lie around.
        """
        if found := self.optional(*names):
            self._is_right = True
            return found
        if not self.path.is_dir():
            raise ShardError(f"{self.path}: there is no such folder; point --root at the one that {self.title} was unpacked to")
        beside = sorted(self.path.iterdir())
        expected = f"{self.path}: expected {' or '.join(names)} of {self.title}"
        around = (self.path.resolve().parent, *filter(Path.is_dir, beside))
        for other in (folder for folder in around if os.access(folder, os.R_OK | os.X_OK)):  # a disk has a lost+found
            if any(PictureFinder(other).find(name).exists() for name in names):
                if not self._is_right:
                    raise ShardError(f"{expected}, which {other} has; give --root {other}")
                if other in beside:  # archives that were unpacked side by side
                    raise ShardError(f"{expected}, which {other} has; move it to {self.path}")
        held = ", ".join(path.name for path in beside[:6]) + (" ..." if len(beside) > 6 else "")
        raise ShardError(f"{expected}; it holds {held or 'nothing'}; {_unpack(self.path) or 'point --root at the folder that has it'}")


def missing_message(first: Path, where: str, missing: int, total: int) -> str:
    """What to say of files that are not there: the first of them, where the table names it, their number, and that of all."""
    return f"{first.absolute()}: there is no such file ({where}), {missing:,} of {total:,} pictures are missing; {where_to_look(first)}"


def where_to_look(missing: Path) -> str:
    """What to do about a file that is not there, by what lies around it."""
    file = missing.absolute()
    one_level_off = [*glob.glob(f"{glob.escape(str(file.parent))}/*/{glob.escape(file.name)}"), str(file.parents[1] / file.name)]
    if elsewhere := next((path for path in one_level_off if os.path.isfile(path)), None):
        return f"{elsewhere} is there: name the folder that the table's names are relative to"
    return _unpack(file.parent, file.parents[1]) or "check the table's names and the image folder, or take the rows out of the table"


def _unpack(*folders: Path) -> str:
    seen = (folder for folder in folders if folder.is_dir() and os.access(folder, os.R_OK))
    archives = sorted({path.name for folder in seen for path in folder.iterdir() if path.suffix.lower() in _ARCHIVES})
    return f"{', '.join(archives[:3])} lies there: unpack it, completely" if archives else ""


def _loosely(name: str) -> bytes:
    return unicodedata.normalize("NFC", name).casefold().encode(errors="surrogateescape")
