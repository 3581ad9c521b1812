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
    std: float | None
    group: str
    part: str | None  # train, val or test in the official split; None when there is none


@dataclass(frozen=True)
class DataSet:
    """Everything a build needs to know of a data set. `rows` are sorted by id, and ids are unique."""

    name: str
    label: Label
    resize: str
    rows: tuple[Row, ...]


def read_table(
    table: Path,
    images: Path,
    name: str | None = None,
    label: Label | None = None,
    resize: str = "none",
) -> DataSet:
    """A data set from a csv with the columns image and score (or mos), and optionally std, group and split.

    `image` is a path below the folder `images`. An image's id is that path without its suffix. Without a group column
    every image is its own group. Without a `label` the opinions are taken as a MOS, higher is better, scale not stated.
    Raises ShardError naming the file and line of the first bad row.
    """
    records = _read_csv(table)
    header = records[0][1].keys()
    score = "mos" if "mos" in header and "score" not in header else "score"
    for needed in ("image", score):
        if needed not in header:
            raise ShardError(f"{table}: needs the columns image and score (or mos); it has: {', '.join(header)}")
    rows = []
    for line, record in records:
        where, picture = f"{table}, line {line}", record["image"] or ""
        opinion = _number(record[score], f"{where}, column {score}")
        std = _number(record["std"], f"{where}, column std") if record.get("std") else None
        rows.append(
            Row(image_id(picture, where), images / picture, opinion, std, record.get("group") or picture, _part(record.get("split"), where))
        )
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
    for line, record in _read_csv(scores, ("image_name", "MOS_zscore", "SD")):
        name, where = record["image_name"], f"{scores}, line {line}"
        if name not in part_of:
            raise ShardError(f"{where}: '{name}' has no row in {sets.name}, which holds the official split")
        opinion, std = _number(record["MOS_zscore"], where), _number(record["SD"], where)
        rows.append(Row(image_id(name, where), images / name, opinion, std, name, _part(part_of[name], f"{sets}, image {name}")))
    return _data_set("koniq10k", Label("MOS_zscore", 0.0, 100.0, True), "exact:512x384", rows, scores)


ADAPTERS: dict[str, Callable[[Path], DataSet]] = {"demo": demo, "koniq10k": koniq10k}


def image_id(name: str, where: str) -> str:
    """The id of the image at the relative path `name`: the path without its suffix, fit for a WebDataset key."""
    stem = str(Path(name).with_suffix("")) if name.strip() else ""
    key = _NOT_IN_A_KEY.sub("_", stem).strip("_")
    if not key:
        raise ShardError(f"{where}: there is no image name")
    return key


def _data_set(name: str, label: Label, resize: str, rows: Iterable[Row], table: Path) -> DataSet:
    ordered = tuple(sorted(rows, key=lambda row: row.id))
    for first, second in zip(ordered, ordered[1:], strict=False):
        if first.id == second.id:
            raise ShardError(f"{table}: two rows have the id '{first.id}' ({first.file} and {second.file}); rename one, or take one out")
    for row in ordered:
        if label.low is not None and label.high is not None and not label.low <= row.opinion <= label.high:
            raise ShardError(f"{table}: image '{row.id}' has the opinion {row.opinion:g}, outside {label.low:g} to {label.high:g}")
    return DataSet(name, label, resize, ordered)


def _read_csv(path: Path, needed: tuple[str, ...] = ()) -> list[tuple[int, dict[str, str]]]:
    """(line number, record) of every row of a csv file with a header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
            reader = csv.DictReader(file, skipinitialspace=True)
            records = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise ShardError(f"{path}: there is no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ShardError(f"{path}: is not a csv file in UTF-8 ({error}); save it as one") from error
    if not records:
        raise ShardError(f"{path}: has no rows")
    if missing := [column for column in needed if column not in records[0][1]]:
        raise ShardError(f"{path}: lacks the column(s) {', '.join(missing)}; it has: {', '.join(records[0][1])}")
    return records


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise ShardError(f"{where}: '{text or ''}' is not a number; write one with a decimal point, or take the row out") from None
    if not math.isfinite(value):
        raise ShardError(f"{where}: the opinion is {value}; every image needs a finite one, or take the row out")
    return value


def _part(text: str | None, where: str) -> str | None:
    if text is None or not text.strip():
        return None
    part = _PART_NAMES.get(text.strip().lower())
    if part is None:
        raise ShardError(f"{where}: '{text}' is no part of a split; write {', '.join(PARTS)}")
    return part
