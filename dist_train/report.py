"""The run as a table in the terminal and as a picture, drawn from the files of the run folder alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.errors import ConfigError
from dist_train.journal import read_records

COLUMNS = ("srcc", "plcc", "krcc", "rmse", "patch_srcc", "patch_plcc", "spread")


def final_table(status: Mapping[str, Any]) -> str:
    """Validation and test figures of the best epoch, aligned, with what they are figures of."""
    head = f"{'':<6}" + "".join(f"{name:>12}" for name in COLUMNS)
    rows = [f"{part:<6}" + "".join(_cell(status[part].get(name)) for name in COLUMNS) for part in ("val", "test") if status.get(part)]
    told = [
        "",
        f"{status['status']}: {status['reason']}",
        f"label: {status['label']}; data {status['data_set']} ({status['data_fingerprint']}), split {status['split']}",
        f"best epoch {status['best_epoch']}, chosen on {status['selected_on']}"
        + ("  <- ON TEST: the test figures are too good" if status["selected_on"] == "test" else ""),
        head,
        *rows,
    ]
    return "\n".join(told)


def cross_table(panels: Mapping[str, Mapping[str, Any]]) -> str:
    """A row per data set that one model was tested on, from the final panel of each: the table of generalisation."""
    width = max(len(name) for name in ("data set", *panels))
    lines = [f"{'data set':<{width}}{'images':>10}{'SRCC':>10}{'PLCC':>10}"]
    for name, panel in panels.items():
        lines.append(f"{name:<{width}}{panel['images']:>10,}{_figure(panel['srcc']):>10}{_figure(panel['plcc']):>10}")
    return "\n".join(lines)


def draw_report(folder: Path) -> Path:
    """Draws report.png into the run folder: loss, SRCC at both levels, spread, and score against opinion.

    Raises ConfigError when the folder holds no epoch yet.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from dist_train.run_folder import read_status

    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such run folder")
    records = read_records(folder / "metrics.jsonl")
    epochs = [record for record in records if record["kind"] == "epoch"]
    status = read_status(folder)
    if not epochs or status is None:
        raise ConfigError(f"{folder}: holds no epoch to draw yet (metrics.jsonl has none)")
    figure, ((losses, order), (spread, scatter)) = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    about = f"{status['data_set']}, split {status['split']}, label {status['label']}"
    best = status.get("best_epoch")  # neither stands there before the first checkpoint
    figure.suptitle(about if best is None else f"{about}\nbest epoch {best}, chosen on {status['selected_on']}")
    _draw_losses(losses, [record for record in records if record["kind"] == "step"])
    numbers = [record["epoch"] for record in epochs]
    for part, colour in (("train", "tab:orange"), ("val", "tab:blue"), ("test", "tab:red")):
        panels = [record[part] for record in epochs if record.get(part)]
        if len(panels) == len(numbers):
            order.plot(numbers, [panel["srcc"] for panel in panels], color=colour, marker="o", label=f"{part}, images")
            order.plot(numbers, [panel["patch_srcc"] for panel in panels], color=colour, linestyle="--", label=f"{part}, patches")
            if "spread" in panels[0]:
                spread.plot(numbers, [panel["spread"] for panel in panels], color=colour, marker="o", label=part)
    for axes in (order, spread):
        if best is not None:
            axes.axvline(best, color="grey", linewidth=0.8)
        axes.legend()
    order.set(title="SRCC (train: as said while the weights moved)", xlabel="epoch")
    spread.set(title="spread of the patch scores within images", xlabel="epoch", ylabel="label units")
    _draw_scatter(scatter, folder, status)
    path = folder / "report.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _draw_losses(axes: Any, steps: list[dict[str, Any]]) -> None:
    for name in ("loss", "regression", "ranking", "consistency"):
        axes.plot([record["step"] for record in steps], [record[name] for record in steps], label=name, linewidth=0.8)
    axes.set(title="training loss", xlabel="step", ylabel="label units")
    axes.legend()


def _draw_scatter(axes: Any, folder: Path, status: Mapping[str, Any]) -> None:
    part = "test" if (folder / "scores-test.csv").is_file() and status.get("test") else "val"
    if not status.get(part):
        axes.set(title="no epoch had a SRCC yet")
        return
    if "sets" in status[part]:
        axes.set(title=f"{part}: mean SRCC of the sets {_figure(status[part]['srcc'])}")
        return
    with (folder / f"scores-{part}.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    opinions, scores = ([float(row[column]) for row in rows] for column in ("opinion", "score"))
    axes.scatter(opinions, scores, s=8, alpha=0.6)
    ends = [min(opinions), max(opinions)]
    axes.plot(ends, ends, color="grey", linewidth=0.8)
    panel = status[part]
    axes.set(
        title=f"{part}: SRCC {_figure(panel['srcc'])}, PLCC {_figure(panel['plcc'])}, {len(rows)} images",
        xlabel=f"opinion: {status['label']}",
        ylabel="score",
    )


def _cell(value: float | None) -> str:
    return f"{_figure(value):>12}"


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
