"""What every rank is doing, so that whoever waits in vain can say for whom.

A rank keeps note of what it does, and of how many meetings it has come to: everything that needs all ranks is a meeting, from
an all-reduce to a vote. ranks.py tells the others, a beat every few seconds. All ranks come to the same meetings in the same
order, so whoever has come to fewer than one that waits is missing; and where nobody is, whoever is silent: a process that was
stopped, a machine that is gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass


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


@dataclass(frozen=True)
class _Act:
    what: str
    detail: Callable[[], str] | None
    needs_all: bool


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
        """Says that this rank does `what`, by itself, until the block ends; `detail` is asked for more when somebody wants to know."""
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
        words = [act.what if act.detail is None else f"{act.what} ({act.detail()})" for act in acts]
        at_a_meeting = bool(acts) and acts[-1].needs_all
        return Beat(rank, os.uname().nodename, os.getpid(), self._beats, self._meetings, at_a_meeting, ": ".join(words))


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
