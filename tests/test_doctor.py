"""`python -m shards doctor`: a clean folder is clean, every trap in its pictures is found and named, and all that is found is told."""

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
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from photographs import make_folder
from PIL import Image

from shards import demo
from shards.__main__ import main
from shards.datasets import DataSet, read_table
from shards.doctor import compare
from shards.examination import examine, picture_at
from shards.manifest import Label
from shards.photographs import decoder_versions
from shards.picture_checks import picture_findings
from shards.splits import all_splits, briefly

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
    assert "without a row" in finding["found"] or all("(scores.csv, line " in place for place in finding["where"])
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


@pytest.mark.parametrize("options", [[], ["--quick"]], ids=["decoded", "headers alone"])
def test_an_animation_that_is_damaged_behind_its_first_picture_is_named_with_its_row(
    spoilt: Callable[[Spoil], Path], capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    def spoil(folder: Path) -> None:
        file = folder / "images" / "coffee0.png"
        with Image.open(file) as picture:
            first = picture.convert("RGB").quantize()
        first.save(file, "GIF", save_all=True, append_images=[first.rotate(90)], duration=100)
        second = file.read_bytes().rindex(b"\x21\xf9\x04")  # its graphic control extension, of 8 bytes
        file.write_bytes(file.read_bytes()[: second + 12])  # its place and size are cut off

    assert main(arguments(spoilt(spoil), "--json", *options)) == 1
    broken = json.loads(capsys.readouterr().out)["findings"][0]
    assert broken["found"] == "1 of 300 pictures cannot be decoded" and broken["where"][0].startswith(
        "images/coffee0.png (scores.csv, line "
    )


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
    Image.fromarray(pixels[..., 1].astype(np.uint16) * 4).save(tmp_path / "ten.png")
    assert picture_at(tmp_path / "grey.png").traits == {"grey", "16 bits"}
    assert picture_at(tmp_path / "ten.png").traits == {"grey", "16 bits", "dark"}
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
    same, near = [each for each in json.loads(capsys.readouterr().out)["findings"] if " image(s) in " not in each["found"]]
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
    assert finding.where == (
        "images/coffee0.png (scores.csv, line 77): train, 4 = images/coffee1.png (scores.csv, line 78): train, 4.09333",
    )


def test_a_rule_that_squeezes_is_told(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(clean, "--resize", "exact:64x64", "--quick")) == 0
    assert "300 of 300 pictures are squeezed by more than a tenth" in capsys.readouterr().out


def test_versions_without_a_group_are_an_error(photographs: Path) -> None:
    data_set = read_table(photographs / "scores.csv", photographs / "images")
    assert not any("look" in finding.found for finding in picture_findings(examine(data_set), SIZE, "none"))
    apart = tuple(replace(row, group=row.id, part=None) for row in data_set.rows)
    (finding,) = [each for each in picture_findings(examine(replace(data_set, rows=apart)), SIZE, "none") if "look" in each.found]
    assert (finding.severity, finding.found) == ("error", "60 of 60 pictures look like one of another group")


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
        "  found     1 of 300 pictures are 3 times as long as wide, or more: images/china1.png (scores.csv, line 28) is 240x76",
        "  expected  photographs of the usual shapes",
        "  to do     see that they are photographs: patches show little of each, and more --patches show more",
        "",
        "notes (1)",
        "  found     1 of 300 pictures are grey: images/china0.png (scores.csv, line 27)",
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
