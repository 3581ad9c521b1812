"""How many processes were asked for.

`accelerate launch --cpu --num_processes 2` runs one process without a word, and so do other combinations. A job that
silently runs as another number of processes wastes days, so a run asks its launcher what it had promised.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import psutil

from dist_train.errors import ConfigError

_ACCELERATE = ("accelerate", "accelerate_cli.py", "accelerate.commands.accelerate_cli")


def refuse_another_world(found: int, wanted: int | None) -> None:
    """Raises ConfigError when `found` processes are not what the config, `accelerate launch` or Slurm asked for."""
    promises = {
        f"run.processes={wanted}": wanted,
        "the launcher (WORLD_SIZE)": int(os.environ["WORLD_SIZE"]) if "WORLD_SIZE" in os.environ else None,
        "`accelerate launch`": _promised_by_accelerate(),
        "Slurm (SLURM_STEP_NUM_TASKS)": _promised_by_slurm(),
    }
    for source, promised in promises.items():
        if promised is not None and promised != found:
            raise ConfigError(
                f"{source} asks for {promised} {'process' if promised == 1 else 'processes'}, but this run has {found}; on CPUs start it "
                f"with `torchrun --nproc-per-node {promised}`, or with `accelerate launch --config_file launch/cpu.yaml` "
                f"(accelerate's --cpu and MULTI_CPU start one process only)"
            )


def _promised_by_accelerate() -> int | None:
    """The number of processes that the `accelerate launch` above this process was asked for; None without one."""
    for ancestor in psutil.Process().parents():
        try:
            words = ancestor.cmdline()
        except psutil.Error:
            continue
        for position, word in enumerate(words[:-1]):
            if os.path.basename(word) in _ACCELERATE and words[position + 1] == "launch":
                return _processes_in_command(words[position + 2 :])
            if os.path.basename(word) in ("accelerate-launch", "accelerate.commands.launch"):
                return _processes_in_command(words[position + 1 :])
    return None


def _processes_in_command(words: Sequence[str]) -> int | None:
    from accelerate.commands.config import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    arguments, _ = launch_command_parser().parse_known_args(list(words))
    if arguments.num_processes is not None:
        return int(arguments.num_processes)
    if arguments.config_file is None and (arguments.cpu or not os.path.isfile(default_config_file)):
        return None
    return int(load_config_from_file(arguments.config_file).num_processes)


def _promised_by_slurm() -> int | None:
    """The tasks of a bare `srun` step; None under a launcher, which starts processes of its own."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    return int(tasks) if tasks and "WORLD_SIZE" not in os.environ else None
