"""The promises of the splits: every image on one side, no content on two, the same on every machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.datasets import Row
from shards.manifest import PARTS, ShardError
from shards.splits import RATIO, ROUNDS, VALIDATION_SHARE, all_splits, official_split, round_split, split_table

SEEDS = st.integers(0, 1000)
ROUND_NUMBERS = st.integers(1, ROUNDS)


def row(number: int, group: str, part: str | None = None) -> Row:
    return Row(f"image{number:04d}", Path("unread.png"), 1.0, None, group, part)


def rows_of(group_sizes: list[int], part: str | None = None, prefix: str = "content") -> list[Row]:
    groups = [f"{prefix}{group}" for group, size in enumerate(group_sizes) for _ in range(size)]
    return [row(number, group, part) for number, group in enumerate(groups)]


TABLES = st.lists(st.integers(1, 12), min_size=3, max_size=40).map(rows_of)


def sides_of(rows: list[Row], parts: dict[str, str]) -> dict[str, set[str]]:
    sides: dict[str, set[str]] = {}
    for each in rows:
        sides.setdefault(each.group, set()).add(parts[each.id])
    return sides


# rounds


@given(TABLES, ROUND_NUMBERS, SEEDS)
def test_every_image_has_one_part_and_every_part_has_images(rows: list[Row], number: int, seed: int) -> None:
    parts = round_split(rows, number, seed)
    assert parts.keys() == {each.id for each in rows}
    assert set(parts.values()) == set(PARTS)


@given(TABLES, ROUND_NUMBERS, SEEDS)
def test_no_content_is_on_two_sides(rows: list[Row], number: int, seed: int) -> None:
    assert all(len(sides) == 1 for sides in sides_of(rows, round_split(rows, number, seed)).values())


@given(TABLES, ROUND_NUMBERS, SEEDS)
def test_the_parts_are_as_large_as_the_ratio_says_to_within_one_content(rows: list[Row], number: int, seed: int) -> None:
    counts = Counter(round_split(rows, number, seed).values())
    largest = max(Counter(each.group for each in rows).values())
    for part, percent in zip(PARTS, RATIO, strict=True):
        slack = 2 * largest if part == "train" else largest  # train is what the other two leave
        assert abs(counts[part] - len(rows) * percent / 100) <= slack


@given(TABLES, ROUND_NUMBERS, SEEDS, st.randoms())
def test_the_order_of_the_rows_does_not_matter(rows: list[Row], number: int, seed: int, random: object) -> None:
    shuffled = rows.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert round_split(shuffled, number, seed) == round_split(rows, number, seed)


def test_one_large_content_leaves_no_part_empty() -> None:
    for number in range(1, ROUNDS + 1):
        assert set(round_split(rows_of([1, 1, 100]), number, 0).values()) == set(PARTS)


def test_many_images_are_split_70_10_20() -> None:
    counts = Counter(round_split(rows_of([1] * 1000), 1, 0).values())
    assert counts == {"train": 700, "val": 100, "test": 200}


def test_without_stated_parts_there_are_ten_rounds_and_no_two_are_alike() -> None:
    splits = all_splits(rows_of([1] * 100), seed=0)
    assert list(splits) == [f"round-{number:02d}" for number in range(1, 11)]
    assert len({tuple(sorted(parts.items())) for parts in splits.values()}) == 10


def test_another_seed_gives_other_rounds() -> None:
    rows = rows_of([1] * 100)
    assert all(round_split(rows, number, 0) != round_split(rows, number, 1) for number in range(1, 11))


def test_a_round_is_the_same_in_every_version_and_on_every_machine() -> None:
    parts = round_split(rows_of([1] * 10), 1, 0)
    assert [int(name[-4:]) for name, part in parts.items() if part == "test"] == [0, 9]
    assert [int(name[-4:]) for name, part in parts.items() if part == "val"] == [8]


def test_two_contents_cannot_be_split_in_three() -> None:
    with pytest.raises(ShardError, match=r"2 content.*at least 3.*split column"):
        round_split(rows_of([5, 5]), 1, 0)


# official splits


def test_a_stated_split_is_taken_as_it_stands() -> None:
    rows = [row(number, f"content{number}", part) for number, part in enumerate(["train", "train", "val", "test"])]
    splits = all_splits(rows, seed=0)
    assert splits == {"official": {each.id: each.part for each in rows}}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=20), st.lists(st.integers(1, 5), min_size=1, max_size=5), SEEDS)
def test_a_missing_val_is_cut_out_of_train_by_content_and_test_is_left_alone(train: list[int], test: list[int], seed: int) -> None:
    rows = rows_of([*train, *test])
    stated = [row(n, each.group, "train" if n < sum(train) else "test") for n, each in enumerate(rows)]
    parts = official_split(stated, seed)
    assert {each.id for each in stated if each.part == "test"} == {name for name, part in parts.items() if part == "test"}
    assert all(len(sides) == 1 for sides in sides_of(stated, parts).values())
    counts = Counter(parts.values())
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
        all_splits([row(number, f"content{number}", part) for number, part in enumerate(stated)], seed=0)


def test_a_content_on_two_sides_is_refused_by_its_name() -> None:
    rows = [row(0, "lighthouse", "train"), row(1, "harbour", "val"), row(2, "lighthouse", "test")]
    with pytest.raises(ShardError, match=r"content 'lighthouse' is in 'train' and, with image 'image0002', in 'test'.*in one part"):
        all_splits(rows, seed=0)


def test_a_split_table_is_sorted_by_id() -> None:
    assert split_table({"b": "test", "a": "train"}) == b"id,part\na,train\nb,test\n"
