"""How far a command is, shown while it works; of a build images, images/s, MB/s, the time left, and which shard.

Workers count in shared memory, each in a place of its own, so that a worker costs nothing by it and one that is killed
holds no lock.
"""

from __future__ import annotations

import multiprocessing
import sys
from time import monotonic
from types import TracebackType
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 60.0  # between two lines in a file or a pipe: that of a job of days is read by people, too


def progress_bar(title: str, total: int, over: Any = None, **more: Any) -> tqdm[Any]:
    """A bar on stderr, over the items of `over` where there is something to go through; ten times a second on a terminal."""
    between = 0.1 if sys.stderr.isatty() else LOG_SECONDS
    options: dict[str, Any] = {"unit": " images", "dynamic_ncols": True, "mininterval": between, "maxinterval": max(10, between)}
    bar: tqdm[Any] = tqdm(over, desc=title, total=total, **options | more)
    return bar


class Progress:
    """A bar on stderr over `images`, of which `done` are there already. MB are 10^6 bytes of pixels, before a codec."""

    def __init__(self, images: int, done: int) -> None:
        # smoothing 0: the rates and the time left are means of this run; single images differ too much for less
        self._bar = progress_bar("shards", images, initial=done, smoothing=0)
        self._done, self._images, self._bytes, self._shard, self._start = done, 0, 0, "", monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def begin(self, shard: str) -> None:
        """Says which shard is begun."""
        self._shard = shard

    def reach(self, images: int, pixel_bytes: int) -> None:
        """Moves the bar to what this run has done so far."""
        self._images, self._bytes = images, pixel_bytes
        seconds = monotonic() - self._start
        self._bar.set_postfix_str(f"{pixel_bytes / 1e6 / max(seconds, 1e-3):.1f} MB/s, {self._shard}", refresh=False)
        self._bar.update(self._done + images - self._bar.n)

    def add(self, images: int, pixel_bytes: int) -> None:
        """Moves the bar by so much."""
        self.reach(self._images + images, self._bytes + pixel_bytes)


class Counts:
    """Images and bytes that several processes have done: each has a place, which it alone writes."""

    def __init__(self, places: int) -> None:
        self._numbers = multiprocessing.get_context("spawn").RawArray("q", 2 * places)

    def add(self, place: int, pixel_bytes: int) -> None:
        """Counts one more image in `place`."""
        self._numbers[2 * place] += 1
        self._numbers[2 * place + 1] += pixel_bytes

    def total(self) -> tuple[int, int]:
        """Images and bytes of all places together."""
        return sum(self._numbers[::2]), sum(self._numbers[1::2])
