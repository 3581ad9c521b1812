"""Fills this node's cache with a shard folder from afar, so that a training finds every shard near."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shards.manifest import ShardError, Shards
from shards.progress import progress_bar

STREAMS = 4  # shards on their way at once: one connection seldom fills a line


def fetch(url: str) -> str:
    """Fetches all that a training on `url` reads; what was done, as a sentence. A second call fetches nothing.

    Raises ShardError as opening the folder does, and when the cache has no room for all shards: those it holds then stay.
    """
    started, fetched, refused = time.perf_counter(), 0, 0
    shards = Shards(url)
    if shards.remote is None:
        raise ShardError(f"{url}: is a folder of this machine, so there is nothing to fetch; name a URL")
    folder = shards.remote
    for name in shards.split_names():
        shards.split(name)  # so that its table comes near, and the one that numbers the parts
    for name, sha256 in (("opinions.npy", "opinions_sha256"), ("ids.npy", "ids_sha256"), ("images.csv", "images_sha256")):
        folder.copy(name, shards.manifest[sha256])

    def bring(record: dict[str, Any]) -> tuple[int, int]:
        """Bytes that were fetched, and bytes that had no room."""
        near = folder.holds(record["sha256"])
        descriptor = folder.open_shard(record)
        if descriptor is None:
            return 0, record["bytes"]
        os.close(descriptor)
        return 0 if near else record["bytes"], 0

    total = sum(record["bytes"] for record in shards.files)
    bar = progress_bar("fetch", total, unit="B", unit_scale=True)
    with bar, ThreadPoolExecutor(STREAMS) as pool:
        for record, (new, left_out) in zip(shards.files, pool.map(bring, shards.files), strict=True):
            fetched, refused = fetched + new, refused + left_out
            bar.update(record["bytes"])
    seconds = time.perf_counter() - started
    if refused:
        raise ShardError(
            f"{folder}: {refused / 1e9:,.2f} of {total / 1e9:,.2f} GB do not fit in {folder.cache.folder}; a training reads them over "
            f"the network each time. Free the disk or raise DIST_TRAIN_CACHE_GIB, and run the same command again"
        )
    return (
        f"{folder}: {total / 1e9:,.2f} GB of shards lie in {folder.cache.folder}, {fetched / 1e9:,.2f} GB of them were fetched now, "
        f"in {seconds:,.1f} s ({fetched / 1e6 / seconds:,.0f} MB/s)"
    )
