"""Reads a shard folder from end to end and names the first thing that is not as the manifest says."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.manifest import PARTS, ShardError, Shards, file_sha256


def check(folder: Path) -> Shards:
    """Verifies every byte of `folder` and returns it opened.

    Files against their SHA-256, every member against the index and the table, every plane against its checksum, every
    split against the ids. Raises ShardError naming the file, and the image where there is one.
    """
    shards = Shards(folder)
    for name, expected in (("index.npy", "index_sha256"), ("images.csv", "images_sha256")):
        if file_sha256(folder / name) != shards.manifest[expected]:
            raise ShardError(
                f"{folder / name}: was changed after it was written; run the same `python -m shards build` again in an empty folder"
            )
    rows = list(shards.image_rows())
    number = 0
    with tqdm(total=len(shards), unit=" images", desc="check", dynamic_ncols=True) as bar:
        for record in shards.files:
            path = folder / record["file"]
            intact = file_sha256(path) == record["sha256"]
            try:
                with tarfile.open(path) as tar:
                    for _ in range(record["images"]):
                        _check_image(tar, shards, number, rows[number], path)
                        number += 1
                        bar.update()
            except (tarfile.TarError, OSError, EOFError) as error:
                raise ShardError(
                    f"{path}: is no longer a readable tar file ({error}); delete it and run the same `python -m shards build` again"
                ) from error
            if not intact:
                raise ShardError(
                    f"{path}: a byte outside the pixels was changed (SHA-256 differs); delete it and run the same `python -m shards build` again"
                )
    for name in shards.split_names():
        shards.split(name)
    return shards


def describe(shards: Shards) -> str:
    """What a person wants to know of a shard folder, as aligned lines."""
    manifest, layout = shards.manifest, shards.layout
    total = sum(record["bytes"] for record in shards.files)
    opinions = shards.opinions
    lines = [
        ("data set", manifest["data_set"]),
        ("fingerprint", shards.fingerprint),
        ("label", str(shards.label)),
        ("images", f"{len(shards):,} ({manifest['enlarged']} enlarged to fit a patch)"),
        ("opinions", f"{opinions.min():.2f} to {opinions.max():.2f}, mean {opinions.mean():.2f}, std {opinions.std():.2f}"),
        (
            "patches",
            f"{layout.patches} per image of {layout.patch_size}x{layout.patch_size}, layout {layout.name}, resize {manifest['resize']['rule']}",
        ),
        ("shards", f"{len(shards.files)} files, {total / 2**20:,.1f} MiB"),
    ]
    for name in shards.split_names():
        _, parts = shards.split(name)
        lines.append((f"split {name}", ", ".join(f"{part} {len(parts[part]):,}" for part in PARTS)))
    width = max(len(title) for title, _ in lines)
    return "\n".join(f"{title:<{width}}  {text}" for title, text in lines)


def _check_image(tar: tarfile.TarFile, shards: Shards, number: int, row: dict[str, str], path: Path) -> None:
    image_id = row["id"]
    entry = shards.index[number]
    content = [_member(tar, f"{image_id}.{suffix}", path) for suffix in ("json", "pixels.npy")]
    try:
        said: dict[str, Any] = json.loads(content[0])
        pixels = np.load(io.BytesIO(content[1]), allow_pickle=False)
    except ValueError as error:
        raise ShardError(
            f"{path}: image '{image_id}' cannot be read ({error}); delete this shard and run the same `python -m shards build` again"
        ) from error
    agrees = (
        said["id"] == image_id
        and said["opinion"] == float(row["opinion"]) == entry["opinion"]
        and said["corners"] == entry["corners"].tolist()
    )
    if not agrees or [zlib.crc32(plane) for plane in pixels] != entry["checksums"].tolist():
        raise ShardError(
            f"{path}: image '{image_id}' is not what was written (checksum or opinion differs); delete this shard and run the same `python -m shards build` again"
        )


def _member(tar: tarfile.TarFile, name: str, path: Path) -> bytes:
    member = tar.next()
    file = tar.extractfile(member) if member is not None and member.name == name else None
    if file is None:
        raise ShardError(
            f"{path}: expected the member {name}, found {member.name if member else 'the end of the file'}; delete this shard and run the same `python -m shards build` again"
        )
    return file.read()
