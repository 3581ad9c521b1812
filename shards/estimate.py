"""What a build would take on the disk, in either layout and with every codec, before anything is written.

Raw pixels follow from the picture headers. What a codec makes of them, and what the tar file adds, is measured on some of
the images, which are encoded here and thrown away.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shards.codecs import CODECS
from shards.manifest import Layout
from shards.plan import Picture, Plan, dealt
from shards.shard_file import image_record

SAMPLE = 16  # images; the middles of as many equal pieces of the table
_SHARD_END = 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE // 2  # bytes: two empty blocks, and half of what a tar file is filled up to


def estimate(plan: Plan, out: Path) -> str:
    """A table of bytes and shards per layout and codec, and the free space where `out` would lie. Writes nothing.

    Raises ShardError when a picture of the sample cannot be decoded.
    """
    pictures, number = plan.pictures, min(SAMPLE, len(plan.pictures))
    sample = [pictures[(2 * k + 1) * len(pictures) // (2 * number)] for k in range(number)]
    lines, needed = [f"{'layout':<9} {'codec':<6} {'bytes':>19} {'MiB':>14} {'shards':>8}"], 0
    for name in ("canvas", "patches"):
        layout = replace(plan.layout, name=name)
        raw = sum(pictures.bytes_in(layout))
        shards = sum(1 for _ in dealt(pictures.bytes_in(layout), plan.settings.shard_bytes))
        for codec, (packed, beside) in _measured(layout, sample, plan.settings.seed).items():
            size = round(raw * packed + len(pictures) * beside + shards * _SHARD_END)
            chosen = replace(layout, codec=codec) == plan.layout
            needed = size if chosen else needed
            lines.append(f"{name:<9} {codec:<6} {size:>19,} {size / 2**20:>14,.1f} {shards:>8,}{'  <- this command' if chosen else ''}")
    disk = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(disk).free
    fits = "enough for this command" if needed < free else f"{(needed - free) / 2**20:,.1f} MiB too little for this command"
    return "\n".join(
        [
            *lines,
            f"estimated from {number} of {len(pictures):,} images, evenly spaced, which were encoded here and thrown away",
            f"free in {disk}: {free / 2**20:,.1f} MiB, {fits}; nothing was written",
        ]
    )


def _measured(layout: Layout, sample: Sequence[Picture], seed: int) -> dict[str, tuple[float, float]]:
    """For each codec, over the sample: bytes per byte of raw pixels, and how many more each image takes in a tar file."""
    raw, packed, beside = 0, Counter[str](), Counter[str]()
    for picture in sample:
        record, pixels = image_record(picture, layout, seed)
        raw += pixels.nbytes
        for codec in CODECS.values():
            planes = sum(len(codec.encode(plane)) for plane in pixels)
            packed[codec.name] += planes
            beside[codec.name] += _in_tar(len(json.dumps(record))) + _in_tar(len(codec.head(pixels.shape)) + planes) - planes
    return {name: (packed[name] / raw, beside[name] / len(sample)) for name in CODECS}


def _in_tar(length: int) -> int:
    """Bytes of a member: a header of a block, and the content filled up to whole blocks."""
    return tarfile.BLOCKSIZE + length + -length % tarfile.BLOCKSIZE
