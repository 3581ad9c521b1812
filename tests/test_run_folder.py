"""A run folder belongs to one run: it may go on, but never become another."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_train.config import Config, load_config
from dist_train.errors import ConfigError, LostProcessError, TrainingError
from dist_train.plan import Plan, make_plan
from dist_train.run_folder import enter_run_folder, record_failure
from dist_train.status import read_status, write_status
from shards.manifest import ShardError


def plan_of(shards: Path, folder: Path, **settings: Any) -> Plan:
    tree: dict[str, dict[str, Any]] = {"run": {"folder": folder}, "data": {"shards": shards}, "train": {"global_batch": 8}}
    for key, value in settings.items():
        section, name = key.split("__")
        tree.setdefault(section, {})[name] = value
    return make_plan(Config.model_validate(tree), 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one"


def test_a_new_folder_is_made_with_the_config_and_the_status(shards: Path, folder: Path) -> None:
    plan = plan_of(shards, folder, optim__lr=1e-3)
    only = plan.collection.members[0].shards
    assert enter_run_folder(plan) is True
    assert load_config(folder / "config.yaml") == plan.config
    status = read_status(folder)
    assert status is not None
    assert status["status"] == "unfinished"
    assert (status["data_fingerprint"], status["split"], status["label"]) == (only.fingerprint, "official", str(only.label))


def test_an_unfinished_run_goes_on_and_keeps_what_is_known(shards: Path, folder: Path) -> None:
    enter_run_folder(plan_of(shards, folder))
    write_status(folder, {**(read_status(folder) or {}), "status": "unfinished", "reason": "asked to stop by SIGTERM", "steps": 12})
    assert enter_run_folder(plan_of(shards, folder)) is True
    status = read_status(folder)
    assert status is not None
    assert (status["status"], status["reason"], status["steps"]) == ("unfinished", "training", 12)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"status": 1, "reason": "x"}'])
def test_a_damaged_status_is_named_with_what_to_do(shards: Path, folder: Path, content: str) -> None:
    plan = plan_of(shards, folder)
    enter_run_folder(plan)
    (folder / "status.json").write_text(content)
    with pytest.raises(ConfigError, match=r"status\.json: was damaged .*; delete it, and the run goes on from its checkpoints"):
        enter_run_folder(plan)
    record_failure(folder, RuntimeError("the disk was full"))
    assert (read_status(folder) or {})["status"] == "failed"
    (folder / "status.json").unlink()
    assert enter_run_folder(plan) is True


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "zeros": lambda whole: b"\0" * len(whole),
    "no text": lambda _: b"\xff\xfe",
    "no YAML": lambda _: b"data: {",
    "a list": lambda _: b"[]",
    "a number": lambda _: b"7",
    "one section": lambda _: b"run: {folder: a}\n",
    "half": lambda whole: whole[: len(whole) // 2],
    "a line less": lambda whole: whole.replace(b"  seed: 0\n", b""),
    "a bit": lambda whole: whole.replace(b"seed: 0", b"seed: 1"),
    "a bit of the digest": lambda whole: whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_settings_are_not_taken_for_others(shards: Path, folder: Path, damage: str) -> None:
    plan = plan_of(shards, folder)
    enter_run_folder(plan)
    settings, copy = folder / "config.yaml", folder / "best" / "config.yaml"
    whole = settings.read_bytes()
    copy.parent.mkdir()
    for content in (DAMAGE[damage](whole), whole):  # of the copy
        copy.write_bytes(content)
        settings.write_bytes(DAMAGE[damage](whole))
        assert settings.read_bytes() != whole
        mend = f"copy {copy} over it" if content == whole else "write the settings that the run began with into it"
        with pytest.raises(ConfigError, match=rf"config\.yaml: was damaged; {mend}, and the run goes on"):
            enter_run_folder(plan)
    settings.write_bytes(copy.read_bytes())
    assert enter_run_folder(plan) is True


def test_settings_that_a_person_or_an_earlier_version_wrote_are_taken(shards: Path, folder: Path) -> None:
    enter_run_folder(plan_of(shards, folder))
    settings = folder / "config.yaml"
    settings.write_text(settings.read_text().partition("\n")[2])
    assert enter_run_folder(plan_of(shards, folder)) is True


def test_a_failed_run_goes_on(shards: Path, folder: Path) -> None:
    enter_run_folder(plan_of(shards, folder))
    record_failure(folder, RuntimeError("the disk was full"))
    assert enter_run_folder(plan_of(shards, folder)) is True


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optim__lr", 1e-3, "optim.lr was 2e-05, is 0.001"),
        ("train__epochs", 3, "train.epochs was 16, is 3"),
        ("run__seed", 7, "run.seed was 0, is 7"),
        ("model__pretrained", False, "model.pretrained was True, is False"),
        ("stop__patience", None, "stop.patience was 5, is None"),
        ("run__precision", "bf16", "run.precision was no, is bf16"),
    ],
)
def test_another_setting_is_refused_with_its_key_and_both_values(shards: Path, folder: Path, key: str, value: object, said: str) -> None:
    enter_run_folder(plan_of(shards, folder))
    before = (folder / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"choose another run\.folder") as caught:
        enter_run_folder(plan_of(shards, folder, **{key: value}))
    assert said in str(caught.value)
    assert (folder / "config.yaml").read_text() == before


def test_every_other_setting_is_named(shards: Path, folder: Path) -> None:
    enter_run_folder(plan_of(shards, folder))
    with pytest.raises(ConfigError, match=r"optim\.lr was 2e-05, is 0\.5; run\.seed was 0, is 1"):
        enter_run_folder(plan_of(shards, folder, run__seed=1, optim__lr=0.5))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("run__device", "cpu"), ("run__processes", 1), ("data__workers", 0), ("train__micro_batch", 4)],
        *[("save__every_steps", 7), ("save__keep", 9), ("log__every_steps", 3), ("log__tensorboard", True)],
    ],
)
def test_a_setting_that_does_not_change_the_result_may_change(shards: Path, folder: Path, key: str, value: object) -> None:
    enter_run_folder(plan_of(shards, folder))
    plan = plan_of(shards, folder, **{key: value})
    assert enter_run_folder(plan) is True
    assert load_config(folder / "config.yaml") == plan.config


def test_an_average_may_end_with_a_session_but_not_begin_or_change(shards: Path, folder: Path) -> None:
    enter_run_folder(plan_of(shards, folder, ema__decay=0.9))
    with pytest.raises(ConfigError, match=r"ema\.decay was 0\.9, is 0\.99"):
        enter_run_folder(plan_of(shards, folder, ema__decay=0.99))
    assert enter_run_folder(plan_of(shards, folder)) is True
    with pytest.raises(ConfigError, match=r"ema\.decay was None, is 0\.9"):
        enter_run_folder(plan_of(shards, folder, ema__decay=0.9))


def test_a_run_and_its_data_may_move(shards: Path, folder: Path, tmp_path: Path) -> None:
    enter_run_folder(plan_of(shards, folder))
    moved, linked = folder.rename(tmp_path / "elsewhere"), tmp_path / "data"
    linked.symlink_to(shards)
    assert enter_run_folder(plan_of(linked, moved)) is True


def test_other_data_are_refused_with_both_fingerprints(shards: Path, folder: Path) -> None:
    plan = plan_of(shards, folder)
    enter_run_folder(plan)
    write_status(folder, {**(read_status(folder) or {}), "data_fingerprint": "0123456789abcdef"})
    with pytest.raises(ConfigError, match=rf"other data: .*{plan.collection.members[0].shards.fingerprint}.*0123456789abcdef"):
        enter_run_folder(plan)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4711"),
            "unfinished",
            "lost another process: ",
        ),
        (
            RuntimeError("NCCL error: ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"),
            "unfinished",
            "lost",
        ),
        (
            RuntimeError("[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find ib9"),
            "failed",
            "RuntimeError: [enforce fail",
        ),
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 60000ms for recv"),
            "unfinished",
            "lost",
        ),
        (LostProcessError("rank 1 is silent"), "unfinished", "LostProcessError: rank 1 is silent"),
        (TrainingError("loader worker 530 has ended (Segmentation fault)"), "failed", "TrainingError: loader worker"),
        (RuntimeError("NCCL error: unhandled cuda error"), "failed", "RuntimeError: NCCL"),
        (RuntimeError("no such codec: igloo-jpeg-3"), "failed", "RuntimeError: no such codec"),
        (ShardError("https://data/shard-000001.tar: Connection reset by peer"), "failed", "ShardError: https"),
    ],
)
def test_only_a_run_that_lost_another_process_is_unfinished_after_an_error(
    folder: Path, error: Exception, status: str, reason: str
) -> None:
    folder.mkdir(parents=True)
    record_failure(folder, error)
    found = read_status(folder)
    assert found is not None and found["status"] == status and found["reason"].startswith(reason)


def test_what_a_job_that_was_killed_at_its_beginning_leaves_is_no_stranger(shards: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("stop", "lock", ".lock-after-0123456789abcdef", ".config.yaml.x1.part", "collectives-1"):
        (folder / name).touch()
    assert enter_run_folder(plan_of(shards, folder)) is True


@pytest.mark.parametrize("stranger", ["holiday.jpg", "epoch_3.pth", ".bashrc"])
def test_a_folder_with_somebody_elses_files_is_refused_and_left_as_it_is(shards: Path, folder: Path, stranger: str) -> None:
    folder.mkdir(parents=True)
    (folder / stranger).touch()
    with pytest.raises(ConfigError, match=rf"is not empty \({stranger}\) and holds no run"):
        enter_run_folder(plan_of(shards, folder))
    assert [path.name for path in folder.iterdir()] == [stranger]


def test_what_a_killed_run_was_writing_is_swept_away(shards: Path, folder: Path) -> None:
    enter_run_folder(plan_of(shards, folder))
    (folder / "best-ema").mkdir()
    for name in (
        ".status.json.node7-4711.part",
        "best-ema/.tmpJ8bQ2x",
        "best-ema/.model.safetensors.node7-4711.part",
        "best-ema/model.safetensors",
    ):
        (folder / name).touch()
    enter_run_folder(plan_of(shards, folder))
    assert sorted(path.name for path in folder.rglob("*")) == ["best-ema", "config.yaml", "model.safetensors", "status.json"]


def test_what_others_write_there_meanwhile_is_in_nobodys_way(shards: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter_run_folder(plan_of(shards, folder))
    (folder / "best").mkdir()
    of_the_disk = folder / "best" / ".nfs00000000012"  # what a file is called there that was deleted while somebody has it open
    of_the_disk.touch()
    (folder / ".stop.part").write_text("the time limit of job 7")
    found = Path.glob

    def glob(place: Path, pattern: str) -> list[Path]:
        paths = [*found(place, pattern)]
        if (folder / ".stop.part") in paths:
            (folder / ".stop.part").rename(folder / "stop")
        return paths

    monkeypatch.setattr(Path, "glob", glob)
    enter_run_folder(plan_of(shards, folder))
    assert (folder / "stop").read_text() == "the time limit of job 7" and of_the_disk.exists()


@pytest.mark.parametrize("ended", ["finished", "stopped early"])
def test_a_run_that_has_ended_is_left_alone(shards: Path, folder: Path, ended: str, capsys: pytest.CaptureFixture[str]) -> None:
    enter_run_folder(plan_of(shards, folder))
    write_status(folder, {**(read_status(folder) or {}), "status": ended, "reason": "because"})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert enter_run_folder(plan_of(shards, folder, log__every_steps=1)) is False
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert f"this run has {ended} (because)" in capsys.readouterr().out


def test_a_failure_is_recorded_beside_what_was_known(shards: Path, folder: Path) -> None:
    enter_run_folder(plan_of(shards, folder))
    record_failure(folder, ValueError("image 'x' is damaged"))
    status = read_status(folder)
    assert status is not None
    assert (status["status"], status["reason"]) == ("failed", "ValueError: image 'x' is damaged")
    assert status["split"] == "official"


def test_a_folder_without_a_run_has_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None


def test_a_status_is_plain_json_that_begins_with_status_and_reason(tmp_path: Path) -> None:
    write_status(tmp_path, {"steps": 3, "val": {"srcc": math.nan, "plcc": 0.5}, "reason": "training", "status": "unfinished"})
    text = (tmp_path / "status.json").read_text()
    assert list(json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))) == ["status", "reason", "steps", "val"]
    assert json.loads(text)["val"] == {"srcc": None, "plcc": 0.5}


def test_a_split_that_was_changed_since_is_refused(shards: Path, folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(shards, own)
    table = own / "splits" / "mine.csv"
    table.write_text((own / "splits" / "official.csv").read_text())
    enter_run_folder(plan_of(own, folder, data__split="mine"))
    table.write_text(table.read_text().replace(",test", ",train", 1))  # a test image moves into training between two sessions
    with pytest.raises(ConfigError, match="the split 'mine' has the fingerprint"):
        enter_run_folder(plan_of(own, folder, data__split="mine"))
