"""A run asks its launcher how many processes it had promised."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_train import launch
from dist_train.__main__ import main
from dist_train.errors import ConfigError
from dist_train.launch import refuse_another_world

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPT = ["-m", "dist_train", "train", "configs/demo.yaml"]


class Ancestor:
    """A process above this one, as psutil shows it."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)

    def cmdline(self) -> list[str]:
        return self.words


@pytest.fixture
def started_by(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the command lines above this process; none of Slurm or of a launcher unless the test says so."""
    for name in ("SLURM_STEP_NUM_TASKS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def above(*commands: list[str]) -> None:
        monkeypatch.setattr(launch.psutil.Process, "parents", lambda _: [Ancestor(*words) for words in commands])

    above()
    return above


@pytest.mark.parametrize(("found", "wanted"), [(1, None), (1, 1), (8, 8), (4, None)])
def test_what_was_asked_for_may_run(started_by: Callable[..., None], found: int, wanted: int | None) -> None:
    refuse_another_world(found, wanted)


@pytest.mark.parametrize(("found", "wanted"), [(1, 2), (2, 1), (4, 8)])
def test_another_number_than_the_config_asks_for_is_refused(started_by: Callable[..., None], found: int, wanted: int) -> None:
    with pytest.raises(ConfigError, match=rf"run\.processes={wanted} asks for {wanted} process(es)?, but this run has {found}"):
        refuse_another_world(found, wanted)


@pytest.mark.parametrize(
    ("words", "promised"),
    [
        (["--num_processes", "3", *SCRIPT], 3),
        (["--num_processes=3", *SCRIPT], 3),
        (["--num-processes", "3", *SCRIPT], 3),
        (["--config_file", str(LAUNCH / "cpu.yaml"), *SCRIPT], 2),
        (["--config_file", str(LAUNCH / "workstation.yaml"), "--num_processes", "4", *SCRIPT], 4),
        (["--cpu", "--num_processes", "2", *SCRIPT], 2),
        (["--multi_gpu", "--num_machines", "2", "--num_processes", "16", "--machine_rank", "1", *SCRIPT], 16),
        (["-m", "dist_train", "plan", "x.yaml", "--processes", "5"], None),
        (["-m", "dist_train", "train", "x.yaml", "--num_processes", "5"], None),
        (["--cpu", *SCRIPT], None),
    ],
    ids=lambda value: " ".join(Path(word).name for word in value) if isinstance(value, list) else str(value),
)
def test_the_promise_of_accelerate_is_read_from_its_command_line(words: list[str], promised: int | None) -> None:
    assert launch._processes_in_command(words) == promised


@pytest.mark.parametrize(
    "command",
    [
        ["/venv/bin/python", "/venv/bin/accelerate", "launch"],
        ["accelerate", "launch"],
        ["/venv/bin/python", "/venv/bin/accelerate-launch"],
        ["python", "-m", "accelerate.commands.launch"],
        ["python", "-m", "accelerate.commands.accelerate_cli", "launch"],
        ["python", "/site-packages/accelerate/commands/accelerate_cli.py", "launch"],
    ],
    ids=" ".join,
)
def test_accelerate_is_known_however_it_was_called(started_by: Callable[..., None], command: list[str]) -> None:
    started_by(["bash"], [*command, "--cpu", "--num_processes", "2", *SCRIPT], ["init"])
    refuse_another_world(2, None)
    with pytest.raises(ConfigError, match=r"`accelerate launch` asks for 2 processes, but this run has 1"):
        refuse_another_world(1, None)


def test_other_commands_above_promise_nothing(started_by: Callable[..., None]) -> None:
    started_by(["bash", "-c", "accelerate launch --num_processes 2"], ["torchrun", "--nproc-per-node", "2"], ["accelerate", "env"], [])
    refuse_another_world(1, None)


def test_the_tasks_of_a_bare_srun_are_a_promise(started_by: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    refuse_another_world(4, None)
    with pytest.raises(ConfigError, match=r"Slurm .*asks for 4 processes, but this run has 1"):
        refuse_another_world(1, None)


def test_the_tasks_of_srun_are_no_promise_below_a_launcher(started_by: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # one torchrun per node, which started eight
    monkeypatch.setenv("WORLD_SIZE", "8")
    refuse_another_world(8, 8)


def test_the_refusal_says_how_to_start_so_many(started_by: Callable[..., None]) -> None:
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"):
        refuse_another_world(1, 2)


def test_an_error_is_left_where_the_launcher_looks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert main(["plan", "no-such.yaml"]) == 1
    assert "no-such.yaml: there is no such config file" in json.loads((tmp_path / "error.json").read_text())["message"]["message"]
