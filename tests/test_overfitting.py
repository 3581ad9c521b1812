"""The sentence about train and validation, for every way in which they can go."""

from __future__ import annotations

from typing import Any

import pytest

from dist_train.overfitting import train_and_val


def epochs(*pairs: tuple[float | None, float | None], part: str = "val") -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [{"kind": "step", "step": 1, "loss": 3.0}]
    for number, (train, other) in enumerate(pairs):
        records.append({"kind": "epoch", "epoch": number, "train": {"srcc": train}, part: {"srcc": other}})
    return records


def test_where_train_rises_and_val_falls_the_run_overfits_from_the_best_epoch_on() -> None:
    records = epochs((0.70, 0.80), (0.80, 0.85), (0.90, 0.86), (0.91, 0.852), (0.921, 0.848))
    assert train_and_val(records) == "from epoch 2 on, train SRCC rose by 0.021 while val SRCC fell by 0.012: overfitting"


def test_a_verdict_needs_enough_images_on_both_sides() -> None:
    records = epochs((0.70, 0.86), (0.90, 0.85))
    for record in records[1:]:
        record["train"]["images"], record["val"]["images"] = 4, 1000
    assert train_and_val(records).endswith(": 4 images in train are too few to tell overfitting from chance")


def test_where_both_sides_are_too_small_val_is_named() -> None:
    records = epochs((0.70, 0.86), (0.90, 0.85))
    for record in records[1:]:
        record["train"]["images"] = record["val"]["images"] = 10
    assert train_and_val(records).endswith(": 10 images in val are too few to tell overfitting from chance")


def test_where_both_rise_they_rose_together() -> None:
    assert train_and_val(epochs((0.5, 0.6), (0.6, 0.65), (0.7, 0.64), (0.8, 0.66))) == (
        "from epoch 0 to 3, train and val SRCC rose together, by 0.300 and 0.060: no sign of overfitting"
    )


def test_where_both_fall_it_is_not_called_overfitting() -> None:
    assert train_and_val(epochs((0.8, 0.8), (0.5, 0.4))) == (
        "from epoch 0 on, train SRCC fell by 0.300 while val SRCC fell by 0.400: it got worse, but not by overfitting"
    )


def test_a_train_that_stands_still_while_val_falls_is_not_called_overfitting() -> None:
    told = train_and_val(epochs((0.8, 0.8), (0.801, 0.7)))
    assert "train SRCC stood still while val SRCC fell by 0.100" in told and not told.endswith(": overfitting")


def test_where_train_is_too_high_to_rise_overfitting_is_not_denied() -> None:
    assert train_and_val(epochs((0.99, 0.90), (0.99, 0.80))) == (
        "from epoch 0 on, train SRCC stood still while val SRCC fell by 0.100: "
        "perhaps overfitting, which a train SRCC so near to 1 can show no more"
    )
    assert train_and_val(epochs((0.99, 0.90), (0.96, 0.80))).endswith("it got worse, but not by overfitting")


def test_a_val_that_wavers_by_less_than_it_could_by_chance_has_not_fallen() -> None:
    assert train_and_val(epochs((0.5, 0.8), (0.9, 0.7995))) == (
        "from epoch 0 to 1, train SRCC rose by 0.400 and val SRCC stood still: no sign of overfitting"
    )


def test_a_fall_that_was_made_good_is_forgotten() -> None:
    assert "rose together" in train_and_val(epochs((0.5, 0.6), (0.6, 0.5), (0.7, 0.7)))


def test_epochs_without_a_srcc_are_left_out() -> None:
    records = epochs((0.5, None), (0.6, 0.7), (None, 0.9), (0.8, 0.6))
    assert train_and_val(records) == "from epoch 1 on, train SRCC rose by 0.200 while val SRCC fell by 0.100: overfitting"


@pytest.mark.parametrize("pairs", [[], [(0.5, 0.5)], [(0.5, None), (0.6, 0.7)]], ids=["none", "one", "one with a SRCC"])
def test_one_epoch_says_nothing(pairs: list[tuple[float | None, float | None]]) -> None:
    assert train_and_val(epochs(*pairs)).startswith("too few epochs to say")


@pytest.mark.parametrize("pairs", [[(0.5, 0.5), (0.9, 0.5)], [(0.5, 0.5), (0.9, 1.0)], [(0.5, 1.0), (0.9, 0.5)]])
def test_of_a_few_images_it_is_not_said_to_overfit_nor_not_to(pairs: list[tuple[float, float]]) -> None:
    few, enough = epochs(*pairs), epochs(*pairs)
    for images, records in ((49, few), (50, enough)):
        for record in records[1:]:
            record["val"]["images"] = images
    assert train_and_val(few).endswith(": 49 images in val are too few to tell overfitting from chance")
    assert train_and_val(enough) == train_and_val(epochs(*pairs))
    assert train_and_val(few).rpartition(":")[0] == train_and_val(enough).rpartition(":")[0]


@pytest.mark.parametrize("pairs", [[(0.5, 0.5), (0.9, 1.0)], [(0.5, 1.0), (0.9, 0.5)]])
def test_of_a_few_contents_it_is_not_said_either(pairs: list[tuple[float, float]]) -> None:
    few, enough = epochs(*pairs), epochs(*pairs)
    for contents, records in ((3.25, few), (30.0, enough)):
        for record in records[1:]:
            record["val"] |= {"images": 360, "effective_contents": contents}
    assert train_and_val(few).endswith(": the images in val count as 3.2 contents, too few to tell overfitting from chance")
    assert train_and_val(enough) == train_and_val(epochs(*pairs))


def test_a_run_without_a_val_part_is_told_by_its_test_part() -> None:
    assert train_and_val(epochs((0.5, 0.7), (0.7, 0.6), part="test")) == (
        "from epoch 0 on, train SRCC rose by 0.200 while test SRCC fell by 0.100: overfitting"
    )
