"""What the table of a data set tells before a picture is opened: counts, the label, the opinions, groups and parts.

Most checks are here because a distributed table, or somebody's copy of it, is known to go wrong in that way.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

from shards.adapters import ADAPTERS, Adapter
from shards.adapters.authentic import AUTHENTIC
from shards.datasets import DataSet
from shards.findings import Finding, places
from shards.manifest import PARTS, ShardError, part_number
from shards.plan import Settings
from shards.rows import Row, Rows
from shards.splits import FEW_IMAGES, FEWEST_IMAGES, RATIO, WITHOUT_VALIDATION, all_splits, briefly, part_counts

_DISTORTED = re.compile(r"(?P<content>.+)(?P<mark>[._-])(?P<distortion>.+?)(?P=mark)0?(?P<level>[1-9]|10)")
_PIECES = ("patch", "crop")  # numbered pieces of a picture are no distortions
_WITHOUT_SERIES = frozenset(adapter.name for adapter in AUTHENTIC)
_NAMES = {name.replace("_", ""): name for name in ADAPTERS} | {"liveiqa": "live", "livechallenge": "livec"}  # as pyiqa calls them
_LISTS_WITH_FAULTS = {
    ("live", 982): "203 of the 982 rows of LIVE are its references (Q-Align's live.json has them): leave out the rows with orgs = 1",
    ("csiq", 750): "Q-Align's csiq.json lacks the blurred images, and its contrast rows repeat the DMOS of the noise rows",
    ("livec", 1169): "7 of the 1,169 rows are the training images that raters practised on: leave them out",
}


@dataclass(frozen=True)
class Series:
    """The levels 1, 2 ... of one distortion of one content, known by the names of the files."""

    content: str
    distortion: str
    rows: tuple[Row, ...]  # mildest first


def table_findings(data_set: DataSet, ratio: str = RATIO) -> Iterator[Finding]:
    """All that there is to say of the rows of a data set, whose numbered rounds will be of that ratio."""
    before, after = (_counts, _label, _opinions, _deviations, _direction, _copied_opinions, _groups), (_known_traps,)
    yield from chain.from_iterable(check(data_set) for check in before)
    yield from _parts(data_set, ratio)
    yield from chain.from_iterable(check(data_set) for check in after)


def _counts(data_set: DataSet) -> Iterator[Finding]:
    known = known_as(data_set)
    images, contents = len(data_set.rows) + data_set.left_out, len({row.group for row in data_set.rows})
    if known and images != known.images:
        fault = _LISTS_WITH_FAULTS.get(
            (known.name, images), "take the complete data set; if it is another one, give it and its table other names"
        )
        yield Finding("error", f"{images:,} images", f"{known.images:,}, which is {known.title} as published", fault)
    elif known and known.contents and contents != known.contents and not data_set.left_out:
        yield Finding(
            "warning",
            f"{contents:,} contents",
            f"{known.contents:,}, as {known.title} was published",
            "see that file names were not changed",
        )
    stated = Counter(row.part for row in data_set.rows)
    parts = tuple(stated[part] for part in PARTS)
    if known and known.parts[1:2] == (0,):  # published without the number of val, which is of train
        parts = (parts[0] + parts[1], 0, parts[2])
    if known and len(data_set.rows) == known.images and any(parts) and known.parts not in ((), parts):
        yield Finding(
            "warning",
            f"an official split of {_told(parts)} images",
            f"{_told(known.parts)}, as {known.title} was published",
            "take the split from the file that the makers distribute",
        )


def _told(parts: Sequence[int]) -> str:
    return ", ".join(f"{part} {number:,}" for part, number in zip(PARTS, parts, strict=True))


def _label(data_set: DataSet) -> Iterator[Finding]:
    label, known = data_set.label, known_as(data_set)
    opinions = _opinions_of(data_set)
    if turned := turned_round(data_set):
        yield Finding("error", *turned)
    if known and not any(_within(opinions, each.low, each.high) for each in known.labels):
        yield Finding(
            "error",
            f"opinions from {opinions.min():g} to {opinions.max():g}",
            " or ".join(str(each) for each in known.labels),
            "find out what was done to the opinions; use the file that the makers distribute",
        )
    if label.low is None or label.high is None:
        yield Finding("note", "the scale is not stated", "the ends of the scale that people rated on", "give --range LOW HIGH")
    elif doubt := label.doubt(opinions.min(), opinions.max()):
        yield Finding("warning", doubt, "opinions that use the scale that people rated on", "give --range the ends of that scale")


def _opinions(data_set: DataSet) -> Iterator[Finding]:
    rows, opinions = data_set.rows, _opinions_of(data_set)
    values, counts = np.unique(opinions, return_counts=True)
    for end in (0, -1):  # references rated along with their distortions all get the best value there is
        if len(values) > len(rows) / 2 and counts[end] >= max(20, len(rows) / 10):
            same = [row.file.name for row in rows if row.opinion == values[end]]
            yield Finding(
                "warning",
                f"{counts[end]:,} images share the opinion {values[end]:g}, an end of the scale, and hardly two others share one",
                "no reference rows: LIVE release 2 has 203 among its 982, marked by orgs = 1",
                "if they are the undistorted references, take out their rows",
                places(same),
            )
    stated = {part: np.array([row.opinion for row in rows if row.part == part]) for part in PARTS}
    spans = [(part, *np.percentile(some, [5, 95])) for part, some in stated.items() if len(some) >= 10]
    disjoint = [(one, other) for one, other in combinations(spans, 2) if one[2] < other[1] or other[2] < one[1]]
    if disjoint:
        (one, low, high), (other, other_low, other_high) = disjoint[0]
        yield Finding(
            "error",
            f"nine of ten opinions lie between {low:g} and {high:g} in {one}, between {other_low:g} and {other_high:g} in {other}",
            "one label for all parts (KonIQ-10k has two, MOS_zscore and MOS, which also rank differently)",
            "take all opinions from one column of one file",
        )


def _deviations(data_set: DataSet) -> Iterator[Finding]:
    label = data_set.label
    rated = [(row.opinion, row.std) for row in data_set.rows if row.std is not None]
    if not rated or label.low is None or label.high is None:
        return
    mean, std = np.array(rated).T
    span = label.high - label.low
    largest = np.sqrt(np.maximum(0, (label.high - mean) * (mean - label.low)))  # Bhatia and Davis 2000: no ratings spread further
    to_do = "state the standard deviation of the single ratings, on the scale of the opinion, or leave the column out"
    if (impossible := int((std > largest + 0.01 * span).sum())) > len(std) / 10:  # a few opinions are scaled past the ends
        yield Finding(
            "warning",
            f"{impossible:,} of {len(std):,} values of std are larger than ratings from {label.low:g} to {label.high:g} can spread",
            "a standard deviation, not a variance",
            to_do,
        )
    elif np.median(std) < 0.01 * span:
        yield Finding(
            "warning",
            f"the median of std is {np.median(std):g} on a scale of {label.low:g} to {label.high:g}",
            "deviations on the scale of the opinion (KonIQ-10k's SD is of ratings from 1 to 5, whatever the MOS beside it)",
            to_do,
        )


def _direction(data_set: DataSet) -> Iterator[Finding]:
    label = data_set.label
    series = _series(data_set)
    sign = 1 if label.higher_is_better else -1
    better = [sign * each.rows[0].opinion > sign * each.rows[-1].opinion for each in series]
    share = sum(better) / len(better) if len(better) >= 20 else None
    says_lower = "dmos" in label.name.lower()
    if share is not None and share <= 0.25:
        yield Finding(
            "error",
            f"in {1 - share:.0%} of {len(series):,} distortion series the strongest level has the better opinion, by the label {label}",
            "milder levels rated better than strong ones",
            "leave out --lower-is-better" if not label.higher_is_better else "give --lower-is-better",
        )
    elif says_lower == label.higher_is_better and ("mos" in label.name.lower()):
        sure = known_as(data_set) is not None or (share is not None and share >= 0.75)
        yield Finding(
            "note" if sure else "warning",
            f"the label {label}",
            "by its name, lower is better" if says_lower else "by its name, higher is better",
            "nothing: the levels in the file names, or what is known of the set, agree with the label"
            if sure
            else "look at a good and a bad picture and their opinions (KADID-10k's dmos is higher better)",
        )


def _copied_opinions(data_set: DataSet) -> Iterator[Finding]:
    series = _series(data_set)
    if len({row.opinion for each in series for row in each.rows}) < 20:
        return  # whole numbers repeat by themselves
    opinions_of = {(each.content, each.distortion): [row.opinion for row in each.rows] for each in series}
    contents, distortions = (sorted({key[place] for key in opinions_of}) for place in (0, 1))
    for one, other in combinations(distortions, 2):
        pairs = [(opinions_of.get((content, one)), opinions_of.get((content, other))) for content in contents]
        same = sum(first == second for first, second in pairs if first)
        if same > len(contents) / 2:
            yield Finding(
                "error",
                f"for {same:,} of {len(contents):,} contents the opinions of {other} are exactly those of {one}",
                "opinions of their own (in Q-Align's csiq.json the contrast rows repeat those of the noise)",
                "take the opinions from the file that the makers distribute",
            )


def _groups(data_set: DataSet) -> Iterator[Finding]:
    rows = data_set.rows
    if leaking := _leaking(rows):
        yield Finding(
            "error",
            f"{len(leaking):,} content(s) are on two sides of the official split",
            "all images of a content in one part: a model would be tested on what it has trained on",
            "split by reference, not by image",
            places(leaking),
        )
    if torn := _with_several((series.content, row.group) for series in _series(data_set) for row in series.rows):
        yield Finding(
            "error",
            f"{len(torn):,} content(s), by the file names, have distorted versions in several groups",
            "one group for all versions of a content, so that a split keeps them together",
            "add a column group with the name of the reference",
            places(torn),
        )


def _parts(data_set: DataSet, ratio: str) -> Iterator[Finding]:
    rows = data_set.rows
    if _leaking(rows):
        return  # _groups says so
    try:
        splits = _splits(rows, ratio)
    except ShardError as error:
        found, _, to_do = str(error).partition("; ")
        yield Finding("error", found, "splits into train, val and test by content", to_do)
        return
    for part in PARTS[1:]:
        sizes = {name: part_counts(parts)[part] for name, parts in splits.items() if part != "val" or not name.endswith(WITHOUT_VALIDATION)}
        useless = {name: size for name, size in sizes.items() if size < FEWEST_IMAGES}
        if small := useless or {name: size for name, size in sizes.items() if size < FEW_IMAGES}:
            least, most = min(small.values()), max(small.values())
            number, where = str(least) if least == most else f"{least} to {most}", "the split " * (len(small) == 1) + briefly(list(small))
            yield Finding(
                "error" if useless else "warning",
                f"{part} has {number} image(s) in {where}",
                f"{FEW_IMAGES} or more: over fewer an SRCC is rough, and of fewer than {FEWEST_IMAGES} there is none",
                "build with another --ratio (60/20/20, say), which leaves more to val and test, or add images"
                if any(not name.startswith("official") for name in useless)
                else "add images; state an interval with every figure",
            )


def sides(rows: Sequence[Row], ratio: str = RATIO) -> dict[str, np.ndarray]:
    """The part of each image in every split that a build makes unless told otherwise, by its name; stated parts that no build
    takes are taken here as they are. A split without val is left out: what is on one side of the other is on one side of it."""
    try:
        splits = _splits(rows, ratio)
    except ShardError:
        return {"official": np.array([part_number(row.part) for row in rows], np.uint8)}
    return {name: parts for name, parts in splits.items() if not name.endswith(WITHOUT_VALIDATION)}


def _splits(rows: Sequence[Row], ratio: str) -> dict[str, np.ndarray]:
    return all_splits(rows if isinstance(rows, Rows) else Rows(rows), Settings.seed, ratio=ratio)


def _known_traps(data_set: DataSet) -> Iterator[Finding]:
    known, label = known_as(data_set), data_set.label
    if known and len(known.labels) > 1:
        yield Finding(
            "note",
            f"the label {label.name}",
            f"one of {', '.join(each.name for each in known.labels)}: they rank the images differently",
            "say in every report which one it is, and never mix them",
        )
    if known and known.name == "kadid10k":
        yield from _kadid_deviations(data_set)
    if not known and "kadid" in data_set.table.stem.lower() and len(data_set.rows) < ADAPTERS["kadid10k"].images:
        yield Finding(
            "warning",
            f"{data_set.table.name}, a list of a part of KADID-10k",
            "no image in two parts (Q-Align's train_kadid.json and test_kadid.json share 1,844)",
            "compare it with the list of the other part: --against TABLE=DIR; better, build with --dataset kadid10k, by reference",
        )
    if known and known.name.startswith("flive"):
        yield Finding(
            "note",
            "photographs of AVA, VOC and EMOTIC are in FLIVE",
            "none of them in a set that is tested on, or a backbone trained on",
            "compare with such a set: --against NAME=DIR",
        )
        if not any(row.part == "val" for row in data_set.rows):
            yield Finding(
                "note",
                "FLIVE without the val that its makers chose",
                "labels=640_padded.csv beside the other tables; its column is_valid says which images are val",
                "download it from where labels640.csv is, or a val is cut out of train, which others do not have",
            )


def _kadid_deviations(data_set: DataSet) -> Iterator[Finding]:
    """Whether 30 ratings can deviate so. Beside a mean hardly a number of three decimals is possible both as deviation and as variance."""
    rated = [(row.opinion, row.std) for row in data_set.rows if row.std is not None]
    if not rated:
        return
    means, variances = possible_ratings(30)
    as_std = as_variance = 0
    for opinion, std in rated:
        possible = variances[abs(means - opinion) < 0.0051]  # dmos has two decimals, var has three
        as_std += bool((abs(np.sqrt(possible) - std) < 0.00051).any())
        as_variance += bool((abs(possible - std) < 0.00051).any())
    is_right = as_std > len(rated) / 2  # a few images have more or fewer ratings
    yield Finding(
        "note" if is_right else "error" if as_variance > as_std else "warning",
        f"of {len(rated):,} deviations in {data_set.table.name}, 30 ratings from 1 to 5 can have {as_std:,} as their standard deviation, "
        f"{as_variance:,} as their variance",
        "standard deviations, which KADID-10k's column var holds whatever its name, and pyiqa's std",
        "nothing" if is_right else "take dmos.csv as its makers distribute it, and its var as it stands, without a root or a square",
    )


def possible_ratings(number: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the variance of all that so many whole ratings from 1 to 5 can be, each pair of them once."""
    sums = {(0, 0)}  # of the ratings, and of their squares
    for _ in range(number):
        sums = {(total + rating, squares + rating**2) for total, squares in sums for rating in range(1, 6)}
    total, squares = np.array(sorted(sums)).T
    means = total / number
    return means, np.maximum(0, squares / number - means**2)  # rounding makes less than nothing of none


def turned_round(data_set: DataSet) -> tuple[str, str, str] | None:
    """What was found, expected, and is to be done, where the direction of the label is not the one that a public set was published with."""
    label, known = data_set.label, known_as(data_set)
    if known is None or label.higher_is_better in {each.higher_is_better for each in known.labels}:
        return None
    mend = "give --lower-is-better" if label.higher_is_better else "leave out --lower-is-better"
    return f"the label is {label}", f"{known.labels[0]}, as {known.title} was published", mend


def known_as(data_set: DataSet) -> Adapter | None:
    """The public data set that this is, or that its name or its table's speaks of, as meta_info_KADID10kDataset.csv of pyiqa does."""
    return known_by(data_set.name, data_set.table.stem)


def known_by(*names: str) -> Adapter | None:
    """The public data set that the first of `names` speaks of that speaks of any."""
    words = (re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("metainfo").removesuffix("dataset") for name in names)
    return next((ADAPTERS[_NAMES[word]] for word in words if word in _NAMES), None)


def _series(data_set: DataSet) -> list[Series]:
    """The distortion series, by content, when the file names tell them: nearly all rows, nearly every combination.

    As in KADID-10k and TID2013 (I01_05_3), CSIQ (1600.AWGN.3) and the demo (coffee-jpeg-3), where 1 is the mildest. A public set of
    photographs as they were taken has none, whatever its files are called.
    """
    known, rows = known_as(data_set), data_set.rows
    if known and known.name in _WITHOUT_SERIES:
        return []
    levels_of: dict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    for row in rows:
        if (match := _DISTORTED.fullmatch(row.file.stem)) and match["distortion"].lower() not in _PIECES:
            levels_of[match["content"].lower(), match["distortion"].lower()][int(match["level"])] = row
    contents, distortions = ({key[place] for key in levels_of} for place in (0, 1))
    told = sum(len(levels) for levels in levels_of.values())
    possible = len(contents) * len(distortions) * max((max(levels) for levels in levels_of.values()), default=0)
    if len(contents) < 2 or told < 0.8 * max(len(rows), possible):
        return []
    return [
        Series(*key, tuple(levels[number] for number in sorted(levels))) for key, levels in sorted(levels_of.items()) if len(levels) > 2
    ]


def _leaking(rows: Sequence[Row]) -> list[str]:
    """The groups that have images in two parts of the stated split."""
    return _with_several((row.group, row.part) for row in rows if row.part)


def _with_several(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The first members that stand with more than one second member."""
    seconds = defaultdict(set)
    for first, second in pairs:
        seconds[first].add(second)
    return sorted(first for first, some in seconds.items() if len(some) > 1)


def _within(opinions: np.ndarray, low: float | None, high: float | None) -> bool:
    return low is None or high is None or bool(low <= opinions.min() and opinions.max() <= high)


def _opinions_of(data_set: DataSet) -> np.ndarray:
    return np.array([row.opinion for row in data_set.rows])
