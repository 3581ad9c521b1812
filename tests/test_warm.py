"""The warm processes of the other tests: one that hangs is an error, whatever the others did, and leaves nothing running."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import warm


def fails_or_hangs(words: list[str], environment: dict[str, str], *_: Path) -> None:
    """In place of dist_train: rank 0 fails, and rank 1 waits for a child of its own."""
    if environment["RANK"] == "0":
        sys.exit(3)
    child = subprocess.Popen(["sleep", "60"])
    Path(words[0]).write_text(str(child.pid))
    child.wait()


def test_a_rank_that_hangs_when_another_has_failed_is_an_error_and_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_rank", fails_or_hangs)
    monkeypatch.setattr(warm, "_GRACE", 3)
    with pytest.raises(TimeoutError, match=r"of 2 ranks, \[1\] had not ended"):
        warm.run(tmp_path / "pid", world=2)
    child, end = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end
            time.sleep(0.05)
