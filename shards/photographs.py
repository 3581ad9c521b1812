"""One way to open a photograph, so that every machine stores the same pixels.

Upright (EXIF orientation applied), three 8-bit channels, never truncated silently, never larger than Pillow's guard
against decompression bombs allows.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, features

from shards.manifest import ShardError

_SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
_ORIENTATION = 0x0112
_DEEP = {"I;16", "I;16B", "I;16L", "I;16N"}  # 16-bit grey, which Pillow would clip to 255 instead of scaling


def decoder_versions() -> dict[str, str]:
    """Name and version of what decodes here: two JPEG decoders may differ by a level or two."""
    codecs = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "zlib", "webp", "jpg_2000")}
    return {"pillow": PIL.__version__, **{name: str(version) for name, version in codecs.items() if version}}


def photograph_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels once upright, read from the header alone.

    Raises ShardError when the file is missing or is not a picture.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            sideways = picture.getexif().get(_ORIENTATION) in _SIDEWAYS
    except FileNotFoundError:
        raise ShardError(f"{path}: there is no such file; check the table's names and the image folder") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ShardError(f"{path}: cannot be read as a picture ({error}); replace the file or take its row out of the table") from error
    return (height, width) if sideways else (width, height)


def decode_photograph(content: bytes, name: str | Path) -> np.ndarray:
    """The pixels of an encoded photograph: uint8 [height, width, 3], RGB, upright.

    `name` is only used in messages. Raises ShardError when the bytes cannot be decoded to the end.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
                upright = ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ShardError(f"{name}: cannot be decoded ({error}); replace the file or take its row out of the table") from error
    if upright.mode in _DEEP:
        grey = (np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(upright.convert("RGB"))
