"""One way to open a photograph, so that every machine stores the same pixels.

Upright (EXIF orientation applied), three 8-bit channels, never truncated silently, never larger than Pillow's guard
against decompression bombs allows. Of an animation it is the first picture; transparency and colour profiles are left
aside, as everybody does in this field; of 16 bits the upper 8 are kept.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from shards.manifest import ShardError

SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})  # looked for in a folder

# What Pillow may open, whatever a file is called. Not all that it knows: for EPS it would run a program, Ghostscript.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
ORIENTATION = 0x0112  # the EXIF tag
DEEP = {"I;16", "I;16B", "I;16L", "I;16N"}  # 16-bit grey, which Pillow would clip to 255 instead of scaling
_BOUNDLESS = {"I", "F"}  # 32-bit grey: nobody knows which value is white, and Pillow would clip at 255


def decoder_versions() -> dict[str, str]:
    """Name and version of what decodes here: two JPEG decoders may differ by a level or two."""
    codecs = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib", "webp", "jpg_2000")}
    return {"pillow": PIL.__version__, **{name: str(version) for name, version in codecs.items() if version}}


def photograph_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels once upright, read from the header alone.

    Raises ShardError when the file is missing, is not a picture, or is one that `decode_photograph` refuses unseen.
    """
    with opened(path, path) as picture:
        width, height = picture.size
        # A PNG may carry its orientation after the pixels, and Pillow's own PngImageFile.getexif would decode them all
        # to look there. Such a file is refused when it is decoded, because its size is then not the one found here.
        sideways = orientation(picture) in _SIDEWAYS
    return (height, width) if sideways else (width, height)


def decode_photograph(content: bytes, name: str | Path) -> np.ndarray:
    """The pixels of an encoded photograph: uint8 [height, width, 3], RGB, upright.

    `name` is only used in messages. Raises ShardError when the bytes cannot be decoded to the end.
    """
    return np.asarray(upright_photograph(content, name))


def upright_photograph(content: bytes, name: str | Path) -> Image.Image:
    """The same as a picture of Pillow's, which Pillow resizes without copying it to an array and back."""
    with opened(io.BytesIO(content), name) as picture:
        picture.load()
        _leave_xmp_aside(picture)
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode in DEEP:
            grey = (np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)
            return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def orientation(picture: Image.Image) -> int:
    """How a picture is to be turned by its EXIF, as far as its header tells: 1 to 8, 1 where it does not say."""
    _leave_xmp_aside(picture)
    return int(Image.Image.getexif(picture).get(ORIENTATION, 1))


def _leave_xmp_aside(picture: Image.Image) -> None:
    """Pillow would turn a picture by its XMP too, which the browsers and viewers in which people rated it do not."""
    for name in ("xmp", "XML:com.adobe.xmp"):
        picture.info.pop(name, None)


@cache
def _formats() -> list[str]:
    """Those of _FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


@contextmanager
def opened(source: Path | io.BytesIO, name: str | Path) -> Iterator[ImageFile.ImageFile]:
    """The picture in `source`; whatever goes wrong while it is used becomes a ShardError about `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=_formats()) as picture:
                if picture.mode in _BOUNDLESS:
                    raise ValueError(f"32-bit samples, Pillow's mode {picture.mode}, whose white is not known: save 8 or 16 bits")
                yield picture
    except FileNotFoundError:
        raise ShardError(f"{name}: there is no such file; check the table's names and the image folder") from None
    except MemoryError:
        raise
    except Exception as error:  # every decoder fails in its own way, from SyntaxError (PNG) to RuntimeError (AVIF)
        length = source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes
        unknown = "it is no picture of a format that is read here" if isinstance(error, UnidentifiedImageError) else error
        why = unknown if length else "it is empty"
        raise ShardError(f"{name}: cannot be decoded ({why}); replace the file, or leave it out (a table: take its row out)") from error
