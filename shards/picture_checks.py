"""What the pictures of a data set tell: missing, damaged, of odd kinds and sizes, and twice there."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np

from shards.duplicates import near_pairs, same_files
from shards.examination import Examination, PictureFile
from shards.findings import PLACES, Finding, places
from shards.folders import where_to_look
from shards.patches import is_enlarged, is_too_large, resized_size
from shards.photographs import decoder_versions
from shards.rows import Row
from shards.splits import RATIO, briefly
from shards.table_checks import known_as, sides

_LONGEST = 3.0  # times the short side; a patch shows little of such a picture, and an exact resize bends it
_TRAITS = {
    "turned": ("note", "are turned upright by their EXIF orientation", "nothing, if the raters saw them upright; else remove the tag"),
    "grey": ("note", "are grey", "nothing: they get three equal channels"),
    "palette": ("note", "have a palette", "nothing: they become RGB"),
    "16 bits": ("note", "have 16 bits per channel", "nothing: the upper 8 are kept"),
    "dark": (
        "warning",
        "have 16 bits per channel, whose upper 3 are never used: nearly black, as 10 or 12 bits in 16 are",
        "scale them to the full range, as the raters saw them",
    ),
    "CMYK": ("warning", "are CMYK, whose colours depend on a profile that is left aside", "save them as RGB, as the raters saw them"),
    "transparent": ("warning", "have transparency, and what lies under it will be seen", "save them on the raters' background"),
    "animated": ("warning", "are animated, and the first picture alone is taken", "save as a still what the raters saw"),
}


def picture_findings(examination: Examination, patch_size: int, rule: str, ratio: str = RATIO) -> Iterator[Finding]:
    """All that there is to say of the pictures, stored by the resize rule and cut into patches of that size, in rounds of that ratio."""
    checks = (_files, _unlisted, _published_sizes, _kinds, _decoder)
    yield from chain.from_iterable(check(examination) for check in checks)
    yield from _exact_duplicates(examination, ratio)
    yield from _near_duplicates(examination, ratio)
    yield from _sizes(examination, patch_size, rule)


def _files(examination: Examination) -> Iterator[Finding]:
    pairs = list(zip(examination.data_set.rows, examination.pictures, strict=True))
    table = examination.data_set.table.name
    if missing := [row for row, picture in pairs if picture.missing]:
        yield Finding(
            "error",
            f"{len(missing):,} of {len(pairs):,} files are not there",
            f"a file for every row of {table}",
            where_to_look(missing[0].file),
            places(map(examination.place, missing)),
        )
    if broken := [f"{examination.place(row)} {picture.problem}" for row, picture in pairs if picture.problem]:
        yield Finding(
            "error",
            f"{len(broken):,} of {len(pairs):,} pictures cannot be decoded",
            "pictures that a decoder can read to their end",
            "download or save them anew, or take out their rows",
            places(broken),
        )
    if open_ends := [examination.place(row) for row, picture in pairs if "open end" in picture.traits]:
        yield Finding(
            "warning",
            f"{len(open_ends):,} of {len(pairs):,} pictures are JPEG files without an end marker, though they decode",
            "data to the end marker: where other bytes took their place, a decoder fills the picture with what it makes of them",
            "look at them, at their lower halves above all; download them anew",
            places(open_ends),
        )
    if examination.headers_only:
        yield Finding(
            "note",
            "only the headers were read: nothing is known of damaged pictures and of duplicates",
            "every picture decoded",
            "run the doctor without --quick before you trust its verdict",
        )


def _unlisted(examination: Examination) -> Iterator[Finding]:
    data_set, known, number = examination.data_set, known_as(examination.data_set), len(examination.unlisted)
    where = places(map(examination.name, examination.unlisted))
    if number <= data_set.left_out:
        return  # they may be those of rows that are to be mended
    if known is None:
        yield Finding(
            "warning",
            f"{number:,} picture(s) without a row in {data_set.table.name}",
            "a row for every picture, but for references and the like",
            "nothing, if they have no opinions; else add their rows",
            where,
        )
    else:  # there may be opinions of what a protocol leaves out, too, and nobody is to add rows for them
        complete = known.images == len(data_set.rows) + data_set.left_out
        yield Finding(
            "note" if complete else "warning",
            f"{number:,} picture(s) beside the {len(data_set.rows):,} images that were read from {data_set.table.name}",
            "none but references, what raters practised on, pictures of rows that cannot be used and the like",
            f"nothing: all rows of {known.title} are there" if complete else "take the complete data set",
            where,
        )


def _published_sizes(examination: Examination) -> Iterator[Finding]:
    """A set that was resized by somebody is no longer what people rated, and looks complete in every other way."""
    known = known_as(examination.data_set)
    if known and known.sizes and (others := [pair for pair in _seen(examination) if pair[1].size not in known.sizes]):
        yield Finding(
            "warning",
            f"{len(others):,} of {len(examination.pictures):,} pictures have another size than was published",
            " or ".join(f"{width}x{height}" for width, height in known.sizes),
            "take the pictures that the makers distribute",
            places(f"{examination.place(row)} is {'x'.join(map(str, picture.size or ()))}" for row, picture in others),
        )


def _kinds(examination: Examination) -> Iterator[Finding]:
    for trait, (severity, found, to_do) in _TRAITS.items():
        if of_kind := [examination.place(row) for row, seen in _seen(examination) if trait in seen.traits]:
            yield Finding(
                severity,
                f"{len(of_kind):,} of {len(examination.pictures):,} pictures {found}",
                "8-bit RGB pictures, upright",
                to_do,
                places(of_kind),
            )


def _decoder(examination: Examination) -> Iterator[Finding]:
    if photographs := sum("JPEG" in seen.traits for _, seen in _seen(examination)):
        versions = decoder_versions()
        yield Finding(
            "note",
            f"{photographs:,} of {len(examination.pictures):,} pictures are JPEG files, which Pillow {versions['pillow']} decodes here, "
            f"with libjpeg{'-turbo ' + versions['libjpeg_turbo'] if 'libjpeg_turbo' in versions else ' ' + versions.get('jpg', '')}",
            "one decoder for all that is compared: another may differ by a level or two",
            "nothing: the manifest records its version, and no build goes on with another one",
        )


def _sizes(examination: Examination, patch_size: int, rule: str) -> Iterator[Finding]:
    small, long, bent, large = [], [], [], []
    for row, picture in _seen(examination):
        width, height = picture.size or (1, 1)
        stored = resized_size(width, height, rule, patch_size)
        told = f"{examination.place(row)} is {width}x{height}"
        if is_too_large(*stored):
            large.append(f"{told}, stored at {stored[0]}x{stored[1]}")
        if is_enlarged(width, height, *stored):
            small.append(told)
        if max(width, height) >= _LONGEST * min(width, height):
            long.append(told)
        if not 0.9 < stored[0] * height / (stored[1] * width) < 1.1:
            bent.append(told)
    if large:
        yield Finding(
            "error",
            f"{len(large):,} of {len(examination.pictures):,} pictures are too large to be stored",
            "sides of at most 65,535 pixels, all of them 2 GiB",
            "choose a smaller --resize, or take their rows out",
            places(large),
        )
    if small:
        yield Finding(
            "warning",
            f"{len(small):,} of {len(examination.pictures):,} pictures are smaller than they are stored and will be enlarged",
            f"at least {patch_size} pixels a side, and the size of the resize rule '{rule}'",
            "choose a smaller --size or --resize, or accept that those are blurred by the resizing; images.csv marks them",
            places(small),
        )
    if long:
        yield Finding(
            "warning",
            f"{len(long):,} of {len(examination.pictures):,} pictures are {_LONGEST:g} times as long as wide, or more",
            "photographs of the usual shapes",
            "see that they are photographs: patches show little of each, and more --patches show more",
            places(long),
        )
    if bent:
        yield Finding(
            "warning",
            f"{len(bent):,} of {len(examination.pictures):,} pictures are squeezed by more than a tenth",
            f"pictures of the shape that the resize rule '{rule}' gives",
            "choose --resize short:PIXELS, which keeps the shape, unless a paper's numbers are to be met",
            places(bent),
        )


def _exact_duplicates(examination: Examination, ratio: str) -> Iterator[Finding]:
    """Copies that some split parts are a leak: trained on by one name, tested by the other."""
    rows, splits = examination.data_set.rows, sides(examination.data_set.rows, ratio)
    leaks: dict[str, int] = {}  # each picture as it is told of, and how many files it is
    apart: dict[str, int] = {}
    together: dict[str, int] = {}
    for numbers in same_files([picture.sha256 for picture in examination.pictures]):
        same = [rows[number] for number in numbers]
        told = _copies_told(same, examination)
        if parting := [name for name, parts in splits.items() if len(set(parts[numbers].tolist())) > 1]:
            leaks[f"{told} in {briefly(parting)}"] = len(same)
        else:
            (apart if len({row.group for row in same}) > 1 else together)[told] = len(same)
    for severity, found, to_do, copies in (
        (
            "error",
            "are on two sides of a split",
            "take one of each out, or give them one group (and one part, if the table has parts)",
            leaks,
        ),
        ("warning", "are taken as different contents", "take one of each out, or give them one group", apart),
        ("note", "are of one content", "see that their opinions are not of other images", together),
    ):
        if copies:
            yield Finding(
                severity,
                f"{sum(copies.values()):,} files that are {len(copies):,} picture(s), the same to the byte, {found}",
                "a picture once",
                to_do,
                places(copies),
            )


def _copies_told(same: Sequence[Row], examination: Examination) -> str:
    told = " = ".join(f"{examination.place(row)}: {', '.join(filter(None, (row.part, f'{row.opinion:g}')))}" for row in same[:3])
    return told + f" and {len(same) - 3} more" * (len(same) > 3)


def _near_duplicates(examination: Examination, ratio: str) -> Iterator[Finding]:
    rows = examination.data_set.rows
    number_of = {group: number for number, group in enumerate(dict.fromkeys(row.group for row in rows))}
    groups = [number_of[row.group] for row in rows]  # within one they are alike by design
    alike = alike_across([examination], groups, [*sides(rows, ratio).values()])
    if alike and alike.pictures > len(rows) / 2:
        yield Finding(
            "error",
            f"{alike.pictures:,} of {len(rows):,} pictures look like one of another group",
            "one group for all versions of a content: every split would test contents that it has trained on",
            "add a column group with the name of the reference",
            alike.examples,
        )
    elif alike:
        yield Finding(
            "warning",
            f"{alike.pairs:,} pair(s) of pictures of different groups look alike"
            + (f", {alike.across:,} on two sides of a split" if alike.across else ""),
            "a content in one group, and so on one side of every split",
            "look at them; give one group to those that show the same content, or take one out",
            alike.examples,
        )


@dataclass(frozen=True)
class Alike:
    """Pictures that look alike and should not: how many pairs, how many pictures, how many pairs that a split parts."""

    pairs: int
    pictures: int
    across: int
    examples: tuple[str, ...]


def alike_across(examinations: Sequence[Examination], groups: Sequence[int], splits: Sequence[np.ndarray] = ()) -> Alike | None:
    """What looks alike in different `groups` and is not the same file; None when nothing does. Pairs that one of `splits` parts,
    each of them the part of every picture, come first."""
    last = list(accumulate(len(each.pictures) for each in examinations))
    files = [file for each in examinations for file in identities(each)]

    def place(number: int) -> str:
        which = bisect_right(last, number)
        examination = examinations[which]
        return examination.place(examination.data_set.rows[number - last[which]])

    seen: set[int] = set()
    numbers: Counter[bool] = Counter()
    examples: dict[bool, list[str]] = {True: [], False: []}
    for block in near_pairs([picture.look for each in examinations for picture in each.pictures], groups):
        for first, second in block.tolist():
            if files[first] != files[second]:
                across = any(parts[first] != parts[second] for parts in splits)
                numbers[across] += 1
                seen |= {first, second}
                if len(examples[across]) < PLACES:
                    examples[across].append(f"{place(first)} ~ {place(second)}")
    return Alike(numbers.total(), len(seen), numbers[True], places(examples[True] + examples[False])) if seen else None


def identities(examination: Examination) -> list[str]:
    """What tells a file from others: its SHA-256, or its path when only headers were read."""
    return [picture.sha256 or str(row.file.resolve()) for row, picture in zip(examination.data_set.rows, examination.pictures, strict=True)]


def _seen(examination: Examination) -> Iterator[tuple[Row, PictureFile]]:
    return ((row, picture) for row, picture in zip(examination.data_set.rows, examination.pictures, strict=True) if picture.size)
