"""The promises of the public data sets: each is read as it is distributed, becomes shards, and a wrong folder is explained."""

from __future__ import annotations

import math
import os
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from openpyxl import load_workbook
from photographs import crop
from PIL import Image
from public_sets import MAKERS, cells, flive_of_pyiqa, flive_validation, live_with_other_deviations, make, write_csv
from scipy.io import savemat

from shards import flive_table
from shards.__main__ import main
from shards.adapters import ADAPTERS
from shards.datasets import DataSet
from shards.manifest import PARTS, ShardError, Shards
from shards.rows import Row
from shards.splits import all_splits

SMALL = ["--size", "32", "--patches", "2", "--workers", "1"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Every set in small, made when it is first asked for. Not to be changed."""
    made: dict[str, Path] = {}

    def root_of(name: str) -> Path:
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp(name))
        return made[name]

    return root_of


def read(name: str, root: Path, label: str | None = None) -> DataSet:
    return ADAPTERS[name].read(root, label or ADAPTERS[name].labels[0].name)


# what is read

FIRST_AND_COUNTS = {  # name: (one row, its file below the root; images, contents, and images in each stated part)
    "koniq10k": (
        Row("10004473379", Path("1024x768/10004473379.jpg"), 40.0, None, "10004473379.jpg", "val"),
        (10, 10, {"train": 6, "val": 2, "test": 2}),
    ),
    "livec": (Row("1130", Path("Images/1130.JPG"), 47.25, 20.625, "1130.JPG", None), (11, 11, {None: 11})),
    "spaq": (Row("00002", Path("TestImage/00002.jpg"), 33.0, None, "00002.jpg", None), (10, 10, {None: 10})),
    "bid": (Row("DatabaseImage0006", Path("DatabaseImage0006.JPG"), 2.5, None, "DatabaseImage0006.JPG", None), (10, 10, {None: 10})),
    "flive": (
        Row("blur_dataset_motion_0003", Path("blur_dataset/motion_0003.jpg"), 50.5, None, "motion_0003", "test"),
        (10, 10, {"train": 8, "test": 2}),
    ),
    "flive_patches": (
        Row("blur_dataset_motion_0003_jpg_patch_2", Path("blur_dataset/motion_0003.jpg_patch_2.jpg"), 50.0, None, "motion_0003", "test"),
        (30, 10, {"train": 24, "test": 6}),
    ),
    "uhd_iqa": (Row("4", Path("validation/4.jpg"), 0.45, None, "4.jpg", "val"), (10, 10, {"train": 6, "val": 2, "test": 2})),
    "live": (Row("jp2k_img1", Path("jp2k/img1.bmp"), -2.6, 2.5, "reference00.bmp", None), (779, 29, {None: 779})),
    "csiq": (
        Row("1600_jpeg2000_3", Path("dst_imgs/jpeg2000/1600.jpeg2000.3.png"), 0.125, 0.05, "1600", None),
        (16, 4, {None: 16}),
    ),
    "tid2013": (Row("I25_01_1", Path("distorted_images/i25_01_1.BMP"), 5.5, None, "i25", None), (12, 4, {None: 12})),
    "kadid10k": (Row("I02_01_01", Path("images/I02_01_01.png"), 1.6, 0.49, "I02.png", None), (15, 5, {None: 15})),
    "pipal": (Row("A0001_00_02", Path("Distortion_2/A0001_00_02.bmp"), 1052.25, None, "A0001", None), (15, 5, {None: 15})),
    "agiqa3k": (
        Row("sd1_5_normal_001", Path("AGIQA-3K/sd1.5_normal_001.jpg"), 0.75, 0.41, "a red fox, sitting in the snow", None),
        (10, 5, {None: 10}),
    ),
    "demo": (None, (12, 4, {"train": 6, "val": 3, "test": 3})),
}


def test_every_adapter_is_tested() -> None:
    assert set(FIRST_AND_COUNTS) == set(ADAPTERS) == set(MAKERS)


@pytest.mark.parametrize("name", FIRST_AND_COUNTS)
def test_a_data_set_is_read_as_it_is_distributed(unpacked: Callable[[str], Path], name: str) -> None:
    root, (expected, (images, contents, parts)) = unpacked(name), FIRST_AND_COUNTS[name]
    data_set = read(name, root)
    assert len(data_set.rows) == images
    assert len({row.group for row in data_set.rows}) == contents
    assert Counter(row.part for row in data_set.rows) == parts
    assert all(row.file.is_file() and row.where.startswith(str(root)) for row in data_set.rows)
    assert data_set.label == ADAPTERS[name].labels[0]
    if expected:
        (found,) = [row for row in data_set.rows if row.id == expected.id]
        assert (found.file.relative_to(root), found.group, found.part) == (expected.file, expected.group, expected.part)
        assert (found.opinion, found.std) == pytest.approx((expected.opinion, expected.std))


@pytest.mark.parametrize("name", FIRST_AND_COUNTS)
def test_a_data_set_becomes_shards(unpacked: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    command = ["build", "--dataset", name, "--root", unpacked(name), "--out", tmp_path, "--resize", "none", *SMALL]
    assert main([str(part) for part in command]) == 0
    shards, data_set = Shards(tmp_path), read(name, unpacked(name))
    assert list(shards.ids) == [row.id for row in data_set.rows]
    assert shards.opinions.tolist() == [row.opinion for row in data_set.rows]
    assert shards.label == ADAPTERS[name].labels[0]


def test_koniq_offers_both_its_labels_and_sd_belongs_to_the_one_on_its_scale(unpacked: Callable[[str], Path], tmp_path: Path) -> None:
    root = unpacked("koniq10k")
    assert [str(label) for label in ADAPTERS["koniq10k"].labels] == [
        "MOS_zscore (0 to 100, higher is better)",
        "MOS (1 to 5, higher is better)",
    ]
    assert {row.std for row in read("koniq10k", root, "MOS_zscore").rows} == {None}
    mos = read("koniq10k", root, "MOS").rows
    assert [row.opinion for row in mos] == [1.5 + number / 4 for number in range(10)]
    assert [row.std for row in mos] == [0.5 + number / 100 for number in range(10)]
    assert main(["build", "--dataset", "koniq10k", "--root", str(root), "--label", "MOS", "--out", str(tmp_path), *SMALL]) == 0
    assert str(Shards(tmp_path).label) == "MOS (1 to 5, higher is better)"


def test_koniq_keeps_its_official_split(unpacked: Callable[[str], Path]) -> None:
    splits = all_splits(read("koniq10k", unpacked("koniq10k")).rows, seed=0)
    assert list(splits) == ["official"]
    assert [PARTS[part] for part in splits["official"]] == ["train", "train", "train", "val", "test"] * 2


def test_koniq_is_also_read_from_its_512x384_copy(tmp_path: Path) -> None:
    (make("koniq10k", tmp_path) / "1024x768").rename(tmp_path / "512x384")
    assert read("koniq10k", tmp_path).rows[0].file == tmp_path / "512x384" / "10004473376.jpg"


@pytest.mark.parametrize(
    ("name", "rule", "size"),
    [
        ("koniq10k", "aspect", ("512", "384")),
        ("koniq10k", "paper", ("384", "512")),
        ("koniq10k", "none", ("64", "48")),
        ("bid", "aspect", ("683", "512")),
        ("bid", "paper", ("512", "512")),
        ("spaq", "aspect", ("683", "512")),
        ("tid2013", "paper", ("64", "48")),
        ("kadid10k", "aspect", ("64", "48")),
        ("kadid10k", "short:96", ("128", "96")),
    ],
)
def test_a_data_set_is_stored_by_its_own_rule_or_the_papers(
    unpacked: Callable[[str], Path], tmp_path: Path, name: str, rule: str, size: tuple[str, str]
) -> None:
    assert main(["build", "--dataset", name, "--root", str(unpacked(name)), "--out", str(tmp_path), "--resize", rule, *SMALL]) == 0
    assert {(row["width"], row["height"]) for row in Shards(tmp_path).image_rows()} == {size}


def test_csiq_is_the_same_from_its_sheet_and_from_its_text_list(tmp_path: Path) -> None:
    sheet = read("csiq", make("csiq", tmp_path)).rows
    (tmp_path / "csiq.DMOS.xlsx").unlink()
    text = read("csiq", tmp_path).rows
    assert [(row.id, row.file, row.opinion, row.group) for row in sheet] == [(row.id, row.file, row.opinion, row.group) for row in text]


def test_live_is_also_read_without_its_deviations(tmp_path: Path) -> None:
    with_deviations = read("live", make("live", tmp_path)).rows
    live_with_other_deviations(tmp_path)
    assert list(read("live", tmp_path).rows) == [replace(row, std=None) for row in with_deviations]


@pytest.mark.parametrize(
    ("name", "file", "sheet"),
    [
        ("spaq", "Annotations/MOS and Image attribute scores.xlsx", "Sheet1"),
        ("bid", "DatabaseGrades.xlsx", "Plan1"),
        ("csiq", "csiq.DMOS.xlsx", "all_by_image"),
    ],
)
def test_an_excel_file_that_was_saved_as_csv_is_read_the_same(tmp_path: Path, name: str, file: str, sheet: str) -> None:
    table = make(name, tmp_path) / file
    before = list(read(name, tmp_path).rows)
    lines = load_workbook(table)[sheet].iter_rows(values_only=True)
    write_csv(table.with_suffix(".csv"), next(lines), lines)
    table.unlink()
    assert list(read(name, tmp_path).rows) == before


@pytest.mark.parametrize("name", ["spaq", "bid", "csiq"])
def test_the_list_says_of_which_excel_files_a_csv_is_taken_too(name: str) -> None:
    assert ".xlsx (or .csv)" in ADAPTERS[name].on_disk


def test_csiq_is_also_read_with_all_pictures_in_one_folder(tmp_path: Path) -> None:
    folder = make("csiq", tmp_path) / "dst_imgs"
    for file in list(folder.glob("*/*.png")):
        file.rename(folder / file.name)
    assert {row.file.parent for row in read("csiq", tmp_path).rows} == {folder}


def test_what_a_mac_leaves_beside_the_lists_of_pipal_is_none_of_them(tmp_path: Path) -> None:
    (make("pipal", tmp_path) / "Train_Label" / "._A0000.txt").write_bytes(b"\0\5\x16\7\0\2")
    assert len(read("pipal", tmp_path).rows) == 15


def test_flive_patches_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    make("flive", tmp_path)
    for folder in ("voc_emotic_ava", "blur_dataset"):
        (tmp_path / "patches" / folder).mkdir(parents=True)
        for file in list((tmp_path / folder).glob("*_patch_*")):
            file.rename(tmp_path / "patches" / folder / file.name)
    assert all("patches" in row.file.parts for row in read("flive_patches", tmp_path).rows)
    assert all("patches" not in row.file.parts for row in read("flive", tmp_path).rows)


def test_flives_pictures_may_lie_in_the_folder_that_their_makers_fill(tmp_path: Path) -> None:
    make("flive", tmp_path)
    (tmp_path / "database").mkdir()
    for folder in ("voc_emotic_ava", "blur_dataset"):
        (tmp_path / folder).rename(tmp_path / "database" / folder)
    for name in ("flive", "flive_patches"):
        assert all(row.file.is_file() and "database" in row.file.parts for row in read(name, tmp_path).rows)


@pytest.mark.parametrize("change", [flive_validation, flive_of_pyiqa])
@pytest.mark.parametrize("name", ["flive", "flive_patches"])
def test_flives_val_is_the_one_that_its_makers_chose(name: str, change: Callable[[Path], object], tmp_path: Path) -> None:
    without = read(name, make(name, tmp_path)).rows
    change(tmp_path)
    chosen = {"JPEGImages__2008_0002", "motion_0005"}
    assert list(read(name, tmp_path).rows) == [
        replace(row, part="val" if row.group in chosen else row.part, where=told.where)
        for row, told in zip(without, read(name, tmp_path).rows, strict=True)
    ]


def test_pyiqas_table_gives_flive_its_val_also_beside_the_makers_tables(tmp_path: Path) -> None:
    makers, both = make("flive", tmp_path / "makers"), make("flive", tmp_path / "both")
    flive_of_pyiqa(both)
    for table in makers.glob("labels*.csv"):
        (both / table.name).write_bytes(table.read_bytes())
    parts = {row.id: row.part for row in read("flive", both).rows}
    assert Counter(parts.values()) == {"train": 6, "val": 2, "test": 2}
    table = both / "meta_info_FLIVEDataset.csv"
    named = re.sub(r",([012])\n", lambda found: f",{PARTS[int(found[1])]}\n", table.read_text().replace("\r\n", "\n"))
    table.write_text(named.replace(",split", ",official_split"))
    assert {row.id: row.part for row in read("flive", both).rows} == parts


def test_a_bad_row_of_a_patch_in_pyiqas_table_keeps_nobody_from_the_images(tmp_path: Path) -> None:
    flive_of_pyiqa(make("flive", tmp_path))
    edit("meta_info_FLIVEDataset.csv", "JPEGImages__2008_0000.jpg_patch_1.jpg,35.0", "JPEGImages__2008_0000.jpg_patch_1.jpg,nan")(tmp_path)
    assert len(read("flive", tmp_path).rows) == 10
    with pytest.raises(ShardError, match="column mos: 'nan' is not finite"):
        read("flive_patches", tmp_path)


def test_a_short_row_of_bid_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    bid_as_csv("1,3.5\n2\n3,1.2\n")(make("bid", tmp_path))
    refused: list[ShardError] = []
    rows = ADAPTERS["bid"].read(tmp_path, "grade", refused.append).rows
    assert [(row.id, row.opinion) for row in rows] == [("DatabaseImage0001", 3.5), ("DatabaseImage0003", 1.2)]
    (error,) = refused
    assert str(error).startswith(f"{tmp_path}/DatabaseGrades.csv, line 2: has 1 fields for 2 columns; ")


@pytest.mark.parametrize("header", [None, ["", "Average Subjective Grade"], ["", ""]])
def test_the_columns_of_bid_are_taken_by_their_place_whatever_the_header_is(tmp_path: Path, header: list[str] | None) -> None:
    book = load_workbook(make("bid", tmp_path) / "DatabaseGrades.xlsx")
    if header is None:
        book.active.delete_rows(1)
    else:
        book.active["A1"], book.active["B1"] = header
    book.save(tmp_path / "DatabaseGrades.xlsx")
    assert [(row.id[-2:], row.opinion) for row in read("bid", tmp_path).rows] == [
        (f"{number:02d}", pytest.approx(0.5 + number / 3)) for number in range(1, 11)
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("voc_emotic_ava/AVA__927384.jpg", "AVA__927384"),
        ("patches/AVA__927384.jpg_patch_1.jpg", "AVA__927384"),
        ("patches/EMOTIC__a.b.jpg_patch_3.jpg", "EMOTIC__a.b"),
        ("patches/AVA__927384_patch_2.jpg", "AVA__927384"),
    ],
)
def test_a_patch_of_flive_is_called_after_the_whole_name_of_its_picture(name: str, content: str) -> None:
    assert flive_table.content_of(name) == content


def test_pictures_that_were_unpacked_beside_their_table_are_told_to_move(tmp_path: Path) -> None:
    root = make("uhd_iqa", tmp_path)
    (root / "UHD-IQA-database").mkdir()
    for part in ("training", "validation", "test"):
        (root / part).rename(root / "UHD-IQA-database" / part)
    with pytest.raises(ShardError, match=rf"expected training of UHD-IQA, which {root}/UHD-IQA-database has; move it to {root}$"):
        read("uhd_iqa", root)


def test_a_picture_and_its_patches_are_one_content_on_one_side(unpacked: Callable[[str], Path]) -> None:
    images, patches = (read(name, unpacked("flive")).rows for name in ("flive", "flive_patches"))
    assert {(row.group, row.part) for row in images} == {(row.group, row.part) for row in patches}


def test_the_list_names_every_data_set_with_all_that_is_needed_to_build_it() -> None:
    said = subprocess.run([sys.executable, "-m", "shards", "list"], capture_output=True, text=True, check=True).stdout
    for adapter in ADAPTERS.values():
        (line,) = [line for line in said.splitlines() if line.startswith(f"{adapter.name} ")]
        assert f"{adapter.images:,}" in line and adapter.title in line and adapter.protocol in line
        assert adapter.on_disk in said and adapter.ask in said and all(str(label) in said for label in adapter.labels)
    for table, columns in (("csv, .xlsx", "image and score"), ("pyiqa", "dist_name or img_name, mos or dmos"), ("Q-Align", '"gt_score"')):
        assert any(line.startswith(f"    {table} ") and columns in line for line in said.splitlines())
    assert max(map(len, said.splitlines())) <= 120


# what a user does wrong: one line that names the file and the row, exit status 1, and no shards


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / old).rename(root / new)


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return change


def edit_sheet(name: str, sheet: str, cell: str, value: object) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        book = load_workbook(root / name)
        book[sheet][cell] = value
        book.save(root / name)

    return change


def remove(*names: str) -> Callable[[Path], object]:
    return lambda root: [(root / name).unlink() for name in names]


def bid_as_csv(text: str) -> Callable[[Path], object]:
    return lambda root: ((root / "DatabaseGrades.xlsx").unlink(), (root / "DatabaseGrades.csv").write_text(text))


def half_unpacked(root: Path) -> None:
    for file in sorted((root / "images").glob("I0[1-4]_01_0[23].png")):
        file.unlink()
    (root / "kadid10k.zip").write_bytes(b"PK\x03\x04")


def one_folder_too_deep(root: Path) -> None:
    (root / "images" / "images").mkdir()
    for file in list((root / "images").glob("*.png")):
        file.rename(root / "images" / "images" / file.name)


SPAQ = "Annotations/MOS and Image attribute scores.xlsx"
MISTAKES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no table": (
        "kadid10k",
        remove("dmos.csv"),
        r"expected dmos.csv of KADID-10k; it holds images; point --root at the folder that has it",
    ),
    "only the archive": (
        "kadid10k",
        lambda root: (rename("images", "zipped")(root), (root / "images.zip").touch()),
        r"expected images of KADID-10k; it holds dmos.csv, images.zip, zipped; images.zip lies there: unpack it, completely",
    ),
    "half-unpacked": (
        "kadid10k",
        half_unpacked,
        r"images/I01_01_02.png: there is no such file \(\S*dmos.csv, line 3\), 8 of 15 pictures are missing; "
        r"kadid10k.zip lies there: unpack it, completely",
    ),
    "a folder too deep": (
        "kadid10k",
        one_folder_too_deep,
        r"15 of 15 pictures are missing; \S*/images/images/I01_01_01.png is there: name the folder that the table's names are relative to",
    ),
    "one picture lost": (
        "tid2013",
        remove("distorted_images/I02_02_1.BMP"),
        r"I02_02_1.bmp: there is no such file \(\S*mos_with_names.txt, line 5\), 1 of 12 pictures are missing; check the table's names",
    ),
    "renamed column": (
        "kadid10k",
        edit("dmos.csv", "dmos", "score"),
        r"dmos.csv: lacks the column\(s\) dmos; it has: dist_img, ref_img, score, var",
    ),
    "renamed column in Excel": (
        "spaq",
        edit_sheet(SPAQ, "Sheet1", "B1", "Mean"),
        r"scores.xlsx: lacks the column\(s\) MOS; it has: Image name, Mean, Brightness",
    ),
    "Excel saved as csv": (
        "kadid10k",
        lambda root: (root / "dmos.csv").write_bytes(b"PK\x03\x04" + bytes(99)),
        r"dmos.csv: is an Excel file whatever its name says; save it as csv in UTF-8",
    ),
    "csv saved as Excel": (
        "spaq",
        lambda root: (root / SPAQ).write_text("Image name,MOS\n00001.jpg,50\n"),
        r"scores.xlsx: is no Excel file whatever its name says",
    ),
    "semicolons": (
        "kadid10k",
        edit("dmos.csv", ",", ";"),
        r"dmos.csv: is separated by semicolons, as 'dist_img;ref_img;dmos;var' shows; save it with commas",
    ),
    "decimal comma": (
        "tid2013",
        edit("mos_with_names.txt", "1.00000", "1;0"),
        r"mos_with_names.txt, line 1, column mos: '1;0' is not a number; write one with a decimal point",
    ),
    "decimal comma in Excel": (
        "spaq",
        edit_sheet(SPAQ, "Sheet1", "B4", "39,5"),
        r"scores.xlsx, row 4, column MOS: '39,5' is not a number; write one with a decimal point and no comma",
    ),
    "off the scale": (
        "kadid10k",
        edit("dmos.csv", "I01.png,1.2,", "I01.png,12,"),
        r"image 'I01_01_02' has the opinion 12, outside the scale of 1 to 5 \(\S*dmos.csv, line 3\)",
    ),
    "all opinions equal": (
        "pipal",
        lambda root: [file.write_text(re.sub(r",.*", ",1400", file.read_text())) for file in (root / "Train_Label").iterdir()],
        r"Train_Label: all 15 opinions are 1400, so nothing can be learnt",
    ),
    "negative deviation": ("kadid10k", edit("dmos.csv", "1.2,0.4", "1.2,-0.4"), r"dmos.csv, line 3: the std -0.4 is no standard deviation"),
    "a row twice": (
        "kadid10k",
        edit("dmos.csv", "I01_01_02.png", "I01_01_01.png"),
        r"two rows have the id 'I01_01_01' \(.*dmos.csv, line 2, and .*dmos.csv, line 3\); rename one, or take one out",
    ),
    "no row in the split": (
        "koniq10k",
        edit("koniq10k_distributions_sets.csv", "10004473377.jpg", "1.jpg"),
        r"koniq10k_scores_and_distributions.csv, line 3: '10004473377.jpg' has no row in koniq10k_distributions_sets.csv",
    ),
    "another word for a part": (
        "uhd_iqa",
        edit("uhd-iqa-metadata.csv", "validation", "val"),
        r"uhd-iqa-metadata.csv, line 5, column set: 'val' is none of training, validation, test",
    ),
    "no pictures of KonIQ": ("koniq10k", rename("1024x768", "elsewhere"), r"expected 1024x768 or 512x384 of KonIQ-10k; it holds elsewhere"),
    "another sheet": (
        "csiq",
        lambda root: load_and_rename_sheet(root / "csiq.DMOS.xlsx"),
        r"csiq.DMOS.xlsx: has no sheet 'all_by_image'; it has: all_by_distortion, mine",
    ),
    "unknown distortion": (
        "csiq",
        edit_sheet("csiq.DMOS.xlsx", "all_by_image", "F6", "rain"),
        r"csiq.DMOS.xlsx, row 6, column dst_type: 'rain' is none of noise, jpeg,.*; download the table again",
    ),
    "not a name of CSIQ": (
        "csiq",
        lambda root: (remove("csiq.DMOS.xlsx")(root), edit("csiq_label.txt", "1600.AWGN.1.png", "1600.png")(root)),
        r"csiq_label.txt, line 1: '1600.png' is not called reference.distortion.level.png",
    ),
    "vectors of two lengths": (
        "livec",
        lambda root: savemat(root / "Data/AllMOS_release.mat", {"AllMOS_release": [[1.0, 2.0]]}),
        r"AllImages_release.mat: names 18 images, but there are 2 scores and 18 deviations",
    ),
    "another release of LIVE": (
        "live",
        lambda root: savemat(root / "refnames_all.mat", {"refnames_all": cells(["a.bmp", "b.bmp"], (1, 2))}),
        r"dmos_realigned.mat: expected 982 entries .*; found 982, 982 and 2; take the files of release 2",
    ),
    "deviations of LIVE of another length": (
        "live",
        lambda root: live_with_other_deviations(root, dmos_std=[1.0, 2.0]),
        r"dmos_realigned.mat: expected 982 entries in dmos_std, found 2; take the file of release 2",
    ),
    "no number among the deviations of LIVE": (
        "live",
        lambda root: live_with_other_deviations(root, dmos_std=[5.0] * 2 + [math.nan] * 980),
        r"dmos_realigned.mat, entry 3 of dmos_std: 'nan' is not finite",
    ),
    "another variable": (
        "livec",
        lambda root: savemat(root / "Data/AllMOS_release.mat", {"MOS": [[1.0]]}),
        r"AllMOS_release.mat: has no variable 'AllMOS_release'; it has: MOS",
    ),
    "not a MATLAB file": (
        "livec",
        lambda root: (root / "Data/AllMOS_release.mat").write_text("<html>please sign in</html>"),
        r"AllMOS_release.mat: is not a MATLAB file \(.*download it again",
    ),
    "a MATLAB file that ends early": (
        "livec",
        lambda root: (file := root / "Data/AllMOS_release.mat").write_bytes(file.read_bytes()[:150]),
        r"AllMOS_release.mat: is not a MATLAB file \(.*download it again",
    ),
    "MATLAB 7.3": (
        "livec",
        lambda root: (root / "Data/AllMOS_release.mat").write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512) + b"\x89HDF"),
        r"AllMOS_release.mat: is a MATLAB file of version 7.3, which is not read; save it in MATLAB with the option '-v7'",
    ),
    "numbers for names": (
        "livec",
        lambda root: savemat(root / "Data/AllImages_release.mat", {"AllImages_release": np.arange(18.0)[None]}),
        r"AllImages_release.mat, entry 1 of AllImages_release: 0.0 is no text; take the file as it is distributed",
    ),
    "no lists of PIPAL": (
        "pipal",
        lambda root: [file.unlink() for file in (root / "Train_Label").iterdir()],
        r"Train_Label: expected a list A0000.txt ... per reference in it, found none; unpack the labels again",
    ),
    "one column in BID": (
        "bid",
        lambda root: edit_sheets_to_one_column(root / "DatabaseGrades.xlsx"),
        r"DatabaseGrades.xlsx, row 1: has 1 column\(s\); expected in the first 2 the number of the image and the grade",
    ),
    "decimal commas in BID": (
        "bid",
        bid_as_csv("Image,Grade\n1,3,5\n2,4,25\n3,1,5\n"),
        r"DatabaseGrades.csv, line 2: has 3 fields for 2 columns; write numbers with a decimal point",
    ),
    "decimal commas in BID, and no header": (
        "bid",
        bid_as_csv("1,3,5\n2,4,2\n3,1,5\n"),
        r"DatabaseGrades.csv, line 1: has '5' in a column without a name; write numbers with a decimal point",
    ),
    "a short row of BID": (
        "bid",
        bid_as_csv("Image,Grade\n1,3.5\n2\n3,1.2\n"),
        r"DatabaseGrades.csv, line 3: has 1 fields for 2 columns",
    ),
    "half a picture of BID": (
        "bid",
        edit_sheet("DatabaseGrades.xlsx", "Plan1", "A3", 2.5),
        r"DatabaseGrades.xlsx, row 3: '2.5' is no number of the image; write a whole one",
    ),
    "a picture of no reference": (
        "kadid10k",
        edit("dmos.csv", "I01_01_02.png,I01.png", "I01_01_02.png,"),
        r"dmos.csv, line 3: does not say which content 'I01_01_02.png' shows",
    ),
    "a picture of no prompt": (
        "agiqa3k",
        edit("data.csv", ",a lake,", ",,"),
        r"data.csv, line 6: does not say which content '.*.jpg' shows",
    ),
    "a test image that is none": (
        "flive_patches",
        edit("labels640.csv", "motion_0003", "motion_9903"),
        r"labels640.csv, line 2: 'blur_dataset/motion_9903.jpg' has no row in labels_image.csv that can be read; unpack both again",
    ),
    "a picture in test and in val": (
        "flive",
        lambda root: (flive_validation(root), edit("labels=640_padded.csv", "motion_0005", "motion_0003")(root)),
        r"labels=640_padded.csv, line 6: 'blur_dataset/motion_0003.jpg' is in val, and in test by .*/labels640.csv, line 2; unpack",
    ),
    "a word that is neither True nor False": (
        "flive_patches",
        lambda root: (flive_validation(root), edit("labels=640_padded.csv", "True", "yes")(root)),
        r"labels=640_padded.csv, line 4, column is_valid: 'yes' is neither True nor False; download the table again",
    ),
    "a part that is none": (
        "flive",
        lambda root: (flive_of_pyiqa(root), edit("meta_info_FLIVEDataset.csv", ",1\n", ",3\n")(root)),
        r"meta_info_FLIVEDataset.csv, line 4, column split: '3' is no part of a split; write train, val, test",
    ),
    "no part": (
        "flive_patches",
        lambda root: (flive_of_pyiqa(root), edit("meta_info_FLIVEDataset.csv", ",1\n", ",\n")(root)),
        r"meta_info_FLIVEDataset.csv, line 4, column split: is empty; download the table again",
    ),
    "a patch of no picture": (
        "flive_patches",
        edit("labels_patch.csv", "motion_0003.jpg_patch_2", "motion_3.jpg_patch_2"),
        r"labels_patch.csv, line 12: 'blur_dataset/motion_3.jpg_patch_2.jpg' is of no picture in labels_image.csv that can be read",
    ),
    "a picture of no part": (
        "koniq10k",
        edit("koniq10k_distributions_sets.csv", "validation", ""),
        r"koniq10k_distributions_sets.csv, line 8, column set: is empty; unpack the file again",
    ),
    "a picture twice in the split": (
        "koniq10k",
        edit("koniq10k_distributions_sets.csv", "10004473380.jpg", "10004473377.jpg"),
        r"koniq10k_distributions_sets.csv, line 10: '10004473377.jpg' stands there a second time, first in .*, line 7; unpack",
    ),
}


def load_and_rename_sheet(file: Path) -> None:
    book = load_workbook(file)
    book["all_by_image"].title = "mine"
    book.save(file)


def edit_sheets_to_one_column(file: Path) -> None:
    book = load_workbook(file)
    book.active.delete_cols(2, 9)
    book.save(file)


def complaint_of(capsys: pytest.CaptureFixture[str], name: str, root: Path, out: Path, *more: str) -> str:
    """The one line with which a build of `root` fails."""
    assert main(["build", "--dataset", name, "--root", str(root), "--out", str(out), "--resize", "none", *SMALL, *more]) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert not (out / "manifest.json").exists()
    return error


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_folder_that_is_not_as_distributed_is_named_by_file_and_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    name, spoil, complaint = MISTAKES[kind]
    spoil(make(name, tmp_path / name))
    error = complaint_of(capsys, name, tmp_path / name, tmp_path / "out")
    assert str(tmp_path / name) in error and re.search(complaint, error), error


@pytest.mark.parametrize("name", FIRST_AND_COUNTS)
def test_a_root_one_level_too_high_or_too_low_is_answered_with_the_right_one(tmp_path: Path, name: str) -> None:
    root = make(name, tmp_path / "parent" / "right")
    (root / "more").mkdir()
    for wrong in (root.parent, root / "more"):
        with pytest.raises(ShardError, match=rf"{re.escape(str(wrong))}: expected .*, which .* has; give --root {re.escape(str(root))}$"):
            read(name, wrong)
    with pytest.raises(ShardError, match=r"nowhere: there is no such folder; point --root at the one that .* was unpacked to"):
        read(name, tmp_path / "nowhere")


def test_a_folder_that_may_not_be_listed_hides_nothing_of_what_is_said_of_a_wrong_root() -> None:
    with TemporaryDirectory() as folder:  # pytest's own is below one that nobody else may enter
        locked = Path(folder, "disk", "lost+found")
        locked.mkdir(parents=True)
        Path(folder, "disk", "koniq.zip").touch()
        locked.chmod(0)
        Path(folder).chmod(0o711)
        complaint = r"disk: expected .* of KonIQ-10k; it holds koniq.zip, lost\+found; koniq.zip lies there: unpack it, completely"
        with somebody_else(), pytest.raises(ShardError, match=complaint):
            read("koniq10k", locked.parent)
        locked.chmod(0o700)


@contextmanager
def somebody_else() -> Iterator[None]:
    """Root may list every folder; so for a while the tests are run by nobody."""
    if os.getuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_label_that_a_data_set_does_not_offer_is_answered_with_those_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unpacked: Callable[[str], Path]
) -> None:
    error = complaint_of(capsys, "koniq10k", unpacked("koniq10k"), tmp_path, "--label", "DMOS")
    assert error == "error: KonIQ-10k has no label 'DMOS'; choose --label MOS_zscore or MOS"


def test_a_set_that_the_paper_did_not_use_has_no_rule_of_the_paper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unpacked: Callable[[str], Path]
) -> None:
    assert {name for name, adapter in ADAPTERS.items() if adapter.paper_resize} == {"koniq10k", "livec", "bid", "live", "csiq", "tid2013"}
    error = complaint_of(capsys, "spaq", unpacked("spaq"), tmp_path, "--resize", "paper")
    assert error == "error: --resize paper: the HyperIQA paper did not use SPAQ; leave it out for short:512, or write a rule"
    assert main(["list"]) == 0
    assert capsys.readouterr().out.count("paper: it did not use this set") == len(ADAPTERS) - 6


def test_a_table_of_ones_own_has_no_rule_of_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["build", "--table", str(tmp_path / "scores.csv"), "--images", str(tmp_path), "--out", str(tmp_path / "out")]
    (tmp_path / "scores.csv").write_text("image,score\na.png,3\nb.png,4\n")
    assert main([*source, "--resize", "paper", *SMALL]) == 1
    assert "error: --resize paper: there is no paper's rule for a table of your own; write none, exact:" in capsys.readouterr().err


def test_pictures_in_the_working_folder_are_missed_by_their_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scores.csv").write_text("image,score\n" + "".join(f"{number}.png,{number}\n" for number in range(9)))
    assert main(["build", "--table", "scores.csv", "--images", ".", "--out", "out", *SMALL]) == 1
    assert f"error: {tmp_path}/0.png: there is no such file (scores.csv, line 2), 9 of 9 pictures are missing" in capsys.readouterr().err


# pictures of every kind, through a build


def exif(orientation: int) -> Image.Exif:
    turned = Image.Exif()
    turned[0x0112] = orientation
    return turned


def bomb() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


PHOTOGRAPH = Image.fromarray(crop(3, 64, 48))
READ: dict[str, tuple[Callable[[Path], object], tuple[str, str]]] = {
    "CMYK": (lambda file: PHOTOGRAPH.convert("CMYK").save(file, "JPEG"), ("64", "48")),
    "16-bit": (lambda file: Image.fromarray(crop(3, 64, 48)[..., 1].astype("uint16") << 8).save(file, "PNG"), ("64", "48")),
    "EXIF-rotated": (lambda file: PHOTOGRAPH.save(file, "JPEG", exif=exif(6)), ("48", "64")),
    "animated": (lambda file: PHOTOGRAPH.save(file, "GIF", save_all=True, append_images=[PHOTOGRAPH.rotate(180)]), ("64", "48")),
    "grey": (lambda file: PHOTOGRAPH.convert("L").save(file, "JPEG"), ("64", "48")),
    "palette": (lambda file: PHOTOGRAPH.quantize(64).save(file, "PNG"), ("64", "48")),
}


@pytest.mark.parametrize("kind", READ)
def test_a_picture_of_every_kind_is_stored_upright_in_three_channels(tmp_path: Path, kind: str) -> None:
    save, size = READ[kind]
    root = make("kadid10k", tmp_path / "kadid10k")
    save(root / "images" / "I02_01_02.png")
    assert main(["build", "--dataset", "kadid10k", "--root", str(root), "--out", str(tmp_path / "out"), *SMALL]) == 0
    shards = Shards(tmp_path / "out")
    (row,) = [row for row in shards.image_rows() if row["id"] == "I02_01_02"]
    assert (row["width"], row["height"]) == size
    patch = shards.read_patches(list(shards.ids).index("I02_01_02"), [0])[0].astype(int)
    assert patch.shape == (32, 32, 3) and patch.std() > 3
    assert (kind in ("16-bit", "grey")) == bool((patch[..., :1] == patch).all())


REFUSED: dict[str, tuple[bytes, str]] = {
    "zero-byte": (b"", r"cannot be decoded"),
    "text": (b"<html>please sign in</html>", r"cannot be decoded"),
    "huge": (bomb(), r"cannot be decoded .*decompression bomb"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_picture_that_cannot_be_stored_is_named_with_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    content, complaint = REFUSED[kind]
    root = make("kadid10k", tmp_path / "kadid10k")
    (root / "images" / "I02_01_02.png").write_bytes(content)
    error = complaint_of(capsys, "kadid10k", root, tmp_path / "out")
    assert re.search(rf"images/I02_01_02.png: {complaint}.*\(\S*dmos.csv, line 6\)$", error), error


def test_a_truncated_picture_is_named_with_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make("kadid10k", tmp_path / "kadid10k")
    file = root / "images" / "I02_01_02.png"
    file.write_bytes(file.read_bytes()[:-300])
    error = complaint_of(capsys, "kadid10k", root, tmp_path / "out")
    assert re.search(r"images/I02_01_02.png: cannot be decoded .*\(\S*dmos.csv, line 6\)$", error), error


def test_names_outside_ascii_are_kept(tmp_path: Path) -> None:
    root = make("agiqa3k", tmp_path / "数据")
    (root / "AGIQA-3K" / "AttnGAN_normal_000.jpg").rename(root / "AGIQA-3K" / "狐狸 été.jpg")
    edit("data.csv", "AttnGAN_normal_000.jpg", "狐狸 été.jpg")(root)
    assert main(["build", "--dataset", "agiqa3k", "--root", str(root), "--out", str(tmp_path / "out"), "--resize", "none", *SMALL]) == 0
    assert "狐狸_été" in Shards(tmp_path / "out").ids
