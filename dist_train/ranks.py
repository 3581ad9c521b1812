"""The only file that speaks to other processes: agree, announce, add up, gather, and end together.

All but rank, world, is_first and claim_failure are collectives, to be called by all ranks in the same order, and do the obvious
thing when there is one process. Control messages (agree, announce, gather_first) travel over gloo on the CPU, so they never wait for a GPU.

When a rank fails, the others must not wait for it for ever. The first rank to fail claims that in a key-value store, which
is atomic, and a thread in every other process watches for the claim and ends the process, even while its main thread is
stuck in a collective. A rank that merely lost its peers waits before it claims, so that the true cause is the one reported.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # for any collective: longer than the slowest rank may lag behind, shorter than a coffee
_LOST_A_PEER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
_GRACE = 3.0  # seconds in which a rank may end by itself, or the launcher may end it, once another has failed


class _Link:
    """What this process holds of the connection; one per process, as torch.distributed itself is."""

    control: Any = None  # a gloo process group
    store: TCPStore | None = None
    leaving = threading.Event()
    is_cause: bool | None = None  # once this rank has failed: whether its error was the first


def connect() -> None:
    """Opens the control channel and begins to watch the others. Call it once the process group stands."""
    if world() == 1:
        return
    _Link.control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    _Link.store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))
    _Link.leaving.clear()
    threading.Thread(target=_watch, args=(TCPStore(host, port, is_master=False, wait_for_workers=False),), daemon=True).start()


def disconnect() -> None:
    """Waits for all, then leaves: the last call of a run that ended well."""
    if world() == 1:
        return
    dist.barrier(_Link.control)
    _Link.leaving.set()
    dist.destroy_process_group()
    _Link.control = _Link.store = None


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is rank 0, which writes and decides."""
    return rank() == 0


def agree(flag: bool) -> bool:
    """True on every rank as soon as it is true on one."""
    return agree_each([flag])[0]


def agree_each(flags: Sequence[bool]) -> list[bool]:
    """Several flags at once, each true on every rank as soon as it is true on one."""
    if world() == 1:
        return list(flags)
    votes = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(votes, dist.ReduceOp.MAX, group=_Link.control)
    return [bool(vote) for vote in votes.tolist()]


def announce(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_Link.control)
    result: T = box[0]
    return result


def first_does(work: Callable[[], T]) -> T:
    """Runs `work` on rank 0 alone and gives its result to all; what it raises there is raised on every rank."""
    result: Any = None
    failure: Exception | None = None
    if is_first():
        try:
            result = work()
        except Exception as error:
            failure = error
            claim_failure(error)  # here is the traceback; the others only hear of it
    result, failure = announce((result, failure))
    if failure is not None:
        raise failure
    done: T = result
    return done


def gather_first(value: T) -> list[T]:
    """Every rank's value on rank 0, in rank order; an empty list on the others."""
    if world() == 1:
        return [value]
    box: list[Any] | None = [None] * world() if is_first() else None
    dist.gather_object(value, box, dst=0, group=_Link.control)
    return box or []


def gather_visits(share: torch.Tensor) -> torch.Tensor:
    """The global batch [visits, ...] from the ranks' shares [visits / world, ...], on every rank, without gradient.

    A share is [rank::world] of the batch, so the shares are laid back in between each other.
    """
    if world() == 1:
        return share.detach()
    shares = [torch.empty_like(share) for _ in range(world())]
    dist.all_gather(shares, share.detach().contiguous())
    return torch.stack(shares, dim=1).flatten(0, 1)


def share_buffers(module: torch.nn.Module) -> None:
    """Gives rank 0's buffers, such as BatchNorm's running statistics, to every rank."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def claim_failure(error: BaseException) -> bool:
    """Tells the others that this rank has failed; true when it is the first, whose error is the cause.

    A lost connection is seldom the cause: such a rank waits for the launcher, or for a claim, before it speaks up. Before the
    ranks are connected they mostly fail alike, so all but rank 0 wait for the launcher to end them.
    """
    if _Link.is_cause is not None:
        return _Link.is_cause
    if _Link.store is None:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_GRACE)
        _Link.is_cause = True
        return True
    if lost_a_peer(error):
        time.sleep(_GRACE)
    try:
        first = bool(_Link.store.add(_failure_key() + "/claims", 1) == 1)
        if first:
            _Link.store.set(_failure_key(), f"rank {rank()}: {error}")
    except RuntimeError:  # the store went with its owner: this rank is not the first to end
        first = False
    _Link.is_cause = first
    return first


def lost_a_peer(error: BaseException) -> bool:
    """Whether all that this error says is that another process, or its host, is gone."""
    return bool(_LOST_A_PEER.search(f"{type(error).__name__}: {error}"))


def _failure_key() -> str:
    return f"dist_train/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _watch(store: TCPStore) -> None:
    """Ends this process soon after another rank has failed, whatever its main thread is doing."""
    while not _Link.leaving.wait(0.5):
        try:
            cause = "another rank has failed" if store.check([_failure_key()]) else None
        except RuntimeError:
            cause = "the launcher, or the rank that kept the key-value store, is gone"
        if cause and not _Link.leaving.wait(2 * _GRACE):
            print(f"rank {rank()} ends: {cause}", file=sys.stderr, flush=True)
            os._exit(1)
