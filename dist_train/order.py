"""Which patches of which images, at every step, on every rank: arithmetic on integers. No torch, no files.

The training images are visited in passes. Pass p is a permutation of all images, and in it each image shows the next
`patches_per_image` of its stored patches. The passes follow each other in one endless line of visits, and global batch
s is visits [s * B, (s + 1) * B). Rank r of w takes [r::w] of a batch. So every rank has the same number of steps, the
global batches do not depend on the number of ranks or loader workers, a run resumes from one integer, and no visit is
padded, dropped or repeated: what does not fill the last batch of an epoch opens the next one.

Random bits come from SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014),
a fixed formula, because no library promises that its shuffle stays the same between versions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

TURNS = 12  # of the two digits of a place; with 8, pairs of visits in sets of a few images were still seen to be unequally frequent
SHUFFLE, FLIP, DROPOUT, MIXTURE, SAMPLE = 1, 2, 3, 4, 5  # what bits are used for: each use draws from a stream of its own

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Order:
    """The line of visits of one run.

    Attributes:
        seed: of the run.
        num_images: training images, numbered from 0.
        stored_patches: patches stored per image.
        patches_per_image: patches an image shows per visit; at most `stored_patches`.
        passes: visits of each image per epoch.
        global_batch: images per step, all ranks together.
    """

    seed: int
    num_images: int
    stored_patches: int
    patches_per_image: int
    passes: int
    global_batch: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in `passes` visits of every image; at least one."""
        return max(1, self.passes * self.num_images // self.global_batch)

    def batch(self, step: int) -> Batch:
        """The global batch of step `step`, counted from 0 over the whole run."""
        return self.visits(step * self.global_batch, (step + 1) * self.global_batch)

    def visits(self, first: int, last: int) -> Batch:
        """The visits `first` to `last` (exclusive) of the line, counted from 0 over the whole run."""
        visits = np.arange(first, last)
        passes, places = np.divmod(visits, self.num_images)
        images = np.empty_like(visits)
        for number in np.unique(passes):
            here = passes == number
            images[here] = images_at(places[here], self.seed, int(number), self.num_images)
        shown = passes * self.patches_per_image
        patches = (shown[:, None] + np.arange(self.patches_per_image)) % self.stored_patches
        flips = bits(self.seed, FLIP, visits[:, None] * self.patches_per_image + np.arange(self.patches_per_image)) >> np.uint64(63)
        return Batch(images, patches, flips.astype(bool))


@dataclass(frozen=True)
class Batch:
    """Some visits: image numbers [n], patch numbers [n, patches_per_image], and whether each patch is mirrored."""

    images: np.ndarray
    patches: np.ndarray
    flips: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def share(self, rank: int, world: int) -> Batch:
        """The visits of one rank: [rank::world]."""
        return Batch(self.images[rank::world], self.patches[rank::world], self.flips[rank::world])


def images_at(places: np.ndarray, seed: int, number: int, length: int) -> np.ndarray:
    """The images that pass `number` visits at `places`, int64: over all places, a permutation of range(length).

    Computed place by place, so that no process holds, or waits for, an order of ten million images. A place is written as
    two digits, and in every round one digit is turned by a hash of the other: the generalised Feistel cipher of Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, which for any `length` leads outside of it now and then,
    and is then applied again until it comes back.
    """
    high = math.isqrt(length - 1) + 1
    low = -(-length // high)
    images = np.asarray(places, np.uint64)
    outside = np.arange(len(images))
    while len(outside):
        digits = [*np.divmod(images[outside], np.uint64(low))]
        for turn in range(TURNS):
            turned, base = turn % 2, np.uint64((high, low)[turn % 2])
            drawn = bits(seed, SHUFFLE, digits[1 - turned], number * TURNS + turn) >> np.uint64(32)
            digit = digits[turned] + (drawn * base >> np.uint64(32))
            digits[turned] = np.minimum(digit, digit - base)  # modulo the base: below zero wraps to the largest numbers there are
        images[outside] = digits[0] * np.uint64(low) + digits[1]
        outside = outside[images[outside] >= length]
    return images.astype(np.int64)


def bits(seed: int, use: int, counters: np.ndarray | int, stream: int = 0) -> np.ndarray:
    """64 random bits per counter: uint64 of the shape of `counters`, the same on every machine."""
    with np.errstate(over="ignore"):
        drawn: np.ndarray = _mix(_start(seed, use, stream) + np.asarray(counters).astype(np.uint64) * _GOLDEN)
    return drawn


@lru_cache(maxsize=256)
def _start(seed: int, use: int, stream: int) -> np.ndarray:
    start = np.zeros((), np.uint64)
    for word in (seed, use, stream):
        start = _mix(start ^ np.uint64(word % 2**64))
    return start


def _mix(z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = np.asarray(z, np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
