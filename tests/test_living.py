"""A worker that is forked with a lock that nobody opens is ended, and another takes its place; one that is killed is told of in time."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_train import living
from dist_train.config import Data
from dist_train.data import PatchBatch, PatchReader, TrainingVisits, _next, loader_workers, patch_batches
from dist_train.errors import ConfigError, LostProcessError, TrainingError
from dist_train.order import Order
from shards.manifest import Shards

LOST = r"lost another process: loader worker \d+ was killed \(SIGKILL, .*\); the same command goes on"


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


class DoomedReader(PatchReader):
    """Its worker is killed as soon as it reads."""

    def __call__(self) -> Iterator[dict[str, Any]]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield {}


def test_a_worker_that_is_killed_before_its_first_batch_is_a_lost_process(reader: PatchReader) -> None:
    doomed = DoomedReader(reader.pictures, reader.visits, reader.first, reader.last)
    with pytest.raises(LostProcessError, match=LOST):
        next(patch_batches(doomed, 8, workers=1))


def test_a_killed_worker_is_told_of_where_the_launcher_ignores_the_ends_of_children(reader: PatchReader) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        batches = patch_batches(reader, 8, workers=1)
        next(batches)
        multiprocessing.active_children()[0].kill()
        with pytest.raises(LostProcessError, match=LOST):
            list(batches)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_killed_worker_is_told_of_where_a_batch_is_waited_for_and_not_where_its_rank_is_at_something_else(reader: PatchReader) -> None:
    batches = patch_batches(reader, 8, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    time.sleep(0.5)  # torch by itself would raise here
    with pytest.raises(LostProcessError, match=LOST):
        list(batches)


def end_by(code: int) -> None:
    """Ends this process by the signal -`code`, or with this exit status."""
    faulthandler.disable()  # pytest's would fill the screen
    time.sleep(0.3)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def broken(by: Exception) -> Iterator[PatchBatch]:
    raise by
    yield


@pytest.mark.parametrize("first_seen", [ConnectionResetError(), EOFError(), RuntimeError("received 0 items of ancdata")])
@pytest.mark.parametrize(
    ("code", "kind", "told"),
    [
        (-signal.SIGKILL, LostProcessError, LOST),
        (-signal.SIGBUS, TrainingError, r"loader worker \d+ has ended \(Bus error: /dev/shm may be full\)"),
        (-signal.SIGSEGV, TrainingError, r"loader worker \d+ has ended \(Segmentation fault\)"),
        (3, TrainingError, r"loader worker \d+ has ended \(exit status 3\)"),
    ],
)
def test_how_a_worker_has_ended_is_told_and_not_what_broke_then(
    first_seen: Exception, code: int, kind: type[TrainingError], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(living, "_A_MOMENT", 30.0)  # what it has open is closed before it has ended
    context = living.LivingContext()
    context.Process(target=end_by, args=(code,)).start()
    with pytest.raises(TrainingError, match=told) as raised:
        _next(broken(first_seen), context)
    assert raised.type is kind


def test_what_goes_wrong_while_all_workers_live_stays_what_it_is() -> None:
    context = living.LivingContext()
    worker = context.Process(target=time.sleep, args=(60,))
    worker.start()
    with pytest.raises(ConnectionResetError):
        _next(broken(ConnectionResetError()), context)
    worker.kill()


@pytest.mark.parametrize(
    ("cores", "processes", "stated", "expected"),
    [(2, 1, None, 1), (2, 4, None, 1), (8, 2, None, 2), (16, 1, None, 4), (64, 8, None, 4), (2, 1, 12, 12), (64, 1, 0, 0)],
)
def test_a_rank_has_as_many_loader_workers_as_the_config_says_or_else_by_its_share_of_the_cores(
    cores: int, processes: int, stated: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert loader_workers(Data(workers=stated)) == expected
