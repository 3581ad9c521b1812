"""The promises of the score tables: what is read, what it becomes, and that a bad row is named by file and line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from openpyxl import Workbook, load_workbook
from openpyxl.chart import BarChart
from photographs import NAMES, make_folder

from shards.datasets import DataSet, image_id, missing_pictures, read_table
from shards.manifest import Label, ShardError
from shards.rows import Row

OUR_CODE = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def read(folder: Path, text: str, **options: object) -> DataSet:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "scores.csv").write_bytes(text.encode())
    return read_table(folder / "scores.csv", folder / "images", **options)  # type: ignore[arg-type]


# a table of one's own


def test_a_row_becomes_id_file_opinion_std_group_and_part(tmp_path: Path) -> None:
    data_set = read(tmp_path, "image,score,std,group,split\nb/cup.jpg,3.5,0.25,cup,test\na.png,2,0.5,tree,train\n")
    assert tuple(data_set.rows) == (
        Row("a", tmp_path / "images/a.png", 2.0, 0.5, "tree", "train"),
        Row("b_cup", tmp_path / "images/b/cup.jpg", 3.5, 0.25, "cup", "test"),
    )


def test_without_the_optional_columns_an_image_is_its_own_group(tmp_path: Path) -> None:
    (only,) = read(tmp_path, "image,score\nb/cup.jpg,3.5\n").rows
    assert (only.std, only.group, only.part) == (None, "b/cup.jpg", None)


def test_the_opinion_is_score_or_mos_and_never_one_of_two(tmp_path: Path) -> None:
    assert read(tmp_path, "image,mos\na.png,3\n").rows[0].opinion == 3
    with pytest.raises(ShardError, match=r"scores.csv: has the columns score and mos; keep the one that is the opinion, and rename"):
        read(tmp_path, "image,mos,score\na.png,3,4\n")


def test_a_table_is_named_after_its_folder_and_its_scale_is_not_stated(tmp_path: Path) -> None:
    data_set = read(tmp_path, "image,score\na.png,3\n")
    assert data_set.name == tmp_path.name
    assert str(data_set.label) == "MOS (scale not stated, higher is better)"


def test_a_stated_name_and_label_are_kept(tmp_path: Path) -> None:
    label = Label("DMOS", 0.0, 100.0, False)
    data_set = read(tmp_path, "image,score\na.png,3\n", name="mine", label=label)
    assert (data_set.name, data_set.label) == ("mine", label)
    assert str(label) == "DMOS (0 to 100, lower is better)"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffimage,score,split\r\na.png,3,train\r\n",
        'image , score , split\na.png , "3" , train\n',
        "image,score,split\na.png,3,train\n\n,,\n",
        "split,score,image\ntrain,3,a.png\n",
        ",image,score,split,,\n0,a.png,3,train,,\n",
    ],
    ids=["byte order mark and CR LF", "spaces and quotes", "empty rows", "another order of columns", "columns without a name"],
)
def test_what_spreadsheets_do_to_a_table_does_not_matter(tmp_path: Path, text: str) -> None:
    (only,) = read(tmp_path, text).rows
    assert (only.id, only.opinion, only.part) == ("a", 3.0, "train")


@pytest.mark.parametrize(
    ("word", "part"), [("training", "train"), ("Validation", "val"), ("valid", "val"), ("testing", "test"), ("TEST", "test")]
)
def test_the_usual_words_for_the_parts_are_understood(tmp_path: Path, word: str, part: str) -> None:
    assert read(tmp_path, f"image,score,split\na.png,3,{word}\n").rows[0].part == part


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cup.png", "cup"),
        ("sub/folder/cup.jpeg", "sub_folder_cup"),
        ("cup.v2.bmp", "cup_v2"),
        ("my cup (1).png", "my_cup_1"),
        ("./cup.png", "cup"),
        ("照片/тест-é.png", "照片_тест-é"),
        ("cafe\u0301.png", "café"),  # as macOS writes it
        ("का.png", "का"),  # the vowel is no letter to Unicode, and tells it from कि
        ("ภาพที่1.png", "ภาพที่1"),
        ("😀.png", "😀"),
        ("का/my 😀 1.png", "का_my_😀_1"),
    ],
)
def test_an_id_is_the_path_without_its_suffix_fit_for_a_webdataset_key(name: str, key: str) -> None:
    assert image_id(name, "here") == key


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "scores.csv: has no rows"),
        ("image,score\n", "scores.csv: has no rows"),
        (
            "img_name/patch_name,mos,split\na.png,3,0\n",
            r"scores.csv: has the images of FLIVE and its patches.* give --root .*--dataset flive ",
        ),
        ("picture,score\na.png,3\n", r"scores.csv: lacks a column image \(or name, .*\); it has: picture, score; rename the one"),
        (
            "image,rating\na.png,3\n",
            r"scores.csv: lacks a column score \(or mos, .*\); it has: image, rating; rename the one that is meant",
        ),
        ("image,score,score\na.png,3,4\n", "scores.csv: has two columns called 'score'"),
        ("image,score\na.png,3\nb, c.png,4\n", "scores.csv, line 3: has 3 fields for 2 columns.*double quotes"),
        ("image,score\na.png,3\nb.png\n", "scores.csv, line 3: has 1 fields for 2 columns"),
        ("image,score\na.png,3\nb.png,3,5\n", "scores.csv, line 3: has 3 fields for 2 columns; write numbers with a decimal point"),
        (
            "image,score,\na.png,3,\nb.png,4,5\n",
            "scores.csv, line 3: has '5' in a column without a name; write .* a decimal point.*name that",
        ),
        ("image,score,,std\na.png,3,,1\nb.png,4,5,1\n", "scores.csv, line 3: has '5' in a column without a name"),
        ("image,score\na.png,3\nb.png,\n", "scores.csv, line 3, column score: '' is not a number.*take the row out"),
        ("image,score\na.png,3\nb.png,good\n", "scores.csv, line 3, column score: 'good' is not a number"),
        ('image,score\na.png,3\nb.png,"3,5"\n', "scores.csv, line 3, column score: '3,5' is not a number.*decimal point"),
        ("image,score\na.png,3\nb.png,NaN\n", "scores.csv, line 3, column score: 'NaN' is not finite"),
        ("image,score\na.png,3\nb.png,inf\n", "scores.csv, line 3, column score: 'inf' is not finite"),
        ("image,score,std\na.png,3,nan\n", "scores.csv, line 2, column std: 'nan' is not finite"),
        ("image,score,std\na.png,3,0\nb.png,4,-0.5\n", "scores.csv, line 3: the std -0.5 is no standard deviation"),
        ("image,score\na.png,3_5\n", "scores.csv, line 2, column score: '3_5' is not a number"),
        ("image,score\n,3\n", "scores.csv, line 2: there is no image name"),
        ("image,score\n.,3\n", "scores.csv, line 2: there is no image name"),
        ("image,score\n/,3\n", "scores.csv, line 2: there is no image name"),
        ("image,score,split\na.png,3,holdout\n", "scores.csv, line 2, column split: 'holdout' is no part.*train, val, test"),
        ("image,score,group\na.png,3,cup\nb.png,3,\n", "scores.csv, line 3: does not say which content 'b.png' shows"),
        (
            "image,score\na.png,3\nb.png,3\na.png,4\n",
            "scores.csv: two rows have the id 'a'.*csv, line 2, and .*csv, line 4.*rename one, or take",
        ),
        ("image,score\na.png,3\nb.png,3\n", "scores.csv: all 2 opinions are 3, so nothing can be learnt; name the right column score"),
        (
            "image;score\na.png;3,5\n",
            "scores.csv: is separated by semicolons, as 'image;score' shows; save it with commas.*points in the numbers",
        ),
        ("image\tscore\na.png\t3\n", "scores.csv: is separated by tabs"),
        ("image,score,SCORE\na.png,3,4\n", "scores.csv: has two columns called 'score'"),
        ("image,dmos\na.png,3\n", "scores.csv: has a column dmos: add --lower-is-better, or --higher-is-better if"),
        ("image,score\na.png,3\na.jpg,4\n", "scores.csv: two rows have the id 'a'.*a.png.*a.jpg"),
    ],
    ids=lambda value: repr(value)[:40] if "\n" in value or not value else "",
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ShardError, match=complaint):
        read(tmp_path, text)


def test_an_opinion_outside_the_stated_scale_is_refused(tmp_path: Path) -> None:
    label = Label("MOS", 1.0, 5.0, True)
    assert len(read(tmp_path, "image,score\na.png,1\nb.png,5\n", label=label).rows) == 2
    with pytest.raises(ShardError, match=r"image 'b' has the opinion 5.01, outside the scale of 1 to 5"):
        read(tmp_path, "image,score\na.png,1\nb.png,5.01\n", label=label)


def test_files_and_folders_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no.csv: cannot be read \(No such file"):
        read_table(tmp_path / "no.csv", tmp_path)
    with pytest.raises(ShardError, match=r"cannot be read \(Is a directory"):
        read_table(tmp_path, tmp_path)
    (tmp_path / "scores.csv").write_text("image,score\na.png,3\n")
    with pytest.raises(ShardError, match=r"pictures: there is no such folder"):
        read_table(tmp_path / "scores.csv", tmp_path / "pictures")


def test_a_table_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = [f"{number}.png,{number}" for number in range(5000)]  # more than is decoded at once
    for code, line, spoilt in (("latin-1", 4322, "café.png,3"), ("gbk", 4322, "狐狸.png,3"), ("utf-16", 1, "a.png,3")):
        (tmp_path / "scores.csv").write_bytes("\n".join(["image,score", *rows[:4320], spoilt, *rows[4320:]]).encode(code))
        with pytest.raises(ShardError, match=rf"scores.csv, line {line}: is not a csv file in UTF-8 \(.*; save it as one"):
            read_table(tmp_path / "scores.csv", tmp_path / "images")
    (tmp_path / "scores.csv").write_bytes("image,score\n\ufffd.png,3\n".encode() + "café.png,3\n".encode("latin-1"))
    with pytest.raises(ShardError, match=r"scores.csv, line 3: "):  # the sign in line 2 is UTF-8, whatever it means
        read_table(tmp_path / "scores.csv", tmp_path / "images")


def test_a_column_dmos_is_read_in_the_direction_that_is_stated(tmp_path: Path) -> None:
    """As pyiqa's table of KADID-10k, whose dmos rises with quality."""
    data_set = read(tmp_path, "ref_name,dist_name,dmos,std\nI01.png,I01_01_01.png,4.5,0.4\n", direction_is_stated=True)
    assert data_set.label.higher_is_better and data_set.rows[0].opinion == 4.5
    assert read(tmp_path, "image,dmos\na.png,3\n", label=Label("DMOS", None, None, False)).rows[0].opinion == 3


# tables that people already have


def write_book(file: Path, *rows: Sequence[object]) -> Path:
    book = Workbook()
    for row in rows:
        book.active.append(list(row))
    book.save(file)
    return file


def test_an_excel_table_is_read_like_a_csv_with_numbers_as_excel_keeps_them(tmp_path: Path) -> None:
    table = write_book(tmp_path / "scores.xlsx", ["Image", "MOS", None], [1600.0, 3.25], ["b.png", 4, None], [None, None])
    assert [(row.id, row.opinion, row.where) for row in read_table(table, tmp_path).rows] == [
        ("1600", 3.25, f"{table}, row 2"),
        ("b", 4.0, f"{table}, row 3"),
    ]


def test_a_remark_beside_an_excel_table_is_no_part_of_it(tmp_path: Path) -> None:
    table = write_book(tmp_path / "scores.xlsx", ["image", "score", None], ["a.png", 3, "look again"])
    assert [row.opinion for row in read_table(table, tmp_path).rows] == [3.0]


def test_an_excel_file_that_misstates_its_own_size_is_read_whole(tmp_path: Path) -> None:
    honest = write_book(tmp_path / "honest.xlsx", ["image", "score"], ["a.png", 3], ["b.png", 4])
    with zipfile.ZipFile(honest) as parts, zipfile.ZipFile(tmp_path / "scores.xlsx", "w") as changed:
        for name in parts.namelist():
            changed.writestr(name, parts.read(name).replace(b'<dimension ref="A1:B3"', b'<dimension ref="A1"'))
    assert b'"A1"' in zipfile.ZipFile(tmp_path / "scores.xlsx").read("xl/worksheets/sheet1.xml")
    assert [row.opinion for row in read_table(tmp_path / "scores.xlsx", tmp_path).rows] == [3.0, 4.0]


def test_the_names_of_columns_may_be_written_in_any_case(tmp_path: Path) -> None:
    (only,) = read(tmp_path, "Image,MOS,STD,Group,Split\na.png,3,0.5,cup,Train\n").rows
    assert only == Row("a", tmp_path / "images/a.png", 3.0, 0.5, "cup", "train")


PYIQA = {
    "no reference": "img_name,mos,std,official_split,ratio802_seed123_split_01\n100.bmp,32.5,19.125,train,val\n",
    "full reference": "ref_name,dist_name,mos,std,official_split\nI01.BMP,100.bmp,32.5,19.125,train\n",
    "PIPAL": "hq_name,dist_name,elo_score,std,official_split\n100.bmp,100.bmp,32.5,19.125,train\n",
    "as it was called once": "name,mos,std,official_split\n100.bmp,32.5,19.125,training\n",
}


@pytest.mark.parametrize("kind", PYIQA)
def test_a_meta_csv_of_pyiqa_is_read_as_it_is(tmp_path: Path, kind: str) -> None:
    group = "I01.BMP" if kind == "full reference" else "100.bmp"
    assert list(read(tmp_path, PYIQA[kind]).rows) == [Row("100", tmp_path / "images/100.bmp", 32.5, 19.125, group, "train")]


@pytest.mark.parametrize("image", ["image", "img_path"])
def test_a_list_of_q_align_is_read_as_it_is(tmp_path: Path, image: str) -> None:
    table = tmp_path / "test_spaq.json"
    table.write_text(json.dumps([{image: "spaq/1.jpg", "gt_score": 56.5}, {image: "spaq/2.jpg", "gt_score": 60, "id": "2"}]))
    assert [(row.id, row.opinion, row.where) for row in read_table(table, tmp_path).rows] == [
        ("spaq_1", 56.5, f"{table}, entry 1"),
        ("spaq_2", 60.0, f"{table}, entry 2"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[{", r"list.json: is not a JSON list in UTF-8 \(.*save it as one"),
        ("{}", r"list.json: is no list of images; write \["),
        ("[]", r"list.json: is no list of images; write \["),
        ('["a.png"]', r"list.json, entry 1: is no object; write"),
        ('[{"image": "a", "gt_score": 3}, {"image": "b"}]', r"list.json, entry 2: lacks 'gt_score'; it has: image"),
        ('[{"image": "a", "gt_score": 3}, {"image": "b", "gt_score": 4, "group": "cup"}]', r"list.json, entry 1: lacks 'group'"),
        ('[{"image": "a", "gt_score": 3, "group": "\\ud800"}]', r"list.json: is not a JSON list in UTF-8 \(.*surrogates"),
        ('[{"image": "a", "gt_score": null}]', r"list.json, entry 1, column gt_score: '' is not a number"),
        ('[{"image": "a", "conversations": []}]', r"list.json: lacks a column score \(or mos, .*\); it has: image, conversations"),
    ],
)
def test_a_bad_json_list_is_named_by_file_and_entry(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ShardError, match=complaint):
        read_table(tmp_path / "list.json", tmp_path)


def test_an_excel_file_that_is_called_csv_is_recognised(tmp_path: Path) -> None:
    write_book(tmp_path / "scores.xlsx", ["image", "score"], ["a.png", 3]).rename(tmp_path / "scores.csv")
    with pytest.raises(ShardError, match=r"scores.csv: is an Excel file whatever its name says; save it as csv in UTF-8, or name it .xlsx"):
        read_table(tmp_path / "scores.csv", tmp_path)


@pytest.mark.parametrize("first", ["a chart", "hidden"])
def test_of_a_book_the_first_sheet_that_can_be_seen_is_read(tmp_path: Path, first: str) -> None:
    table = write_book(tmp_path / "scores.xlsx", ["image", "score"], ["a.png", 3], ["b.png", 4])
    book = load_workbook(table)
    if first == "hidden":
        book.create_sheet("notes", 0).sheet_state = "hidden"
    else:
        book.create_chartsheet("chart", 0).add_chart(BarChart())
    book.save(table)
    assert [row.opinion for row in read_table(table, tmp_path).rows] == [3.0, 4.0]


def test_a_quote_that_is_not_closed_is_told_with_the_line_that_opens_it(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text('image,score\na.png,3\n"b.png,4\nc.png,5\n')
    with pytest.raises(ShardError, match=r"scores.csv, lines 3 to 4: has 1 fields for 2 columns; .* double quotes"):
        read_table(tmp_path / "scores.csv", tmp_path)


@pytest.mark.parametrize("line", [1, 12])
def test_a_quote_that_is_not_closed_is_told_with_its_line_in_a_table_of_any_length(tmp_path: Path, line: int) -> None:
    rows = ["image,score", *(f"a{number}.png,{number}" for number in range(20_000))]
    rows[line - 1] = f'"{rows[line - 1]}'
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    with pytest.raises(
        ShardError, match=rf"scores.csv, line {line}: is not read \(field larger .*\); see that its double quotes are in pairs"
    ):
        read_table(tmp_path / "scores.csv", tmp_path)


@pytest.mark.parametrize("entry", ['{"image": "a", "mos": 1, "MOS": 5}', '{"image": "a", "mos": 1, "mos": 5}'])
def test_two_opinions_in_an_entry_of_a_list_are_refused_by_its_number(tmp_path: Path, entry: str) -> None:
    (tmp_path / "list.json").write_text(f'[{{"image": "b", "mos": 2}}, {entry}]')
    with pytest.raises(ShardError, match=r"list.json, entry 2: has '(mos|MOS)' twice; take one out"):
        read_table(tmp_path / "list.json", tmp_path)


def test_two_columns_that_name_different_pictures_are_refused_and_one_that_names_none_is_not(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    table = tmp_path / "scores.csv"
    table.write_text("image,name,score\na.png,a cup,3\nb.png,B.PNG,4\n")
    assert [row.id for row in read_table(table, tmp_path).rows] == ["a", "b"]
    table.write_text("image,img_name,score\na.png,a.png,3\nb.png,a.png,4\n")
    complaint = r"scores.csv, line 3: column image names 'b.png', and column img_name names 'a.png'; take the column out"
    with pytest.raises(ShardError, match=complaint):
        read_table(table, tmp_path)


def test_a_name_of_signs_alone_is_refused_with_its_row(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("image,score\n+.png,3\n")
    with pytest.raises(ShardError, match=r"scores.csv, line 2: '\+.png' has no letter or digit to call the image by; rename the picture"):
        read_table(tmp_path / "scores.csv", tmp_path)


def test_a_json_object_a_line_is_told_what_to_become(tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text('{"image": "a.png", "gt_score": 3}\n')
    with pytest.raises(ShardError, match=r"scores.jsonl: a JSON object a line is not read; save them as one JSON list"):
        read_table(tmp_path / "scores.jsonl", tmp_path)


def test_a_csv_file_that_is_called_xlsx_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "scores.xlsx").write_text("image,score\na.png,3\n")
    with pytest.raises(ShardError, match=r"scores.xlsx: is no Excel file whatever its name says; name it .csv if it is text"):
        read_table(tmp_path / "scores.xlsx", tmp_path)


@pytest.mark.parametrize("name", ["scores.xlsx", "scores.xls"])
def test_an_excel_file_of_before_2007_is_recognised(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504))
    with pytest.raises(ShardError, match=rf"{name}: is an Excel file of the form before 2007 \(.xls\); save it as .xlsx or as csv"):
        read_table(tmp_path / name, tmp_path)


def test_a_damaged_excel_file_is_refused(tmp_path: Path) -> None:
    table = write_book(tmp_path / "scores.xlsx", ["image", "score"], ["a.png", 3])
    table.write_bytes(table.read_bytes()[:2000])
    with pytest.raises(ShardError, match=r"scores.xlsx: is not an Excel file \(.*download it again"):
        read_table(table, tmp_path)


def test_a_decimal_comma_in_an_excel_cell_is_named_by_its_row(tmp_path: Path) -> None:
    table = write_book(tmp_path / "scores.xlsx", ["image", "score"], ["a.png", 3], ["b.png", "3,5"])
    with pytest.raises(
        ShardError, match=r"scores.xlsx, row 3, column score: '3,5' is not a number; write one with a decimal point and no comma"
    ):
        read_table(table, tmp_path)


def test_without_openpyxl_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write_book(tmp_path / "scores.xlsx", ["image", "score"], ["a.png", 3])
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ShardError, match=r"scores.xlsx: .*openpyxl, which is not installed; run `pip install dist-train\[datasets\]`"):
        read_table(table, tmp_path)


# names in the table and names on the disk


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("I01_01_1.bmp", "i01_01_1.BMP"),
        (unicodedata.normalize("NFC", "café/é.png"), unicodedata.normalize("NFD", "café/é.png")),
        (unicodedata.normalize("NFD", "é.png"), unicodedata.normalize("NFC", "é.png")),
        ("照片/тест.png", "照片/ТЕСТ.png"),
        ("sub\\cup.png", "sub/cup.png"),
        ("./sub/cup.png", "Sub/cup.png"),
    ],
)
def test_a_picture_is_found_although_the_disk_writes_its_name_otherwise(tmp_path: Path, written: str, on_disk: str) -> None:
    file = tmp_path / "images" / on_disk
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x")
    (only,) = read(tmp_path, f"image,score\n{written},3\n").rows
    assert only.file.read_bytes() == b"x" and not list(missing_pictures(read(tmp_path, f"image,score\n{written},3\n")))


def test_of_two_files_the_one_that_is_written_as_in_the_table_is_taken(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("cup.png", "CUP.png"):
        (tmp_path / "images" / name).touch()
    data_set = read(tmp_path, "image,score\ncup.png,3\n./CUP.png,4\nCup.png,5\n")
    assert {row.id: row.file.name for row in data_set.rows} == {"CUP": "CUP.png", "Cup": "Cup.png", "cup": "cup.png"}
    assert [row.id for row in missing_pictures(data_set)] == ["Cup"]  # which of the two is meant is not for us to say


@pytest.mark.parametrize("name", ["a/b", "/", ".", "..", "a\\b", os.fsdecode(b"\xff")])
def test_a_name_that_cannot_be_part_of_a_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ShardError, match=r"--name '.*': is part of file names"):
        read(tmp_path, "image,score\na.png,1\nb.png,2\n", name=name)


def test_what_is_no_text_is_refused_as_a_name_and_no_matter_as_a_folder(tmp_path: Path) -> None:
    folder, out = make_folder(tmp_path / os.fsdecode(b"caf\xe9"), NAMES[:4]), tmp_path / os.fsdecode(b"\xe9")

    def build(*more: str | bytes) -> subprocess.CompletedProcess[str]:
        source = ["build", "--table", "scores.csv", "--images", folder / "images", "--out", out, "--size", "32", "--patches", "1"]
        environment = {**OUR_CODE, "PYTHONIOENCODING": "utf-8:strict"}
        command = [sys.executable, "-m", "shards", *source, *more]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", timeout=60)

    for refused, complaint in (((), "error: --name 'caf\\udce9': is part of"), (("--name", "a", "--label", b"\xe9"), "error: --label")):
        done = build(*refused)
        assert done.returncode == 1 and complaint in done.stderr and not out.exists()
    assert build("--name", "cups").returncode == 0 and (out / "manifest.json").is_file()
