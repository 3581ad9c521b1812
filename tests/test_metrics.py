"""What the figures of a run mean: small cases worked by hand, and the definitions written out as plain loops."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dist_train.metrics import (
    agreement,
    agreement_of_patches,
    beyond_tolerance,
    image_figures,
    per_image,
    root_mean_square,
    two_level_panel,
)
from dist_train.stopping import EarlyStop, Verdict

quickly = settings(max_examples=50, deadline=None)
few_levels = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20)  # so that ties are common


def test_ties_share_their_mean_rank() -> None:
    found = agreement(np.array([1, 2, 2, 4]), np.array([1, 2, 3, 4]))
    assert found["srcc"] == pytest.approx(4.5 / math.sqrt(4.5 * 5))  # ranks 1, 2.5, 2.5, 4
    assert found["plcc"] == pytest.approx(4.5 / math.sqrt(4.75 * 5))
    assert found["krcc"] == pytest.approx(5 / math.sqrt(5 * 6))  # tau-b: five pairs agree, one is tied in the scores
    assert found["rmse"] == pytest.approx(0.5)


@quickly
@given(few_levels)
def test_rank_correlations_are_what_their_definitions_say(pairs: list[tuple[int, int]]) -> None:
    scores, opinions = np.array(pairs, np.float64).T
    found = agreement(scores, opinions)
    ranks = [[np.sum(values < value) + (np.sum(values == value) + 1) / 2 for value in values] for values in (scores, opinions)]
    (a, b) = (np.array(r) - np.mean(r) for r in ranks)
    signs = [(np.sign(p - q), np.sign(y - z)) for (p, y), (q, z) in itertools.combinations(pairs, 2)]
    untied = math.prod(sum(sign[side] != 0 for sign in signs) for side in (0, 1))
    if untied == 0:
        assert math.isnan(found["srcc"]) and math.isnan(found["krcc"])
    else:
        assert found["srcc"] == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-12)
        assert found["krcc"] == pytest.approx(sum(s * t for s, t in signs) / math.sqrt(untied), abs=1e-12)


def test_agreement_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    opinions = generator.uniform(0, 100, 200).round()
    scores = opinions + generator.normal(0, 20, 200)
    found = agreement(scores, opinions)
    assert found["srcc"] == pytest.approx(stats.spearmanr(scores, opinions).statistic, abs=1e-12)
    assert found["plcc"] == pytest.approx(np.corrcoef(scores, opinions)[0, 1], abs=1e-12)
    assert found["krcc"] == pytest.approx(stats.kendalltau(scores, opinions).statistic, abs=1e-12)
    assert found["rmse"] == pytest.approx(math.sqrt(np.mean((scores - opinions) ** 2)))


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_equal_scores_have_no_correlation_and_no_warning(n: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(np.full(n, 50.0), np.arange(n))
    assert all(math.isnan(found[name]) for name in ("srcc", "plcc", "krcc"))
    assert math.isnan(found["rmse"]) == (n == 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_score_that_is_no_number_leaves_no_correlation_to_be_the_best(bad: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(np.array([1.0, 2.0, 3.0, bad]), np.arange(4.0))
    assert all(math.isnan(found[name]) for name in ("srcc", "plcc", "krcc"))
    assert not math.isfinite(found["rmse"])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_images_have_no_correlation(n: int) -> None:
    found = agreement(np.array([3.0, 1.0])[:n], np.array([1.0, 3.0])[:n])  # two always lie on a line
    assert all(math.isnan(found[name]) for name in ("srcc", "plcc", "krcc"))
    assert found["rmse"] == pytest.approx(2) if n else math.isnan(found["rmse"])
    assert not math.isnan(agreement(np.array([3.0, 1.0, 2.0]), np.array([1.0, 3.0, 2.0]))["srcc"])


def test_no_correlation_is_never_the_best_epoch() -> None:
    nothing = agreement(np.full(5, 50.0), np.arange(5.0))["srcc"]
    rule, verdict = EarlyStop(patience=3).judge(0, nothing)
    assert (rule.best, verdict) == (None, Verdict.NO_BETTER)
    rule, verdict = rule.judge(1, -0.9)  # even a very bad epoch is better than none
    assert verdict is Verdict.NEW_BEST
    assert rule.judge(2, nothing)[1] is Verdict.NO_BETTER


def test_scores_that_differ_by_rounding_alone_are_equal() -> None:
    means = 0.1 * 3 / 3 * np.array([1, 1 + 2e-16, 1 - 2e-16, 1 + 4e-16])  # as float64 means of equal float32 scores may be
    assert len(np.unique(means)) > 1
    assert all(math.isnan(agreement(means, np.arange(4.0))[name]) for name in ("srcc", "plcc", "krcc"))
    assert agreement(np.float32(0.1) + np.arange(4) * np.float32(1e-8), np.arange(4.0))["srcc"] == pytest.approx(1)


def test_a_model_that_learns_dmos_agrees_with_dmos() -> None:
    dmos = np.array([5.0, 20.0, 60.0, 90.0])  # lower is better; the model is asked for just these numbers
    assert agreement(dmos + 1, dmos)["srcc"] == pytest.approx(1)
    assert agreement(100 - dmos, dmos)["srcc"] == pytest.approx(-1)  # right about quality, on the opposite scale


def test_a_score_counts_as_an_error_only_beyond_two_standard_deviations() -> None:
    errors, stds = np.array([3.0, -3.0, 0.5, -5.0]), np.array([1.0, 1.5, 1.0, 1.0])  # beyond: 1, 0, 0 and 3
    assert beyond_tolerance(errors, 2 * stds) == {"rmse_epsilon": pytest.approx(math.sqrt(10 / 4)), "outlier_ratio": 0.5}
    assert beyond_tolerance(errors, 0 * stds) == {"rmse_epsilon": pytest.approx(root_mean_square(errors)), "outlier_ratio": 1.0}


@pytest.mark.parametrize("stds", [[np.nan] * 5, [1.0, 1.0, np.nan, 1.0, 1.0]], ids=["no image", "not every image"])
def test_without_a_deviation_for_every_image_there_is_no_outlier_ratio(stds: list[float]) -> None:
    found = image_figures(np.arange(5.0), np.arange(5.0), np.array(stds), np.arange(5))
    assert math.isnan(found["rmse_epsilon"]) and math.isnan(found["outlier_ratio"])


def test_a_score_that_is_no_number_is_an_outlier_and_has_no_figures() -> None:
    found = image_figures(np.array([1.0, np.nan, 3.0, 4.0, 5.0, 6.0, 7.0]), np.arange(7.0), np.full(7, 10.0), np.arange(7))
    assert found["outlier_ratio"] == pytest.approx(1 / 7)
    assert all(math.isnan(found[name]) for name in ("rmse_epsilon", "plcc_mapped4", "rmse_mapped5"))
    assert np.isnan(found["srcc_interval"]).all() and np.isnan(found["plcc_interval"]).all()


def test_figures_of_a_bent_scale_are_better_after_the_curve() -> None:
    opinions = np.linspace(0, 100, 60)
    scores = 50 + 12 * np.log((opinions + 3) / (103 - opinions))  # opinions are a logistic of them
    found = image_figures(scores, opinions, np.full(60, np.nan), np.arange(60) % 12)
    plcc = stats.pearsonr(scores, opinions).statistic
    for number in (4, 5):
        assert found[f"plcc_mapped{number}"] == pytest.approx(1, abs=1e-6) and plcc < 0.999
        assert found[f"rmse_mapped{number}"] < 0.1 < root_mean_square(scores - opinions)
    assert (found["images"], found["contents"]) == (60, 12)
    assert len(found["mapping4"]["parameters"]) == 4 and len(found["mapping5"]["parameters"]) == 5


def test_scores_on_a_scale_of_their_own_are_mapped_before_they_are_held_against_what_people_differ_by() -> None:
    opinions = np.linspace(0, 100, 60)
    stds = np.full(60, 8.0)
    found = image_figures((opinions - 50) / 30, opinions, stds, np.arange(60))  # as norm-in-norm or PLCC leave them
    assert (found["outlier_ratio"], found["rmse_epsilon"]) == (0.0, 0.0) and found["mapped_by"]
    turned = image_figures(-opinions, opinions, stds, np.arange(60))  # nothing is fitted there
    assert turned["mapped_by"] == 0 and turned["outlier_ratio"] == np.mean(2 * opinions > 16)


def test_a_curve_as_steep_as_allowed_gives_the_mapped_figures_all_the_same() -> None:
    scores = np.linspace(-2, 2, 400)
    found = image_figures(scores, np.tanh(50 * scores) + 0.3 * scores, np.full(400, np.nan), np.arange(400))
    assert found["mapping5"]["status"] == "fitted, as steep as allowed"
    assert found["mapped_by"] == 5 and found["plcc_mapped"] == found["plcc_mapped5"]


def test_where_no_curve_can_be_fitted_the_raw_figure_is_not_put_in_its_place() -> None:
    found = image_figures(np.arange(4.0), np.arange(4.0), np.ones(4), np.arange(4))
    for number in (4, 5):
        assert math.isnan(found[f"plcc_mapped{number}"]) and math.isnan(found[f"rmse_mapped{number}"])
        assert found[f"mapping{number}"] == {"status": f"not fitted: 4 different scores for {number} parameters", "parameters": None}
    assert (found["plcc_mapped"], found["mapped_by"]) == (pytest.approx(1), 0)  # there it may be, for it is said what it is


def test_the_mapped_figure_falls_back_from_the_curve_of_5_to_that_of_4_to_none_and_says_so() -> None:
    opinions = np.array([0.0, 1.0, 2.0, 3.5, 4.0, 5.0, 9.0])
    for different, number in ((7, 5), (5, 4), (4, 0)):
        scores = np.minimum(np.arange(7.0), different - 1)
        found = image_figures(scores, opinions, np.full(7, np.nan), np.arange(7))
        assert found["mapped_by"] == number
        assert found["plcc_mapped"] == (
            found[f"plcc_mapped{number}"] if number else pytest.approx(stats.pearsonr(scores, opinions).statistic)
        )
    turned = image_figures(-opinions, opinions, np.full(7, np.nan), np.arange(7))
    assert (turned["plcc_mapped"], turned["mapped_by"]) == (pytest.approx(-1), 0)  # no curve turns a score round


def test_a_curve_with_a_hump_is_told_of_but_gives_no_result_its_mapped_figure() -> None:
    scores = np.linspace(0, 1, 41)
    opinions = scores * (1.1 - scores)  # the best picture has a score in the middle
    found = image_figures(scores, opinions, np.full(41, np.nan), np.arange(41))
    assert found["mapping5"]["status"] == "fitted, not monotone"
    assert found["plcc_mapped5"] > 0.9 > found["plcc_mapped4"]
    assert (found["plcc_mapped"], found["mapped_by"]) == (found["plcc_mapped4"], 4)


def test_float32_scores_are_averaged_in_float64() -> None:
    scores = np.full((1, 3), 0.1, np.float32)
    means, _, _ = per_image(np.array([0]), scores, np.array([0.0]))
    assert means.dtype == np.float64
    assert means[0] == pytest.approx(float(np.float32(0.1)), abs=1e-15)


@quickly
@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 4))
def test_an_image_is_the_mean_and_deviation_over_all_its_visits(images: list[int], patches: int) -> None:
    generator = np.random.default_rng(len(images))
    scores = generator.uniform(0, 100, (len(images), patches))
    opinions = np.array([10.0 * image for image in images])
    means, spreads, said = per_image(np.array(images), scores, opinions)
    for place, image in enumerate(sorted(set(images))):
        of_one = [score for visit, row in zip(images, scores, strict=True) if visit == image for score in row]
        mean = sum(of_one) / len(of_one)
        assert means[place] == pytest.approx(mean)
        assert spreads[place] == pytest.approx(math.sqrt(sum((score - mean) ** 2 for score in of_one) / len(of_one)), abs=1e-9)
        assert said[place] == 10.0 * image
    assert len(means) == len(spreads) == len(said) == len(set(images))


def test_the_order_of_visits_does_not_matter() -> None:
    images, scores = np.array([7, 2, 7, 4]), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [9.0, 8.0]])
    turned = np.array([3, 1, 2, 0])
    for one, other in zip(
        per_image(images, scores, 1.0 * images), per_image(images[turned], scores[turned], 1.0 * images[turned]), strict=True
    ):
        np.testing.assert_allclose(one, other)


def test_the_panel_compares_images_and_patches_each_on_their_own_level() -> None:
    images, opinions = np.array([4, 9, 2]), np.array([10.0, 20.0, 30.0])
    scores = np.array([[11.0, 15.0], [19.0, 21.0], [8.0, 28.0]])
    panel = two_level_panel(images, scores, opinions)
    assert panel["srcc"] == pytest.approx(stats.spearmanr([13, 20, 18], [10, 20, 30]).statistic)
    assert panel["rmse"] == pytest.approx(math.sqrt((3**2 + 0 + 12**2) / 3))
    assert panel["patch_srcc"] == pytest.approx(stats.spearmanr([11, 15, 19, 21, 8, 28], [10, 10, 20, 20, 30, 30]).statistic)
    assert panel["patch_plcc"] == pytest.approx(np.corrcoef([11, 15, 19, 21, 8, 28], [10, 10, 20, 20, 30, 30])[0, 1])
    assert panel["spread"] == pytest.approx((2 + 1 + 10) / 3)  # half the distance between two patches, averaged over the images
    assert set(panel) == {"srcc", "plcc", "krcc", "rmse", "patch_srcc", "patch_plcc", "spread", "images"} and panel["images"] == 3


def test_a_panel_of_nothing_is_nan() -> None:
    nothing = two_level_panel(np.empty(0, np.int64), np.empty((0, 2)), np.empty(0))
    assert nothing.pop("images") == 0
    assert all(math.isnan(value) for value in nothing.values())


def test_patches_of_one_image_have_no_correlation() -> None:
    assert all(math.isnan(value) for value in agreement_of_patches(np.array([[1.0, 2.0, 3.0]]), np.array([5.0])).values())
