"""Several data sets in one line of visits: shares, order and independence of the number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_train.mixture import Mixture, seed_of_set, shares_of
from dist_train.order import Order

quickly = settings(max_examples=100, deadline=None)
weights = st.lists(st.floats(0.01, 1e6), min_size=1, max_size=6)


def mixture(seed: int = 5) -> Mixture:
    """A set of 40 images with 12 of each batch, one of 7 with 3, one of 9 with 1; 2 of their patches per visit."""
    orders = [Order(seed_of_set(seed, number), images, 4, 2, 2, share) for number, (images, share) in enumerate([(40, 12), (7, 3), (9, 1)])]
    return Mixture(tuple(orders), passes=2)


@quickly
@given(weights, st.integers(6, 500))
def test_shares_fill_the_batch_each_set_has_one_and_none_is_an_image_off(weights: list[float], batch: int) -> None:
    shares = shares_of(weights, batch)
    assert sum(shares) == batch
    assert min(shares) >= 1
    for weight, share in zip(weights, shares, strict=True):
        exact = weight / sum(weights) * batch
        assert share <= exact + 1 or share == 1
        assert share >= exact - len(weights)


@pytest.mark.parametrize(
    ("weights", "batch", "shares"), [([7058, 8900], 96, [42, 54]), ([1, 1], 8, [4, 4]), ([3, 1], 8, [6, 2]), ([1000, 1], 4, [3, 1])]
)
def test_shares_worked_by_hand(weights: list[float], batch: int, shares: list[int]) -> None:
    assert shares_of(weights, batch) == shares


def test_more_sets_than_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 sets do not fit into a batch of 2"):
        shares_of([1, 1, 1], 2)


def test_every_batch_holds_each_sets_share_of_its_own_images() -> None:
    line = mixture()
    assert (line.global_batch, line.num_images, line.steps_per_epoch) == (16, 56, 7)
    for step in range(20):
        images = line.batch(step).images
        sets = np.searchsorted([40, 47], images, side="right")
        assert np.bincount(sets, minlength=3).tolist() == [12, 3, 1]


def test_each_set_is_visited_in_an_order_of_its_own_without_gaps_or_repeats() -> None:
    line = mixture()
    seen = np.concatenate([line.batch(step).images for step in range(63)])  # 63 images of the last set: seven whole passes
    last = seen[seen >= 47] - 47
    passes = last.reshape(7, 9)
    assert all(sorted(one) == list(range(9)) for one in passes.tolist())
    assert len({tuple(one) for one in passes.tolist()}) > 1
    alone = Order(seed_of_set(5, 0), 40, 4, 2, 2, 12)
    assert np.array_equal(seen[seen < 40], np.concatenate([alone.batch(step).images for step in range(63)]))


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_the_ranks_shares_laid_together_are_the_batch_and_each_has_a_part_of_every_larger_set(world: int) -> None:
    batch = mixture().batch(3)
    shares = [batch.share(rank, world) for rank in range(world)]
    together = np.stack([share.images for share in shares], axis=1).ravel()
    assert np.array_equal(together, batch.images)
    assert {int((share.images < 40).sum()) for share in shares} <= {12 // world, 12 // world + 1}


def test_two_sets_of_equal_size_are_not_visited_in_the_same_order() -> None:
    first, second = (Order(seed_of_set(0, number), 30, 4, 1, 1, 30).batch(0).images for number in (0, 1))
    assert sorted(first) == sorted(second)
    assert not np.array_equal(first, second)
