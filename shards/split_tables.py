"""Split tables that are added to a finished shard folder, or come from and go to other programs. No pixel is touched.

    plain   id,part                          id may also be the file name of the picture, and part may be called split
    pyiqa   img_name,mos,std,official_split,ratio802_seed123_split_01 ...,ref_name,id      a column per split, train | val | test

The second is the meta csv of pyiqa, which takes every column with 'split' in its name, finds image and opinion by their place, and
joins the path of a picture to its dataroot (IQA-PyTorch, docs/Dataset_Preparation.md, pyiqa/data/base_iqa_dataset.py and
general_nr_dataset.py). What is exported says dmos where opinions fall with quality, which pyiqa's own tables do not always, and
ref_name for the content, as they do. Its pickles are never opened.
A table that is there already is never overwritten.
"""

from __future__ import annotations

import difflib
import os
import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from shards import flive_table
from shards.datasets import CALLED_IMAGE, image_id
from shards.manifest import PARTS, ShardError, Shards, file_sha256, part_number, pieces_sha256
from shards.rows import Row, Rows
from shards.shard_file import explained
from shards.splits import FEWEST_IMAGES, WITHOUT_VALIDATION, part_counts, split_table, stated_split
from shards.tables import Record, Table, csv_pieces, read_records
from shards.whole_files import whole_file

FORMS = ("pyiqa", "plain")

_IMAGE_COLUMNS = (flive_table.IMAGE, "id", *CALLED_IMAGE, "dist_img")
_PART_COLUMNS = ("part", "split")
_PYIQA_ROUND = re.compile(r"ratio(?P<train>\d)(?P<val>\d)(?P<test>\d)_seed\d+_split_?\d+")
_NAME = re.compile(r"[\w-][\w.-]*")  # of a table: its file lies in the folder splits, and nowhere else
_NEIGHBOURS = 500  # ids before and after an unknown one in which the closest is looked for: ten million are not compared
# LIVE in the Wild's pictures on which its raters practised: pyiqa's table has them, shards do not.
PRACTICE = re.compile(r"(.*/)?t[1-7]\.bmp", re.IGNORECASE)


def rows_of(shards: Shards) -> Rows:
    """The images of a shard folder, as the splits see them: the file lies below a root that is not known, and no part is stated."""
    return Rows(
        Row(
            row["id"],
            Path(row["path"]),
            float(row["opinion"]),
            float(row["std"]) if row["std"] else None,
            row["group"],
            None,
        )
        for row in shards.image_rows()
    )


def add_splits(shards: Shards, rows: Rows, splits: Mapping[str, np.ndarray]) -> list[str]:
    """Writes the tables of splits of `rows` that are not there yet; returns their names.

    Raises ShardError, and writes nothing, when one of them is there already and says otherwise.
    """
    folder = shards.path("splits")
    new: dict[Path, np.ndarray] = {}
    for name, parts in splits.items():
        if not _NAME.fullmatch(name):
            raise ShardError(f"'{name}' cannot be the name of a split: use letters, digits, '-', '_' and '.' in --name")
        path = folder / f"{name}.csv"
        there = os.path.exists(path)  # of Path, a name that is too long for a disk is an error
        known = file_sha256(path) if there else shards.built_splits.get(name)
        if not there:
            new[path] = parts
        if known is not None and known != pieces_sha256(split_table(rows.ids(), parts)):
            raise ShardError(f"{path}: is there already and says otherwise; no table is overwritten: choose another name with --name")
    for path, parts in new.items():
        with explained(path):
            path.parent.mkdir(exist_ok=True)
            _write(path, split_table(rows.ids(), parts))
    return [path.stem for path in new]


def read_splits(
    file: Path, rows: Rows, seed: int, name: str | None = None, practice: re.Pattern[str] | None = None
) -> dict[str, np.ndarray]:
    """The splits that a plain table or pyiqa's states about the images `rows`, by name; `name` chooses one, or names the only one.

    Where a split has no val, one is cut out of train, and `<name>-no-val` is the split as stated. Under a name that ends so it is
    only taken as stated. An image whose field is empty is in no part, which is said aloud. Rows whose picture is none of the images
    and is called as `practice` says are left out aloud.
    Raises ShardError naming the file, and the row where there is one, for anything that is not a split of these images.
    """
    _refuse_pickle(file)
    table = read_records(file)
    record_of = _record_of_each_image(file, table, rows, practice)
    splits: dict[str, np.ndarray] = {}
    for split, column in _columns(file, table.columns, name).items():
        stated = Rows(_stated(row, record_of[row.id], column) for row in rows)
        in_a_part = stated.parts() != part_number(None)
        try:
            of_those = _completed(split, Rows(row for row in stated if row.part), seed)
        except ShardError as error:
            raise ShardError(f"{file}, column {column}: {error}") from None
        if not in_a_part.all():
            print(f"note: {file}, column {column}: {np.sum(~in_a_part):,} of {len(rows):,} images have an empty field and are in no part")
        for name, parts in of_those.items():
            splits[name] = np.full(len(rows), part_number(None), np.uint8)
            splits[name][in_a_part] = parts
    return splits


def _stated(row: Row, record: Record, column: str) -> Row:
    part = flive_table.part_of(record) if flive_table.IMAGE in record else record.part(column)
    return replace(row, part=part, where=record.where)


def export_splits(shards: Shards, file: Path, name: str | None = None, form: str = "pyiqa") -> list[str]:
    """Writes the split `name`, or all, to the new file `file` in one of FORMS; returns the names.

    Raises ShardError when `file` is there already, and when it is to hold several splits and the form takes one.
    """
    names, rows = [name] if name else shards.split_names(), rows_of(shards)
    if file.exists():
        raise ShardError(f"{file}: is there already; export to another file")
    if form == "plain" and len(names) > 1:
        raise ShardError(f"--form plain holds one split; choose it with --name: {', '.join(names)}")
    splits, score = {name: _parts_of(shards, name) for name in names}, "mos" if shards.label.higher_is_better else "dmos"
    with explained(file):
        _write(file, pyiqa_table(rows, splits, score) if form == "pyiqa" else plain_table(rows, splits[names[0]]))
    return names


def plain_table(rows: Rows, parts: np.ndarray) -> Iterator[bytes]:
    """Every image and its part; an image that the split leaves out has an empty field, as it has in pyiqa's form."""
    names = (*PARTS, None)
    return csv_pieces(chain([("id", "part")], ((image, names[part]) for image, part in zip(rows.ids(), parts.tobytes(), strict=True))))


def pyiqa_table(rows: Rows, splits: Mapping[str, np.ndarray], score: str = "mos") -> Iterator[bytes]:
    """The images with a column per split, as pyiqa reads it, piece by piece; images that a split leaves out have an empty field.

    `score` is the name of the opinions. Contents are told where images share one; the last column, id, is for reading the table back.
    """
    shared = ["ref_name"] if rows.num_contents < len(rows) else []
    header = ["img_name", score, "std", *map(_column_of, splits), *shared, "id"]
    names = (*PARTS, None)  # csv leaves the field of None empty
    stated = map(bytes, np.stack([*splits.values()], 1)) if splits else ()
    lines = (
        [row.file.as_posix(), row.opinion, row.std, *(names[part] for part in parts), *(row.group for _ in shared), row.id]
        for row, parts in zip(rows, stated, strict=True)
    )
    return csv_pieces(chain([header], lines))


def _parts_of(shards: Shards, name: str) -> np.ndarray:
    parts = np.full(len(shards), part_number(None), np.uint8)
    for part, numbers in shards.split(name)[1].items():
        parts[numbers] = part_number(part)
    return parts


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    with whole_file(path) as file:
        file.writelines(pieces)


def _column_of(split: str) -> str:
    return split if _PYIQA_ROUND.fullmatch(split) else f"{split}_split"


def _split_of(column: str) -> str:
    return column if _PYIQA_ROUND.fullmatch(column) or not column.casefold().endswith("_split") else column[: -len("_split")]


def _refuse_pickle(file: Path) -> None:
    try:
        with file.open("rb") as content:
            pickled = content.read(1) == b"\x80"  # no text in UTF-8 begins so, and every pickle since protocol 2 does
    except OSError as error:
        raise ShardError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    if pickled or file.suffix in (".pkl", ".pickle"):
        raise ShardError(
            f"{file}: is a pickle, and reading one can run any program that is hidden in it; import pyiqa's meta csv of the data set, "
            f"which has the same splits as columns (official_split, ratio802_seed123_split_01 ...)"
        )


def _columns(file: Path, header: Sequence[str], name: str | None) -> dict[str, str]:
    """The column of each split that is wanted."""
    column_of: dict[str, str] = {}
    for column in header:
        if column.casefold() in _PART_COLUMNS or "split" in column.casefold():
            split = file.stem if column.casefold() in _PART_COLUMNS else _split_of(column)
            if split in column_of:
                raise ShardError(f"{file}: the columns {column_of[split]} and {column} both state the split '{split}'; take one out")
            column_of[split] = column
    if not column_of:
        raise ShardError(f"{file}: lacks a column part, or one with 'split' in its name; it has: {', '.join(header)}")
    if name is None:
        return column_of
    if len(column_of) > 1 and name not in column_of:
        raise ShardError(f"{file}: holds no split '{name}' but {', '.join(column_of)}; name one of them, or leave out --name for all")
    return {name: column_of.get(name) or next(iter(column_of.values()))}


def _record_of_each_image(file: Path, table: Table, rows: Rows, practice: re.Pattern[str] | None) -> dict[str, Record]:
    """The record of every image, by id. Raises ShardError for images that are unknown, stand there twice, or are missing."""
    columns = [column for column in _IMAGE_COLUMNS if column in table]
    if not columns:
        raise ShardError(f"{file}: lacks a column with the images, such as id or image; it has: {', '.join(table.columns)}")
    column, ids, id_of = columns[0], set(rows.ids()), _ids_by_name(rows)
    file_of = {row.id: row.file.as_posix() for row in rows} if len(columns) > 1 else {}
    record_of: dict[str, Record] = {}
    unknown: list[Record] = []
    left_out: list[str] = []
    of_patches = any(flive_table.is_patch(row.file.name) for row in rows)
    for record in table:
        first = record[column]
        if column == flive_table.IMAGE and flive_table.is_patch(first) != of_patches:
            continue  # it has images and patches, and the shards one of them
        # What was built from a table of ours may have other ids, and then the file's name alone names an image.
        stated = {each: record[each] for each in columns if each in record}
        called = {each: _image_called(name, record.where, ids, id_of) for each, name in stated.items() if name}
        image = next(filter(None, called.values()), None)
        if image and len(called) > 1:
            _refuse_other_names(record, called, image, file_of[image])
        if image is None and practice and practice.fullmatch(first):
            left_out.append(first)
        elif image is None:
            unknown.append(record)
        elif image in record_of:
            raise ShardError(f"{record.where}: image '{image}' stands there a second time, first in {record_of[image].where}; take one out")
        else:
            record_of[image] = record
    if unknown:
        others = f" (and so do {len(unknown) - 1:,} more rows)" if len(unknown) > 1 else ""
        raise ShardError(
            f"{unknown[0].where}, column {column}: '{unknown[0][column]}' names no image of the shards, or several{others}; "
            f"correct the name{_closest(unknown[0][column], rows)}, or take the row out"
        )
    if left_out:
        print(f"note: {file}: {len(left_out)} row(s) are left out, of pictures that raters only practised on: {', '.join(left_out)}")
    if missing := [image for image in rows.ids() if image not in record_of]:
        raise ShardError(
            f"{file}: {len(missing):,} of {len(rows):,} images have no row, the first is '{missing[0]}'; "
            f"add them, with an empty field if they are to be in no part"
        )
    return record_of


def _refuse_other_names(record: Record, called: Mapping[str, str | None], image: str, file: str) -> None:
    """Raises ShardError where a column names another image than the one that was found, and is not a name of its file either."""
    for column, other in called.items():
        if other not in (None, image) and not _is_path_of(record[column], file):
            first = next(each for each in called if called[each])
            raise ShardError(
                f"{record.where}: column {first} names image '{image}', and column {column} names '{other}'; "
                f"take the column out that does not name the images"
            )


def _image_called(name: str, where: str, ids: Set[str], id_of: Mapping[str, str | None]) -> str | None:
    """The id of the image that `name` alone names, by the id, the path or the file name; None too for a sign that can be no name."""
    if name in ids:
        return name
    as_id = ""
    with suppress(ShardError):
        as_id = image_id(name, where)
    known = (id_of.get(each.casefold()) for each in (name, as_id, re.split(r"[/\\]", name)[-1]))
    return next(filter(None, known), None)


def _is_path_of(name: str, file: str) -> bool:
    """Whether a name may be that of the file: one of them is the end of the other, folder by folder."""
    ends = [re.split(r"[/\\]", each.casefold())[::-1] for each in (name, file)]
    return all(one == other for one, other in zip(*ends, strict=False))


def _ids_by_name(rows: Rows) -> dict[str, str | None]:
    """The id of every image by its id, path and file name in small letters; None for what names several images."""
    id_of: dict[str, str | None] = {}
    for row in rows:
        for name in {row.id.casefold(), row.file.as_posix().casefold(), row.file.name.casefold()}:
            id_of[name] = row.id if id_of.get(name, row.id) == row.id else None
    return id_of


def _closest(stated: str, rows: Rows) -> str:
    ordered = list(rows.ids())
    place = bisect(ordered, stated)
    found = difflib.get_close_matches(stated, ordered[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS], 1)
    return f" (did you mean '{found[0]}'?)" if found else ""


def _completed(name: str, stated: Rows, seed: int) -> dict[str, np.ndarray]:
    """A stated split by its name, with its twin where it has no val. Raises ShardError when no honest figure can come of it."""
    if part_counts(stated.parts())["test"] == 0 and (said := _PYIQA_ROUND.fullmatch(name)) and said["val"] == "0":
        # pyiqa's own tables call the 20 % that they keep back val, though the column's name says that it is the test part
        stated = Rows(replace(row, part="test") if row.part == "val" else row for row in stated)
    splits = stated_split(name.removesuffix(WITHOUT_VALIDATION), stated, seed)
    if name.endswith(WITHOUT_VALIDATION):
        if name not in splits:
            raise ShardError(f"has images in val, and '{name}' is the name of a split without; choose another with --name")
        splits = {name: splits[name]}
    for parts in splits.values():
        counts = part_counts(parts)
        for part in ("val", "test"):
            if 0 < counts[part] < FEWEST_IMAGES:
                raise ShardError(
                    f"'{part}' would have {counts[part]} image(s), and an SRCC needs at least {FEWEST_IMAGES}; put more into it"
                )
    return splits
