"""What a config may say, and that a mistake in it is named together with its cure."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dist_train.__main__ import main
from dist_train.config import Config, as_yaml, known_keys, load_config, save_config
from dist_train.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A config file that changes nothing."""
    path = tmp_path / "empty.yaml"
    path.touch()
    return path


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def setting(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def test_an_empty_file_gives_the_defaults(empty: Path) -> None:
    assert load_config(empty) == Config()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert load_config(path).data.shards is not None


def test_the_defaults_are_the_recipe_of_the_paper() -> None:
    config = Config()
    assert (config.optim.lr, config.optim.lr_ratio, config.optim.weight_decay, config.optim.schedule) == (2e-5, 10, 5e-4, "step")
    assert (config.train.epochs, config.train.global_batch, config.data.patches_per_image) == (16, 96, 1)
    assert (config.model.backbone, config.model.dropout, config.loss.rank_weight) == ("resnet50.tv_in1k", 0, 0)
    assert config.stop.select_on == "val"  # this alone is not the paper's


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.epochs=3", 3),
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=1.0e-4", 1e-4),
        ("stop.patience=null", None),
        ("run.processes=", None),
        ("log.tensorboard=true", True),
        ("data.mirror=false", False),
        ("model.pretrained=false", False),
        ("model.pretrained=true", True),
        ("model.pretrained=weights/a=b.pth", "weights/a=b.pth"),
        ("model.pretrained=package:some-name", "package:some-name"),
        ("model.backbone=resnet50.tv_in1k", "resnet50.tv_in1k"),
        ("data.split=round-07", "round-07"),
        ("run.folder=runs/with space", Path("runs/with space")),
        ("run.precision=no", "no"),
        ("run.precision=tf32", "tf32"),
        ("run.precision=bf16", "bf16"),
    ],
)
def test_a_word_on_the_command_line_sets_a_key(empty: Path, word: str, value: object) -> None:
    found = setting(load_config(empty, [word]), word.partition("=")[0])
    assert (found, type(found)) == (value, type(value))


def test_a_word_changes_one_key_of_the_file_and_the_last_word_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epochs: 3, global_batch: 8}\n")
    config = load_config(path, ["train.epochs=4", "train.epochs=5"])
    assert (config.train.epochs, config.train.global_batch) == (5, 8)


def test_precision_no_is_a_word_in_a_file_too(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "run: {precision: no}")).run.precision == "no"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer: {lr: 1}", "unknown key 'optimizer'; did you mean 'optim'?"),
        ("train: {epoch: 1}", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("train: {lr: 1}", "unknown key 'train.lr'; did you mean 'optim.lr'?"),
        ("log: {xyzzy: 1}", "unknown key 'log.xyzzy'"),
    ],
    ids=["section", "key", "key of another section", "nothing like it"],
)
def test_an_unknown_key_is_an_error_that_names_the_one_meant(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    assert str(caught.value).endswith(said)


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "train: {epoch: 1, global_batch: 0}\nlog: {every_step: 1}"), ["optim.lr=fast"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for key in ("train.epoch", "train.global_batch", "log.every_step", "optim.lr"):
        assert sum(f"{key}'" in line or f"{key}=" in line for line in lines) == 1


@pytest.mark.parametrize(
    "word",
    [
        "train.epochs=three",
        "train.epochs=0",
        "train.epochs=1.5",
        "train.epochs=null",
        "train.global_batch=-8",
        "train.micro_batch=0",
        "data.workers=-1",
        "data.patches_per_image=0",
        "data.split=[a, b]",
        "data.mirror=maybe",
        "model.dropout=1.0",
        "model.stochastic_depth=-0.1",
        "model.batch_norm=synced",
        "model.stage_attention=true",
        "model.output=logits",
        "model.pretrained=[1]",
        "optim.lr=0",
        "optim.lr=.nan",
        "optim.lr=.inf",
        "optim.schedule=linear",
        "optim.clip_norm=0",
        "loss.rank_level=batch",
        "loss.rank_weight=-1",
        "loss.rank_margin=.nan",
        "stop.select_on=train",
        "stop.patience=0",
        "save.keep=0",
        "run.precision=fp8",
        "run.device=gpu",
        "run.seed=-1",
        "run.seed=18446744073709551616",  # torch's seeds are 64 bits wide
    ],
)
def test_an_impossible_value_is_an_error_that_names_its_key(empty: Path, word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word.partition("=")[0] + "=")):
        load_config(empty, [word])


def test_a_wrong_choice_is_answered_with_the_right_ones(empty: Path) -> None:
    with pytest.raises(ConfigError, match=r"'step', 'cosine' or 'constant'"):
        load_config(empty, ["optim.schedule=linear"])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.epochs", "section.key=value"),
        ("epochs=3", "did you mean 'train.epochs'"),
        ("--lr=3", "section.key=value"),
        ("train.epochs: 3", "did you mean 'train.epochs'"),
        ("data.split=[1", "not YAML"),
        ("train.epochs.more=3", "unknown key 'train.epochs.more'"),
    ],
)
def test_a_malformed_word_is_shown_how_to_be_written(empty: Path, word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(empty, [word])
    assert said in str(caught.value)
    assert word.partition("=")[0] in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b", "only words", "3", "train: [epochs, 3]", "train: 3", "1: {epochs: 3}", "a: [", "\x00"])
def test_a_file_that_is_no_config_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_config(path)


def test_a_file_in_another_encoding_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("run: {folder: größe}".encode("latin-1"))
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_config(path)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such config file"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_folder_given_as_the_config_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        load_config(tmp_path)


def test_a_section_whose_keys_are_all_commented_out_is_the_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "train:\n  # epochs: 3\n")) == Config()


def test_a_section_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train"):
        load_config(write(tmp_path, "train: {epochs: 3}\ntrain: {global_batch: 8}\n"))  # PyYAML would keep the second alone


def test_a_tilde_is_the_home_folder(empty: Path) -> None:
    config = load_config(empty, ["run.folder=~/run", "data.shards=~/shards"])
    assert (config.run.folder, config.data.shards) == (Path.home() / "run", str(Path.home() / "shards"))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_resolved_config_reads_back_to_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["stop.patience=null", "optim.lr=1e-7", "run.precision=no", "data.split='0012'"])
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml") == config


def test_a_resolved_config_shows_every_key(empty: Path) -> None:
    text = as_yaml(load_config(empty))
    for key in known_keys():
        section, name = key.split(".")
        assert re.search(rf"^{section}:\n(  .*\n)*?  {name}: ", text, re.MULTILINE), key


def test_every_key_is_explained() -> None:
    for key in known_keys():
        section, name = key.split(".")
        explanation = type(getattr(Config(), section)).model_fields[name].description
        assert explanation and len(explanation) > 20, key


def test_a_config_cannot_be_changed_behind_a_run() -> None:
    with pytest.raises(ValidationError):
        Config().train.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Config().train = Config().train  # type: ignore[misc]


@pytest.mark.parametrize("command", ["train", "plan", "folder", "fetch", "report"])
def test_help_speaks_of_keys_that_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    for help_text in (capsys.readouterr().out, whole_help(capsys)):
        assert not set(re.findall(rf"\b(?:{'|'.join(Config.model_fields)})\.\w+", help_text)) - {*known_keys()}


def whole_help(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(["--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_reader_that_has_gone_gets_no_complaint(
    empty: Path, unbuffered: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, written = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(io.FileIO(written, "w"), write_through=unbuffered) as pipe:  # as of `plan ... | head`, once head has ended
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(["folder", str(empty), "run.folder=somewhere"]) == 1
    assert capfd.readouterr().err == ""


def test_every_setting_that_a_text_of_ours_shows_exists() -> None:
    shown = re.compile(rf"(?<![\w.])((?:{'|'.join(Config.model_fields)})\.\w+)=(?!=)")
    patterns = ("*.md", "docs/*.md", "Makefile", "dist_train/*.py", "slurm/*.sh", "launch/*.yaml")
    texts = [path for pattern in patterns for path in ROOT.glob(pattern)]
    for path in texts:
        unknown = set(shown.findall(path.read_text())) - {*known_keys()}
        assert not unknown, (path, unknown)


@pytest.mark.parametrize(("word", "meant"), [("optim.learning_rate=1", "optim.lr"), ("train.batch_size=8", "train.global_batch")])
def test_the_words_of_other_trainers_are_answered_with_ours(tmp_path: Path, word: str, meant: str) -> None:
    (tmp_path / "c.yaml").write_text("run: {seed: 1}")
    with pytest.raises(ConfigError, match=rf"^command line: unknown key .*; did you mean '{meant}'"):
        load_config(tmp_path / "c.yaml", [word])


@pytest.mark.parametrize(
    "words",
    [
        ["{}", "run.folder=a", "train.epochs=3", "--seeds", "1", "--processes", "2"],
        ["--processes", "2", "{}", "run.folder=a", "train.epochs=3"],
        ["{}", "run.folder=a", "--processes", "2", "train.epochs=3"],
        ["{}", "--processes", "2", "run.folder=a", "train.epochs=3"],
    ],
    ids=["before", "after all", "on both sides", "after one"],
)
def test_settings_are_taken_on_either_side_of_an_option(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Config] = []
    monkeypatch.setattr("dist_train.compare_history.compare_history", lambda config, *_: taken.append(config) or "compared")
    (tmp_path / "run.yaml").write_text("run: {seed: 7}\n")
    assert main(["compare-history", *(word.format(tmp_path / "run.yaml") for word in words)]) == 0
    assert (taken[0].run.folder, taken[0].train.epochs, taken[0].run.seed) == (Path("a"), 3, 7)


@pytest.mark.parametrize("words", [["folder", "run.yaml", "--fast", "a=b"], ["folder", "run.yaml", "--fast=yes"], ["report", "run", "a=b"]])
def test_what_is_no_setting_is_still_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert "unrecognized arguments: " + " ".join(words[2:]) in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["train", "plan", "folder", "nodes --at-most 2 --processes-per-node 1", "fetch", "doctor", "compare-history"]
)
def test_a_wrong_config_is_told_before_torch_is_imported(command: str, tmp_path: Path) -> None:
    name, *options = command.split()
    words = [name, *options, str(tmp_path / "none.yaml")]
    look = f"import sys; from dist_train.__main__ import main; print(main({words}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 False\n" and "there is no such config file" in done.stderr
