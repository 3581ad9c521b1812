"""What a folder says of tested images: the scores and opinions of each data set, and what may make its figures too good.

RUN/                 as training leaves it
  status.json        what was trained and tested on
  scores-test.csv    or scores-test-SET.csv for each of several sets
EVALUATION/          as `evaluate` leaves it
  evaluation.json    what was scored, and what the model had seen of it
  scores-SET.csv

What an evaluation does not know of its model, as how its epoch was chosen, is told as unknown.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.errors import ConfigError
from dist_train.intervals import without_rounding
from dist_train.metrics import agreement
from dist_train.status import read_status
from shards.splits import FEWEST_IMAGES

RESULTS = "evaluation.json"

ON_TEST = "WARNING: these chose their epoch ON TEST, so their figures are too good"
SEEN_IN_TRAINING = "WARNING: these were trained on some of these images, or on others of their contents, so their figures are too good"
CHOSEN_ON = "WARNING: these chose their epoch on some of these images, so their figures are too good"
UNKNOWN = "nobody knows whether these were trained or chosen on these images"

EVALUATE_AGAIN = "evaluate that model again, with another --out, and compare what that leaves"


@dataclass(frozen=True)
class TestedSet:
    """What a model says of images of a data set: scores and opinions [n] by image id, and the file they are from.

    Scores of a model that speaks the other way round than the opinions have been turned. `contents` is what each image shows, by its id.
    """

    path: Path
    ids: tuple[str, ...]
    contents: dict[str, str]
    scores: np.ndarray
    opinions: np.ndarray
    fingerprint: str  # of its shards
    part: str  # train, val, test or all
    split: str | None  # None for all
    label: str | None  # None where it is not told for this set alone
    on_label: bool  # whether the scores are on the scale of the opinions, so that their difference is an error
    warnings: tuple[str, ...]  # why its figures may be too good

    @property
    def which(self) -> str:
        """Which images these are: those of a test part by its split alone."""
        return "all images" if self.split is None else self.split if self.part == "test" else f"{self.part} of {self.split}"

    @property
    def figures(self) -> dict[str, float]:
        """SRCC, PLCC, KRCC and RMSE."""
        found = agreement(self.scores, self.opinions)
        return found if self.on_label else found | {"rmse": np.nan}


@dataclass(frozen=True)
class TestedRun:
    """A run, or what `evaluate` wrote of a model: what its folder says of each of its data sets, by name."""

    folder: Path
    sets: dict[str, TestedSet]

    @property
    def name_by_fingerprint(self) -> dict[str, str]:
        """The name of each set by its fingerprint."""
        return {tested.fingerprint: name for name, tested in self.sets.items()}

    @property
    def images(self) -> frozenset[tuple[str, str]]:
        """Every image that was scored, as set and id."""
        return frozenset((name, image) for name, tested in self.sets.items() for image in tested.ids)


def read_run(folder: Path) -> TestedRun:
    """Raises ConfigError when there is no run or evaluation, when it has not been tested, or when its scores cannot be read."""
    status = read_status(folder) if folder.is_dir() else None
    if status is not None:
        return TestedRun(folder, _sets_of_run(folder, status))
    if (folder / RESULTS).is_file():
        return TestedRun(folder, _sets_of_evaluation(folder))
    raise ConfigError(
        f"{folder}: there is no run (no status.json) and no evaluation (no {RESULTS}); name the folder of one, or a pattern in quotes that "
        f"matches some"
    )


def _sets_of_run(folder: Path, status: Mapping[str, Any]) -> dict[str, TestedSet]:
    sets, test, trained_on = {}, status.get("test") or {}, status["trained_on"]
    for name, said in trained_on.items():
        path = folder / (f"scores-test-{name}.csv" if "sets" in test else "scores-test.csv")
        if not path.is_file() or not test:
            raise ConfigError(f"{folder}: this run has not been tested ({status['status']}: {status['reason']}); let it finish first")
        panel = test.get("sets", {name: test})[name]
        start = status.get("starts_from") or {"all_it_saw_is_known": True}
        too_good = {
            ON_TEST: status["selected_on"] == "test",
            SEEN_IN_TRAINING: panel.get("trained_too"),
            UNKNOWN: not start["all_it_saw_is_known"],
        }
        sets[name] = TestedSet(
            path,
            *read_scores(path),
            fingerprint=said["data_fingerprint"],
            part="test",
            split=said["split"],
            label=status["label"] if len(trained_on) == 1 else None,
            on_label=panel.get("rmse", np.nan) is not None,  # None: the loss left the scale of the scores open
            warnings=tuple(warning for warning, holds in too_good.items() if holds),
        )
    return sets


def _sets_of_evaluation(folder: Path) -> dict[str, TestedSet]:
    path = folder / RESULTS
    try:
        return {name: _evaluated(folder / f"scores-{name}.csv", said) for name, said in json.loads(path.read_bytes())["sets"].items()}
    except ConfigError:  # of a table of scores
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: does not tell what was scored and how ({error!r}): it was changed, or is of another version; {EVALUATE_AGAIN}"
        ) from error


def _evaluated(path: Path, said: Mapping[str, Any]) -> TestedSet:
    """A set of an evaluation, of which `said` is what its evaluation.json holds."""
    ids, contents, scores, opinions = read_scores(path)
    label, spoken = said["label"], said["scores_on"]
    trained_on = said.get("trained_too") or said.get("trained_on_images")  # of the run's own sets contents are known, of others files
    seen = {SEEN_IN_TRAINING: trained_on, CHOSEN_ON: said.get("chosen_on_images")}
    return TestedSet(
        path,
        ids,
        contents,
        -scores if said["turned"] else scores,
        opinions,
        fingerprint=said["data_fingerprint"],
        part=said["part"],
        split=said["split"],
        label=label,
        on_label=label == spoken and said.get("rmse", np.nan) is not None,
        warnings=tuple(warning for warning, images in seen.items() if images) + (UNKNOWN,) * (None in seen.values()),
    )


def read_scores(path: Path) -> tuple[tuple[str, ...], dict[str, str], np.ndarray, np.ndarray]:
    """Ids, the content of each image by its id, scores [n] and opinions [n]. Raises ConfigError for what no run leaves."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        scores, opinions = (np.array([float(row[name]) for row in rows]) for name in ("score", "opinion"))
        ids, contents = tuple(row["image"] for row in rows), {row["image"]: row["content"] for row in rows}
        if not rows:
            raise ValueError("it has no rows")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: is not a table of image, opinion, score and content ({error}); it was changed after it was written: {EVALUATE_AGAIN}"
        ) from error
    if len(set(ids)) < len(ids):
        raise ConfigError(f"{path}: holds an image twice; it was changed after it was written: {EVALUATE_AGAIN}")
    if len(ids) < FEWEST_IMAGES:
        raise ConfigError(f"{path}: holds {len(ids)} images; at least {FEWEST_IMAGES} are needed: evaluate on more, with --part or --split")
    return ids, contents, without_rounding(scores), opinions
