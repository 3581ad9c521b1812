"""The only file that speaks to other processes: agree, announce, add up, gather, and end together.

All but rank, world, is_first, backstop, claim_failure and lost_a_process are collectives, to be called by all ranks
in the same order, and do the obvious thing when there is one process. Control messages (agree, announce, gather_first) travel over
gloo on the CPU, so they never wait for a GPU.

When a rank fails, the others must not wait for it for ever. The first rank to fail claims that in a key-value store, which
is atomic, and a thread in every other process watches for the claim and ends the process, even while its main thread is
stuck in a collective. A rank that merely lost its peers waits before it claims, so that the true cause is the one reported.
A rank that neither comes nor fails is found out by its heartbeat: who has waited for too long claims the failure for it.
So does a process that runs alone, and waits for its disk or for a loader worker.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from dist_train.errors import ConfigError, LostProcessError, TrainingError
from dist_train.flight_recorder import leave_collectives
from dist_train.heartbeat import PULSE, Beat, complain_once, meeting, why_nothing_moves
from dist_train.last_words import say_last
from shards.manifest import ShardError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # how long a rank may be waited for: longer than the slowest may lag behind, shorter than a coffee
_TICK = 0.5  # seconds between two looks at what has become of the others
_BEAT_TICKS = 4  # looks between two heartbeats
_MAY_HAVE_LOST_A_PEER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)
_LOST_A_PROCESS = re.compile(  # what gloo says when it opens its device, as of an interface that is not there, is no loss
    r"\bgloo/.*(closed|closure|reset|refused|time(d )?out)|connection (closed|reset|refused)|broken pipe|ncclRemoteError|remote process",
    re.IGNORECASE | re.DOTALL,
)
_GRACE = 3.0  # seconds in which a rank may end by itself, or the launcher may end it, once another has failed
ALIKE = 10.0  # the same before the ranks are connected: they fail alike, but a busy machine does not start them alike
_LAST_RESORT = 30.0  # seconds after which a rank that waits in vain, and cannot say for whom, ends all the same
_IDLE = 0.1  # of the time: a process that computes for less of it waits for something
_NOT_MET = "(the processes have not met)"  # by which slurm/train.sh and launch/elastic.sh know what a lost host may be the cause of
_LAUNCHER_ANSWERS = 5.0  # seconds, of which TCPStore takes two turns; one that lives answers at once: its store is older than this process


class _Link:
    """What this process holds of the connection; one per process, as torch.distributed itself is."""

    control: Any = None  # a gloo process group
    store: TCPStore | None = None
    roll: TCPStore | None = None  # where all said that they have come; on rank 0 it keeps the others' store where no launcher does
    leaving = threading.Event()
    is_cause: bool | None = None  # once this rank has failed: whether its error was the first
    is_ending = False  # its loader workers have been killed, and it follows them
    record: Callable[[Exception], None] | None = None
    stood_still = 0.0  # seconds at one and the same thing; only those in which this process was running


def backstop(patience: timedelta) -> timedelta:
    """The time-out of the collectives themselves, for the case that the watch, which can say who is missing, has failed."""
    return 2 * patience


@contextmanager
def joining(patience: timedelta) -> Iterator[None]:
    """Around what joins the processes that the launcher's variables name. First all of them come to the key-value store.

    Raises TrainingError that names those who have not come within `patience`, and where the others are; or the launcher, which keeps
    the store where torchrun or accelerate started this process, or else rank 0, when it has gone since.
    """
    wanted, kept_by_launcher = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if "MASTER_ADDR" in os.environ and (wanted > 1 or kept_by_launcher):
        _call_the_roll(wanted, kept_by_launcher, patience)
    try:
        yield
    except dist.DistError as error:
        raise TrainingError(
            f"the processes have all started, but do not reach each other ({str(error).splitlines()[0]}); see that the nodes reach each "
            f"other on every port, and which interface they use (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME) {_NOT_MET}"
        ) from error


def _call_the_roll(wanted: int, kept_by_launcher: bool, patience: timedelta) -> None:
    host, port, own = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), int(os.environ["RANK"])
    answers = timedelta(seconds=_LAUNCHER_ANSWERS) if kept_by_launcher else patience / 2  # TCPStore takes two turns
    roll = f"dist_train/roll/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    is_keeper = own == 0 and not kept_by_launcher  # what joins the processes finds this store in its process, and takes it
    no_launcher = TrainingError(
        f"the launcher does not answer at {host}:{port}: it was ended while this process was starting, or the network is down; "
        f"give the command again {_NOT_MET}"
    )
    try:
        store = TCPStore(host, port, is_master=is_keeper, wait_for_workers=False, multi_tenant=True, timeout=answers)
    except dist.DistError as error:
        if kept_by_launcher:
            raise no_launcher from error
        if is_keeper:
            raise TrainingError(f"{host}:{port} cannot be opened ({str(error).splitlines()[0]}); name another MASTER_PORT") from error
        raise _not_all_have_come(wanted, patience, "rank 0, which opens it, has not") from error
    _Link.roll, began = store, time.monotonic()
    try:
        store.set(f"{roll}/{own}", os.uname().nodename)
        if store.add(f"{roll}/number", 1) >= wanted:
            store.set(f"{roll}/all", "")
        store.wait([f"{roll}/all"], patience)
    except RuntimeError as error:
        try:
            names = [store.get(key).decode() if store.check([key]) else None for key in (f"{roll}/{number}" for number in range(wanted))]
        except RuntimeError:
            if kept_by_launcher:
                raise no_launcher from error
            raise TrainingError(
                f"rank 0, which kept the key-value store at {host}:{port}, has gone {time.monotonic() - began:.0f} s after this process "
                f"came, before all of {wanted} had; see what it has said last {_NOT_MET}"
            ) from error
        missing = ", ".join(str(number) for number, name in enumerate(names) if name is None)
        if missing:  # or the last has come at this very moment
            raise _not_all_have_come(wanted, patience, f"rank {missing} has not; {_who_is_where(names)}") from error


def _who_is_where(names: Sequence[str | None]) -> str:
    """The ranks that have come, by the hosts that they named."""
    there: dict[str, list[str]] = {}
    for number, name in enumerate(names):
        if name is not None:
            there.setdefault(name, []).append(str(number))
    return "; ".join(f"here are {', '.join(numbers)} on {name}" for name, numbers in there.items())


def _not_all_have_come(wanted: int, patience: timedelta, who: str) -> TrainingError:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return TrainingError(
        f"not all of {wanted} processes have come to {where} within {patience.total_seconds():g} s: {who}; "
        f"see on which node the log is silent, and whether it reaches that port {_NOT_MET}"
    )


def connect(patience: timedelta = TIMEOUT, record: Callable[[Exception], None] | None = None) -> None:
    """Opens the control channel and begins to watch the others, and this process. Call it once the process group stands.

    Where nothing has moved for `patience`, the run ends: the first rank to notice hands `record` a TrainingError that says who is
    missing, and says it last.
    """
    _Link.leaving.set()  # of a run before, in this process
    _Link.record, _Link.leaving, _Link.stood_still = record, threading.Event(), 0.0
    seconds = patience.total_seconds()
    if world() > 1:
        _Link.control = dist.new_group(backend="gloo", timeout=backstop(patience))
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        _Link.store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))
        own_store = TCPStore(host, port, is_master=False, wait_for_workers=False)
        threading.Thread(target=_watch, args=(own_store, seconds), daemon=True).start()
    threading.Thread(target=_count_standing_still, args=(seconds, _Link.leaving), daemon=True).start()


def disconnect() -> None:
    """Waits for all, then leaves: the last call of a run that ended well."""
    if world() > 1:
        with meeting("the end"):
            dist.barrier(_Link.control)
    _Link.leaving.set()
    if world() > 1:
        dist.destroy_process_group()
        _Link.control = _Link.store = _Link.roll = None


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
    with meeting("agreeing"):
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=_Link.control)
    return [bool(vote) for vote in votes.tolist()]


def announce(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world() == 1:
        return value
    box = [value]
    with meeting("hearing what rank 0 says"):
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
    with meeting("gathering at rank 0"):
        dist.gather_object(value, box, dst=0, group=_Link.control)
    return box or []


def gather_visits(share: torch.Tensor) -> torch.Tensor:
    """The global batch [visits, ...] from the ranks' shares [visits / world, ...], on every rank, without gradient.

    A share is [rank::world] of the batch, so the shares are laid back in between each other.
    """
    if world() == 1:
        return share.detach()
    shares = [torch.empty_like(share) for _ in range(world())]
    with meeting("gathering the scores"):
        dist.all_gather(shares, share.detach().contiguous())
    return torch.stack(shares, dim=1).flatten(0, 1)


def share_buffers(module: torch.nn.Module) -> None:
    """Gives rank 0's buffers, such as BatchNorm's running statistics, to every rank."""
    if world() > 1:
        with meeting("sharing BatchNorm's statistics"):
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # a GPU is waited for where it was asked, and not in what comes after


def join(patience: float) -> None:
    """Brings together the processes that the launcher's variables name, over gloo alone: one whose GPU is broken can then say so.

    Raises TrainingError when they have not all come within `patience` seconds.
    """
    limit = timedelta(seconds=patience)
    with joining(limit):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group("gloo", timeout=limit)
    connect()


def time_all_reduces(wanted: Sequence[tuple[int, int]], device: torch.device) -> list[list[float]]:
    """For each (size, repeats), the seconds that so many sums of `size` float32 over all ranks take, as DDP sums gradients there."""
    group: Any = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    found = []
    for size, repeats in wanted:
        buffer, taken = torch.zeros(size, device=device), []
        for _ in range(1 + repeats):  # the first one also opens the connections
            dist.barrier(_Link.control)
            started = time.perf_counter()
            dist.all_reduce(buffer, group=group)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - started)
        found.append(taken[1:])
    return found


def compare_clocks(round_trips: int = 20) -> list[tuple[float, float]]:
    """By how many seconds each rank's clock is ahead of rank 0's, and how sure that is, on rank 0; an empty list on the others.

    Of several round trips the shortest counts: the other clock was read somewhere within it, so half of it bounds the error
    (Cristian, "Probabilistic clock synchronization", Distributed Computing 3, 1989).
    """
    reply, found = torch.zeros(1, dtype=torch.float64), [(0.0, 0.0)]
    for other in range(1, world()):
        trips = []
        for _ in range(round_trips if rank() in (0, other) else 0):
            if is_first():
                sent = time.time()
                dist.send(reply, other, group=_Link.control)
                dist.recv(reply, other, group=_Link.control)
                half = (time.time() - sent) / 2
                trips.append((half, float(reply) - sent - half))
            else:
                dist.recv(reply, 0, group=_Link.control)
                dist.send(torch.tensor([time.time()], dtype=torch.float64), 0, group=_Link.control)
        if trips:
            half, ahead = min(trips)
            found.append((ahead, half))
    return found if is_first() else []


def claim_failure(error: BaseException) -> bool:
    """Tells the others that this rank has failed; true when it is the first, whose error is the cause.

    A lost connection is seldom the cause: such a rank waits for the launcher, or for a claim, before it speaks up. Before the
    ranks are connected they mostly fail alike, so all but rank 0 wait for the launcher to end them.
    """
    if _Link.is_ending:
        threading.Event().wait()  # for the end: the error is that its loader workers have been killed
    if _Link.is_cause is not None:
        return _Link.is_cause
    if _Link.store is None:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(ALIKE)
        _Link.is_cause = True
        return True
    if _MAY_HAVE_LOST_A_PEER.search(f"{type(error).__name__}: {error}"):
        time.sleep(_GRACE)
    unheard = threading.Timer(2 * _GRACE, _end, [f"{error} (and the key-value store does not answer)"])  # then nobody claims
    unheard.daemon = True
    unheard.start()
    try:
        first = bool(_Link.store.add(_failure_key() + "/claims", 1) == 1)
        if first:
            _Link.store.set(_failure_key(), f"rank {rank()}: {error}")
    except RuntimeError:  # the store went with its owner: this rank is not the first to end
        first = False
    unheard.cancel()
    _Link.is_cause = first
    return first


def lost_a_process(error: BaseException) -> bool:
    """Whether all that this error says is that another process or a host is gone, or silent: the run can go on without.

    Another one of ours says more, whatever it quotes.
    """
    ours = isinstance(error, ConfigError | ShardError | TrainingError)
    said = f"{type(error).__name__}: {error}"
    return isinstance(error, LostProcessError) or (not ours and _LOST_A_PROCESS.search(said) is not None)


def _failure_key() -> str:
    return f"dist_train/failure/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _beat_key(of_rank: int) -> str:
    return f"{_failure_key()}/beat/{of_rank}"


def _watch(store: TCPStore, patience: float) -> None:
    """Tells the others what this rank does, and ends this process soon after another has failed, or was waited for in vain."""
    for tick in itertools.count():
        if _Link.leaving.wait(_TICK):
            return
        cause = None
        try:
            cause = "another rank has failed" if store.check([_failure_key()]) else None
            if tick % _BEAT_TICKS == 0:
                store.set(_beat_key(rank()), PULSE.beat(rank()).to_json())
            if cause is None and _Link.stood_still > patience:
                _give_up(store)
        except RuntimeError:
            cause = "the launcher, or the rank that kept the key-value store, is gone"
        except Exception as error:  # a mistake in telling must neither blind this rank nor be hidden
            complain_once("this rank still watches the others, but could not tell of itself or of them", error)
        if cause and not _Link.leaving.wait(2 * _GRACE):
            _end(cause)


def _give_up(store: TCPStore) -> None:
    """Ends the run because somebody is missing, who is named; unless they come in the last moment."""
    changes, waited = PULSE.changes, _Link.stood_still
    before = _beats(store)
    for _ in range(2):  # beats of this rank itself, too, so that those who give up at the same moment do not call each other silent
        store.set(_beat_key(rank()), PULSE.beat(rank()).to_json())
        if _Link.leaving.wait(1.5 * _BEAT_TICKS * _TICK):
            return
    own, now = PULSE.beat(rank()), _beats(store)
    if PULSE.changes == changes:
        _end_all(LostProcessError(why_nothing_moves(own, waited, before, now)))


def _end_all(error: TrainingError) -> None:
    """Ends this process for that, and with it the run, unless another has failed first: then its claim will end this one."""
    if claim_failure(error):
        unwritten = threading.Timer(_LAST_RESORT, _end, [f"{error} (and the run folder does not answer, so this does not stand there)"])
        unwritten.daemon = True
        unwritten.start()
        try:
            _say_why(error)
        finally:
            _exit()


def _say_why(error: TrainingError) -> None:
    try:
        if _Link.record is not None:
            _Link.record(error)
    except Exception as fault:  # a full disk, say, must not hide the cause
        complain_once("this failure could not be written into the run folder", fault)
    say_last(error, f"error: {error}")


def _beats(store: TCPStore) -> list[Beat | None]:
    """What each rank has said last; None of one that has not spoken."""
    keys = [_beat_key(number) for number in range(world())]
    return [Beat.from_json(store.get(key)) if store.check([key]) else None for key in keys]


def _count_standing_still(patience: float, leaving: threading.Event) -> None:
    """Counts how long this process has been at one thing; ends one that is alone, and is the last resort of one whose watch has no answer.

    It counts its own looks, not what clocks say: a job that was suspended as a whole has waited for nobody meanwhile. Nor has a
    process that is alone and computes, however slow the machine; a GPU is waited for as busily as others compute.
    """
    changes, used, alone_on_a_cpu = -1, time.process_time(), world() == 1 and not torch.cuda.is_available()
    while not leaving.wait(_TICK):
        before, used = used, time.process_time()
        computes = alone_on_a_cpu and used - before > _IDLE * _TICK
        stands = PULSE.is_busy and PULSE.changes == changes and not computes
        changes, _Link.stood_still = PULSE.changes, _Link.stood_still + _TICK if stands else 0.0
        if world() == 1 and _Link.stood_still > patience:
            own = PULSE.beat(rank())
            _end_all(LostProcessError(why_nothing_moves(own, _Link.stood_still, [own], [own])))
        if _Link.stood_still > patience + _LAST_RESORT:
            own = PULSE.beat(rank())
            _end(
                f"{own} has been at this for {_Link.stood_still:.0f} s: {own.doing}; and who is missing cannot be said, because the "
                f"key-value store on {os.environ['MASTER_ADDR']}, kept by the launcher or by rank 0 there, does not answer"
            )


def _end(why: str) -> None:
    try:
        print(f"rank {rank()} ends: {why}", file=sys.stderr, flush=True)
    finally:  # whatever became of the terminal
        _exit()


def _exit() -> None:
    """Ends this process from any of its threads, and its loader workers, of which one may be stopped and would stay.

    What it waited for on a GPU, it leaves in the run folder; last, for that may end this process.
    """
    try:
        _Link.is_ending = True
        for child in multiprocessing.active_children():
            child.kill()
        if torch.cuda.is_available():
            with suppress(Exception):
                leave_collectives(rank())
    finally:
        os._exit(1)
