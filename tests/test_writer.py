"""The promises of a build: the same bytes always, the very pixels of the pictures, and no folder of anybody else touched."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from photographs import LAYOUTS, NAMES, all_patches, contents, crop, make_folder, plan_of, read_csv, shards_of, write_table
from PIL import Image

from shards import shard_file
from shards.check import check, describe
from shards.datasets import read_table
from shards.manifest import Label, ShardError, Shards
from shards.patches import patch_boxes, resize
from shards.plan import Settings, plan_build
from shards.writer import build

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

PARTS_OF_12 = ["train"] * 8 + ["val"] * 2 + ["test"] * 2


# the same bytes


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_are_the_same_for_any_number_of_workers(cups: Path, tmp_path: Path, workers: int) -> None:
    shards_of(cups, tmp_path / "one")
    shards_of(cups, tmp_path / "several", workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "several")


def test_the_bytes_do_not_depend_on_where_or_when_or_in_which_order_the_rows_stand(cups: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(cups, tmp_path / "moved", copy_function=shutil.copy))
    header, *lines = (moved / "scores.csv").read_text().splitlines()
    (moved / "scores.csv").write_text("\n".join([header, *reversed(lines)]))
    shards_of(cups, tmp_path / "first")
    shards_of(moved, tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


@pytest.mark.parametrize("change", [{"seed": 1}, {"patches": 9}, {"resize": "exact:80x60"}, {"layout": "patches"}, {"patch_size": 40}])
def test_whatever_changes_a_pixel_or_a_box_changes_the_fingerprint(cups: Path, tmp_path: Path, change: dict[str, object]) -> None:
    assert shards_of(cups, tmp_path / "one").fingerprint != shards_of(cups, tmp_path / "other", **change).fingerprint


def test_another_opinion_or_another_split_changes_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    scores, parts = [1.0] * 11 + [2.0], PARTS_OF_12
    fingerprints = set()
    for number, (opinions, split) in enumerate([(scores, parts), ([*scores[:-1], 1.5], parts), (scores, parts[::-1])]):
        write_table(folder, {"image": NAMES, "score": opinions, "split": split})
        fingerprints.add(shards_of(folder, tmp_path / str(number)).fingerprint)
    assert len(fingerprints) == 3


# what was replaced


def replace_with_as_many_bytes(folder: Path) -> Path:
    """Another picture under the name of the first, in a file of the same length."""
    file = folder / "images" / NAMES[0]
    before = file.read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(file))).save(file, "BMP")
    assert len(file.read_bytes()) == len(before) and file.read_bytes() != before
    return file


@pytest.fixture
def uncompressed(tmp_path: Path) -> Path:
    """The photographs as files whose lengths follow from their sizes, some to a shard."""
    folder = make_folder(tmp_path / "bmp")
    for name in NAMES:
        Image.open(folder / "images" / name).save(folder / "images" / name, "BMP")
    return folder


def test_a_picture_that_was_replaced_by_one_of_as_many_bytes_is_written_again(uncompressed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shards_of(uncompressed, out, shard_bytes=30_000)
    (out / "manifest.json").unlink()  # it was not finished yet
    untouched = (out / "shard-000001.tar").stat().st_mtime_ns
    replace_with_as_many_bytes(uncompressed)
    assert contents(shards_of(uncompressed, out, shard_bytes=30_000).folder) == contents(
        shards_of(uncompressed, tmp_path / "anew", shard_bytes=30_000).folder
    )
    assert (out / "shard-000001.tar").stat().st_mtime_ns == untouched


@pytest.mark.parametrize("renamed", ["images", "."], ids=["the folder of the pictures", "that of the whole set"])
def test_a_folder_that_was_replaced_by_renaming_another_is_written_again(
    uncompressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renamed: str
) -> None:
    monkeypatch.setattr(shard_file, "_CLOCKS", 0)  # both folders are old: nobody touches a file in them after the build
    newer = Path(shutil.copytree(uncompressed, tmp_path / "newer"))
    replace_with_as_many_bytes(newer)
    out = tmp_path / "out"
    shards_of(uncompressed, out, shard_bytes=30_000)
    (out / "manifest.json").unlink()
    (uncompressed / renamed).resolve().rename(tmp_path / "old")
    (newer / renamed).resolve().rename((uncompressed / renamed).absolute())
    assert contents(shards_of(uncompressed, out, shard_bytes=30_000).folder) == contents(
        shards_of(uncompressed, tmp_path / "anew", shard_bytes=30_000).folder
    )


def test_a_content_whose_name_holds_a_carriage_return_comes_back_as_it_was(tmp_path: Path) -> None:
    folder, groups = make_folder(tmp_path / "set"), [f"a red fox\rno {number}" for number in range(len(NAMES))]
    entries = [{"image": name, "gt_score": number, "group": group} for number, (name, group) in enumerate(zip(NAMES, groups, strict=True))]
    (folder / "list.json").write_text(json.dumps(entries))
    shards = build(plan_build(read_table(folder / "list.json", folder / "images"), Settings(patches=2, patch_size=32)), tmp_path / "out")
    assert sorted(row["group"] for row in check(shards.folder).image_rows()) == sorted(groups)


def test_shards_that_are_finished_are_not_said_to_be_of_a_picture_that_was_replaced(uncompressed: Path, tmp_path: Path) -> None:
    shards = shards_of(uncompressed, tmp_path / "out")
    before = contents(shards.folder)
    file = replace_with_as_many_bytes(uncompressed)
    with pytest.raises(ShardError, match=rf"{file}: was replaced since .*/shard-000000.tar was written from it; put the old one back"):
        shards_of(uncompressed, tmp_path / "out")
    assert contents(shards.folder) == before


# what is in them


def test_the_pixels_in_memory_do_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    def peak(images: int) -> int:
        plan = plan_of(make_folder(tmp_path / str(images), [f"cup{number:03d}.png" for number in range(images)], 192, 144))
        tracemalloc.start()
        build(plan, tmp_path / f"out{images}")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(3)  # brings what is imported late
    assert peak(96) - peak(12) < 84 * 192 * 144 * 3 / 20  # bytes; a twentieth of the pixels that are stored more


def test_a_patch_holds_the_very_pixels_of_the_picture(built: Shards) -> None:
    for number, patches in enumerate(all_patches(built)):
        corners = patch_boxes(built.ids[number], 0, 96, 72, 32, 8).astype(int)
        assert np.array_equal(patches, [crop(number)[y : y + 32, x : x + 32] for y, x in corners])


def test_both_layouts_give_the_same_patches(cups: Path, tmp_path: Path) -> None:
    canvas, patches = (shards_of(cups, tmp_path / layout, layout=layout) for layout in LAYOUTS)
    assert canvas.layout.planes == 1 and patches.layout.planes == 8
    assert np.array_equal(all_patches(canvas), all_patches(patches))


@pytest.mark.parametrize(("patches", "layout"), [(6, "patches"), (7, "canvas")])  # 96x72 pixels hold 6.75 patches of 32x32
def test_auto_takes_the_layout_of_fewer_bytes(cups: Path, patches: int, layout: str) -> None:
    assert plan_of(cups, patches=patches).layout.name == layout


def test_some_patches_are_read_in_the_order_asked_for(built: Shards) -> None:
    assert np.array_equal(built.read_patches(5, [3, 0]), all_patches(built)[5][[3, 0]])


def test_the_resize_rule_is_applied_before_the_patches_are_cut(cups: Path, tmp_path: Path) -> None:
    shards = shards_of(cups, tmp_path / "out", resize="short:48")
    y, x = patch_boxes("cup03", 0, 64, 48, 32, 1)[0].astype(int)
    assert np.array_equal(shards.read_patches(3, [0])[0], resize(crop(3), 64, 48)[y : y + 32, x : x + 32])


def test_a_picture_smaller_than_a_patch_is_enlarged_and_recorded(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(crop(4, 50, 20)).save(folder / "images" / "cup04.png")
    shards = shards_of(folder, tmp_path / "out")
    recorded = {row["id"]: (row["width"], row["height"]) for row in shards.image_rows() if row["enlarged"] == "1"}
    assert recorded == {"cup04": ("80", "32")}
    assert shards.manifest["enlarged"] == 1 and "12, 1 of them enlarged" in describe(shards)
    assert shards.read_patches(4, [0]).shape == (1, 32, 32, 3)


def test_a_rotated_jpeg_is_stored_upright(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn it clockwise
    photograph = Image.fromarray(crop(4))
    photograph.save(folder / "images" / "cup04.jpg", quality=95, exif=exif)
    write_table(folder, {"image": [*NAMES[:4], "cup04.jpg", *NAMES[5:]], "score": range(12)})
    shards = shards_of(folder, tmp_path / "out", layout="canvas")
    row = list(shards.image_rows())[4]
    assert (row["width"], row["height"]) == ("72", "96")
    y, x = shards.index["corners"][4][0].astype(int)
    expected = np.rot90(np.asarray(Image.open(folder / "images" / "cup04.jpg")), -1)[y : y + 32, x : x + 32]
    assert np.array_equal(shards.read_patches(4, [0])[0], expected)


def test_names_in_folders_and_in_any_script_are_kept_apart(tmp_path: Path) -> None:
    names = ["a/cup.png", "b/cup.png", "照片/тест-é.png", "x" * 120 + ".png", "cup.v2.png"]
    shards = shards_of(make_folder(tmp_path / "data", names), tmp_path / "out")
    assert list(shards.ids) == sorted(["a_cup", "b_cup", "照片_тест-é", "x" * 120, "cup_v2"])
    check(tmp_path / "out")
    samples = list(wds.WebDataset([str(shards.folder / record["file"]) for record in shards.files], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(shards.ids)


def test_images_csv_says_for_people_what_was_stored(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", NAMES[:3], std=[0.5, "", 0.25], group=["a", "b", "c"])
    shards = shards_of(folder, tmp_path / "out")
    first, second, _ = read_csv(tmp_path / "out" / "images.csv")
    assert first | {"sha256": ""} == {
        "id": "cup00",
        "opinion": "1.0",
        "std": "0.5",
        "group": "a",
        "width": "96",
        "height": "72",
        "enlarged": "0",
        "path": "cup00.png",
        "sha256": "",
    }
    assert first["sha256"] == contents(folder)["images/cup00.png"]
    assert second["std"] == ""
    assert shards.opinions.tolist() == [1.0, 1.25, 1.5]


def test_images_csv_names_the_pictures_from_the_root_on_wherever_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a/cup.png", "b/c/cup.png", "cup.png"]
    shards_of(make_folder(tmp_path / "data", names), tmp_path / "out")
    assert [row["path"] for row in read_csv(tmp_path / "out" / "images.csv")] == names
    monkeypatch.chdir(tmp_path / "data")
    shards_of(Path("."), tmp_path / "again", workers=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_the_bytes_are_the_same_however_the_root_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "set")
    names = [str(folder / "images" / name) for name in NAMES]
    write_table(folder, {"image": names, "score": [1 + number / 4 for number in range(len(NAMES))]})
    shards_of(folder, tmp_path / "whole")
    monkeypatch.chdir(tmp_path / "whole")
    shards_of(Path("../set"), tmp_path / "relative")
    assert contents(tmp_path / "whole") == contents(tmp_path / "relative")
    assert {row["path"] for row in Shards(tmp_path / "whole").image_rows()} == {*NAMES}


def test_a_picture_that_the_table_names_elsewhere_by_its_whole_path_keeps_that(folder: Path, tmp_path: Path) -> None:
    elsewhere = make_folder(tmp_path / "elsewhere", ["cup.png"]) / "images" / "cup.png"
    write_table(folder, {"image": [NAMES[0], folder / "images" / NAMES[1], elsewhere], "score": [1, 2, 3]})
    shards = shards_of(folder, tmp_path / "out")
    assert sorted(row["path"] for row in shards.image_rows()) == sorted([*NAMES[:2], elsewhere.as_posix()])


def test_the_manifest_says_what_decoded_the_pictures(built: Shards) -> None:
    assert built.manifest["versions"]["pillow"] == Image.__version__
    assert "libjpeg_turbo" in built.manifest["versions"]


def test_show_says_what_a_person_wants_to_know(tmp_path: Path) -> None:
    parts = ["train"] * 7 + ["val"] * 2 + ["test"] * 3
    shards = shards_of(make_folder(tmp_path / "data", split=parts), tmp_path / "out")
    assert describe(shards).splitlines() == [
        "data set        cups",
        f"fingerprint     {shards.fingerprint}",
        "label           MOS (scale not stated, higher is better)",
        "images          12, 0 of them enlarged",
        "opinions        1.00 to 3.75, mean 2.38, std 0.86",
        "patches         8 per image of 32x32, layout canvas, resize none",
        "shards          6 files, 0.3 MiB, codec raw",
        "split official  train 7, val 2, test 3",
    ]


# what is refused


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({"seed": 1}, {}),
        ({"label": Label("DMOS", 0, 9, False)}, {}),
        ({}, {"score": range(12)}),
        ({}, {"split": PARTS_OF_12}),
        ({}, {"std": range(12)}),
    ],
    ids=["seed", "label", "opinions", "split", "std"],
)
def test_a_folder_of_another_build_is_refused_and_left_as_it_is(
    own: Shards, folder: Path, options: dict[str, object], columns: dict[str, list[object]]
) -> None:
    before = contents(own.folder)
    write_table(folder, {"image": NAMES, "score": [1 + number / 4 for number in range(12)], **columns})
    with pytest.raises(
        ShardError, match=r"out: holds the shards of another table, of other settings or of an older version; choose another --out"
    ):
        shards_of(folder, own.folder, **options)
    assert contents(own.folder) == before


def test_an_unfinished_build_with_other_settings_is_refused_by_their_name(own: Shards, folder: Path) -> None:
    (own.folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"out: was begun with another number of patches, seed; choose another --out"):
        shards_of(folder, own.folder, patches=9, seed=1)


@pytest.mark.parametrize("stranger", ["images.csv", "shard-000000.tar", "notes/today.txt"])
def test_a_folder_with_somebody_elses_files_is_refused_and_left_as_it_is(cups: Path, tmp_path: Path, stranger: str) -> None:
    (tmp_path / stranger).parent.mkdir(exist_ok=True)
    (tmp_path / stranger).write_text("precious")
    with pytest.raises(ShardError, match=r"is not empty \(.*\) and holds no build of ours; choose a new or empty folder"):
        shards_of(cups, tmp_path)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["precious"]


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"patch_size": 4}, r"--size 4 .*at least 8 pixels"),
        ({"patches": 0}, r"--patches 0: .*at least one"),
        ({"resize": "tiny"}, r"^resize rule 'tiny': write none, exact:\S* or short:\S*$"),
        ({"resize": "exact:100000x100"}, r"cup00.png: 96x72 would be stored at 100000x100, .* 65,535 .*\(\S*scores.csv, line 2\)$"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_before_anything_is_written(cups: Path, choice: dict[str, object], complaint: str) -> None:
    with pytest.raises(ShardError, match=complaint):
        plan_of(cups, **choice)


def test_a_split_that_cannot_be_used_is_refused_by_the_name_of_its_table(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, NAMES[:3], split=["train", "", "test"])
    with pytest.raises(ShardError, match=r"scores.csv: image 'cup01' has no part in the split column .*\(\S*scores.csv, line 3\)$"):
        plan_of(folder)
