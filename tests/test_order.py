"""The laws of the order, for any seed and any sizes, and one sample of it that may never change."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dist_train.order import FLIP, SHUFFLE, Batch, Order, bits, images_at

quickly = settings(max_examples=50, deadline=None)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    stored = draw(st.integers(1, 12))
    return Order(
        seed=draw(st.integers(0, 2**64 - 1)),
        num_images=draw(st.integers(1, 40)),
        stored_patches=stored,
        patches_per_image=draw(st.integers(1, stored)),
        passes=draw(st.integers(1, 5)),
        global_batch=draw(st.integers(1, 30)),
    )


def visits(order: Order, number: int) -> Batch:
    """The first `number` visits of the line, laid together from their batches."""
    batches = [order.batch(step) for step in range(math.ceil(number / order.global_batch))]
    images, patches, flips = (np.concatenate([getattr(batch, name) for batch in batches]) for name in ("images", "patches", "flips"))
    return Batch(images[:number], patches[:number], flips[:number])


@quickly
@given(orders())
def test_every_pass_visits_every_image_once(order: Order) -> None:
    line = visits(order, 3 * order.num_images).images.reshape(3, order.num_images)
    for images in line:
        assert sorted(images) == list(range(order.num_images))


@quickly
@given(orders())
def test_whole_rounds_of_passes_show_every_stored_patch_equally_often(order: Order) -> None:
    shown = math.gcd(order.stored_patches, order.patches_per_image)
    passes = order.stored_patches // shown  # stored / shown where that divides: then each patch is shown once
    line = visits(order, passes * order.num_images)
    counts = Counter((int(image), int(patch)) for image, patches in zip(line.images, line.patches, strict=True) for patch in patches)
    assert len(counts) == order.num_images * order.stored_patches
    assert set(counts.values()) == {order.patches_per_image // shown}


@quickly
@given(orders())
def test_a_visit_shows_no_patch_twice(order: Order) -> None:
    for patches in order.batch(4).patches:
        assert len(set(patches.tolist())) == order.patches_per_image


@quickly
@given(orders(), st.integers(1, 6), st.integers(0, 1000))
def test_the_shares_of_any_world_lie_between_each_other_in_the_global_batch(order: Order, world: int, step: int) -> None:
    batch = order.batch(step)
    laid_back = [np.empty_like(column) for column in (batch.images, batch.patches, batch.flips)]
    for rank in range(world):
        share = batch.share(rank, world)
        assert len(share) in (len(batch) // world, len(batch) // world + 1)
        for column, part in zip(laid_back, (share.images, share.patches, share.flips), strict=True):
            column[rank::world] = part
    for column, whole in zip(laid_back, (batch.images, batch.patches, batch.flips), strict=True):
        assert np.array_equal(column, whole)


@quickly
@given(orders(), st.permutations(range(6)))
def test_a_batch_does_not_depend_on_what_was_asked_before(order: Order, history: list[int]) -> None:
    in_order = [order.batch(step) for step in range(6)]
    for step in history:
        again = order.batch(step)
        for name in ("images", "patches", "flips"):
            assert np.array_equal(getattr(again, name), getattr(in_order[step], name))


@pytest.mark.parametrize(
    ("images", "passes", "batch", "steps"),
    [(96, 1, 96, 1), (100, 1, 96, 1), (7046, 25, 96, 1834), (10, 3, 5, 6), (3, 2, 8, 1)],
    ids=["just one", "a rest of four", "KonIQ-10k", "three passes", "fewer visits than a batch"],
)
def test_an_epoch_is_the_whole_batches_in_its_passes(images: int, passes: int, batch: int, steps: int) -> None:
    assert Order(0, images, 25, 1, passes, batch).steps_per_epoch == steps


def test_the_rest_of_an_epoch_opens_the_next_one() -> None:
    order = Order(seed=1, num_images=10, stored_patches=1, patches_per_image=1, passes=1, global_batch=4)
    assert order.steps_per_epoch == 2
    first_pass = [*order.batch(0).images, *order.batch(1).images, *order.batch(2).images[:2]]
    assert sorted(first_pass) == list(range(10))


def test_a_set_smaller_than_the_batch_fills_it_with_further_passes_that_show_further_patches() -> None:
    batch = Order(seed=2, num_images=3, stored_patches=6, patches_per_image=2, passes=1, global_batch=9).batch(0)
    assert Counter(batch.images.tolist()) == {0: 3, 1: 3, 2: 3}
    assert batch.patches.tolist() == [[0, 1]] * 3 + [[2, 3]] * 3 + [[4, 5]] * 3


def test_no_version_and_no_machine_changes_the_order() -> None:
    order = Order(seed=0, num_images=10, stored_patches=4, patches_per_image=2, passes=2, global_batch=6)
    batch = order.batch(1)
    assert batch.images.tolist() == [7, 0, 9, 8, 4, 2]
    assert batch.patches.tolist() == [[0, 1], [0, 1], [0, 1], [0, 1], [2, 3], [2, 3]]
    assert batch.flips.tolist() == [[True, True], [False, True], [True, True], [False, False], [False, False], [False, True]]
    assert order.batch(1000).images.tolist() == [3, 7, 5, 9, 4, 0]


def test_bits_are_splitmix64() -> None:
    def splitmix64(state: int, number: int) -> int:  # in Python's own integers
        z = (state + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert [splitmix64(0, number) for number in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # as published
    start = 0
    for word in (2**64 - 5, FLIP, 7):
        start = splitmix64(start ^ word, 0)
    counters = np.array([[0, 1], [2**40, 2**62]])
    expected = [[splitmix64(start, int(number)) for number in row] for row in counters]
    assert bits(2**64 - 5, FLIP, counters, stream=7).tolist() == expected


def test_one_bit_for_one_counter_is_that_of_a_whole_row() -> None:
    assert int(bits(3, SHUFFLE, 17)) == bits(3, SHUFFLE, np.arange(20))[17]


@pytest.mark.parametrize("other", [(1, 1, 0), (0, 2, 0), (0, 1, 1)], ids=["seed", "use", "stream"])
def test_another_seed_use_or_stream_draws_other_bits(other: tuple[int, int, int]) -> None:
    counters = np.arange(10_000)
    seed, use, stream = other
    assert not np.intersect1d(bits(0, 1, counters, 0), bits(seed, use, counters, stream)).size


def test_every_pass_has_an_order_of_its_own() -> None:
    assert len({tuple(images_at(np.arange(20), 0, number, 20).tolist()) for number in range(50)}) == 50


@quickly
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(2, 10**12), st.integers(0, 10**12))
def test_a_place_leads_to_the_image_that_the_formula_says(seed: int, number: int, length: int, place: int) -> None:
    high = math.isqrt(length - 1) + 1
    bases = (high, math.ceil(Fraction(length, high)))

    def turned(value: int) -> int:  # in Python's own integers
        digits = list(divmod(value, bases[1]))
        for turn in range(12):
            drawn = int(bits(seed, SHUFFLE, digits[1 - turn % 2], 12 * number + turn)) >> 32
            digits[turn % 2] = (digits[turn % 2] + drawn * bases[turn % 2] // 2**32) % bases[turn % 2]
        return digits[0] * bases[1] + digits[1]

    image = turned(place % length)
    while image >= length:
        image = turned(image)
    assert images_at(np.array([place % length]), seed, number, length).tolist() == [image]


@quickly
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 3000))
def test_a_pass_of_any_length_is_a_permutation(seed: int, number: int, length: int) -> None:
    assert np.array_equal(np.sort(images_at(np.arange(length), seed, number, length)), np.arange(length))


@quickly
@given(st.integers(1, 10**12), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_an_image_depends_on_its_place_alone_and_not_on_what_else_is_asked(length: int, asked: list[int]) -> None:
    places = np.array(asked) % length
    images = images_at(places, 1, 2, length)
    assert ((images >= 0) & (images < length)).all()
    assert [int(images_at(places[k : k + 1], 1, 2, length)[0]) for k in range(len(places))] == images.tolist()


@pytest.mark.parametrize("length", [2, 3, 5, 12])
def test_every_pair_of_images_is_equally_often_first_and_second_and_first_in_passes_that_follow(length: int) -> None:
    first, second = np.array([images_at(np.arange(2), 3, number, length) for number in range(3000)]).T
    neighbours = np.bincount(first * length + second, minlength=length**2).reshape(length, length)
    assert not neighbours.diagonal().any()
    assert stats.chisquare(neighbours[~np.eye(length, dtype=bool)]).pvalue > 1e-4
    for follower in (first, second):  # of the next pass, at the same place and at another
        assert stats.chisquare(np.bincount(first[:-1] * length + follower[1:], minlength=length**2)).pvalue > 1e-4


@pytest.mark.parametrize("length", [10_007, 1 << 17, 10**7])
def test_neither_neighbours_nor_passes_nor_seeds_are_correlated(length: int) -> None:
    places = np.arange(10_000)
    a, next_pass, next_seed = (images_at(places, *which, length) for which in ((0, 0), (0, 1), (1, 0)))
    pairs = [(a, places), (a[1:], a[:-1]), (a[100:], a[:-100]), (a, next_pass), (a, next_seed)]
    assert all(abs(np.corrcoef(one, other)[0, 1]) < 0.045 for one, other in pairs)  # four and a half standard deviations
    counts = np.histogram(a, 100, (0, length))[0]  # 100 in each; all of them when the pass has hardly more
    assert length < 20_000 or stats.chisquare(counts).pvalue > 1e-4
    assert abs(int((np.diff(a) > 0).sum()) - 5000) < 150  # rises as often as it falls: 29 is a standard deviation


def test_half_of_the_patches_are_mirrored_and_not_always_the_same() -> None:
    order = Order(seed=4, num_images=50, stored_patches=2, patches_per_image=2, passes=400, global_batch=20_000)
    batch = order.batch(0)
    assert abs(batch.flips.mean() - 0.5) < 0.01  # 40,000 draws: four standard deviations
    for image in range(50):
        of_one = batch.flips[batch.images == image]  # [400 visits, 2 patches]
        assert (abs(of_one.mean(axis=0) - 0.5) < 0.15).all()
        assert 0.35 < (of_one[:, 0] == of_one[:, 1]).mean() < 0.65  # each patch has a coin of its own


def test_a_billion_images_keep_no_step_waiting_and_fill_no_memory() -> None:
    order = Order(seed=0, num_images=10**9, stored_patches=25, patches_per_image=1, passes=25, global_batch=96)
    turn = order.num_images // order.global_batch
    tracemalloc.start()
    began = time.perf_counter()
    for step in range(turn - 150, turn + 150):  # from the first pass into the second
        order.batch(step)
    took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 10  # under 0.2 s on an idle core; two minutes for one shuffle of so many
    assert peak < 2**20
