"""A data set, whatever it looks like on disk: rows of id, file, opinion, std, group and part. And any user's own table.

Scores are kept as distributed. What stays together in a split is the group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from shards.manifest import Label, ShardError
from shards.tables import number_in, part_in, read_csv

_NOT_IN_A_KEY = re.compile(r"[^\w-]+")  # a WebDataset key ends at the first dot and may not hold a slash


@dataclass(frozen=True)
class Row:
    """One image: its id, where the file is, and what people said of it."""

    id: str
    file: Path
    opinion: float
    std: float | None  # of the single ratings, on the scale of the opinion
    group: str
    part: str | None  # train, val or test in the official split; None when there is none


@dataclass(frozen=True)
class DataSet:
    """Everything a build needs to know of a data set. `rows` are sorted by id, and ids are unique."""

    name: str
    label: Label
    resize: str
    rows: tuple[Row, ...]
    table: Path  # where the rows come from, for messages


def read_table(
    table: Path,
    images: Path,
    name: str | None = None,
    label: Label | None = None,
    resize: str = "none",
) -> DataSet:
    """A data set from a csv with the columns image and score (or mos), and optionally std, group and split.

    `image` is a path below the folder `images`. An image's id is that path without its suffix. Where both are there,
    score is taken and mos is not. Without a group column every image is its own group. Without a `label` the opinions
    are taken as a MOS, higher is better, scale not stated.
    Raises ShardError naming the file and line of the first bad row.
    """
    records = read_csv(table, ("image",))
    header = records[0][1]
    score = next((name for name in ("score", "mos") if name in header), None)
    if score is None:
        raise ShardError(f"{table}: lacks a column score (or mos); it has: {', '.join(header)}")
    if not images.is_dir():
        raise ShardError(f"{images}: there is no such folder; name the one that the image column of {table} is relative to")
    rows = []
    for line, record in records:
        where, picture = f"{table}, line {line}", record["image"]
        key = image_id(picture, where)
        opinion = number_in(record[score], f"{where}, column {score}")
        std = number_in(record["std"], f"{where}, column std") if record.get("std") else None
        group = record.get("group", picture)
        if not group:
            raise ShardError(f"{where}, column group: is empty; write which content '{picture}' shows, its own name if nothing else does")
        rows.append(Row(key, images / picture, opinion, std, group, part_in(record.get("split"), f"{where}, column split")))
    return data_set_of(name or table.resolve().parent.name, label or Label("MOS", None, None, True), resize, rows, table)


def data_set_of(name: str, label: Label, resize: str, rows: Iterable[Row], table: Path) -> DataSet:
    """The rows in order, once it is known that ids are unique and opinions are on the scale. Raises ShardError otherwise."""
    ordered = tuple(sorted(rows, key=lambda row: row.id))
    for first, second in pairwise(ordered):
        if first.id == second.id:
            raise ShardError(f"{table}: two rows have the id '{first.id}' ({first.file} and {second.file}); rename one, or take one out")
    for row in ordered:
        if label.low is not None and label.high is not None and not label.low <= row.opinion <= label.high:
            raise ShardError(
                f"{table}: image '{row.id}' has the opinion {row.opinion:g}, outside the scale of {label.low:g} to {label.high:g}; "
                f"correct the row, or state the scale that the opinions are on"
            )
    return DataSet(name, label, resize, ordered, table)


def image_id(name: str, where: str) -> str:
    """The id of the image at the relative path `name`: the path without its suffix, fit for a WebDataset key."""
    stem = str(Path(name).with_suffix("")) if name.strip() else ""
    key = _NOT_IN_A_KEY.sub("_", stem).strip("_")
    if not key:
        raise ShardError(f"{where}: there is no image name; write one, or take the row out")
    return key
