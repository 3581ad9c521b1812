"""The builder against the sum of its parts on one core, and two workers against one.

    .venv/bin/python benchmarks/build_speed.py [--pictures 300] [--rows 3000] [--rounds 4] [--folder FOLDER]

The pictures are JPEG files of 1024x768, as those of KonIQ-10k are, made from the photographs of the built-in demo and
stored at 512x384; the rows are hard links to them. The parts are done with Pillow alone: read and decode, resize, write
(synced and renamed, shard by shard). A fourth is what makes a shard one that can be trusted, by hashlib and zlib alone: the
checksums (SHA-256 of the picture and of the shard, CRC-32 of the pixels). The builder is held against the sum of the three
and of the four. All run in turn, round by round, on the same files, and the ratios are medians over the rounds. Times are
wall times; on a busy machine the time of the core itself, in which nothing counts that others do, tells more about the
builder and its parts.

Two processes of the bare parts, each with half of the shards, tell what a second core is worth on the machine at hand.

Measured on 2026-11-26, 2 cores of an AMD EPYC that others share, 3,000 rows, 4 rounds: 9.50 ms/image for one worker, 0.91 of decode,
resize and write (rounds: 0.90, 0.91, 0.91, 0.91) and 0.98 of these and the checksums (0.97, 0.98, 0.98, 0.98). Two workers were 1.86
times as fast as one (1.83, 1.83, 1.90, 1.94), two processes of the bare parts 1.73 times as one (1.70, 1.74, 1.72, 1.74). Before raw
pixels went into a member without a copy of their own it was 0.89 (0.91, 0.92, 0.85, 0.87). On 2 cores of an Intel Xeon, the same day and
with that copy: 13.8 ms/image, 0.91, 0.97, and two workers 1.77 times (1.56, 1.74, 1.80, 1.82). With 1,200 rows the 0.4 s in which workers
start weigh more: 1.73.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.datasets import read_table
from shards.plan import Plan, Settings, ShardTask, plan_build
from shards.writer import build

SHARD_BYTES = 16 << 20  # smaller than usual: with some thousand images all workers should have shards to the end
PARTS = ("decode", "resize", "write")
TRUSTED = (*PARTS, "checksum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300, help="different files")
    parser.add_argument("--rows", type=int, default=3000, help="images of the set, hard links to those files")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        plan = plan_of(make_set(folder, options.pictures, options.rows))
        rounds = [one_round(plan, folder) for _ in range(options.rounds)]
    report(rounds, options.rows)


def make_set(folder: Path, pictures: int, rows: int) -> Path:
    """A score table over `rows` JPEG files of 1024x768, of which `pictures` differ; returns the table's folder."""
    from shards.demo import CONTENTS, cut_content  # brings SciPy, and a worker imports what stands at the top of this file

    images = folder / "images"
    images.mkdir(parents=True)
    contents = [cut_content(name) for name in CONTENTS]
    with (folder / "scores.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "score"])
        for number in range(rows):
            picture = images / f"{number:06d}.jpg"
            if number < pictures:
                write_picture(picture, contents[number % len(contents)], number // len(contents))
            else:
                picture.hardlink_to(images / f"{number % pictures:06d}.jpg")
            table.writerow([picture.name, 1 + number % 97 / 97])
    return folder


def write_picture(path: Path, content: np.ndarray, variant: int) -> None:
    """Another piece of the photograph for every variant, enlarged to 1024x768."""
    width = 512 - 8 * (variant % 16)
    height = width * 3 // 4
    left, top = 8 * (variant % 16) * (variant % 3) // 2, (384 - height) * (variant % 2)
    piece = Image.fromarray(content[top : top + height, left : left + width])
    piece.resize((1024, 768), Image.Resampling.LANCZOS).save(path, quality=92)


def plan_of(folder: Path) -> Plan:
    return plan_build(
        read_table(folder / "scores.csv", folder / "images", "speed"), Settings(resize="exact:512x384", shard_bytes=SHARD_BYTES)
    )


def one_round(plan: Plan, folder: Path) -> dict[str, float]:
    """Seconds of each part, of the builder in this process, and of the builder with two workers; of the core where it says so."""
    seconds = parts_of(plan.tasks, folder / "parts")
    seconds["parts, 2 processes"] = parts_in_two_processes(plan, folder)
    for workers in (1, 2):
        start, start_core = time.perf_counter(), core_seconds()
        build(plan, folder / "out", workers)
        seconds[f"builder, {workers}"] = time.perf_counter() - start
        seconds[f"builder, {workers}, core"] = core_seconds() - start_core
        shutil.rmtree(folder / "out")
    return seconds


def core_seconds() -> float:
    """Time that cores have spent on this process and on the workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def parts_in_two_processes(plan: Plan, folder: Path) -> float:
    """Seconds that two processes, which have started, take for the parts of all images, each of every other shard."""
    halves = [(list(plan.tasks)[number::2], folder / f"half-{number}") for number in (0, 1)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(parts_of, [([], folder / f"none-{number}") for number in range(8)], chunksize=1)
        start = time.perf_counter()
        pool.starmap(parts_of, halves, chunksize=1)
        return time.perf_counter() - start


def parts_of(tasks: Iterable[ShardTask], out: Path) -> dict[str, float]:
    """Seconds that each part takes for all images of these shards, one after the other; of the core, too."""
    seconds = dict.fromkeys((*TRUSTED, *(f"{part}, core" for part in TRUSTED)), 0.0)
    out.mkdir()

    def clock(part: str, since: tuple[float, float]) -> tuple[float, float]:
        now = time.perf_counter(), time.process_time()
        seconds[part] += now[0] - since[0]
        seconds[f"{part}, core"] += now[1] - since[1]
        return now

    for task in tasks:
        start = time.perf_counter(), time.process_time()
        with (out / ".part").open("wb") as file:
            start = clock("write", start)
            for picture in task.pictures:
                content = picture.row.file.read_bytes()
                decoded = Image.open(io.BytesIO(content)).convert("RGB")
                start = clock("decode", start)
                pixels = np.asarray(decoded.resize(picture.stored, Image.Resampling.BILINEAR))
                start = clock("resize", start)
                hashlib.sha256(content).hexdigest()
                zlib.crc32(pixels)
                start = clock("checksum", start)
                file.write(pixels)
                start = clock("write", start)
            file.flush()
            os.fsync(file.fileno())
        (out / ".part").replace(out / task.file)
        start = clock("write", start)
        with (out / task.file).open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        clock("checksum", start)
    shutil.rmtree(out)
    return seconds


def sums(rounds: list[dict[str, float]], names: Sequence[str]) -> list[float]:
    return [sum(each[name] for name in names) for each in rounds]


def report(rounds: list[dict[str, float]], rows: int) -> None:
    """Prints the medians over the rounds, and the ratios that matter."""
    print(f"{rows:,} images, {len(rounds)} rounds, medians")
    for part in rounds[0]:
        seconds = statistics.median(each[part] for each in rounds)
        print(f"  {part:<16} {1000 * seconds / rows:7.2f} ms/image {rows / seconds:9.1f} images/s")
    bare_two = [each["parts, 2 processes"] for each in rounds]
    one, two = [each["builder, 1"] for each in rounds], [each["builder, 2"] for each in rounds]
    core_one, core_two = [each["builder, 1, core"] for each in rounds], [each["builder, 2, core"] for each in rounds]
    for name, shares, wholes, goal in (
        ("builder / decode + resize + write", sums(rounds, PARTS), one, 0.9),
        ("the same in core time", sums(rounds, [f"{part}, core" for part in PARTS]), core_one, 0.9),
        ("builder / these and checksums", sums(rounds, TRUSTED), one, 0.9),
        ("the same in core time", sums(rounds, [f"{part}, core" for part in TRUSTED]), core_one, 0.9),
        ("2 workers / 1 worker", one, two, 1.8),
        ("the same of the four parts alone", sums(rounds, TRUSTED), bare_two, 2.0),
        ("the same, had both a core of their own", [2 * seconds for seconds in core_one], core_two, 1.8),
    ):
        ratios = [share / whole for share, whole in zip(shares, wholes, strict=True)]
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"  {name:<38} {statistics.median(ratios):.2f}  (goal {goal}; rounds: {each})")


if __name__ == "__main__":
    main()
