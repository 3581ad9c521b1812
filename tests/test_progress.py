"""The promises of the progress bar: it moves with every image, in this process and in others, and tells speed, time and shard."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from photographs import plan_of, shards_of

from shards import progress, writer
from shards.progress import Counts, Progress
from shards.shard_file import write_shard
from shards.workers import WorkerPool

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_a_shard_tells_of_every_image_once_as_it_is_written(cups: Path, tmp_path: Path) -> None:
    (task,) = plan_of(cups, shard_bytes=1 << 20).tasks
    (tmp_path / ".build").mkdir()
    told: list[int] = []
    write_shard(tmp_path, task, told.append)
    assert told == [96 * 72 * 3] * 12
    write_shard(tmp_path, task, told.append)  # it is there: nothing is written, all is done
    assert told[12:] == [0] * 12


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bar_moves_within_a_shard(cups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    reached: list[tuple[int, int]] = []

    class Recorded(Progress):
        def reach(self, images: int, pixel_bytes: int) -> None:
            reached.append((images, pixel_bytes))
            super().reach(images, pixel_bytes)

    monkeypatch.setattr(writer, "Progress", Recorded)
    monkeypatch.setattr(writer, "_PAUSE", 0.001)
    shards_of(cups, tmp_path / "out", workers, resize="exact:1600x1200", layout="canvas", shard_bytes=6 * 3 * 1600 * 1200)
    assert len(list((tmp_path / "out").glob("shard-*.tar"))) == 2
    assert any(0 < images < 6 for images, _ in reached)
    assert reached[-1] == (12, 12 * 3 * 1600 * 1200)
    assert [images for images, _ in reached] == sorted(images for images, _ in reached)


def count(place: int, times: int) -> None:
    for _ in range(times):
        counts.add(place, 3)


def take(shared: Counts) -> None:
    global counts
    counts = shared


def test_what_several_processes_count_adds_up() -> None:
    shared = Counts(3)
    with WorkerPool(3, take, shared) as pool:
        list(pool.map(count, range(3), (1_000, 2_000, 3_000)))
    assert shared.total() == (6_000, 18_000)


def test_the_bar_tells_images_per_second_megabytes_per_second_the_time_left_and_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "tqdm", lambda over, **options: tqdm_with_clock(stream, now, **options))
    with Progress(images=100, done=20) as bar:
        bar.begin("shard-000007.tar")
        now[0] += 4.0
        bar.add(20, 8_000_000)
        bar.add(0, 0)
    assert re.search(r"shards:  40%\|.*\| 40/100 \[00:04<00:12, +5.00 images/s, 2.0 MB/s, shard-000007.tar\]", stream.getvalue())


@pytest.mark.parametrize(("terminal", "least", "most"), [(True, 50, 1010), (False, 1, 4)], ids=["terminal", "log"])
def test_a_log_is_not_filled_with_bars(monkeypatch: pytest.MonkeyPatch, terminal: bool, least: int, most: int) -> None:
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress, "tqdm", lambda over, **options: TQDM(over, file=stream, **options))
    monkeypatch.setattr(progress.sys, "stderr", stream)
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    with progress.progress_bar("shards", 1000) as bar:
        bar._time = lambda: now[0]
        bar.start_t = bar.last_print_t = 0.0
        for _ in range(1000):
            now[0] += 0.12  # two minutes in all
            bar.update()
    assert least <= stream.getvalue().count("\r") <= most
    assert "1000/1000" in stream.getvalue()


def tqdm_with_clock(stream: io.StringIO, now: list[float], **options: object) -> progress.tqdm:
    bar = TQDM(file=stream, **options | {"mininterval": 0})
    bar._time = lambda: now[0]
    bar.start_t = bar.last_print_t = now[0]
    return bar


TQDM = progress.tqdm
