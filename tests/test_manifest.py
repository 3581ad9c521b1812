"""The promises of an opened shard folder: its splits, its patches, and that anybody else can read it too."""

from __future__ import annotations

import csv
import io
import json
import mmap
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from photographs import NAMES, all_patches, make_folder, shards_of, stamps

from shards import manifest
from shards.manifest import PARTS, Ids, ShardError, Shards

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


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
        ("id,part\ncup00,\ncup00,test\n", r"mine.csv, line 3: image 'cup00' stands there a second time"),
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


def test_the_splits_of_a_build_are_those_of_their_tables(built: Shards) -> None:
    for name in built.split_names():
        with built.path(f"splits/{name}.csv").open() as file:
            said = {row["id"]: row["part"] for row in csv.DictReader(file)}
        parts = built.split(name)[1]
        assert {built.ids[number]: part for part, numbers in parts.items() for number in numbers} == said


def test_a_split_of_ones_own_may_stand_in_any_order_and_is_longer_than_what_is_read_at_once(
    own: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "ROWS_AT_ONCE", 5)
    own.path("splits/mine.csv").write_text("id,part\n" + "".join(f"cup{n * 5 % 12:02d},{PARTS[n % 3]}\n" for n in range(12)))
    expected = {part: sorted(n * 5 % 12 for n in range(k, 12, 3)) for k, part in enumerate(PARTS)}
    assert {part: numbers.tolist() for part, numbers in own.split("mine")[1].items()} == expected
    with own.path("splits/mine.csv").open("a") as file:
        file.write("cup07,val\n")
    with pytest.raises(ShardError, match=r"mine.csv, line 14: image 'cup07' stands there a second time"):
        own.split("mine")


@pytest.mark.parametrize("text", ["cup", "cup001", "cup00\0", "cup99", "", "aaa", "zzzzzzzzzzzz", "çup00"])
def test_what_only_looks_like_an_id_is_none(built: Shards, text: str) -> None:
    assert built.ids.numbers(["cup03", text, "cup11"]) == [3, None, 11]


@given(names=st.sets(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9), min_size=1, max_size=30))
def test_ids_of_any_script_are_found_by_bisection(names: set[str]) -> None:
    ordered = sorted(names)
    ids = Ids(np.array([name.encode() for name in ordered]))
    assert list(ids) == ordered and ids[:2] == ordered[:2] and len(ids) == len(ordered)
    assert ids.numbers(ordered[::-1]) == list(range(len(ordered)))[::-1]
    assert [number for number in ids.numbers([name + "x" for name in ordered]) if number is not None] == [
        ordered.index(name + "x") for name in ordered if name + "x" in names
    ]


# what opening costs


def test_opening_and_reading_patches_hashes_no_file_that_has_a_row_per_image(built: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "file_sha256", lambda path: pytest.fail(f"{path} was read from end to end"))
    shards = Shards(built.folder)
    assert np.array_equal(shards.read_patches(4, [1]), built.read_patches(4, [1]))


def test_opinions_and_the_index_are_mapped_and_not_read(built: Shards) -> None:
    shards = Shards(built.folder)
    for array in (shards.opinions, shards.index):
        while isinstance(array.base, np.ndarray):
            array = array.base
        assert isinstance(array.base, mmap.mmap)


def test_a_row_of_the_index_that_was_changed_is_refused_when_it_is_used_and_the_others_are_not(own: Shards) -> None:
    path = own.path("index.npy")
    content = bytearray(path.read_bytes())
    content[-3 * own.index.itemsize - 20] ^= 1  # in the row of image 8, of 12
    path.write_bytes(content)
    shards = Shards(own.folder)
    shards.read_patches(7, [0])
    with pytest.raises(ShardError, match=r"index.npy: the row of image 8 was changed after it was written; run the same"):
        shards.read_patches(8, [0])


def test_the_index_of_another_build_is_refused_although_its_rows_fit(own: Shards, folder: Path, tmp_path: Path) -> None:
    other = shards_of(folder, tmp_path / "other", seed=1)  # the same pixels at the same places, and other boxes
    assert np.array_equal(other.index["checksums"], own.index["checksums"])
    shutil.copy(other.path("index.npy"), own.path("index.npy"))
    with pytest.raises(ShardError, match=r"index.npy: the row of image 0 was changed"):
        Shards(own.folder).read_patches(0, [0])


def test_an_index_of_another_length_or_kind_is_refused_when_the_folder_is_opened(own: Shards, folder: Path, tmp_path: Path) -> None:
    for change in ({"patches": 9}, {"layout": "patches"}):
        other = shards_of(folder, tmp_path / str(change), **change)
        shutil.copy(other.path("index.npy"), own.path("index.npy"))
        with pytest.raises(ShardError, match=r"index.npy: was changed after it was written \(its rows are others\)"):
            Shards(own.folder)


def test_an_index_that_is_shortened_while_it_is_used_is_an_error(own: Shards) -> None:
    os.truncate(own.path("index.npy"), own.path("index.npy").stat().st_size - 5)
    own.read_patches(10, [0])
    with pytest.raises(ShardError, match=r"index.npy: the row of image 11 was changed"):
        own.read_patches(11, [0])


# anyone can read them


def test_a_plain_webdataset_pipeline_finds_the_same_pixels_and_facts(built: Shards) -> None:
    urls = [str(built.folder / record["file"]) for record in built.files]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == list(built.ids)
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


def test_the_record_of_a_build_is_plain_json(built: Shards) -> None:
    said = json.loads((built.folder / "manifest.json").read_text())
    assert [record["file"] for record in said["shards"]] == sorted(stamps(built.folder))
    assert sum(record["images"] for record in said["shards"]) == said["images"] == 12


# what is refused


@pytest.mark.parametrize(
    ("text", "complaint"), [("[]", "is not a manifest of ours"), ('{"format": 99}', "format 99, this version reads format 1")]
)
def test_a_manifest_of_another_kind_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ShardError, match=complaint):
        Shards(tmp_path)
