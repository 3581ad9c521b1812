"""The table and the picture of a run, from the files of its folder alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image

from dist_train.__main__ import main
from dist_train.config import Loss
from dist_train.errors import ConfigError
from dist_train.loss import Targets, training_loss
from dist_train.report import cross_table, draw_report, final_table

PANEL = {"srcc": 0.8125, "plcc": 0.75, "krcc": 0.5, "rmse": 7.5, "patch_srcc": 0.6875, "patch_plcc": 0.625, "spread": 2.5}
FINAL = {
    **PANEL,
    **{
        "images": 40,
        "contents": 8,
        "effective_contents": 8.0,
        "srcc_interval": [0.75, 0.875],
        "plcc_interval": [0.7, 0.8],
        "plcc_mapped4": 0.76,
        "rmse_mapped4": 7.25,
    },
    **{"mapping4": {"status": "fitted", "parameters": [5.0, 0.0, 2.5, 1.0]}, "plcc_mapped5": None, "rmse_mapped5": None},
    **{"plcc_mapped": 0.76, "mapped_by": 4},
    **{"mapping5": {"status": "not fitted: 4 different scores for 5 parameters", "parameters": None}},
    **{"rmse_epsilon": 1.25, "outlier_ratio": 0.125},
}
STATUS: dict[str, Any] = {
    **{"status": "finished", "reason": "all 2 epochs are done", "steps": 4, "epochs": 2, "best_epoch": 1, "selected_on": "val"},
    **{"val": PANEL, "test": {**PANEL, "srcc": 0.25}, "data_set": "tiny", "label": "MOS (1 to 5, higher is better)"},
    **{"split": "official", "data_fingerprint": "0123456789abcdef", "world_size": 2},
}
UNFINISHED = {**STATUS, "status": "unfinished", "reason": "training", "test": None}
NO_BEST = {**UNFINISHED, "best_epoch": None, "val": None}


def run_folder(folder: Path, status: dict[str, Any] = STATUS, epochs: int = 2, parts: tuple[str, ...] = ("val", "test")) -> Path:
    """What a run of a few epochs leaves behind; `parts` have their scores written."""
    lines = []
    for epoch in range(epochs):
        for step in (2 * epoch + 1, 2 * epoch + 2):
            terms = {"loss": 9.0 - step, "regression": 8.0 - step, "ranking": 1.0, "consistency": 0.5}
            lines.append({"kind": "step", "step": step, "epoch": epoch, **terms})
        lines.append({"kind": "epoch", "epoch": epoch, "step": 2 * epoch + 2, "train": PANEL, "val": PANEL, "verdict": "new best"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "status.json").write_text(json.dumps(status))
    for part in parts:
        rows = [f"{part}-{number},{number + 1},{number + 1.5},0.5,{part}-{number}" for number in range(4)]
        (folder / f"scores-{part}.csv").write_text("\n".join(["image,opinion,score,spread,content", *rows]) + "\n")
    return folder


def rows_of(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.startswith(("val", "test"))}


def test_the_table_gives_the_best_epochs_figures_of_both_parts() -> None:
    table = final_table(STATUS)
    assert rows_of(table) == {
        "val": ["0.8125", "0.7500", "0.5000", "7.5000", "0.6875", "0.6250", "2.5000"],
        "test": ["0.2500", "0.7500", "0.5000", "7.5000", "0.6875", "0.6250", "2.5000"],
    }
    for fact in ("finished: all 2 epochs are done", "best epoch 1, chosen on val", "MOS (1 to 5, higher is better)", "0123456789abcdef"):
        assert fact in table


def test_the_figures_stand_under_their_titles() -> None:
    title, *rows = final_table(STATUS).splitlines()[-3:]
    assert title.split() == ["srcc", "plcc", "krcc", "rmse", "patch_srcc", "patch_plcc", "spread"]
    assert {len(title)} == {len(row) for row in rows}


def test_the_table_says_when_test_chose_the_epoch() -> None:
    assert "TEST" in final_table({**STATUS, "selected_on": "test"})
    assert "TEST" not in final_table(STATUS)


def test_the_table_leaves_out_a_part_that_is_not_scored_yet() -> None:
    assert list(rows_of(final_table(UNFINISHED))) == ["val"]


@pytest.mark.parametrize("nothing", [None, math.nan], ids=["as read from the file", "as it was computed"])
def test_a_figure_that_does_not_exist_is_a_dash_in_the_table(nothing: float | None) -> None:
    row = rows_of(final_table({**STATUS, "test": {**PANEL, "srcc": nothing}}))["test"]
    assert row[0] == "-" and row[1] == "0.7500"


def test_of_too_few_contents_no_interval_is_told() -> None:
    nothing: dict[str, Any] = {"contents": 2, "effective_contents": 2.0, "srcc_interval": [None, None], "plcc_interval": [None, None]}
    table = final_table({**STATUS, "test": FINAL | nothing})
    assert "test: 40 images of 2 contents; 95 % intervals (of 2 contents no resamples can be drawn): none\n" in table


def test_below_the_figures_stand_intervals_curves_and_what_people_themselves_differ_by() -> None:
    table = final_table({**STATUS, "test": FINAL, "train_and_val": "train and val SRCC rose together"})
    assert table.splitlines()[-5:] == [
        "test: 40 images of 8 contents; 95 % intervals (by resamples of the 8 contents, so few that they are too narrow): "
        "SRCC 0.7500 to 0.8750, PLCC 0.7000 to 0.8000",
        "test: after the 4-parameter logistic: PLCC 0.7600, RMSE 7.2500 (fitted)",
        "test: after the 5-parameter logistic: not fitted: 4 different scores for 5 parameters",
        "test: beyond two standard deviations of the ratings, after the 4-parameter logistic: "
        "12.5% of the images, RMSE of what is beyond 1.2500",
        "train and val SRCC rose together",
    ]


def test_figures_of_images_that_were_trained_on_are_told_as_too_good() -> None:
    told = final_table({**STATUS, "test": {**FINAL, "trained_too": 15}})
    assert "test: WARNING: 15 of the 40 images show a content, or are the very file, that was trained on: the figures are too good" in told
    assert "WARNING" not in final_table({**STATUS, "test": {**FINAL, "trained_too": 0}})


@pytest.mark.parametrize(("images", "few"), [(39, ["4", "5"]), (40, ["5"]), (49, ["5"]), (50, [])])
def test_a_curve_of_many_parameters_for_few_images_is_told_as_that(images: int, few: list[str]) -> None:
    fitted = {"images": images, "contents": images, "mapping5": {"status": "fitted", "parameters": [1.0] * 5}}
    lines = final_table({**STATUS, "test": {**FINAL, **fitted}}).splitlines()
    assert [line.split("-parameter")[0][-1] for line in lines if f"(fitted, to only {images} images" in line] == few


@pytest.mark.parametrize("nothing", [None, math.nan], ids=["as read from the file", "as it was computed"])
def test_a_set_without_deviations_has_no_line_about_them(nothing: float | None) -> None:
    table = final_table({**STATUS, "test": {**FINAL, "contents": 40, "rmse_epsilon": nothing, "outlier_ratio": nothing}})
    assert "standard deviations" not in table and "test: 40 images; 95 %" in table


def test_an_interval_that_does_not_exist_is_told_as_none() -> None:
    nothing: dict[str, Any] = {"srcc": None, "srcc_interval": [None, None], "plcc_interval": [None, None]}
    assert "too narrow): none\n" in final_table({**STATUS, "test": FINAL | nothing})


def test_the_table_across_data_sets_has_a_row_per_set_and_no_errors_in_units() -> None:
    table = cross_table({"koniq10k": FINAL, "a_set_of_a_long_name": {**FINAL, "srcc": -0.25, "images": 1162}})
    title, first, second = table.splitlines()
    assert first.split()[:5] == ["koniq10k", "40", "0.8125", "0.7500", "to"]
    assert second.split()[:4] == ["a_set_of_a_long_name", "1,162", "-0.2500", "0.7500"]
    assert len({len(title), len(first), len(second)}) == 1
    assert "RMSE" not in title and first.split()[-2:] == ["0.7600", "(4)"]  # no curve of five could be fitted


def test_an_interval_with_two_negative_ends_stands_apart_from_the_figure_before_it() -> None:
    negative = {"srcc": -0.0806, "srcc_interval": [-0.1906, -0.0426], "plcc": -0.0807, "plcc_interval": [-0.1907, -0.0427], "krcc": -0.5}
    title, row = cross_table({"csiq": FINAL | negative}).splitlines()
    assert row.split()[2:-2] == ["-0.0806", "-0.1906", "to", "-0.0426", "-0.0807", "-0.1907", "to", "-0.0427", "-0.5000"]
    assert len(title) == len(row)


def test_every_line_of_a_run_of_one_step_is_seen_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[list[float], str]] = {}
    plot = Axes.plot

    def noted(axes: Axes, x: Any, y: Any, *rest: Any, **how: Any) -> Any:
        lines = plot(axes, x, y, *rest, **how)
        drawn[f"{axes.get_title()} {how.get('label')}"] = (list(x), str(lines[0].get_marker()))
        return lines

    monkeypatch.setattr(Axes, "plot", noted)
    folder = run_folder(tmp_path, epochs=1)
    path = folder / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if '"step": 2, "epoch": 0' not in line))
    draw_report(folder)
    alone = {name: marker for name, (x, marker) in drawn.items() if len(x) == 1}
    assert len(alone) == 4 + 4 + 2 and not {"", " ", "None"} & set(alone.values())  # losses; SRCC of images and patches; spread


@pytest.mark.parametrize(("rising", "curve"), [((4,), 4), ((4, 5), 5), ((), None)], ids=["no five", "five", "none"])
@pytest.mark.parametrize("other", ["not fitted: all scores are equal", "fitted, not monotone"])
def test_the_picture_shows_the_curve_that_there_is(
    tmp_path: Path, rising: tuple[int, ...], curve: int | None, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    show = Axes.legend

    def legend(axes: Axes, *args: Any, **more: Any) -> Any:
        drawn.extend(str(label) for label in axes.get_legend_handles_labels()[1])
        return show(axes, *args, **more)

    monkeypatch.setattr(Axes, "legend", legend)
    fits = {4: [5.0, 0.0, 2.5, 1.0], 5: [4.0, 1.5, 2.5, 0.1, 2.0]}
    found = {f"mapping{n}": {"status": "fitted" if n in rising else other, "parameters": fits[n]} for n in fits}
    draw_report(run_folder(tmp_path, {**STATUS, "test": FINAL | found}))
    assert (f"{curve}-parameter logistic" if curve else f"logistic {other}") in drawn


@pytest.mark.parametrize("status", [STATUS, UNFINISHED, {**STATUS, "selected_on": "test"}], ids=["finished", "unfinished", "on test"])
def test_the_picture_is_drawn_into_the_run_folder(tmp_path: Path, status: dict[str, Any]) -> None:
    path = draw_report(run_folder(tmp_path, status))
    assert path == tmp_path / "report.png"
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 500
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50  # something is drawn


def test_a_run_without_a_test_yet_is_drawn_with_its_validation_scores(tmp_path: Path) -> None:
    assert draw_report(run_folder(tmp_path, UNFINISHED, parts=("val",))).is_file()


def test_a_run_whose_epochs_had_no_srcc_yet_is_drawn_without_scores(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, NO_BEST, parts=())
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.8125", "null"))
    assert draw_report(folder).is_file()


def test_a_test_without_a_srcc_is_drawn_all_the_same(tmp_path: Path) -> None:
    status = {**STATUS, "test": {**PANEL, "srcc": None, "plcc": None}}  # a test part of one image, or of equal opinions
    assert draw_report(run_folder(tmp_path, status)).is_file()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no run", r"holds no run \(no status.json\); give the run.folder of a training"),
        ("no step", "holds no step to draw yet"),
        ("no status", "holds no run"),
    ],
)
def test_a_folder_without_a_step_is_refused_by_name(tmp_path: Path, content: str, told: str) -> None:
    if content != "no run":
        run_folder(tmp_path, epochs=0 if content == "no step" else 1)
    if content == "no status":
        (tmp_path / "status.json").unlink()
    with pytest.raises(ConfigError, match=f"{tmp_path.name}: {told}"):
        draw_report(tmp_path)


def test_before_the_first_epoch_is_judged_the_report_tells_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = {key: value for key, value in NO_BEST.items() if key not in ("best_epoch", "selected_on", "val", "test", "steps", "epochs")}
    path = run_folder(tmp_path, begun, epochs=1, parts=()) / "metrics.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if '"kind": "step"' in line))
    assert main(["report", str(tmp_path)]) == 0
    assert "no epoch is the best yet" in capsys.readouterr().out and (tmp_path / "report.png").is_file()


def test_a_term_of_the_loss_that_is_switched_off_is_no_line_in_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, *points, **how: (drawn.append(str(how.get("label"))), plot(axes, *points, **how))[1])
    path = run_folder(tmp_path) / "metrics.jsonl"
    targets = Targets(torch.rand(4), torch.zeros(4), 1.0)
    switched_off = training_loss(torch.rand(4, 2), targets, Loss(rank_weight=1)).consistency
    path.write_text(path.read_text().replace('"consistency": 0.5', f'"consistency": {float(switched_off)}'))
    draw_report(tmp_path)
    assert {"loss", "regression", "ranking"} <= set(drawn) and "consistency" not in drawn


def test_the_command_prints_the_table_and_names_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run_folder(tmp_path))]) == 0
    said = capsys.readouterr().out
    assert final_table(STATUS) in said
    assert str(tmp_path / "report.png") in said


def test_the_command_refuses_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "error:" in capsys.readouterr().err


def test_a_report_asked_for_in_the_first_seconds_of_the_first_verdict_is_drawn(tmp_path: Path) -> None:
    early = {key: value for key, value in NO_BEST.items() if key not in ("best_epoch", "selected_on", "val", "test", "steps", "epochs")}
    assert draw_report(run_folder(tmp_path, early, epochs=1, parts=())).is_file()  # the epoch's line is written before its checkpoint


def test_a_run_on_several_sets_is_drawn_set_by_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    for name in ("plot", "scatter"):
        draw = getattr(Axes, name)
        monkeypatch.setattr(
            Axes, name, lambda axes, *points, draw=draw, **how: (drawn.append(str(how.get("label"))), draw(axes, *points, **how))[1]
        )
    both = {**PANEL, "sets": {"a": PANEL, "b": {**PANEL, "srcc": 0.5}}}
    folder = run_folder(tmp_path, {**STATUS, "val": both, "test": both}, parts=("test-a", "test-b"))
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace(json.dumps(PANEL), json.dumps(both)))
    draw_report(folder)
    assert {"train, a", "train, b", "val, a", "val, b", "a: SRCC 0.8125", "b: SRCC 0.5000"} <= set(drawn)
