"""Who trains, who chooses, who judges: splits are tables over the ids, and the pixels are written once.

Images of one content (the group: a reference, a prompt, a photograph) always fall on one side. A numbered round orders
the groups by a hash of (seed, round, group) and cuts that order by image count, so it is the same on every machine.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence

from shards.datasets import Row
from shards.manifest import PARTS, ShardError

ROUNDS = 10  # the protocol of the field where no official split exists: the median over ten random ones
RATIO = (70, 10, 20)
VALIDATION_SHARE = 0.125  # of the training images, where an official split brings no validation part


def all_splits(rows: Sequence[Row], seed: int) -> dict[str, dict[str, str]]:
    """Every split of a data set, by name: the official one where the rows state it, else ten numbered rounds.

    Each is a mapping from id to train, val or test. Raises ShardError when some rows state a part and others do not,
    when a stated split has no training or test images, when a group is on two sides, or when there are under 3 groups.
    """
    stated = [row for row in rows if row.part]
    if not stated:
        return {f"round-{number:02d}": round_split(rows, number, seed) for number in range(1, ROUNDS + 1)}
    if len(stated) < len(rows):
        row = next(row for row in rows if not row.part)
        raise ShardError(f"image '{row.id}' has no part in the split column while others have one; state it for all images, or for none")
    return {"official": official_split(rows, seed)}


def official_split(rows: Sequence[Row], seed: int) -> dict[str, str]:
    """The split that the rows state, with a validation part cut out of train by group where it brings none."""
    parts = {row.id: str(row.part) for row in rows}
    for part in ("train", "test"):
        if part not in parts.values():
            raise ShardError(
                f"the split column has no image in '{part}'; a split needs train and test images (val is cut out of train if it is missing)"
            )
    refuse_leaks(rows, parts)
    if "val" not in parts.values():
        training = [row for row in rows if row.part == "train"]
        order = _shuffled_groups(training, f"{seed}/validation")
        parts.update(_cut(order, training, {"val": VALIDATION_SHARE, "train": 1 - VALIDATION_SHARE}))
    return parts


def round_split(rows: Sequence[Row], number: int, seed: int, ratio: tuple[int, int, int] = RATIO) -> dict[str, str]:
    """Round `number` (from 1) of a random split by group, with about `ratio` percent of the images in each part."""
    shares = {part: percent / sum(ratio) for part, percent in zip(PARTS, ratio, strict=True)}
    order = _shuffled_groups(rows, f"{seed}/{number}")
    return _cut(order, rows, {part: shares[part] for part in ("test", "val", "train")})


def refuse_leaks(rows: Sequence[Row], parts: Mapping[str, str]) -> None:
    """Raises ShardError naming the first group that has images in two parts."""
    part_of_group: dict[str, str] = {}
    for row in rows:
        if part_of_group.setdefault(row.group, parts[row.id]) != parts[row.id]:
            raise ShardError(
                f"content '{row.group}' is in '{part_of_group[row.group]}' and, with image '{row.id}', in '{parts[row.id]}': "
                f"a model would be tested on a content it has trained on; put all its images in one part"
            )


def split_table(parts: Mapping[str, str]) -> bytes:
    """A split as a csv file with the columns id and part, sorted by id."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "part"])
    writer.writerows(sorted(parts.items()))
    return table.getvalue().encode()


def _shuffled_groups(rows: Sequence[Row], key: str) -> list[str]:
    return sorted({row.group for row in rows}, key=lambda group: hashlib.sha256(f"{key}/{group}".encode()).digest())


def _cut(order: Sequence[str], rows: Sequence[Row], shares: Mapping[str, float]) -> dict[str, str]:
    """Deals the groups in `order` to the parts of `shares`, in that order, each filled to the nearest image count."""
    if len(order) < len(shares):
        raise ShardError(
            f"{len(order)} content(s) cannot be cut into {', '.join(shares)}: a split by content needs at least {len(shares)}; "
            f"add images, or state the parts in a split column"
        )
    sizes = Counter(row.group for row in rows)
    part_of_group: dict[str, str] = {}
    names = list(shares)
    waiting = list(order)
    for position, part in enumerate(names):
        wanted, taken = shares[part] * len(rows), 0
        parts_after = len(names) - position - 1
        while waiting and (parts_after == 0 or taken == 0 or (len(waiting) > parts_after and taken + sizes[waiting[0]] / 2 <= wanted)):
            group = waiting.pop(0)
            part_of_group[group] = part
            taken += sizes[group]
    return {row.id: part_of_group[row.group] for row in rows}
