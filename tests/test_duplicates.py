"""Who looks like whom: copies to the eye are found, and no others."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards import demo
from shards.duplicates import THUMBNAIL, Look, look_of, near_pairs, same_files


def look(pixels: np.ndarray) -> Look | None:
    return look_of(Image.fromarray(pixels))


def test_every_distortion_looks_like_its_original_and_no_content_like_another() -> None:
    originals = [look(demo.cut_content(content)) for content in demo.CONTENTS]
    assert not [*near_pairs(originals, range(len(originals)))]
    for content, original in list(zip(demo.CONTENTS, originals, strict=True))[:5]:
        for distortion in demo.DISTORTIONS:
            changed = look(demo.distort(demo.cut_content(content), distortion, 5))
            assert [pairs.tolist() for pairs in near_pairs([original, changed], [0, 1])] == [[[0, 1]]], (content, distortion)


def test_a_flat_picture_looks_like_nothing() -> None:
    assert look(np.full((80, 80, 3), 255, np.uint8)) is None
    assert not [*near_pairs([None, None], [0, 1])]


def test_pictures_of_one_side_are_not_compared() -> None:
    coffee = look(demo.cut_content("coffee"))
    assert not [*near_pairs([coffee, coffee, coffee], [4, 4, 4])]
    assert np.concatenate([*near_pairs([coffee, None, coffee, coffee], [4, 4, 5, 4])]).tolist() == [[0, 2], [2, 3]]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**10 - 1), st.integers(0, 2)), max_size=150),
)
def test_near_pairs_are_those_that_comparing_one_by_one_finds(pictures: list[tuple[int, int, int]]) -> None:
    thumbnails = [np.random.default_rng(number).integers(0, 256, THUMBNAIL**2, np.uint8).tobytes() for number in range(4)]
    looks = [Look(bits << 54 | bits, thumbnails[which]) for which, bits, _ in pictures]
    sides = [side for *_, side in pictures]
    found = [tuple(pair) for block in near_pairs(looks, sides) for pair in block.tolist()]
    expected = {
        (one, other)
        for one in range(len(looks))
        for other in range(one + 1, len(looks))
        if (looks[one].hash ^ looks[other].hash).bit_count() <= 8
        and looks[one].thumbnail == looks[other].thumbnail
        and sides[one] != sides[other]
    }
    assert len(found) == len(set(found)) and set(found) == expected


def test_same_files_are_sets_of_numbers() -> None:
    assert same_files(["a", "b", "a", "", "", "c", "b", "a"]) == [[0, 2, 7], [1, 6]]
