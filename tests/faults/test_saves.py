"""Whatever happens to what a run writes, it goes on from the newest checkpoint that is whole, to the bits of an unbroken run."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from broken import die_at_file
from trial import EPOCH, Trial, flip_a_bit, times, turns

pytestmark = pytest.mark.timeout(900)
FILES = ("model.safetensors", "optimizer.safetensors", "progress.json")
DAMAGES = ("a flipped bit", "a truncated file", "a missing file")
A_CHECKPOINT, A_BEST = "checkpoints/.step-*.part/*", "best/.*"  # the files of each before it has its name
LOOK = 2e-4  # seconds between two looks at a file that grows; it does for some ten milliseconds


@turns(10)
def test_a_run_that_dies_before_any_of_its_writes_ends_with_the_bits_of_an_unbroken_one(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, world: int
) -> None:
    expected, trial = unbroken(world), trial_of(world)
    for _ in range(times(5)):
        attempt = trial.start((0, partial(die_at_file, dice.randint(1, 150))))
        attempt.wait()
        print(re.findall("killed before .*", attempt.said()) or "it was through before that")
    trial.finish()
    trial.assert_result_of(expected)


@turns(10)
def test_a_run_that_dies_within_its_large_writes_ends_with_the_bits_of_an_unbroken_one(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, world: int
) -> None:
    """safetensors writes by itself, out of Python's sight: so the files are watched from outside."""
    expected, trial = unbroken(world), trial_of(world)
    killed_within_a_file(trial, 0, A_BEST, dice.random(), expected)  # there may be no second one
    for step in sorted(dice.randint(1, trial.last_step - EPOCH) for _ in range(times(5))):
        while not killed_within_a_file(trial, step, A_CHECKPOINT, dice.random(), expected):
            print("that was too late, between two files")  # and is a fault like any other
    trial.finish()
    trial.assert_result_of(expected)


def killed_within_a_file(trial: Trial, step: int, save: str, part: float, expected: Trial) -> bool:
    """SIGKILL to rank 0 in a save after `step`, when that part of it is on the disk; whether this left a large file half written."""
    since, attempt = time.time(), trial.start()
    assert trial.wait_for_step(attempt, step), attempt.said()
    victim, whole = attempt.ranks()[0], size_of(checkpoints(expected.folder)[-1] if save == A_CHECKPOINT else expected.folder / "best")
    assert attempt.wait_until(lambda: sum(begun(trial.folder, save, since)) > 0.95 * part * whole, "a save", every=LOOK), attempt.said()
    victim.kill()
    attempt.wait(90)
    sizes = {path.stat().st_size for path in expected.folder.rglob("*.safetensors")}
    half = [size for size in begun(trial.folder, save, since) if size > 100_000 and size not in sizes]
    print(f"killed at {part:.1%} of {save} after step {step}: {half} bytes of a file are on the disk")
    return bool(half)


def begun(folder: Path, save: str, since: float) -> list[int]:
    """The bytes on the disk of each file of a save that goes on. safetensors gives a file its full size first, and its content then."""
    found = []
    for path in folder.glob(save):
        with suppress(FileNotFoundError):  # it has got its name meanwhile
            state = path.stat()
            if state.st_mtime > since:  # what an attempt before this one has left does not count
                found.append(min(state.st_size, 512 * state.st_blocks))
    return found


@turns(2)
def test_a_corrupt_newest_checkpoint_costs_the_steps_since_the_one_before_and_nothing_else(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, turn: int, world: int
) -> None:
    expected, trial = unbroken(world), trial_of(world)
    attempt = trial.start()
    assert trial.wait_for_step(attempt, dice.randint(3, trial.last_step - 1)), attempt.said()
    attempt.kill()
    *_, before, newest = checkpoints(trial.folder)
    damage, file = DAMAGES[turn % len(DAMAGES)], newest / FILES[turn % len(FILES)]
    print(f"{damage}: {file}")
    spoil(file, damage, dice)
    said = trial.finish().said()
    assert f"checkpoint {newest} is damaged (" in said and f"going on from {before}\n" in said
    trial.assert_result_of(expected)


def checkpoints(folder: Path) -> list[Path]:
    """Those that are whole, the newest last: where a kill has left two of one step, the one that was to replace the other."""
    found = [*folder.glob("checkpoints/.step-*.replaced"), *folder.glob("checkpoints/step-*")]
    whole = [path for path in found if {file.name for file in path.iterdir()} == set(FILES)]
    return sorted(whole, key=lambda path: re.findall(r"\d+", path.name))


def size_of(folder: Path) -> int:
    """What all files below a folder take on the disk."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*"))


def spoil(file: Path, damage: str, dice: random.Random) -> None:
    """Flips a bit, cuts a file short or removes it."""
    if damage == "a missing file":
        file.unlink()
    elif damage == "a truncated file":
        os.truncate(file, dice.randrange(file.stat().st_size))
    else:
        flip_a_bit(file, dice.randrange(file.stat().st_size), dice)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 MB, of which `resize` takes away as much as it is told."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def resize(disk: Path, size: int) -> bool:
    """Whether the disk has that size now; it cannot become smaller than what is on it."""
    return subprocess.run(["mount", "-o", f"remount,size={size}", disk], stderr=subprocess.DEVNULL).returncode == 0


@turns(5)
def test_a_full_disk_is_named_costs_no_checkpoint_and_with_room_the_run_goes_on(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, small_disk: Path, world: int
) -> None:
    expected, trial = unbroken(world), trial_of(world, folder=small_disk / "run")
    of_the_run = size_of(expected.folder)  # two checkpoints and all else
    room = dice.randrange(200_000, int(0.85 * size_of(checkpoints(expected.folder)[-1])))  # too small for a third, from which on one may go
    attempt = trial.start()
    assert trial.wait_for_step(attempt, dice.randint(1, trial.last_step - EPOCH)), attempt.said()
    print(f"room for {room} bytes, from step {trial.steps()} on")
    assert attempt.wait_until(lambda: resize(small_disk, of_the_run + room), "as little on the disk as that"), attempt.said()
    trial.assert_failed(attempt, f"{trial.folder}: cannot be written, No space left on device: the disk {small_disk} has", within=90)
    standing = [path.name for path in (trial.folder / "checkpoints").iterdir()]
    assert standing and all(name.startswith("step-") for name in standing)
    assert resize(small_disk, 100_000_000)
    assert f"going on from {trial.folder}/checkpoints/{max(standing)}" in trial.finish().said()
    trial.assert_result_of(expected)
