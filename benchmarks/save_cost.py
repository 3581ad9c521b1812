"""What a checkpoint of HyperIQA on ResNet-50 with Adam's moments costs: its parts, and the whole against one training step.

    .venv/bin/python benchmarks/save_cost.py [--config configs/koniq10k_resnet50.yaml] [--images 8] [--rounds 5] [--folder FOLDER]

The parts, done by torch, safetensors and hashlib alone: copy (convolutions lie channels last in memory and row by row in the file),
write (safetensors, into the page cache), sync (to the disk) and hash (SHA-256 of what was written, read back). A step is that of
`--images` images with 25 patches of 224x224 each, forward and backward in float32, on this machine's CPU. All run in turn, round by
round, and the figures are medians. The run's own share of time spent on saving is in its journal, and in status.json as `saving`.

Measured on 2026-11-26, 2 cores (Intel Xeon) that others used too, 5 rounds: 329 MB; copy 0.12 s, write 1.07 s, sync 0.19 s, hash 0.32 s; a
save 1.25 s, 0.74 of its parts together; a step 121 s, so a save is 0.01 steps. On a GPU a step is shorter: gpu_step.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dist_train.chances import draw_chances
from dist_train.checkpoint import Checkpoint, save_checkpoint
from dist_train.config import Config, load_config
from dist_train.model import HyperIQA
from dist_train.model_folder import build_model
from dist_train.moments import named_moments
from dist_train.optim import build_adam
from dist_train.retention import Retention
from shards.manifest import file_sha256
from shards.whole_files import sync

SIZE, PATCHES = 224, 25
PARTS = ("copy", "write", "sync", "hash")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/koniq10k_resnet50.yaml"))
    parser.add_argument("--images", type=int, default=8, help="images of a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work, for another disk (default: a temporary folder)")
    options = parser.parse_args()
    config = load_config(options.config, [])
    model = build_model(config, SIZE, (0.0, 100.0)).to(memory_format=torch.channels_last).train()
    adam = build_adam(model, config.optim)
    images = torch.randint(0, 256, (options.images, PATCHES, 3, SIZE, SIZE), dtype=torch.uint8)
    found: dict[str, list[float]] = {name: [] for name in (*PARTS, "save", "step")}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for number in range(options.rounds):
            found["step"].append(seconds(lambda: step(model, adam, images, config)))
            tensors = model.state_dict(), named_moments(adam, model)
            for part, spent in zip(PARTS, save_by_hand(Path(name), tensors), strict=True):
                found[part].append(spent)
            checkpoint = Checkpoint(*tensors, {}, {}, {"step": number})
            os.sync()
            found["save"].append(seconds(partial(save_checkpoint, Path(name) / "checkpoints", checkpoint, Retention(keep=1))))
        size = sum(file.stat().st_size for file in (Path(name) / "checkpoints").glob("step-*/*"))
    report({name: statistics.median(times) for name, times in found.items()}, size, options.images)


def step(model: HyperIQA, adam: torch.optim.Adam, images: Tensor, config: Config) -> None:
    """Forward, backward and Adam, image by image as a small machine would; the rate is Adam's own."""
    for number, image in enumerate(images):
        chances = draw_chances(config.run.seed, 0, np.array([number]), PATCHES, model.num_chances)
        model(image, chances[0]).sum().backward()
    adam.step()
    adam.zero_grad()


def save_by_hand(folder: Path, files: tuple[dict[str, Tensor], ...]) -> list[float]:
    """Seconds of each of PARTS."""
    paths = [folder / f"{number}.safetensors" for number in range(len(files))]
    copies: list[dict[str, Tensor]] = []

    def copy() -> None:
        copies.extend({name: value.detach().contiguous() for name, value in file.items()} for file in files)

    def write() -> None:
        for tensors, path in zip(copies, paths, strict=True):
            save_file(tensors, path)

    os.sync()
    spent = [
        seconds(copy),
        seconds(write),
        seconds(lambda: [sync(path) for path in paths]),
        seconds(lambda: [file_sha256(p) for p in paths]),
    ]
    for path in paths:
        path.unlink()
    return spent


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def report(found: dict[str, float], size: int, images: int) -> None:
    print(f"{size / 1e6:.0f} MB")
    for part in PARTS:
        print(f"  {part:<6}{found[part]:>7.2f} s {size / 1e6 / found[part]:>8.0f} MB/s")
    parts = sum(found[part] for part in PARTS)
    print(f"  save  {found['save']:>7.2f} s   {found['save'] / parts:.2f} of its parts, of which the hash is {found['hash'] / parts:.0%}")
    print(f"  a step of {images} images takes {found['step']:.1f} s: a save is {found['save'] / found['step']:.2f} steps")


if __name__ == "__main__":
    main()
