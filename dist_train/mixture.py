"""Several lines of visits in one: every global batch holds a fixed number of visits of each data set.

A set's visits follow each other in a line of its own, so order stays arithmetic: batch s holds visits [s * n, (s + 1) * n) of
the set whose share is n. The shares lie one after the other in the batch, and rank r of w takes [r::w] of it, so every rank
gets its part of every set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_train.order import MIXTURE, Batch, Order, bits


@dataclass(frozen=True)
class Mixture:
    """Lines of visits that are drawn on together; each order's global_batch is its share of the global batch."""

    orders: tuple[Order, ...]
    passes: int  # visits per epoch, in numbers of all images

    @property
    def global_batch(self) -> int:
        """Images per step, all sets and ranks together."""
        return sum(order.global_batch for order in self.orders)

    @property
    def num_images(self) -> int:
        """Training images of all sets."""
        return sum(order.num_images for order in self.orders)

    @property
    def patches_per_image(self) -> int:
        """Patches an image shows per visit."""
        return self.orders[0].patches_per_image

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in as many visits as `passes` of all images; at least one."""
        return max(1, self.passes * self.num_images // self.global_batch)

    def batch(self, step: int) -> Batch:
        """The global batch of `step`; images are numbered over the training images of all sets, the first set's first."""
        parts, first = [], 0
        for order in self.orders:
            parts.append((order.batch(step), first))
            first += order.num_images
        return Batch(
            np.concatenate([batch.images + first for batch, first in parts]),
            np.concatenate([batch.patches for batch, _ in parts]),
            np.concatenate([batch.flips for batch, _ in parts]),
        )


def seed_of_set(seed: int, number: int) -> int:
    """A seed for set `number`'s own line; the first set keeps the run's."""
    return seed if number == 0 else int(bits(seed, MIXTURE, number))


def shares_of(weights: Sequence[float], global_batch: int) -> list[int]:
    """`global_batch` images dealt out in proportion to `weights`, by the largest remainders, and at least one to each.

    Raises ValueError when there are more sets than images.
    """
    if len(weights) > global_batch:
        raise ValueError(f"{len(weights)} sets do not fit into a batch of {global_batch}")
    rest = global_batch - len(weights)
    exact = [max(0.0, weight / sum(weights) * global_batch - 1) for weight in weights]
    exact = [value * rest / sum(exact) for value in exact] if sum(exact) else [rest / len(weights)] * len(weights)
    shares = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda k: (shares[k] - exact[k], k))
    for k in by_remainder[: rest - sum(shares)]:
        shares[k] += 1
    return [share + 1 for share in shares]
