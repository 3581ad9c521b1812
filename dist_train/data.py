"""Visits in, batches of pixels out, through a webdataset pipeline.

The first stage reads exactly the patches that the order asks for, at their offset in the shard, and verifies them; the
stages after it are webdataset's own. With K loader workers, worker k prepares every K-th step, and the loader takes the
workers' batches in turn, so the batches come in the same order for any number of workers.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from dist_train.collection import Collection
from dist_train.config import Data
from dist_train.heartbeat import doing
from dist_train.living import LivingContext, refuse_long_temporary_folder
from dist_train.mixture import Mixture
from dist_train.order import Batch, Order
from shards.manifest import ShardError, Shards

NOT_READING = -1  # where there might be the number of an image


class PatchBatch(NamedTuple):
    """The patches of some images.

    images: int64 [n], their numbers. pixels: uint8 [n, patches, 3, size, size], stored channels last.
    """

    images: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class TrainingVisits:
    """One rank's share of the global batches. `numbers` are the training images as the pictures number them."""

    order: Order | Mixture
    numbers: np.ndarray
    mirror: bool
    rank: int
    world: int

    def at(self, step: int) -> Batch:
        share = self.order.batch(step).share(self.rank, self.world)
        return Batch(self.numbers[share.images], share.patches, share.flips & self.mirror)


@dataclass(frozen=True)
class EvaluationVisits:
    """Every image once, all its patches, in batches that do not depend on the number of ranks.

    The batches, not the images, are dealt to the ranks: whoever scores a batch, it is the same batch, so the same scores.
    """

    numbers: np.ndarray
    patches: int
    batch_images: int
    rank: int
    world: int

    def __len__(self) -> int:
        return len(range(self.rank * self.batch_images, len(self.numbers), self.world * self.batch_images))

    def at(self, step: int) -> Batch:
        first = (step * self.world + self.rank) * self.batch_images
        images = self.numbers[first : first + self.batch_images]
        shape = (len(images), self.patches)
        return Batch(images, np.broadcast_to(np.arange(self.patches), shape), np.zeros(shape, bool))


@dataclass(frozen=True)
class PatchReader:
    """The first stage of the pipeline: steps `first` to `last` (exclusive), read image by image.

    Each worker leaves the number of the image that it is at in its place of `bookmarks`, or NOT_READING.
    """

    pictures: Collection | Shards
    visits: TrainingVisits | EvaluationVisits
    first: int
    last: int
    bookmarks: MutableSequence[int] | None = None

    def __call__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.first + number, self.last, workers):
            batch = self.visits.at(step)
            for image, patches, flips in zip(batch.images, batch.patches, batch.flips, strict=True):
                self._leave_bookmark(number, int(image))
                pixels = self.pictures.read_patches(int(image), patches.tolist())
                self._leave_bookmark(number, NOT_READING)
                yield {
                    "__key__": f"{step}-{image}",
                    "image": int(image),
                    "pixels": pixels,
                    "flips": flips,
                }

    def _leave_bookmark(self, worker: int, image: int) -> None:
        if self.bookmarks is not None:
            self.bookmarks[worker] = image


def loader_workers(data: Data) -> int:
    """How many loader processes a rank has: as many as the config says, or by the cores that are its own."""
    if data.workers is not None:
        return data.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # said by every launcher of several
    return max(1, min(4, share // 2))


def patch_batches(reader: PatchReader, batch_images: int, workers: int, pin_memory: bool = False) -> Iterator[PatchBatch]:
    """The reader's steps in order, `batch_images` images a step (fewer in the last one where they run out)."""
    if workers:
        refuse_long_temporary_folder()
    reading = multiprocessing.get_context("fork").RawArray("q", [NOT_READING] * max(1, workers))  # in memory that workers share
    reader = replace(reader, bookmarks=reading)
    pipeline = wds.DataPipeline(reader, wds.map(_mirrored), wds.batched(batch_images, collation_fn=_collated, partial=True))
    context = LivingContext() if workers else None
    loader = DataLoader(
        pipeline,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_rank,
        pin_memory=pin_memory,
        multiprocessing_context=context,
    )
    heard = signal.getsignal(signal.SIGCHLD)
    with doing("starting loader workers"):
        batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # torch would hear of the end of a worker by this signal, and raise wherever this process is just then: perhaps in writing down why
        # the run fails, for that very reason. A worker that is waited for is missed all the same.
        signal.signal(signal.SIGCHLD, heard if callable(heard) else signal.SIG_DFL)  # where ends are ignored, no exit code is left
    _end_workers_at_exit()
    try:
        while True:
            with doing("waiting for a batch", partial(_where, reader.pictures, reading)):
                batch = _next(batches, context)
            if batch is None:
                return
            yield batch
    except ShardError as error:  # a worker's comes wrapped in its traceback
        raise ShardError(str(error).rpartition("ShardError: ")[2].strip()) from None


def _next(batches: Iterator[PatchBatch], context: LivingContext | None) -> PatchBatch | None:
    """The next batch, or None after the last; raises what tells of a worker that is gone in place of what torch says then."""
    try:
        return next(batches, None)
    except (RuntimeError, OSError, EOFError):
        if context is not None:
            context.refuse_lost_workers()
        raise


def _where(pictures: Collection | Shards, bookmarks: Sequence[int]) -> str:
    """Where the workers are, for whoever wonders what a rank waits for."""
    at = [f"worker {worker} reads {pictures.place_of(image)}" for worker, image in enumerate(bookmarks) if image != NOT_READING]
    return ", ".join(at) or "no worker reads"


@cache
def _end_workers_at_exit() -> None:
    """Workers ignore SIGTERM, with which multiprocessing ends its children at exit before it waits for them, for ever."""

    def end_workers() -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    atexit.register(end_workers)


def _mirrored(sample: dict[str, Any]) -> dict[str, Any]:
    """Patches whose flip is set, read right to left."""
    flips = sample.pop("flips")
    if flips.any():
        sample["pixels"] = np.where(flips[:, None, None, None], sample["pixels"][:, :, ::-1], sample["pixels"])
    return sample


def _collated(samples: list[dict[str, Any]]) -> PatchBatch:
    pixels = torch.from_numpy(np.stack([sample["pixels"] for sample in samples]))
    return PatchBatch(torch.tensor([sample["image"] for sample in samples]), pixels.movedim(-1, 2))


def _leave_signals_to_the_rank(_: int) -> None:
    """Slurm and Ctrl-C signal every process, loader workers too; only the rank decides when to stop, and ends its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
