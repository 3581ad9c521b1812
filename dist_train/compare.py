"""Is one way of training better than another, on the very same test images? `python -m dist_train compare A B ...`

Of one side alone, the figure of the field is told: the median over ten rounds, with each of them.

Each side is a run, or a pattern that matches several, such as the seeds or the splits of one config; a side's figure is then
the median over its runs, as the field reports it. The images, by what they show, are resampled for all sides alike (a paired
bootstrap, see `intervals`): how hard the images happen to be is common to both sides and cancels. An image that is in the test part
of several splits is drawn in all of them together. What the interval tells of is other images, not other seeds.

What `evaluate` wrote can stand where a run can: of an imported model there is nothing else.

Runs on several data sets are compared set by set, and by the mean over the sets; each set's images are drawn for themselves. A set is
known by the fingerprint of its shards, whatever a config calls it. Sets that not every run was tested on are left out, and told.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dist_train.errors import ConfigError
from dist_train.intervals import EQUAL, correlations, effective_contents, interval, resampled_counts, what_was_drawn
from dist_train.metrics import agreement
from dist_train.tested import EVALUATE_AGAIN, TestedRun, TestedSet, read_run

MEAN = "the mean"  # no data set can be called so


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
    shared, left_out = share_sets(sides)
    refuse_unlike(shared)
    told = "\n".join([*left_out, *[""] * bool(left_out), describe(shared, estimate(shared))])
    return told if len(shared) > 1 else f"{told}\n\n{_each_run(shared[0])}"


def read_side(name: str) -> Side:
    """The runs in the folder `name`, or in all folders that the pattern `name` matches, in the order of their names."""
    folders = [Path(found) for found in sorted(glob.glob(name)) if Path(found).is_dir()] or [Path(name)]
    return side_of(name, folders)


def side_of(name: str, folders: Sequence[Path]) -> Side:
    """The runs in these folders, under that name."""
    return Side(name, tuple(read_run(folder) for folder in folders))


def share_sets(sides: Sequence[Side]) -> tuple[list[Side], list[str]]:
    """The sides with the sets that all of their runs were tested on, under the first run's names; and a line for each that is left out.

    Raises ConfigError where there is no such set, or where a run has one twice.
    """
    runs = [run for side in sides for run in side.runs]
    names = runs[0].name_by_fingerprint
    for run in runs:
        if len(run.name_by_fingerprint) < len(run.sets):
            raise ConfigError(f"{run.folder}: two of {', '.join(run.sets)} are the same shards; compare runs that take each set once")
        if not names.keys() & run.name_by_fingerprint.keys():
            raise ConfigError(
                f"{run.folder} was tested on the data {_data_told(run.name_by_fingerprint)}, what stands before it on {_data_told(names)}; "
                f"only what was tested on the same shards can be compared: `python -m dist_train evaluate --shards` tests a model on others"
            )
        names = {data: name for data, name in names.items() if data in run.name_by_fingerprint}
    left_out = [
        f"left out: {name} ({data}) of {side.name}: {_first_without(data, runs).folder} was not tested on it"
        for side in sides
        for run in side.runs
        for data, name in run.name_by_fingerprint.items()
        if data not in names
    ]
    return [Side(side.name, tuple(_narrowed(run, names) for run in side.runs)) for side in sides], list(dict.fromkeys(left_out))


def _first_without(data: str, runs: Sequence[TestedRun]) -> TestedRun:
    return next(run for run in runs if data not in run.name_by_fingerprint)


def _data_told(names: Mapping[str, str]) -> str:
    return " + ".join(f"{data} ({name})" for data, name in names.items())


def _narrowed(run: TestedRun, names: Mapping[str, str]) -> TestedRun:
    """The run with the sets of these fingerprints alone, in their order and under their names."""
    return TestedRun(run.folder, {name: run.sets[run.name_by_fingerprint[data]] for data, name in names.items()})


def refuse_unlike(sides: Sequence[Side]) -> None:
    """Raises ConfigError unless images have the same opinions in all runs, and all sides are of the same images.

    Where the runs of a side have several test parts (splits), each side must have each of them equally often.
    """
    known: dict[tuple[str, str], tuple[float, Path]] = {}
    for run in (run for side in sides for run in side.runs):
        for name, tested in run.sets.items():
            for image, opinion in zip(tested.ids, tested.opinions, strict=True):
                before, path = known.setdefault((name, image), (opinion, tested.path))
                if before != opinion:
                    raise ConfigError(
                        f"{tested.path}: image '{image}' has the opinion {opinion:g}, in another run {before:g} ({path}); one of the two "
                        f"was changed after it was written: {EVALUATE_AGAIN}"
                    )
    parts = [Counter(run.images for run in side.runs) for side in sides]
    for side, part in zip(sides[1:], parts[1:], strict=True):
        if part.keys() != parts[0].keys():
            strange = sorted(frozenset().union(*part) ^ frozenset().union(*parts[0]))
            example = f", such as '{strange[0][1]}' of {strange[0][0]}" if strange else ""
            raise ConfigError(
                f"{side.name} and {sides[0].name} were not tested on the same images{example} ({_splits(side)} against "
                f"{_splits(sides[0])}); compare what was tested on the same split, or on the same splits: evaluate takes --split and --part"
            )
        if len(part) > 1 and part != parts[0]:
            raise ConfigError(
                f"{side.name} and {sides[0].name} do not have every split equally often ({_splits(side)} against {_splits(sides[0])}), "
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
    """What each image of these shows."""
    return {image: content for one in tested for image, content in one.contents.items()}


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
        (f"{run.folder} {name}" if len(run.sets) > 1 else str(run.folder), tested, tested.figures)
        for run in side.runs
        for name, tested in run.sets.items()
    ]
    width, columns = max(len(title) for title, _, _ in rows), ("srcc", "plcc", "krcc", "rmse")
    splits = max(len("split"), *(len(tested.which) for _, tested, _ in rows))
    lines = [f"{'run':<{width}}  {'split':<{splits}}{'images':>8}" + "".join(f"{name.upper():>10}" for name in columns)]
    for title, tested, figures in rows:
        cells = "".join(f"{_figure(figures[name]):>10}" for name in columns)
        lines.append(f"{title:<{width}}  {tested.which:<{splits}}{len(tested.ids):>8,}{cells}")
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
    own = [run.sets[name] for run in sides[0].runs]
    parts, splits = sorted({tested.part for tested in own}), sorted({tested.split for tested in own if tested.split})
    how = _what_was_drawn(sides, name)
    return (
        f"{' or '.join(parts)} images: {' or '.join(f'{n:,}' for n in sorted(images))} of {name} ({own[0].fingerprint})"
        + f", split {', '.join(splits)}" * bool(splits)
        + f", label {own[0].label}" * bool(own[0].label)
        + f"; intervals: {how}" * bool(how)
    )


def _what_was_drawn(sides: Sequence[Side], name: str) -> str:
    """On what the intervals of a set rest: all contents are drawn, and each run has what was drawn of its own test images."""
    tested = [run.sets[name] for side in sides for run in side.runs]
    content_of = _contents(tested)
    fewest = min(effective_contents(np.array([content_of[image] for image in one.ids])) for one in tested)
    return what_was_drawn(len(content_of), len(set(content_of.values())), fewest)


def _table(sides: Sequence[Side], estimates: Estimates) -> list[str]:
    width = max(len("side"), *(len(side.name) for side in sides))
    lines = [f"{'side':<{width}}{'runs':>6}{'SRCC':>10}{'95 %':>20}{'PLCC':>10}{'95 %':>20}"]
    for side, found in zip(sides, estimates, strict=True):
        cells = "".join(f"{_figure(found[name].value):>10}{_span(found[name]):>20}" for name in ("srcc", "plcc"))
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
    folders: dict[str, dict[str, None]] = {}  # by what is said of them
    for run in (run for side in sides for run in side.runs):
        for warning in (warning for tested in run.sets.values() for warning in tested.warnings):
            folders.setdefault(warning, {})[str(run.folder)] = None
    return [""] * bool(folders) + [f"{warning}: {', '.join(those)}" for warning, those in folders.items()]


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
    return ", ".join(sorted({tested.which for run in side.runs for tested in run.sets.values()}))


def _span(found: Estimate, sign: str = "") -> str:
    return "none" if np.isnan(found.interval).any() else " to ".join(_figure(end, sign) for end in found.interval)


def _figure(value: float, sign: str = "") -> str:
    """Four digits; zero, and what rounds to it, has no sign."""
    return f"{value:{sign}.4f}" if round(value, 4) else "0.0000"
