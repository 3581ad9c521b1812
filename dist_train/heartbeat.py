"""What every rank is doing, so that whoever waits in vain can say for whom.

A rank keeps note of what it does, and of how many meetings it has come to: everything that needs all ranks is a meeting, from
an all-reduce to a vote. ranks.py tells the others, a beat every few seconds. All ranks come to the same meetings in the same
order, so whoever has come to fewer than one that waits is missing; and where nobody is, whoever is silent: a process that was
stopped, a machine that is gone.

Nothing that goes wrong in telling of an act may harm who tells: an error, or a disk that does not answer, becomes part of the beat.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from threading import Thread

from shards.remote import redacted

_ANSWERS_WITHIN = 1.0  # seconds; what an act is at is known at once, unless it must be looked up on a disk that does not answer
_complaints: set[tuple[str, type]] = set()


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself. `number` grows from beat to beat: who listens twice knows whether it is alive."""

    rank: int
    host: str
    process: int
    number: int
    meetings: int
    needs_all: bool  # whether it is at a meeting
    doing: str  # empty: nothing yet

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Beat:
        return cls(**json.loads(text))

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"


@dataclass
class _Act:
    what: str
    detail: Callable[[], str] | None
    needs_all: bool
    answer: Future[str] | None = None

    def told(self) -> str:
        """What it is and its detail, or why that cannot be told. Raises nothing and returns soon."""
        if self.detail is None:
            return self.what
        try:
            return f"{self.what} ({self._answer(self.detail)})"
        except NoAnswer:
            return f"{self.what} (more cannot be told: no answer yet)"
        except Exception as error:
            complain_once(f"this process goes on, but cannot tell more of what it is at, '{self.what}'", error)
            return f"{self.what} (more cannot be told: {type(error).__name__}: {error})"

    def _answer(self, detail: Callable[[], str]) -> str:
        """What `detail` returns, or raises, on a thread of its own; where that is stuck, it is neither waited for nor asked again."""
        if self.answer is not None and not self.answer.done():
            return self.answer.result(timeout=0)
        self.answer = answer = Future[str]()
        Thread(target=_find_out, args=(detail, answer), daemon=True).start()
        return answer.result(timeout=_ANSWERS_WITHIN)


def _find_out(detail: Callable[[], str], answer: Future[str]) -> None:
    try:
        answer.set_result(detail())
    except Exception as error:
        answer.set_exception(error)


def complain_once(about: str, error: Exception) -> None:
    """Says what went wrong in telling, the first time, wherever there is still somebody to hear it."""
    if (about, type(error)) not in _complaints:
        _complaints.add((about, type(error)))
        with suppress(OSError, ValueError):  # closed, or at a terminal that is gone
            print(redacted(f"process {os.getpid()}: {about}: {type(error).__name__}: {error}"), file=sys.stderr, flush=True)


class Pulse:
    """What this process does now. Changed by the thread that does it, read by the one that tells of it."""

    def __init__(self) -> None:
        self._acts: tuple[_Act, ...] = ()  # the innermost last
        self._meetings = 0
        self._beats = 0
        self.changes = 0  # grows whenever this process goes on to something else

    @property
    def is_busy(self) -> bool:
        """Whether this process is at anything that it has said."""
        return bool(self._acts)

    @contextmanager
    def doing(self, what: str, detail: Callable[[], str] | None = None) -> Iterator[None]:
        """Says that this rank does `what`, by itself, until the block ends; `detail` is asked for more when somebody wants to know.

        It is asked on another thread, and may fail or be stuck.
        """
        with self._act(_Act(what, detail, False)):
            yield

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """Says that this rank does `what`, which cannot end before all ranks have come to it."""
        self._meetings += 1
        with self._act(_Act(what, None, True)):
            yield

    @contextmanager
    def _act(self, act: _Act) -> Iterator[None]:
        before = self._acts
        self._acts = (*before, act)
        self.changes += 1
        try:
            yield
        finally:
            self._acts = before
            self.changes += 1

    def beat(self, rank: int) -> Beat:
        """The next beat."""
        self._beats += 1
        acts = self._acts
        at_a_meeting = bool(acts) and acts[-1].needs_all
        doing = ": ".join(act.told() for act in acts)
        return Beat(rank, os.uname().nodename, os.getpid(), self._beats, self._meetings, at_a_meeting, doing)


PULSE = Pulse()
doing, meeting = PULSE.doing, PULSE.meeting


NOTHING = "something between what it tells of"


def why_nothing_moves(own: Beat, seconds: float, before: Sequence[Beat | None], now: Sequence[Beat | None]) -> str:
    """Why the rank of `own` has been at one thing for so many seconds, from all ranks' beats as they were heard twice.

    None is the beat of a rank that has never spoken. What was heard first must be older than two beats are apart.
    """
    sentences = []
    for rank, (first, second) in enumerate(zip(before, now, strict=True)):
        if rank == own.rank:
            continue
        if first is None or second is None:
            sentences.append(f"rank {rank} has never been heard of")
        elif first.number == second.number:
            sentences.append(f"{second} is silent, and the last that was heard of it is: {second.doing or NOTHING}")
        elif own.needs_all and second.meetings < own.meetings:
            sentences.append(f"{second} has not come, and is at: {second.doing or NOTHING}")
    if not sentences and own.needs_all:
        sentences = ["all ranks are alive and have come, so the fault lies between them, in the network or its settings"]
    found = f"{own} has been at this for {seconds:.0f} s{', which needs all ranks' if own.needs_all else ''}: {own.doing}"
    todo = "see to that machine, its disk and its network; the same command goes on from the last checkpoint"
    return "; ".join([found, *sentences, f"{todo} (run.timeout_minutes is how long nothing may move)"])
