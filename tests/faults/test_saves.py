"""Whatever happens to what a run writes, it goes on from the newest checkpoint that is whole, to the bits of an unbroken run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trial import BROKEN, ROUNDS, Trial

pytestmark = pytest.mark.timeout(900)


def test_a_run_that_dies_before_any_of_its_writes_ends_with_the_bits_of_an_unbroken_one(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random
) -> None:
    expected, trial = unbroken(1), trial_of(1, program=BROKEN)
    for _ in range(max(1, ROUNDS // 5)):
        attempt = trial.start(FAULT=json.dumps({"rank": 0, "what": "die", "files": dice.randint(1, 150)}))
        attempt.wait()
        print(re.findall("killed before .*", attempt.said()) or "it was through before that")
    trial.finish()
    trial.assert_result_of(expected)


@pytest.mark.parametrize("damage", ["a flipped bit", "a truncated file", "a missing file"])
def test_a_corrupt_newest_checkpoint_costs_the_steps_since_the_one_before_and_nothing_else(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, damage: str
) -> None:
    expected, trial = unbroken(1), trial_of(1)
    attempt = trial.start()
    assert trial.wait_for_step(attempt, dice.randint(3, trial.last_step - 1)), attempt.said()
    attempt.kill()
    newest = max((trial.folder / "checkpoints").glob("step-*"))
    file = dice.choice([path for path in sorted(newest.iterdir()) if path.stat().st_size])
    print(f"{damage}: {file}")
    spoil(file, damage, dice)
    said = trial.finish().said()
    assert f"checkpoint {newest} is damaged (" in said and f"going on from {newest.parent}/step-{int(newest.name[5:]) - 1:08d}" in said
    trial.assert_result_of(expected)


def spoil(file: Path, damage: str, dice: random.Random) -> None:
    """Flips a bit, cuts a file short or removes it."""
    if damage == "a missing file":
        file.unlink()
    elif damage == "a truncated file":
        os.truncate(file, dice.randrange(file.stat().st_size))
    else:
        content = bytearray(file.read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.write_bytes(content)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 MB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_costs_no_checkpoint_and_with_room_the_run_goes_on(
    trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, small_disk: Path
) -> None:
    expected, trial = unbroken(1), trial_of(1, folder=small_disk / "run")
    attempt = trial.start()
    assert trial.wait_for_step(attempt, dice.randint(1, trial.last_step - 1)), attempt.said()
    with (small_disk / "ballast").open("wb") as ballast:
        ballast.write(b"\0" * (shutil.disk_usage(small_disk).free - dice.randrange(100_000, 12_000_000)))  # a checkpoint has 14 MB
    trial.assert_failed(attempt, f"{trial.folder}: cannot be written, No space left on device: the disk {small_disk} has")
    standing = [path.name for path in (trial.folder / "checkpoints").iterdir()]
    assert standing and all(name.startswith("step-") for name in standing)
    (small_disk / "ballast").unlink()
    assert f"going on from {trial.folder}/checkpoints/{max(standing)}" in trial.finish().said()
    trial.assert_result_of(expected)
