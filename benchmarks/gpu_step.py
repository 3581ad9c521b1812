"""An optimizer step on one GPU, in every precision: the real job against the parts that it cannot do without.

    .venv/bin/python benchmarks/gpu_step.py [--precisions no tf32 bf16 ...] [--seconds 105] [--steps 30] [key=value ...]

The parts, in a plain loop of torch alone: forward pass, L1, backward pass and Adam on the same model, with the pixels of one batch
already on the GPU, which is waited for once, at the end. The job is `dist_train train` itself: shards on the disk, made here from the
photographs that scikit-image ships, read through the loader's workers, pinned memory, journal and audit; it is stopped after so many
steps, saves, and goes on from there in the next round. Both take `--steps` steps a round, of which the first ten do not count, in
turn, precision by precision, round after round until `--seconds` are over; the figures are medians over the rounds. What is compiled
takes part in the first round only. The weights are random, which changes no time.

Measured on 2026-11-26 on one H200 (torch 2.11, 16 cores), images/s of the job and the ratio to the bare parts, in two runs of a round
each: no 654 and 661 (0.94, 0.95), tf32 2,126 and 2,178 (0.81, 0.83), bf16 2,642 and 2,209 (0.72, 0.60), fp16 2,610 and 2,347 (0.89,
0.75); bf16 compiled, in the first, 2,815 (1.09). At most 2 % of a step was spent waiting for data; a save took 0.7 s, about five steps
in float32. Of a bare bf16 step's 27 ms the GPU computes 16: such a small step is bound by Python, which launches the kernels, and the
job has more to launch (norm and clipping, the audit, copies of BatchNorm's statistics). Fetching the next batch while the GPU computes
was tried, and changed nothing (32.5 against 33 ms).
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from dist_train.config import Config, load_config
from dist_train.data import loader_workers
from dist_train.device import HALF, fix_arithmetic
from dist_train.journal import Journal, read_records
from dist_train.model_folder import build_model
from dist_train.optim import build_adam
from dist_train.stopping import StopRequest
from dist_train.training import train
from shards.datasets import read_table
from shards.demo import cut_content
from shards.manifest import Label
from shards.plan import Settings, plan_build
from shards.writer import build

PRECISIONS = ("no", "tf32", "bf16", "fp16", "bf16, compiled")
SIZE = 224
TRAINING_IMAGES = 288  # three batches of the paper's
WARM_UP = 10  # steps of every round that are not counted
GOAL = 0.95


class Job(NamedTuple):
    """What a round of the real job took: seconds per step, the part of them spent waiting for data, GiB at most, seconds for a save."""

    step: float
    waiting: float
    peak: float
    save: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/koniq10k_resnet50.yaml"))
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--seconds", type=float, default=105, help="no other round is begun that would take longer")
    parser.add_argument("--steps", type=int, default=30, help="of each round")
    parser.add_argument("--folder", type=Path, help="where to work, for another disk (default: a temporary folder)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="more settings of the run")
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps {options.steps}: the first {WARM_UP} do not count")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        shards = make_shards(Path(name))
        configs = {
            kind: config_of(options.config, kind, Path(name) / f"run {kind}", shards, options.settings) for kind in options.precisions
        }
        if not torch.cuda.is_available() and next(iter(configs.values())).run.device != "cpu":
            sys.exit("there is no GPU here; run.device=cpu with a small model shows how this works, and nothing else")
        describe(next(iter(configs.values())), time.monotonic() - started)
        loops: dict[str, Callable[[int], float]] = {}
        bare: dict[str, list[float]] = {kind: [] for kind in configs}
        jobs: dict[str, list[Job]] = {kind: [] for kind in configs}
        for number in itertools.count(1):
            taken = 0.0
            for kind, config in configs.items():
                if number > 1 and config.run.compile:
                    continue
                begun = time.monotonic()
                fix_arithmetic(config.run.precision)
                loops[kind] = loops.get(kind) or bare_loop(config)
                bare[kind].append(loops[kind](options.steps))
                jobs[kind].append(job(config, options.steps))
                spent = time.monotonic() - begun
                taken += 0 if config.run.compile else spent
                told = f"bare {1000 * bare[kind][-1]:.1f} ms, job {1000 * jobs[kind][-1].step:.1f} ms a step"
                print(f"round {number}, {kind}: {told}; {spent:.0f} s", file=sys.stderr, flush=True)
            if time.monotonic() - started + taken > options.seconds:
                break
        report(configs, bare, jobs)
        print(f"{number} rounds of {options.steps} steps; {time.monotonic() - started:.0f} s in all")


def make_shards(folder: Path) -> Path:
    """Shards as KonIQ-10k gives them, 25 patches of 224x224 from pictures of 512x384, of shifted photographs."""
    contents = [cut_content(name) for name in ("coffee", "rocket", "astronaut")]
    with (folder / "scores.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "score", "split"])
        for number in range(TRAINING_IMAGES + 8):
            name = f"{number:04d}.jpg"
            Image.fromarray(np.roll(contents[number % 3], 37 * number, axis=1)).save(folder / name, quality=92)
            part = "train" if number < TRAINING_IMAGES else ("val", "test")[number % 2]
            table.writerow([name, number % 97, part])
    rows = read_table(folder / "scores.csv", folder, "speed", Label("number", 0.0, 100.0, True))
    build(plan_build(rows, Settings(patch_size=SIZE)), folder / "shards", 1)  # a worker would import torch first, as this file does
    return folder / "shards"


def config_of(path: Path, kind: str, folder: Path, shards: Path, settings: list[str]) -> Config:
    """The config as it is, in this precision, with random weights and an epoch that does not end."""
    precision, _, compiled = kind.partition(", ")
    own = [f"run.folder={folder}", f"data.shards={shards}", f"run.precision={precision}", f"run.compile={bool(compiled)}".lower()]
    endless = ["model.pretrained=false", "data.passes=5000", "save.every_minutes=null", "save.keep=1"]
    return load_config(path, [*own, *endless, *settings])


def describe(config: Config, seconds: float) -> None:
    device = torch.cuda.get_device_name() if on_gpu(config) else "CPU"
    batch, shown = config.train.global_batch, config.data.patches_per_image
    print(
        f"{device}, torch {torch.__version__}, {os.cpu_count()} cores; {config.model.backbone}, {batch} images x {shown} patches a step, ",
        end="",
    )
    print(
        f"{config.train.micro_batch or batch} images at a time, {loader_workers(config.data)} workers; shards made in {seconds:.0f} s",
        flush=True,
    )


def on_gpu(config: Config) -> bool:
    return config.run.device != "cpu" and torch.cuda.is_available()


def bare_loop(config: Config) -> Callable[[int], float]:
    """Takes a number of steps; returns the seconds of each that counts, in the mean."""
    device = torch.device("cuda" if on_gpu(config) else "cpu")
    model = build_model(config, SIZE, (0.0, 100.0)).to(device).to(memory_format=torch.channels_last).train()
    if config.run.compile:
        model.compile()
    adam, kind = build_adam(model, config.optim), HALF.get(config.run.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=config.run.precision == "fp16")
    number = config.train.global_batch * config.data.patches_per_image
    at_a_time = (config.train.micro_batch or config.train.global_batch) * config.data.patches_per_image
    pixels = torch.randint(0, 256, (number, SIZE, SIZE, 3), dtype=torch.uint8, device=device).movedim(-1, 1)
    opinions, chances = torch.rand(number, device=device), torch.rand(number, model.num_chances, device=device)

    def step() -> None:
        for own, wanted, drawn in zip(*(torch.split(each, at_a_time) for each in (pixels, opinions, chances)), strict=True):
            with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
                scores = model(own, drawn)
            loss = torch.nn.functional.l1_loss(scores, wanted) * (len(own) / number)
            scaler.scale(loss).backward()
        scaler.step(adam)
        scaler.update()
        adam.zero_grad()

    def loop(steps: int) -> float:
        for _ in range(WARM_UP):
            step()
        finish(device)
        begun = time.perf_counter()
        for _ in range(steps - WARM_UP):
            step()
        finish(device)
        return (time.perf_counter() - begun) / (steps - WARM_UP)

    return loop


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def job(config: Config, steps: int) -> Job:
    """A training that begins, or goes on, and is stopped after so many steps."""
    marks: list[float] = []
    waits: list[float] = []

    def step(journal: Journal, record: Mapping[str, Any], patches: int, wait: float, left: int, original: Any = Journal.step) -> None:
        original(journal, record, patches, wait, left)
        marks.append(time.perf_counter())
        waits.append(wait)
        if len(marks) == steps:
            (config.run.folder / "stop").touch()

    gc.collect()
    if on_gpu(config):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_gpu(config) else 0  # by the loops
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps the precision of a process for good
    said = io.StringIO()
    with patch.object(Journal, "step", step), redirect_stdout(said), StopRequest(config.run.folder) as request:
        train(config, request)
    assert len(marks) == steps, said.getvalue()
    seconds = marks[-1] - marks[WARM_UP - 1]
    save = [record for record in read_records(config.run.folder / "metrics.jsonl") if record["kind"] == "save"][-1]["save_seconds"]
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if on_gpu(config) else 0.0
    return Job(seconds / (steps - WARM_UP), sum(waits[WARM_UP:]) / seconds, peak, save)


def report(configs: Mapping[str, Config], bare: Mapping[str, list[float]], jobs: Mapping[str, list[Job]]) -> None:
    """Prints the medians over the rounds, and of the ratio each round's."""
    print(f"{'':<15} {'bare':>20} {'job':>20} {'':>16} {'ratio':>6} {'waiting':>8} {'peak':>9} {'save':>7}   ratio of each round")
    for kind, config in configs.items():
        batch, shown = config.train.global_batch, config.data.patches_per_image
        plain = statistics.median(bare[kind])
        step, waiting, peak, save = (statistics.median(values) for values in zip(*jobs[kind], strict=True))
        ratios = [one / other.step for one, other in zip(bare[kind], jobs[kind], strict=True)]
        speeds = f"{batch / plain:>11,.0f} images/s {batch / step:>11,.0f} images/s {batch * shown / step:>6,.0f} patches/s"
        figures = f"{statistics.median(ratios):>6.2f} {waiting:>8.1%} {peak:>5.1f} GiB {save:>5.2f} s"
        print(f"{kind:<15} {speeds} {figures}   {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    print(f"the goal for the ratio is {GOAL}")


if __name__ == "__main__":
    main()
