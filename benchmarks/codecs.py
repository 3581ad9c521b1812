"""Lossless codecs for stored planes, measured on real photographs: bytes, and planes per second and core.

    pip install qoi  # the one candidate that needs a package of its own
    python benchmarks/codecs.py

The planes are the 14 contents of the built-in demo as they are and after four distortions (JPEG, blur, noise, WebP): whole canvases
of 512x384, and patches of 224x224 cut from them. All candidates run in one process, one after the other, on the same planes;
every plane is decoded and compared. Seconds are those that the process was on a core, so that a busy machine changes little.
'at 100 MB/s' is what one core gets from a slow disk: the smaller of what it decodes and what the disk delivers.

Measured on 22 November 2026, on 2 cores that others used too, Python 3.11, Pillow 13.0, zstandard 0.25, qoi 0.8:

    70 patches of 224x224            KB  decode/s  encode/s  at 100 MB/s
    raw                           150.5   295,770   246,905          664
    PNG, level 1                   89.3       906       324          906
    PNG, level 6                   86.3     1,004       133        1,004
    WebP, method 0                 74.7     1,295       858        1,295
    WebP, method 4                 65.9     1,253        30        1,253
    QOI                           112.5     5,982     4,023          889
    zstd 1                        118.6    10,868     4,775          843
    zstd 1 of differences along    93.3     5,501     3,655        1,072
    zstd 1 of differences down     92.0     5,534     3,721        1,087
    zstd, shards/codecs.py         79.5     4,476     2,982        1,257
    70 canvases of 512x384           KB  decode/s  encode/s  at 100 MB/s
    raw                           589.8    57,644     8,594          170
    PNG, level 1                  336.8       247        83          247
    PNG, level 6                  323.6       271        33          271
    WebP, method 0                280.9       364       228          356
    WebP, method 4                248.5       363        15          363
    QOI                           426.2     1,578     1,053          235
    zstd 1                        457.4     2,968     1,214          219
    zstd 1 of differences along   353.4     1,579     1,019          283
    zstd 1 of differences down    348.7       867     1,027          287
    zstd, shards/codecs.py        296.2       894       806          338

The choice is zstd of differences down the rows, with green taken from red and blue: at 100 MB/s it gives twice what raw planes
give. Lossless WebP gives 3 to 7 percent more there, for a whole core where zstd takes a quarter of one (patches) or two fifths
(canvases), and training wants the rest; on a disk of 200 MB/s it gives half as much; and it is encoded 3.5 times slower, or 50
to 100 times with method 4. PNG is larger and slower than zstd, QOI much larger. Where the disk delivers 700 MB/s or more to each
core, raw gives the most.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from PIL import Image

from shards.codecs import CODECS
from shards.demo import CONTENTS, cut_content, distort

DISTORTIONS = (("jpeg", 3), ("gaussian_blur", 2), ("white_noise", 3), ("webp", 3))
DISK = 100e6  # bytes per second
ROUNDS = 3  # of which the fastest counts


@dataclass(frozen=True)
class Candidate:
    """A way to store a plane: how it is encoded, and decoded to the given height and width."""

    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, int, int], np.ndarray]


def main() -> None:
    canvases = [version for content in CONTENTS for version in versions(content)]
    draw = np.random.default_rng(0)
    corners = zip(draw.integers(0, 384 - 223, len(canvases)), draw.integers(0, 512 - 223, len(canvases)), strict=True)
    patches = [np.ascontiguousarray(canvas[y : y + 224, x : x + 224]) for canvas, (y, x) in zip(canvases, corners, strict=True)]
    for name, planes in (("patches of 224x224", patches), ("canvases of 512x384", canvases)):
        print(f"{len(planes)} {name:<24}{'KB':>8}{'decode/s':>10}{'encode/s':>10}{'at 100 MB/s':>13}")
        for candidate in candidates():
            size, encoded, decoded = measure(candidate, planes)
            print(
                f"{candidate.name:<27}{size / 1000:>8.1f}{decoded:>10,.0f}{encoded:>10,.0f}{min(decoded, DISK / size):>13,.0f}", flush=True
            )


def versions(content: str) -> list[np.ndarray]:
    """A content, and what the distortions make of it: uint8 [384, 512, 3] each."""
    pristine = cut_content(content)
    return [pristine, *(distort(pristine, name, level) for name, level in DISTORTIONS)]


def measure(candidate: Candidate, planes: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Bytes per plane, planes encoded per second, planes decoded per second."""
    began = time.process_time()
    stored = [candidate.encode(plane) for plane in planes]
    encoding = time.process_time() - began
    assert all(np.array_equal(candidate.decode(one, *plane.shape[:2]), plane) for one, plane in zip(stored, planes, strict=True))
    decoding = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for one, plane in zip(stored, planes, strict=True):
            candidate.decode(one, *plane.shape[:2])
        decoding.append(time.process_time() - began)
    return sum(map(len, stored)) / len(planes), len(planes) / encoding, len(planes) / min(decoding)


def candidates() -> list[Candidate]:
    """What is compared. A raw plane is copied once when it is decoded here: a view of the bytes would take no time at all."""
    return [
        Candidate("raw", np.ndarray.tobytes, lambda stored, *size: CODECS["raw"].decode(stored, *size).copy()),
        _pillow("PNG, level 1", "PNG", compress_level=1),
        _pillow("PNG, level 6", "PNG", compress_level=6),
        _pillow("WebP, method 0", "WEBP", lossless=True, quality=0, method=0),
        _pillow("WebP, method 4", "WEBP", lossless=True),
        *_qoi(),
        _zstd("zstd 1", lambda plane: plane, lambda rows: rows),
        _zstd("zstd 1 of differences along", _along, lambda rows: np.add.accumulate(rows, axis=1, dtype=np.uint8)),
        _zstd("zstd 1 of differences down", _down, lambda rows: np.add.accumulate(rows, axis=0, dtype=np.uint8)),
        Candidate("zstd, shards/codecs.py", CODECS["zstd"].encode, CODECS["zstd"].decode),
    ]


def _pillow(name: str, form: str, **options: Any) -> Candidate:
    def encode(plane: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(plane).save(stream, form, **options)
        return stream.getvalue()

    return Candidate(name, encode, lambda stored, *_: np.asarray(Image.open(io.BytesIO(stored))))


def _qoi() -> list[Candidate]:
    try:
        import qoi
    except ImportError:
        print("QOI is left out: pip install qoi")
        return []
    return [Candidate("QOI", lambda plane: bytes(qoi.encode(plane)), lambda stored, *_: qoi.decode(stored))]


def _zstd(name: str, forth: Callable[[np.ndarray], np.ndarray], back: Callable[[np.ndarray], np.ndarray]) -> Candidate:
    """Level 1 of `forth` of a plane, which `back` undoes."""
    return Candidate(
        name,
        lambda plane: zstandard.ZstdCompressor(1).compress(forth(plane).tobytes()),
        lambda stored, *size: back(np.frombuffer(zstandard.ZstdDecompressor().decompress(stored), np.uint8).reshape(*size, 3)),
    )


def _along(plane: np.ndarray) -> np.ndarray:
    differences = plane.copy()
    differences[:, 1:] -= plane[:, :-1]
    return differences


def _down(plane: np.ndarray) -> np.ndarray:
    differences = plane.copy()
    differences[1:] -= plane[:-1]
    return differences


if __name__ == "__main__":
    main()
