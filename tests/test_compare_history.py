"""One command trains with and without the old bugs, and compares."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import warm

from dist_train.__main__ import main
from dist_train.checkpoint import load_checkpoint
from dist_train.compare_history import addresses, compare_history, variants
from dist_train.config import Config, Data, History, load_config, save_config
from dist_train.errors import ConfigError


def test_the_variants_are_none_each_alone_and_all() -> None:
    assert list(variants()) == ["fixed", "exhausted_hyper_group", "constant_backbone_rate", "rebuilt_adam", "original"]
    switched = [sum(on for _, on in history) for history in variants().values()]
    assert switched == [0, 1, 1, 1, 3]


@pytest.mark.timeout(600)
def test_every_variant_is_trained_once_on_the_same_data_and_compared_with_the_fixed_one(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = [f"data.shards={shards}", f"run.folder={tmp_path}/[runs]", "train.epochs=3", "train.global_batch=40", "optim.schedule=step"]
    command = ["compare-history", str(runs.TINY), *settings, "data.workers=0", "--seeds", "4"]
    started = first_cold_the_others_warm(monkeypatch)
    assert main(command) == 0
    told = capfd.readouterr()
    assert len(started) == len(variants())
    for name in variants():
        folder = tmp_path / "[runs]" / f"{name}-seed-4"
        assert runs.status(folder)["status"] == "finished"
        assert re.search(rf"^{name} +1 +-?0\.\d{{4}}", told.out, re.MULTILINE), told.out
    rates = [[step["lr_backbone"] for step in runs.records(tmp_path / "[runs]" / f"{name}-seed-4", "step")] for name in variants()]
    assert rates[0] == rates[1] == rates[3]
    still, moving = (runs.weights(tmp_path / "[runs]" / f"{name}-seed-4", 3) for name in ("exhausted_hyper_group", "fixed"))
    before = runs.weights(tmp_path / "[runs]" / "exhausted_hyper_group-seed-4", 2)
    hyper = [name for name in moving if name.startswith("hyper.")]
    assert all(before[name].equal(still[name]) for name in hyper)
    for name, steps in {"fixed": 3, "rebuilt_adam": 0, "original": 0}.items():  # the moments after an epoch, of one step each
        moments = load_checkpoint(tmp_path / "[runs]" / f"{name}-seed-4" / "checkpoints" / "step-00000003").optimizer
        counts = {int(value) for key, value in moments.items() if key.endswith(".step")}
        assert counts == ({steps} if steps else set()), name
    for name in variants():  # of a seed that is not asked for, and that did not even finish
        shutil.copytree(tmp_path / "[runs]" / f"{name}-seed-4", tmp_path / "[runs]" / f"{name}-seed-5")
        (tmp_path / "[runs]" / f"{name}-seed-5" / "scores-test.csv").unlink()
    assert main(command) == 0
    again = capfd.readouterr().out
    assert len(started) == len(variants()) and "==" not in again  # nothing is trained twice
    assert "SRCC" in again and again in told.out
    assert main([word.replace("train.epochs=3", "train.epochs=2") for word in command]) == 1
    assert "train.epochs was 3, is 2" in capfd.readouterr().err  # what is there is of another question


def first_cold_the_others_warm(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Lets compare-history start its first training as it does, and those with the same words, but for the name, in warm processes.

    Returns what it starts, which grows.
    """
    cold, started = subprocess.run, list[list[str]]()

    def start(words: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        started.append(words)
        assert [word.replace(Path(words[4]).name, "") for word in words] == [
            word.replace(Path(started[0][4]).name, "") for word in started[0]
        ]
        if len(started) == 1:
            return cold(words, check=check, timeout=runs.LIMIT)
        assert words[:3] == [sys.executable, "-m", "dist_train"]
        return warm.run(*words[3:], limit=runs.LIMIT)

    monkeypatch.setattr("dist_train.compare_history.subprocess.run", start)
    return started


def test_a_seed_that_is_named_twice_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[Path]] = []
    monkeypatch.setattr("dist_train.compare_history._train", lambda *_: None)
    monkeypatch.setattr("dist_train.compare_history.side_of", lambda _, folders: asked.append(folders))
    monkeypatch.setattr("dist_train.compare_history.compare_sides", lambda _: "")
    compare_history(Config.model_validate({"run": {"folder": tmp_path}}), [4, 5, 4], 1)
    assert asked == [[tmp_path / f"{name}-seed-{seed}" for seed in (4, 5)] for name in variants()]


def test_a_config_that_switches_a_bug_on_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"leave history\.\* out"):
        compare_history(Config(history=History(rebuilt_adam=True)), [0], 1)


@pytest.mark.parametrize(
    "data",
    [
        {"shards": "https://me:secret@server/koniq #1"},
        {"sets": {"one": {"shards": "s3://bucket/one?signature=secret", "weight": 2.0}, "two": {"shards": "data/set #2"}}},
    ],
    ids=["one set", "several sets"],
)
def test_each_run_reads_from_the_address_with_the_password_that_its_file_leaves_out(tmp_path: Path, data: dict[str, Any]) -> None:
    given = Data.model_validate(data)
    save_config(Config(data=given), tmp_path / "config.yaml")
    assert "secret" not in (tmp_path / "config.yaml").read_text()
    assert load_config(tmp_path / "config.yaml", addresses(given)).data == given


@pytest.mark.parametrize("data", [{"shards": "data/set #1"}, {"shards": "2024"}, {"sets": {"one": {"shards": "data/set #1"}}}, {}], ids=str)
def test_where_nothing_is_left_out_of_the_file_nothing_is_told_on_the_command_line(tmp_path: Path, data: dict[str, Any]) -> None:
    given = Data.model_validate(data)
    save_config(Config(data=given), tmp_path / "config.yaml")
    assert addresses(given) == []
    assert load_config(tmp_path / "config.yaml").data == given
