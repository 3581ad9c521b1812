"""How well scores agree with opinions, at image level and at patch level. Everything in float64; correlations by scipy.

SRCC and KRCC compare orders, PLCC compares values along a line. A correlation that does not exist (fewer than three images,
all scores equal, or a score that is not finite) is nan, and nan is never the best.

Correlations carry the sign of quality. Scores are spoken on the scale of the label, so on a DMOS, where lower is better, a
good model gives low scores to good images, and its SRCC is positive all the same. A model that knows good from bad but
speaks the other way round is negative, and stays negative.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy  # which loads scipy.stats when it is first used: of all ranks only the first has figures to compute

from dist_train.intervals import correlation_intervals, effective_contents, without_rounding
from dist_train.mapping import CURVES, RISING, fit_logistic
from shards.splits import FEWEST_IMAGES


def agreement(scores: np.ndarray, opinions: np.ndarray) -> dict[str, float]:
    """SRCC, PLCC, KRCC (tau-b) and RMSE of scores [n] against opinions [n]; RMSE in units of the label."""
    scores, opinions = without_rounding(np.asarray(scores, np.float64)), np.asarray(opinions, np.float64)
    errors = scores - opinions
    result = {"srcc": np.nan, "plcc": np.nan, "krcc": np.nan, "rmse": root_mean_square(errors)}
    exists = len(scores) >= FEWEST_IMAGES and np.isfinite(errors).all()  # SRCC would rank an infinite score like any other
    if exists and np.ptp(scores) > 0 and np.ptp(opinions) > 0:
        result["srcc"] = float(scipy.stats.spearmanr(scores, opinions).statistic)
        result["plcc"] = pearson(scores, opinions)
        result["krcc"] = float(scipy.stats.kendalltau(scores, opinions).statistic)
    return result


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two arrays [n]; nan, and no warning, when one of them is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        return float(scipy.stats.pearsonr(a, b).statistic)


def root_mean_square(errors: np.ndarray) -> float:
    """The root of the mean square of errors [n]; nan for none."""
    return float(np.sqrt(np.mean(errors**2))) if len(errors) else np.nan


def image_figures(scores: np.ndarray, opinions: np.ndarray, stds: np.ndarray, contents: np.ndarray) -> dict[str, Any]:
    """What a result is told with, besides its panel: intervals, fitted curves, errors beyond what people differ by.

    All are [n], a row per image; `stds` is the standard deviation of the single ratings of an image in units of the label, nan
    where the set has none; `contents` names what each image shows.

    images, contents, effective_contents: their numbers, the last as `intervals.effective_contents` counts.
    srcc_interval, plcc_interval: 95 %, by bootstrap over the contents: [low, high].
    plcc_mapped4, rmse_mapped4, plcc_mapped5, rmse_mapped5: after the logistic of 4 and of 5 parameters. nan where none could
        be fitted, never the raw figure; mapping4 and mapping5 hold the status, which says why, and the parameters.
    plcc_mapped, mapped_by: the last of these that was fitted and nowhere falls, and its number of parameters; where there is
        none, the raw PLCC and 0.
    rmse_epsilon, outlier_ratio: see `beyond_tolerance`, of the scores as plcc_mapped has them; nan unless every image has a std.
    """
    scores, opinions = np.asarray(scores, np.float64), np.asarray(opinions, np.float64)
    intervals = correlation_intervals(scores, opinions, contents)
    figures: dict[str, Any] = {"images": len(scores), "contents": len(np.unique(contents))}
    figures["effective_contents"] = effective_contents(contents)
    figures |= {"plcc_mapped": agreement(scores, opinions)["plcc"], "mapped_by": 0}
    figures |= {f"{name}_interval": ends for name, ends in intervals.items()}
    errors = scores - opinions
    for number in CURVES:
        curve = fit_logistic(scores, opinions, number)
        plcc = rmse = np.nan
        if curve.parameters:
            mapped = curve(scores)
            plcc, rmse = pearson(mapped, opinions), root_mean_square(mapped - opinions)
            if curve.status in RISING:  # a hump would turn some scores round, and pass for an agreement that they do not have
                figures |= {"plcc_mapped": plcc, "mapped_by": number}
                errors = mapped - opinions
        parameters = list(curve.parameters) if curve.parameters else None
        figures |= {f"plcc_mapped{number}": plcc, f"rmse_mapped{number}": rmse}
        figures[f"mapping{number}"] = {"status": curve.status, "parameters": parameters}
    return figures | beyond_tolerance(errors, 2 * np.asarray(stds, np.float64))


def beyond_tolerance(errors: np.ndarray, tolerance: np.ndarray) -> dict[str, float]:
    """Epsilon-insensitive RMSE (units of the label) and outlier ratio (0 to 1) of errors [n], each with its tolerance [n].

    An error counts only by what it is larger than its tolerance (ITU-T P.1401 (2020), 7.7), and the outlier ratio is the share
    of images whose error is larger (7.5.2.2), where both are of mapped scores. The mean is over n, as for every RMSE here; P.1401
    divides by n - d.

    P.1401 takes the 95 % interval of the MOS as the tolerance, which needs the number of raters. Shards do not have it, so two
    standard deviations of the single ratings are taken, between which 95 % of them lie: the outlier of Larson and Chandler,
    "Most apparent distortion", Journal of Electronic Imaging 19(1), 2010. It is the milder of the two.
    """
    if not len(errors) or not np.isfinite(tolerance).all():
        return {"rmse_epsilon": np.nan, "outlier_ratio": np.nan}
    excess = np.maximum(np.abs(errors) - tolerance, 0)
    return {"rmse_epsilon": root_mean_square(excess), "outlier_ratio": float(np.mean(~(excess <= 0)))}  # nan is an outlier


def two_level_panel(images: np.ndarray, scores: np.ndarray, opinions: np.ndarray) -> dict[str, float]:
    """Agreement at image level and at patch level, and the spread within images.

    `images` [visits] names the image of each visit, `scores` is [visits, patches], `opinions` [visits]. An image's score is
    the mean over all its patches; its spread is their standard deviation; `spread` is the mean over the images. Patch-level
    values carry the prefix patch_; the rank correlation of so many pairs is left to SRCC. `images` counts the different ones.
    """
    image_scores, spreads, image_opinions = per_image(images, scores, opinions)
    panel = agreement(image_scores, image_opinions)
    flat = agreement_of_patches(scores, opinions)
    panel |= {f"patch_{name}": value for name, value in flat.items()}
    return panel | {"spread": float(spreads.mean()) if len(spreads) else np.nan, "images": len(image_scores)}


def agreement_of_patches(scores: np.ndarray, opinions: np.ndarray) -> dict[str, float]:
    """SRCC and PLCC of every patch's score [visits, patches] against its image's opinion."""
    flat = np.asarray(scores, np.float64).ravel()
    repeated = np.repeat(np.asarray(opinions, np.float64), scores.shape[1]) if len(opinions) else flat
    return {name: value for name, value in agreement(flat, repeated).items() if name in ("srcc", "plcc")}


def per_image(images: np.ndarray, scores: np.ndarray, opinions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score, spread and opinion of every image that occurs, in ascending order of its number: three arrays, float64."""
    numbers, first, place = np.unique(images, return_index=True, return_inverse=True)
    values = np.asarray(scores, np.float64)
    counts = np.bincount(place, minlength=len(numbers)) * values.shape[1]
    means = np.bincount(place, values.sum(axis=1), len(numbers)) / counts
    squares = np.bincount(place, ((values - means[place][:, None]) ** 2).sum(axis=1), len(numbers))
    return means, np.sqrt(squares / counts), np.asarray(opinions, np.float64)[first]
