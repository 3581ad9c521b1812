"""The promises of the splits: every image on one side, no content on two, the same on every machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.manifest import PARTS, ShardError, part_number
from shards.rows import Row, Rows
from shards.splits import (
    RATIO,
    ROUNDS,
    VALIDATION_SHARE,
    all_splits,
    numbered_rounds,
    part_counts,
    round_split,
    shares_of,
    split_table,
    stated_split,
    what_to_know,
)

SEEDS = st.integers(0, 1000)
ROUND_NUMBERS = st.integers(1, ROUNDS)
RATIOS = st.sampled_from([RATIO, "80/20", "60/20/20", "50/50", "8/1/91"])


def row(number: int, group: str, part: str | None = None) -> Row:
    return Row(f"image{number:04d}", Path("unread.png"), 1.0, None, group, part)


def rows_of(group_sizes: list[int]) -> Rows:
    groups = [f"content{group}" for group, size in enumerate(group_sizes) for _ in range(size)]
    return Rows(row(number, group) for number, group in enumerate(groups))


TABLES = st.lists(st.integers(1, 12), min_size=3, max_size=40).map(rows_of)


def said(rows: Rows, parts: np.ndarray) -> dict[str, str]:
    """The part of each image, by its id."""
    return {image: PARTS[part] for image, part in zip(rows.ids(), parts, strict=True)}


def told(rows: Rows, splits: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    return {name: said(rows, parts) for name, parts in splits.items()}


def sides_of(rows: Rows, parts: np.ndarray) -> dict[str, set[int]]:
    sides: dict[str, set[int]] = {}
    for each, part in zip(rows, parts.tolist(), strict=True):
        sides.setdefault(each.group, set()).add(part)
    return sides


# rounds


@given(TABLES, ROUND_NUMBERS, SEEDS, RATIOS)
def test_every_image_has_one_part_and_every_part_has_images(rows: Rows, number: int, seed: int, ratio: str) -> None:
    parts = round_split(rows, number, seed, ratio)
    assert parts.shape == (len(rows),) and parts.dtype == np.uint8
    assert set(said(rows, parts).values()) == set(PARTS)


@given(TABLES, SEEDS, RATIOS)
def test_no_content_is_on_two_sides(rows: Rows, seed: int, ratio: str) -> None:
    for parts in numbered_rounds(rows, seed, 2, ratio).values():
        assert all(len(sides) == 1 for sides in sides_of(rows, parts).values())


@given(TABLES, ROUND_NUMBERS, SEEDS, st.sampled_from([RATIO, "80/20", "60/20/20"]))
def test_the_parts_are_as_large_as_the_ratio_says_to_within_one_content(rows: Rows, number: int, seed: int, ratio: str) -> None:
    counts = part_counts(round_split(rows, number, seed, ratio))
    largest = max(Counter(each.group for each in rows).values())
    for part, share in shares_of(ratio).items():
        slack = 2 * largest if part == "train" else largest  # train is what the other two leave
        assert abs(counts[part] - len(rows) * share) <= slack


@given(TABLES, SEEDS, st.randoms())
def test_neither_the_order_of_the_rows_nor_the_place_of_the_files_matters(rows: Rows, seed: int, random: object) -> None:
    moved = [replace(each, file=Path("/elsewhere") / each.file, opinion=2.0) for each in rows]
    random.shuffle(moved)  # type: ignore[attr-defined]
    assert told(rows, all_splits(Rows(moved), seed, 2, "80/20")) == told(rows, all_splits(rows, seed, 2, "80/20"))


def test_the_rounds_are_the_same_for_any_hash_seed_of_python() -> None:
    code = (
        "from pathlib import Path; from shards.rows import Row, Rows; from shards.splits import numbered_rounds, split_table\n"
        "rows = Rows(Row(f'{n:03d}', Path(), 0.0, None, f'content{n % 40}', None) for n in range(200))\n"
        "print(*(b''.join(split_table(rows.ids(), parts)) for parts in numbered_rounds(rows, 0, 3, '80/20').values()))"
    )
    tables = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("0", "1", "2")
    }
    assert len(tables) == 1 and len(tables.pop()) > 6 * 200


@given(st.integers(10, 60), st.text(min_size=1, max_size=8), ROUND_NUMBERS, SEEDS)
def test_one_more_image_moves_at_most_three_others(images: int, added: str, number: int, seed: int) -> None:
    rows = rows_of([1] * images)
    before, after = (round_split(table, number, seed) for table in (rows, Rows([*rows, row(images, f"new {added}")])))
    assert np.count_nonzero(before != after[:-1]) <= 3


@given(TABLES, SEEDS)
def test_80_20_tests_on_the_same_images_as_70_10_20_and_cuts_val_out_of_train(rows: Rows, seed: int) -> None:
    with_val, without = numbered_rounds(rows, seed, 1, "80/20").values()
    assert np.array_equal(with_val, round_split(rows, 1, seed, "70/10/20"))
    kept = {name: "train" if part == "val" else part for name, part in said(rows, with_val).items()}
    assert said(rows, without) == kept


@pytest.mark.parametrize(
    ("ratio", "names"),
    [("80/20", ["round-01", "round-01-no-val", "round-02", "round-02-no-val"]), ("70/10/20", ["round-01", "round-02"])],
)
def test_a_table_without_val_says_so_in_its_name(ratio: str, names: list[str]) -> None:
    splits = all_splits(rows_of([1] * 20), 0, 2, ratio)
    assert list(splits) == names
    assert all((part_counts(parts)["val"] > 0) != name.endswith("-no-val") for name, parts in splits.items())


@pytest.mark.parametrize("ratio", ["80", "80/30", "70/10/10/10", "80:20", "100/0", "70/0/30", "-10/110", "a/b", "80/20.0", ""])
def test_a_ratio_that_is_none_is_refused(ratio: str) -> None:
    with pytest.raises(ShardError, match=r"ratio '.*': write .* such as 80/20, or .* 70/10/20, each at least 1 and together 100"):
        shares_of(ratio)


def test_one_large_content_leaves_no_part_empty() -> None:
    for number in range(1, ROUNDS + 1):
        assert min(part_counts(round_split(rows_of([1, 1, 100]), number, 0)).values()) > 0


def test_many_images_are_split_70_10_20() -> None:
    assert part_counts(round_split(rows_of([1] * 1000), 1, 0)) == {"train": 700, "val": 100, "test": 200}


def test_without_stated_parts_there_are_ten_rounds_and_no_two_are_alike() -> None:
    splits = all_splits(rows_of([1] * 100), seed=0)
    assert list(splits) == [f"round-{number:02d}" for number in range(1, 11)]
    assert len({parts.tobytes() for parts in splits.values()}) == 10


def test_another_seed_gives_other_rounds() -> None:
    rows = rows_of([1] * 100)
    assert not any(np.array_equal(round_split(rows, number, 0), round_split(rows, number, 1)) for number in range(1, 11))


def test_a_round_is_the_same_in_every_version_and_on_every_machine() -> None:
    parts = round_split(rows_of([1] * 10), 1, 0)
    assert np.flatnonzero(parts == part_number("test")).tolist() == [0, 9]
    assert np.flatnonzero(parts == part_number("val")).tolist() == [8]


def test_two_contents_cannot_be_split_in_three() -> None:
    with pytest.raises(ShardError, match=r"2 content.*at least 3.*split column"):
        round_split(rows_of([5, 5]), 1, 0)


# official splits


def test_rounds_are_made_beside_an_official_split_when_they_are_asked_for() -> None:
    rows = Rows(row(number, f"content{number}", ("train", "val", "test")[number % 3]) for number in range(30))
    assert list(all_splits(rows, 0)) == ["official"]
    assert list(all_splits(rows, 0, 2)) == ["official", "round-01", "round-02"]
    assert np.array_equal(all_splits(rows, 0, 2)["round-02"], round_split(rows, 2, 0))


def test_a_stated_split_is_taken_as_it_stands() -> None:
    rows = Rows(row(number, f"content{number}", part) for number, part in enumerate(["train", "train", "val", "test"]))
    assert told(rows, all_splits(rows, seed=0)) == {"official": {each.id: each.part for each in rows}}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=20), st.lists(st.integers(1, 5), min_size=1, max_size=5), SEEDS)
def test_a_missing_val_is_cut_out_of_train_by_content_and_test_is_left_alone(train: list[int], test: list[int], seed: int) -> None:
    rows = rows_of([*train, *test])
    stated = Rows(row(n, each.group, "train" if n < sum(train) else "test") for n, each in enumerate(rows))
    splits = stated_split("official", stated, seed)
    assert said(stated, splits.pop("official-no-val")) == {each.id: each.part for each in stated}
    parts = splits.pop("official")
    assert not splits
    assert {each.id for each in stated if each.part == "test"} == {name for name, part in said(stated, parts).items() if part == "test"}
    assert all(len(sides) == 1 for sides in sides_of(stated, parts).values())
    counts = part_counts(parts)
    assert counts["train"] > 0 and counts["val"] > 0
    assert abs(counts["val"] - sum(train) * VALIDATION_SHARE) <= max(train)


@pytest.mark.parametrize(
    ("stated", "complaint"),
    [
        (["train", None, "test"], "image 'image0001' has no part.*state it for all images, or for none"),
        (["train", "train", "val"], "no image in 'test'"),
        (["val", "test", "test"], "no image in 'train'"),
        (["train", "test", "test"], "1 content.*cannot be cut into val, train"),
    ],
    ids=["gap", "no test", "no train", "one content to train and validate on"],
)
def test_a_stated_split_that_cannot_be_used_is_refused(stated: list[str | None], complaint: str) -> None:
    with pytest.raises(ShardError, match=complaint):
        all_splits(Rows(row(number, f"content{number}", part) for number, part in enumerate(stated)), seed=0)


def test_a_content_on_two_sides_is_refused_by_its_name() -> None:
    rows = Rows([row(0, "lighthouse", "train"), row(1, "harbour", "val"), row(2, "lighthouse", "test")])
    with pytest.raises(ShardError, match=r"content 'lighthouse' is in 'train' and, with image 'image0002', in 'test'.*in one part"):
        all_splits(rows, seed=0)


# what a person is told


def test_it_is_said_from_where_val_was_cut_and_how_many_contents_and_images_a_part_has() -> None:
    rows = rows_of([5] * 100)
    assert what_to_know(rows, all_splits(rows, 0, 2, "80/20")) == [
        "500 images of 100 contents, and every content is on one side of a split",
        "round-01, round-02: contents train 70, val 10, test 20",
        "round-01, round-02: 50 of 400 training images were cut out as val; the same with '-no-val' in its name keeps them in train",
    ]


def test_it_is_said_that_without_groups_every_image_is_its_own_content_and_that_small_parts_are_rough() -> None:
    rows = rows_of([1] * 490)
    assert what_to_know(rows, all_splits(rows, 0, 1)) == [
        "every image is taken as its own content: no two of them share a group",
        "round-01: an SRCC over fewer than 50 images is rough (val 49)",
    ]


def test_it_is_said_that_a_very_large_content_leaves_few_images_to_train() -> None:
    rows = rows_of([1, 1, 498])
    assert any("only 1 of 500 images are in train" in sentence for sentence in what_to_know(rows, all_splits(rows, 0)))


def test_a_thousand_rounds_are_told_of_in_short() -> None:
    rows = rows_of([1] * 4)
    assert what_to_know(rows, all_splits(rows, 0, 1000))[1:] == [
        "1,000 splits (round-01, round-02, ..., round-1000): under 3 images have no SRCC, and no run takes such a split (val 1, test 1); "
        "make others with `python -m shards split`, or add images"
    ]


def test_a_split_without_val_that_stands_alone_is_told_of_too() -> None:
    rows = rows_of([1] * 100)
    splits = {"mine-no-val": all_splits(rows, 0, 1, "80/20")["round-01-no-val"]}
    assert what_to_know(rows, splits)[1:] == ["mine-no-val: an SRCC over fewer than 50 images is rough (test 20)"]


# tables


def test_a_split_table_is_sorted_by_id_and_leaves_out_what_is_in_no_part() -> None:
    rows = Rows([row(3, "c"), row(1, "a"), row(2, "b")])
    parts = np.array([part_number(part) for part in ("train", None, "test")], np.uint8)
    assert b"".join(split_table(rows.ids(), parts)) == b"id,part\nimage0001,train\nimage0003,test\n"
