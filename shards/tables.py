"""Tables as people have them: csv, Excel, JSON lists, text lists and MATLAB files, read so that every mistake is named by file and row."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from shards.manifest import PARTS, ShardError

_PART_NAMES = {"training": "train", "validation": "val", "valid": "val", "testing": "test", **{part: part for part in PARTS}}
_ZIP, _OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"  # how an .xlsx begins, and an .xls of before 2007
_MATLAB_HDF = b"MATLAB 7.3 MAT-file"
_EXCEL = (".xlsx", ".xls")
_EXTRA = "run `pip install dist-train[datasets]`"
_ROWS_AT_ONCE = 1 << 12  # of a csv file that is written


class Record:
    """A row: the text under each column, whatever the case of the column's name, and where the row stands, for messages."""

    __slots__ = ("_fields", "_problem", "columns", "where")  # there is one per row

    def __init__(self, where: str, fields: dict[str, str], problem: str = "") -> None:
        """`problem` is what to say, where the row could not be told apart, to whoever asks for one of its columns."""
        self.where = where
        self._problem = problem
        self.columns = tuple(fields)
        self._fields = {sys.intern(column.casefold()): text for column, text in fields.items()}

    def __contains__(self, column: str) -> bool:
        return column.casefold() in self._fields

    def __getitem__(self, column: str) -> str:
        """The text in a column. Raises ShardError when the row, an entry of a JSON list, lacks it, or has another number of fields."""
        if self._problem:
            raise ShardError(f"{self.where}: {self._problem}")
        if column not in self:
            raise ShardError(f"{self.where}: lacks '{column}'; it has: {', '.join(self.columns)}")
        return self._fields[column.casefold()]

    def number(self, column: str) -> float:
        """The finite number in a column. Raises ShardError that names the row."""
        return number_in(self[column], f"{self.where}, column {column}")

    def part(self, column: str) -> str | None:
        """train, val or test, by any of their usual names; None for nothing. Raises ShardError for any other word."""
        return part_in(self[column], f"{self.where}, column {column}")


@dataclass(frozen=True)
class Table:
    """A table whose rows can be had once, one after the other; text is read from the disk as they are asked for."""

    columns: tuple[str, ...]  # in a JSON list, all that an entry has
    _records: Iterator[Record]

    def __contains__(self, column: str) -> bool:
        return column.casefold() in map(str.casefold, self.columns)

    def __iter__(self) -> Iterator[Record]:
        return self._records


def read_records(path: Path) -> Table:
    """The rows of a table of any kind, told by the suffix: .xlsx, .json, and csv for all others."""
    if path.suffix.lower() == ".jsonl":
        raise ShardError(f"{path}: a JSON object a line is not read; save them as one JSON list in a .json file, or as csv")
    readers: dict[str, Callable[[Path], Table]] = {**dict.fromkeys(_EXCEL, read_sheet), ".json": read_json}
    return readers.get(path.suffix.lower(), read_csv)(path)


def read_csv(path: Path, needed: Sequence[str] = ()) -> Table:
    """The rows of a csv file with a header, values without the space around them."""
    return _table(path, _csv_lines(path), needed)


def _csv_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    with _explained(path, "a csv file in UTF-8"), path.open("rb") as raw:
        if raw.read(4) in (_ZIP, _OLE):
            raise ShardError(f"{path}: is an Excel file whatever its name says; save it as csv in UTF-8, or name it .xlsx if it is one")
    with _explained(path, "a csv file in UTF-8"), path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
        reader, first = csv.reader(file, skipinitialspace=True), 1
        try:
            header = next(reader, [])
            if len(header) == 1 and (separator := re.search("[;\t]", header[0])):
                raise ShardError(
                    f"{path}: is separated by {'semicolons' if separator[0] == ';' else 'tabs'}, as {header[0].strip()!r} shows; "
                    f"save it with commas between the columns and points in the numbers"
                )
            for fields in chain([header], reader):
                last = reader.line_num
                yield f"line {first}" if first == last else f"lines {first} to {last}", [field.strip() for field in fields]
                first = last + 1
        except csv.Error as error:  # such as a field of over 131,072 letters, which runs on to the next double quote, or the end
            raise ShardError(f"{path}, line {first}: is not read ({error}); see that its double quotes are in pairs") from error


def read_sheet(path: Path, needed: Sequence[str] = (), sheet: str | None = None) -> Table:
    """The rows of a sheet of an Excel file (.xlsx), the first unless named, or of the csv that it was saved as.

    The header is the first row with all `needed`.
    """
    lines = _sheet_lines(path, sheet)
    wanted = {column.casefold() for column in needed}
    header = next((at for at, (_, fields) in enumerate(lines) if wanted <= {field.casefold() for field in fields}), 0) if needed else 0
    return _table(path, lines[header:], needed)


def read_places(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """The same of the first sheet, its first columns named by `columns`; a first row without a number in them is the header."""
    lines = [(where, fields) for where, fields in _sheet_lines(path) if any(fields)]
    for where, first in lines[:1]:
        if len(first) < len(columns):
            expected = f"expected in the first {len(columns)} the {' and the '.join(columns)}"
            raise ShardError(f"{path}, {where}: has {len(first)} column(s); {expected}")
        has_header = not any(re.match(r"[-+.,]*\d", field) for field in first[: len(columns)])
        header = first if has_header else [""] * len(first)
        beside = [at for at in range(len(columns), len(first))[:1] if not header[at]]  # where a decimal comma would put the decimals
        for where, fields in lines[has_header:]:
            problem = _problem(path, fields, len(first), beside)
            yield Record(f"{path}, {where}", {} if problem else dict(zip(columns, fields, strict=False)), problem)


def _sheet_lines(path: Path, sheet: str | None = None) -> list[tuple[str, list[str]]]:
    if path.suffix.lower() == ".csv":
        return list(_csv_lines(path))
    with _explained(path, "an Excel file"), path.open("rb") as raw:
        begin = raw.read(4)
    if begin == _OLE:
        raise ShardError(f"{path}: is an Excel file of the form before 2007 (.xls); save it as .xlsx or as csv in UTF-8")
    if begin != _ZIP:
        raise ShardError(f"{path}: is no Excel file whatever its name says; name it .csv if it is text, or download it again")
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError:
        raise ShardError(f"{path}: Excel files are read with openpyxl, which is not installed; {_EXTRA}, or save it as csv") from None
    with _explained(path, "an Excel file"):
        book = load_workbook(path, read_only=True, data_only=True)
        names = book.sheetnames
        cells: list[tuple[object, ...]] = []
        if not sheet or sheet in names:
            page = book[sheet] if sheet else next((one for one in book.worksheets if one.sheet_state == "visible"), book.worksheets[0])
            page.reset_dimensions()  # the size that the file states is wrong in what some programs write
            cells = list(page.iter_rows(values_only=True))
        book.close()
    if sheet and sheet not in names:
        raise ShardError(f"{path}: has no sheet '{sheet}'; it has: {', '.join(names)}")
    width = max(map(len, cells), default=0)
    return [(f"row {number}", [*map(_cell_text, row), *[""] * (width - len(row))]) for number, row in enumerate(cells, 1)]


def read_json(path: Path) -> Table:
    """The entries of a JSON list of objects, such as Q-Align's lists of {"image": ..., "gt_score": ...}."""
    with _explained(path, "a JSON list in UTF-8"):
        entries = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=tuple)  # as pairs, or the last of two would win
        json.dumps(entries, ensure_ascii=False).encode()  # an escape such as \ud800 alone is no text
    if not isinstance(entries, list) or not entries:
        raise ShardError(f'{path}: is no list of images; write [{{"image": "a.png", "gt_score": 3.5}}, ...]')
    records = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, tuple):
            raise ShardError(f'{path}, entry {number}: is no object; write {{"image": "a.png", "gt_score": 3.5}}')
        if twice := _twice([key for key, _ in entry]):
            raise ShardError(f"{path}, entry {number}: has '{twice}' twice; take one out")
        records.append(Record(f"{path}, entry {number}", {key: _cell_text(value) for key, value in entry}))
    return Table(tuple(dict.fromkeys(column for record in records for column in record.columns)), iter(records))


def read_list(path: Path, columns: Sequence[str]) -> Table:
    """The lines of a text list without a header, its words parted by spaces or commas and named by `columns`."""
    with _explained(path, "a text file in UTF-8"):
        text = path.read_text(encoding="utf-8-sig")
    lines = [(f"line {number}", re.split(r"[,\s]+", line.strip())) for number, line in enumerate(text.splitlines(), 1)]
    return _table(path, [("", list(columns)), *lines])


def mat_variables(path: Path) -> list[str]:
    """The names of all that a MATLAB file holds."""
    from scipy.io import whosmat

    with _explained(path, "a MATLAB file"):
        with path.open("rb") as raw:
            if raw.read(len(_MATLAB_HDF)) == _MATLAB_HDF:
                raise ShardError(f"{path}: is a MATLAB file of version 7.3, which is not read; save it in MATLAB with the option '-v7'")
        return [name for name, *_ in whosmat(path)]


def read_mat(path: Path, variable: str) -> list[Any]:
    """The numbers, or whatever else they are, of a vector or cell array in a MATLAB file, in MATLAB's order."""
    import numpy as np
    from scipy.io import loadmat

    held = mat_variables(path)
    with _explained(path, "a MATLAB file"):
        values = loadmat(path, squeeze_me=True, variable_names=[variable])
    if variable not in values:
        raise ShardError(f"{path}: has no variable '{variable}'; it has: {', '.join(held)}; take the file as it is distributed")
    return list(np.atleast_1d(values[variable]).ravel(order="F").tolist())


def read_mat_texts(path: Path, variable: str) -> list[str]:
    """The same of a cell array of texts."""
    texts = read_mat(path, variable)
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise ShardError(f"{path}, entry {number} of {variable}: {text!r} is no text; take the file as it is distributed")
    return texts


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as lines of a csv file, the same on every system."""
    lines = _Lines()
    csv.writer(lines).writerows(rows)
    return "".join(lines)


def csv_pieces(rows: Iterable[Iterable[object]]) -> Iterator[bytes]:
    """The same in UTF-8 and in pieces, for what does not fit into memory."""
    rest = iter(rows)
    while some := list(islice(rest, _ROWS_AT_ONCE)):
        yield csv_text(some).encode()


class _Lines(list[str]):
    """The lines of a csv file, each ended by a line feed. Told to end them so, a writer would leave a lone carriage return in a field
    without quotes, and a reader would take it for the end of the line."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def _table(path: Path, lines: Iterable[tuple[str, list[str]]], needed: Sequence[str] = ()) -> Table:
    filled = ((where, fields) for where, fields in lines if any(fields))  # spreadsheets leave rows of nothing at the end
    _, header = next(filled, ("", []))
    first = next(filled, None)
    if first is None:
        raise ShardError(f"{path}: has no rows; write a line of column names and a line per image")
    named = [at for at, column in enumerate(header) if column]  # before them some programs number the rows
    nameless = [at for at in range(min(named, default=0), len(header)) if not header[at]]  # spreadsheets leave columns of nothing
    columns = [header[at] for at in named]
    folded = [column.casefold() for column in columns]
    if missing := [column for column in needed if column.casefold() not in folded]:
        raise ShardError(f"{path}: lacks the column(s) {', '.join(missing)}; it has: {', '.join(columns)}")
    if twice := _twice(columns):
        raise ShardError(f"{path}: has two columns called '{twice}'; rename one")

    def records() -> Iterator[Record]:
        for where, fields in chain([first], filled):
            problem = _problem(path, fields, len(header), nameless)
            told = {} if problem else {column: fields[at] for column, at in zip(columns, named, strict=True)}
            yield Record(f"{path}, {where}", told, problem)

    return Table(tuple(columns), records())


def _twice(columns: Sequence[str]) -> str | None:
    """The first name that stands there twice, in whatever case."""
    number = Counter(map(str.casefold, columns))
    return next((column for column in columns if number[column.casefold()] > 1), None)


def _problem(path: Path, fields: Sequence[str], width: int, nameless: Iterable[int]) -> str:
    """What to say of a row with another number of fields than the first one, or with text in a `nameless` column of a csv file."""
    commas = "write numbers with a decimal point, and put a name that holds a comma in double quotes"
    if len(fields) != width:
        return f"has {len(fields)} fields for {width} columns; {commas}"
    text = next((fields[at] for at in nameless if fields[at]), "")
    if text and path.suffix.lower() not in _EXCEL:  # where no comma parts a cell, and remarks stand beside a table
        return f"has '{text}' in a column without a name; {commas}, or name that column"
    return ""


def _cell_text(value: object) -> str:
    """A cell as text: 1600 and 1600.0 are '1600', because Excel keeps every number with a fraction."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()


@contextmanager
def _explained(path: Path, form: str) -> Iterator[None]:
    """Whatever goes wrong while `path` is read becomes a ShardError: it is not there, or it is not of that form."""
    try:
        yield
    except (ShardError, MemoryError):
        raise
    except Exception as error:  # each reader fails in its own way, from zipfile.BadZipFile to scipy's MatReadError
        if isinstance(error, OSError) and error.strerror:  # without one it is scipy's word for a file that ends early
            raise ShardError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        is_text = isinstance(error, UnicodeDecodeError) and form.endswith("in UTF-8")  # what Excel and MATLAB write has no lines
        where = f"{path}, line {_first_bad_line(path)}" if is_text else path
        raise ShardError(f"{where}: is not {form} ({error}); save it as one, or download it again") from error


def _first_bad_line(path: Path) -> int:
    """The number of the first line that is not UTF-8; text is decoded in pieces, and an error tells its place in a piece."""
    number = 0
    with path.open("rb") as raw:
        for line in raw:
            number += 1
            try:
                line.decode()
            except UnicodeDecodeError:
                break
    return number


def number_in(said: object, where: str) -> float:
    """The finite number that a text says, or a MATLAB file holds. Raises ShardError that says where it stands."""
    text = str(said)
    try:
        value = float(text.replace("_", "?"))  # Python would read 3_5 as 35
    except ValueError:
        comma = " and no comma" if "," in text else ""
        raise ShardError(f"{where}: '{text}' is not a number; write one with a decimal point{comma}, or take the row out") from None
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
