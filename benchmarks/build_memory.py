"""What a build holds in memory, at two sizes of the set: it may not grow with the number of images.

    .venv/bin/python benchmarks/build_memory.py [--rows 200000 1000000] [--workers 2] [--plan-only] [--folder FOLDER]

The pictures are PNG files of 16x16, hard links to a few, so that there is little to do but to keep account of them; a shard holds
about as many of them as one of ordinary photographs does (900). Each size is built in a process of its own.

Measured on 2026-11-25, 2 cores that others used too: planning (table, splits, headers) 200,000 images peaked at 78 MB and a million at
100 MB, 27 bytes per image more, of which 14 are ten split tables and the contents; it took 25 s and 133 s of a core, of which the
headers are about half. A whole build peaked at 66 MB for 20,000 images and 80 MB for 100,000, where SQLite's caches, which are bounded,
had filled; its workers at 50 MB both times. With the rows in memory, as it was before, that was 75 and 208 MB.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from shards.datasets import read_table
from shards.plan import Settings, plan_build
from shards.writer import build

SIDE = 16  # pixels
LINKS = 20_000  # names of one file; ext4 allows 65,000
SETTINGS = Settings(patch_size=8, patches=1, layout="canvas", shard_bytes=900 * 3 * SIDE**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[200_000, 1_000_000], help="the two sizes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plan-only", action="store_true", help="read the table and the headers, and write nothing")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)  # in the processes started below
    options = parser.parse_args()
    if options.only:
        measure(options.only, options.workers, options.plan_only)
        return
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            make_set(Path(folder), rows)
            print(f"{rows:,} images", flush=True)
            command = [sys.executable, __file__, "--only", folder, "--workers", str(options.workers)]
            subprocess.run(command + ["--plan-only"] * options.plan_only, check=True)


def make_set(folder: Path, rows: int) -> None:
    """A score table over `rows` pictures in one folder."""
    draw, images = np.random.default_rng(0), folder / "images"
    images.mkdir()
    with (folder / "scores.csv").open("w") as table:
        table.write("image,score\n")
        for number in range(rows):
            picture = images / f"photograph-{number:07d}.png"
            if number % LINKS == 0:
                Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(picture)
                first = picture
            else:
                picture.hardlink_to(first)
            table.write(f"{picture.name},{number % 997 / 997:.3f}\n")


def measure(folder: Path, workers: int, plan_only: bool) -> None:
    """Prints the time of each step and the peak memory of this process after it, then that of the largest worker."""
    told("before", time.perf_counter(), time.process_time())
    clock, core = time.perf_counter(), time.process_time()
    data_set = read_table(folder / "scores.csv", folder / "images", "memory")
    told("table", clock, core)
    clock, core = time.perf_counter(), time.process_time()
    plan = plan_build(data_set, SETTINGS)
    told("plan", clock, core)
    if plan_only:
        return
    of_workers: list[float] = []
    threading.Thread(target=watch, args=(of_workers,), daemon=True).start()
    clock, core = time.perf_counter(), time.process_time()
    build(plan, folder / "out", workers)
    told("build", clock, core)
    print(f"  the largest worker{max(of_workers, default=0):>30.0f} MB")


def watch(found: list[float]) -> None:
    """Notes the peaks of the workers, as long as there are any."""
    while True:
        for worker in psutil.Process().children():
            with suppress(OSError):
                found.append(peak(worker.pid))
        time.sleep(0.2)


def told(step: str, clock: float, core: float) -> None:
    spent = f"{time.perf_counter() - clock:>8.1f} s, {time.process_time() - core:>7.1f} s on a core"
    print(f"  {step:<8}{spent} {peak(os.getpid()):>10.0f} MB", flush=True)


def peak(process: int) -> float:
    """The most memory that a process has held since it became itself, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return max((int(kib) * 1024 / 1e6 for kib in re.findall(r"VmHWM:\s+(\d+) kB", status)), default=0.0)


if __name__ == "__main__":
    main()
