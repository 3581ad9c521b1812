"""A checkpoint is whole or not there, and the newest whole one is found whatever happened to the others."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train import checkpoint as checkpoint_module
from dist_train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_complete_checkpoint,
    save_checkpoint,
)
from dist_train.errors import ConfigError
from dist_train.retention import Retention
from dist_train.tensor_files import read_about, save_tensors
from dist_train.whole_files import as_json, write_json

FILES = ("model.safetensors", "optimizer.safetensors", "average.safetensors", "progress.json")


def state(step: int) -> Checkpoint:
    """A small checkpoint, in which every number depends on the step."""
    weight = torch.full((3, 2), float(step))
    moments = {"weight.step": torch.tensor(float(step)), "weight.exp_avg": weight / 10, "weight.exp_avg_sq": weight / 100}
    model = {"weight": weight, "steps": torch.tensor(step), "turned": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}
    average = {"weight": torch.full((3, 2), step / 2)}
    progress = {"step": step, "progress": {"step": step, "best": {"val": {"srcc": 0.5}}, "stopped": False}, "label": "quality é"}
    return Checkpoint(model, moments, average, progress)


def save(folder: Path, *steps: int, keep: int = 10) -> list[Path]:
    return [save_checkpoint(folder, state(step), Retention(keep)) for step in steps]


def newest(folder: Path) -> tuple[str | None, list[str]]:
    """The name of the newest complete checkpoint, and what was said on the way to it."""
    said: list[str] = []
    path = newest_complete_checkpoint(folder, said.append)
    return path and path.name, said


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = state(7)
    path = save_checkpoint(tmp_path / "checkpoints", saved, Retention(2))
    found = load_checkpoint(path)
    assert path.name == "step-00000007" and names(path) == sorted(FILES)
    assert found.step == 7
    for name in ("model", "optimizer", "average"):
        torch.testing.assert_close(getattr(found, name), getattr(saved, name), rtol=0, atol=0)
    assert {key: found.progress[key] for key in saved.progress} == saved.progress


def test_without_averaged_weights_there_is_no_file_of_them(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, replace(state(7), average={}), Retention(2))
    assert names(path) == sorted({*FILES} - {"average.safetensors"})
    assert newest(tmp_path) == (path.name, []) and load_checkpoint(path).average == {}


def test_what_another_version_has_saved_is_refused_and_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr(checkpoint_module, "FORMAT", 1)
        (path,) = save(tmp_path, 7)
    with pytest.raises(ConfigError, match=rf"{path.name}: was saved by another version of dist_train \(format 1, here 2\)"):
        load_checkpoint(path)
    assert newest(tmp_path) == (path.name, [])


def test_the_newest_wins(tmp_path: Path) -> None:
    save(tmp_path, 9, 10, 2)
    assert newest(tmp_path) == ("step-00000010", [])


def test_an_old_one_that_cannot_be_removed_is_told_of_and_the_new_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    old = save_checkpoint(tmp_path, state(1), Retention(1))
    (tmp_path / ".step-00000002.part").mkdir()  # of a save that was cut off

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    for step in (2, 3):
        save_checkpoint(tmp_path, state(step), Retention(1))
        assert newest(tmp_path) == (f"step-{step:08d}", [])
        said = capfd.readouterr().err
        assert f"note: {old} could not be removed" in said and f"note: {tmp_path / '.step-00000002.part'} could not" in said


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "zeros"])
def test_a_damaged_file_falls_back_aloud_to_the_checkpoint_before(tmp_path: Path, name: str, damage: str) -> None:
    *_, last = save(tmp_path, 1, 2)
    content = (last / name).read_bytes()
    (last / name).unlink()
    if damage != "missing":
        (last / name).write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "zeros": b"\0" * len(content)}[damage])
    found, said = newest(tmp_path)
    assert found == "step-00000001"
    assert len(said) == 1 and "step-00000002 is damaged" in said[0]


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_damage_and_names_the_file(tmp_path: Path, name: str) -> None:
    *_, last = save(tmp_path, 1, 2)
    content = bytearray((last / name).read_bytes())
    content[len(content) // 2] ^= 1
    (last / name).write_bytes(content)
    found, said = newest(tmp_path)
    assert found == "step-00000001"
    assert name in said[0]


def test_any_flipped_bit_of_the_progress_is_damage(tmp_path: Path) -> None:
    (only,) = save(tmp_path, 1)
    path = only / "progress.json"
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for place, bit in itertools.product(range(len(content)), range(8)):
            os.pwrite(file.fileno(), bytes([content[place] ^ 1 << bit]), place)
            assert newest(tmp_path)[0] is None, (place, bit)
            os.pwrite(file.fileno(), content[place : place + 1], place)
    assert newest(tmp_path) == (only.name, [])


@pytest.mark.parametrize("changes", [{"step": 3}, {"progress": {"step": 1}}, {"step": 1, "progress": {"step": 1}}])
def test_a_progress_of_another_step_than_its_folder_is_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    *_, last = save(tmp_path, 1, 2)
    progress = json.loads((last / "progress.json").read_text()) | changes
    progress["files"]["progress.json"] = ""
    progress["files"]["progress.json"] = hashlib.sha256(as_json(progress).encode()).hexdigest()
    write_json(last / "progress.json", progress)
    found, said = newest(tmp_path)
    assert found == "step-00000001"
    assert "progress.json is of step" in said[0]


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"step": 2, "files": {}}'])
def test_a_progress_file_that_says_something_else_is_damage_too(tmp_path: Path, content: str) -> None:
    *_, last = save(tmp_path, 1, 2)
    (last / "progress.json").write_text(content)
    assert newest(tmp_path)[0] == "step-00000001"


def test_when_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    for path in save(tmp_path, 1, 2):
        (path / "optimizer.safetensors").unlink()
    found, said = newest(tmp_path)
    assert found is None
    assert [line.rpartition("; ")[2] for line in said] == ["going back to step-00000001", "there is none before it, so the run begins anew"]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_checkpoint_that_cannot_be_read_just_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    *_, last = save(tmp_path, 1, 2)

    def refuse(path: Path) -> str:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(checkpoint_module, "file_sha256", refuse)
    with pytest.raises(ConfigError, match=rf"{last.name}/model\.safetensors: cannot be read .* the same command goes on"):
        newest(tmp_path)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_checkpoints_that_cannot_be_listed_just_now_are_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    save(tmp_path, 1, 2)

    def refuse(path: Path) -> list[str]:
        raise OSError(code, os.strerror(code), str(path))

    for listing in ("listdir", "scandir"):
        monkeypatch.setattr(os, listing, refuse)
    with pytest.raises(ConfigError, match=rf"{tmp_path}: cannot be read .* the same command goes on; where it is lost for good, delete"):
        newest(tmp_path)


def test_leftovers_of_an_interrupted_save_are_ignored_and_overwritten(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    leftover = tmp_path / ".step-00000002.part"
    shutil.copytree(path, leftover)
    (leftover / "debris").touch()
    assert newest(tmp_path) == ("step-00000001", [])
    save(tmp_path, 2)
    assert newest(tmp_path) == ("step-00000002", [])
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert names(tmp_path / "step-00000002") == sorted(FILES)


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (2, [4, 5]), (3, [3, 4, 5])])
def test_only_the_newest_few_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_new_checkpoint_is_kept_even_below_a_damaged_newer_one(tmp_path: Path, keep: int) -> None:
    *_, last = save(tmp_path, 8, 10, keep=2)
    (last / "model.safetensors").unlink()  # so the run went on from step 8, and saves at step 9 before it comes to 10 again
    save(tmp_path, 9, keep=keep)
    assert newest(tmp_path)[0] == "step-00000009"


def test_the_best_and_every_so_many_are_kept_besides(tmp_path: Path) -> None:
    for step in range(1, 9):
        save_checkpoint(tmp_path, state(step), Retention(1, best_step=2, every_steps=3))
    assert names(tmp_path) == [f"step-{step:08d}" for step in (2, 3, 6, 8)]


def test_a_save_of_the_same_step_that_is_cut_off_at_any_moment_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 3)
    for moment in range(len(FILES) + 4):  # a rename a file, two of the folders, and one too many
        left = iter(range(moment))

        def cut_off(path: Path, target: Path, left: Iterator[int] = left, rename: Any = os.replace) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", cut_off)
            patch.setattr(Path, "replace", cut_off)
            with contextlib.suppress(KeyboardInterrupt):
                save(tmp_path, 3, keep=1)
        found = newest_complete_checkpoint(tmp_path, pytest.fail)
        assert found is not None and load_checkpoint(found).step == 3
        assert found.name == ("step-00000003" if moment != len(FILES) + 1 else ".step-00000003.replaced")
    assert names(tmp_path) == ["step-00000003"]


@pytest.mark.parametrize("debris", ["an empty folder", "no json", "a file", "a folder of another name", "a save that was cut off"])
def test_what_stands_there_of_a_later_step_and_is_no_checkpoint_is_passed_over(tmp_path: Path, debris: str) -> None:
    (path,) = save(tmp_path, 1)
    later = tmp_path / {"a folder of another name": "step-99-of-somebody", "a save that was cut off": ".step-00000099.part"}.get(
        debris, "step-00000099"
    )
    if debris == "a file":
        later.write_text("")
    elif debris == "an empty folder":
        later.mkdir()
    else:
        shutil.copytree(path, later)
        (later / "progress.json").write_text("{" if debris == "no json" else (path / "progress.json").read_text())
    found, said = newest(tmp_path)
    assert found == path.name
    assert len(said) == (later.name == "step-00000099")
    save(tmp_path, 2, 3, keep=1)
    assert newest(tmp_path)[0] == "step-00000003"


@pytest.mark.parametrize("step", [2, 1], ids=["of a new step", "of the same step"])
@pytest.mark.parametrize("stage", ["tensors", "progress", "rename"])
def test_a_failing_save_leaves_the_old_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    save(tmp_path, 1, keep=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if stage == "tensors":
            patch.setattr(checkpoint_module, "save_tensors", full)
        elif stage == "progress":
            patch.setattr(checkpoint_module, "write_json", full)
        else:
            patch.setattr(Path, "rename", full)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, step, keep=1)
    assert newest(tmp_path) == ("step-00000001", [])
    assert load_checkpoint(tmp_path / "step-00000001").step == 1
    assert stage == "rename" or names(tmp_path) == ["step-00000001"]  # what did not fit takes no room


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 3)
    changed = state(3)
    save_checkpoint(tmp_path, replace(changed, progress=changed.progress | {"label": "other"}), Retention(2))
    assert load_checkpoint(tmp_path / "step-00000003").progress["label"] == "other"
    assert names(tmp_path) == ["step-00000003"]


def test_a_checkpoint_of_pickled_moments_is_passed_over_unopened(tmp_path: Path) -> None:
    _, last = save(tmp_path, 1, 2)
    (last / "optimizer.safetensors").rename(last / "optimizer.pt")
    progress = json.loads((last / "progress.json").read_text())
    progress["files"]["optimizer.pt"] = progress["files"].pop("optimizer.safetensors")
    (last / "progress.json").write_text(json.dumps(progress))
    found, said = newest(tmp_path)
    assert found == "step-00000001"
    assert "step-00000002 is damaged (progress.json does not tell of optimizer.safetensors)" in said[0]


def test_tensors_are_written_with_what_they_are_about(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.ones(2)}, {"epoch": 3})
    assert read_about(path) == {"epoch": 3}
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("writer", ["tensors", "json"])
def test_a_file_that_cannot_be_written_anew_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(path, {"weight": torch.ones(2)}) if writer == "tensors" else write_json(path, {"a": 1})
    assert path.read_text() == "before"
