"""Runs on two data sets of different scale and direction, and what they leave; averaged and compiled weights too."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
import torch._inductor.config
from accelerate.state import AcceleratorState
from in_process import train_here, train_here_until
from pydantic import ValidationError
from safetensors.torch import load_file

from dist_train.__main__ import main
from dist_train.collection import Collection, open_collection
from dist_train.compare import compare
from dist_train.config import Config, Data
from dist_train.errors import ConfigError
from dist_train.model_folder import open_model
from dist_train.plan import describe_plan, make_plan
from dist_train.report import final_table
from shards.datasets import read_table
from shards.manifest import Label, Shards
from shards.plan import Settings, plan_build
from shards.writer import build

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def worse_is_more(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same photographs, resized, with an opinion from 1 to 9 of which less is better, as shards."""
    folder = tmp_path_factory.mktemp("worse")
    with (photographs / "scores.csv").open() as file, (folder / "scores.csv").open("w", newline="") as turned:
        rows = list(csv.DictReader(file))
        writer = csv.DictWriter(turned, rows[0])
        writer.writeheader()
        writer.writerows(row | {"score": 9 - 8 * float(row["score"]) / 100} for row in rows[::2])  # half of them
    data_set = read_table(folder / "scores.csv", photographs / "images", "worse", Label("made-up DMOS", 1.0, 9.0, False))
    build(plan_build(data_set, Settings(patch_size=64, patches=4, resize="short:90")), folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="module")
def both(shards: Path, worse_is_more: Path) -> Collection:
    return open_collection(Data.model_validate({"sets": {"tiny": {"shards": shards}, "worse": {"shards": worse_is_more}}}))


def sets_of(shards: Path, worse: Path) -> str:
    return f"data.sets={{tiny: {{shards: {shards}}}, worse: {{shards: {worse}, weight: 40}}}}"


def test_targets_have_mean_0_and_std_1_per_set_and_rise_with_quality(both: Collection) -> None:
    for number, member in enumerate(both.members):
        targets = both.targets(member.parts["train"] + both.offsets[number])
        assert targets.mean() == pytest.approx(0, abs=1e-9)
        assert targets.std() == pytest.approx(1)
        quality = member.shards.opinions[member.parts["train"]] * (1 if member.shards.label.higher_is_better else -1)
        assert np.corrcoef(targets, quality)[0, 1] == pytest.approx(1)
        assert np.allclose(member.scale.to_opinions(targets), member.shards.opinions[member.parts["train"]])


def test_images_are_numbered_through_and_read_from_their_own_shards(both: Collection) -> None:
    tiny, worse = (member.shards for member in both.members)
    assert both.sets_of(np.array([0, 59, 60, 89])).tolist() == [0, 0, 1, 1]
    assert both.name_of(61) == f"worse/{worse.ids[1]}"
    assert np.array_equal(both.read_patches(61, [2, 0]), worse.read_patches(1, [2, 0]))
    assert np.array_equal(both.read_patches(59, [1]), tiny.read_patches(59, [1]))


def test_sets_of_which_one_has_no_val_are_judged_on_test_and_told_of(shards: Path, worse_is_more: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(worse_is_more, tmp_path / "worse"))
    _, parts = Shards(folder).split("official")
    lines = [f"{image},{'train' if number in parts['train'] else 'test'}" for number, image in enumerate(Shards(folder).ids)]
    (folder / "splits" / "no-val.csv").write_text("\n".join(["id,part", *lines]))
    sets = f"data.sets={{tiny: {{shards: {shards}}}, worse: {{shards: {folder}, split: no-val}}}}"
    train_here(tmp_path / "run", shards, sets, "data.shards=null", "stop.select_on=test")
    (epoch,) = runs.records(tmp_path / "run", "epoch")
    assert epoch["test"]["sets"].keys() == {"tiny", "worse"} and epoch["val"]["sets"].keys() == {"tiny"}
    assert epoch["val"]["srcc"] == epoch["val"]["sets"]["tiny"]["srcc"]
    assert "test worse" in final_table(runs.status(tmp_path / "run"))


def test_one_set_is_trained_on_in_its_own_units(shards: Path) -> None:
    only = open_collection(Data.model_validate({"shards": shards}))
    images = only.training_images
    assert np.array_equal(only.targets(images), Shards(shards).opinions[images])
    assert only.name_of(3) == Shards(shards).ids[3]


def test_a_set_named_alone_in_data_sets_is_trained_on_as_with_data_shards(shards: Path, worse_is_more: Path) -> None:
    for folder in (shards, worse_is_more):
        alone, named = (
            make_plan(Config.model_validate({"data": data, "train": {"global_batch": 8}}), 1)
            for data in ({"shards": folder}, {"sets": {"mine": {"shards": folder, "weight": 3}}})
        )
        assert (named.output_scale, named.label_std, named.order) == (alone.output_scale, alone.label_std, alone.order)
        images = alone.collection.training_images
        assert np.array_equal(named.collection.targets(images), alone.collection.targets(images))
        assert named.collection.targets(images).std() == pytest.approx(named.label_std)
    assert "of each set" not in describe_plan(named)
    make_plan(Config.model_validate({"data": {"sets": {"mine": {"shards": shards}}}, "model": {"output": "raw"}}), 1)


def test_sets_and_shards_together_or_patches_of_two_sizes_are_refused(shards: Path, photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"leave out data\.shards"):
        open_collection(Data.model_validate({"shards": shards, "sets": {"tiny": {"shards": shards}}}))
    data_set = read_table(photographs / "scores.csv", photographs / "images", "large", Label("x", 0.0, 100.0, True))
    build(plan_build(data_set, Settings(patch_size=96, patches=1)), tmp_path / "large")
    with pytest.raises(ConfigError, match="tiny 64, large 96 pixels"):
        open_collection(Data.model_validate({"sets": {"tiny": {"shards": shards}, "large": {"shards": tmp_path / "large"}}}))


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"train": "test", "test": "train", "val": "val"}, r"20 of the 20 images in test of turned, .* in train of tiny: .* trained on"),
        ({"train": "train", "test": "val", "val": "test"}, r"5 of the 5 images in test of turned, .* in val of tiny: .* been chosen by"),
    ],
    ids=["trains", "chooses"],
)
def test_a_photograph_that_trains_or_chooses_in_one_set_and_tests_in_another_is_refused(
    shards: Path, worse_is_more: Path, tmp_path: Path, parts: dict[str, str], complaint: str
) -> None:
    turned = shutil.copytree(worse_is_more, tmp_path / "turned")
    with (turned / "splits" / "official.csv").open() as file:
        rows = [f"{row['id']},{parts[row['part']]}" for row in csv.DictReader(file)]
    (turned / "splits" / "turned.csv").write_text("\n".join(["id,part", *rows]))
    sets = {"tiny": {"shards": shards}, "turned": {"shards": turned, "split": "turned"}}
    with pytest.raises(ConfigError, match=complaint):
        open_collection(Data.model_validate({"sets": sets}))


@pytest.mark.parametrize("name", ["a/b", "", ".. /x"])
def test_a_set_is_called_by_a_name_that_may_be_part_of_a_file_name(shards: Path, name: str) -> None:
    with pytest.raises(ValidationError):
        Data.model_validate({"sets": {name: {"shards": shards}}})


def test_the_plan_states_the_proportions(shards: Path, worse_is_more: Path) -> None:
    sets = {"tiny": {"shards": shards}, "worse": {"shards": worse_is_more}}
    plan = make_plan(Config.model_validate({"data": {"sets": sets}, "train": {"global_batch": 12}}), 2)
    told = describe_plan(plan)
    assert "8 of the 12 images of every batch" in told  # 40 and 20 training images
    assert "4 of the 12 images of every batch" in told
    assert "by the mean SRCC of the sets" in told
    with pytest.raises(ConfigError, match=r"train\.global_batch=1 is smaller than the number of data\.sets, 2"):
        make_plan(Config.model_validate({"data": {"sets": sets}, "train": {"global_batch": 1}}), 1)


@pytest.fixture(scope="module")
def run_of_both(shards: Path, worse_is_more: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    runs.train(1, folder, "", sets_of(shards, worse_is_more), "data.shards=null", "ema.decay=0.9")
    return folder


def test_a_run_on_two_sets_reports_each_and_their_mean_on_their_own_scales(run_of_both: Path) -> None:
    told = runs.status(run_of_both)
    assert told["status"] == "finished"
    for part in ("val", "test"):
        of_sets = told[part]["sets"]
        assert told[part]["srcc"] == pytest.approx((of_sets["tiny"]["srcc"] + of_sets["worse"]["srcc"]) / 2)
        assert "rmse" not in told[part] and of_sets["tiny"]["rmse"] > 0
    for name, (low, high) in {"tiny": (-40, 140), "worse": (-2, 12)}.items():
        with (run_of_both / f"scores-test-{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert rows and all(low < float(row["score"]) < high for row in rows), name
        scores, opinions = ([float(row[column]) for row in rows] for column in ("score", "opinion"))
        assert told["test"]["sets"][name]["rmse"] == pytest.approx(np.sqrt(np.mean((np.array(scores) - opinions) ** 2)))
    for record in runs.records(run_of_both, "epoch"):
        members = record["val"]["sets"].values()
        assert record["val"]["effective_contents"] == pytest.approx(sum(panel["effective_contents"] for panel in members))
    assert list(open_model(run_of_both).scales) == ["tiny", "worse"]  # in the order of the config: the first is predict's scale
    told = final_table(told)
    assert all(re.search(rf"^{row} +-?0\.\d{{4}}", told, re.MULTILINE) for row in ("test", "test tiny", "test worse", "test ema worse")), (
        told
    )


def test_evaluate_gives_a_run_on_two_sets_the_figures_of_its_training_and_compare_tells_of_each(
    run_of_both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["evaluate", "--checkpoint", str(run_of_both), "--out", str(tmp_path), "--workers", "0"]) == 0
    for name in ("tiny", "worse"):
        assert (tmp_path / f"scores-{name}.csv").read_bytes() == (run_of_both / f"scores-test-{name}.csv").read_bytes()
    capsys.readouterr()
    assert main(["compare", str(run_of_both), str(run_of_both)]) == 0
    told, panel = capsys.readouterr().out, runs.status(run_of_both)["test"]
    srcc = [*(of["srcc"] for of in panel["sets"].values()), panel["srcc"]]
    assert re.findall(rf"^{run_of_both} +1 +(-?0\.\d{{4}})", told, re.MULTILINE) == [f"{value:.4f}" for value in srcc for _ in range(2)]


@pytest.mark.parametrize("name", ["tiny", "worse"])
def test_predict_cuts_pictures_like_those_of_the_set_whose_scale_it_speaks(
    name: str, run_of_both: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.csv"
    words = ["predict", "--checkpoint", run_of_both, photographs / "images", "--scale", name, "--out", out, "--workers", 0]
    assert main([*map(str, words)]) == 0
    assert f"pictures are cut like those of {name} (resize {'short:90' if name == 'worse' else 'none'})" in capsys.readouterr().err
    with out.open() as predicted, (run_of_both / f"scores-test-{name}.csv").open() as tested:
        scores = {row["id"]: float(row["score"]) for row in csv.DictReader(predicted)}
        rows = list(csv.DictReader(tested))
    assert rows and all(scores[row["image"]] == pytest.approx(float(row["score"]), rel=1e-4) for row in rows)


def test_a_run_on_two_sets_is_compared_with_one_on_one_of_them(run_of_both: Path, worse_is_more: Path, tmp_path: Path) -> None:
    train_here(tmp_path / "alone", worse_is_more)
    told = compare([str(tmp_path / "alone"), str(run_of_both)])
    tiny = runs.status(run_of_both)["trained_on"]["tiny"]["data_fingerprint"]
    assert told.startswith(
        f"left out: tiny ({tiny}) of {run_of_both}: {tmp_path / 'alone'} was not tested on it\n\ntest images: 5 of worse ("
    )
    panels = runs.status(run_of_both)["test"]["sets"]["worse"], runs.status(tmp_path / "alone")["test"]
    assert f"SRCC {panels[0]['srcc'] - panels[1]['srcc']:+.4f}" in told and "mean over" not in told


def test_averaged_weights_have_their_own_best_and_test_and_load_without_the_average(run_of_both: Path) -> None:
    told = runs.status(run_of_both)
    assert told["average"]["test"]["plcc"] != told["test"]["plcc"]
    own, average = (load_file(run_of_both / name / "model.safetensors") for name in ("best", "best-ema"))
    assert own.keys() == average.keys()
    assert any(not torch.equal(own[name], average[name]) for name in own)
    open_model(run_of_both / "best-ema")
    last = runs.records(run_of_both, "epoch")[-1]
    assert {"train", "val", "val-ema"} <= last.keys()


def test_a_run_on_two_sets_takes_the_same_steps_on_two_ranks(run_of_both: Path, shards: Path, worse_is_more: Path, tmp_path: Path) -> None:
    runs.train(2, tmp_path, "", sets_of(shards, worse_is_more), "data.shards=null", "ema.decay=0.9")
    one, other = (runs.records(folder, "step") for folder in (run_of_both, tmp_path))
    np.testing.assert_allclose([step["loss"] for step in one], [step["loss"] for step in other], rtol=1e-4)
    averages = [load_file(folder / "checkpoints" / "step-00000014" / "average.safetensors") for folder in (run_of_both, tmp_path)]
    assert runs.largest_difference(*averages) < 1e-3


def test_the_average_follows_its_formula() -> None:
    from dist_train.averaging import average_of

    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.BatchNorm1d(1))
    average = average_of(model, decay=0.4)
    expected = None
    for number, value in enumerate([1.0, 5.0, 2.0, 8.0]):
        with torch.no_grad():
            model[0].weight.fill_(value)  # type: ignore[union-attr, operator]
            model[1].running_mean.fill_(value)  # type: ignore[union-attr, operator]
            model[1].num_batches_tracked.fill_(number)  # type: ignore[union-attr, operator]
        average.update_parameters(model)
        now = min(0.4, (1 + number) / (10 + number))
        expected = value if expected is None else now * expected + (1 - now) * value
        assert average.module[0].weight.item() == pytest.approx(expected)  # type: ignore[index]
        assert average.module[1].running_mean.item() == pytest.approx(expected)  # type: ignore[index]
        assert average.module[1].num_batches_tracked.item() == number  # type: ignore[index]


# A compiler is busy with this backbone of four blocks for three quarters of the time that it needs for tiny.yaml's of nine.
REGULARISED = ("model.backbone=test_convnext3", "model.stochastic_depth=0.3", "model.dropout=0.3")
ALIKE = "evaluate.batch_images=5"  # of 10 images, or the smaller last batch would be compiled for itself


@pytest.fixture(scope="module")
def plain(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of five steps, with none of what is optional."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    train_here(folder, shards, *REGULARISED, ALIKE, "train.epochs=2")
    return folder


@pytest.mark.parametrize(
    ("optional", "rounding"), [("ema.decay=0.9", 0.0), ("model.gradient_checkpointing=true", 0.0), ("run.compile=true", 1e-3)]
)
def test_a_run_goes_on_without_what_is_optional_and_takes_the_same_steps(
    optional: str,
    rounding: float,
    plain: Path,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = (*REGULARISED, ALIKE, "train.epochs=2")
    with torch._inductor.config.patch({"cpp.simdlen": 1}):  # what has no vectors is compiled in three quarters of the time
        train_here_until(7, tmp_path, shards, *settings, optional)
    open_model(tmp_path)
    capsys.readouterr()
    train_here(tmp_path, shards, *settings)
    told = capsys.readouterr().out
    assert "going on from" in told and "step-00000007" in told
    assert ("note: ema.decay is null now" in told) == (optional == "ema.decay=0.9")
    assert runs.status(tmp_path)["status"] == "finished" and "average" not in runs.status(tmp_path)
    assert runs.largest_difference(runs.weights(plain, 10), runs.weights(tmp_path, 10)) <= rounding
    one, other = (runs.records(folder, "epoch")[0]["val"]["rmse"] for folder in (plain, tmp_path))
    assert one == pytest.approx(other, rel=rounding)
