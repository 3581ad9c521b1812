"""The promises of the patch boxes and of the resize rule: inside the image, fixed for ever, never smaller than a patch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.manifest import ShardError
from shards.patches import cut, is_enlarged, patch_boxes, resize, resized_size

SIZES = st.integers(1, 4000)
PATCH_SIZES = st.integers(8, 512)
RULES = st.one_of(
    st.just("none"),
    st.builds("short:{}".format, st.integers(1, 1000)),
    st.builds("exact:{}x{}".format, st.integers(1, 1000), st.integers(1, 1000)),
)
IDS = st.text(min_size=1, max_size=20)
SEEDS = st.integers(0, 2**32)


# the boxes


@given(IDS, SEEDS, SIZES, SIZES, PATCH_SIZES, st.integers(1, 30))
def test_every_box_lies_inside_its_image(image_id: str, seed: int, width: int, height: int, size: int, count: int) -> None:
    width, height = max(width, size), max(height, size)
    corners = patch_boxes(image_id, seed, width, height, size, count).astype(int)
    assert corners.shape == (count, 2)
    assert (corners >= 0).all() and (corners[:, 0] + size <= height).all() and (corners[:, 1] + size <= width).all()


@given(IDS, SEEDS, st.integers(1, 20), st.integers(1, 20))
def test_asking_for_more_patches_keeps_the_first_ones(image_id: str, seed: int, few: int, more: int) -> None:
    first, all_of_them = (patch_boxes(image_id, seed, 640, 480, 224, count) for count in (few, few + more))
    assert np.array_equal(all_of_them[:few], first)


def test_the_boxes_are_the_same_in_every_version_and_on_every_machine() -> None:
    assert patch_boxes("10004473376", 0, 512, 384, 224, 3).tolist() == [[18, 102], [36, 177], [112, 31]]


@pytest.mark.parametrize(("image_id", "seed"), [("b", 0), ("a", 1)])
def test_another_image_and_another_seed_have_other_boxes(image_id: str, seed: int) -> None:
    assert not np.array_equal(patch_boxes(image_id, seed, 512, 384, 224, 25), patch_boxes("a", 0, 512, 384, 224, 25))


def test_every_place_that_fits_is_as_likely_as_any_other() -> None:
    corners = patch_boxes("a", 0, 34, 33, 32, 6000)  # two rows of three places
    counts = np.unique(corners, axis=0, return_counts=True)[1]
    assert len(counts) == 6 and np.abs(counts - 1000).max() < 150  # five standard deviations of a count


def test_an_image_as_large_as_a_patch_has_one_place() -> None:
    assert patch_boxes("a", 0, 224, 224, 224, 5).tolist() == [[0, 0]] * 5


def test_a_patch_is_the_pixels_of_its_box() -> None:
    canvas = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    patches = cut(canvas, np.array([[0, 0], [2, 4]], np.uint16), 8)
    assert np.array_equal(patches, [canvas[:8, :8], canvas[2:10, 4:12]])


# the resize rule


@given(SIZES, SIZES, RULES, PATCH_SIZES)
def test_no_side_is_stored_shorter_than_a_patch(width: int, height: int, rule: str, size: int) -> None:
    assert min(resized_size(width, height, rule, size)) >= size


@given(SIZES, SIZES, st.integers(8, 512), PATCH_SIZES)
def test_short_gives_the_shorter_side_and_keeps_the_aspect(width: int, height: int, short: int, size: int) -> None:
    stored = resized_size(width, height, f"short:{short}", size)
    scale = max(short, size) / min(width, height)
    assert min(stored) == max(short, size)
    assert stored == (pytest.approx(width * scale, abs=0.51), pytest.approx(height * scale, abs=0.51))


@given(st.integers(224, 4000), st.integers(224, 4000))
def test_none_leaves_an_image_that_holds_a_patch_as_it_is(width: int, height: int) -> None:
    assert resized_size(width, height, "none", 224) == (width, height)


@pytest.mark.parametrize(
    ("size", "rule", "stored"),
    [
        ((1024, 768), "exact:512x384", (512, 384)),
        ((768, 1024), "exact:512x384", (512, 384)),  # exact is exact, whatever it does to the aspect
        ((100, 200), "none", (224, 448)),
        ((448, 112), "none", (896, 224)),
        ((4000, 3000), "short:512", (683, 512)),
        ((4000, 3000), "short:100", (299, 224)),
        ((4000, 3000), "exact:400x100", (896, 224)),
    ],
)
def test_an_image_smaller_than_a_patch_is_enlarged_keeping_its_aspect(size: tuple[int, int], rule: str, stored: tuple[int, int]) -> None:
    assert resized_size(*size, rule, 224) == stored


@pytest.mark.parametrize("rule", ["", "large", "512x384", "exact:512", "exact:0x384", "exact:512x384 ", "short:0", "short:-3", "short:1.5"])
def test_an_unknown_rule_is_refused_with_the_three_that_exist(rule: str) -> None:
    with pytest.raises(ShardError, match=r"none, exact:WIDTHxHEIGHT or short:PIXELS"):
        resized_size(640, 480, rule, 224)


@pytest.mark.parametrize(("stored", "enlarged"), [((100, 80), False), ((50, 40), False), ((101, 80), True), ((50, 81), True)])
def test_enlarged_means_that_either_side_grew(stored: tuple[int, int], enlarged: bool) -> None:
    assert is_enlarged(100, 80, *stored) is enlarged


def test_pixels_that_fit_are_not_touched() -> None:
    pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    assert np.array_equal(resize(pixels, 9, 8), pixels)


def test_a_smaller_image_is_the_mean_of_the_larger_one() -> None:
    columns = np.repeat(np.arange(0, 256, 4, dtype=np.uint8), 3).reshape(1, 64, 3)  # a ramp from left to right
    smaller = resize(np.repeat(columns, 32, axis=0), 16, 8)
    assert smaller.shape == (8, 16, 3) and smaller.dtype == np.uint8
    assert np.abs(smaller[0, 1:-1, 0] - (16.0 * np.arange(1, 15) + 6)).max() <= 1  # not one pixel out of four
