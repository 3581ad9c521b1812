"""A worker that is forked with a lock that nobody opens is ended, and another takes its place; one that is killed is told of in time."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from dist_train import living
from dist_train.data import PatchReader, TrainingVisits, patch_batches
from dist_train.errors import ConfigError
from dist_train.order import Order
from shards.manifest import Shards


class Stillbirths:
    """From now on, while there are names of forks in `stuck`, the forks of those numbers wait for ever as soon as they are made."""

    def __init__(self) -> None:
        self.stuck: set[int] = set()
        self.forks = 0
        os.register_at_fork(before=self._count, after_in_child=self._wait)

    def _count(self) -> None:
        self.forks += 1

    def _wait(self) -> None:
        while self.forks in self.stuck:
            time.sleep(1)


@pytest.fixture(scope="module")
def stillbirths() -> Stillbirths:
    return Stillbirths()  # a hook at fork stays for the life of the process


@pytest.fixture
def reader(shards: Path) -> PatchReader:
    opened = Shards(shards)
    _, parts = opened.split()
    order = Order(seed=3, num_images=len(parts["train"]), stored_patches=4, patches_per_image=2, passes=1, global_batch=8)
    return PatchReader(opened, TrainingVisits(order, parts["train"], True, 0, 1), 0, 5)


def test_a_worker_that_does_not_come_to_life_is_replaced_and_the_batches_are_the_same(
    reader: PatchReader, stillbirths: Stillbirths, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(living, "PATIENCE", 0.5)
    expected = list(patch_batches(reader, 8, workers=0))
    monkeypatch.setattr(stillbirths, "stuck", {stillbirths.forks + 1, stillbirths.forks + 3})
    before = stillbirths.forks
    found = list(patch_batches(reader, 8, workers=2))
    assert stillbirths.forks == before + 4
    assert len(found) == len(expected) == 5
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(found, expected, strict=True))
    assert capfd.readouterr().err.count("did not come to life in 0.5 s; forking another") == 2


def test_workers_that_never_come_to_life_are_an_error_and_not_a_wait(
    reader: PatchReader, stillbirths: Stillbirths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(living, "PATIENCE", 0.05)
    monkeypatch.setattr(stillbirths, "stuck", set(range(stillbirths.forks, stillbirths.forks + 99)))
    with pytest.raises(RuntimeError, match=r"5 loader workers in a row did not come to life; data\.workers=0 does without them"):
        next(iter(patch_batches(reader, 8, workers=1)))


def test_a_temporary_folder_whose_sockets_would_have_too_long_a_name_is_refused_where_there_are_workers(
    reader: PatchReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in (75, 76):
        folder = tmp_path / ("x" * (length - len(str(tmp_path)) - 1))
        folder.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        assert len(str(folder)) == length
        if length == 75:
            assert len(list(patch_batches(reader, 8, workers=1))) == 5
        else:
            with pytest.raises(
                ConfigError, match=r"TMPDIR=/.*x: 76 bytes.* beyond 75; name another folder in TMPDIR, or set the number of"
            ):
                next(iter(patch_batches(reader, 8, workers=1)))
        assert len(list(patch_batches(reader, 8, workers=0))) == 5


KILLED = r"DataLoader worker .*(is killed by signal: Killed|exited unexpectedly)"


def test_a_killed_worker_is_told_of_where_a_batch_is_waited_for_and_not_where_its_rank_is_at_something_else(reader: PatchReader) -> None:
    batches = patch_batches(reader, 8, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    time.sleep(0.5)  # torch by itself would raise here
    with pytest.raises(RuntimeError, match=KILLED):
        list(batches)


@pytest.mark.parametrize("broken", [ConnectionResetError, EOFError])
def test_a_worker_that_is_killed_while_it_hands_over_a_batch_is_told_of_by_its_end_and_not_by_a_broken_connection(
    reader: PatchReader, broken: type[Exception]
) -> None:
    batches = patch_batches(reader, 8, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    threading.Timer(0.3, worker.kill).start()  # the signal comes after the socket has closed
    with pytest.raises(RuntimeError, match=KILLED), living.waiting_for_workers():
        raise broken


def test_a_broken_connection_of_living_workers_stays_what_it_is(reader: PatchReader) -> None:
    batches = patch_batches(reader, 8, workers=1)
    next(batches)
    with pytest.raises(ConnectionResetError), living.waiting_for_workers():
        raise ConnectionResetError
    assert len(list(batches)) == 4
