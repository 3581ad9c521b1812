"""Intervals against resamples drawn and ranked one by one by scipy, and against intervals that are known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dist_train.intervals import correlation_intervals, correlations, effective_contents, interval, resampled_counts, what_was_drawn

few_levels = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=12)  # so that ties are common


@settings(max_examples=30, deadline=None)
@given(few_levels)
def test_every_resample_has_the_correlations_that_scipy_finds_in_it(pairs: list[tuple[int, int]]) -> None:
    scores, opinions = np.array(pairs, np.float64).T
    (counts,) = resampled_counts(np.arange(len(pairs)), 20)
    found = correlations(scores, opinions, counts)
    for row, srcc, plcc in zip(counts, *found, strict=True):
        drawn = np.repeat(np.arange(len(pairs)), row.astype(int))
        a, b = scores[drawn], opinions[drawn]
        if np.ptp(a) == 0 or np.ptp(b) == 0:
            assert np.isnan(srcc) and np.isnan(plcc)
        else:
            assert srcc == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
            assert plcc == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-9)


def test_the_ends_are_those_of_scipys_bootstrap() -> None:
    generator = np.random.default_rng(3)
    opinions = generator.normal(50, 10, 150)
    scores = opinions + generator.normal(0, 6, 150)
    found = correlation_intervals(scores, opinions, np.arange(150))

    def srcc(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        ranks = [stats.rankdata(values, axis=axis) for values in (a, b)]
        return plcc(*ranks, axis)

    def plcc(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        a, b = (values - values.mean(axis, keepdims=True) for values in (a, b))
        return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis))

    for name, statistic in (("srcc", srcc), ("plcc", plcc)):
        theirs = stats.bootstrap((scores, opinions), statistic, paired=True, n_resamples=4000, method="percentile", random_state=generator)
        assert found[name] == pytest.approx(list(theirs.confidence_interval), abs=0.006)


def test_a_srcc_of_93_on_two_thousand_images_is_known_to_about_7_thousandths() -> None:
    generator = np.random.default_rng(5)
    opinions = generator.normal(size=2015)
    scores = opinions + generator.normal(0, 0.37, 2015)
    low, high = correlation_intervals(scores, opinions, np.arange(2015))["srcc"]
    assert low < stats.spearmanr(scores, opinions).statistic < high
    assert high - low == pytest.approx(0.014, abs=0.003)


def test_about_19_of_20_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(6)
    held = 0
    for _ in range(150):
        opinions = generator.normal(size=80)
        scores = 0.8 * opinions + 0.6 * generator.normal(size=80)  # a true PLCC of 0.8
        low, high = correlation_intervals(scores, opinions, np.arange(80))["plcc"]
        held += low < 0.8 < high
    assert 0.88 <= held / 150 <= 0.99


def test_equal_scores_have_equal_intervals_every_time() -> None:
    generator = np.random.default_rng(4)
    scores, opinions = generator.normal(size=(2, 40))
    assert len({str(correlation_intervals(scores.copy(), opinions.copy(), np.arange(40))) for _ in range(2)}) == 1
    counts = np.concatenate(list(resampled_counts(np.arange(5000), 500)))
    assert (counts.sum(axis=1) == 5000).all() and len(np.unique(counts, axis=0)) == 500
    np.testing.assert_array_equal(counts[:50], np.concatenate(list(resampled_counts(np.arange(5000), 50))))  # however many there are


def test_every_image_is_drawn_equally_often() -> None:
    drawn = np.concatenate(list(resampled_counts(np.arange(50), 4000))).sum(axis=0)
    assert stats.chisquare(drawn).pvalue > 1e-3


@pytest.mark.parametrize(
    "scores",
    [
        np.empty(0),
        np.array([1.0, 2.0]),
        np.full(20, 3.0),
        3 + 4e-16 * np.arange(20) * (np.arange(20) % 3),
        np.r_[np.arange(19.0), np.nan],
        np.r_[np.arange(19.0), -np.inf],
    ],
)
def test_scores_without_a_correlation_have_no_interval_and_no_warning(scores: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = correlation_intervals(scores, np.arange(float(len(scores))), np.arange(len(scores)))
    assert np.isnan(found["srcc"]).all() and np.isnan(found["plcc"]).all()


def test_a_model_on_the_opposite_scale_has_a_negative_interval() -> None:
    opinions = np.random.default_rng(7).normal(size=100)
    assert correlation_intervals(-opinions, opinions, np.arange(100)) == {"srcc": [pytest.approx(-1)] * 2, "plcc": [pytest.approx(-1)] * 2}


def test_the_images_of_a_content_are_drawn_together_and_contents_equally_often() -> None:
    contents = np.array(["c", "a", "c", "b", "b", "b"])
    counts = np.concatenate(list(resampled_counts(contents, 4000)))
    assert (counts[:, 0] == counts[:, 2]).all() and (counts[:, [3]] == counts[:, 4:]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert stats.chisquare(counts[:, [0, 1, 3]].sum(axis=0)).pvalue > 1e-3


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_where_every_image_is_its_own_content_its_name_does_not_matter(names: list[int]) -> None:
    counts = np.concatenate(list(resampled_counts(np.array(names), 30)))
    np.testing.assert_array_equal(counts, np.concatenate(list(resampled_counts(np.arange(12), 30)))[:, names])


def test_about_19_of_20_intervals_hold_the_truth_where_images_share_contents() -> None:
    """Each of 40 contents is liked or not, and its 20 images with it: drawn one by one, less than half of the intervals would."""
    generator, contents = np.random.default_rng(8), np.repeat(np.arange(40), 20)
    by_content, one_by_one = [], []
    for _ in range(100):
        opinions, bias = generator.normal(size=800), np.repeat(generator.normal(size=(2, 40)), 20, axis=1)
        scores, opinions = 0.8 * opinions + 0.6 * generator.normal(size=800) + bias[0], opinions + bias[1]  # a true PLCC of 0.4
        for held, drawn in ((by_content, contents), (one_by_one, np.arange(800))):
            low, high = correlation_intervals(scores, opinions, drawn)["plcc"]
            held.append(low < 0.4 < high)
    assert 0.85 <= np.mean(by_content) <= 0.99 and np.mean(one_by_one) < 0.7


@pytest.mark.parametrize(
    ("images", "contents", "effective", "told"),
    [
        (40, 40, 40.0, ""),
        (20, 20, 20.0, "by resamples of the 20 images, so few that they are too narrow"),
        (2000, 40, 40.0, "by resamples of the 40 contents"),
        (2000, 16, 16.0, "by resamples of the 16 contents, so few that they are too narrow"),
        (2000, 40, 8.0, "by resamples of the 40 contents (those of a run count as 8.0 of one size), so few that they are too narrow"),
        (40, 2, 2.0, "of 2 contents no resamples can be drawn"),
        (40, 1, 1.0, "of 1 content no resamples can be drawn"),
        (40, 40, None, ""),
    ],
)
def test_it_is_told_what_was_drawn(images: int, contents: int, effective: float | None, told: str) -> None:
    assert what_was_drawn(images, contents, effective) == told


def test_contents_count_as_many_of_one_size() -> None:
    assert effective_contents(np.repeat(np.arange(7), 3)) == pytest.approx(7)
    assert effective_contents(np.array(["a"] * 9 + ["b"])) == pytest.approx(100 / 82)
    assert effective_contents(np.empty(0)) == 0


def test_where_many_resamples_have_no_value_there_is_no_interval() -> None:
    assert np.isnan(interval(np.r_[np.arange(90.0), np.full(10, np.nan)])).all()


def test_two_contents_have_no_interval() -> None:
    scores = np.arange(20.0)
    assert np.isnan(correlation_intervals(scores, scores, np.repeat([0, 1], 10))["srcc"]).all()
    assert correlation_intervals(scores, scores, np.arange(20) % 3)["srcc"] == [pytest.approx(1)] * 2


def test_the_interval_is_the_middle_of_what_there_is() -> None:
    assert interval(np.r_[np.arange(41.0), np.nan]) == pytest.approx((1.0, 39.0))
