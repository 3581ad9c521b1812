"""`python -m dist_train`, in which something goes wrong; started in its place. FAULT says what, as JSON:

    {"rank": 1, "what": "raise", "of": "dist_train.training:accumulate_gradient", "calls": [7, 7]}
    {"rank": 1, "what": "nan", "of": "dist_train.gradient:training_loss", "calls": [7, 9]}
    {"rank": 0, "what": "die", "files": 123}

On that rank the calls of that number raise an error, or give a loss that is no number; or the rank is killed just before it opens,
names or removes the file of that number, counted from the opening of the journal. Without FAULT all is well.
"""

from __future__ import annotations

import json
import math
import os
import pkgutil
import signal
import sys
from itertools import count
from typing import Any


def break_calls(of: str, first: int, last: int, what: str) -> None:
    """Replaces a function by one that does its work, but for the calls `first` to `last`, counted from 1."""
    whole, calls = pkgutil.resolve_name(of), count(1)

    def broken(*arguments: Any, **named: Any) -> Any:
        struck = first <= next(calls) <= last
        if struck and what == "raise":
            raise RuntimeError(f"injected into {of}")
        result = whole(*arguments, **named)
        return result._replace(total=result.total * math.nan) if struck and what == "nan" else result

    owner, _, name = of.replace(":", ".").rpartition(".")
    setattr(pkgutil.resolve_name(owner), name, broken)


def die_at_file(number: int) -> None:
    """SIGKILL to this process, before it does what the audit event of this number tells of."""
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


def main() -> int:
    fault = json.loads(os.environ.get("FAULT", '{"rank": null}'))
    from dist_train.__main__ import main as whole_main

    if fault["rank"] == int(os.environ.get("RANK", "0")):
        if fault["what"] == "die":
            die_at_file(fault["files"])
        else:
            break_calls(fault["of"], *fault["calls"], fault["what"])
    return whole_main()


if __name__ == "__main__":
    sys.exit(main())
