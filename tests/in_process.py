"""Real trainings inside the test's own process: seconds cheaper than a launch, and open to what a test wants to watch or break."""

from __future__ import annotations

from pathlib import Path

import runs
from accelerate.state import AcceleratorState

from dist_train.config import Config, load_config
from dist_train.training import train


def config_of(folder: Path, shards: Path, *settings: str) -> Config:
    """A tiny run of one epoch that reads in its own process."""
    fixed = ("data.workers=0", "train.epochs=1", "save.every_minutes=null")
    return load_config(runs.TINY, [f"run.folder={folder}", f"data.shards={shards}", *fixed, *settings])


def train_here(folder: Path, shards: Path, *settings: str) -> None:
    """A whole training, or the rest of one, on one process: this one."""
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the precision of a process for good
    train(config_of(folder, shards, *settings))
