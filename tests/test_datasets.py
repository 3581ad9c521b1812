"""The promises of the score tables: what is read, what it becomes, and that a bad row is named by file and line."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from photographs import crop
from PIL import Image

from shards.adapters import ADAPTERS, koniq10k
from shards.datasets import DataSet, Row, image_id, read_table
from shards.manifest import Label, ShardError
from shards.plan import Settings, plan_build
from shards.splits import all_splits
from shards.writer import build


def read(folder: Path, text: str, **options: object) -> DataSet:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "scores.csv").write_bytes(text.encode())
    return read_table(folder / "scores.csv", folder / "images", **options)  # type: ignore[arg-type]


# a table of one's own


def test_a_row_becomes_id_file_opinion_std_group_and_part(tmp_path: Path) -> None:
    data_set = read(tmp_path, "image,score,std,group,split\nb/cup.jpg,3.5,0.25,cup,test\na.png,2,0.5,tree,train\n")
    assert data_set.rows == (
        Row("a", tmp_path / "images/a.png", 2.0, 0.5, "tree", "train"),
        Row("b_cup", tmp_path / "images/b/cup.jpg", 3.5, 0.25, "cup", "test"),
    )


def test_without_the_optional_columns_an_image_is_its_own_group(tmp_path: Path) -> None:
    (only,) = read(tmp_path, "image,score\nb/cup.jpg,3.5\n").rows
    assert (only.std, only.group, only.part) == (None, "b/cup.jpg", None)


def test_the_opinion_is_score_or_else_mos(tmp_path: Path) -> None:
    assert read(tmp_path, "image,mos\na.png,3\n").rows[0].opinion == 3
    assert read(tmp_path, "image,mos,score\na.png,3,4\n").rows[0].opinion == 4


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
    ],
    ids=["byte order mark and CR LF", "spaces and quotes", "empty rows", "another order of columns"],
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
    ],
)
def test_an_id_is_the_path_without_its_suffix_fit_for_a_webdataset_key(name: str, key: str) -> None:
    assert image_id(name, "here") == key


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "scores.csv: has no rows"),
        ("image,score\n", "scores.csv: has no rows"),
        ("name,score\na.png,3\n", r"scores.csv: lacks the column\(s\) image; it has: name, score"),
        ("image,rating\na.png,3\n", r"scores.csv: lacks a column score \(or mos\); it has: image, rating"),
        ("image,score,score\na.png,3,4\n", "scores.csv: has two columns called 'score'"),
        ("image,score\na.png,3\nb, c.png,4\n", "scores.csv, line 3: has 3 fields for 2 columns.*double quotes"),
        ("image,score\na.png,3\nb.png\n", "scores.csv, line 3: has 1 fields for 2 columns"),
        ("image,score\na.png,3\nb.png,\n", "scores.csv, line 3, column score: '' is not a number.*take the row out"),
        ("image,score\na.png,3\nb.png,good\n", "scores.csv, line 3, column score: 'good' is not a number"),
        ('image,score\na.png,3\nb.png,"3,5"\n', "scores.csv, line 3, column score: '3,5' is not a number.*decimal point"),
        ("image,score\na.png,3\nb.png,NaN\n", "scores.csv, line 3, column score: 'NaN' is not finite"),
        ("image,score\na.png,3\nb.png,inf\n", "scores.csv, line 3, column score: 'inf' is not finite"),
        ("image,score,std\na.png,3,nan\n", "scores.csv, line 2, column std: 'nan' is not finite"),
        ("image,score\n,3\n", "scores.csv, line 2: there is no image name"),
        ("image,score,split\na.png,3,holdout\n", "scores.csv, line 2, column split: 'holdout' is no part.*train, val, test"),
        ("image,score,group\na.png,3,cup\nb.png,3,\n", "scores.csv, line 3, column group: is empty.*'b.png'"),
        ("image,score\na.png,3\nb.png,3\na.png,4\n", "scores.csv: two rows have the id 'a'.*rename one, or take one out"),
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
    (tmp_path / "scores.csv").write_bytes("image,score\ncafé.png,3\n".encode("latin-1"))
    with pytest.raises(ShardError, match=r"scores.csv: is not a csv file in UTF-8"):
        read_table(tmp_path / "scores.csv", tmp_path / "images")


# KonIQ-10k, in the very form in which it is distributed

KONIQ = {  # image_name: (MOS, SD, MOS_zscore, set)
    "10004473376.jpg": (3.533980583, 0.590146, 66.35955556, "training"),
    "10007357496.jpg": (3.708737864, 0.666722, 74.21764706, "training"),
    "10007903636.jpg": (3.539215686, 0.623452, 69.79901961, "validation"),
    "10009096245.jpg": (2.961165049, 0.712345, 54.64553571, "test"),
}


@pytest.fixture
def koniq(tmp_path: Path) -> Path:
    counts = ["c1", "c2", "c3", "c4", "c5", "c_total"]
    with (tmp_path / "koniq10k_scores_and_distributions.csv").open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["image_name", *counts, "MOS", "SD", "MOS_zscore"])
        writer.writerows([name, 0, 0, 51, 49, 3, 103, mos, sd, zscore] for name, (mos, sd, zscore, _) in KONIQ.items())
    with (tmp_path / "koniq10k_distributions_sets.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_name", *counts, "MOS", "SD", "set"])
        for name, (_, sd, zscore, part) in reversed(KONIQ.items()):
            writer.writerow([name, 0, 0, 0.495, 0.476, 0.029, 103, zscore + 1, sd, part])
    (tmp_path / "1024x768").mkdir()
    photograph = Image.fromarray(crop(0, 512, 384)).resize((1024, 768))
    for name in KONIQ:
        photograph.save(tmp_path / "1024x768" / name)
    return tmp_path


def test_koniq_is_read_as_it_is_distributed(koniq: Path) -> None:
    data_set = ADAPTERS["koniq10k"](koniq)
    assert [row.id for row in data_set.rows] == [name[:-4] for name in KONIQ]
    assert [row.opinion for row in data_set.rows] == [zscore for _, _, zscore, _ in KONIQ.values()]
    assert [row.file for row in data_set.rows] == [koniq / "1024x768" / name for name in KONIQ]
    assert str(data_set.label) == "MOS_zscore (0 to 100, higher is better)"


def test_koniq_keeps_its_official_split(koniq: Path) -> None:
    splits = all_splits(koniq10k(koniq).rows, seed=0)
    assert list(splits) == ["official"]
    assert list(splits["official"].values()) == ["train", "train", "val", "test"]


def test_koniq_states_no_std_because_its_sd_is_on_another_scale_than_its_opinion(koniq: Path) -> None:
    assert {row.std for row in koniq10k(koniq).rows} == {None}


def test_koniq_is_stored_at_512x384(koniq: Path, tmp_path: Path) -> None:
    shards = build(plan_build(koniq10k(koniq), Settings(patches=2)), tmp_path / "out")
    assert {(row["width"], row["height"], row["enlarged"]) for row in shards.image_rows()} == {("512", "384", "0")}
    assert shards.read_patches(0, [0, 1]).shape == (2, 224, 224, 3)


def test_koniq_is_also_read_from_its_512x384_copy(koniq: Path) -> None:
    (koniq / "1024x768").rename(koniq / "512x384")
    assert koniq10k(koniq).rows[0].file == koniq / "512x384" / "10004473376.jpg"


def test_koniq_with_an_opinion_that_no_split_knows_is_refused(koniq: Path) -> None:
    sets = koniq / "koniq10k_distributions_sets.csv"
    sets.write_text("".join(line for line in sets.read_text().splitlines(keepends=True) if "10007357496" not in line))
    with pytest.raises(ShardError, match=r"koniq10k_scores_and_distributions.csv, line 3: '10007357496.jpg' has no row in koniq10k_dist"):
        koniq10k(koniq)


def test_a_koniq_folder_without_pictures_is_named(koniq: Path) -> None:
    (koniq / "1024x768").rename(koniq / "elsewhere")
    with pytest.raises(ShardError, match=rf"{re.escape(str(koniq))}: expected the pictures of KonIQ-10k in 1024x768/ or 512x384/"):
        koniq10k(koniq)
