"""The rows of a data set in the order of their ids, on the disk: what is in memory does not grow with their number.

Beside the rows there are the contents, that is what the groups name, numbered from 0. An array that has an element per image
or per content, in these orders, is how everything else speaks of all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np

from shards.manifest import part_number
from shards.scratch import Scratch


@dataclass(frozen=True, slots=True)
class Row:
    """One image: its id, where the file is, and what people said of it."""

    id: str
    file: Path
    opinion: float
    std: float | None  # of the single ratings, on the scale of the opinion
    group: str
    part: str | None  # train, val or test in the official split; None when there is none
    where: str = field(default="", compare=False)  # the table and the row in it, for messages


class Rows(Sequence[Row]):
    """Rows sorted by id, those of one id as they came. A slice is a list of its rows."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._scratch = Scratch()
        self._scratch.create_function("place", 2, _place, deterministic=True)
        self._scratch.execute("create table poured (id, file, opinion, std, content, part, place)")
        self._scratch.executemany("insert into poured values (?, ?, ?, ?, ?, ?, ?)", map(_packed, rows))
        self._scratch.execute("create table rows as select * from poured order by id, rowid")  # which makes rowid count from 1
        self._scratch.execute("drop table poured")
        self._scratch.execute("create table contents as select content as name, count(*) as images from rows group by content")
        self._scratch.execute("create unique index by_name on contents (name)")
        counts = self._scratch.execute("select (select count(*) from rows), (select count(*) from contents)").fetchone()
        self._length, self.num_contents = map(int, counts)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        numbers = range(self._length)[number]
        if isinstance(numbers, int):
            return next(self._some(numbers, numbers + 1))
        return list(self._some(numbers.start, numbers.stop)) if numbers.step == 1 else [self[each] for each in numbers]

    def __iter__(self) -> Iterator[Row]:
        return self._some(0, self._length)

    def _some(self, first: int, last: int) -> Iterator[Row]:
        return map(_unpacked, self._scratch.execute("select * from rows where rowid > ? and rowid <= ? order by rowid", (first, last)))

    def ids(self) -> Iterator[str]:
        """The ids in ascending order."""
        return (image for (image,) in self._scratch.execute("select id from rows order by rowid"))

    def files(self) -> Iterator[bytes]:
        """Where the pictures are, in the order of the ids, as the disk is asked for them."""
        return (file for (file,) in self._scratch.execute("select file from rows order by rowid"))

    def twins(self) -> Iterator[tuple[Row, Row]]:
        """Every two rows that follow each other and have one id."""
        found = self._scratch.execute(
            "select one.rowid - 1 from rows one join rows other on other.rowid = one.rowid + 1 where one.id = other.id order by one.rowid"
        )
        return ((self[number], self[number + 1]) for (number,) in found)

    def opinion_range(self) -> tuple[float, float]:
        """The lowest and the highest opinion."""
        low, high = self._scratch.execute("select min(opinion), max(opinion) from rows").fetchone()
        return low, high

    def parts(self) -> np.ndarray:
        """What each row states as its part, as manifest.part_number writes it: uint8 [images]."""
        stated = self._scratch.execute("select part from rows order by rowid")
        return np.fromiter((part_number(part) for (part,) in stated), np.uint8, self._length)

    @cached_property
    def contents(self) -> np.ndarray:
        """The number of the content that each image shows: int32 [images]."""
        numbers = self._scratch.execute(
            "select contents.rowid - 1 from rows cross join contents on contents.name = rows.content order by rows.rowid"
        )
        return np.fromiter((number for (number,) in numbers), np.int32, self._length)

    def shuffled_contents(self, key: str) -> Iterator[tuple[int, int]]:
        """Each content's number and how many images show it, in the order of a hash of `key` and the group's name."""
        return iter(self._scratch.execute("select rowid - 1, images from contents order by place(?, name)", (key,)))

    def of_each_content(self, values: np.ndarray) -> np.ndarray:
        """What `values` [images] says of the last image of each content: [contents]."""
        found = np.empty(self.num_contents, values.dtype)
        found[self.contents] = values
        return found


def _place(key: str, content: str) -> bytes:
    return hashlib.sha256(f"{key}/{content}".encode()).digest()


def _packed(row: Row) -> tuple[object, ...]:
    return (row.id, _as_bytes(str(row.file)), row.opinion, row.std, row.group, row.part, _as_bytes(row.where))


def _unpacked(stored: tuple[str, bytes, float, float | None, str, str | None, bytes]) -> Row:
    image, file, opinion, std, content, part, where = stored
    return Row(image, Path(_as_text(file)), opinion, std, content, part, _as_text(where))


def _as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")  # a folder may have a name that is no text


def _as_text(content: bytes) -> str:
    return content.decode(errors="surrogateescape")
