"""The cause of a failure, said once and last: to people, and to the launcher that looks for it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from shards.remote import redacted


def say_last(error: Exception, text: str) -> None:
    """Prints `text`, and leaves it to the launcher."""
    print(redacted(text), file=sys.stderr, flush=True)
    leave_to_the_launcher(error, text)


def leave_to_the_launcher(error: Exception, text: str) -> None:
    """Leaves `text` where torchrun and accelerate look for the root cause, the earliest of a host, which they print when all have ended."""
    if place := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": redacted(str(error)), "extraInfo": {"py_callstack": redacted(text), "timestamp": str(int(time.time()))}}
        Path(place).write_text(json.dumps({"message": about}), encoding="utf-8")
