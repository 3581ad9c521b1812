"""When to stop: because it gets no better (a pure rule), or because somebody asks (a signal or a file)."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STARTING = 15.0  # seconds for a process that was asked to stop to begin, and obey; after as many Slurm takes a preempted job away


class Verdict(Enum):
    """What rank 0 decides after an epoch and every rank obeys."""

    NEW_BEST = "new best"
    NO_BETTER = "no better"
    STOP = "no better, patience is spent"


@dataclass(frozen=True)
class EarlyStop:
    """The best epoch so far and how long it has stood.

    `patience` is the number of epochs without a better value after which to stop; None: never. nan is never better.
    """

    patience: int | None
    best: float | None = None
    best_epoch: int | None = None
    waited: int = 0

    def judge(self, epoch: int, value: float) -> tuple[EarlyStop, Verdict]:
        """The rule after seeing `value` (higher is better) of `epoch`, and what follows from it."""
        if not math.isnan(value) and (self.best is None or value > self.best):
            return replace(self, best=value, best_epoch=epoch, waited=0), Verdict.NEW_BEST
        later = replace(self, waited=self.waited + 1)
        spent = self.patience is not None and later.waited >= self.patience
        return later, Verdict.STOP if spent else Verdict.NO_BETTER


class StopRequest:
    """Somebody wants the run to end at the next step: SIGTERM, SIGINT (Ctrl-C), or a file named `stop` in the run folder.

    What stands in the file, if anything, is given as the reason. Each rank may see a request at another moment; `ranks.agree`
    makes them stop at the same step. Made before torch is imported, so that a job that is preempted while it starts is heard too:
    it goes on to where all ranks have met, and ends there. Where that takes too long, because somebody does not come or has
    failed, the signal ends this process as if nobody had listened.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "stop"
        self.reason: str | None = None
        self._begun = threading.Event()
        ear, self._mouth = os.pipe()  # Python calls `_hear` between two of its own steps, and joining may be one long step
        os.set_blocking(self._mouth, False)
        self._mouth_before = signal.set_wakeup_fd(self._mouth)
        self._watch = threading.Thread(target=self._end_unless_begun, args=(ear,), daemon=True)
        self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}

    def __enter__(self) -> StopRequest:
        return self

    def __exit__(self, *_: object) -> None:
        unheard = [] if self._begun.is_set() else [number for number in SIGNALS if number.name == self.reason]
        self.begin()
        self.release()
        for number in unheard:
            signal.raise_signal(number)

    def limit_the_start(self) -> None:
        """From here on, with everything imported, a start that takes too long after a signal, also one from before, is ended by it."""
        self._watch.start()

    def begin(self) -> None:
        """From here on the run obeys by itself, however long a step may take."""
        if not self._begun.is_set():
            self._begun.set()
            signal.set_wakeup_fd(self._mouth_before)
            os.close(self._mouth)

    def heard(self) -> bool:
        """Whether a request has come to this process."""
        if self.reason is None:
            self.reason = self._read_file()
        return self.reason is not None

    def withdraw(self) -> list[str]:
        """Takes the requests back, once they have been obeyed, and says what they were: also a file that came after a signal."""
        reasons = [reason for reason in dict.fromkeys([self.reason, self._read_file()]) if reason]
        self._file.unlink(missing_ok=True)
        self.reason = None
        return reasons

    def _read_file(self) -> str | None:
        """What the file asks; None without one, or where another rank takes it away at this moment, which has read it before."""
        said = ""
        try:
            with suppress(PermissionError):
                said = self._file.read_text(encoding="utf-8", errors="replace").strip()[:100]
        except OSError:
            return None
        return "the file `stop` in the run folder" + (f" ({said})" if said else "")

    def release(self) -> None:
        """Gives the signals back to whoever had them."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    def _end_unless_begun(self, ear: int) -> None:
        heard = os.read(ear, 1)
        os.close(ear)
        if heard and not self._begun.wait(STARTING):
            name = signal.Signals(heard[0]).name
            print(f"process {os.getpid()} ends: {name} came, and within {STARTING:g} s it could not begin", file=sys.stderr)
            sys.stderr.flush()
            os._exit(128 + heard[0])
