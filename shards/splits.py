"""Who trains, who chooses, who judges: splits are tables over the ids, and the pixels are written once.

Images of one content (the group: a reference, a prompt, a photograph) always fall on one side. A numbered round orders
the groups by a hash of (seed, round, group) and cuts that order by image count, so it is the same on every machine.

A split is an array, uint8 [images] in the order of the rows, of what manifest.part_number says of train, val, test and none.

Every split has a validation part. Where a protocol brings none (80/20, an official train and test) it is cut out of train, by
group, and a second table named `<name>-no-val` keeps the protocol as it is, for those who choose on test as the papers do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from shards.manifest import PARTS, ShardError, part_number
from shards.rows import Row, Rows
from shards.tables import csv_pieces

ROUNDS = 10  # the protocol of the field where no official split exists: the median over ten random ones
RATIO = "70/10/20"  # of the images, in percent
VALIDATION_SHARE = 0.125  # of the training images, where a protocol brings no validation part: 80/20 becomes 70/10/20
WITHOUT_VALIDATION = "-no-val"  # ends the name of a table without a validation part, and of no other
FEWEST_IMAGES = 3  # images in val or test: a rank correlation of two is always 1 or -1
FEW_IMAGES = 50  # over fewer images an SRCC of 0.8 has a 95 % interval wider than 0.2 (Fisher's z)
_TRAIN, _VAL, _TEST, _NONE = map(part_number, (*PARTS, None))


def all_splits(rows: Rows, seed: int, rounds: int | None = None, ratio: str = RATIO) -> dict[str, np.ndarray]:
    """Every split of a data set, by name: the official one where the rows state it, and `rounds` numbered ones.

    Without a number of rounds: none beside an official split, else ten.
    Raises ShardError when some rows state a part and others do not, when a stated split has no training or test images,
    when a group is on two sides, or when there are under 3 groups.
    """
    without = np.flatnonzero(rows.parts() == _NONE)
    stated = len(without) < len(rows)
    if stated and len(without):
        row = rows[int(without[0])]
        raise ShardError(
            f"image '{row.id}' has no part in the split column while others have one; state it for all images, or for none{_place(row)}"
        )
    if rounds is None:
        rounds = 0 if stated else ROUNDS
    return (stated_split("official", rows, seed) if stated else {}) | numbered_rounds(rows, seed, rounds, ratio)


def stated_split(name: str, rows: Rows, seed: int) -> dict[str, np.ndarray]:
    """The split that the rows state. Where it has no val, one is cut out of train, and `<name>-no-val` is the split as stated."""
    stated = rows.parts()
    for part in (_TRAIN, _TEST):
        if not (stated == part).any():
            raise ShardError(
                f"the split column has no image in '{PARTS[part]}'; "
                f"a split needs train and test images (val is cut out of train if it is missing)"
            )
    refuse_leaks(rows, stated)
    if (stated == _VAL).any():
        return {name: stated}
    return _named(name, _with_validation(rows, stated, seed), False)


def numbered_rounds(rows: Rows, seed: int, rounds: int = ROUNDS, ratio: str = RATIO, name: str = "round") -> dict[str, np.ndarray]:
    """`rounds` random splits by group, `<name>-01` and on. A ratio of two numbers gives `<name>-01-no-val` and on as well."""
    splits: dict[str, np.ndarray] = {}
    for number in range(1, rounds + 1):
        splits |= _named(f"{name}-{number:02d}", round_split(rows, number, seed, ratio), ratio.count("/") == 2)
    return splits


def round_split(rows: Rows, number: int, seed: int, ratio: str = RATIO) -> np.ndarray:
    """Round `number` (from 1) of a random split by group, with about the shares of `ratio` of the images in each part."""
    shares = shares_of(ratio)
    wanted = {part: shares[part] * len(rows) for part in ("test", "val", "train")}
    part_of = _dealt(rows.shuffled_contents(f"{seed}/{number}"), rows.num_contents, wanted, rows.num_contents)
    parts: np.ndarray = part_of[rows.contents]
    return parts


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


def refuse_leaks(rows: Rows, parts: np.ndarray) -> None:
    """Raises ShardError naming the first group that has images in two parts."""
    first = np.empty(rows.num_contents, parts.dtype)
    first[rows.contents[::-1]] = parts[::-1]  # the first image of a content is written last
    leaking = np.flatnonzero(first[rows.contents] != parts)
    if len(leaking):
        number = int(leaking[0])
        row, one, other = rows[number], PARTS[first[rows.contents[number]]], PARTS[parts[number]]
        raise ShardError(
            f"content '{row.group}' is in '{one}' and, with image '{row.id}', in '{other}': "
            f"a model would be tested on a content it has trained on; put all its images in one part{_place(row)}"
        )


def _place(row: Row) -> str:
    return f" ({row.where})" if row.where else ""


def part_counts(parts: np.ndarray) -> dict[str, int]:
    """How many of `parts` are train, val and test."""
    return dict(zip(PARTS, np.bincount(parts, minlength=len(PARTS)).tolist(), strict=False))  # those in none come last


def what_to_know(rows: Rows, splits: Mapping[str, np.ndarray]) -> list[str]:
    """What a person must know of splits before trusting a figure, as sentences.

    What counts as a content, how many are in each part, from where a val part was cut, and which parts are small.
    """
    own = rows.num_contents == len(rows)
    sentences = (
        ["every image is taken as its own content: no two of them share a group"]
        if own
        else [f"{len(rows):,} images of {rows.num_contents:,} contents, and every content is on one side of a split"]
    )
    names_of: dict[str, list[str]] = {}
    for name, parts in splits.items():
        if name.endswith(WITHOUT_VALIDATION) and name.removesuffix(WITHOUT_VALIDATION) in splits:
            continue
        images = part_counts(parts)
        if not own:
            told = [f"{part} {count:,}" for part, count in part_counts(rows.of_each_content(parts)).items()]
            names_of.setdefault(f"contents {', '.join(told)}", []).append(name)
        if name + WITHOUT_VALIDATION in splits:
            cut = f"{images['val']:,} of {images['train'] + images['val']:,} training images were cut out as val"
            names_of.setdefault(f"{cut}; the same with '{WITHOUT_VALIDATION}' in its name keeps them in train", []).append(name)
        if images["train"] < max(images["val"], images["test"]):
            few = f"only {images['train']:,} of {sum(images.values()):,} images are in train"
            names_of.setdefault(f"{few}; one content is very large, unless the ratio says so", []).append(name)
        if fewest := [f"{part} {count}" for part, count in images.items() if part != "train" and 0 < count < FEWEST_IMAGES]:
            useless = f"under {FEWEST_IMAGES} images have no SRCC, and no run takes such a split ({', '.join(fewest)})"
            names_of.setdefault(f"{useless}; make others with `python -m shards split`, or add images", []).append(name)
        elif small := [f"{part} {count}" for part, count in images.items() if part != "train" and 0 < count < FEW_IMAGES]:
            names_of.setdefault(f"an SRCC over fewer than {FEW_IMAGES} images is rough ({', '.join(small)})", []).append(name)
    return sentences + [f"{briefly(names)}: {told_once}" for told_once, names in names_of.items()]


def briefly(names: Sequence[str]) -> str:
    """The names of splits; of many how many they are, the first two, and the last."""
    return ", ".join(names) if len(names) <= 3 else f"{len(names):,} splits ({names[0]}, {names[1]}, ..., {names[-1]})"


def split_table(ids: Iterable[str], parts: np.ndarray) -> Iterator[bytes]:
    """A split as a csv file with the columns id and part, piece by piece; `ids` are in ascending order."""
    rows = ((image, PARTS[part]) for image, part in zip(ids, parts.tobytes(), strict=True) if part != _NONE)
    return csv_pieces(chain([("id", "part")], rows))


def _named(name: str, parts: np.ndarray, brings_validation: bool) -> dict[str, np.ndarray]:
    if brings_validation:
        return {name: parts}
    return {name: parts, name + WITHOUT_VALIDATION: np.where(parts == _VAL, np.uint8(_TRAIN), parts)}


def _with_validation(rows: Rows, stated: np.ndarray, seed: int) -> np.ndarray:
    """The stated parts, with a validation part cut out of train by group."""
    in_train = rows.of_each_content(stated) == _TRAIN
    training = ((content, images) for content, images in rows.shuffled_contents(f"{seed}/validation") if in_train[content])
    images = int((stated == _TRAIN).sum())
    wanted = {"val": VALIDATION_SHARE * images, "train": (1 - VALIDATION_SHARE) * images}
    cut = _dealt(training, int(in_train.sum()), wanted, rows.num_contents)[rows.contents]
    return np.where(cut == _NONE, stated, cut)


def _dealt(order: Iterable[tuple[int, int]], number: int, wanted: Mapping[str, float], num_contents: int) -> np.ndarray:
    """Deals the `number` contents in `order`, each with its images, to the parts of `wanted`, in that order, each filled to the nearest
    image count. Returns the part of each of all contents, none for those that are not dealt: uint8 [num_contents]."""
    if number < len(wanted):
        raise ShardError(
            f"{number} content(s) cannot be cut into {', '.join(wanted)}: a split by content needs at least {len(wanted)}; "
            f"add images, or state the parts in a split column"
        )
    part_of = bytearray([_NONE]) * num_contents
    parts = [(part_number(part), images) for part, images in wanted.items()]
    part, enough = parts.pop(0)
    taken = 0
    for left, (content, images) in zip(range(number, 0, -1), order, strict=True):
        if parts and taken and (left <= len(parts) or taken + images / 2 > enough):  # every part gets a content
            part, enough = parts.pop(0)
            taken = 0
        part_of[content] = part
        taken += images
    return np.frombuffer(part_of, np.uint8)
