"""What did the three old bugs cost? The same config with each of them, with all, and without, on the same data and seeds.

run.folder/
  fixed-seed-0/                    a run folder per variant and seed
  exhausted_hyper_group-seed-0/
  ...
  original-seed-0/                 all three bugs together, as the authors' code has them

A run that is there already is not trained again, one with other settings is refused, and one that was interrupted goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dist_train.compare import compare_sides, side_of
from dist_train.config import Config, Data, History, save_config
from dist_train.errors import ConfigError, TrainingError
from dist_train.model_folder import SETTINGS
from dist_train.run_folder import refuse_other_settings
from dist_train.status import FINISHED, read_status
from shards.remote import redacted

FIXED, ORIGINAL = "fixed", "original"


def variants() -> dict[str, History]:
    """The settings of history by the name of the variant; the fixed one comes first."""
    flags = list(History.model_fields)
    alone = {flag: History.model_validate({flag: True}) for flag in flags}
    return {FIXED: History(), **alone, ORIGINAL: History.model_validate(dict.fromkeys(flags, True))}


def compare_history(config: Config, seeds: Sequence[int], processes: int) -> str:
    """Trains every variant with every seed, one after the other, and tells how each does against the fixed one, as text.

    Raises TrainingError when a run fails; what is done stays.
    """
    if config.history != History():
        raise ConfigError("compare-history switches each of the old bugs on by itself: leave history.* out of the config")
    folder = config.run.folder
    for name, history in variants().items():
        for seed in seeds:
            run = config.run.model_copy(update={"folder": folder / f"{name}-seed-{seed}", "seed": seed, "processes": processes})
            _train(config.model_copy(update={"run": run, "history": history}), folder / ".configs" / f"{name}-seed-{seed}.yaml", processes)
    return compare_sides([side_of(name, [folder / f"{name}-seed-{seed}" for seed in dict.fromkeys(seeds)]) for name in variants()])


def _train(config: Config, path: Path, processes: int) -> None:
    """One run, in processes of its own, so that each begins as fresh as the others."""
    if (read_status(config.run.folder) or {}).get("status") in FINISHED:
        refuse_other_settings(config.run.folder / SETTINGS, config)
        return
    print(f"== {config.run.folder.name}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_config(config, path)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    ended = subprocess.run([sys.executable, *launcher, "-m", "dist_train", "train", str(path), *addresses(config.data)], check=False)
    status = read_status(config.run.folder) or {}
    if status.get("status") not in FINISHED:
        why = status.get("reason", f"exit status {ended.returncode}")
        raise TrainingError(f"{config.run.folder} did not finish ({why}); mend that, and the same command goes on from there")


def addresses(data: Data) -> list[str]:
    """The addresses that a saved config leaves passwords or signatures out of, whole, for the command line; nothing where there is none."""
    if any(redacted(one.shards) != one.shards for one in data.sets.values()):
        return ["data.sets=" + json.dumps({name: dict(one) for name, one in data.sets.items()})]
    return ["data.shards=" + json.dumps(data.shards)] if data.shards and redacted(data.shards) != data.shards else []
