"""The run as a table in the terminal and as a picture, drawn from the files of the run folder alone."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.errors import ConfigError
from dist_train.intervals import what_was_drawn
from dist_train.journal import read_records
from dist_train.mapping import CURVES, FITTED, RISING, Curve
from dist_train.overfitting import train_and_val
from dist_train.status import read_status
from dist_train.tested import read_scores

COLUMNS = ("srcc", "plcc", "krcc", "rmse", "patch_srcc", "patch_plcc", "spread")
FEW_PER_PARAMETER = 10  # images for each parameter of a curve, below which its figures flatter
_WIDTH_OF_A_PLOT = 100  # letters of the smaller size
FEW_POINTS = 30  # steps that each get a marker in the picture: a line of one alone cannot be seen


def final_table(status: Mapping[str, Any]) -> str:
    """Validation and test figures of the best epoch, aligned, with what they are figures of."""
    panels = dict(_panels(status))
    width = max(6, *(len(name) + 1 for name in panels)) if panels else 6
    head = f"{'':<{width}}" + "".join(f"{name:>12}" for name in COLUMNS)
    rows = [f"{name:<{width}}" + "".join(_cell(panel.get(column)) for column in COLUMNS) for name, panel in panels.items()]
    told = [
        "",
        f"{status['status']}: {status['reason']}",
        f"label: {status['label']}; data {status['data_set']} ({status['data_fingerprint']}), split {status['split']}",
        _choice(status),
        *([_start(status["starts_from"])] if status.get("starts_from") else []),
        head,
        *rows,
        *(line for name, panel in panels.items() for line in _further(name, panel)),
        *([status["train_and_val"]] if status.get("train_and_val") else []),
        *([_saving(status["saving"])] if status.get("saving") else []),
    ]
    return "\n".join(told)


def _choice(status: Mapping[str, Any]) -> str:
    if status.get("best_epoch") is None:  # as before the first checkpoint, too
        return "no epoch is the best yet"
    on_test = "  <- ON TEST: the test figures are too good" if status["selected_on"] == "test" else ""
    return f"best epoch {status['best_epoch']}, chosen on {status['selected_on']}{on_test}"


def _start(start: Mapping[str, Any]) -> str:
    unknown = "  <- nobody knows all that it was trained on: images of val and test may be among it"
    return f"starts from {start['model']}" + unknown * (not start["all_it_saw_is_known"])


def _saving(cost: Mapping[str, Any]) -> str:
    number = cost["checkpoints"]
    each = f"{cost['bytes'] / number / 1e6:,.0f} MB and {cost['seconds'] / number:.1f} s each"
    return f"saving: {number:,} checkpoint{'s' * (number > 1)}, {each}, {cost['share']:.1%} of the time of training"


def _panels(status: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every panel of a status with the name of its row: of val and test, of each of several sets, of the averaged weights."""
    for part in ("val", "test"):
        for whose, panel in (("", status.get(part)), (" ema", (status.get("average") or {}).get(part))):
            if panel:
                yield part + whose, panel
                yield from ((f"{part}{whose} {name}", of_set) for name, of_set in panel.get("sets", {}).items())


def cross_table(panels: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per data set that one model was tested on, from the final panel of each: the table of generalisation.

    Errors in units of the label are left out, because the sets have scales of their own; what the sets share are correlations,
    with their intervals, raw and after the logistic of 5 parameters. Where that could not be fitted, or falls somewhere, the
    logistic of 4 takes its place, and where that could not either, the raw PLCC: the cell says which.
    """
    width = max(len(name) for name in ("data set", *panels))
    lines = [f"{'data set':<{width}}{'images':>10}{'SRCC':>10}{'95 %':>20}{'PLCC':>10}{'95 %':>20}{'KRCC':>10}{'PLCC mapped':>14}"]
    for name, panel in panels.items():
        correlations = "".join(f"{_figure(panel[of]):>10}{_span(panel[of + '_interval']):>20}" for of in ("srcc", "plcc"))
        lines.append(f"{name:<{width}}{panel['images']:>10,}{correlations}{_figure(panel['krcc']):>10}{_mapped(panel):>14}")
    return "\n".join(lines)


def _mapped(panel: Mapping[str, Any]) -> str:
    """The PLCC after a logistic, with a word on it where it is not the one of 5 parameters."""
    return _figure(panel["plcc_mapped"]) + {0: " (raw)", 4: " (4)", 5: ""}[panel["mapped_by"]]


def _further(part: str, panel: Mapping[str, Any]) -> list[str]:
    """What is told of a part below its row of figures; nothing of a panel that holds no more than that row."""
    if "srcc_interval" not in panel:
        return []
    how = what_was_drawn(panel["images"], panel["contents"], panel.get("effective_contents"))
    intervals = f"SRCC {_span(panel['srcc_interval'])}, PLCC {_span(panel['plcc_interval'])}" if _exists(panel["srcc_interval"]) else ""
    copies = panel.get("trained_too") or 0  # of a run of before there was this figure, nobody knows
    shown = f"{copies:,} of the {panel['images']:,} images show a content, or are the very file, that was trained on"
    told = [f"{part}: WARNING: {shown}: the figures are too good"] * bool(copies)
    told += [f"{part}: {_images(panel, panel['images'])}; 95 % intervals" + f" ({how})" * bool(how) + f": {intervals or 'none'}"]
    for number in CURVES:
        fit = panel[f"mapping{number}"]
        status = fit["status"]
        if panel["images"] < FEW_PER_PARAMETER * number:
            status += f", to only {panel['images']} images: so many parameters follow them closer than they would follow others"
        figures = f"PLCC {_figure(panel[f'plcc_mapped{number}'])}, RMSE {_figure(panel[f'rmse_mapped{number}'])} ({status})"
        told.append(f"{part}: after the {number}-parameter logistic: {figures if fit['parameters'] else fit['status']}")
    if panel["outlier_ratio"] is not None and not math.isnan(panel["outlier_ratio"]):
        told.append(
            f"{part}: beyond two standard deviations of the ratings{_mapped_by(panel)}: {panel['outlier_ratio']:.1%} of the images, "
            f"RMSE of what is beyond {_figure(panel['rmse_epsilon'])}"
        )
    return told


def _mapped_by(panel: Mapping[str, Any]) -> str:
    number = panel["mapped_by"]
    return f", after the {number}-parameter logistic" if number else ", raw"


def draw_report(folder: Path) -> Path:
    """Draws report.png into the run folder: loss, SRCC at both levels, spread, and score against opinion.

    Before the first epoch has been judged that is the loss alone. Raises ConfigError when the folder holds no step either.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such run folder")
    records = read_records(folder / "metrics.jsonl")
    steps, epochs = ([record for record in records if record["kind"] == kind] for kind in ("step", "epoch"))
    status = read_status(folder)
    if status is None:
        raise ConfigError(f"{folder}: holds no run (no status.json); give the run.folder of a training")
    if not steps:
        raise ConfigError(f"{folder}: holds no step to draw yet (metrics.jsonl has none); wait for the first")
    figure, ((losses, order), (spread, scatter)) = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    about = f"{status['data_set']}, split {status['split']}, label {status['label']}"
    best = status.get("best_epoch")  # neither stands there before the first checkpoint
    figure.suptitle(about if best is None else f"{about}\nbest epoch {best}, chosen on {status['selected_on']}")
    _draw_losses(losses, steps)
    numbers = [record["epoch"] for record in epochs]
    for part, colour in (("train", "tab:orange"), ("val", "tab:blue"), ("test", "tab:red")):
        panels = [record[part] for record in epochs if record.get(part)]
        if panels and len(panels) == len(numbers):
            order.plot(numbers, [panel["srcc"] for panel in panels], color=colour, marker="o", label=f"{part}, images")
            order.plot(
                numbers, [panel["patch_srcc"] for panel in panels], color=colour, linestyle="--", marker=".", label=f"{part}, patches"
            )
            for title, of_set in _each_set(part, panels):
                shown = {"color": colour} if title == part else {"linestyle": {"train": "--", "val": "-", "test": ":"}[part]}
                spread.plot(numbers, [panel["spread"] for panel in of_set], marker="o", label=title, **shown)
    for axes in (order, spread):
        if best is not None:
            axes.axvline(best, color="grey", linewidth=0.8)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    order.set(title="SRCC after each epoch")
    order.set_xlabel("\n".join(["epoch", *textwrap.wrap(train_and_val(epochs), _WIDTH_OF_A_PLOT)]), fontsize=8)
    spread.set(title="spread of the patch scores within images", xlabel="epoch", ylabel="label units")
    for axes in (losses, order, spread):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _draw_scatter(scatter, folder, status)
    path = folder / "report.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _draw_losses(axes: Any, steps: list[dict[str, Any]]) -> None:
    marker = "o" if len(steps) <= FEW_POINTS else ""
    for name in ("loss", "regression", "ranking", "consistency"):
        heights = [record[name] for record in steps]
        if name == "loss" or any(heights):  # a term of weight 0 is no line
            axes.plot([record["step"] for record in steps], heights, label=name, linewidth=0.8, marker=marker)
    axes.set(title="training loss", xlabel="step", ylabel="loss")
    axes.legend()


def _draw_scatter(axes: Any, folder: Path, status: Mapping[str, Any]) -> None:
    part = "test" if status.get("test") else "val"
    if not status.get(part):
        axes.set(title="no epoch had a SRCC yet")
        return
    if "sets" in status[part]:
        _draw_sets(axes, folder, part, status[part])
        return
    _, _, scores, opinions = read_scores(folder / f"scores-{part}.csv")
    axes.scatter(opinions, scores, s=8, alpha=0.6)
    ends = [min(opinions), max(opinions)]
    axes.plot(ends, ends, color="grey", linewidth=0.8, label="score = opinion")
    panel = status[part]
    _draw_curve(axes, scores, panel)
    axes.legend()
    axes.set_title(_scatter_title(part, panel, len(scores)), fontsize=10)
    axes.set(
        xlabel=f"opinion: {status['label']}",
        ylabel="score",
    )


def _draw_sets(axes: Any, folder: Path, part: str, panel: Mapping[str, Any]) -> None:
    """The scores of several sets in one picture: each in standard deviations of its own opinions, from their mean."""
    for name, of_set in panel["sets"].items():
        _, _, scores, opinions = read_scores(folder / f"scores-{part}-{name}.csv")
        middle, unit = opinions.mean(), opinions.std() or 1.0
        label = f"{name}: SRCC {_figure(of_set['srcc'])}"
        axes.scatter((opinions - middle) / unit, (scores - middle) / unit, s=8, alpha=0.6, label=label)
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8, label="score = opinion")
    axes.legend()
    axes.set(title=f"{part}: mean SRCC of the sets {_figure(panel['srcc'])}", xlabel="opinion, in deviations of its set", ylabel="score")


def _each_set(part: str, panels: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The panels of all epochs, of each data set where there are several, with the name of their line."""
    if "sets" not in panels[0]:
        yield part, list(panels)
    for name in panels[0].get("sets", {}):
        yield f"{part}, {name}", [panel["sets"][name] for panel in panels]


def _draw_curve(axes: Any, scores: np.ndarray, panel: Mapping[str, Any]) -> None:
    """The logistic from scores to opinions that rises: of 5 parameters, else of 4; where there is none, why, in the legend."""
    fits = {number: panel.get(f"mapping{number}") or {} for number in sorted(CURVES, reverse=True)}
    fitted = {number: fit["parameters"] for number, fit in fits.items() if fit.get("status") in RISING}
    if fitted:
        number, parameters = next(iter(fitted.items()))
        heights = np.linspace(min(scores), max(scores), 200)
        curve = Curve(FITTED, tuple(parameters))
        axes.plot(curve(heights), heights, color="tab:red", linewidth=1.2, label=f"{number}-parameter logistic")
    elif panel.get("mapping5"):
        axes.plot([], [], " ", label=f"logistic {panel['mapping5']['status']}")


def _scatter_title(part: str, panel: Mapping[str, Any], images: int) -> str:
    ends = {name: panel.get(f"{name}_interval") for name in ("srcc", "plcc")}
    spans = {name: f" ({_span(found)})" if found and _exists(found) else "" for name, found in ends.items()}
    how = what_was_drawn(images, panel.get("contents", images), panel.get("effective_contents"))
    narrow = "; intervals too narrow" * (any(spans.values()) and how.endswith("too narrow"))
    told = ", ".join(f"{name.upper()} {_figure(panel[name])}{spans[name]}" for name in ("srcc", "plcc"))
    return f"{part}, {_images(panel, images)}{narrow}\n{told}"


def _images(panel: Mapping[str, Any], images: int) -> str:
    """How many images, and of how many contents where several show the same."""
    contents = panel.get("contents", images)
    return f"{images:,} images" + (f" of {contents:,} content{'s' * (contents > 1)}" if contents < images else "")


def _cell(value: float | None) -> str:
    return f"{_figure(value):>12}"


def _exists(ends: Sequence[float | None]) -> bool:
    """Whether there is such an interval."""
    return not any(end is None or math.isnan(end) for end in ends)


def _span(ends: Sequence[float | None]) -> str:
    return " to ".join(_figure(end) for end in ends) if _exists(ends) else "none"


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
