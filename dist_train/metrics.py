"""How well scores agree with opinions, at image level and at patch level. Everything in float64; correlations by scipy.

SRCC and KRCC compare orders, PLCC compares values along a line, without a fitted mapping. A correlation that does not
exist (fewer than two images, all scores equal, or a score that is not finite) is nan, and nan is never the best.
"""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats


def agreement(scores: np.ndarray, opinions: np.ndarray) -> dict[str, float]:
    """SRCC, PLCC, KRCC and RMSE of scores [n] against opinions [n]; RMSE in units of the label."""
    scores, opinions = np.asarray(scores, np.float64), np.asarray(opinions, np.float64)
    errors = scores - opinions
    result = {"srcc": np.nan, "plcc": np.nan, "krcc": np.nan, "rmse": float(np.sqrt(np.mean(errors**2))) if len(errors) else np.nan}
    if len(scores) >= 2 and np.isfinite(scores).all():  # SRCC would rank an infinite score like any other
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            result["srcc"] = float(stats.spearmanr(scores, opinions).statistic)
            result["plcc"] = float(stats.pearsonr(scores, opinions).statistic)
            result["krcc"] = float(stats.kendalltau(scores, opinions).statistic)
    return result


def two_level_panel(images: np.ndarray, scores: np.ndarray, opinions: np.ndarray) -> dict[str, float]:
    """Agreement at image level and at patch level, and the spread within images.

    `images` [visits] names the image of each visit, `scores` is [visits, patches], `opinions` [visits]. An image's score is
    the mean over all its patches; its spread is their standard deviation; `spread` is the mean over the images. Patch-level
    values carry the prefix patch_; the rank correlation of so many pairs is left to SRCC.
    """
    image_scores, spreads, image_opinions = per_image(images, scores, opinions)
    panel = agreement(image_scores, image_opinions)
    flat = agreement_of_patches(scores, opinions)
    return panel | {f"patch_{name}": value for name, value in flat.items()} | {"spread": float(spreads.mean()) if len(spreads) else np.nan}


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
