"""When to stop: because it gets no better (a pure rule), or because somebody asks (a signal or a file)."""

from __future__ import annotations

import math
import signal
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import FrameType


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
    makes them stop at the same step.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "stop"
        self.reason: str | None = None
        self._before = {number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)}

    def heard(self) -> bool:
        """Whether a request has come to this process."""
        if self.reason is None and self._file.exists():
            said = ""
            with suppress(OSError):  # another rank has obeyed it already
                said = self._file.read_text(encoding="utf-8", errors="replace").strip()[:100]
            self.reason = "the file `stop` in the run folder" + (f" ({said})" if said else "")
        return self.reason is not None

    def withdraw(self) -> str | None:
        """Takes the request back, once it has been obeyed, and says what it was."""
        self._file.unlink(missing_ok=True)
        reason, self.reason = self.reason, None
        return reason

    def release(self) -> None:
        """Gives the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
