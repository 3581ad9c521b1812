"""The promises of `check`: no byte changes unnoticed, and what it advises mends the damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photographs import NAMES, break_file, contents, make_folder, shards_of

from shards.check import check
from shards.manifest import ShardError, Shards

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


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
    "index header": ("index.npy", lambda _: 20, "was changed after it was written"),
    "ids": ("ids.npy", lambda _: -1, "was changed after it was written"),
    "opinions": ("opinions.npy", lambda _: -1, "was changed after it was written"),
    "parts": ("parts.npy", lambda _: -1, "was changed after it was written"),
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
        ("ids.npy", Path.unlink, "cannot be read"),
        ("opinions.npy", break_file, "was changed"),
        ("parts.npy", break_file, "was changed"),
        ("splits/round-01.csv", Path.unlink, "cannot be read"),
    ],
)
def test_a_missing_or_truncated_file_is_named_and_building_again_mends_it(
    own: Shards, folder: Path, name: str, spoil: Callable[[Path], None], complaint: str
) -> None:
    before = contents(own.folder)
    spoil(own.folder / name)
    with pytest.raises(ShardError, match=rf"{name}: {complaint}.*run the same `python -m shards build` again, which writes only what is"):
        check(own.folder)
    shards_of(folder, own.folder)
    assert contents(own.folder) == before


def test_a_disk_that_fails_is_no_reason_to_delete_a_shard(own: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shards.check.file_sha256", fail)
    with pytest.raises(ShardError, match=r"shard-000000.tar: cannot be read \(Input/output error\)") as refusal:
        check(own.folder)
    assert "delete" not in str(refusal.value)


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
