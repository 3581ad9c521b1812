"""A shard that is spoiled while a run reads it: the message names it, and with the shard as it was the run goes on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from trial import Trial

from shards.manifest import Shards

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("damage", ["removed", "truncated", "flipped"])
def test_a_shard_that_is_spoiled_in_mid_run_is_named_and_put_back_costs_nothing(
    shards: Path, trial_of: Callable[..., Trial], unbroken: Callable[..., Trial], dice: random.Random, tmp_path: Path, damage: str
) -> None:
    expected, own = unbroken(1), Path(shutil.copytree(shards, tmp_path / "shards"))
    trial = trial_of(1, shards=own)
    opened = Shards(own)
    shard = dice.choice(sorted(own.glob("*.tar")))
    attempt = trial.start()
    assert trial.wait_for_step(attempt, dice.randint(1, trial.last_step // 2)), attempt.said()
    print(f"{damage} after step {trial.steps()}: {shard}")
    if damage == "removed":
        shard.unlink()
    elif damage == "truncated":
        os.truncate(shard, 1000)
    else:
        shard.write_bytes(bytes(byte ^ 1 for byte in shard.read_bytes()))
    why = "cannot be read (No such file or directory)" if damage == "removed" else "is damaged (its checksum does not match)"
    trial.assert_failed(attempt, str(shard), why)
    assert damage == "removed" or any(f"image '{name}'" in attempt.last_words() for name in opened.ids)
    shutil.copy(shards / shard.name, shard)
    assert "going on from" in trial.finish().said()
    trial.assert_result_of(expected)
