"""The promises of `python -m shards doctor`: a clean folder is clean, and every trap is found, named and explained."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import public_sets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photographs import make_folder
from PIL import Image

from shards import demo
from shards.__main__ import main
from shards.adapters import ADAPTERS
from shards.datasets import DataSet, Row, read_table
from shards.doctor import compare
from shards.duplicates import THUMBNAIL, Look, look_of, near_pairs, same_files
from shards.examination import examine, picture_at
from shards.manifest import PARTS, Label
from shards.photographs import decoder_versions
from shards.picture_checks import picture_findings
from shards.splits import all_splits, briefly
from shards.table_checks import table_findings

SIZE = 48  # of a patch
OUR_CODE = {**os.environ, "PYTHONPATH": str(Path(demo.__file__).parents[1])}
Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pieces of photographs that do not overlap, 25 from each, and a table: 150 to train, 75 to validate, 75 to test."""
    folder = tmp_path_factory.mktemp("clean")
    (folder / "images").mkdir()
    rows = []
    for number, content in enumerate(sorted(set(demo.CONTENTS) - {"snow_right", "ruin_arch"})):
        for piece in range(25):
            y, x = 76 * (piece // 5), 102 * (piece % 5)
            name = f"{content}{piece}.png"
            Image.fromarray(demo.cut_content(content)[y : y + 76, x : x + 102]).save(folder / "images" / name, compress_level=1)
            rows.append(
                [name, 1 + (number * 25 + piece) * 7 % 300 / 75, 0.6, f"{content}{piece}", ("train", "train", "val", "test")[piece % 4]]
            )
    with (folder / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "score", "std", "group", "split"], *rows])
    return folder


def arguments(folder: Path, *more: object) -> list[str]:
    source = ["doctor", "--table", folder / "scores.csv", "--images", folder / "images", "--range", 1, 5, "--size", SIZE, "--workers", 1]
    return [str(argument) for argument in [*source, *more]]


def read(folder: Path) -> DataSet:
    return read_table(folder / "scores.csv", folder / "images", "pieces", Label("MOS", 1.0, 5.0, True))


# a clean folder


def test_a_clean_folder_is_safe_and_nothing_is_found(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(clean)) == 0
    told = capsys.readouterr()
    assert told.out == f"{clean.name}: safe to build (nothing found)\n"
    assert "300/300" in told.err and "images/s" in told.err


def test_any_number_of_workers_finds_the_same(clean: Path) -> None:
    few = replace(read(clean), rows=read(clean).rows[:40])
    assert examine(few, workers=2) == examine(few, workers=1)


def test_one_picture_is_in_memory_at_a_time(tmp_path: Path) -> None:
    for number in range(6):
        Image.new("RGB", (4000, 3000), (40 * number, 99, 200)).save(tmp_path / f"{number}.jpg")
    (tmp_path / "scores.csv").write_text("image,score\n" + "".join(f"{number}.jpg,{number}\n" for number in range(6)))
    code = (
        "import resource; from pathlib import Path; from shards.datasets import read_table; from shards.examination import examine\n"
        "for rows in (1, 6):\n"
        "    table = Path(f'{rows}.csv')\n"
        "    table.write_text(''.join(Path('scores.csv').open().readlines()[: 1 + rows]))\n"
        "    assert all(picture.sha256 for picture in examine(read_table(table, Path())).pictures)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=OUR_CODE, capture_output=True, text=True, timeout=60, check=True)
    one, six = map(int, done.stdout.split())
    assert six - one < 4000 * 3000 * 3 / 2  # half a picture


def test_quick_reads_headers_and_says_what_it_does_not_know(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(clean, "--quick", "--json")) == 0
    (only,) = json.loads(capsys.readouterr().out)["findings"]
    assert (only["severity"], only["found"][:25]) == ("note", "only the headers were read"[:25])


# what is wrong with pictures: each done to the clean folder, and found alone


def save(name: str, change: Callable[[Image.Image], Image.Image], as_name: str | None = None, **options: object) -> Spoil:
    """Replaces a picture, or writes a new file under another picture's name, whatever its suffix says."""

    def spoil(folder: Path) -> None:
        file = folder / "images" / name
        with Image.open(file) as picture:
            changed = change(picture.convert("RGB"))
        form = {".jpg": "JPEG", ".gif": "GIF", ".tif": "TIFF"}.get(Path(as_name or name).suffix, "PNG")
        changed.save(file, form, **options)

    return spoil


def cut_short(folder: Path) -> None:
    file = folder / "images" / "coffee0.png"
    file.write_bytes(file.read_bytes()[:-3000])


def copy(source: str, target: str) -> Spoil:
    return lambda folder: shutil.copy(folder / "images" / source, folder / "images" / target) and None


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def see_through(picture: Image.Image) -> Image.Image:
    picture.putalpha(picture.convert("L"))
    return picture


def remove(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / "images" / name).unlink()

    return spoil


def like(name: str, other: str, change: Callable[[Image.Image], Image.Image]) -> Spoil:
    """Puts a changed copy of the picture `other` in place of `name`."""

    def spoil(folder: Path) -> None:
        with Image.open(folder / "images" / other) as picture:
            change(picture.convert("RGB")).save(folder / "images" / name)

    return spoil


def blurred_and_half_as_large(picture: Image.Image) -> Image.Image:
    return Image.fromarray(demo.distort(np.asarray(picture), "jpeg", 4)).resize((80, 60))


PICTURES: dict[str, tuple[Spoil, str, str]] = {
    "a missing file": (remove("coffee0.png"), "error", "1 of 300 files are not there"),
    "a zero-byte file": (
        lambda folder: (folder / "images/coffee0.png").write_bytes(b"") and None,
        "error",
        "1 of 300 pictures cannot be decoded",
    ),
    "a file that ends early": (cut_short, "error", "1 of 300 pictures cannot be decoded"),
    "no picture": (
        lambda folder: (folder / "images/coffee0.png").write_text("<html>") and None,
        "error",
        "1 of 300 pictures cannot be decoded",
    ),
    "a file of no row": (
        lambda folder: Image.fromarray(demo.cut_content("snow_right")[:76, :102]).save(folder / "images/extra.JPG"),
        "warning",
        "1 picture(s) without a row in scores.csv",
    ),
    "EXIF orientation": (
        save("coffee0.png", lambda picture: picture, "a.jpg", exif=turned(), quality=95),
        "note",
        "1 of 300 pictures are turned upright",
    ),
    "grey": (save("coffee0.png", lambda picture: picture.convert("L")), "note", "1 of 300 pictures are grey"),
    "palette": (save("coffee0.png", lambda picture: picture.quantize(64)), "note", "1 of 300 pictures have a palette"),
    "CMYK": (save("coffee0.png", lambda picture: picture.convert("CMYK"), "a.jpg"), "warning", "1 of 300 pictures are CMYK"),
    "transparency": (save("coffee0.png", see_through), "warning", "1 of 300 pictures have transparency"),
    "smaller than a patch": (
        save("coffee0.png", lambda picture: picture.resize((60, 45))),
        "warning",
        "1 of 300 pictures are smaller than",
    ),
    "a panorama": (save("coffee0.png", lambda picture: picture.resize((240, 76))), "warning", "1 of 300 pictures are 3 times as long"),
    "a copy on another side": (
        copy("coffee0.png", "coffee2.png"),
        "error",
        "2 files that are 1 picture(s), the same to the byte, are on two sides of a split",
    ),
    "a copy on the same side": (
        copy("coffee0.png", "coffee1.png"),
        "warning",
        "2 files that are 1 picture(s), the same to the byte, are taken as different",
    ),
    "a near copy on another side": (
        like("coffee2.png", "coffee0.png", blurred_and_half_as_large),
        "warning",
        "1 pair(s) of pictures of different groups look alike, 1 on two sides of a split",
    ),
    "a near copy on the same side": (
        like("coffee1.png", "coffee0.png", blurred_and_half_as_large),
        "warning",
        "1 pair(s) of pictures of different groups look alike",
    ),
}


@pytest.fixture(scope="module")
def spoilt(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spoil], Path]:
    def make(spoil: Spoil) -> Path:
        folder = tmp_path_factory.mktemp("spoilt")
        shutil.copytree(clean, folder, dirs_exist_ok=True)
        spoil(folder)
        return folder

    return make


@pytest.mark.parametrize("trap", PICTURES)
def test_a_trap_in_the_pictures_is_found_and_nothing_else(
    spoilt: Callable[[Spoil], Path], capsys: pytest.CaptureFixture[str], trap: str
) -> None:
    spoil, severity, begins = PICTURES[trap]
    status = main(arguments(spoilt(spoil), "--json"))
    said = json.loads(capsys.readouterr().out)
    (finding,) = [each for each in said["findings"] if "are JPEG files" not in each["found"]]
    assert finding["severity"] == severity and finding["found"].startswith(begins)
    assert finding["expected"] and finding["to_do"]
    assert any(place.startswith(("images/coffee", "images/extra")) for place in finding["where"])
    assert (status, said["safe"]) == ((1, False) if severity == "error" else (0, True))


def test_pictures_of_no_row_are_found_in_every_folder_and_what_a_mac_leaves_is_none(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, ["a.png", "more/b.png"], 32, 24)
    for name in ("c.png", "more/c.png", "other/deep/c.JPG", "._a.png", "more/._b.png", "__MACOSX/c.png", ".cache/c.png", "notes.txt"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).touch()
    unlisted = examine(read_table(folder / "scores.csv", folder / "images"), headers_only=True).unlisted
    assert [str(file.relative_to(folder / "images")) for file in unlisted] == ["c.png", "more/c.png", "other/deep/c.JPG"]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def sixteen_bit_colour(pixels: np.ndarray) -> bytes:
    """A PNG file that Pillow reads but cannot write."""
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.tobytes() for line in (pixels.astype(">u2") * 257))
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_a_file_that_is_missing_or_damaged_is_named_with_its_row(
    spoilt: Callable[[Spoil], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(folder: Path) -> None:
        cut_short(folder)
        remove("coffee1.png")(folder)

    folder = spoilt(spoil)
    rows = [line.split(",")[0] for line in (folder / "scores.csv").read_text().splitlines()]
    assert main(arguments(folder, "--json")) == 1
    missing, broken = json.loads(capsys.readouterr().out)["findings"]
    assert missing["where"] == [f"images/coffee1.png (scores.csv, line {1 + rows.index('coffee1.png')})"]
    assert broken["where"][0].startswith(f"images/coffee0.png (scores.csv, line {1 + rows.index('coffee0.png')}) cannot be decoded")


def test_a_half_unpacked_archive_and_a_folder_too_deep_are_told_of(
    spoilt: Callable[[Spoil], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def half_unpacked(folder: Path) -> None:
        remove("coffee0.png")(folder)
        (folder / "images.zip").touch()

    assert main(arguments(spoilt(half_unpacked), "--quick", "--json")) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["to_do"] == "images.zip lies there: unpack it, completely"

    def too_deep(folder: Path) -> None:
        (folder / "images").rename(folder / "inner")
        (folder / "images").mkdir()
        (folder / "inner").rename(folder / "images" / "inner")

    folder = spoilt(too_deep)
    assert main(arguments(folder, "--quick", "--json")) == 1
    missing = json.loads(capsys.readouterr().out)["findings"][0]
    assert missing["found"] == "300 of 300 files are not there"
    assert re.fullmatch(
        rf"{folder}/images/inner/\w+.png is there: name the folder that the table's names are relative to", missing["to_do"]
    )


def test_jpeg_files_are_told_of_with_the_decoder_that_the_manifest_will_name(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, [f"{number}.jpg" for number in range(3)] + ["3.png"])
    (finding,) = [
        each
        for each in picture_findings(examine(read_table(folder / "scores.csv", folder / "images"), headers_only=True), 16, "none")
        if "JPEG" in each.found
    ]
    versions = decoder_versions()
    assert finding.severity == "note" and finding.found.startswith(f"3 of 4 pictures are JPEG files, which Pillow {versions['pillow']} ")
    assert finding.found.endswith(versions.get("libjpeg_turbo", versions["jpg"])) and "a level or two" in finding.expected


def test_a_photograph_with_a_preview_behind_it_is_no_animation(tmp_path: Path) -> None:
    """As many telephones write them: MPO, two JPEG files in one."""
    photograph, preview = (Image.fromarray(demo.cut_content(content)) for content in ("coffee", "china"))
    photograph.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.is_animated
    assert picture_at(tmp_path / "a.jpg").traits == {"JPEG"}


def test_sixteen_bits_and_animation_are_told(tmp_path: Path) -> None:
    pixels = demo.cut_content("coffee")
    first = Image.fromarray(pixels)
    Image.fromarray(pixels[..., 1].astype(np.uint16) * 257).save(tmp_path / "grey.png")
    (tmp_path / "colour.png").write_bytes(sixteen_bit_colour(pixels))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[first.transpose(Image.Transpose.ROTATE_180)])
    assert picture_at(tmp_path / "grey.png").traits == {"grey", "16 bits"}
    assert picture_at(tmp_path / "colour.png").traits == {"16 bits"}
    assert picture_at(tmp_path / "moving.gif").traits == {"palette", "animated"}


def without_a_split(folder: Path) -> None:
    rows = (folder / "scores.csv").read_text().splitlines()
    (folder / "scores.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows) + "\n")


def test_copies_that_a_numbered_round_would_part_are_an_error_that_names_the_rounds(
    spoilt: Callable[[Spoil], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(folder: Path) -> None:
        without_a_split(folder)
        copy("coffee0.png", "china7.png")(folder)
        like("sail3.png", "coffee1.png", blurred_and_half_as_large)(folder)

    folder = spoilt(spoil)
    ids = [row.id for row in read(folder).rows]
    parts = {name: dict(zip(ids, each.tolist(), strict=True)) for name, each in all_splits(read(folder).rows, 0).items()}
    parted = [name for name, part in parts.items() if part["coffee0"] != part["china7"]]
    assert main(arguments(folder, "--json")) == 1
    same, near = [each for each in json.loads(capsys.readouterr().out)["findings"] if " in the split " not in each["found"]]
    assert (same["severity"], near["severity"]) == ("error", "warning")
    assert same["found"] == "2 files that are 1 picture(s), the same to the byte, are on two sides of a split"
    assert same["where"][0].startswith("images/china7.png (") and same["where"][0].endswith(f" in {briefly(parted)}")
    assert len(parted) > 2 and any(part["coffee1"] != part["sail3"] for part in parts.values())
    assert near["found"] == "1 pair(s) of pictures of different groups look alike, 1 on two sides of a split"


def test_a_copy_within_a_content_is_noted(clean: Path, spoilt: Callable[[Spoil], Path]) -> None:
    data_set = read(spoilt(copy("coffee0.png", "coffee1.png")))
    rows = tuple(replace(row, group="coffee") if row.id in ("coffee0", "coffee1") else row for row in data_set.rows)
    (finding,) = picture_findings(examine(replace(data_set, rows=rows)), SIZE, "none")
    assert finding.severity == "note"
    assert finding.where == ("images/coffee0.png (train, 4) = images/coffee1.png (train, 4.09333)",)


def test_a_rule_that_squeezes_is_told(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(clean, "--resize", "exact:64x64", "--quick")) == 0
    assert "300 of 300 pictures are squeezed by more than a tenth" in capsys.readouterr().out


def test_versions_without_a_group_are_an_error(photographs: Path) -> None:
    data_set = read_table(photographs / "scores.csv", photographs / "images")
    assert not any("look" in finding.found for finding in picture_findings(examine(data_set), SIZE, "none"))
    apart = tuple(replace(row, group=row.id, part=None) for row in data_set.rows)
    (finding,) = [each for each in picture_findings(examine(replace(data_set, rows=apart)), SIZE, "none") if "look" in each.found]
    assert (finding.severity, finding.found) == ("error", "60 of 60 pictures look like one of another group")


# what is wrong with tables


MOS = Label("MOS", 1.0, 5.0, True)


def synthetic(change: Callable[[Row], Row] = lambda row: row, label: Label = MOS) -> DataSet:
    """30 contents x 4 distortions x 5 levels, named and rated as in KADID-10k; no pictures."""
    rows = []
    for content in range(1, 31):
        for distortion in range(1, 5):
            for level in range(1, 6):
                file = f"I{content:02}_{distortion:02}_{level:02}.png"
                opinion = round(5.3 - 0.8 * level - 0.004 * content - 0.03 * distortion, 3)
                rows.append(change(Row(file[:-4], Path(file), opinion, 0.6, f"I{content:02}", None)))
    return DataSet("mine", label, "none", tuple(rows), Path("scores.csv"))


def authentic(change: Callable[[int, Row], Row]) -> DataSet:
    """300 photographs with an official split, 100 a part."""
    rows = (Row(f"{n:03}", Path(f"{n:03}.jpg"), 1 + n * 7 % 300 / 75, 0.6, f"{n}", ("train", "val", "test")[n % 3]) for n in range(300))
    return DataSet("mine", Label("MOS", 1.0, 5.0, True), "none", tuple(change(n, row) for n, row in enumerate(rows)), Path("scores.csv"))


def test_clean_tables_are_clean() -> None:
    assert not [*table_findings(synthetic())]
    assert not [*table_findings(authentic(lambda _, row: row))]
    whole_numbers = synthetic(lambda row: replace(row, opinion=float(round(row.opinion)), std=None))
    assert not [*table_findings(whole_numbers)]


TABLES: dict[str, tuple[DataSet, str, str]] = {
    "a MOS taken as a DMOS": (
        synthetic(label=Label("DMOS", 1.0, 5.0, False)),
        "error",
        "in 100% of 120 distortion series the strongest level has the better opinion",
    ),
    "a DMOS taken as a MOS": (
        synthetic(lambda row: replace(row, opinion=6 - row.opinion)),
        "error",
        "in 100% of 120 distortion series the strongest level has the better opinion",
    ),
    "named dmos, higher better, as the levels show": (
        synthetic(label=Label("dmos", 1.0, 5.0, True)),
        "note",
        "the label dmos (1 to 5, higher",
    ),
    "named dmos, higher better, and nobody knows": (
        replace(authentic(lambda _, row: row), label=Label("dmos", 1.0, 5.0, True)),
        "warning",
        "the label dmos (1 to 5, higher",
    ),
    "a scale not stated": (synthetic(label=Label("MOS", None, None, True)), "note", "the scale is not stated"),
    "the scale of another label": (
        synthetic(lambda row: replace(row, std=None), label=Label("MOS", 0.0, 100.0, True)),
        "warning",
        "opinions from 1.06 to 4.466",
    ),
    "reference rows": (
        authentic(lambda n, row: replace(row, opinion=5.0, std=None) if n % 5 == 0 else row),
        "warning",
        "60 images share the opinion 5, an end of the scale",
    ),
    "two labels mixed": (
        replace(
            authentic(lambda n, row: replace(row, std=None, opinion=row.opinion * (20 if row.part == "test" else 1))),
            label=Label("MOS", 0, 100, True),
        ),
        "error",
        "nine of ten opinions lie between",
    ),
    "a variance": (synthetic(lambda row: replace(row, std=9 * (row.std or 0))), "warning", "600 of 600 values of std are larger than"),
    "a std of another scale": (
        replace(authentic(lambda _, row: replace(row, opinion=20 * row.opinion - 5)), label=Label("MOS_zscore", 0.0, 100.0, True)),
        "warning",
        "the median of std is 0.6 on a scale of 0 to 100",
    ),
    "split by image": (
        synthetic(lambda row: replace(row, part=("train", "val", "test")[int(row.id[-1]) % 3])),
        "error",
        "30 content(s) are on two sides of the official split",
    ),
    "no groups": (
        synthetic(lambda row: replace(row, group=row.id)),
        "error",
        "30 content(s), by the file names, have distorted versions in sev",
    ),
    "copied opinions": (
        synthetic(lambda row: replace(row, opinion=round(row.opinion - 0.03, 3)) if "_01_" in row.id else row),
        "error",
        "for 30 of 30 contents the opinions of 02 are exactly those of 01",
    ),
    "a small part": (
        authentic(lambda n, row: replace(row, part="train") if row.part == "test" and n > 120 else row),
        "warning",
        "test has 40 image(s) in the split official",
    ),
    "a tiny part": (
        authentic(lambda n, row: replace(row, part="train") if row.part == "test" and n > 3 else row),
        "error",
        "test has 1 image(s) in the split official",
    ),
    "a split half stated": (
        authentic(lambda n, row: replace(row, part=None) if n == 7 else row),
        "error",
        "image '007' has no part in the split",
    ),
}


@pytest.mark.parametrize("trap", TABLES)
def test_a_trap_in_the_table_is_found_and_nothing_else(trap: str) -> None:
    data_set, severity, begins = TABLES[trap]
    (finding,) = table_findings(data_set)
    assert finding.severity == severity
    assert finding.found.startswith(begins)
    assert finding.expected and finding.to_do


# the public data sets, and the lists of them that are known to be wrong


def whole(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> DataSet:
    """The small folder of that set, as if it were all that was published."""
    data_set = ADAPTERS[name].read(public_sets.make(name, root), ADAPTERS[name].labels[0].name)
    contents, stated = len({row.group for row in data_set.rows}), Counter(row.part for row in data_set.rows)
    parts = tuple(stated[part] for part in PARTS) if ADAPTERS[name].parts else ()
    monkeypatch.setitem(ADAPTERS, name, replace(ADAPTERS[name], images=len(data_set.rows), contents=contents, parts=parts))
    return data_set


def graver(data_set: DataSet) -> list[str]:
    """Errors and warnings, but for the size of the parts: the folders of the tests are small."""
    return [each.found for each in table_findings(data_set) if each.severity != "note" and " in the split " not in each.found]


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_public_data_set_as_it_is_distributed_is_clean_when_complete(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not graver(whole(name, tmp_path, monkeypatch))


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_a_public_data_set_that_is_incomplete_is_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = whole(name, tmp_path, monkeypatch)
    some = replace(data_set, rows=data_set.rows[1:])
    assert f"{len(some.rows):,} images" in graver(some)


def test_contents_that_are_not_those_published_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set = whole("kadid10k", tmp_path, monkeypatch)
    monkeypatch.setitem(ADAPTERS, "kadid10k", replace(ADAPTERS["kadid10k"], contents=81))
    assert graver(data_set) == [f"{len({row.group for row in data_set.rows})} contents"]


@pytest.mark.parametrize("name", [adapter.name for adapter in ADAPTERS.values() if adapter.parts])
def test_an_official_split_that_is_not_the_published_one_is_a_warning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = ADAPTERS[name].parts
    data_set = whole(name, tmp_path, monkeypatch)
    monkeypatch.setitem(ADAPTERS, name, replace(ADAPTERS[name], parts=published))
    (finding,) = [each for each in table_findings(data_set) if each.found.startswith("an official split of train ")]
    assert finding.severity == "warning" and all(f"{number:,}" in finding.expected for number in published)
    assert not published or sum(published) == {"koniq10k": 10_073, "flive": 39_810, "uhd_iqa": 6_073}[name]


@pytest.mark.parametrize("name", [adapter.name for adapter in ADAPTERS.values() if adapter.sizes])
def test_pictures_of_another_size_than_was_published_are_a_warning(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small sets of the tests are such; a picture of the right size is not spoken of."""
    examination = examine(whole(name, tmp_path, monkeypatch), headers_only=True)
    right = replace(examination.pictures[0], size=ADAPTERS[name].sizes[-1])
    (finding,) = [
        each
        for each in picture_findings(replace(examination, pictures=(right, *examination.pictures[1:])), 16, "none")
        if "another size than was published" in each.found
    ]
    number = len(examination.pictures)
    assert finding.severity == "warning" and finding.found.startswith(f"{number - 1} of {number} pictures")
    assert len(finding.where) == number - 1 and finding.where[0].endswith("(64x48)")


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("kadid10k", "5 picture(s) beside the 15 images that were read from dmos.csv"),
        ("livec", "7 picture(s) beside the 11 images that were read from AllImages_release.mat"),
    ],
)
def test_what_a_protocol_leaves_out_is_noted_and_nobody_is_told_to_add_it(
    name: str, begins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KADID-10k's references; the pictures that the raters of LIVE in the Wild practised on, whose opinions are there too."""
    examination = examine(whole(name, tmp_path, monkeypatch), headers_only=True)
    for images, severity, to_do in ((0, "note", "nothing: "), (1, "warning", "take the complete data set")):
        monkeypatch.setitem(ADAPTERS, name, replace(ADAPTERS[name], images=ADAPTERS[name].images + images))
        (finding,) = [each for each in picture_findings(examination, 16, "none") if " beside the " in each.found]
        assert finding.found == begins and finding.severity == severity and finding.to_do.startswith(to_do)
        assert not any("add their rows" in each.to_do for each in picture_findings(examination, 16, "none"))


def test_what_is_known_of_a_set_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    koniq, flive = (whole(name, tmp_path / name, monkeypatch) for name in ("koniq10k", "flive"))
    assert any(each.found == "the label MOS_zscore" and "MOS_zscore, MOS" in each.expected for each in table_findings(koniq))
    assert any("AVA, VOC and EMOTIC" in each.found for each in table_findings(flive))
    kadid = whole("kadid10k", tmp_path / "kadid", monkeypatch)
    assert any(each.found.startswith("the label DMOS") and each.severity == "note" for each in table_findings(kadid))
    assert any("KADID-10k's column var" in each.found and each.severity == "note" for each in table_findings(kadid))


PYIQA = {  # the table, its header, and what the doctor must say of it
    "meta_info_KADID10kDataset.csv": ("ref_name,dist_name,dmos,std", "warning", "deviations of KADID-10k in meta_info_KADID10kDataset.csv"),
    "meta_info_LIVEIQADataset.csv": ("ref_name,dist_name,mos,std", "error", "the label is MOS (scale not stated, higher is better)"),
    "meta_info_CSIQDataset.csv": ("ref_name,dist_name,dmos,std", "error", "the label is MOS (scale not stated, higher is better)"),
}


@pytest.mark.parametrize("name", PYIQA)
def test_the_traps_of_a_set_are_known_by_pyiqas_name_for_its_table(name: str, tmp_path: Path) -> None:
    header, severity, begins = PYIQA[name]
    (tmp_path / "images").mkdir()
    rows = [f"I{n // 20:02}.png,I{n // 20:02}_{n:03}.png,{n / 100},0.5" for n in range(100)]
    (tmp_path / name).write_text("\n".join([header, *rows]))
    data_set = read_table(tmp_path / name, tmp_path / "images", direction_is_stated=True)
    (finding,) = [each for each in table_findings(data_set) if each.found.startswith(begins)]
    assert finding.severity == severity


def q_align(folder: Path, name: str, opinions: dict[str, float]) -> DataSet:
    """A list as Q-Align distributes it, read as a table of that name."""
    (folder / "images").mkdir()
    table = folder / f"{name}.json"
    table.write_text(json.dumps([{"image": image, "gt_score": opinion} for image, opinion in opinions.items()]))
    return read_table(table, folder / "images", label=Label("DMOS", None, None, False))


def test_the_reference_rows_of_q_aligns_live_list_are_an_error(tmp_path: Path) -> None:
    opinions = {f"live/wn/img{n}.bmp": 0.0 if n < 203 else 20 + n / 20 for n in range(982)}
    findings = [*table_findings(q_align(tmp_path, "live", opinions))]
    (count,) = [each for each in findings if each.found == "982 images"]
    assert count.severity == "error" and "orgs = 1" in count.to_do
    assert any(each.found.startswith("203 images share the opinion 0") for each in findings)


def test_the_copied_rows_of_q_aligns_csiq_list_are_an_error(tmp_path: Path) -> None:
    """Its 750 rows: five distortions of five levels, contrast with the opinions of awgn."""
    kinds = {"AWGN": 0, "contrast": 0, "JPEG": 1, "jpeg2000": 2, "fnoise": 3}
    opinions = {
        f"csiq/dst_imgs/{kind.lower()}/{content}.{kind}.{level}.png": round(0.15 * level + 0.001 * content + 0.01 * number, 3)
        for content in range(1600, 1630)
        for kind, number in kinds.items()
        for level in range(1, 6)
    }
    opinions = {name: opinion - 1.6 for name, opinion in opinions.items()}
    findings = [*table_findings(q_align(tmp_path, "csiq", opinions))]
    (count,) = [each for each in findings if each.found == "750 images"]
    assert count.severity == "error" and "contrast" in count.to_do
    assert any(each.found == "for 30 of 30 contents the opinions of contrast are exactly those of awgn" for each in findings)


def test_a_list_of_a_part_of_kadid_is_to_be_compared_with_the_other_part(tmp_path: Path) -> None:
    findings = table_findings(q_align(tmp_path, "train_kadid", {f"kadid10k/I01_01_{n:04}.png": 1 + n / 300 for n in range(1000)}))
    (found,) = [each for each in findings if each.found.startswith("train_kadid.json, a list of a part of KADID-10k")]
    assert found.severity == "warning" and "1,844" in found.expected and "--against" in found.to_do


def test_a_list_of_all_of_kadid_is_not_called_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ADAPTERS, "kadid10k", replace(ADAPTERS["kadid10k"], images=300))
    findings = table_findings(q_align(tmp_path, "my_kadid", {f"kadid10k/I01_01_{n:04}.png": 1 + n / 90 for n in range(300)}))
    assert not [each for each in findings if "a list of a part" in each.found]


def test_the_training_images_of_q_aligns_livec_list_are_an_error(tmp_path: Path) -> None:
    findings = table_findings(q_align(tmp_path, "livec", {f"livec/{n}.bmp": 4 + n / 15 for n in range(1169)}))
    (count,) = [each for each in findings if each.found == "1,169 images"]
    assert count.severity == "error" and "training images" in count.to_do


def test_a_list_of_a_known_set_with_the_wrong_direction_is_an_error(tmp_path: Path) -> None:
    data_set = q_align(tmp_path, "csiq", {f"{n}.png": n / 900 for n in range(866)})
    wrong = replace(data_set, label=Label("MOS", None, None, True))
    (finding,) = [each for each in table_findings(wrong) if each.severity == "error"]
    assert finding.found.startswith("the label is MOS") and "lower is better" in finding.expected


def test_a_list_of_a_known_set_on_another_scale_is_an_error(tmp_path: Path) -> None:
    data_set = q_align(tmp_path, "csiq", {f"{n}.png": n / 9 for n in range(866)})
    (finding,) = [each for each in table_findings(data_set) if each.severity == "error"]
    assert finding.found.startswith("opinions from 0 to 96.1") and "0 to 1" in finding.expected


# two data sets


def test_pictures_in_two_lists_are_counted(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in Q-Align's lists of KADID-10k, where train and test share 1,844 images."""
    with (clean / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, some in (("train", rows[:200]), ("test", rows[180:])):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"image": row["image"], "gt_score": float(row["score"])} for row in some]))
    options = ["--table", tmp_path / "train.json", "--images", clean / "images", "--range", 1, 5, "--workers", 1, "--size", SIZE, "--json"]
    for quick in ([], ["--quick"]):
        against = ["--against", f"{tmp_path}/test.json={clean}/images"]
        assert main(["doctor", *map(str, options), *quick, *against]) == 1
        errors = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["severity"] == "error"]
        assert [each["found"].split(" pictures")[0] for each in errors] == ["20 of 200"]
        assert len(errors[0]["where"]) == 20


def test_two_labels_of_the_same_pictures_are_told_apart_and_a_copy_is_seen(clean: Path, spoilt: Callable[[Spoil], Path]) -> None:
    ours = read(clean)
    theirs = read(spoilt(like("coffee0.png", "coffee0.png", blurred_and_half_as_large)))
    shaken = tuple(replace(row, opinion=row.opinion + 0.1 * (number % 3)) for number, row in enumerate(theirs.rows))
    same, labels, alike = compare(examine(ours), examine(replace(theirs, name="theirs", rows=shaken)))
    assert same.found == "299 of 300 pictures of pieces are in theirs too" and same.severity == "error"
    assert re.search(r"have an SRCC of 0\.99", labels.found) and labels.severity == "warning"
    assert alike.found == "1 pair(s) of pictures look alike across pieces and theirs" and alike.severity == "warning"


def test_data_sets_that_share_nothing_are_not_spoken_of(clean: Path, photographs: Path) -> None:
    some = [
        replace(read(clean), rows=tuple(row for row in read(clean).rows if row.id.startswith(content))) for content in ("china", "city")
    ]
    assert not compare(examine(some[0]), examine(some[1]))


# the command


def test_a_folder_that_cannot_be_read_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--dataset", "koniq10k", "--root", str(tmp_path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["data_set"], said["safe"]) == ("koniq10k", False)
    (finding,) = said["findings"]
    assert finding["severity"] == "error" and str(tmp_path) in finding["found"]


def test_all_bad_rows_are_told_and_the_rest_is_looked_at_whatever_cannot_be_read(
    spoilt: Callable[[Spoil], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def spoil(folder: Path) -> None:
        rows = (folder / "scores.csv").read_text().splitlines()
        for number, score in ((1, "999"), (2, "0.5"), (3, "3;5"), (4, "nan"), (5, "3,5")):
            name, _, rest = rows[number].split(",", 2)
            rows[number] = f"{name},{score},{rest}"
        (folder / "scores.csv").write_text("\n".join([*rows, rows[9]]) + "\n")
        (folder / "images" / rows[20].split(",")[0]).unlink()

    folder = spoilt(spoil)
    assert main(arguments(folder, "--quick", "--json", "--against", f"koniq10k={tmp_path}")) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    errors = [each for each in findings if each["severity"] == "error"]
    assert [each["found"].removesuffix(" row(s) that cannot be used") for each in errors[:5]] == ["2", "1", "1", "1", "1"]
    for line, error in ((2, errors[0]), (4, errors[1]), (5, errors[2]), (6, errors[3]), (302, errors[4])):
        assert any(f"scores.csv, line {line}" in place for place in error["where"]) and str(folder) not in str(error["where"][0])
        assert "on the scale" in error["expected"] and error["to_do"]
    assert errors[5]["found"] == "1 of 295 files are not there" and errors[6]["found"].startswith(f"{tmp_path}: expected")
    assert len(errors) == 7 and not any("without a row" in each["found"] for each in findings)


def add_lines(name: str, *lines: str) -> Spoil:
    return lambda root: (root / name).write_text((root / name).read_text() + "\n".join([*lines, ""])) and None


SETS, TESTED = "koniq10k_distributions_sets.csv", "labels640.csv"
BESIDE: dict[str, tuple[str, Spoil, list[str]]] = {  # the set, what is done to a table beside that of the images, all errors of it
    "strangers and half a row in FLIVE's test images": (
        "flive",
        add_lines(TESTED, "blur_dataset/no.jpg,50,800,600", "half", "blur_dataset/none.jpg,50,800,600"),
        [
            f"{TESTED}, line 4: 'blur_dataset/no.jpg' has no row in labels_image.csv that can be read",
            f"{TESTED}, line 5: has 1 fields for 4 columns",
            f"{TESTED}, line 6: 'blur_dataset/none.jpg' has no row in labels_image.csv that can be read",
        ],
    ),
    "half a row in FLIVE's images, for its patches": (
        "flive_patches",
        add_lines("labels_image.csv", "half"),
        ["labels_image.csv, line 12: has 1 fields for 2 columns"],
    ),
    "half rows and two of one image in KonIQ's sets": (
        "koniq10k",
        add_lines(SETS, "half", "10004473377.jpg,0,0,25,73,7,105,12,0.5,test", "half,a,row"),
        [
            f"{SETS}, line 12: has 1 fields for 10 columns",
            f"{SETS}, line 13: '10004473377.jpg' stands there a second time, first in {SETS}, line 10",
            f"{SETS}, line 14: has 3 fields for 10 columns",
        ],
    ),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_all_that_is_wrong_beside_the_table_of_the_images_is_told_and_counts_as_no_image(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, spoil, told = BESIDE[kind]
    images = len(whole(name, tmp_path, monkeypatch).rows)
    spoil(tmp_path)
    assert main(["doctor", "--dataset", name, "--root", str(tmp_path), "--quick", "--json", "--workers", "1"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert sorted(place for each in findings for place in each["where"] if " that cannot be used" in each["found"]) == told
    assert not any(re.match(r"\d+ images$|an official split of", each["found"]) for each in findings)
    assert any(each["found"].startswith(f"{images} of {images} pictures are smaller") for each in findings)


def test_a_bad_row_of_flive_is_told_and_the_rest_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole("flive", tmp_path, monkeypatch)
    table = tmp_path / "labels_image.csv"
    table.write_text(table.read_text().replace("_0001.jpg,43.5", "_0001.jpg,43,5").replace("_0002.jpg,47.0", "_0002.jpg,47,0"))
    assert main(["doctor", "--dataset", "flive", "--root", str(tmp_path), "--quick", "--json", "--workers", "1"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (rows,) = [each for each in findings if "that cannot be used" in each["found"]]
    assert rows["where"] == [f"labels_image.csv, line {line}: has 3 fields for 2 columns" for line in (3, 4)]
    assert any(each["found"].startswith("8 of 8 pictures are smaller") for each in findings)


@pytest.mark.parametrize(
    ("folder", "pictures", "told"),
    [(".", "../pics", "../pics/a.png"), ("..", "../pics", "pics/a.png"), ("data", "old data/data", "old data/data/a.png")],
)
def test_bad_rows_are_told_with_paths_that_begin_below_the_folder_of_the_data_set(
    folder: str, pictures: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for made in (folder, pictures):
        Path(made).mkdir(parents=True, exist_ok=True)
    Path(folder, "scores.csv").write_text("image,score\na.png,3\na.png,4\nb.png,x\n")
    assert main(["doctor", "--table", f"{folder}/scores.csv", "--images", pictures, "--name", "mine", "--quick", "--json"]) == 1
    score, twice = [each["where"] for each in json.loads(capsys.readouterr().out)["findings"][:2]]
    assert score == ["scores.csv, line 4, column score: 'x' is not a number"]
    assert twice == [f"scores.csv: two rows have the id 'a' ({told}, scores.csv, line 2, and {told}, scores.csv, line 3)"]


def test_a_table_without_a_row_that_can_be_used_is_a_finding(spoilt: Callable[[Spoil], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(spoilt(lambda _: None), "--json"), "--range", "900", "901"]) == 1
    rows, table = json.loads(capsys.readouterr().out)["findings"]
    assert rows["found"].startswith("300 row(s)") and len(rows["where"]) == 300
    assert "has no row of an image that can be used" in table["found"]


def test_opinions_that_are_all_the_same_are_a_finding(spoilt: Callable[[Spoil], Path], capsys: pytest.CaptureFixture[str]) -> None:
    def flatten(folder: Path) -> None:
        text = re.sub(r"(?m)^([^,]+\.png),[^,]+,", r"\1,3,", (folder / "scores.csv").read_text())
        (folder / "scores.csv").write_text(text)

    assert main(arguments(spoilt(flatten), "--json")) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert finding["severity"] == "error" and "all 300 opinions are 3" in finding["found"]


@pytest.mark.parametrize(
    "options",
    [
        ["--table", "scores.csv"],
        ["--dataset", "koniq10k"],
        ["--dataset", "koniq10k", "--root", ".", "--range", "1", "5"],
        ["--table", "scores.csv", "--images", ".", "--against", "nothing"],
        ["--table", "scores.csv", "--images", ".", "--against", "nothing=."],
        ["--table", "scores.csv", "--images", ".", "--resize", "paper"],
        ["--table", "scores.csv", "--images", ".", "--resize", "half"],
        ["--table", "scores.csv", "--images", ".", "--size", "0"],
        ["--dataset", "nothing", "--root", "."],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense_exit_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["doctor", *options])
    except SystemExit as left:
        status = int(left.code or 0)
    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    assert "error: " in told.err


def test_the_report_is_grouped_by_severity_and_ends_with_the_verdict(spoilt: Callable[[Spoil], Path]) -> None:
    def spoil(folder: Path) -> None:
        remove("coffee0.png", "coffee1.png", "coffee2.png", "coffee3.png")(folder)
        save("china0.png", lambda picture: picture.convert("L"))(folder)
        save("china1.png", lambda picture: picture.resize((240, 76)))(folder)

    folder = spoilt(spoil)
    command = [sys.executable, "-m", "shards", *arguments(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stdout.splitlines() == [
        "errors (1)",
        "  found     4 of 300 files are not there: images/coffee0.png (scores.csv, line 77), images/coffee1.png (scores.csv, line",
        "            78), images/coffee2.png (scores.csv, line 79) and 1 more, which --json lists",
        "  expected  a file for every row of scores.csv",
        "  to do     check the table's names and the image folder, or take the rows out of the table",
        "",
        "warnings (1)",
        "  found     1 of 300 pictures are 3 times as long as wide, or more: images/china1.png (240x76)",
        "  expected  photographs of the usual shapes",
        "  to do     see that they are photographs: patches show little of each, and more --patches show more",
        "",
        "notes (1)",
        "  found     1 of 300 pictures are grey: images/china0.png",
        "  expected  8-bit RGB pictures, upright",
        "  to do     nothing: they get three equal channels",
        "",
        f"{folder.name}: not safe to build (1 error, 1 warning, 1 note)",
    ]


STREAMS: dict[str, tuple[str, str, bytes, str]] = {  # encoding and errors of stdout, a folder's name, and how it is told
    "somebody chose": ("ascii", "replace", "图é".encode(), "??"),
    "a terminal of Latin-1": ("latin-1", "strict", "图é".encode(), "\\u56fe\xe9"),
    "a locale without an encoding": ("ascii", "surrogateescape", "图é".encode(), "\\u56fe\\xe9"),
    "a name that is no text": ("utf-8", "strict", b"caf\xe9", "caf\\udce9"),
}


def told_by_a_doctor_on(encoding: str, errors: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> str:
    """What comes out of such a stream, of a small table in that folder."""
    folder.mkdir()
    (folder / "scores.csv").write_text("image,score\na.png,3\nb.png,4\n")
    stream = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, encoding, errors))
    assert main(["doctor", "--table", str(folder / "scores.csv"), "--images", str(folder), "--quick", "--workers", "1", *more]) == 1
    return stream.getvalue().decode(encoding)


@pytest.mark.parametrize("kind", STREAMS)
def test_a_name_that_a_stream_cannot_say_is_told_all_the_same(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding, errors, name, expected = STREAMS[kind]
    assert expected in told_by_a_doctor_on(encoding, errors, tmp_path / os.fsdecode(name), monkeypatch).splitlines()[-1]


def test_json_is_json_on_every_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(told_by_a_doctor_on("ascii", "strict", tmp_path / "图é", monkeypatch, "--json"))["data_set"] == "图é"


# who looks like whom


def look(pixels: np.ndarray) -> Look | None:
    return look_of(Image.fromarray(pixels))


def test_every_distortion_looks_like_its_original_and_no_content_like_another() -> None:
    originals = [look(demo.cut_content(content)) for content in demo.CONTENTS]
    assert not [*near_pairs(originals, range(len(originals)))]
    for content, original in list(zip(demo.CONTENTS, originals, strict=True))[:5]:
        for distortion in demo.DISTORTIONS:
            changed = look(demo.distort(demo.cut_content(content), distortion, 5))
            assert [pairs.tolist() for pairs in near_pairs([original, changed], [0, 1])] == [[[0, 1]]], (content, distortion)


def test_a_flat_picture_looks_like_nothing() -> None:
    assert look(np.full((80, 80, 3), 255, np.uint8)) is None
    assert not [*near_pairs([None, None], [0, 1])]


def test_pictures_of_one_side_are_not_compared() -> None:
    coffee = look(demo.cut_content("coffee"))
    assert not [*near_pairs([coffee, coffee, coffee], [4, 4, 4])]
    assert np.concatenate([*near_pairs([coffee, None, coffee, coffee], [4, 4, 5, 4])]).tolist() == [[0, 2], [2, 3]]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**10 - 1), st.integers(0, 2)), max_size=150),
)
def test_near_pairs_are_those_that_comparing_one_by_one_finds(pictures: list[tuple[int, int, int]]) -> None:
    thumbnails = [np.random.default_rng(number).integers(0, 256, THUMBNAIL**2, np.uint8).tobytes() for number in range(4)]
    looks = [Look(bits << 54 | bits, thumbnails[which]) for which, bits, _ in pictures]
    sides = [side for *_, side in pictures]
    found = [tuple(pair) for block in near_pairs(looks, sides) for pair in block.tolist()]
    expected = {
        (one, other)
        for one in range(len(looks))
        for other in range(one + 1, len(looks))
        if (looks[one].hash ^ looks[other].hash).bit_count() <= 8
        and looks[one].thumbnail == looks[other].thumbnail
        and sides[one] != sides[other]
    }
    assert len(found) == len(set(found)) and set(found) == expected


def test_same_files_are_sets_of_numbers() -> None:
    assert same_files(["a", "b", "a", "", "", "c", "b", "a"]) == [[0, 2, 7], [1, 6]]
