"""What the journal tells people and what it leaves for machines, across sessions that end in the middle of a line."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from in_process import train_here

from dist_train import journal as journal_module
from dist_train.errors import ConfigError, TrainingError
from dist_train.journal import Journal, cost_of_saving, read_records
from dist_train.whole_files import finite_or_none

PANEL = {"srcc": 0.5, "plcc": 0.25, "krcc": 0.1, "rmse": 3.0, "patch_srcc": 0.4, "patch_plcc": 0.3, "spread": 2.0}


def journal(
    folder: Path, resumed_step: int = 0, judged: int = 0, every: int = 1, writes: bool = True, tensorboard: bool = False
) -> Journal:
    return Journal(folder, writes, every, tensorboard, resumed_step, judged)


def step(number: int, epoch: int = 0, loss: float = 12.5, **others: float) -> dict[str, Any]:
    values = {"loss": loss, "regression": 10.0, "ranking": 2.5, "consistency": 0.5, "lr_hyper": 2e-4, "lr_backbone": 2e-5, "grad_norm": 3.0}
    return {"step": number, "epoch": epoch, **values, **others}


def write_steps(target: Journal, *numbers: int, left: int = 5) -> None:
    for number in numbers:
        target.step(step(number), patches=8, wait=0.01, steps_left=left)


def steps_in(folder: Path) -> list[int]:
    return [record["step"] for record in read_records(folder / "metrics.jsonl") if record["kind"] == "step"]


def test_every_step_and_every_epoch_is_a_line_of_json(tmp_path: Path) -> None:
    target = journal(tmp_path)
    write_steps(target, 1, 2)
    target.epoch(0, 2, {"train": PANEL, "val": PANEL}, "val", "new best")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]  # while it is open, too
    assert [(line["kind"], line["step"]) for line in lines] == [("step", 1), ("step", 2), ("epoch", 2)]
    assert lines[0] == {"kind": "step", **step(1), "wait": 0.01}
    assert lines[2] == {"kind": "epoch", "epoch": 0, "step": 2, "train": PANEL, "val": PANEL, "verdict": "new best"}
    target.close()


def test_a_journal_whose_folder_has_gone_to_another_job_writes_no_line_more(tmp_path: Path) -> None:
    path, ours = tmp_path / "metrics.jsonl", [True]

    def still_ours() -> None:
        if not ours[0]:
            raise TrainingError("has been taken over")

    target = Journal(tmp_path, True, 1, False, 0, 0, still_ours)
    write_steps(target, 1)
    before, ours[0] = path.read_bytes(), False
    for write in (
        lambda: write_steps(target, 2),
        lambda: target.epoch(0, 2, {"train": PANEL, "val": PANEL}, "val", "new best"),
        lambda: target.save(2, 1.0, 1_000, 10.0),
    ):
        with pytest.raises(TrainingError, match="has been taken over"):
            write()
    target.close()
    assert path.read_bytes() == before and steps_in(tmp_path) == [1]


def test_a_resumed_run_goes_on_after_its_checkpoint_without_gap_or_repeat(tmp_path: Path) -> None:
    target = journal(tmp_path)
    write_steps(target, 1, 2, 3, 4, 5)
    target.close()
    target = journal(tmp_path, resumed_step=3)
    write_steps(target, 4, 5, 6)
    target.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_run_that_starts_anew_begins_with_an_empty_file(tmp_path: Path) -> None:
    target = journal(tmp_path)
    write_steps(target, 1, 2)
    target.close()
    journal(tmp_path).close()
    assert steps_in(tmp_path) == []


def test_an_epoch_after_the_checkpoint_is_dropped_with_its_steps(tmp_path: Path) -> None:
    target = journal(tmp_path)
    write_steps(target, 1, 2)
    target.epoch(0, 2, {"val": PANEL}, "val", "new best")
    write_steps(target, 3, 4)
    target.epoch(1, 4, {"val": PANEL}, "val", "no better")
    target.close()
    journal(tmp_path, resumed_step=3, judged=1).close()
    assert [(record["kind"], record["step"]) for record in read_records(tmp_path / "metrics.jsonl")] == [
        *[("step", 1), ("step", 2), ("epoch", 2), ("step", 3)]
    ]


def test_an_epoch_that_is_judged_again_stands_there_once(tmp_path: Path) -> None:
    target = journal(tmp_path)
    write_steps(target, 1, 2)  # the last checkpoint is of step 2, from before the verdict
    target.epoch(0, 2, {"val": PANEL}, "val", "new best")
    target.close()
    target = journal(tmp_path, resumed_step=2)
    target.epoch(0, 2, {"val": PANEL}, "val", "new best")
    target.close()
    assert [record["kind"] for record in read_records(tmp_path / "metrics.jsonl")] == ["step", "step", "epoch"]


def test_a_session_that_dies_while_it_rewinds_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = journal(tmp_path)
    write_steps(target, 1, 2, 3)
    target.close()

    def dies(self: Path, text: str, **_: object) -> None:
        with self.open("w") as file:
            file.write(text[:10])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "write_text", dies)
        journal(tmp_path, resumed_step=3).close()
    assert steps_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("cut", [1, 2, 20, 60], ids=lambda cut: f"{cut} characters short")
def test_a_last_line_that_was_cut_off_is_left_out_and_written_again(tmp_path: Path, cut: int) -> None:
    target = journal(tmp_path)
    write_steps(target, 1, 2, 3)
    target.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-cut])
    whole = [1, 2, 3] if cut == 1 else [1, 2]  # only the line break was lost
    assert steps_in(tmp_path) == whole
    target = journal(tmp_path, resumed_step=2)
    write_steps(target, 3)
    target.close()
    assert steps_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    "damage", [b"{", b"\xff", b'{"kind": "step"}', b'{"kind": "stdp", "step": 2}', b"null", b'{"kind": "epoch", "step": 2}']
)
def test_a_damaged_line_is_left_out_aloud_and_costs_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes) -> None:
    target = journal(tmp_path)
    write_steps(target, 1, 2, 3)
    target.close()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damage, lines[2], b""]))
    assert steps_in(tmp_path) == [1, 3]
    assert f"{path}: line 2 is damaged" in capsys.readouterr().err
    target = journal(tmp_path, resumed_step=3)
    write_steps(target, 4)
    target.close()
    assert f"WARNING: {path} has lost step 2; " in capsys.readouterr().out
    assert steps_in(tmp_path) == [1, 3, 4]
    assert capsys.readouterr().err == ""


def test_a_run_that_goes_on_from_after_its_last_lines_says_what_its_journal_has_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = journal(tmp_path)
    write_steps(target, 1, 2, 3)
    target.close()
    journal(tmp_path, resumed_step=3, judged=0).close()
    assert "WARNING" not in capsys.readouterr().out
    journal(tmp_path, resumed_step=9, judged=1).close()
    assert "has lost step 4, step 5, step 6, step 7, step 8 and 2 more lines; figures" in capsys.readouterr().out


def test_every_line_is_on_the_disk_before_the_checkpoint_gets_its_name(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a machine that goes down may keep the checkpoint, and not the lines that led to it."""
    synced, named = [0], []

    def sync(descriptor: int, really: Callable[[int], None] = os.fsync) -> None:
        really(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
            synced.append(len(steps_in(tmp_path)))

    def rename(path: Path, target: Path, really: Callable[[Path, Path], Path] = Path.rename) -> Path:
        if path.name.startswith(".step-"):
            named.append((target.name, synced[-1]))
        return really(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    train_here(tmp_path, shards, "save.every_steps=2")
    last = ("step-00000005", 5)  # before its epoch is judged, and with the last verdict
    assert named == [("step-00000002", 2), ("step-00000004", 4), last, last]


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_what_is_no_number_is_null_in_the_file(tmp_path: Path) -> None:
    target = journal(tmp_path)
    target.step(step(1, loss=math.nan, grad_norm=math.inf), 8, 0.0, 1)
    target.epoch(0, 1, {"val": {**PANEL, "srcc": math.nan}}, "val", "no better")
    target.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    first, second = read_records(tmp_path / "metrics.jsonl")
    assert first["loss"] is None and first["grad_norm"] is None and first["regression"] == 10.0
    assert second["val"]["srcc"] is None and second["val"]["plcc"] == 0.25


def test_only_numbers_that_are_none_become_none() -> None:
    assert finite_or_none({"a": {"b": -math.inf, "c": 0.0}, "d": "nan", "e": None, "f": 3, "g": True}) == {
        "a": {"b": None, "c": 0.0},
        **{"d": "nan", "e": None, "f": 3, "g": True},
    }


class Clock:
    """Stands in for the journal's clock, so that a test takes the time it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("dist_train.journal.time", SimpleNamespace(perf_counter=lambda: self.now))


def test_lines_on_the_console_stand_under_their_titles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    target = journal(tmp_path)
    for number, loss, seconds in ((1, 0.01234, 0.005), (20, 99.9, 1.0), (300_000, 1234.5, 40.0), (300_001, 1234.5, 100.0)):
        clock.now += seconds
        target.step(step(number, epoch=number // 1000, loss=loss, grad_norm=1e-9), 96, seconds / 2, 1000)
    target.close()
    title, *lines = capsys.readouterr().out.splitlines()
    ends = [match.end() for match in re.finditer(r"(lr )?\S+", title)]
    assert len(ends) == 11 and len(lines) == 4
    for line in lines:
        assert [match.end() for match in re.finditer(r"\S+", line)] == ends, f"\n{title}\n{line}"


def test_speed_and_waiting_are_those_since_the_last_line_and_the_rest_is_foretold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    target = journal(tmp_path, every=4)
    for number in range(1, 9):
        clock.now += 10.0 if number <= 3 else 0.5  # the first steps are slow and count for nothing
        target.step(step(number), patches=8, wait=0.1, steps_left=1000 - number)
        if number == 4:
            clock.now += 100.0
            target.epoch(0, 4, {"val": PANEL}, "val", "new best")  # an evaluation is no training time
    target.close()
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[0] in "48"]
    assert lines[0][-3:] == [f"{32 / 30.5:.1f}", "1%", "0:08:18"]  # 996 steps of half a second
    assert lines[1][-3:-1] == ["16.0", "20%"]


def test_the_titles_are_said_once_and_a_line_every_few_steps_and_at_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = journal(tmp_path, every=4)
    for number in range(1, 11):
        target.step(step(number), 8, 0.0, steps_left=10 - number)
    target.close()
    title, *lines = capsys.readouterr().out.splitlines()
    assert "loss" in title
    assert [int(line.split()[0]) for line in lines] == [4, 8, 10]


def test_an_epoch_says_both_levels_of_every_part_and_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = journal(tmp_path)
    target.epoch(3, 40, {"train": PANEL, "val": {**PANEL, "srcc": 0.75}}, "val", "new best")
    target.close()
    said = capsys.readouterr().out
    assert re.search(r"epoch 3: train SRCC 0\.5000 .*patch SRCC 0\.4000 .*\| val SRCC 0\.7500 .*\| new best", said)
    assert "WARNING" not in said


def test_an_epoch_that_cannot_be_judged_is_said_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = journal(tmp_path)
    target.epoch(0, 4, {"train": PANEL, "test": {**PANEL, "srcc": math.nan}}, "test", "no better")
    target.close()
    assert "WARNING: there is no test SRCC" in capsys.readouterr().out


def test_other_ranks_write_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = journal(tmp_path, writes=False, tensorboard=True)
    write_steps(target, 1, 2)
    target.say("anything")
    target.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_tensorboard_gets_every_number_under_its_name(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    target = journal(tmp_path, tensorboard=True)
    write_steps(target, 1, 2)
    target.epoch(0, 2, {"val": PANEL}, "val", "new best")
    target.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 12.5), (2, 12.5)]
    assert [(event.step, event.value) for event in events.Scalars("val/srcc")] == [(2, 0.5)]


def test_tensorboard_that_is_not_installed_is_an_error_that_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'dist-train\[tensorboard\]'"):
        journal(tmp_path, tensorboard=True)


def test_what_a_checkpoint_cost_is_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = journal(tmp_path)
    target.save(500, seconds=2.0, size=330_000_000, period=40.0)
    target.close()
    (record,) = read_records(tmp_path / "metrics.jsonl")
    assert record == {"kind": "save", "step": 500, "save_seconds": 2.0, "save_bytes": 330_000_000, "save_period": 40.0}
    assert "checkpoint after step 500: 330 MB in 2.0 s, 165 MB/s, 5.0% of the time since the one before" in capsys.readouterr().out


def test_the_cost_of_the_checkpoint_that_is_gone_on_from_stays_and_a_later_ones_goes(tmp_path: Path) -> None:
    target = journal(tmp_path)
    for number in (1, 2, 3):
        write_steps(target, number)
        target.save(number, 1.0, 10, 5.0)
    target.close()
    journal(tmp_path, resumed_step=2).close()
    assert [(record["kind"], record["step"]) for record in read_records(tmp_path / "metrics.jsonl")] == [
        *[("step", 1), ("save", 1), ("step", 2), ("save", 2)]
    ]


def test_the_cost_of_saving_is_its_share_of_the_time_of_all_sessions(tmp_path: Path) -> None:
    records = [{"kind": "step", "step": 1}] + [
        {"kind": "save", "step": step, "save_seconds": seconds, "save_bytes": 10, "save_period": period}
        for step, seconds, period in ((1, 1.0, 30.0), (2, 3.0, 10.0))
    ]
    assert cost_of_saving(records) == {"checkpoints": 2, "bytes": 20, "seconds": 4.0, "share": 0.1}
    assert cost_of_saving(records[:1]) is None


def test_the_time_of_a_save_does_not_count_as_time_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 12.0])
    monkeypatch.setattr(journal_module.time, "perf_counter", lambda: next(clock, 12.0))
    target, said = journal(tmp_path), []
    monkeypatch.setattr(target, "say", said.append)
    target.save(1, seconds=10.0, size=1, period=12.0)
    write_steps(target, 1)
    target.close()
    assert " 4.0 " in said[-1]  # 8 patches in 2 seconds
