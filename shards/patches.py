"""Where the patches of an image lie: pure functions of (image id, seed) and the image's size.

The boxes are fixed when a shard is built, so a score is the same on every run and on every machine. Nothing here
depends on a random generator whose stream a library may change: a box is a hash, read as a number.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
from PIL import Image

from shards.manifest import ShardError

_RULE = re.compile(r"none|exact:(?P<width>[1-9]\d*)x(?P<height>[1-9]\d*)|short:(?P<short>[1-9]\d*)")
LONGEST_SIDE = np.iinfo(np.uint16).max  # the index keeps sizes and corners in 16 bits
_LARGEST_PLANE = 2**31 - 2**16  # bytes; Linux reads no more at once, and the index keeps lengths in 32 bits


def resized_size(width: int, height: int, rule: str, patch_size: int) -> tuple[int, int]:
    """The size (width, height) at which an image is stored.

    `rule` is 'none', 'exact:WIDTHxHEIGHT' or 'short:PIXELS' (the shorter side, keeping the aspect). An image that is
    still smaller than a patch is enlarged, keeping the aspect, until its shorter side equals `patch_size`.
    Raises ShardError for any other rule.
    """
    match = _RULE.fullmatch(rule)
    if match is None:
        raise ShardError(f"resize rule '{rule}': write none, exact:WIDTHxHEIGHT or short:PIXELS")
    if match["width"]:
        width, height = int(match["width"]), int(match["height"])
    elif match["short"]:
        width, height = _scaled_to_short_side(width, height, max(int(match["short"]), patch_size))
    if min(width, height) < patch_size:
        width, height = _scaled_to_short_side(width, height, patch_size)
    return width, height


def is_too_large(width: int, height: int) -> bool:
    """Whether an image of that size can be neither stored nor cut."""
    return max(width, height) > LONGEST_SIDE or 3 * width * height > _LARGEST_PLANE


def is_enlarged(width: int, height: int, stored_width: int, stored_height: int) -> bool:
    """Whether storing meant inventing pixels along either side, which images.csv records."""
    return stored_width > width or stored_height > height


def _scaled_to_short_side(width: int, height: int, pixels: int) -> tuple[int, int]:
    short = min(width, height)
    return max(pixels, round(width * pixels / short)), max(pixels, round(height * pixels / short))


def resize(pixels: np.ndarray | Image.Image, width: int, height: int) -> np.ndarray:
    """`pixels` (uint8 [h, w, 3], or a picture in RGB) at the given size: uint8 [height, width, 3].

    With Pillow's bilinear filter, as the HyperIQA authors resize; untouched when the size already fits.
    """
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if picture.size == (width, height):
        return np.asarray(pixels)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def patch_boxes(image_id: str, seed: int, width: int, height: int, patch_size: int, count: int) -> np.ndarray:
    """Upper left corners of `count` patches: uint16 [count, 2] of (y, x), uniform over the places that fit.

    Box k depends on (seed, image_id, k) and the size alone, so asking for more patches keeps the first ones.
    """
    corners = np.empty((count, 2), np.uint16)
    for k in range(count):
        digest = hashlib.blake2b(f"{seed}/{image_id}/{k}".encode(), digest_size=16).digest()
        for axis, length in enumerate((height, width)):
            fraction = int.from_bytes(digest[8 * axis : 8 * axis + 8], "big")
            corners[k, axis] = fraction * (length - patch_size + 1) >> 64
    return corners


def cut(canvas: np.ndarray, corners: np.ndarray, patch_size: int) -> np.ndarray:
    """The patches at `corners` ([n, 2] of (y, x)) of one image: uint8 [n, patch_size, patch_size, 3]."""
    return np.stack([canvas[y : y + patch_size, x : x + patch_size] for y, x in corners.astype(int)])
