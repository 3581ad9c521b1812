"""Real trainings inside the test's own process: seconds cheaper than a launch, and open to what a test wants to watch or break."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
from accelerate.state import AcceleratorState

from dist_train import training
from dist_train.config import Config, load_config
from dist_train.stopping import StopRequest


def config_of(folder: Path, shards: Path, *settings: str) -> Config:
    """A tiny run of one epoch that reads in its own process."""
    fixed = ("data.workers=0", "train.epochs=1", "save.every_minutes=null")
    return load_config(runs.TINY, [f"run.folder={folder}", f"data.shards={shards}", *fixed, *settings])


def train_here(folder: Path, shards: Path, *settings: str) -> None:
    """A whole training, or the rest of one, on one process: this one."""
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the precision of a process for good
    with StopRequest(folder) as request:
        training.train(config_of(folder, shards, *settings), request)


def train_here_until(step: int, folder: Path, shards: Path, *settings: str) -> None:
    """A training that is asked to stop after `step` steps."""

    def heard(request: StopRequest) -> bool:
        if len(runs.records(folder, "step")) == step:
            request.reason = "a test"
        return request.reason is not None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "heard", heard)
        train_here(folder, shards, *settings)
    told = runs.status(folder)
    assert (told["status"], told["steps"]) == ("unfinished", step)
