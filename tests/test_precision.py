"""Mixed precision: how far bf16 and fp16 are from float32, what stays in float32, and steps that have no finite gradient."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
import warm
from accelerate import Accelerator
from half_precision import FEW_PATCHES, FIFTY_STEPS, ROUNDING, Poison, Seen, apart, checkpoint_of, watch
from in_process import config_of, train_here, train_here_until

from dist_train import training
from dist_train.config import Config, load_config
from dist_train.errors import TrainingError
from dist_train.model_folder import open_model
from dist_train.plan import make_plan
from dist_train.stopping import StopRequest
from shards.manifest import Shards

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return watch(monkeypatch)


@pytest.fixture(scope="module")
def exact(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty steps in float32."""
    folder = tmp_path_factory.mktemp("exact")
    train_here(folder, shards, *FIFTY_STEPS)
    return folder


def test_bf16_stays_close_to_float32_over_fifty_steps(exact: Path, shards: Path, tmp_path: Path, seen: Seen) -> None:
    train_here(tmp_path, shards, *FIFTY_STEPS, "run.precision=bf16")
    found = apart(exact, tmp_path)  # measured: 0.00001, 0.0006, 0.06 and 0.013
    assert 0 < found["first loss"] < 5e-4, found  # a loss in bf16: 0.005
    assert 0 < found["losses"] < 0.002, found  # weights rounded to bf16: 0.03; a rate that is 10 % off: 0.03
    assert 0 < found["scores"] < 0.25, found  # 0.7; 1.9
    assert 0 < found["weights"] < 0.05, found  # 0.27; 0.09
    assert seen.branch_types == {torch.bfloat16}


def test_the_target_network_and_the_loss_are_computed_in_float32(shards: Path, tmp_path: Path, seen: Seen) -> None:
    train_here(tmp_path, shards, "run.precision=bf16", "loss.consistency_weight=0.5", "model.dropout=0.2")
    assert seen.branch_types == {torch.bfloat16}  # or there would be nothing to see
    assert seen.target_types == {torch.float32}
    assert seen.loss_types == {torch.float32}
    assert len(seen.target_errors) > 5 and max(seen.target_errors) < ROUNDING
    assert len(seen.loss_errors) >= 5 and max(seen.loss_errors) < ROUNDING


def test_the_average_of_a_bf16_run_speaks_with_its_own_weights(shards: Path, tmp_path: Path) -> None:
    train_here(tmp_path, shards, "run.precision=bf16", "ema.decay=0.9", "optim.lr=1e-3")
    opened = Shards(shards)
    _, parts = opened.split()
    pixels = torch.from_numpy(np.concatenate([opened.read_patches(image, range(4)) for image in parts["test"]])).movedim(-1, 1)
    told = {}
    for suffix in ("", "-ema"):
        alone = open_model(tmp_path / f"best{suffix}").model.to(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            scores = alone(pixels).view(-1, 4).double().mean(dim=1).numpy()
        with (tmp_path / f"scores-test{suffix}.csv").open() as file:
            told[suffix] = np.array([float(row["score"]) for row in csv.DictReader(file)])
        np.testing.assert_allclose(told[suffix], scores, atol=0.02 * told[suffix].std())
    assert np.abs(told[""] - told["-ema"]).max() > 0.2 * told[""].std()


@pytest.fixture(scope="module")
def exact_few(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten small steps in float32."""
    folder = tmp_path_factory.mktemp("few")
    train_here(folder, shards, *FEW_PATCHES)
    return folder


@pytest.fixture
def fp16_on_the_cpu(exact_few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs take fp16, which users are refused without a GPU: accelerate's own way with it, and the CPU's scaler for the GPU's.

    Its scale begins 32 times too high, as it may be for a GPU's run whose gradients have grown.
    """

    def start(_: Config) -> Accelerator:
        accelerator = Accelerator(cpu=True, mixed_precision="fp16")
        accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**20)
        return accelerator

    monkeypatch.setattr(training, "open_accelerator", start)


@pytest.mark.usefixtures("fp16_on_the_cpu")
def test_fp16_finds_its_scale_without_a_trace_then_steps_as_float32_and_resumes(exact_few: Path, shards: Path, tmp_path: Path) -> None:
    train_here(tmp_path, shards, *FEW_PATCHES)
    steps, exact = runs.records(tmp_path, "step"), runs.records(exact_few, "step")
    skipped = [step["step"] for step in steps if step["grad_norm"] is None]
    assert skipped == [1, 2, 3, 4, 5]  # more than three in a row, and yet no reason to stop
    assert runs.status(tmp_path)["skipped_steps"] == 5
    for step in skipped:
        assert not checkpoint_of(tmp_path, step).optimizer
        assert runs.largest_difference(runs.weights(tmp_path, step), runs.weights(tmp_path, 1)) == 0
    for found, wanted in zip(steps, exact, strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=0.005)  # measured: 0.002
        if found["step"] not in skipped:
            assert found["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.1)  # unscaled: measured 0.02
    first = [value for name, value in checkpoint_of(tmp_path, 6).optimizer.items() if name.endswith(".exp_avg")]
    average = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(moment) for moment in first]))
    assert float(average) == pytest.approx(0.1, rel=0.1)  # of a gradient of norm 1: clipped after it was unscaled, not before
    at_the_end = checkpoint_of(tmp_path, 10)
    assert at_the_end.progress["scaler"]["scale"] == 2**15

    for step in (8, 9, 10):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    (tmp_path / "status.json").write_text(json.dumps(runs.status(tmp_path) | {"status": "unfinished"}))
    train_here(tmp_path, shards, *FEW_PATCHES)
    again = checkpoint_of(tmp_path, 10)
    assert runs.largest_difference(again.model, at_the_end.model) == 0
    assert again.progress["scaler"] == at_the_end.progress["scaler"]
    assert again.progress["progress"]["skipped"] == 5


@pytest.mark.usefixtures("fp16_on_the_cpu")
def test_a_gradient_too_large_for_its_norm_is_skipped_also_where_the_scaler_sees_no_infinity(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "accumulate_gradient", Poison(dict.fromkeys((7, 9, 10, 11), "norm")))
    with pytest.raises(TrainingError, match="step 11: the gradient was not finite 3 times in a row; the images of this batch are "):
        train_here(tmp_path, shards, *FEW_PATCHES, "train.epochs=2")
    assert runs.status(tmp_path)["skipped_steps"] == 5 + 3  # five to find the scale
    for step in (7, 9, 10):
        before, after = checkpoint_of(tmp_path, step - 1), checkpoint_of(tmp_path, step)
        assert all(torch.equal(before.model[name], after.model[name]) for name in before.model)
        assert all(torch.equal(before.optimizer[name], after.optimizer[name]) for name in before.optimizer)
        assert before.progress["scaler"]["scale"] == after.progress["scaler"]["scale"]


@pytest.mark.usefixtures("fp16_on_the_cpu")
@pytest.mark.parametrize(("first", "kind", "last"), [(7, "gradient", 9), (1, "activation", 3)], ids=["after its first step", "no loss"])
def test_a_run_in_fp16_ends_at_the_third_in_a_row_too_unless_it_is_finding_the_scale_of_its_first_step(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, kind: str, last: int
) -> None:
    monkeypatch.setattr(training, "accumulate_gradient", Poison(dict.fromkeys(range(first, 40), kind)))
    with pytest.raises(TrainingError, match=f"step {last}: the gradient was not finite 3 times in a row; the images of this batch are "):
        train_here(tmp_path, shards, *FEW_PATCHES, "train.epochs=9")


SKIPPED = {2: "gradient", 3: "activation", 5: "activation", 7: "gradient", 8: "activation", 9: "gradient"}
TWO_SETS = ("data.shards=null", "model.backbone=test_resnet", "ema.decay=0.9", "save.every_steps=1", "save.keep=99")


def train_poisoned(rank: int, port: int, folder: Path, shards: Path) -> None:
    """What one process of two does: trains, is poisoned on rank 1, and says how it ended."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    training.accumulate_gradient = poison = Poison(SKIPPED, here=rank == 1)  # type: ignore[assignment]
    sets = f"data.sets={{one: {{shards: {shards}}}, other: {{shards: {shards}}}}}"
    try:
        with StopRequest(folder) as request:
            training.train(config_of(folder, shards, sets, *TWO_SETS), request)
    except TrainingError as error:
        (folder / f"rank-{rank}.json").write_text(json.dumps({"error": str(error), "weights": poison.weights}))


def test_steps_spoiled_on_one_rank_are_skipped_by_both_without_a_trace_and_the_third_in_a_row_ends_the_run(
    shards: Path, tmp_path: Path
) -> None:
    warm.spawn(train_poisoned, tmp_path, shards, world=2)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    images = make_plan(load_config(tmp_path / "config.yaml"), 2)
    names = [images.collection.name_of(images.collection.training_images[image]) for image in images.order.batch(8).images]
    assert {name.partition("/")[0] for name in names} == {"one", "other"}
    assert f"step 9: the gradient was not finite 3 times in a row; the images of this batch are {', '.join(names)};" in ranks[0]["error"]
    told = runs.status(tmp_path)
    assert (told["status"], told["steps"], told["skipped_steps"]) == ("failed", 8, 5)
    assert told["reason"] == f"TrainingError: {ranks[0]['error']}"
    for step in range(2, 9):
        before, after = checkpoint_of(tmp_path, step - 1), checkpoint_of(tmp_path, step)
        skipped = step in SKIPPED
        assert (ranks[0]["weights"][step - 1] == ranks[0]["weights"][step]) == skipped
        assert all(torch.equal(before.model[name], after.model[name]) for name in before.model) == skipped  # and no statistics
        assert all(torch.equal(before.average[name], after.average[name]) for name in before.average) == skipped
        assert all(torch.equal(before.optimizer[name], after.optimizer[name]) for name in before.optimizer) == skipped


def test_three_in_a_row_are_three_also_across_two_sessions(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "accumulate_gradient", Poison({2: "gradient", 3: "gradient"}))
    train_here_until(3, tmp_path, shards)
    assert runs.status(tmp_path)["skipped_steps"] == 2
    monkeypatch.setattr(training, "accumulate_gradient", Poison({4: "gradient"}, first=4))
    with pytest.raises(TrainingError, match="step 4: the gradient was not finite 3 times in a row"):
        train_here(tmp_path, shards)


def test_a_run_with_a_spoiled_step_ends_well_and_is_reported(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "accumulate_gradient", Poison({2: "activation"}))
    train_here(tmp_path, shards, "train.epochs=2")
    told = runs.status(tmp_path)
    assert (told["status"], told["steps"], told["skipped_steps"]) == ("finished", 10, 1)
    assert [step["step"] for step in runs.records(tmp_path, "step") if step["loss"] is None] == [2]
    first, second = (epoch["train"]["srcc"] for epoch in runs.records(tmp_path, "epoch"))
    assert first is not None and second is not None  # the weights are those of before the spoiled step
    assert (tmp_path / "report.png").stat().st_size > 10_000
