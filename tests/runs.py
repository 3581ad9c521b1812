"""Real runs for the tests: the command as a user types it, in processes of their own, with a hard time limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import warm
from safetensors.torch import load_file
from torch import Tensor

TINY = Path(__file__).parent / "tiny.yaml"
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")  # and the number of processes
LIMIT = 150  # seconds; a run here takes 5 to 20, more on a busy machine
_started: list[subprocess.Popen[str]] = []


def words(
    world: int,
    folder: Path,
    shards: Path,
    *settings: str,
    config: Path = TINY,
    program: Sequence[str] = ("-m", "dist_train"),
    command: str = "train",
    launcher: Sequence[str] = LAUNCHER,
) -> list[str]:
    """What a user types to train, or for another command on a config, on `world` processes."""
    started_by = [*launcher, str(world)] if world > 1 or launcher != LAUNCHER else [sys.executable]
    return [*started_by, *program, command, str(config), f"run.folder={folder}", f"data.shards={shards}", *settings]


def start(world: int, folder: Path, shards: Path, *settings: str, **chosen: Any) -> subprocess.Popen[str]:
    """Starts a training, or what `words` are told else, on `world` processes, its output going to one pipe."""
    typed = words(world, folder, shards, *settings, **chosen)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    _started.append(subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment))
    return _started[-1]


def end_leftovers() -> None:
    """Ends what a failed test has left running."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            kill_tree(process)


def finish(process: subprocess.Popen[str] | warm.Running, limit: float = LIMIT) -> str:
    """Waits for a run and returns what it printed; a run that takes too long is ended, with all its children."""
    if isinstance(process, warm.Running):
        return "".join(process.communicate(limit))
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        raise
    return output


def train(world: int, folder: Path, shards: Path, *settings: str, config: Path = TINY) -> str:
    """A whole training, which must succeed; returns what it printed. In warm processes: what it does is all that matters."""
    ended = warm.run("train", config, f"run.folder={folder}", f"data.shards={shards}", *settings, world=world, limit=LIMIT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def train_until_killed(world: int, folder: Path, shards: Path, *settings: str, step: int) -> None:
    """A training of which all processes are killed once it has taken so many steps. Warm ones: whoever is killed hears of nothing."""
    with warm.running("train", TINY, f"run.folder={folder}", f"data.shards={shards}", *settings, world=world) as process:
        wait_for_step(process, folder, step)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL to exactly what was started: the launcher, its ranks and their loader workers."""
    warm.kill_family(process.pid)
    process.wait(timeout=20)


def rank_process(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of one rank below a launcher."""
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no process of rank {rank}")


def wait_for_step(process: subprocess.Popen[str] | warm.Running, folder: Path, step: int) -> None:
    """Returns once the run in `folder` has taken so many steps; fails at once when it has ended before."""
    end = time.monotonic() + LIMIT
    while len(records(folder, "step")) < step:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end, f"waited {LIMIT} s for step {step}"
        time.sleep(0.05)


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of one kind that are complete."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for line in lines if line.endswith("}") and (record := json.loads(line))["kind"] == kind]


def status(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return content


def figures(folder: Path) -> dict[str, Any]:
    """What status.json says, but for the times that were measured."""
    return {key: value for key, value in status(folder).items() if key != "saving"}


def weights(folder: Path, step: int) -> dict[str, Tensor]:
    """The weights in the checkpoint after `step`."""
    tensors: dict[str, Tensor] = load_file(folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")
    return tensors


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def assert_equal_up_to_rounding(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Weights after a few float32 steps of Adam, up to the order in which sums were rounded.

    Adam divides a gradient by its own size, so a unit whose ReLU is at the edge, and is on in one run and off in the other,
    moves by whole steps: one in a thousand weights may. A wrong sum moves all of them. test_gradient.py has the proof to 1e-10.
    """
    assert one.keys() == other.keys()
    apart = torch.cat([(one[name].double() - other[name].double()).abs().flatten() for name in one])
    assert float((apart > 2e-5).double().mean()) < 1e-3
    assert float(apart.max()) < 1e-2
