"""The promises of split tables from elsewhere: what goes out comes back the same, and no mistake in a table goes unnamed."""

from __future__ import annotations

import csv
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import split_tables, splits
from shards.manifest import PARTS, ShardError, part_number
from shards.rows import Row, Rows
from shards.splits import numbered_rounds

ROWS = Rows(Row(f"cup{number:02d}", Path(f"cup{number:02d}.PNG"), number / 7, None, f"content{number // 2}", None) for number in range(40))
ID = st.from_regex(r"[\w-]+", fullmatch=True).filter(lambda name: name.isprintable())  # what datasets.image_id lets through
PARTS_OF_12 = st.permutations([*PARTS] * 3 + ["train"] * 3)


def file_with(folder: Path, content: bytes | str, name: str = "mine.csv") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def array(rows: Rows, parts: dict[str, str]) -> np.ndarray:
    """A split as the code has it, from the part of each image by its id."""
    return np.array([part_number(parts.get(image)) for image in rows.ids()], np.uint8)


def said(rows: Rows, parts: np.ndarray) -> dict[str, str]:
    return {image: PARTS[part] for image, part in zip(rows.ids(), parts, strict=True)}


def read_splits(
    file: Path, rows: Rows, seed: int, name: str | None = None, practice: re.Pattern[str] | None = None
) -> dict[str, dict[str, str]]:
    return {split: said(rows, parts) for split, parts in split_tables.read_splits(file, rows, seed, name, practice).items()}


def pyiqa_table(rows: Rows, parts_of: dict[str, dict[str, str]]) -> bytes:
    return b"".join(split_tables.pyiqa_table(rows, {name: array(rows, parts) for name, parts in parts_of.items()}))


def table(parts: list[str], first: str = "id", second: str = "part", names: list[str] | None = None) -> str:
    """A plain table of ROWS, each content's two images in the same part."""
    rows = zip(names or [row.id for row in ROWS], [part for part in parts for _ in range(2)], strict=True)
    return "\n".join([f"{first},{second}", *(f"{name},{part}" for name, part in rows)]) + "\n"


GOOD = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
STATED = dict(line.split(",") for line in table(GOOD).splitlines()[1:])


# round trips


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(ID, min_size=12, max_size=12, unique=True), st.lists(PARTS_OF_12, min_size=1, max_size=3), st.data())
def test_what_is_exported_and_imported_again_is_the_same(
    tmp_path: Path, ids: list[str], parts: list[list[str]], data: st.DataObject
) -> None:
    files = data.draw(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8), min_size=12, max_size=12))
    opinions = data.draw(st.lists(st.floats(-10, 10), min_size=12, max_size=12))
    rows = Rows(Row(name, Path(file), opinion, None, name, None) for name, file, opinion in zip(ids, files, opinions, strict=True))
    stated = {f"mine-{number}": dict(zip(ids, each, strict=True)) for number, each in enumerate(parts)}
    stated["official-no-val"] = {name: "train" if part == "val" else part for name, part in stated["mine-0"].items()}
    assert read_splits(file_with(tmp_path, pyiqa_table(rows, stated)), rows, 0) == stated
    for name, each in stated.items():
        content = b"".join(splits.split_table(rows.ids(), array(rows, each)))
        assert read_splits(file_with(tmp_path, content, f"{name}.csv"), rows, 0) == {name: each}


@pytest.mark.parametrize("name", ["official", "round-01", "mine_split", "split", "ratio802_seed123_split_01", "ratio721_seed123_split01"])
def test_every_name_survives_an_export(tmp_path: Path, name: str) -> None:
    assert read_splits(file_with(tmp_path, pyiqa_table(ROWS, {name: STATED})), ROWS, 0) == {name: STATED}


def test_an_exported_table_is_what_pyiqa_reads() -> None:
    rows = list(csv.DictReader(io.StringIO(pyiqa_table(ROWS, {"official": STATED, "ratio802_seed123_split_01": STATED}).decode())))
    assert list(rows[0]) == ["img_name", "mos", "std", "official_split", "ratio802_seed123_split_01", "ref_name", "id"]
    assert [(row["img_name"], row["ref_name"]) for row in rows] == [(row.file.name, row.group) for row in ROWS]
    assert [float(row["mos"]) for row in rows] == [row.opinion for row in ROWS]
    assert {row["official_split"] for row in rows} == set(PARTS)


def test_a_table_of_images_that_share_no_content_names_none() -> None:
    rows = Rows(Row(row.id, row.file, row.opinion, None, row.id, None) for row in ROWS)
    assert pyiqa_table(rows, {"mine": STATED}).splitlines()[0] == b"img_name,mos,std,mine_split,id"


def test_a_picture_is_known_by_its_path_where_another_build_gave_it_another_id(tmp_path: Path) -> None:
    others = Rows(Row(f"images_{row.id}", Path("images") / row.file, 0.0, None, row.group, None) for row in ROWS)
    exported = file_with(tmp_path, pyiqa_table(others, {"mine": {f"images_{image}": part for image, part in STATED.items()}}))
    assert read_splits(exported, ROWS, 0) == {"mine": STATED}


# what people have


@pytest.mark.parametrize(
    "content",
    [
        table(GOOD),
        table(GOOD, "image", "split", [row.file.name for row in ROWS]),
        table(GOOD, "image", "split", [f"/data/mine/{row.file.name}" for row in ROWS]),
        table(GOOD, "ID", "Part"),
        table(GOOD, "img_name", "part", [row.id.upper() + ".png" for row in ROWS]),
        re.sub("(cup..),(?=t|v)", r"\1,?,", table(GOOD, "id,name")),
        table(["training"] * 12 + ["Validation"] * 4 + ["testing"] * 4),
        "\ufeff" + table(GOOD).replace("\n", "\r\n"),
        "\n".join(reversed(table(GOOD).splitlines()[1:])).join(["id,part\n", "\n"]),
    ],
    ids=[
        "id,part",
        "image,split",
        "whole paths",
        "columns in another case",
        "names in another case",
        "a second column that says nothing",
        "other words for the parts",
        "saved by a spreadsheet",
        "another order",
    ],
)
def test_a_plain_table_is_taken_under_the_name_of_its_file(tmp_path: Path, content: str) -> None:
    assert read_splits(file_with(tmp_path, content), ROWS, 0) == {"mine": STATED}


def test_an_image_that_a_split_leaves_out_has_an_empty_field() -> None:
    rows = list(csv.DictReader(io.StringIO(pyiqa_table(ROWS, {"mine": {"cup01": "train"}}).decode())))
    assert [row["mine_split"] for row in rows[:3]] == ["", "train", ""]


@pytest.mark.parametrize("form", ["pyiqa", "plain"])
def test_an_image_that_a_split_leaves_out_stays_out_when_the_table_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    some = {name: part for name, part in STATED.items() if name not in ("cup00", "cup31")}
    content = pyiqa_table(ROWS, {"mine": some}) if form == "pyiqa" else b"".join(split_tables.plain_table(ROWS, array(ROWS, some)))
    (parts,) = split_tables.read_splits(file_with(tmp_path, content), ROWS, 0).values()
    assert parts.tolist() == array(ROWS, some).tolist()
    assert "2 of 40 images have an empty field and are in no part" in capsys.readouterr().out


@pytest.mark.parametrize("patch", ["", "_patch_2.jpg"])
def test_pyiqas_table_of_flive_is_taken_for_images_and_for_patches(tmp_path: Path, patch: str) -> None:
    rows = Rows(Row(f"{row.id}{patch[:-4]}", Path(f"{row.id}.jpg{patch}"), 1.0, None, row.id, None) for row in ROWS)
    number = {row.id: PARTS.index(STATED[row.id]) for row in ROWS}
    lines = [f"voc/{row.id}.jpg{of},1.0,{number[row.id]}" for of in ("", "_patch_1.jpg", "_patch_2.jpg") for row in ROWS]
    if patch:
        lines = [line for line in lines if "_patch_1" not in line]
    (parts,) = read_splits(file_with(tmp_path, "\n".join(["img_name/patch_name,mos,split", *lines])), rows, 0).values()
    assert [parts[row.id] for row in rows] == [STATED[row.group] for row in rows]


def test_images_are_told_apart_by_their_path_where_their_file_names_are_the_same(tmp_path: Path) -> None:
    rows = Rows(Row(f"{folder}_{n}", Path(f"{n}.bmp"), 0.0, None, f"{folder}{n}", None) for folder in ("jp2k", "wn") for n in range(9))
    lines = [f"{row.id.replace('_', '/')}.bmp,{PARTS[n % 3]}" for n, row in enumerate(rows)]
    (parts,) = read_splits(file_with(tmp_path, "\n".join(["image,split", *lines])), rows, 0).values()
    assert parts == {row.id: PARTS[n % 3] for n, row in enumerate(rows)}


def test_all_splits_of_pyiqas_table_are_taken_or_the_one_that_is_named(tmp_path: Path) -> None:
    lines = [f"ref.png,{row.file.name},{row.opinion},0.1,{STATED[row.id]},{STATED[row.id]}" for row in ROWS]
    file = file_with(tmp_path, "\n".join(["ref_name,dist_name,dmos,std,official_split,ILGnet_split", *lines]))
    assert read_splits(file, ROWS, 0) == {"official": STATED, "ILGnet": STATED}
    assert read_splits(file, ROWS, 0, "ILGnet") == {"ILGnet": STATED}
    shouting = file_with(tmp_path, file.read_text().replace("ILGnet_split", "ILGnet_SPLIT"), "shouting.csv")
    assert read_splits(shouting, ROWS, 0, "ILGnet") == {"ILGnet": STATED}
    with pytest.raises(ShardError, match=r"mine.csv: holds no split 'mine' but official, ILGnet; name one of them"):
        read_splits(file, ROWS, 0, "mine")


@pytest.mark.parametrize("folder", ["", "trainingImages/"])
def test_the_pictures_that_livecs_raters_practised_on_are_left_out_of_pyiqas_table_and_of_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    practice = [f"{folder}t{number}.bmp,train" for number in range(1, 8)]
    file = file_with(tmp_path, "\n".join([table(GOOD).rstrip(), *practice]))
    assert read_splits(file, ROWS, 0, practice=split_tables.PRACTICE) == {"mine": STATED}
    said = f"mine.csv: 7 row(s) are left out, of pictures that raters only practised on: {folder}t1.bmp, {folder}t2.bmp, "
    assert said in capsys.readouterr().out
    with pytest.raises(ShardError, match=rf"'{folder}t1\.bmp' names no image of the shards, or several \(and so do 6 more rows\)"):
        read_splits(file, ROWS, 0)
    with pytest.raises(ShardError, match=r"'t8\.bmp' names no image of the shards"):
        read_splits(file_with(tmp_path, "\n".join([table(GOOD).rstrip(), "t8.bmp,train"])), ROWS, 0, practice=split_tables.PRACTICE)


def test_one_split_is_taken_under_another_name(tmp_path: Path) -> None:
    assert read_splits(file_with(tmp_path, table(GOOD)), ROWS, 0, "yours") == {"yours": STATED}


def test_the_val_of_pyiqas_8_0_2_splits_is_the_test_part_that_their_name_speaks_of(tmp_path: Path) -> None:
    stated = ["train"] * 16 + ["val"] * 4
    with_val, without = (read_splits(file_with(tmp_path, table(stated, "img_name", "ratio802_seed123_split_01")), ROWS, 0)).items()
    assert without == ("ratio802_seed123_split_01-no-val", {row.id: "test" if n >= 32 else "train" for n, row in enumerate(ROWS)})
    assert with_val[0] == "ratio802_seed123_split_01"
    assert {name for name, part in with_val[1].items() if part == "test"} == {row.id for row in ROWS[32:]}
    assert sum(part == "val" for part in with_val[1].values()) == 4


def test_a_split_without_val_gets_one_cut_out_of_train_by_content_and_is_kept_as_it_stands_too(tmp_path: Path) -> None:
    file = file_with(tmp_path, table(["train"] * 16 + ["test"] * 4))
    taken = read_splits(file, ROWS, 0)
    assert list(taken) == ["mine", "mine-no-val"]
    assert {taken["mine"][row.id] for row in ROWS[:32]} == {"train", "val"}
    assert all(taken["mine"][first.id] == taken["mine"][second.id] for first, second in zip(ROWS[::2], ROWS[1::2], strict=True))
    assert read_splits(file, ROWS, 0, "mine-no-val") == {"mine-no-val": taken["mine-no-val"]}
    assert read_splits(file, ROWS, 1)["mine"] != taken["mine"]


# mistakes, each named by file and row


def spoilt(line: int, text: str) -> str:
    lines = table(GOOD).splitlines()
    lines[line - 1] = text
    return "\n".join(lines)


MISTAKES: dict[str, tuple[str | bytes, str]] = {
    "unknown id": (spoilt(5, "cupp03,train"), r"mine.csv, line 5, column id: 'cupp03' names no image.*did you mean 'cup03'\?\), or take"),
    "several unknown ids": (table(GOOD, names=[f"x{n}" for n in range(40)]), r"line 2, column id: 'x0' names .*\(and so do 39 more rows\)"),
    "an id twice": (spoilt(5, "cup00,train"), r"mine.csv, line 5: image 'cup00' stands there a second time, .*line 2; take one out"),
    "an unknown word": (spoilt(5, "cup03,holdout"), r"mine.csv, line 5, column part: 'holdout' is no part of a split; write train, val"),
    "a number for a part": (spoilt(5, "cup03,0"), r"mine.csv, line 5, column part: '0' is no part of a split; write train, val"),
    "missing ids": (
        "\n".join(table(GOOD).splitlines()[:-3]),
        r"mine.csv: 3 of 40 images have no row, the first is 'cup37'; add them, with an empty field if they are to be in no part",
    ),
    "a row whose columns name different images": (
        "\n".join(["id,image,part", *(f"{n % 2 and row.id},{row.file},{STATED[row.id]}" for n, row in enumerate(ROWS)), ""]).replace(
            "cup03,cup03.PNG", "cup13,cup03.PNG"
        ),
        r"mine.csv, line 5: column id names image 'cup13', and column image names 'cup03'; take the column out that does not name",
    ),
    "a content on two sides": (
        spoilt(26, "cup24,train"),
        r"mine.csv, column part: content 'content12' is in 'train' and, with image 'cup25', in 'val'.*in one part \(.*mine.csv, line 27\)",
    ),
    "no test": (table(["train"] * 16 + ["val"] * 4), r"mine.csv, column part: the split column has no image in 'test'"),
    "two test images": (table(["train"] * 17 + ["val"] * 2 + ["test"]), r"column part: 'test' would have 2 image.* at least 3; put more"),
    "two val images": (table(["train"] * 17 + ["val"] + ["test"] * 2), r"column part: 'val' would have 2 image.* at least 3; put more"),
    "a val too small to be cut": (table(["train"] * 2 + ["test"] * 18), r"column part: 'val' would have 2 image"),
    "no column of images": (table(GOOD, first="photograph"), r"mine.csv: lacks a column with the images, .*; it has: photograph, part"),
    "no column of parts": (table(GOOD, second="fold"), r"mine.csv: lacks a column part, or one with 'split' in its name; it has: id, fold"),
    "one split in two columns": (
        "\n".join(["id,part,split", *(f"{row.id},{part},{part}" for row, part in zip(ROWS, STATED.values(), strict=True))]),
        r"mine.csv: the columns part and split both state the split 'mine'; take one out",
    ),
    "an empty file": ("", r"mine.csv: has no rows"),
    "an Excel file": (b"PK\x03\x04" + bytes(30), r"mine.csv: is an Excel file"),
    "Latin-1": (table(GOOD).replace("cup00", "caf\xe9").encode("latin-1"), r"mine.csv, line 2: is not a csv file in UTF-8"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_table_with_a_mistake_is_refused_by_file_and_row(tmp_path: Path, kind: str) -> None:
    content, complaint = MISTAKES[kind]
    with pytest.raises(ShardError, match=complaint):
        read_splits(file_with(tmp_path, content), ROWS, 0)


def test_a_split_with_val_does_not_get_a_name_that_says_it_has_none(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"has images in val, and 'mine-no-val' is the name of a split without; choose another"):
        read_splits(file_with(tmp_path, table(GOOD)), ROWS, 0, "mine-no-val")


class Opened:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("opened", "w")  # what a pickle may do to whoever reads it


@pytest.mark.parametrize(("name", "protocol"), [("koniq10k_official.pkl", 0), ("koniq10k_official.pkl", 4), ("splits.csv", 2)])
def test_a_pickle_is_never_opened_and_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    file = file_with(tmp_path, pickle.dumps({1: {"train": [0], "val": [], "test": Opened()}}, protocol), name)
    with pytest.raises(ShardError, match=rf"{name}: is a pickle, .*; import pyiqa's meta csv .*official_split"):
        read_splits(file, ROWS, 0)
    assert not (tmp_path / "opened").exists()


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"nothing.csv: cannot be read \(No such file.*check the path"):
        read_splits(tmp_path / "nothing.csv", ROWS, 0)


def test_numbered_rounds_survive_too(tmp_path: Path) -> None:
    rounds = {name: said(ROWS, parts) for name, parts in numbered_rounds(ROWS, 3, 10, "80/20").items()}
    assert read_splits(file_with(tmp_path, pyiqa_table(ROWS, rounds)), ROWS, 99) == rounds
