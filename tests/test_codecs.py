"""The promises of the codecs: every plane comes back to the last bit, anybody can read it, and nothing is unpacked on trust."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from photographs import LAYOUTS, NAMES, all_patches, contents, make_folder, plan_of, shards_of

from shards import codecs
from shards.__main__ import main
from shards.check import check, describe
from shards.codecs import CODECS
from shards.demo import cut_content, distort
from shards.estimate import estimate
from shards.manifest import ShardError, Shards

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

PLANES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))


@pytest.fixture(scope="module", params=LAYOUTS)
def packed(request: pytest.FixtureRequest, cups: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """The twelve cups as zstd shards, in either layout. Not to be changed."""
    return shards_of(cups, tmp_path_factory.mktemp("packed") / "out", layout=request.param, codec="zstd")


# bit by bit


@pytest.mark.parametrize("name", CODECS)
@given(plane=PLANES)
def test_any_plane_comes_back_as_it_was(name: str, plane: np.ndarray) -> None:
    codec = CODECS[name]
    assert np.array_equal(codec.decode(codec.encode(plane), *plane.shape[:2]), plane)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("distortion", [None, ("jpeg", 4), ("white_noise", 5), ("impulse_noise", 3)])
def test_a_photograph_comes_back_as_it_was_however_it_was_distorted(name: str, distortion: tuple[str, int] | None) -> None:
    plane = cut_content("monarch") if distortion is None else distort(cut_content("monarch"), *distortion)
    for part in (plane, plane[10:234, 30:254]):  # a canvas, and a patch that is no memory block of its own
        assert np.array_equal(CODECS[name].decode(CODECS[name].encode(part), *part.shape[:2]), part)


def test_zstd_makes_photographs_smaller_and_noise_hardly_larger() -> None:
    encode, photograph = CODECS["zstd"].encode, cut_content("coffee")
    assert len(encode(photograph)) < 0.6 * photograph.nbytes  # .57; .78 without the differences
    noise = np.random.default_rng(0).integers(0, 256, photograph.shape, np.uint8)
    assert len(encode(noise)) < 1.001 * noise.nbytes


def test_packed_shards_give_the_same_patches_as_raw_ones_and_are_smaller(packed: Shards, cups: Path, tmp_path: Path) -> None:
    raw = shards_of(cups, tmp_path / "raw", layout=packed.layout.name)
    assert np.array_equal(all_patches(packed), all_patches(raw))
    assert np.array_equal(packed.read_patches(7, [5, 2]), raw.read_patches(7, [5, 2]))
    assert sum(record["bytes"] for record in packed.files) < sum(record["bytes"] for record in raw.files)
    check(packed.folder)


def test_the_bytes_of_packed_shards_are_the_same_for_any_number_of_workers(cups: Path, packed: Shards, tmp_path: Path) -> None:
    shards_of(cups, tmp_path / "two", workers=2, layout=packed.layout.name, codec="zstd")
    assert contents(tmp_path / "two") == contents(Path(packed.folder))


@pytest.mark.parametrize("codec", CODECS)
def test_reading_a_patch_of_the_patches_layout_reads_its_bytes_and_no_others(
    cups: Path, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(cups, tmp_path / "out", layout="patches", codec=codec)
    row, reads, pread = shards.row(5), [], os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, offset: reads.append((offset, length)) or pread(file, length, offset))
    shards.read_patches(5, [3])
    ends = int(row["offset"]) + np.cumsum(row["lengths"])
    assert reads[-1] == (ends[2], row["lengths"][3])
    assert len(reads) == 2 and reads[0][1] == shards.index.itemsize


# anyone can read them


def test_the_lines_that_the_module_gives_decode_a_member_of_any_webdataset_reader(packed: Shards) -> None:
    lines = "\n".join(line.strip() for line in re.findall(r"^ {4}\w.*$", str(codecs.__doc__), re.MULTILINE))
    assert len(lines.splitlines()) == 3
    samples = list(wds.WebDataset([str(packed.path(record["file"])) for record in packed.files], shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == list(packed.ids)
    for number, sample in enumerate(samples):
        said = sample["json"]
        assert said["codec"] == "zstd"
        n, height, width, _ = said["shape"]
        names = {"np": np, "zstandard": zstandard, "member": io.BytesIO(sample["pixels.zst"]), "n": n, "height": height, "width": width}
        exec(lines, names)
        pixels = names["pixels"]
        assert isinstance(pixels, np.ndarray) and list(pixels.shape) == said["shape"]
        patches = [pixels[n, y : y + 32, x : x + 32] for n, y, x in said["boxes"]]
        assert np.array_equal(patches, packed.read_patches(number, range(8)))


def test_show_says_the_codec_and_the_manifest_its_version(packed: Shards, built: Shards) -> None:
    assert re.search(r"^shards +6 files, \d\.\d MiB, codec zstd$", describe(packed), re.MULTILINE)
    assert packed.manifest["versions"]["zstd"] == ".".join(map(str, zstandard.ZSTD_VERSION))
    assert "zstd" not in built.manifest["versions"]


def test_a_build_with_one_codec_is_not_gone_on_with_in_another(cups: Path, tmp_path: Path) -> None:
    shards_of(cups, tmp_path / "out", codec="zstd")
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"out: was begun with another codec; choose another --out"):
        shards_of(cups, tmp_path / "out")


# nothing is unpacked on trust


PLANE = cut_content("coffee")[:64, :48]
ZSTD = CODECS["zstd"]


def stream_frame(content: bytes) -> bytes:
    """A zstd frame that does not say how long its content is."""
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return packer.compress(content) + packer.flush()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (zstandard.compress(bytes(1 << 30)), "a frame of 1073741824 bytes where 9216 were expected"),
        (ZSTD.encode(PLANE[:63]), "a frame of 9072 bytes where 9216 were expected"),
        (stream_frame(PLANE.tobytes()), "bytes where 9216 were expected"),
        (b"no frame at all", "."),
        (b"", "."),
        (ZSTD.encode(PLANE)[:-9], "."),
        (ZSTD.encode(PLANE) * 2, "."),
    ],
    ids=["bomb", "another size", "no size", "no frame", "nothing", "cut off", "one frame too many"],
)
def test_bytes_that_are_no_such_plane_are_refused(content: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ZSTD.decode(content, 64, 48)


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstandard.compress(bytes(1 << 30))
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)
    with pytest.raises(ValueError, match="1073741824 bytes where"):
        ZSTD.decode(bomb, 64, 48)


def test_a_raw_plane_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="reshape"):
        CODECS["raw"].decode(PLANE.tobytes()[:-1], 64, 48)


def test_a_flipped_byte_in_a_packed_plane_is_named(packed: Shards, tmp_path: Path) -> None:
    shards = Shards(shutil.copytree(packed.folder, tmp_path / "out"))
    shard, plane = shards.path("shard-000001.tar"), shards.layout.planes - 1
    content = bytearray(shard.read_bytes())
    content[int(shards.row(3)["offset"]) + int(shards.row(3)["lengths"].sum()) - 1] ^= 1  # the last byte of the last plane
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=r"shard-000001.tar: image 'cup03' is damaged .*; delete this shard and run the same"):
        shards.read_patches(3, [plane])
    with pytest.raises(ShardError, match=r"shard-000001.tar: the pixels of image 'cup03' are not what was written \(a checksum differs\)"):
        check(tmp_path / "out")


# what it would take on the disk


def test_an_estimate_is_close_to_what_each_choice_takes_and_writes_nothing(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data", [f"cup{number:02d}.png" for number in range(40)], 200, 150)
    before = contents(tmp_path)
    table = estimate(plan_of(folder, layout="patches", codec="zstd", shard_bytes=500_000), tmp_path / "not" / "there")
    assert contents(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["data"]
    said = {(line.split()[0], line.split()[1]): line.split()[2:] for line in table.splitlines()[1:5]}
    for layout in LAYOUTS:
        for codec in CODECS:
            shards = shards_of(folder, tmp_path / layout / codec, layout=layout, codec=codec, shard_bytes=500_000)
            taken = sum(record["bytes"] for record in shards.files)
            size, _, count, *mark = said[layout, codec]
            assert int(size.replace(",", "")) == pytest.approx(taken, rel=0.01 if codec == "raw" else 0.05)
            assert int(count) == len(shards.files)
            assert bool(mark) == ((layout, codec) == ("patches", "zstd"))


def test_an_estimate_says_what_it_rests_on_and_whether_the_disk_has_room(
    cups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["build", "--table", cups / "scores.csv", "--images", cups / "images", "--size", 32, "--patches", 8, "--estimate"]
    command = [*command, "--codec", "zstd", "--out", tmp_path / "not" / "there"]
    assert main(list(map(str, command))) == 0
    *_, basis, room = capsys.readouterr().out.splitlines()
    assert basis == "estimated from 12 of 12 images, evenly spaced, which were encoded here and thrown away"
    assert re.fullmatch(rf"free in {tmp_path}: [\d,]+\.\d MiB, enough for this command; nothing was written", room)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(0, 0, 1000))
    assert re.search(r"free in .*: 0\.0 MiB, 0\.\d MiB too little for this command", estimate(plan_of(cups), tmp_path / "there"))
    assert list(tmp_path.iterdir()) == []


def test_the_sample_of_an_estimate_is_spread_over_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.estimate.SAMPLE", 3)
    folder = make_folder(tmp_path, NAMES)
    for number in set(range(12)) - {2, 6, 10}:
        picture = folder / "images" / NAMES[number]
        picture.write_bytes(picture.read_bytes()[:200])  # its header is whole: the plan can be made
    assert "estimated from 3 of 12 images" in estimate(plan_of(folder), tmp_path / "out")
