"""The cause of a failure, said once and last: to people, and to the launcher that looks for it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from shards.remote import redacted


def say_last(error: Exception, text: str) -> None:
    """Prints `text`, and leaves it where torchrun and accelerate look for the root cause, which they print when all have ended."""
    text = redacted(text)
    print(text, file=sys.stderr, flush=True)
    if place := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": redacted(str(error)), "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
        Path(place).write_text(json.dumps({"message": about}), encoding="utf-8")
