"""The logistic curves are those of the papers, come as close as they can, and are not passed off where there are none."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from dist_train.mapping import CURVES, Curve, fit_logistic


def vqeg(s: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
    return b2 + (b1 - b2) / (1 + np.exp(-(s - b3) / abs(b4)))


def sheikh(s: np.ndarray, b1: float, b2: float, b3: float, b4: float, b5: float) -> np.ndarray:
    return b1 * (0.5 - 1 / (1 + np.exp(b2 * (s - b3)))) + b4 * s + b5


FORMS = {4: (vqeg, (95.0, 5.0, 3.1, 0.4)), 5: (sheikh, (60.0, 2.5, 2.8, 6.0, 20.0))}


def squares(curve: Curve, scores: np.ndarray, opinions: np.ndarray) -> float:
    return float(np.sum((curve(scores) - opinions) ** 2))


@pytest.mark.parametrize("number", CURVES)
def test_a_curve_is_evaluated_as_the_paper_writes_it(number: int) -> None:
    form, parameters = FORMS[number]
    scores = np.linspace(1, 5, 50)
    np.testing.assert_allclose(Curve("fitted", parameters)(scores), form(scores, *parameters), rtol=1e-12)


@pytest.mark.parametrize("number", CURVES)
def test_the_parameters_behind_the_opinions_are_found_again(number: int) -> None:
    form, parameters = FORMS[number]
    scores = np.random.default_rng(0).uniform(1, 5, 300)
    found = fit_logistic(scores, form(scores, *parameters), number)
    assert found.status == "fitted"
    np.testing.assert_allclose(found.parameters, parameters, rtol=1e-4)


@pytest.mark.parametrize("number", CURVES)
@pytest.mark.parametrize("shape", ["saturating", "growing", "straight"])
def test_the_curve_is_as_close_as_scipys_own_fit_from_the_usual_start(number: int, shape: str) -> None:
    generator = np.random.default_rng(1)
    scores = generator.normal(50, 15, 400)
    bent = {"saturating": 20 * np.tanh((scores - 45) / 12), "growing": np.exp(scores / 30), "straight": scores / 7}[shape]
    opinions = bent + generator.normal(0, 0.2 * bent.std(), 400)
    form, _ = FORMS[number]
    usual = {
        4: (opinions.max(), opinions.min(), scores.mean(), scores.std()),
        5: (np.ptp(opinions), 1 / scores.std(), scores.mean(), 0.0, opinions.mean()),
    }
    low, high = np.full(number, -np.inf), np.full(number, np.inf)
    width = (0.1 * scores.std(), 100 * scores.std())  # no jumps between two images, as for ours
    place = {4: 3, 5: 1}[number]
    low[place], high[place] = width if number == 4 else (1 / width[1], 1 / width[0])
    theirs, _ = optimize.curve_fit(form, scores, opinions, usual[number], bounds=(low, high), max_nfev=20_000)
    found = fit_logistic(scores, opinions, number)
    assert found.parameters is not None
    assert squares(found, scores, opinions) <= np.sum((form(scores, *theirs) - opinions) ** 2) * 1.0005


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 60))
def test_the_curve_of_five_is_never_further_off_than_a_straight_line(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=n)
    opinions = scores + generator.normal(0, 0.5, n)
    found = fit_logistic(scores, opinions, 5)
    if found.parameters is None:  # a few points may run the other way, or be met best by a hump
        assert re.search("do not rise|no higher than it begins", found.status)
        return
    line = np.polyval(np.polyfit(scores, opinions, 1), scores)
    assert squares(found, scores, opinions) <= np.sum((line - opinions) ** 2) * (1 + 1e-6)


@pytest.mark.parametrize("number", CURVES)
@pytest.mark.parametrize(("unit", "other"), [(1e-3, 1.0), (1.0, 1e3), (1e4, 1e-4)])
def test_the_units_of_scores_and_opinions_do_not_matter(number: int, unit: float, other: float) -> None:
    generator = np.random.default_rng(2)
    scores = generator.normal(size=100)
    opinions = np.tanh(scores) + 0.3 * scores + generator.normal(0, 0.1, 100)
    found, turned = fit_logistic(scores, opinions, number), fit_logistic(unit * scores + 7, other * opinions - 3, number)
    np.testing.assert_allclose(turned(unit * scores + 7), other * found(scores) - 3, rtol=1e-3, atol=1e-4 * other)


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (np.full(50, 3.0), "1 different scores"),
        (3 + 4.5e-16 * np.arange(50), "1 different scores"),  # but for rounding
        (np.repeat([1.0, 2.0, 3.0, 4.0], 13)[:50], "4 different scores"),
        (-np.arange(50.0), "do not rise"),
        (np.r_[np.arange(49.0), np.nan], "not finite"),
        (np.r_[np.arange(49.0), np.inf], "not finite"),
        (np.empty(0), "0 different scores"),
    ],
    ids=["constant", "constant but for rounding", "too few", "the other way round", "nan", "infinite", "nothing"],
)
@pytest.mark.parametrize("number", CURVES)
def test_a_curve_that_cannot_be_fitted_says_why(scores: np.ndarray, why: str, number: int) -> None:
    found = fit_logistic(scores, np.arange(float(len(scores))), number)
    assert found.parameters is None
    assert re.match(rf"not fitted: .*{why}", found.status)


def test_equal_opinions_have_no_curve_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert fit_logistic(np.arange(20.0), np.full(20, 3.0), 4).status == "not fitted: all opinions are equal"
    assert not recwarn.list


def test_a_search_that_does_not_settle_is_not_passed_off_as_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    search = optimize.least_squares
    monkeypatch.setattr(optimize, "least_squares", lambda *args, **more: search(*args, **more | {"max_nfev": 1}))
    found = fit_logistic(np.arange(30.0), np.tanh(np.arange(30.0) / 10), 5)
    assert found.parameters is None
    assert found.status.startswith("not fitted: the search for the curve did not settle")


def test_a_curve_that_falls_somewhere_says_so() -> None:
    scores = np.linspace(-3, 3, 200)
    assert fit_logistic(scores, 4 * np.tanh(2 * scores) - 0.5 * scores, 5).status == "fitted, not monotone"
    assert fit_logistic(scores, 4 * np.tanh(2 * scores) + 0.5 * scores, 5).status == "fitted"


@pytest.mark.parametrize("number", CURVES)
def test_a_curve_that_would_be_steeper_if_it_might_says_so(number: int) -> None:
    scores = np.linspace(-2, 2, 400)
    steeper, flatter = (fit_logistic(scores, np.tanh(scores / (2 * width)) + 0.3 * scores, number) for width in (0.01, 0.2))
    assert (steeper.status, flatter.status) == ("fitted, as steep as allowed", "fitted")
