"""Is one way of training better than another, on the very same test images? `python -m dist_train compare A B ...`

Each side is a run, or a pattern that matches several, such as the seeds or the splits of one config; a side's figure is then
the median over its runs, as the field reports it. The images are resampled for all sides alike (a paired bootstrap, see
`intervals`): how hard the images happen to be is common to both sides and cancels. An image that is in the test part of
several splits is drawn in all of them together. What the interval tells of is other images, not other seeds.
"""

from __future__ import annotations

import csv
import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.errors import ConfigError
from dist_train.intervals import FEWEST_IMAGES, correlations, interval, resampled_counts
from dist_train.metrics import agreement
from dist_train.run_folder import read_status

SCORES = "scores-test.csv"


@dataclass(frozen=True)
class TestedRun:
    """What a run says of its test images: its status.json, and scores and opinions [n] by image id."""

    folder: Path
    status: dict[str, Any]
    ids: tuple[str, ...]
    scores: np.ndarray
    opinions: np.ndarray


@dataclass(frozen=True)
class Side:
    """The runs that one argument names."""

    name: str
    runs: tuple[TestedRun, ...]


@dataclass(frozen=True)
class Estimate:
    """A figure, and what it was in every resample [resamples]."""

    value: float
    resampled: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: low and high."""
        return interval(self.resampled)

    def over(self, other: Estimate) -> Estimate:
        """By how much this one is larger."""
        return Estimate(self.value - other.value, self.resampled - other.resampled)

    @property
    def share_above_zero(self) -> float:
        """Of the resamples that have a value, the share in which it is above zero."""
        existing = self.resampled[np.isfinite(self.resampled)]
        return float(np.mean(existing > 0)) if len(existing) else np.nan


def compare(names: Sequence[str]) -> str:
    """Each side's SRCC and PLCC on the test images, and every later side against the first, as text.

    Raises ConfigError where the runs were not tested on the same images with the same opinions.
    """
    sides = [read_side(name) for name in names]
    refuse_unlike(sides)
    return describe(sides, estimate(sides))


def read_side(name: str) -> Side:
    """The runs in the folder `name`, or in all folders that the pattern `name` matches, in the order of their names."""
    folders = [Path(found) for found in sorted(glob.glob(name)) if Path(found).is_dir()] or [Path(name)]
    return Side(name, tuple(_read_run(folder) for folder in folders))


def refuse_unlike(sides: Sequence[Side]) -> None:
    """Raises ConfigError unless all runs are of the same data, with the same opinions, and all sides of the same test images.

    Where the runs of a side have several test parts (splits), each side must have each of them equally often.
    """
    first = sides[0].runs[0]
    known: dict[str, float] = {}
    for run in (run for side in sides for run in side.runs):
        if run.status["data_fingerprint"] != first.status["data_fingerprint"]:
            raise ConfigError(
                f"{run.folder} was tested on the data {run.status['data_fingerprint']} ({run.status['data_set']}), {first.folder} on "
                f"{first.status['data_fingerprint']} ({first.status['data_set']}); only runs on the same shards can be compared"
            )
        for image, opinion in zip(run.ids, run.opinions, strict=True):
            if known.setdefault(image, opinion) != opinion:
                raise ConfigError(f"{run.folder / SCORES}: image '{image}' has the opinion {opinion:g}, in another run {known[image]:g}")
    parts = [Counter(frozenset(run.ids) for run in side.runs) for side in sides]
    for side, part in zip(sides[1:], parts[1:], strict=True):
        if part.keys() != parts[0].keys():
            strange = sorted(frozenset().union(*part) ^ frozenset().union(*parts[0]))
            example = f", such as '{strange[0]}'" if strange else ""
            raise ConfigError(
                f"{side.name} and {sides[0].name} were not tested on the same images{example} (splits {_splits(side)} and "
                f"{_splits(sides[0])}); compare runs on the same split, or on the same splits"
            )
        if len(part) > 1 and part != parts[0]:
            raise ConfigError(
                f"{side.name} and {sides[0].name} do not have every split equally often (splits {_splits(side)} and {_splits(sides[0])}), "
                f"so their medians are of different things; name as many runs of each"
            )


def estimate(sides: Sequence[Side]) -> list[dict[str, Estimate]]:
    """Per side, the median over its runs of SRCC and of PLCC, on the test images and in every resample of them."""
    runs = [run for side in sides for run in side.runs]
    ids = sorted({image for run in runs for image in run.ids})
    place = {image: number for number, image in enumerate(ids)}
    columns = [np.array([place[image] for image in run.ids]) for run in runs]
    chunks = [
        [correlations(run.scores, run.opinions, counts[:, own]) for run, own in zip(runs, columns, strict=True)]
        for counts in resampled_counts(len(ids))
    ]
    resampled = iter(np.concatenate(chunks, axis=-1))  # [runs, 2, resamples]
    estimates = []
    for side in sides:
        values = [agreement(run.scores, run.opinions) for run in side.runs]
        srcc, plcc = np.median([next(resampled) for _ in side.runs], axis=0)
        estimates.append(
            {
                "srcc": Estimate(float(np.median([value["srcc"] for value in values])), srcc),
                "plcc": Estimate(float(np.median([value["plcc"] for value in values])), plcc),
            }
        )
    return estimates


def describe(sides: Sequence[Side], estimates: Sequence[dict[str, Estimate]]) -> str:
    """The table of the sides, and a line per later side against the first."""
    first = sides[0].runs[0]
    images = {len(run.ids) for side in sides for run in side.runs}
    width = max(len("side"), *(len(side.name) for side in sides))
    lines = [
        f"test images: {' or '.join(f'{number:,}' for number in sorted(images))} of {first.status['data_set']} "
        f"({first.status['data_fingerprint']}), split {_splits(sides[0])}, label {first.status['label']}",
        "",
        f"{'side':<{width}}{'runs':>6}{'SRCC':>10}{'95 %':>18}{'PLCC':>10}{'95 %':>18}",
    ]
    for side, found in zip(sides, estimates, strict=True):
        cells = "".join(f"{found[name].value:>10.4f}{_span(found[name], ''):>18}" for name in ("srcc", "plcc"))
        lines.append(f"{side.name:<{width}}{len(side.runs):>6}{cells}")
    if any(len(side.runs) > 1 for side in sides):
        lines.append("a side of several runs: the median over them")
    for side, found in zip(sides[1:], estimates[1:], strict=True):
        lines += ["", f"{side.name} over {sides[0].name}:"]
        lines += [f"  {name.upper()} {_gain(found[name].over(estimates[0][name]))}" for name in ("srcc", "plcc")]
    return "\n".join(lines + _warnings(sides))


def _warnings(sides: Sequence[Side]) -> list[str]:
    on_test = [str(run.folder) for side in sides for run in side.runs if run.status["selected_on"] == "test"]
    return ["", f"WARNING: these chose their epoch ON TEST, so their figures are too good: {', '.join(on_test)}"] if on_test else []


def _gain(more: Estimate) -> str:
    if np.isnan(more.value):
        return "cannot be compared: one of the two has none (all scores equal, or one not finite)"
    return f"{more.value:+.4f} (95 %: {_span(more, '+')}), better in {more.share_above_zero:.1%} of the resamples"


def _splits(side: Side) -> str:
    return ", ".join(sorted({run.status["split"] for run in side.runs}))


def _span(found: Estimate, sign: str) -> str:
    low, high = found.interval
    return f"{low:{sign}.4f} to {high:{sign}.4f}"


def _read_run(folder: Path) -> TestedRun:
    """Raises ConfigError when there is no run, when it has not been tested, or when its scores cannot be read."""
    status = read_status(folder) if folder.is_dir() else None
    if status is None:
        raise ConfigError(f"{folder}: there is no run (no status.json); name a run folder, or a pattern in quotes that matches some")
    path = folder / SCORES
    if "sets" in (status.get("test") or {}):
        raise ConfigError(f"{folder}: is a run on several data sets, which are not compared; `evaluate` tells of each set")
    if not path.is_file() or not status.get("test"):
        raise ConfigError(f"{folder}: this run has not been tested ({status['status']}: {status['reason']}); let it finish first")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(row["image"], float(row["score"]), float(row["opinion"])) for row in csv.DictReader(file)]
        ids, scores, opinions = zip(*rows, strict=True)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not a table of image, opinion and score ({error}); it was changed after it was written") from error
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{path}: holds an image twice; it was changed after it was written")
    if len(ids) < FEWEST_IMAGES:
        raise ConfigError(f"{path}: holds {len(ids)} images; at least {FEWEST_IMAGES} are needed")
    return TestedRun(folder, status, ids, np.array(scores), np.array(opinions))
