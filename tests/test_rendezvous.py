"""The promises of the backend `bound_c10d` of torchrun. On several nodes it is tested by tests/slurm."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

from dist_train.rendezvous import NAME, listening_store, meet, store_of_launchers

SOON = timedelta(seconds=10)
RANK = """
import psutil, torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
if dist.get_rank() == 0:  # two would write into each other's lines
    for process in (psutil.Process(), psutil.Process().parent()):
        print(*(c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN), flush=True)
dist.barrier()
"""


def test_torchrun_knows_it_and_listens_with_both_its_stores_at_one_address(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    line = (
        Path(sys.executable).with_name("torchrun"),
        "--nnodes=1",
        "--nproc-per-node=2",
        f"--rdzv-backend={NAME}",
        "--rdzv-endpoint=localhost:0",
    )
    done = subprocess.run([*line, tmp_path / "rank.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    listening = done.stdout.split()
    assert len(listening) >= 2 and {*listening} == {"127.0.0.1"}  # torchrun's two stores, and what gloo opens


def test_launchers_of_one_node_meet_and_the_first_of_them_holds_the_store() -> None:
    held, address = store_of_launchers("localhost", 0, SOON, alone=True)
    joined, same = store_of_launchers("localhost", held.port, SOON, alone=True)
    joined.set("key", "value")
    assert held.get("key") == b"value" and address == same == "127.0.0.1"


@pytest.mark.parametrize(("address", "elsewhere"), [("127.0.0.1", False), (None, True)])
def test_a_store_listens_where_it_is_told_to(address: str | None, elsewhere: bool) -> None:
    store = listening_store(address, 0, SOON)
    with pytest.raises(OSError, match="in use"):
        listening_store(address, store.port, SOON)
    with socket.socket() as visitor:
        assert (visitor.connect_ex(("127.0.0.2", store.port)) == 0) == elsewhere


def test_a_node_that_cannot_be_reached_is_named() -> None:
    settings = RendezvousParameters(NAME, "no-such-host.invalid:29500", "run", 2, 2, read_timeout="1")
    with pytest.raises(RendezvousConnectionError, match=r"no rendezvous at no-such-host.invalid:29500: "):
        meet(settings)
