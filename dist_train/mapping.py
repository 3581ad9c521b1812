"""Scores bent onto the scale of the opinions by a logistic curve, as most papers do before PLCC and RMSE.

Two curves are usual, and a figure means little without saying which:

    4 parameters    b2 + (b1 - b2) / (1 + exp(-(s - b3) / |b4|))
                    VQEG, "Final report ... on the validation of objective models of video quality assessment", 2000;
                    in code, logistic_4params of pyiqa
    5 parameters    b1 (1/2 - 1 / (1 + exp(b2 (s - b3)))) + b4 s + b5
                    Sheikh, Sabir and Bovik, "A statistical evaluation of recent full reference image quality assessment
                    algorithms", IEEE Transactions on Image Processing 15(11), 2006; in code, logistic.m of UNIQUE

Both are a step of some centre and width, stretched, shifted, and for the second tilted. Stretch, shift and tilt have a closed
form, so that only centre and width are searched for (variable projection: Golub and Pereyra, SIAM Journal on Numerical
Analysis 10(2), 1973). A curve may bend scores, never turn them round: where scores run against opinions, nothing is fitted,
and a curve of 5 with a hump, which its formula allows, is told of as that and gives no result its mapped PLCC.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import scipy

from dist_train.intervals import without_rounding

CURVES = (4, 5)  # numbers of parameters
FITTED = "fitted"
STEEPEST = "fitted, as steep as allowed"  # the search ended at the narrowest step: a narrower one would come closer still
RISING = (FITTED, STEEPEST)  # the status of a curve that rises all the way

# Of the step, in standard deviations of the scores. A narrower one is a jump between two images, a wider one a line.
_WIDTHS = (0.1, 100.0)
_AT_THE_END = 1e-6  # as a share of the width: closer to the narrowest than any search stops by itself
_OUTSIDE = 10.0  # how far beyond the scores the centre may lie; there the step is an exponential
_STARTS = tuple(product((-1.5, -0.5, 0.5, 1.5), (0.1, 0.3, 1.0, 3.0)))  # (centre, width)
_SEARCHES = 4  # from the best of these starts: there may be several valleys


@dataclass(frozen=True)
class Curve:
    """A curve from scores to opinions, or why there is none.

    `parameters` are b1, b2 ... in the units of scores and opinions, None when nothing was fitted. `status` says "fitted",
    "fitted, as steep as allowed" (its step is as narrow as any that is tried, 0.1 standard deviations of the scores),
    "fitted, not monotone" (the curve falls somewhere between the lowest and the highest score), or "not fitted: why".
    """

    status: str
    parameters: tuple[float, ...] | None = None

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The scores [n] on the scale of the opinions: float64 [n]. Only for a curve that was fitted."""
        assert self.parameters is not None, self.status
        scores = np.asarray(scores, np.float64)
        if len(self.parameters) == 4:
            b1, b2, b3, b4 = self.parameters
            mapped: np.ndarray = b2 + (b1 - b2) * scipy.special.expit((scores - b3) / abs(b4))
        else:
            b1, b2, b3, b4, b5 = self.parameters
            mapped = b1 * (scipy.special.expit(b2 * (scores - b3)) - 0.5) + b4 * scores + b5
        return mapped


def fit_logistic(scores: np.ndarray, opinions: np.ndarray, num_parameters: int) -> Curve:
    """The curve of 4 or 5 parameters that brings scores [n] closest to opinions [n], by least squares."""
    scores, opinions = without_rounding(np.asarray(scores, np.float64)), np.asarray(opinions, np.float64)
    if reason := _why_not(scores, opinions, num_parameters):
        return Curve(f"not fitted: {reason}")
    middle, unit = scores.mean(), scores.std()
    x, y = (scores - middle) / unit, (opinions - opinions.mean()) / opinions.std()
    tilted = num_parameters == 5

    def misses(where: np.ndarray) -> np.ndarray:
        """What the best curve with a step at this centre and of this width (its logarithm) leaves over."""
        step, stretch, tilt = _best_curve(x, y, where[0], np.exp(where[1]), tilted)
        left: np.ndarray = stretch * step + tilt * x - y
        return left

    starts = sorted(([centre, np.log(width)] for centre, width in _STARTS), key=lambda where: float(np.sum(misses(np.array(where)) ** 2)))
    bounds = ((x.min() - _OUTSIDE, np.log(_WIDTHS[0])), (x.max() + _OUTSIDE, np.log(_WIDTHS[1])))
    ends = [scipy.optimize.least_squares(misses, start, bounds=bounds, method="dogbox", x_scale="jac") for start in starts[:_SEARCHES]]
    settled = [end for end in ends if end.success]
    if not settled:
        return Curve(f"not fitted: the search for the curve did not settle ({ends[0].message.rstrip('.')})")
    end = min(settled, key=lambda end: float(end.cost))
    centre, width = float(end.x[0]), float(np.exp(end.x[1]))
    stretch, tilt = (opinions.std() * share for share in _best_curve(x, y, centre, width, tilted)[1:])
    lowest = opinions.mean() - stretch * scipy.special.expit((x - centre) / width).mean()  # so that the means agree; x has mean 0
    if tilted:
        offset = lowest + stretch / 2 - tilt * middle / unit
        curve = Curve(FITTED, (stretch, 1 / (width * unit), middle + centre * unit, tilt / unit, offset))
    else:
        curve = Curve(FITTED, (lowest + stretch, lowest, middle + centre * unit, width * unit))
    along = curve(np.linspace(scores.min(), scores.max(), 1001))
    if along[-1] <= along[0]:
        return Curve("not fitted: the closest curve ends no higher than it begins")
    falls = np.diff(along).min() < -1e-9 * (along[-1] - along[0])
    rising = STEEPEST if width <= _WIDTHS[0] * (1 + _AT_THE_END) else FITTED
    return Curve(f"{FITTED}, not monotone" if falls else rising, tuple(map(float, curve.parameters or ())))


def _best_curve(x: np.ndarray, y: np.ndarray, centre: float, width: float, tilted: bool) -> tuple[np.ndarray, float, float]:
    """The centred step [n], and its stretch and tilt of least squares; x and y are standardised."""
    step = scipy.special.expit((x - centre) / width)
    step -= step.mean()
    slope, share = (x @ y / len(x), x @ step / len(x)) if tilted else (0.0, 0.0)
    own = step - share * x  # what of the step is no straight line
    size = own @ own
    stretch = float(own @ y / size) if size > 1e-24 * len(x) else 0.0
    return step, stretch, float(slope - stretch * share)


def _why_not(scores: np.ndarray, opinions: np.ndarray, num_parameters: int) -> str | None:
    if not (np.isfinite(scores).all() and np.isfinite(opinions).all()):
        return "a score or an opinion is not finite"
    if (different := len(np.unique(scores))) <= num_parameters:
        return f"{different} different scores for {num_parameters} parameters"
    if np.ptp(opinions) == 0:
        return "all opinions are equal"
    if scipy.stats.spearmanr(scores, opinions).statistic <= 0:
        return "the scores do not rise with the opinions"
    return None
