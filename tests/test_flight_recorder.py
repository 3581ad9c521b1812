"""What NCCL remembers of its collectives is left where train.sh says, as PyTorch's own tool reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch._C import _distributed_c10d
from torch.distributed.flight_recorder.components.loader import read_dump

from dist_train.flight_recorder import leave_collectives

pytestmark = pytest.mark.skipif(not hasattr(_distributed_c10d, "_dump_nccl_trace"), reason="PyTorch is built without NCCL here")


def test_the_collectives_are_left_under_the_ranks_name_as_torchfrtrace_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", f"{tmp_path}/collectives-")
    leave_collectives(3)
    assert [path.name for path in tmp_path.iterdir()] == ["collectives-3"]
    found = read_dump("collectives-", str(tmp_path / "collectives-3"))
    assert (found["rank"], found["entries"]) == (3, [])  # this process had none


def test_where_nobody_said_where_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_FR_DUMP_TEMP_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    leave_collectives(0)
    assert list(tmp_path.iterdir()) == []


STUCK = """
import ctypes
from dist_train import flight_recorder
flight_recorder.LIMIT = 0.5
flight_recorder._distributed_c10d._dump_nccl_trace = lambda **_: ctypes.PyDLL(None).sleep(600)  # and lets no other thread run
flight_recorder.leave_collectives(0)
"""


def test_an_answer_that_does_not_come_holds_up_nobody(tmp_path: Path) -> None:
    environment = {"TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/collectives-", "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", STUCK], env=environment, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (1, "")
