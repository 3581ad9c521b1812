"""`dist_train` in which something goes wrong, for ranks that are forked from a warm process: `main` first lets the faults in.

A fault is a function that is called in its rank before the command begins: it breaks some calls of a function, each in one of the
ways below, or waits for one of the files that the rank writes.
"""

from __future__ import annotations

import faulthandler
import hashlib
import math
import os
import pkgutil
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

Fault = tuple[int, Callable[[], None]]  # in which rank, and what


def main(faults: Sequence[Fault], words: Sequence[str]) -> int:
    """The command, as a rank that has a session of its own, by which its workers are found when it is dead."""
    os.setsid()
    faulthandler.enable()
    from dist_train.__main__ import main as whole_main

    for rank, let_in in faults:
        if rank == int(os.environ.get("RANK", "0")):
            let_in()
    return whole_main(words)


def break_calls(of: str, way: Callable[..., Any], first: int, last: int) -> None:
    """The calls `first` to `last` of a function, counted from 1, go another way."""
    whole, calls = pkgutil.resolve_name(of), count(1)

    def broken(*arguments: Any, **named: Any) -> Any:
        return (way if first <= next(calls) <= last else _as_ever)(whole, *arguments, **named)

    owner, _, name = of.replace(":", ".").rpartition(".")
    setattr(pkgutil.resolve_name(owner), name, broken)


def _as_ever(whole: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return whole(*arguments, **named)


def fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("this was injected")


def is_left_out(*_: Any, **__: Any) -> None:
    pass


def is_no_number(whole: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The loss, of which all is as ever but the total, and with it the gradient."""
    loss = whole(*arguments, **named)
    return loss._replace(total=loss.total * math.nan)


def tells_the_weights(whole: Callable[..., Any], training: Any) -> Any:
    """Before anything else, a hash of the weights that this rank has."""
    digest = hashlib.sha256()
    for tensor in training.model.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    print(f"a rank's weights: {digest.hexdigest()}", flush=True)
    return whole(training)


def die_at_file(number: int) -> None:
    """SIGKILL to this process, before it opens, names or removes the file of that number, counted from the opening of the journal."""
    own, journal_is_open, events = os.getpid(), False, count(1)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal journal_is_open
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        journal_is_open |= bool(writes) and str(arguments[0]).endswith("metrics.jsonl")
        if not (writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")) or not journal_is_open or os.getpid() != own:
            return
        if next(events) == number:
            print(f"killed before {event} {arguments[0]}", flush=True)
            os.kill(own, signal.SIGKILL)

    sys.addaudithook(hear)
