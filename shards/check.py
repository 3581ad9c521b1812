"""Reads a shard folder from end to end and names the first thing that is not as the manifest says."""

from __future__ import annotations

import json
import tarfile
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np

from shards.codecs import CODECS
from shards.manifest import BUILD_AGAIN, PARTS, ShardError, Shards, file_sha256
from shards.progress import progress_bar

_REWRITE = f"delete this shard and {BUILD_AGAIN}"


def check(folder: str | Path) -> Shards:
    """Verifies every byte of `folder` and returns it opened.

    Files against their SHA-256, every member against the index and the table, every plane against its checksum, every
    split against the ids. Raises ShardError naming the file, and the image where there is one.
    """
    shards = Shards(folder)
    rows = shards.image_rows()
    shards._unchanged("index.npy", shards.manifest["index_sha256"])  # opening verifies no more of it than what is used
    number = 0
    with progress_bar("check", len(shards)) as bar:
        for shard, record in enumerate(shards.files):
            path = shards.where(record["file"])
            try:
                with shards.whole_shard(shard) as file, tarfile.open(file, "r:") as tar:
                    intact = file_sha256(file) == record["sha256"]
                    for _ in range(record["images"]):
                        _check_image(tar, shards, number, next(rows), path)
                        number += 1
                        bar.update()
            except OSError as error:  # the disk or the right to read it: no reason to delete anything
                raise ShardError(
                    f"{path}: cannot be read ({error.strerror or error}); see that the disk is there, then check again"
                ) from error
            except (tarfile.TarError, EOFError, UnicodeDecodeError) as error:
                raise ShardError(f"{path}: is no longer a readable tar file ({error}); {_REWRITE}") from error
            if not intact:
                raise ShardError(f"{path}: a byte outside the pixels was changed (its SHA-256 is another); {_REWRITE}")
    for name in shards.split_names():
        shards.split(name)
    return shards


def describe(shards: Shards) -> str:
    """What a person wants to know of a shard folder, as aligned lines."""
    manifest, layout, opinions = shards.manifest, shards.layout, shards.opinions
    total = sum(record["bytes"] for record in shards.files)
    size = f"{layout.patch_size}x{layout.patch_size}"
    lines = [
        ("data set", manifest["data_set"]),
        ("fingerprint", shards.fingerprint),
        ("label", str(shards.label)),
        ("images", f"{len(shards):,}, {manifest['enlarged']:,} of them enlarged"),
        ("opinions", f"{opinions.min():.2f} to {opinions.max():.2f}, mean {opinions.mean():.2f}, std {opinions.std():.2f}"),
        ("patches", f"{layout.patches} per image of {size}, layout {layout.name}, resize {manifest['resize']['rule']}"),
        ("shards", f"{len(shards.files)} files, {total / 2**20:,.1f} MiB, codec {layout.codec}"),
    ]
    for name in shards.split_names():
        _, parts = shards.split(name)
        lines.append((f"split {name}", ", ".join(f"{part} {len(parts[part]):,}" for part in PARTS)))
    width = max(len(title) for title, _ in lines)
    return "\n".join(f"{title:<{width}}  {text}" for title, text in lines)


def _check_image(tar: tarfile.TarFile, shards: Shards, number: int, row: dict[str, str], path: str) -> None:
    """The two members of one image. Reads their bytes as they lie: a damaged header must not decide how the rest is read."""
    image_id, entry, codec = row["id"], shards.row(number), CODECS[shards.layout.codec]
    _, said = _member(tar, f"{image_id}.json", path)
    offset, member = _member(tar, f"{image_id}.pixels.{codec.suffix}", path)
    ends = int(entry["offset"]) - offset + np.cumsum([0, *entry["lengths"].tolist()])
    planes = [member[start:end] for start, end in pairwise(ends.tolist())]
    try:
        if len(member) != ends[-1] or [zlib.crc32(plane) for plane in planes] != entry["checksums"].tolist():
            raise ValueError("a checksum differs")
        for plane in planes:
            codec.decode(plane, int(entry["height"]), int(entry["width"]))
    except ValueError as error:
        raise ShardError(f"{path}: the pixels of image '{image_id}' are not what was written ({error}); {_REWRITE}") from error
    if (shards.ids[number], shards.opinions[number]) != (image_id, float(row["opinion"])):
        raise ShardError(f"{shards.folder}: images.csv, ids.npy and opinions.npy disagree about image '{image_id}'; {BUILD_AGAIN}")
    if not _says(said, row, entry, shards.layout.codec):
        raise ShardError(f"{path}: {image_id}.json does not say what images.csv and index.npy say; {_REWRITE}")


def _says(said: bytes, row: dict[str, str], entry: np.void, codec: str) -> bool:
    try:
        record = json.loads(said)
    except ValueError:
        return False
    shape = [len(entry["lengths"]), int(entry["height"]), int(entry["width"]), 3]
    expected = {"id": row["id"], "opinion": float(row["opinion"]), "group": row["group"], "corners": entry["corners"].tolist()}
    expected |= {"codec": codec, "shape": shape}
    return isinstance(record, dict) and all(record.get(key) == value for key, value in expected.items())


def _member(tar: tarfile.TarFile, name: str, path: str) -> tuple[int, bytes]:
    """The offset and the bytes of the next member, which must be called `name`."""
    member = tar.next()
    # A link, or a file with holes, may be endlessly more than the bytes that lie there.
    plain = member is not None and member.name == name and member.isreg() and not member.issparse()
    file = tar.extractfile(member) if member is not None and plain else None
    if member is None or file is None:
        raise ShardError(f"{path}: expected the member {name}, found {_called(member)}; {_REWRITE}")
    return member.offset_data, file.read()


def _called(member: tarfile.TarInfo | None) -> str:
    if member is None:
        return "the end of the file"
    return member.name if member.isreg() and not member.issparse() else f"{member.name}, which is no plain file"
