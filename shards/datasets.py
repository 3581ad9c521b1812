"""What each data set looks like on a user's disk: one small adapter per set, all ending in the same rows.

An adapter says where the pictures are, which column is the opinion, its range and direction, what must stay together
in a split (the group), and the resize rule. Scores are kept as distributed.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from shards.manifest import PARTS, Label, ShardError

_PART_NAMES = {"training": "train", "validation": "val", "valid": "val", "testing": "test", **{part: part for part in PARTS}}
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
    records = _read_csv(table, ("image",))
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
        opinion = _number(record[score], f"{where}, column {score}")
        std = _number(record["std"], f"{where}, column std") if record.get("std") else None
        group = record.get("group", picture)
        if not group:
            raise ShardError(f"{where}, column group: is empty; write which content '{picture}' shows, its own name if nothing else does")
        rows.append(Row(key, images / picture, opinion, std, group, _part(record.get("split"), f"{where}, column split")))
    return _data_set(name or table.resolve().parent.name, label or Label("MOS", None, None, True), resize, rows, table)


def demo(root: Path) -> DataSet:
    """The built-in photographs with computed pseudo-opinions (`python -m shards demo`)."""
    label = Label("pseudo-opinion (computed, not human)", 0.0, 100.0, True)
    return read_table(root / "scores.csv", root / "images", "demo", label)


def koniq10k(root: Path) -> DataSet:
    """KonIQ-10k: 10,073 photographs, `MOS_zscore`, official split 7,058/1,000/2,015, stored at 512x384.

    All photographs are 1024x768, so 512x384 keeps their aspect. The paper's numbers were made with 'exact:384x512'.
    """
    scores = root / "koniq10k_scores_and_distributions.csv"
    sets = root / "koniq10k_distributions_sets.csv"
    images = next((root / size for size in ("1024x768", "512x384") if (root / size).is_dir()), None)
    if images is None:
        raise ShardError(f"{root}: expected the pictures of KonIQ-10k in 1024x768/ or 512x384/; point --root at the folder that holds it")
    part_of = {record["image_name"]: record["set"] for _, record in _read_csv(sets, ("image_name", "set"))}
    rows = []
    for line, record in _read_csv(scores, ("image_name", "MOS_zscore")):
        name, where = record["image_name"], f"{scores}, line {line}"
        if name not in part_of:
            raise ShardError(f"{where}: '{name}' has no row in {sets.name}, which holds the official split; unpack both files again")
        opinion = _number(record["MOS_zscore"], f"{where}, column MOS_zscore")
        part = _part(part_of[name], f"{sets}, image {name}, column set")
        rows.append(Row(image_id(name, where), images / name, opinion, None, name, part))  # SD is of the 1-to-5 ratings
    return _data_set("koniq10k", Label("MOS_zscore", 0.0, 100.0, True), "exact:512x384", rows, scores)


ADAPTERS: dict[str, Callable[[Path], DataSet]] = {"demo": demo, "koniq10k": koniq10k}


def image_id(name: str, where: str) -> str:
    """The id of the image at the relative path `name`: the path without its suffix, fit for a WebDataset key."""
    stem = str(Path(name).with_suffix("")) if name.strip() else ""
    key = _NOT_IN_A_KEY.sub("_", stem).strip("_")
    if not key:
        raise ShardError(f"{where}: there is no image name; write one, or take the row out")
    return key


def _data_set(name: str, label: Label, resize: str, rows: Iterable[Row], table: Path) -> DataSet:
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


def _read_csv(path: Path, needed: tuple[str, ...] = ()) -> list[tuple[int, dict[str, str]]]:
    """(line number, record) of every row of a csv file with a header, values without the space around them."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
            reader = csv.reader(file, skipinitialspace=True)
            lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ShardError(f"{path}: is not a csv file in UTF-8 ({error}); save it as one") from error
    lines = [(line, fields) for line, fields in lines if any(fields)]  # spreadsheets leave rows of nothing at the end
    if len(lines) < 2:
        raise ShardError(f"{path}: has no rows; write a line of column names and a line per image")
    header = lines[0][1]
    if missing := [column for column in needed if column not in header]:
        raise ShardError(f"{path}: lacks the column(s) {', '.join(missing)}; it has: {', '.join(header)}")
    if twice := [column for column in header if header.count(column) > 1]:
        raise ShardError(f"{path}: has two columns called '{twice[0]}'; rename one")
    for line, fields in lines[1:]:
        if len(fields) != len(header):
            raise ShardError(
                f"{path}, line {line}: has {len(fields)} fields for {len(header)} columns; put a field that holds a comma in double quotes"
            )
    return [(line, dict(zip(header, fields, strict=True))) for line, fields in lines[1:]]


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ShardError(f"{where}: '{text}' is not a number; write one with a decimal point, or take the row out") from None
    if not math.isfinite(value):
        raise ShardError(f"{where}: '{text}' is not finite; write a finite number, or take the row out")
    return value


def _part(text: str | None, where: str) -> str | None:
    if not text:
        return None
    part = _PART_NAMES.get(text.lower())
    if part is None:
        raise ShardError(f"{where}: '{text}' is no part of a split; write {', '.join(PARTS)}")
    return part
