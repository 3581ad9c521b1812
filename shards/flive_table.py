"""pyiqa's table of FLIVE, meta_info_FLIVEDataset.csv: images, then patches, with their opinions and parts.

    img_name/patch_name,mos,split      or official_split; parts are train, val, test, or their numbers 0, 1, 2

An image and its patches are one content. A patch is called by the whole name of its picture: NAME.jpg_patch_2.jpg.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from shards.manifest import PARTS, ShardError
from shards.photographs import SUFFIXES
from shards.tables import Record

NAME = "meta_info_FLIVEDataset.csv"
IMAGE = "img_name/patch_name"  # its column, which no other table has
_OF_A_PATCH = re.compile(r"_patch_\d+\.\w+$")


def is_patch(name: str) -> bool:
    """Whether that is the name of a patch."""
    return bool(_OF_A_PATCH.search(name))


def content_of(name: str) -> str:
    """voc_emotic_ava/AVA__1.jpg and its patch patches/AVA__1.jpg_patch_2.jpg show the content AVA__1."""
    picture = _OF_A_PATCH.sub("", PurePosixPath(name).name)
    return PurePosixPath(picture).stem if PurePosixPath(picture).suffix.lower() in SUFFIXES else picture


def part_of(record: Record) -> str:
    """The part of a row. Raises ShardError when it has none."""
    column = "official_split" if "official_split" in record else "split"
    said = record[column]
    part = PARTS[int(said)] if said in ("0", "1", "2") else record.part(column)
    if part is None:
        raise ShardError(f"{record.where}, column {column}: is empty; download the table again")
    return part
