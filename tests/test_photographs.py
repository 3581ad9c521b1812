"""The promises of opening a photograph: upright, three 8-bit channels, whole, or refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from photographs import crop
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from shards.manifest import ShardError
from shards.photographs import decode_photograph, photograph_size


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# what is read


def test_a_lossless_picture_comes_back_as_it_was_saved() -> None:
    assert np.array_equal(decode_photograph(encoded(Image.fromarray(crop(0))), "cup.png"), crop(0))


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("form", ["jpg", "webp", "png"])
def test_an_orientation_that_only_xmp_tells_of_turns_nothing(tmp_path: Path, form: str) -> None:
    file, picture = tmp_path / f"cup.{form}", Image.fromarray(crop(1, 64, 48))
    if form == "png":
        about = PngInfo()
        about.add_itxt("XML:com.adobe.xmp", XMP.decode())
        picture.save(file, pnginfo=about)
    else:
        picture.save(file, xmp=XMP)
    assert Image.open(file).getexif()[0x0112] == 6  # Pillow's word
    assert photograph_size(file) == (64, 48) and decode_photograph(file.read_bytes(), file).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda pixels: pixels),
        (2, lambda pixels: pixels[:, ::-1]),
        (3, lambda pixels: np.rot90(pixels, 2)),
        (4, lambda pixels: pixels[::-1]),
        (5, lambda pixels: pixels.swapaxes(0, 1)),
        (6, lambda pixels: np.rot90(pixels, -1)),
        (7, lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1)),
        (8, lambda pixels: np.rot90(pixels, 1)),
    ],
)
def test_every_exif_orientation_is_put_upright(tmp_path: Path, orientation: int, upright: Callable[[np.ndarray], np.ndarray]) -> None:
    content = encoded(Image.fromarray(crop(0)), exif=turned(orientation))
    (tmp_path / "cup.png").write_bytes(content)
    expected = upright(crop(0))
    assert np.array_equal(decode_photograph(content, "cup.png"), expected)
    assert photograph_size(tmp_path / "cup.png") == expected.shape[1::-1]


GREY = crop(0)[..., 1]


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray((GREY.astype(np.uint16) << 8) | 0x7F), GREY),
        (Image.fromarray(np.where(GREY > 99, 255, 0).astype(np.uint8)).convert("1"), np.where(GREY > 99, 255, 0)),
        (Image.fromarray(np.dstack([GREY, np.full_like(GREY, 9)]), "LA"), GREY),
    ],
    ids=["8-bit grey", "16-bit grey", "black and white", "grey with transparency"],
)
def test_grey_has_three_equal_channels(picture: Image.Image, expected: np.ndarray) -> None:
    assert np.array_equal(decode_photograph(encoded(picture), "cup.png"), np.repeat(expected[..., None], 3, axis=2))


def test_transparency_is_left_aside() -> None:
    transparent = np.dstack([crop(0), np.full_like(GREY, 7)])
    assert np.array_equal(decode_photograph(encoded(Image.fromarray(transparent)), "cup.png"), crop(0))


def test_a_palette_is_looked_up() -> None:
    palette = Image.fromarray(crop(0)).quantize(64)
    assert np.array_equal(decode_photograph(encoded(palette), "cup.png"), np.asarray(palette.convert("RGB")))


def test_cmyk_becomes_rgb() -> None:
    pixels = decode_photograph(encoded(Image.fromarray(crop(0)).convert("CMYK"), "TIFF"), "cup.tif")
    assert np.abs(pixels.astype(int) - crop(0)).max() <= 1


def test_of_an_animation_it_is_the_first_picture() -> None:
    frames = [Image.fromarray(crop(number)) for number in range(3)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decode_photograph(content, "cup.webp"), crop(0))


def test_the_size_of_a_png_is_read_without_decoding_it(tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(crop(0)))
    (tmp_path / "cup.png").write_bytes(whole[: whole.index(b"IDAT") + 50])
    assert photograph_size(tmp_path / "cup.png") == (96, 72)


# what is refused

SMALL = Image.fromarray(crop(0, 48, 32))
FORMS = {form: encoded(SMALL, form) for form in ("JPEG", "PNG", "WEBP", "JPEG2000", "TIFF", "GIF", "BMP", "PPM", "AVIF")}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_truncated_picture_is_refused_in_every_format(form: str, share: float) -> None:
    content = FORMS[form]
    with pytest.raises(ShardError, match=r"cup: cannot be decoded .*; replace the file, or leave it out"):
        decode_photograph(content[: int(share * len(content))], "cup")


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@given(st.sampled_from(sorted(FORMS)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=20))
@example("AVIF", [(4, 0)])
def test_a_damaged_picture_is_decoded_or_refused_and_nothing_else_is_ever_raised(form: str, damage: list[tuple[int, int]]) -> None:
    content = bytearray(FORMS[form])
    for place, value in damage:
        content[place % len(content)] = value
    try:
        pixels = decode_photograph(bytes(content), "cup")
    except ShardError:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_of_an_unknown_scale_are_refused_rather_than_clipped(tmp_path: Path, mode: str) -> None:
    (tmp_path / "cup.tif").write_bytes(encoded(Image.fromarray(GREY).convert(mode), "TIFF"))
    with pytest.raises(ShardError, match=r"cup.tif: cannot be decoded \(32-bit samples.*save 8 or 16 bits"):
        photograph_size(tmp_path / "cup.tif")


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)))
    with pytest.raises(ShardError, match=r"bomb.png: cannot be decoded .*exceeds limit"):
        photograph_size(tmp_path / "bomb.png")


@pytest.mark.parametrize(("name", "complaint"), [("missing.png", "there is no such file"), ("notes.png", "cannot be decoded")])
def test_what_is_no_picture_is_named(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(ShardError, match=rf"{name}: {complaint}"):
        photograph_size(tmp_path / name)
