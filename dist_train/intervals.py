"""How far a correlation would move on other images: the bootstrap over what they show.

A resample draws as many contents as there are, with replacement, each with all of its images: versions of one photograph are no
independent witnesses (the cluster bootstrap; Davison and Hinkley, "Bootstrap methods and their application", 1997, section 3.8).
Where every image is its own content that is the bootstrap over images. What matters of a resample is how often each image was drawn.
So a resample is a row of counts, a rank is a sum of counts, and thousands of resamples take a fraction of a second. An interval
is the 2.5 and the 97.5 percentile (Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13). The draws
are `order.bits` of a fixed seed: the resamples are the same every time and on every machine, and two runs on the same images are
resampled alike, which is what makes their comparison a paired one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dist_train.order import bits

RESAMPLES = 2000  # the ends then waver by about 2 % of the interval's width
LEVEL = 0.95
FEWEST_CONTENTS = 3  # of which an interval says anything
FEW_CONTENTS = 30  # below this it is too narrow all the same: few is "five to thirty" for Cameron, Gelbach and Miller, 2008, abstract
MOST_LOST = 0.05  # of the resamples may have no correlation; of what is left of fewer, the middle is not the middle of all

EQUAL = 1e-12  # scores closer than this, in parts of the largest, differ by the rounding of their means alone
ROUNDING = 1e-13  # a variance so small beside the mean square is rounding alone

_SEED, _RESAMPLING = 0, 101  # a use of `order.bits` of its own
_CHUNK = 1 << 20  # counts held at a time


def without_rounding(scores: np.ndarray) -> np.ndarray:
    """The scores [n], made equal where they differ by rounding alone, so that no order is read out of it."""
    finite = len(scores) > 0 and bool(np.isfinite(scores).all())
    return np.full_like(scores, scores[0]) if finite and np.ptp(scores) <= EQUAL * np.abs(scores).max() else scores


def correlation_intervals(scores: np.ndarray, opinions: np.ndarray, contents: np.ndarray) -> dict[str, list[float]]:
    """95 % intervals of SRCC and PLCC of scores [n] against opinions [n] of images that show contents [n]: [low, high] each.

    nan where a score is not finite or there are fewer than three contents. A resample that has no correlation (all its scores
    are equal) is left out.
    """
    scores, opinions = without_rounding(np.asarray(scores, np.float64)), np.asarray(opinions, np.float64)
    values = np.full((2, 1), np.nan)
    if len(scores) and np.isfinite(scores).all():
        values = np.concatenate([correlations(scores, opinions, counts) for counts in resampled_counts(contents)], axis=1)
    return {"srcc": list(interval(values[0])), "plcc": list(interval(values[1]))}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of values [resamples], low and high. Those that are nan are left out; nan where they are more than 5 %."""
    existing = values[np.isfinite(values)]
    if not len(existing) or len(existing) < (1 - MOST_LOST) * len(values):
        return np.nan, np.nan
    low, high = np.quantile(existing, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled_counts(contents: np.ndarray, resamples: int = RESAMPLES, stream: int = 0) -> Iterator[np.ndarray]:
    """How often each image is drawn in each resample: float64 [some, n], `resamples` rows in all.

    `contents` [n] names what each image shows; their order is that of the names. Another `stream` draws apart from the first, for
    images that have nothing to do with each other. Of fewer than three contents every resample holds no image, and so has no
    correlation.
    """
    names, content_of = np.unique(contents, return_inverse=True)
    if len(names) < FEWEST_CONTENTS:
        yield np.zeros((resamples, len(contents)))
        return
    rows = max(1, _CHUNK // len(contents))
    for first in range(0, resamples, rows):
        numbers = np.arange(first, min(first + rows, resamples))
        places = numbers[:, None] * len(names) + np.arange(len(names))
        drawn = (bits(_SEED, _RESAMPLING, places, stream) % np.uint64(len(names))).astype(np.int64)
        flat = drawn + (numbers - first)[:, None] * len(names)
        yield np.bincount(flat.ravel(), minlength=flat.size).reshape(flat.shape).astype(np.float64)[:, content_of]


def effective_contents(contents: np.ndarray) -> float:
    """As how many contents of equally many images the contents [n] of images count: (sum of n)^2 / sum of n^2, n images of each.

    Kish, "Survey sampling", 1965, section 11.7: where a few contents have most of the images, the others hardly count.
    """
    sizes = np.unique(contents, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def what_was_drawn(images: int, contents: int, effective: float | None) -> str:
    """What is to be said of intervals over so many images that show so many contents; nothing where nothing is to be.

    `effective` is their `effective_contents`, the least where there are several runs; None where nothing was drawn, as while a run goes on.
    """
    if effective is None:
        return ""
    if contents < FEWEST_CONTENTS:
        return f"of {contents:,} content{'s' * (contents != 1)} no resamples can be drawn"
    few = "so few that they are too narrow" if effective < FEW_CONTENTS else ""
    if contents == images:
        return few and f"by resamples of the {images:,} images, {few}"
    counted = f" (those of a run count as {effective:.1f} of one size)" if few and effective < 0.9 * contents else ""
    return f"by resamples of the {contents:,} contents{counted}" + (few and f", {few}")


def correlations(scores: np.ndarray, opinions: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """SRCC and PLCC where image i stands there counts[:, i] times: float64 [2, resamples], of counts [resamples, n].

    nan where there is none. Equal values share their mean rank.
    """
    srcc = _correlation(_ranks(scores, counts), _ranks(opinions, counts), counts)
    return np.stack([srcc, _correlation(scores - scores.mean(), opinions - opinions.mean(), counts)])  # centred: squares keep digits


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean rank of each image in each resample [resamples, n], counted from the middle rank."""
    different, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(different)))
    drawn = np.add.reduceat(counts[:, order], starts, axis=1)  # how often each value was drawn
    below = np.cumsum(drawn, axis=1) - drawn / 2
    middled: np.ndarray = (below - counts.sum(axis=1, keepdims=True) / 2)[:, place]
    return middled


def _correlation(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Pearson's correlation, weighted by counts: [resamples], of a and b as [n] or [resamples, n]."""
    total = counts.sum(axis=1)

    def mean(values: np.ndarray) -> np.ndarray:
        averages: np.ndarray = (counts @ values if values.ndim == 1 else np.einsum("rn,rn->r", counts, values)) / total
        return averages

    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may hold none of the images of a run
        mean_a, mean_b, square_a, square_b = mean(a), mean(b), mean(a * a), mean(b * b)
        variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
        found: np.ndarray = np.clip((mean(a * b) - mean_a * mean_b) / np.sqrt(variance_a * variance_b), -1, 1)
    exists = (variance_a > ROUNDING * square_a) & (variance_b > ROUNDING * square_b)
    found[~exists] = np.nan
    return found
