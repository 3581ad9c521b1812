"""Tables as people have them, read so that every mistake is named by file and line."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from shards.manifest import PARTS, ShardError

_PART_NAMES = {"training": "train", "validation": "val", "valid": "val", "testing": "test", **{part: part for part in PARTS}}


def read_csv(path: Path, needed: tuple[str, ...] = ()) -> list[tuple[int, dict[str, str]]]:
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


def number_in(text: str, where: str) -> float:
    """The finite number that `text` is. Raises ShardError that says where it stands."""
    try:
        value = float(text)
    except ValueError:
        raise ShardError(f"{where}: '{text}' is not a number; write one with a decimal point, or take the row out") from None
    if not math.isfinite(value):
        raise ShardError(f"{where}: '{text}' is not finite; write a finite number, or take the row out")
    return value


def part_in(text: str | None, where: str) -> str | None:
    """train, val or test, by any of their usual names; None for nothing. Raises ShardError for any other word."""
    if not text:
        return None
    part = _PART_NAMES.get(text.lower())
    if part is None:
        raise ShardError(f"{where}: '{text}' is no part of a split; write {', '.join(PARTS)}")
    return part
