"""A data set, whatever it looks like on disk: rows of id, file, opinion, std, group and part. And any user's own table.

Scores are kept as distributed. What stays together in a split is the group.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from shards import flive_table
from shards.folders import PictureFinder, missing_message
from shards.manifest import Label, ShardError, is_plain_name
from shards.rows import Row, Rows
from shards.tables import Record, Table, read_records

_NOT_IN_A_KEY = re.compile(r"[^\w-]+")  # a WebDataset key ends at the first dot and may not hold a slash
_BUT_KEPT = ("Mn", "Mc", "So")  # Unicode's categories of what tells names apart and is no letter: the vowels of Hindi and Thai, emoji

# What a table of one's own, pyiqa's meta csv and Q-Align's JSON lists call the same thing.
CALLED_IMAGE = ("image", "name", "img_name", "image_name", "img_path", "dist_name")
CALLED_SCORE = ("score", "mos", "gt_score", "dmos", "elo_score")
CALLED_GROUP = ("group", "ref_name", "hq_name")
CALLED_PART = ("split", "official_split")

Entry = TypeVar("Entry")
Refuse = Callable[[ShardError], None]  # is told what is wrong with a row, which is left out unless that raises


class OtherTableError(ShardError):
    """What is wrong with a row of another table than that of the images, such as one of the split: no image is left out for it."""


@dataclass(frozen=True)
class DataSet:
    """Everything a build needs to know of a data set. `rows` are sorted by id, and ids are unique."""

    name: str
    label: Label
    resize: str
    rows: Rows
    table: Path  # where the rows come from, for messages
    root: Path  # the folder that images.csv names the pictures from
    left_out: int = 0  # rows of it that cannot be used, which a doctor tells of; no build leaves one out


def stop_at(error: ShardError) -> None:
    """What a build does about a row that it cannot use."""
    raise error


def read_table(
    table: Path,
    images: Path,
    name: str | None = None,
    label: Label | None = None,
    resize: str = "none",
    direction_is_stated: bool = False,
    refuse: Refuse = stop_at,
) -> DataSet:
    """A data set from a table (csv, .xlsx, .json) with the columns image and score, and optionally std, group and split.

    Other names that such columns have in practice, in any case, are understood too. `image` is a path below the folder
    `images`, and an image's id is that path without its suffix. Without a group column every image is its own group.
    Without a `label` the opinions are taken as a MOS, higher is better, scale not stated. That of a column dmos is only taken so
    where `direction_is_stated`, by somebody who knows.
    Raises ShardError naming the file and row of the first bad row, unless `refuse` takes it.
    """
    records = read_records(table)
    if flive_table.IMAGE in records:
        raise ShardError(
            f"{table}: has the images of FLIVE and its patches, whose opinions are of different things: copy it into the folder of the "
            f"pictures, and give --root with that folder and --dataset flive (or flive_patches) instead of a table"
        )
    image, score = _needed(table, records, CALLED_IMAGE), _needed(table, records, CALLED_SCORE)
    if len(both := [name for name in CALLED_SCORE if name in records]) > 1:
        raise ShardError(f"{table}: has the columns {' and '.join(both)}; keep the one that is the opinion, and rename or delete the other")
    if score == "dmos" and not direction_is_stated and (label is None or label.higher_is_better):
        raise ShardError(f"{table}: has a column dmos: add --lower-is-better, or --higher-is-better if it is as KADID-10k's")
    if not images.is_dir():
        raise ShardError(f"{images}: there is no such folder; name the one that the image column of {table} is relative to")
    group, part, std = _column(records, CALLED_GROUP), _column(records, CALLED_PART), _column(records, ("std",))
    pictures = PictureFinder(images)
    other_names = [name for name in CALLED_IMAGE if name in records and name != image]

    def row(record: Record) -> Row:
        deviation = record.number(std) if std and record[std] else None
        content, stated = record[group] if group else None, record.part(part) if part else None
        found = row_of(record, image, score, pictures, std=deviation, group=content, part=stated)
        for other in (name for name in other_names if name in record and record[name] != record[image]):
            if os.path.isfile(file := pictures.find(record[other])) and file != found.file:
                raise ShardError(
                    f"{record.where}: column {image} names '{record[image]}', and column {other} names '{record[other]}'; "
                    f"take the column out that does not name the images"
                )
        return found

    label = label or Label("MOS", None, None, True)
    return data_set_of(name or table.resolve().parent.name, label, resize, each(records, row), table, images, refuse)


def each(entries: Iterable[Entry], row: Callable[[Entry], Row]) -> Iterator[Row | ShardError]:
    """The row of each entry of a table, or what is wrong with the entry."""
    for entry in entries:
        try:
            yield row(entry)
        except ShardError as error:
            yield error


def faults_in(records: Iterable[Record], take: Callable[[Record], object]) -> list[OtherTableError]:
    """Gives each record of another table to `take`; what is wrong with those that it raises ShardError for."""
    faults = []
    for record in records:
        try:
            take(record)
        except ShardError as error:
            faults.append(OtherTableError(str(error)))
    return faults


def row_of(
    record: Record,
    image: str,
    score: str,
    pictures: PictureFinder,
    *,
    std: float | None = None,
    group: str | None = None,
    part: str | None = None,
) -> Row:
    """The row of a record whose columns `image` and `score` hold a name and an opinion; without a group it is its own."""
    name = record[image]
    key = image_id(name, record.where)
    return Row(key, pictures.find(name), record.number(score), std, name if group is None else group, part, record.where)


def data_set_of(
    name: str, label: Label, resize: str, rows: Iterable[Row | ShardError], table: Path, root: Path, refuse: Refuse = stop_at
) -> DataSet:
    """The rows in order, once it is known that ids are unique and opinions differ and are on the scale.

    Raises ShardError otherwise, but for single rows that `refuse` takes: they are left out, and all but the first of one id.
    """
    if not is_plain_name(name) or not _is_text(name):
        raise ShardError(f"--name '{name}': is part of file names: text in UTF-8 without a slash, not empty, not '..'; choose another")
    if not _is_text(label.name):
        raise ShardError(f"--label '{label.name}': is no text in UTF-8; choose another")
    ordered, unique = Rows(_usable(rows, label, table, refuse)), True
    for one, other in ordered.twins():
        places = f"{one.file}, {one.where}, and {other.file}, {other.where}"
        refuse(ShardError(f"{table}: two rows have the id '{one.id}' ({places}); rename one, or take one out"))
        unique = False
    if not unique:
        ordered = Rows(next(same) for _, same in groupby(ordered, lambda row: row.id))
    if not ordered:
        raise ShardError(f"{table}: has no row of an image that can be used; see that it is the table of this data set")
    lowest, highest = ordered.opinion_range()
    if len(ordered) > 1 and lowest == highest:
        raise ShardError(f"{table}: all {len(ordered):,} opinions are {lowest:g}, so nothing can be learnt; name the right column score")
    return DataSet(name, label, resize, ordered, table, root)


def _is_text(name: str) -> bool:
    """Whether a manifest can say it: what a shell or a disk says need not be UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _usable(rows: Iterable[Row | ShardError], label: Label, table: Path, refuse: Refuse) -> Iterator[Row]:
    for row in rows:
        if isinstance(row, ShardError):
            refuse(row)
        elif fault := _fault(row, label, table):
            refuse(ShardError(fault))
        else:
            yield row


def _fault(row: Row, label: Label, table: Path) -> str | None:
    """What is wrong with a row that was read, and what to do about it."""
    if not row.group:
        return (
            f"{row.where}: does not say which content '{row.file.name}' shows, that is what a split keeps together; "
            f"write it, or the image's own name if nothing else shows the same"
        )
    if row.std is not None and row.std < 0:
        return f"{row.where}: the std {row.std:g} is no standard deviation; correct it, or take the column out"
    if label.low is not None and label.high is not None and not label.low <= row.opinion <= label.high:
        return (
            f"{table}: image '{row.id}' has the opinion {row.opinion:g}, outside the scale of {label.low:g} to {label.high:g} "
            f"({row.where}); correct the row, or state the scale that the opinions are on"
        )
    return None


def missing_pictures(data_set: DataSet) -> Iterator[Row]:
    """The rows whose picture is not on the disk."""
    files = enumerate(data_set.rows.files())
    return (data_set.rows[number] for number, file in files if not os.path.isfile(file))  # of Path, too long a name is an error


def refuse_missing_pictures(data_set: DataSet) -> None:
    """Raises ShardError that counts the pictures that are not on the disk and names the first, with its row."""
    missing = missing_pictures(data_set)
    if first := next(missing, None):
        raise ShardError(missing_message(first.file, first.where, 1 + sum(1 for _ in missing), len(data_set.rows)))


@contextmanager
def naming(row: Row) -> Iterator[None]:
    """A ShardError about the row's picture also says where the table names it."""
    try:
        yield
    except ShardError as error:
        raise ShardError(f"{error} ({row.where})") from error


def image_id(name: str, where: str) -> str:
    """The id of the image at the relative path `name`: the path without its suffix, fit for a WebDataset key."""
    stem = str(Path(name).with_suffix("")) if Path(name).name else ""
    if not stem:
        raise ShardError(f"{where}: there is no image name; write one, or take the row out")
    one_form = unicodedata.normalize("NFC", stem)  # macOS takes accents apart
    key = _NOT_IN_A_KEY.sub(_in_a_key, one_form)
    if not key.strip("_"):
        raise ShardError(f"{where}: '{name}' has no letter or digit to call the image by; rename the picture, or take the row out")
    return key.strip("_")


def _in_a_key(run: re.Match[str]) -> str:
    stretches = groupby(run[0], lambda sign: unicodedata.category(sign) in _BUT_KEPT)
    return "".join("".join(stretch) if is_kept else "_" for is_kept, stretch in stretches)


def _needed(path: Path, table: Table, names: Sequence[str]) -> str:
    """The first of `names` that the table has. Raises ShardError when it has none."""
    if found := _column(table, names):
        return found
    raise ShardError(
        f"{path}: lacks a column {names[0]} (or {', '.join(names[1:])}, in any case); it has: {', '.join(table.columns)}; "
        f"rename the one that is meant"
    )


def _column(table: Table, names: Sequence[str]) -> str | None:
    """The first of `names` that the table has, or None. An entry of a JSON list may lack what the others have: its record says so."""
    return next((name for name in names if name in table), None)
