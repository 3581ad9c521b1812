"""What a folder holds, compared with what a table says of it: wrong roots, half-unpacked archives, names that differ by a hair.

A name is found although the disk writes it in another case (I01.BMP, i01.bmp), in another Unicode form (macOS takes an
accent apart) or with the other slash; what is not found is counted, and the message says where to look.
"""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from shards.manifest import ShardError

_ARCHIVES = {".zip", ".rar", ".7z", ".tar", ".tgz", ".gz", ".001", ".z01"}


class Pictures:
    """The files below a folder, found by the names that a table has for them. A folder is listed once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[Path, tuple[set[str], dict[str, str]]] = {}

    def find(self, name: str) -> Path:
        """The file called `name`, relative to the folder; the path as written where there is none."""
        written = self.folder / name
        if written.name in self._listing(written.parent)[0]:
            return written
        found = self.folder
        for part in re.split(r"[/\\]", name):
            found = found / self._listing(found)[1].get(_loosely(part), part)
        return found if os.path.exists(found) else written

    def _listing(self, folder: Path) -> tuple[set[str], dict[str, str]]:
        """The names in a folder, and each by its loose form; a loose form that two names share leads to neither."""
        if folder not in self._listings:
            names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            by_loose_form: dict[str, str] = {}
            shared = {form for name in names if by_loose_form.setdefault(form := _loosely(name), name) != name}
            self._listings[folder] = names, {form: name for form, name in by_loose_form.items() if form not in shared}
        return self._listings[folder]


class Root:
    """The folder that a public data set was unpacked to; a part that is not there is an error that says what to do."""

    def __init__(self, path: Path, title: str) -> None:
        self.path, self.title = path, title
        self._is_right = False  # once a part was found in it, its neighbours are not the root that was meant

    def part(self, *names: str) -> Path:
        """The first of `names`, files or folders below the root, that is there.

        Raises ShardError with what was expected and found, the root that has it when it is a level up or down, and the
        archives that lie around.
        """
        for name in names:
            if (found := Pictures(self.path).find(name)).exists():
                self._is_right = True
                return found
        if not self.path.is_dir():
            raise ShardError(f"{self.path}: there is no such folder; point --root at the one that {self.title} was unpacked to")
        beside = sorted(self.path.iterdir())
        expected = f"{self.path}: expected {' or '.join(names)} of {self.title}"
        for other in (self.path.resolve().parent, *filter(Path.is_dir, beside)):
            if not self._is_right and any(Pictures(other).find(name).exists() for name in names):
                raise ShardError(f"{expected}, which {other} has; give --root {other}")
        held = ", ".join(path.name for path in beside[:6]) + (" ..." if len(beside) > 6 else "")
        raise ShardError(f"{expected}; it holds {held or 'nothing'}; {_unpack(self.path) or 'point --root at the folder that has it'}")


def missing_message(missing: Sequence[tuple[Path, str]], total: int) -> str:
    """What to say of files that are not there, given as (file, where the table names it), out of `total` in the table."""
    file, where = missing[0][0].absolute(), missing[0][1]
    one_level_off = [*glob.glob(f"{glob.escape(str(file.parent))}/*/{glob.escape(file.name)}"), str(file.parents[1] / file.name)]
    if elsewhere := next((path for path in one_level_off if os.path.isfile(path)), None):
        hint = f"{elsewhere} is there: name the folder that the table's names are relative to"
    else:
        hint = _unpack(file.parent, file.parents[1]) or "check the table's names and the image folder, or take the rows out of the table"
    return f"{file}: there is no such file ({where}), {len(missing):,} of {total:,} pictures are missing; {hint}"


def _unpack(*folders: Path) -> str:
    archives = sorted({path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.suffix.lower() in _ARCHIVES})
    return f"{', '.join(archives[:3])} lies there: unpack it, completely" if archives else ""


def _loosely(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
