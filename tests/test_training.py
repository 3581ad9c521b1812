"""What a training does where its figures are out of the ordinary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
import warm
from in_process import train_here

from dist_train import training
from dist_train.collection import open_collection
from dist_train.config import Config
from dist_train.errors import ConfigError, TrainingError
from dist_train.evaluation import training_sample
from dist_train.model_folder import open_model
from shards.manifest import Shards


def test_a_rate_that_is_a_trifle_of_its_first_may_move_nothing(shards: Path, tmp_path: Path) -> None:
    train_here(tmp_path, shards, "optim.warmup_steps=1000000000000", "optim.weight_decay=0")  # as the last steps of a long cosine
    first, last = (record for record in runs.records(tmp_path, "step") if record["step"] in (1, 5))
    assert last["update_backbone"] < 1e-12 < last["gradient_backbone"] and first["weights_backbone"] == pytest.approx(
        last["weights_backbone"]
    )
    assert runs.status(tmp_path)["status"] == "finished"


def test_a_first_rate_that_moves_nothing_ends_the_run(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 1: no weight of the group '\w+' changed, though its rate is 1e-\d+"):
        train_here(tmp_path, shards, "optim.lr=1e-40", "optim.lr_ratio=1")


def test_train_is_scored_after_an_epoch_as_an_evaluation_scores_it(shards: Path, tmp_path: Path) -> None:
    words = ("model.dropout=0.5", "run.seed=3")
    train_here(tmp_path / "all", shards, *words, "evaluate.train_images=40")
    warm.run("evaluate", "--checkpoint", tmp_path / "all", "--part", "train", "--out", tmp_path / "out")
    (said,) = runs.records(tmp_path / "all", "epoch")
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())["sets"]["tiny"]
    assert said["train"]["images"] == 40
    for figure in ("srcc", "plcc", "patch_srcc", "spread"):
        assert told[figure] == pytest.approx(said["train"][figure], rel=1e-12)
    train_here(tmp_path / "as val", shards, *words)
    assert [runs.records(tmp_path / "as val", "epoch")[0][part]["images"] for part in ("train", "val")] == [10, 10]
    train_here(tmp_path / "none", shards, *words, "evaluate.train_images=0", "train.epochs=2")
    assert "train" not in runs.records(tmp_path / "none", "epoch")[0]
    assert runs.status(tmp_path / "none")["train_and_val"].startswith("train was not scored (evaluate.train_images=0)")
    losses = [[step["loss"] for step in runs.records(tmp_path / name, "step")] for name in ("all", "as val", "none")]
    assert losses[0] == losses[1] == losses[2][:5]  # looking changes nothing


def test_the_training_images_that_are_scored_are_drawn_by_the_seed_of_the_run_alone(shards: Path) -> None:
    def sample(seed: int, images: int | None = None) -> list[int]:
        config = Config.model_validate({"data": {"shards": shards}, "run": {"seed": seed}, "evaluate": {"train_images": images}})
        (member,) = open_collection(config.data).members
        drawn = training_sample(member, config)
        assert set(drawn) <= set(member.parts["train"]) and list(drawn) == sorted({*drawn})
        return [int(image) for image in drawn]

    assert sample(0) == sample(0) != sample(1) and len(sample(0)) == 10
    assert {*sample(0)} < {*sample(0, 20)} and len(sample(0, 1000)) == 40


def test_a_soft_truth_is_trained_on(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Shards.image_rows
    monkeypatch.setattr(Shards, "image_rows", lambda of: (row | {"std": "15"} for row in rows(of)))
    for truth in ("soft", "binary"):
        train_here(tmp_path / truth, shards, "loss.rank_kind=fidelity", f"loss.fidelity_truth={truth}")
    soft, binary = (runs.records(tmp_path / truth, "step")[0]["ranking"] for truth in ("soft", "binary"))
    assert 0 < soft < binary  # a draw between images that raters do not tell apart is no mistake


def test_an_average_that_never_had_an_srcc_leaves_the_run_its_own_test(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = training._score

    def constant_average(of: training.Training, model: torch.nn.Module, part: str) -> Any:
        scores = score(of, model, part)  # type: ignore[arg-type]
        assert scores is not None
        return {name: replace(one, patches=np.ones_like(one.patches)) for name, one in scores.items()} if model is not of.model else scores

    monkeypatch.setattr(training, "_score", constant_average)
    train_here(tmp_path, shards, "ema.decay=0.9")
    told = runs.status(tmp_path)
    assert told["status"] == "finished" and told["test"]["srcc"] is not None
    assert "average" not in told and not (tmp_path / "best-ema").exists()


def test_a_best_epoch_whose_weights_have_rotted_is_neither_tested_nor_used(shards: Path, tmp_path: Path) -> None:
    words = ("train.epochs=2", "optim.lr=1e-7")  # the second epoch is no better, and the first is not judged again
    train_here(tmp_path, shards, *words)
    assert runs.status(tmp_path)["best_epoch"] == 0
    status, best = runs.status(tmp_path), tmp_path / "best" / "model.safetensors"
    (tmp_path / "status.json").write_text(json.dumps(status | {"status": "unfinished", "reason": "killed before the test"}))
    content = bytearray(best.read_bytes())
    content[-1000] ^= 0x40
    best.write_bytes(content)
    with pytest.raises(TrainingError, match=r"best/model\.safetensors: holds the best epoch no more .*SHA-256 is another"):
        train_here(tmp_path, shards, *words)
    with pytest.raises(ConfigError, match="SHA-256 is another"):
        open_model(tmp_path)
    content[-1000] ^= 0x40
    best.write_bytes(content)
    train_here(tmp_path, shards, *words)
    assert runs.status(tmp_path)["test"] == status["test"]
