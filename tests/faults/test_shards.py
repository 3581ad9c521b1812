"""A shard that is spoiled while a run reads it: the message names it, and with the shard as it was the run goes on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from trial import EPOCH, Trial, flip_a_bit, turns

from shards.manifest import Shards

pytestmark = pytest.mark.timeout(900)
AHEAD = 3  # steps that a loader may have read before they are taken


@turns(5)
@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
def test_a_shard_that_is_spoiled_in_mid_run_is_named_and_put_back_costs_nothing(
    shards: Path,
    trial_of: Callable[..., Trial],
    unbroken: Callable[..., Trial],
    dice: random.Random,
    tmp_path: Path,
    damage: str,
    world: int,
) -> None:
    expected, own = unbroken(world), Path(shutil.copytree(shards, tmp_path / "shards"))
    trial = trial_of(world, shards=own)
    opened = Shards(own)
    rows, image = [opened.row(number) for number in range(len(opened))], dice.randrange(len(opened))
    row = rows[image]
    shard, byte = own / opened.files[row["shard"]]["file"], int(row["offset"]) + dice.randrange(int(row["lengths"].sum()))
    attempt = trial.start()
    at_last = trial.last_step - 2 * EPOCH - AHEAD  # two epochs read all patches of all images
    assert trial.wait_for_step(attempt, dice.randint(1, at_last)), attempt.said()
    print(f"{damage} after step {trial.steps()}: {shard}, byte {byte}")
    if damage == "removed":
        shard.unlink()
    elif damage == "truncated":
        os.truncate(shard, byte)
    else:
        flip_a_bit(shard, byte, dice)
    why = "cannot be read (No such file or directory)" if damage == "removed" else "is damaged (its checksum does not match)"
    trial.assert_failed(attempt, str(shard), why, within=90)
    behind = [number for number, of in enumerate(rows) if of["shard"] == row["shard"] and of["offset"] >= row["offset"]]
    named = {"removed": [], "truncated": behind, "flipped": [image]}[damage]
    assert not named or any(f"{shard}: image '{opened.ids[number]}' is" in attempt.last_words() for number in named), attempt.said()
    shutil.copy(shards / shard.name, shard)
    assert "going on from" in trial.finish().said()
    trial.assert_result_of(expected)
