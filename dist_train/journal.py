"""What a run says while it runs: aligned lines for people, metrics.jsonl for machines, TensorBoard where asked.

metrics.jsonl has a line per step ({"kind": "step", ...}), per epoch ({"kind": "epoch", ...}) and per checkpoint ({"kind": "save",
...}). The lines are on the disk before the checkpoint that follows them, and a resumed run first drops what was written after its
checkpoint, so the steps in the file are 1, 2, 3 ... without gaps or repeats. Where they are not, the file was damaged: that is told.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_train.errors import ConfigError
from dist_train.whole_files import finite_or_none, write_text
from shards.whole_files import sync

KINDS = {"step": ("step",), "epoch": ("step", "epoch"), "save": ("step",)}  # of lines, and the numbers that tell one from the others
WARM_UP_STEPS = 3  # the first steps of a session are slow and say nothing about the rest


class Journal:
    """Written by rank 0 only; on the other ranks every method does nothing.

    `still_ours` raises when the folder belongs to another job by now: then nothing more is written.
    """

    def __init__(
        self,
        folder: Path,
        writes: bool,
        every_steps: int,
        tensorboard: bool,
        resumed_step: int,
        epochs_judged: int,
        still_ours: Callable[[], None] = lambda: None,
    ) -> None:
        self._writes = writes
        self._still_ours = still_ours
        self._every = every_steps
        self._board: Any = None
        self._steps = 0
        self._clock = self._line_clock = time.perf_counter()
        self._line_patches = 0
        self._line_wait = 0.0
        self._columns_said = False
        if not writes:
            return
        path = folder / "metrics.jsonl"
        kept = _drop_lines_after(path, resumed_step, epochs_judged)
        if missing := _missing(kept, resumed_step, epochs_judged):
            some = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more lines" if len(missing) > 5 else "")
            self.say(f"WARNING: {path} has lost {some}; figures and pictures of the run lack them, its weights do not")
        self._file = path.open("a", encoding="utf-8")
        sync(folder)  # its name; its lines are synced with each checkpoint
        if tensorboard:
            self._board = _summary_writer(folder / "tensorboard", resumed_step)

    def say(self, text: str) -> None:
        """A line for people."""
        if self._writes:
            print(text, flush=True)

    def step(self, record: Mapping[str, Any], patches: int, wait: float, steps_left: int) -> None:
        """One optimiser step: `record` has step, epoch, loss, regression, ranking, consistency, lr_hyper, lr_backbone, grad_norm.

        `patches` went through all ranks in it, `wait` is the seconds this rank waited for data.
        """
        if not self._writes:
            return
        self._write({"kind": "step", **record, "wait": round(wait, 4)})
        self._steps += 1
        self._line_patches += patches
        self._line_wait += wait
        if self._steps == WARM_UP_STEPS:
            self._clock = time.perf_counter()
        if record["step"] % self._every == 0 or steps_left == 0:
            self._say_step(record, steps_left)

    def epoch(self, epoch: int, step: int, panels: Mapping[str, Mapping[str, Any]], chooser: str, verdict: str) -> None:
        """One epoch: the panels of train, val (and test, where that chose) and rank 0's verdict."""
        self._write({"kind": "epoch", "epoch": epoch, "step": step, **panels, "verdict": verdict})
        self.say(f"epoch {epoch}: {_shown(panels)} | {verdict}")
        for name in next(iter(panels.values())).get("sets", {}):
            self.say(f"   {name}: {_shown({part: of['sets'][name] for part, of in panels.items() if name in of.get('sets', {})})}")
        if math.isnan(panels[chooser]["srcc"]):
            why = "all scores or all opinions of a set equal, or a score not finite"
            self.say(f"WARNING: there is no {chooser} SRCC ({why}): never the best epoch")
        self._restart_line_clock()

    def save(self, step: int, seconds: float, size: int, period: float) -> None:
        """A checkpoint of `size` bytes: what it took, and the seconds since the one before (or the first step) that this is part of."""
        self._write({"kind": "save", "step": step, "save_seconds": round(seconds, 3), "save_bytes": size, "save_period": round(period, 3)})
        speed = f"{size / 1e6:.0f} MB in {seconds:.1f} s, {size / 1e6 / max(seconds, 1e-9):.0f} MB/s"
        self.say(f"checkpoint after step {step}: {speed}, {seconds / max(period, 1e-9):.1%} of the time since the one before")
        self._line_clock += seconds

    def _restart_line_clock(self) -> None:
        """What happened since the last line, such as an evaluation, does not count as training time."""
        self._line_clock, self._line_patches, self._line_wait = time.perf_counter(), 0, 0.0

    def sync(self) -> None:
        """Waits until all lines are on the disk. To be called before each save: a machine that goes down may keep the checkpoint alone."""
        if self._writes:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._writes:
            self._file.close()
            if self._board is not None:
                self._board.close()

    def _say_step(self, record: Mapping[str, Any], steps_left: int) -> None:
        now = time.perf_counter()
        seconds = max(now - self._line_clock, 1e-9)
        measured = self._steps - WARM_UP_STEPS
        eta = _duration((now - self._clock) / measured * steps_left) if measured > 0 else "-"
        if not self._columns_said:
            self._columns_said = True
            self.say("    step epoch      loss   regress   ranking  lr hyper   lr back    |grad|  patch/s  wait     left")
        rates = f"{record['lr_hyper']:>9.2e} {record['lr_backbone']:>9.2e}"
        losses = f"{record['loss']:>9.4f} {record['regression']:>9.4f} {record['ranking']:>9.4f}"
        speed = f"{self._line_patches / seconds:>8.1f} {self._line_wait / seconds:>5.0%}"
        self.say(f"{record['step']:>8} {record['epoch']:>5} {losses} {rates} {record['grad_norm']:>9.2e} {speed} {eta:>8}")
        self._restart_line_clock()

    def _write(self, record: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        self._still_ours()
        print(json.dumps(finite_or_none(record)), file=self._file, flush=True)
        if self._board is not None:
            for name, value in _flat(record):
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, record["step"])


def _shown(panels: Mapping[str, Mapping[str, Any]]) -> str:
    """The panels of some parts in one line."""
    return " | ".join(
        f"{part} SRCC {of['srcc']:.4f} PLCC {of['plcc']:.4f} patch SRCC {of['patch_srcc']:.4f}"
        + (f" spread {of['spread']:.2f}" if "spread" in of else "")
        for part, of in panels.items()
    )


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl. A last line that was cut off in writing is left out; so is one that was damaged later, aloud."""
    records = []
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record["kind"] not in KINDS or not all(isinstance(record[key], int) for key in KINDS[record["kind"]]):
                raise ValueError
            records.append(record)
        except (ValueError, LookupError, TypeError):
            if number < len(lines):
                print(f"WARNING: {path}: line {number} is damaged, and is left out", file=sys.stderr, flush=True)
    return records


def cost_of_saving(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the checkpoints of a run took: how many, bytes and seconds in all, and their share of the time; None without any."""
    saves = [record for record in records if record["kind"] == "save"]
    if not saves:
        return None
    seconds, size, period = (sum(save[key] for save in saves) for key in ("save_seconds", "save_bytes", "save_period"))
    return {"checkpoints": len(saves), "bytes": size, "seconds": round(seconds, 3), "share": seconds / max(period, 1e-9)}


def _drop_lines_after(path: Path, step: int, epochs_judged: int) -> list[dict[str, Any]]:
    """Returns what is kept. A checkpoint may be from before the verdict on an epoch that it ends: that is judged, and told, again."""
    kept = [
        record for record in read_records(path) if record["step"] <= step and (record["kind"] != "epoch" or record["epoch"] < epochs_judged)
    ]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def _missing(records: Sequence[Mapping[str, Any]], step: int, epochs_judged: int) -> list[str]:
    """What a run has come through, and nothing tells of."""
    told = {(record["kind"], record[KINDS[record["kind"]][-1]]) for record in records}
    wanted = [("step", number) for number in range(1, step + 1)] + [("epoch", number) for number in range(epochs_judged)]
    return [f"{kind} {number}" for kind, number in wanted if (kind, number) not in told]


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in record.items():
        pairs += _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _summary_writer(folder: Path, resumed_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "log.tensorboard=true needs the package tensorboard: pip install 'dist-train[tensorboard]', or set it to false"
        ) from None
    return SummaryWriter(str(folder), purge_step=resumed_step + 1)
