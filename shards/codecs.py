"""How one stored plane becomes bytes, and the same plane again, to the last bit.

raw     the pixels as they are, in a member <id>.pixels.npy: nothing is cheaper where the disk is fast
zstd    <id>.pixels.zst, a zstd frame (RFC 8878) per plane, one after the other: for slow disks. Green, then red - green,
        then blue - green, each row less the row above it, in steps of 256. benchmarks/codecs.py says why this one

Where <id>.json says "codec": "zstd", these lines read a member in any language that has zstd, here in Python:

    frames = zstandard.ZstdDecompressor().stream_reader(member, read_across_frames=True).read()
    green, red, blue = np.frombuffer(frames, np.uint8).reshape(n, 3, height, width).cumsum(2, np.uint8).swapaxes(0, 1)
    pixels = np.stack([red + green, green, blue + green], -1)  # the shape [n, height, width, 3] is in <id>.json, too
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

_LEVEL = 1  # higher ones store hardly fewer bytes of a photograph, and take longer to write


@dataclass(frozen=True)
class Codec:
    """A lossless way to store planes, uint8 [height, width, 3].

    Attributes:
        name: on the command line and in the manifest.
        suffix: of the member that holds the planes of an image.
        head: what a member of the shape [planes, height, width, 3] begins with, before the first plane.
        encode: the bytes of a plane.
        decode: the plane of the given height and width. Raises ValueError for bytes that are no such plane, before it
            makes room for more than it was told to expect.
    """

    name: str
    suffix: str
    head: Callable[[Sequence[int]], bytes]
    encode: Callable[[np.ndarray], bytes | memoryview]
    decode: Callable[[bytes, int, int], np.ndarray]


def codec_versions(name: str) -> dict[str, str]:
    """Name and version of the library that decides the bytes of a codec: another one may pack the same pixels otherwise."""
    return {"zstd": ".".join(map(str, zstandard.ZSTD_VERSION))} if name == "zstd" else {}


def _npy_head(shape: Sequence[int]) -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)})
    return head.getvalue()


def _raw_bytes(plane: np.ndarray) -> memoryview:
    return plane.reshape(-1).data  # no copy: the pixels of a whole photograph pass here


def _raw_plane(content: bytes, height: int, width: int) -> np.ndarray:
    return np.frombuffer(content, np.uint8).reshape(height, width, 3)


def _zstd_frame(plane: np.ndarray) -> bytes:
    red, green, blue = np.moveaxis(plane, -1, 0)
    channels = np.stack([green, red - green, blue - green])
    channels[:, 1:] -= channels[:, :-1].copy()
    return zstandard.ZstdCompressor(_LEVEL).compress(channels.data)


def _zstd_plane(content: bytes, height: int, width: int) -> np.ndarray:
    try:
        promised = zstandard.get_frame_parameters(content).content_size
        if promised != 3 * height * width:
            raise ValueError(f"a frame of {promised} bytes where {3 * height * width} were expected")
        rows = np.frombuffer(zstandard.ZstdDecompressor().decompress(content, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    green, red, blue = np.add.accumulate(rows.reshape(3, height, width), axis=1, dtype=np.uint8)
    red += green
    blue += green
    return np.stack([red, green, blue], axis=-1)


CODECS = {
    codec.name: codec
    for codec in (
        Codec("raw", "npy", _npy_head, _raw_bytes, _raw_plane),
        Codec("zstd", "zst", lambda _: b"", _zstd_frame, _zstd_plane),
    )
}
