"""The promises of a shard folder: the same bytes always, nothing complete is lost, lossless, readable by anyone, checked."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import NAMES, contents, crop, make_folder, plan_of, read_csv, shards_of, write_table
from PIL import Image

from shards import manifest, writer
from shards.check import check, describe
from shards.manifest import Label, ShardError, Shards
from shards.patches import patch_boxes, resize

LAYOUTS = ("canvas", "patches")
PARTS_OF_12 = ["train"] * 8 + ["val"] * 2 + ["test"] * 2


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """A hundred builds sync some two thousand small files; the tests of the commands do it for real."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def cups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 96x72 and their table. Not to be changed."""
    return make_folder(tmp_path_factory.mktemp("cups"))


@pytest.fixture(scope="module", params=LAYOUTS)
def built(request: pytest.FixtureRequest, cups: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Those pictures as shards, two per shard, in either layout. Not to be changed."""
    return shards_of(cups, tmp_path_factory.mktemp(request.param) / "out", layout=request.param)


@pytest.fixture
def folder(cups: Path, tmp_path: Path) -> Path:
    """A folder of pictures that a test may change."""
    return Path(shutil.copytree(cups, tmp_path / "cups"))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Shards:
    """Shards of `folder` that a test may change."""
    return shards_of(folder, tmp_path / "out")


def all_patches(shards: Shards) -> list[np.ndarray]:
    return [shards.read_patches(image, range(shards.layout.patches)) for image in range(len(shards))]


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
    scores, parts = [1.0] * 12, PARTS_OF_12
    fingerprints = set()
    for number, (opinions, split) in enumerate([(scores, parts), ([*scores[:-1], 1.5], parts), (scores, parts[::-1])]):
        write_table(folder, {"image": NAMES, "score": opinions, "split": split})
        fingerprints.add(shards_of(folder, tmp_path / str(number)).fingerprint)
    assert len(fingerprints) == 3


# what is in them


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
    assert shards.ids == sorted(["a_cup", "b_cup", "照片_тест-é", "x" * 120, "cup_v2"])
    check(tmp_path / "out")
    samples = list(wds.WebDataset([str(shards.folder / record["file"]) for record in shards.files], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == shards.ids


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
        "source": "cup00.png",
        "sha256": "",
    }
    assert first["sha256"] == contents(folder)["images/cup00.png"]
    assert second["std"] == ""
    assert shards.opinions.tolist() == [1.0, 1.25, 1.5]


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
        "shards          6 files, 0.3 MiB",
        "split official  train 7, val 2, test 3",
    ]


# splits


def test_a_table_without_a_split_column_gets_ten_rounds_and_the_first_is_taken(built: Shards) -> None:
    assert built.split_names() == [f"round-{number:02d}" for number in range(1, 11)]
    name, parts = built.split()
    assert name == "round-01"
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(12))


def test_the_official_split_is_taken_and_numbers_the_images(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", NAMES[:5], split=["test", "training", "validation", "train", "test"])
    name, parts = shards_of(folder, tmp_path / "out").split()
    assert name == "official"
    assert {part: numbers.tolist() for part, numbers in parts.items()} == {"train": [1, 3], "val": [2], "test": [0, 4]}


def test_a_split_of_ones_own_is_read_and_a_build_leaves_it_alone(own: Shards, folder: Path) -> None:
    table = own.folder / "splits" / "mine.csv"
    table.write_text("\ufeffid,part\ncup00,train\ncup05,val\ncup11,test\n")
    again = shards_of(folder, own.folder)
    assert again.fingerprint == own.fingerprint
    assert {part: numbers.tolist() for part, numbers in again.split("mine")[1].items()} == {"train": [0], "val": [5], "test": [11]}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("id,part\ncup00,train\ncup99,test\n", r"mine.csv, line 3: 'cup99,test' names no image"),
        ("id,part\ncup00,training\n", r"mine.csv, line 2: 'cup00,training' .*\(train, val, test\)"),
        ("id,part\ncup00,train\ncup00,test\n", r"mine.csv, line 3: image 'cup00' stands there a second time"),
        ("image,split\ncup00,train\n", r"mine.csv, line 2: .*the columns are id and part"),
    ],
)
def test_a_split_of_ones_own_with_a_bad_row_is_refused_by_its_line(own: Shards, text: str, complaint: str) -> None:
    (own.folder / "splits" / "mine.csv").write_text(text)
    with pytest.raises(ShardError, match=complaint):
        own.split("mine")


def test_a_split_that_does_not_exist_is_answered_with_those_that_do(built: Shards) -> None:
    with pytest.raises(ShardError, match=r"no split 'round-11'; there are: round-01, .*round-10"):
        built.split("round-11")


# anyone can read them


def test_a_plain_webdataset_pipeline_finds_the_same_pixels_and_facts(built: Shards) -> None:
    urls = [str(built.folder / record["file"]) for record in built.files]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == built.ids
    for number, (sample, row) in enumerate(zip(samples, built.image_rows(), strict=True)):
        pixels, said = sample["pixels.npy"], sample["json"]
        patches = [pixels[n, y : y + 32, x : x + 32] for n, y, x in said["boxes"]]
        assert np.array_equal(patches, built.read_patches(number, range(8)))
        assert (said["id"], said["opinion"], said["sha256"]) == (row["id"], float(row["opinion"]), row["sha256"])
        assert (said["width"], said["height"], said["patch_size"]) == (96, 72, 32)


def test_the_shards_are_ordinary_tar_files(built: Shards) -> None:
    with tarfile.open(built.folder / built.files[0]["file"]) as tar:
        assert tar.getnames() == [f"{name}.{suffix}" for name in built.ids[:2] for suffix in ("json", "pixels.npy")]
        pixels = np.load(io.BytesIO(tar.extractfile("cup00.pixels.npy").read()))  # type: ignore[union-attr]
        assert all((member.uid, member.gid, member.mtime, member.uname) == (0, 0, 0, "") for member in tar)
    assert pixels.shape == (built.layout.planes, *built.layout.plane_size(96, 72), 3)


def test_an_opened_folder_travels_to_another_process(built: Shards) -> None:
    built.read_patches(0, [0])
    assert np.array_equal(pickle.loads(pickle.dumps(built)).read_patches(7, [1]), built.read_patches(7, [1]))


def test_few_shards_are_open_at_once_however_many_there_are(built: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "OPEN_FILES", 2)
    shards = Shards(built.folder)
    assert len(shards.files) > 2
    assert np.array_equal(all_patches(shards), all_patches(built))
    assert len(shards._descriptors) == 2


# nothing complete is lost


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.tar")}


def test_a_complete_build_writes_no_shard_again(own: Shards, folder: Path) -> None:
    before, bytes_before = stamps(own.folder), contents(own.folder)
    shards_of(folder, own.folder)
    assert stamps(own.folder) == before and contents(own.folder) == bytes_before


def test_a_shard_that_is_gone_is_written_again_and_is_the_same(own: Shards, folder: Path) -> None:
    before, bytes_before = stamps(own.folder), contents(own.folder)
    (own.folder / "shard-000002.tar").unlink()
    shards_of(folder, own.folder)
    assert contents(own.folder) == bytes_before
    assert [name for name, stamp in stamps(own.folder).items() if stamp != before[name]] == ["shard-000002.tar"]


def test_a_build_that_stopped_at_any_moment_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "data", NAMES[:6], split=["train", "train", "train", "val", "test", "test"])
    whole = contents(shards_of(folder, tmp_path / "unbroken").folder)
    for moment in range(len(whole) + 2):  # every file is synced once before it gets its name, and in the end two folders
        out, left = tmp_path / str(moment), iter(range(moment))

        def stop_here(_: int, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", stop_here)
        with pytest.raises(KeyboardInterrupt):
            shards_of(folder, out)
        monkeypatch.setattr(os, "fsync", lambda _: None)
        assert contents(out).items() <= whole.items()
        complete = [name for name in stamps(out) if (out / ".build" / f"{name}.json").exists()]
        before = stamps(out)
        shards_of(folder, out)
        assert contents(out) == whole
        assert all(stamps(out)[name] == before[name] for name in complete)


def test_an_unfinished_build_is_not_taken_for_a_finished_one(own: Shards) -> None:
    (own.folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"holds no shards \(no manifest.json\); an unfinished build lies there: run the same"):
        Shards(own.folder)


def test_what_a_killed_build_was_writing_is_swept_away(own: Shards, folder: Path) -> None:
    before = contents(own.folder)
    for name in ("shard-000001.tar.node7-4711.part", ".build/plan.json.node7-4711.part", "splits/round-01.csv.node7-4711.part"):
        (own.folder / name).write_text("half")
    shards_of(folder, own.folder)
    assert contents(own.folder) == before


def break_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])  # the header is whole, the pixels are not


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("cure", ["replace the file", "take its row out"])
def test_after_a_bad_picture_the_build_goes_on_where_it_was(folder: Path, tmp_path: Path, workers: int, cure: str) -> None:
    out, bad = tmp_path / "out", folder / "images" / "cup09.png"
    break_file(bad)
    with pytest.raises(ShardError, match=r"cup09.png: cannot be decoded .*; replace the file or take its row out of the table"):
        shards_of(folder, out, workers)
    before = {name: stamp for name, stamp in stamps(out).items() if name < "shard-000004.tar"}  # the one of cup09
    assert len(before) == 4
    assert not list(out.glob("*.part")) and not (out / "manifest.json").exists()
    if cure == "replace the file":
        Image.fromarray(crop(9)).save(bad)
    else:
        kept = [number for number in range(12) if number != 9]
        write_table(folder, {"image": [NAMES[number] for number in kept], "score": [1 + number / 4 for number in kept]})
    shards_of(folder, out, workers)
    assert {name: stamps(out)[name] for name in before} == before
    shards_of(folder, tmp_path / "anew")
    assert contents(out) == contents(tmp_path / "anew")


class AtOnce(Executor):
    """A pool whose tasks are done as soon as they are handed in."""

    def submit(self, task: Callable[..., object], /, *arguments: object) -> Future[object]:  # type: ignore[override]
        future: Future[object] = Future()
        try:
            future.set_result(task(*arguments))
        except ShardError as error:
            future.set_exception(error)
        return future


def test_after_a_bad_picture_nothing_new_is_begun(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "worker_pool", lambda _: AtOnce())
    break_file(folder / "images" / "cup00.png")
    with pytest.raises(ShardError, match=r"cup00.png"):
        shards_of(folder, tmp_path / "out", workers=2)
    assert len(stamps(tmp_path / "out")) <= 2  # of five: the one beside it, and one begun before the error was looked at


def test_an_unfinished_build_goes_on_with_a_shorter_table_as_if_it_had_always_been_so(folder: Path, tmp_path: Path) -> None:
    shards_of(folder, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()  # as if it had been stopped at the last moment
    kept = [0, 1, 2, 5, 6, 7]
    write_table(folder, {"image": [NAMES[number] for number in kept], "score": [1 + number / 4 for number in kept]})
    before = stamps(tmp_path / "out")
    shards_of(folder, tmp_path / "out")
    assert stamps(tmp_path / "out")["shard-000000.tar"] == before["shard-000000.tar"]
    shards_of(folder, tmp_path / "anew")
    assert stamps(tmp_path / "out").keys() == stamps(tmp_path / "anew").keys()
    assert contents(tmp_path / "out").items() >= contents(tmp_path / "anew").items()


def test_the_record_of_a_shard_that_was_replaced_is_never_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, folder = tmp_path / "out", make_folder(tmp_path / "data", [f"cup{number}.bmp" for number in range(4)])
    shards_of(folder, out)
    (out / "shard-000001.tar").unlink()
    Image.fromarray(crop(9)).save(folder / "images" / "cup3.bmp")  # other pixels, and not a byte more or less
    stops = iter([None, None, KeyboardInterrupt()])  # the plan, the shard, its record

    def stop_before_the_record(_: int) -> None:
        if error := next(stops):
            raise error

    monkeypatch.setattr(os, "fsync", stop_before_the_record)
    with pytest.raises(KeyboardInterrupt):
        shards_of(folder, out)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    shards_of(folder, out)
    check(out)


def test_a_file_is_replaced_whole_so_that_whoever_reads_the_old_one_is_not_disturbed(own: Shards, folder: Path) -> None:
    with (own.folder / "index.npy").open("rb") as reader:
        shards_of(folder, own.folder)
        assert os.fstat(reader.fileno()).st_nlink == 0


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
    with pytest.raises(ShardError, match=r"out: holds the shards of another table or of other settings; choose another --out"):
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


def test_a_build_begun_with_another_decoder_is_not_mixed(own: Shards, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(own.folder)
    monkeypatch.setattr(writer, "decoder_versions", lambda: {"pillow": "99"})
    assert shards_of(folder, own.folder).manifest["versions"] == own.manifest["versions"]  # nothing to write, nothing to mix
    assert contents(own.folder) == before
    (own.folder / "shard-000002.tar").unlink()
    with pytest.raises(ShardError, match=rf"was begun with pillow {Image.__version__}.*, and this is pillow 99"):
        shards_of(folder, own.folder)


def test_a_full_disk_is_named_and_leaves_no_half_file(cups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ShardError, match=r"plan.json: cannot be written \(No space left on device\)"):
        shards_of(cups, tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_a_picture_that_was_exchanged_since_its_header_was_read_is_refused(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(folder)
    Image.fromarray(crop(0, 60, 60)).save(folder / "images" / "cup03.png")
    (folder / "images" / "cup07.png").unlink()
    with pytest.raises(ShardError, match=r"cup03.png: decodes to 60x60, its header says 96x72"):
        writer.build(plan, tmp_path / "out")
    Image.fromarray(crop(3)).save(folder / "images" / "cup03.png")
    with pytest.raises(ShardError, match=r"cup07.png: cannot be read \(No such file or directory\)"):
        writer.build(plan, tmp_path / "out")


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"patch_size": 4}, r"--size 4 .*at least 8 pixels"),
        ({"patches": 0}, r"--patches 0: .*at least one"),
        ({"resize": "tiny"}, r"resize rule 'tiny': write none, exact"),
        ({"resize": "exact:100000x100"}, r"cup00.png: 96x72 would be stored at 100000x100, and a side has at most 65,535"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_before_anything_is_written(cups: Path, choice: dict[str, object], complaint: str) -> None:
    with pytest.raises(ShardError, match=complaint):
        plan_of(cups, **choice)


def test_a_split_that_cannot_be_used_is_refused_by_the_name_of_its_table(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, NAMES[:3], split=["train", "", "test"])
    with pytest.raises(ShardError, match=r"scores.csv: image 'cup01' has no part in the split column"):
        plan_of(folder)


# every byte is checked


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("spoilt")
    shards_of(make_folder(folder / "data", NAMES[:4], 40, 36), folder / "out", shard_bytes=20_000)
    yield folder / "out"
    check(folder / "out")  # every example has put things right again


@settings(max_examples=150)
@given(st.data())
def test_no_byte_can_be_changed_unnoticed(spoilt: Path, data: st.DataObject) -> None:
    path = spoilt / data.draw(st.sampled_from([name for name in contents(spoilt) if not name.startswith(".build")]))
    place = data.draw(st.integers(0, path.stat().st_size - 1))
    flip(path, place)
    try:
        with pytest.raises(ShardError, match=path.name):
            check(spoilt)
    finally:
        flip(path, place)


def pixels_of_cup03(shards: Shards) -> int:
    return int(shards.index["offset"][3]) + 5


def name_of(member: str) -> Callable[[Shards], int]:
    return lambda shards: (shards.folder / "shard-000000.tar").read_bytes().index(member.encode())


DAMAGE: dict[str, tuple[str, Callable[[Shards], int], str]] = {
    "pixels": ("shard-000001.tar", pixels_of_cup03, "the pixels of image 'cup03' are not what was written"),
    "json": ("shard-000000.tar", lambda shards: name_of('"id": "cup01"')(shards) + 8, "cup01.json does not say what images.csv"),
    "tar header": ("shard-000000.tar", name_of("cup01.pixels.npy"), "expected the member cup01.pixels.npy"),
    "first tar header": ("shard-000000.tar", lambda _: 0, "is no longer a readable tar file"),
    "npy header": ("shard-000000.tar", name_of("fortran_order"), "a byte outside the pixels was changed"),
    "padding": ("shard-000000.tar", lambda _: -1, "a byte outside the pixels was changed"),
    "index": ("index.npy", lambda _: -1, "was changed after it was written"),
    "images.csv": ("images.csv", lambda _: -9, "was changed after it was written"),
    "split": ("splits/round-03.csv", lambda _: -9, "was changed after it was written"),
    "manifest": ("manifest.json", lambda shards: (shards.folder / "manifest.json").read_bytes().index(b"cups"), "was changed after"),
    "no json": ("manifest.json", lambda _: 0, "is not a manifest of ours"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_flipped_byte_is_named_and_what_check_advises_mends_it(own: Shards, folder: Path, kind: str) -> None:
    before = contents(own.folder)
    name, place, complaint = DAMAGE[kind]
    flip(own.folder / name, place(own))
    with pytest.raises(ShardError, match=complaint) as refusal:
        check(own.folder)
    assert name in str(refusal.value)
    assert "run the same `python -m shards build` again" in str(refusal.value)
    if "delete this shard" in str(refusal.value):
        (own.folder / name).unlink()
    shards_of(folder, own.folder)
    check(own.folder)
    assert contents(own.folder) == before


@pytest.mark.parametrize(
    ("name", "spoil", "complaint"),
    [
        ("shard-000001.tar", Path.unlink, "is missing"),
        ("shard-000001.tar", break_file, "has 200 bytes, not"),
        ("index.npy", Path.unlink, "cannot be read"),
        ("index.npy", break_file, "was changed"),
        ("images.csv", Path.unlink, "cannot be read"),
        ("splits/round-01.csv", Path.unlink, "cannot be read"),
    ],
)
def test_a_missing_or_truncated_file_is_named_and_building_again_mends_it(
    own: Shards, folder: Path, name: str, spoil: Callable[[Path], None], complaint: str
) -> None:
    before = contents(own.folder)
    spoil(own.folder / name)
    with pytest.raises(ShardError, match=rf"{name}: {complaint}.*run the same `python -m shards build` again, which writes only what is"):
        Shards(own.folder).split()
    shards_of(folder, own.folder)
    assert contents(own.folder) == before


def test_reading_a_damaged_patch_is_an_error_that_names_the_image_and_spares_the_others(built: Shards, tmp_path: Path) -> None:
    shards = Shards(shutil.copytree(built.folder, tmp_path / "out"))
    flip(shards.folder / "shard-000001.tar", pixels_of_cup03(shards))
    shards.read_patches(2, range(8))
    with pytest.raises(ShardError, match=r"shard-000001.tar: image 'cup03' is damaged .*; delete this shard and run the same"):
        shards.read_patches(3, [0])


def test_a_shard_that_vanishes_while_it_is_used_is_an_error_that_names_it(own: Shards) -> None:
    (own.folder / "shard-000005.tar").unlink()
    with pytest.raises(ShardError, match=r"shard-000005.tar: cannot be read \(No such file or directory\)"):
        own.read_patches(len(own) - 1, [0])


@pytest.mark.parametrize(
    ("text", "complaint"), [("[]", "is not a manifest of ours"), ('{"format": 99}', "format 99, this version reads format 1")]
)
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match=complaint):
        Shards(tmp_path)


def test_the_record_of_a_build_is_plain_json(built: Shards) -> None:
    said = json.loads((built.folder / "manifest.json").read_text())
    assert [record["file"] for record in said["shards"]] == sorted(stamps(built.folder))
    assert sum(record["images"] for record in said["shards"]) == said["images"] == 12
