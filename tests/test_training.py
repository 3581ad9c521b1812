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
from in_process import train_here

from dist_train import training
from dist_train.errors import ConfigError, TrainingError
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
    train_here(tmp_path, shards, "train.epochs=1")
    status, best = runs.status(tmp_path), tmp_path / "best" / "model.safetensors"
    (tmp_path / "status.json").write_text(json.dumps(status | {"status": "unfinished", "reason": "killed before the test"}))
    content = bytearray(best.read_bytes())
    content[-1000] ^= 0x40
    best.write_bytes(content)
    with pytest.raises(TrainingError, match=r"best/model\.safetensors: holds the best epoch no more .*SHA-256 is another"):
        train_here(tmp_path, shards, "train.epochs=1")
    with pytest.raises(ConfigError, match="SHA-256 is another"):
        open_model(tmp_path)
    content[-1000] ^= 0x40
    best.write_bytes(content)
    train_here(tmp_path, shards, "train.epochs=1")
    assert runs.status(tmp_path)["test"] == status["test"]
