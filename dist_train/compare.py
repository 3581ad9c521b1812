"""Is one way of training better than another, on the very same test images? `python -m dist_train compare A B ...`

Of one side alone, the figure of the field is told: the median over ten rounds, with each of them.

Each side is a run, or a pattern that matches several, such as the seeds or the splits of one config; a side's figure is then
the median over its runs, as the field reports it. The images, by what they show, are resampled for all sides alike (a paired
bootstrap, see `intervals`): how hard the images happen to be is common to both sides and cancels. An image that is in the test part
of several splits is drawn in all of them together. What the interval tells of is other images, not other seeds.

Runs on several data sets are compared set by set, and by the mean over the sets; each set's images are drawn for themselves.
"""

from __future__ import annotations

import csv
import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.errors import ConfigError
from dist_train.intervals import (
    EQUAL,
    FEWEST_IMAGES,
    correlations,
    effective_contents,
    interval,
    resampled_counts,
    what_was_drawn,
    without_rounding,
)
from dist_train.metrics import agreement
from dist_train.run_folder import read_status

MEAN = "the mean"  # no data set can be called so


@dataclass(frozen=True)
class TestedSet:
    """What a run says of the test images of a data set: scores and opinions [n] by image id, and the file they are from.

    `contents` is what each image shows, by its id; empty where the file, of an earlier version, does not say it.
    """

    data: str  # its fingerprint
    split: str
    path: Path
    ids: tuple[str, ...]
    contents: dict[str, str]
    scores: np.ndarray
    opinions: np.ndarray


@dataclass(frozen=True)
class TestedRun:
    """A run: its status.json, and what it says of each of its data sets, by name."""

    folder: Path
    status: dict[str, Any]
    sets: dict[str, TestedSet]

    @property
    def data(self) -> dict[str, str]:
        """The fingerprint of each set."""
        return {name: tested.data for name, tested in self.sets.items()}

    @property
    def images(self) -> frozenset[tuple[str, str]]:
        """Every test image, as set and id."""
        return frozenset((name, image) for name, tested in self.sets.items() for image in tested.ids)


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
        """By how much this one is larger: 0 where the two differ by rounding alone."""
        more, resampled = self.value - other.value, self.resampled - other.resampled
        return Estimate(0.0 if abs(more) <= EQUAL else more, np.where(np.abs(resampled) <= EQUAL, 0.0, resampled))

    @property
    def share_above_zero(self) -> float:
        """Of the resamples that have a value, the share in which it is above zero."""
        return self._share(self.resampled > 0)

    @property
    def share_at_zero(self) -> float:
        """The same, in which it is zero."""
        return self._share(self.resampled == 0)

    def _share(self, where: np.ndarray) -> float:
        existing = np.isfinite(self.resampled)
        return float(np.mean(where[existing])) if existing.any() else np.nan


Estimates = list[dict[str, Estimate]]  # of every side: its srcc and its plcc


def compare(names: Sequence[str]) -> str:
    """Each side's SRCC and PLCC on the test images, and every later side against the first, as text; of an only side, each run's.

    Raises ConfigError where the runs were not tested on the same images with the same opinions.
    """
    return compare_sides([read_side(name) for name in names])


def compare_sides(sides: Sequence[Side]) -> str:
    """The same of sides that are read already."""
    refuse_unlike(sides)
    told = describe(sides, estimate(sides))
    return told if len(sides) > 1 else f"{told}\n\n{_each_run(sides[0])}"


def read_side(name: str) -> Side:
    """The runs in the folder `name`, or in all folders that the pattern `name` matches, in the order of their names."""
    folders = [Path(found) for found in sorted(glob.glob(name)) if Path(found).is_dir()] or [Path(name)]
    return side_of(name, folders)


def side_of(name: str, folders: Sequence[Path]) -> Side:
    """The runs in these folders, under that name."""
    return Side(name, tuple(_read_run(folder) for folder in folders))


def refuse_unlike(sides: Sequence[Side]) -> None:
    """Raises ConfigError unless all runs are of the same data, with the same opinions, and all sides of the same test images.

    Where the runs of a side have several test parts (splits), each side must have each of them equally often.
    """
    first = sides[0].runs[0]
    known: dict[tuple[str, str], float] = {}
    for run in (run for side in sides for run in side.runs):
        if run.data != first.data:
            raise ConfigError(
                f"{run.folder} was tested on the data {run.status['data_fingerprint']} ({run.status['data_set']}), {first.folder} on "
                f"{first.status['data_fingerprint']} ({first.status['data_set']}); only runs on the same shards can be compared"
            )
        for name, tested in run.sets.items():
            for image, opinion in zip(tested.ids, tested.opinions, strict=True):
                if known.setdefault((name, image), opinion) != opinion:
                    raise ConfigError(f"{tested.path}: image '{image}' has the opinion {opinion:g}, in another run {known[name, image]:g}")
    parts = [Counter(run.images for run in side.runs) for side in sides]
    for side, part in zip(sides[1:], parts[1:], strict=True):
        if part.keys() != parts[0].keys():
            strange = sorted(frozenset().union(*part) ^ frozenset().union(*parts[0]))
            example = f", such as '{strange[0][1]}'" if strange else ""
            raise ConfigError(
                f"{side.name} and {sides[0].name} were not tested on the same images{example} (splits {_splits(side)} and "
                f"{_splits(sides[0])}); compare runs on the same split, or on the same splits"
            )
        if len(part) > 1 and part != parts[0]:
            raise ConfigError(
                f"{side.name} and {sides[0].name} do not have every split equally often (splits {_splits(side)} and {_splits(sides[0])}), "
                f"so their medians are of different things; name as many runs of each"
            )


def estimate(sides: Sequence[Side]) -> dict[str, Estimates]:
    """By data set: per side, the median over its runs of SRCC and of PLCC, and the same in every resample.

    Of several data sets also under MEAN: there a run's figure is the mean over its sets.
    """
    runs = [run for side in sides for run in side.runs]
    figures = {name: _figures([run.sets[name] for run in runs], number) for number, name in enumerate(runs[0].sets)}
    if len(figures) > 1:
        figures[MEAN] = np.mean(list(figures.values()), axis=0)
    ends = np.cumsum([len(side.runs) for side in sides])[:-1]
    return {name: [_medians(of_side) for of_side in np.split(of_runs, ends)] for name, of_runs in figures.items()}


def _figures(tested: Sequence[TestedSet], stream: int) -> np.ndarray:
    """SRCC and PLCC on one data set, as it is and in every resample: float64 [runs, 2, 1 + resamples]."""
    content_of = _contents(tested)
    ids = sorted(content_of)
    place = {image: number for number, image in enumerate(ids)}
    columns = [np.array([place[image] for image in one.ids]) for one in tested]
    values = [agreement(one.scores, one.opinions) for one in tested]
    chunks = [np.array([[[value["srcc"]], [value["plcc"]]] for value in values])]
    for counts in resampled_counts(np.array([content_of[image] for image in ids]), stream=stream):
        chunks.append(np.array([correlations(one.scores, one.opinions, counts[:, own]) for one, own in zip(tested, columns, strict=True)]))
    return np.concatenate(chunks, axis=-1)


def _contents(tested: Sequence[TestedSet]) -> dict[str, str]:
    """What each image of these shows, if any of their tables says it; else the image itself."""
    shown = {image: image for one in tested for image in one.ids}
    return shown | {image: content for one in tested for image, content in one.contents.items()}


def _medians(of_runs: np.ndarray) -> dict[str, Estimate]:
    return {name: Estimate(float(found[0]), found[1:]) for name, found in zip(("srcc", "plcc"), np.median(of_runs, axis=0), strict=True)}


def describe(sides: Sequence[Side], estimates: dict[str, Estimates]) -> str:
    """Per data set, and for their mean: the table of the sides, and a line per later side against the first."""
    lines: list[str] = []
    for name, found in estimates.items():
        lines += [_heading(sides, name), "", *_table(sides, found), *_gains(sides, found), ""]
    return "\n".join(lines[:-1] + _warnings(sides))


def _each_run(side: Side) -> str:
    """A row per run and data set, and below them how far the runs lie apart."""
    rows = [
        (f"{run.folder} {name}" if len(run.sets) > 1 else str(run.folder), tested, agreement(tested.scores, tested.opinions))
        for run in side.runs
        for name, tested in run.sets.items()
    ]
    width, columns = max(len(title) for title, _, _ in rows), ("srcc", "plcc", "krcc", "rmse")
    splits = max(len("split"), *(len(tested.split) for _, tested, _ in rows))
    lines = [f"{'run':<{width}}  {'split':<{splits}}{'images':>8}" + "".join(f"{name.upper():>10}" for name in columns)]
    for title, tested, figures in rows:
        cells = "".join(f"{_figure(figures[name]):>10}" for name in columns)
        lines.append(f"{title:<{width}}  {tested.split:<{splits}}{len(tested.ids):>8,}{cells}")
    for number, of_set in enumerate(side.runs[0].sets if len(side.runs) > 1 else ()):
        own = [figures for _, _, figures in rows[number :: len(side.runs[0].sets)]]
        for title, over in (("median", np.median), ("standard deviation", _deviation)):
            told = f"{title}, {of_set}" if len(side.runs[0].sets) > 1 else title
            lines.append(
                f"{told:<{width + 2 + splits + 8}}" + "".join(f"{_figure(over([each[name] for each in own])):>10}" for name in columns)
            )
    return "\n".join(lines)


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


def _heading(sides: Sequence[Side], name: str) -> str:
    first = sides[0].runs[0]
    if name == MEAN:
        drawn = [how for each in first.sets if (how := _what_was_drawn(sides, each))]
        return f"mean over {', '.join(first.sets)}" + "; intervals as of each of them" * bool(drawn) + ":"
    images = {len(run.sets[name].ids) for side in sides for run in side.runs}
    splits = ", ".join(sorted({run.sets[name].split for run in sides[0].runs}))
    label = f", label {first.status['label']}" if len(first.sets) == 1 else ""
    how = _what_was_drawn(sides, name)
    return (
        f"test images: {' or '.join(f'{n:,}' for n in sorted(images))} of {name} ({first.data[name]}), split {splits}{label}"
        + f"; intervals: {how}" * bool(how)
    )


def _what_was_drawn(sides: Sequence[Side], name: str) -> str:
    """On what the intervals of a set rest: all contents are drawn, and each run has what was drawn of its own test images."""
    runs = [run for side in sides for run in side.runs]
    content_of = _contents([run.sets[name] for run in runs])
    if any(_hides_contents(run, name, content_of) for run in runs):
        return "by resamples of single images: scores-test.csv does not say what they show, and several show one content: too narrow"
    fewest = min(effective_contents(np.array([content_of[image] for image in run.sets[name].ids])) for run in runs)
    return what_was_drawn(len(content_of), len(set(content_of.values())), fewest)


def _hides_contents(run: TestedRun, name: str, content_of: Mapping[str, str]) -> bool:
    """Whether several of its test images show one content, by what the run's status tells, and no table says which."""
    test = run.status["test"]
    panel = (test.get("sets") or {name: test})[name]
    return "contents" in panel and panel["contents"] < len({content_of[image] for image in run.sets[name].ids})


def _table(sides: Sequence[Side], estimates: Estimates) -> list[str]:
    width = max(len("side"), *(len(side.name) for side in sides))
    lines = [f"{'side':<{width}}{'runs':>6}{'SRCC':>10}{'95 %':>18}{'PLCC':>10}{'95 %':>18}"]
    for side, found in zip(sides, estimates, strict=True):
        cells = "".join(f"{_figure(found[name].value):>10}{_span(found[name]):>18}" for name in ("srcc", "plcc"))
        lines.append(f"{side.name:<{width}}{len(side.runs):>6}{cells}")
    lines += ["a side of several runs: the median over them"] * any(len(side.runs) > 1 for side in sides)
    return lines


def _gains(sides: Sequence[Side], estimates: Estimates) -> list[str]:
    lines = []
    for side, found in zip(sides[1:], estimates[1:], strict=True):
        same = " every image has the same score on both sides" if _scores_of(side) == _scores_of(sides[0]) else ""
        lines += ["", f"{side.name} over {sides[0].name}:{same}"]
        lines += [f"  {name.upper()} {_gain(found[name].over(estimates[0][name]))}" for name in ("srcc", "plcc")]
    return lines


def _warnings(sides: Sequence[Side]) -> list[str]:
    on_test = [str(run.folder) for side in sides for run in side.runs if run.status["selected_on"] == "test"]
    return ["", f"WARNING: these chose their epoch ON TEST, so their figures are too good: {', '.join(on_test)}"] if on_test else []


def _gain(more: Estimate) -> str:
    if np.isnan(more.value):
        return "cannot be compared: one of the two has none (all scores equal, or one not finite)"
    if more.value == 0 and more.share_at_zero == 1:
        return "no difference, nor in any of the resamples"
    if np.isnan(more.share_at_zero):
        return f"{_figure(more.value, '+') if more.value else 'no difference'}, without an interval"
    ties = f", equal in {more.share_at_zero:.1%}" if more.share_at_zero else ""
    return f"{_figure(more.value, '+')} (95 %: {_span(more, '+')}), better in {more.share_above_zero:.1%} of the resamples{ties}"


def _scores_of(side: Side) -> list[dict[tuple[str, str], float]]:
    """Of every run, the score of each image of each set."""
    return [
        {(name, image): score for name, tested in run.sets.items() for image, score in zip(tested.ids, tested.scores, strict=True)}
        for run in side.runs
    ]


def _splits(side: Side) -> str:
    return ", ".join(sorted({run.status["split"] for run in side.runs}))


def _span(found: Estimate, sign: str = "") -> str:
    return "none" if np.isnan(found.interval).any() else " to ".join(_figure(end, sign) for end in found.interval)


def _figure(value: float, sign: str = "") -> str:
    """Four digits; zero, and what rounds to it, has no sign."""
    return f"{value:{sign}.4f}" if round(value, 4) else "0.0000"


def _read_run(folder: Path) -> TestedRun:
    """Raises ConfigError when there is no run, when it has not been tested, or when its scores cannot be read."""
    status = read_status(folder) if folder.is_dir() else None
    if status is None:
        raise ConfigError(f"{folder}: there is no run (no status.json); name a run folder, or a pattern in quotes that matches some")
    several = (status.get("test") or {}).get("sets") is not None
    sets = {}
    for name, said in status["trained_on"].items():
        path = folder / (f"scores-test-{name}.csv" if several else "scores-test.csv")
        if not path.is_file() or not status.get("test"):
            raise ConfigError(f"{folder}: this run has not been tested ({status['status']}: {status['reason']}); let it finish first")
        sets[name] = TestedSet(said["data_fingerprint"], said["split"], path, *_read_scores(path))
    return TestedRun(folder, status, sets)


def _read_scores(path: Path) -> tuple[tuple[str, ...], dict[str, str], np.ndarray, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        scores, opinions = (np.array([float(row[name]) for row in rows]) for name in ("score", "opinion"))
        ids = tuple(row["image"] for row in rows)
        if not rows:
            raise ValueError("it has no rows")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: is not a table of image, opinion and score ({error}); it was changed after it was written") from error
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{path}: holds an image twice; it was changed after it was written")
    if len(ids) < FEWEST_IMAGES:
        raise ConfigError(f"{path}: holds {len(ids)} images; at least {FEWEST_IMAGES} are needed")
    return ids, {row["image"]: row["content"] for row in rows if row.get("content")}, without_rounding(scores), opinions
