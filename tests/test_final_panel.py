"""What a result is told with, read off a real shard folder: contents, deviations, and labels that run the other way."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from dist_train.evaluation import Scores
from dist_train.mapping import FITTED, Curve
from shards.datasets import read_table
from shards.manifest import Label, Shards
from shards.plan import Settings, plan_build
from shards.writer import build

MOS, DMOS = Label("MOS", 1.0, 5.0, True), Label("DMOS", 0.0, 100.0, False)


@pytest.fixture(scope="module")
def rated(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """40 of the photographs, of 4 contents, as a set with DMOS, lower is better, and the deviations of its ratings."""
    folder = tmp_path_factory.mktemp("rated")
    with (photographs / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))[:40]
    table = folder / "scores.csv"
    lines = [f"{row['image']},{100 - float(row['score'])},{2 + number},{row['group']}" for number, row in enumerate(rows)]
    table.write_text("\n".join(["image,score,std,group", *lines]) + "\n")
    data_set = read_table(table, photographs / "images", "rated", DMOS)
    build(plan_build(data_set, Settings(patch_size=64, patches=1)), folder / "shards")
    return Shards(folder / "shards")


def scores_of(shards: Shards, scores: np.ndarray) -> Scores:
    return Scores(np.arange(len(shards)), scores[:, None], np.array(shards.opinions))


def test_images_contents_and_deviations_are_those_of_the_shards(rated: Shards) -> None:
    stds = np.array([float(row["std"]) for row in rated.image_rows()])
    errors = stds * np.where(np.arange(40) < 10, 2.5, -1.5)  # ten images are half a deviation beyond two
    panel = scores_of(rated, rated.opinions + errors).final_panel(rated, DMOS, scale_is_open=False)
    assert (panel["images"], panel["contents"]) == (40, 4)
    curve = Curve(FITTED, tuple(panel[f"mapping{panel['mapped_by']}"]["parameters"]))
    left = np.abs(curve(rated.opinions + errors) - rated.opinions) - 2 * stds
    assert panel["outlier_ratio"] == np.mean(left > 0) > 0
    assert panel["rmse_epsilon"] == pytest.approx(math.sqrt(np.mean(np.maximum(left, 0) ** 2)))


def test_where_the_loss_leaves_the_scale_open_raw_errors_do_not_exist_and_correlations_do(rated: Shards) -> None:
    panel = scores_of(rated, 7 * rated.opinions - 500).final_panel(rated, DMOS, scale_is_open=True)
    assert math.isnan(panel["rmse"]) and panel["srcc"] == panel["plcc"] == pytest.approx(1)
    assert math.isfinite(panel["outlier_ratio"])  # of the mapped scores


def test_shards_without_deviations_have_no_outlier_ratio(shards: Path) -> None:
    opened = Shards(shards)
    panel = scores_of(opened, np.array(opened.opinions)).final_panel(opened, opened.label, scale_is_open=False)
    assert math.isnan(panel["outlier_ratio"]) and math.isnan(panel["rmse_epsilon"])
    assert panel["contents"] == 6


def test_a_model_that_predicts_dmos_well_is_positive_on_dmos(rated: Shards) -> None:
    assert scores_of(rated, rated.opinions + 1).final_panel(rated, DMOS, scale_is_open=False)["srcc"] == pytest.approx(1)


def test_a_model_that_is_right_about_quality_on_the_opposite_scale_is_negative_and_has_no_curve(rated: Shards) -> None:
    panel = scores_of(rated, 100 - rated.opinions).final_panel(rated, DMOS, scale_is_open=False)  # it should have spoken DMOS
    for name in ("srcc", "plcc", "krcc", "patch_srcc"):
        assert panel[name] == pytest.approx(-1)
    assert panel["srcc_interval"] == pytest.approx([-1, -1])
    assert math.isnan(panel["plcc_mapped5"]) and panel["mapping5"]["status"] == "not fitted: the scores do not rise with the opinions"


def test_a_model_of_mos_that_is_right_about_quality_is_positive_on_a_set_of_dmos(rated: Shards) -> None:
    quality = 5 - rated.opinions / 25
    panel = scores_of(rated, quality).final_panel(rated, MOS, scale_is_open=False)
    for name in ("srcc", "plcc", "krcc", "patch_srcc", "patch_plcc"):
        assert panel[name] == pytest.approx(1)
    assert panel["plcc_mapped4"] == pytest.approx(1, abs=1e-4)
    assert panel["rmse_mapped5"] == pytest.approx(0, abs=1e-3)  # on the scale of the set
    assert math.isnan(panel["rmse"])  # 1 to 5 is not 0 to 100
    assert (panel["outlier_ratio"], panel["rmse_epsilon"]) == (0, pytest.approx(0))  # but these are of scores mapped to it
    humped = scores_of(rated, -quality).final_panel(rated, MOS, scale_is_open=False)
    assert all(math.isnan(humped[name]) for name in ("rmse", "rmse_epsilon", "outlier_ratio"))  # nothing could be mapped
    assert scores_of(rated, -quality).final_panel(rated, MOS, scale_is_open=False)["srcc"] == pytest.approx(-1)
