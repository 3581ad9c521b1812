"""Who trains, who chooses, who judges: splits are tables over the ids, and the pixels are written once.

Images of one content (the group: a reference, a prompt, a photograph) always fall on one side. A numbered round orders
the groups by a hash of (seed, round, group) and cuts that order by image count, so it is the same on every machine.

Every split has a validation part. Where a protocol brings none (80/20, an official train and test) it is cut out of train, by
group, and a second table named `<name>-no-val` keeps the protocol as it is, for those who choose on test as the papers do.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from shards.datasets import Row
from shards.manifest import PARTS, ShardError
from shards.tables import csv_bytes

ROUNDS = 10  # the protocol of the field where no official split exists: the median over ten random ones
RATIO = "70/10/20"  # of the images, in percent
VALIDATION_SHARE = 0.125  # of the training images, where a protocol brings no validation part: 80/20 becomes 70/10/20
WITHOUT_VALIDATION = "-no-val"  # ends the name of a table without a validation part, and of no other
FEWEST = 3  # images in val or test: a rank correlation of two is always 1 or -1
ROUGH = 50  # over fewer images an SRCC of 0.8 has a 95 % interval wider than 0.2 (Fisher's z)


def all_splits(rows: Sequence[Row], seed: int, rounds: int | None = None, ratio: str = RATIO) -> dict[str, dict[str, str]]:
    """Every split of a data set, by name: the official one where the rows state it, and `rounds` numbered ones.

    Each is a mapping from id to train, val or test. Without a number of rounds: none beside an official split, else ten.
    Raises ShardError when some rows state a part and others do not, when a stated split has no training or test images,
    when a group is on two sides, or when there are under 3 groups.
    """
    stated = [row for row in rows if row.part]
    if 0 < len(stated) < len(rows):
        row = next(row for row in rows if not row.part)
        raise ShardError(f"image '{row.id}' has no part in the split column while others have one; state it for all images, or for none")
    if rounds is None:
        rounds = 0 if stated else ROUNDS
    return (stated_split("official", rows, seed) if stated else {}) | numbered_rounds(rows, seed, rounds, ratio)


def stated_split(name: str, rows: Sequence[Row], seed: int) -> dict[str, dict[str, str]]:
    """The split that the rows state. Where it has no val, one is cut out of train, and `<name>-no-val` is the split as stated."""
    return _named(name, _with_validation(rows, seed), any(row.part == "val" for row in rows))


def numbered_rounds(
    rows: Sequence[Row], seed: int, rounds: int = ROUNDS, ratio: str = RATIO, name: str = "round"
) -> dict[str, dict[str, str]]:
    """`rounds` random splits by group, `<name>-01` and on. A ratio of two numbers gives `<name>-01-no-val` and on as well."""
    splits: dict[str, dict[str, str]] = {}
    for number in range(1, rounds + 1):
        splits |= _named(f"{name}-{number:02d}", round_split(rows, number, seed, ratio), ratio.count("/") == 2)
    return splits


def round_split(rows: Sequence[Row], number: int, seed: int, ratio: str = RATIO) -> dict[str, str]:
    """Round `number` (from 1) of a random split by group, with about the shares of `ratio` of the images in each part."""
    shares = shares_of(ratio)
    return _cut(_shuffled_groups(rows, f"{seed}/{number}"), rows, {part: shares[part] for part in ("test", "val", "train")})


def shares_of(ratio: str) -> dict[str, float]:
    """The shares of train, val and test that '70/10/20' states, or '80/20', where val is cut out of train.

    Raises ShardError for anything else.
    """
    numbers: list[float] = [int(number) if number.isdecimal() else 0 for number in ratio.split("/")]
    if len(numbers) not in (2, 3) or min(numbers) < 1 or sum(numbers) != 100:
        raise ShardError(
            f"ratio '{ratio}': write the percentages of train and test, such as 80/20, or of train, val and test, such as {RATIO}, "
            f"each at least 1 and together 100"
        )
    if len(numbers) == 2:
        numbers = [numbers[0] * (1 - VALIDATION_SHARE), numbers[0] * VALIDATION_SHARE, numbers[1]]
    return {part: number / 100 for part, number in zip(PARTS, numbers, strict=True)}


def refuse_leaks(rows: Sequence[Row], parts: Mapping[str, str]) -> None:
    """Raises ShardError naming the first group that has images in two parts."""
    part_of_group: dict[str, str] = {}
    for row in rows:
        if part_of_group.setdefault(row.group, parts[row.id]) != parts[row.id]:
            place = f" ({row.where})" if row.where else ""
            raise ShardError(
                f"content '{row.group}' is in '{part_of_group[row.group]}' and, with image '{row.id}', in '{parts[row.id]}': "
                f"a model would be tested on a content it has trained on; put all its images in one part{place}"
            )


def what_to_know(rows: Sequence[Row], splits: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What a person must know of splits before trusting a figure, as sentences.

    What counts as a content, how many are in each part, from where a val part was cut, and which parts are small.
    """
    contents = list({row.group: row for row in rows}.values())
    sentences = (
        ["every image is taken as its own content: no two of them share a group"]
        if len(contents) == len(rows)
        else [f"{len(rows):,} images of {len(contents):,} contents, and every content is on one side of a split"]
    )
    names_of: dict[str, list[str]] = {}
    for name, parts in splits.items():
        if name.endswith(WITHOUT_VALIDATION) and name.removesuffix(WITHOUT_VALIDATION) in splits:
            continue
        images = Counter(parts[row.id] for row in rows)
        told = [f"{part} {count:,}" for part, count in _in_order(Counter(parts[row.id] for row in contents))]
        if len(contents) < len(rows):
            names_of.setdefault(f"contents {', '.join(told)}", []).append(name)
        if name + WITHOUT_VALIDATION in splits:
            cut = f"{images['val']:,} of {images['train'] + images['val']:,} training images were cut out as val"
            names_of.setdefault(f"{cut}; the same with '{WITHOUT_VALIDATION}' in its name keeps them in train", []).append(name)
        if images["train"] < max(images["val"], images["test"]):
            few = f"only {images['train']:,} of {images.total():,} images are in train"
            names_of.setdefault(f"{few}; one content is very large, unless the ratio says so", []).append(name)
        if small := [f"{part} {count}" for part, count in _in_order(images) if part != "train" and 0 < count < ROUGH]:
            names_of.setdefault(f"an SRCC over fewer than {ROUGH} images is rough ({', '.join(small)})", []).append(name)
    return sentences + [f"{_briefly(names)}: {told_once}" for told_once, names in names_of.items()]


def _briefly(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} ... {names[-1]} ({len(names):,} splits)"


def split_table(parts: Mapping[str, str]) -> bytes:
    """A split as a csv file with the columns id and part, sorted by id."""
    return csv_bytes([("id", "part"), *sorted(parts.items())])


def _named(name: str, parts: dict[str, str], brings_validation: bool) -> dict[str, dict[str, str]]:
    if brings_validation:
        return {name: parts}
    return {name: parts, name + WITHOUT_VALIDATION: {image: "train" if part == "val" else part for image, part in parts.items()}}


def _with_validation(rows: Sequence[Row], seed: int) -> dict[str, str]:
    """The parts that the rows state, with a validation part cut out of train by group where there is none."""
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


def _in_order(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(part, counts[part]) for part in PARTS]


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
    dealt = 0
    for parts_after, part in zip(range(len(shares) - 1, -1, -1), shares, strict=True):
        last = len(order) - parts_after  # every part after this one gets a group too
        wanted, taken = shares[part] * len(rows), 0
        while dealt < last and (parts_after == 0 or taken == 0 or taken + sizes[order[dealt]] / 2 <= wanted):
            part_of_group[order[dealt]] = part
            taken += sizes[order[dealt]]
            dealt += 1
    return {row.id: part_of_group[row.group] for row in rows}
