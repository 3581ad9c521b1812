"""Where the launchers of a job meet, and then its ranks: at one address of a node, and not at every one that it has.

torchrun keeps two stores, one by which the launchers find each other and one for the ranks of each start. Whoever reaches them can run
programs as the user, since what stands in them is unpickled, and torchrun's own backends listen with both on all addresses. This one is
its c10d (the word is that of PyTorch for its distributed library) but for that; setup.cfg tells torchrun of it (torchrun.handlers):

    torchrun --nnodes=2 --rdzv-backend=bound_c10d --rdzv-endpoint=NODE:PORT ...

    launcher on NODE      its store listens at the address that the name NODE stands for, at PORT
    launcher of rank 0    the store of its start listens at the address by which that node reaches NODE, at a free port
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from datetime import timedelta

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters, RendezvousStoreInfo
from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError, RendezvousHandlerCreator
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import DEFAULT_PORT, C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from dist_train.addresses import addresses_here, the_address

NAME = "bound_c10d"


def backend() -> RendezvousHandlerCreator:
    """What torchrun asks for when it looks for backends."""
    return meet


def meet(params: RendezvousParameters) -> RendezvousHandler:
    """Joins the launchers that meet at `params.endpoint`, NODE:PORT, and lets them meet here where this is NODE.

    Takes read_timeout and the timeouts of c10d (`--rdzv-conf`). Raises RendezvousConnectionError when NODE does not answer within
    read_timeout, 60 seconds unless told.
    """
    host, port = parse_rendezvous_endpoint(params.endpoint, default_port=DEFAULT_PORT)
    timeout = timedelta(seconds=params.get_as_int("read_timeout", 60) or 60)
    try:
        store, address = store_of_launchers(host, port, timeout, alone=params.max_nodes == 1)
    except (OSError, RuntimeError) as error:
        raise RendezvousConnectionError(f"no rendezvous at {host}:{port}: {error}") from error
    # Or the launchers would make a store for the ranks themselves, at all addresses.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return BoundRendezvous(create_handler(store, C10dRendezvousBackend(store, params.run_id), params), address, address or host, timeout)


class BoundRendezvous(RendezvousHandler):
    """The c10d rendezvous `launchers`. Where rank 0 is, the store for the ranks listens at `address` (None: at all), reached as `name`."""

    def __init__(self, launchers: RendezvousHandler, address: str | None, name: str, timeout: timedelta) -> None:
        self.launchers = launchers
        self.address = address
        self.name = name
        self.timeout = timeout
        self.store_of_ranks: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Waits for the other launchers, and tells where the ranks of this start meet. Raises RendezvousConnectionError when they part."""
        start = self.launchers.next_rendezvous()
        try:
            if start.rank == 0:
                self.store_of_ranks = listening_store(self.address, 0, self.timeout)
                start.store.set("ranks meet at", f"{self.name} {self.store_of_ranks.port}")
            name, port = start.store.get("ranks meet at").decode().split()
        except DistError as error:
            raise RendezvousConnectionError(f"the launcher of rank 0 does not say where the ranks meet: {error}") from error
        return RendezvousInfo(start.store, start.rank, start.world_size, RendezvousStoreInfo(name, int(port)))

    @property
    def use_agent_store(self) -> bool:
        """Yes: it is the launcher of rank 0 that holds the store of the ranks, and not rank 0."""
        return True

    def get_backend(self) -> str:
        """The name by which torchrun was asked for it."""
        return NAME

    def get_run_id(self) -> str:
        """--rdzv-id."""
        return self.launchers.get_run_id()

    def is_closed(self) -> bool:
        """Whether nobody can join any more."""
        return self.launchers.is_closed()

    def set_closed(self) -> None:
        """Lets nobody join any more."""
        self.launchers.set_closed()  # type: ignore[no-untyped-call]  # PyTorch gives it no types

    def num_nodes_waiting(self) -> int:
        """How many launchers came after this start had begun."""
        return self.launchers.num_nodes_waiting()

    def shutdown(self) -> bool:
        """Leaves the rendezvous; whether that went well."""
        return self.launchers.shutdown()


def store_of_launchers(host: str, port: int, timeout: timedelta, *, alone: bool) -> tuple[TCPStore, str | None]:
    """The store at which the launchers meet, and the address of this node at which they reach it (None: at any that it has).

    It is held here where `host` is this node, which is `alone` in the job or not. Raises OSError or RuntimeError when there is none.
    """
    if here := addresses_here(host):
        address = here[0] if alone else the_address(here)
        if address is None:
            print(
                f"warning: the processes meet at every address of {host}, because on this node the name stands for {', '.join(here)}; a "
                f"name that stands for the one address at which the other nodes find it, or that address, keeps the port closed elsewhere",
                file=sys.stderr,
                flush=True,
            )
        try:
            return listening_store(address, port, timeout), address
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise  # otherwise another launcher of this node holds it
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
    return store, address_towards(host, port)


def address_towards(host: str, port: int) -> str:
    """The address of this node from which it speaks to `host`."""
    with socket.create_connection((host, port), timeout=60) as connection:
        return str(connection.getsockname()[0])


def listening_store(address: str | None, port: int, timeout: timedelta) -> TCPStore:
    """A store that listens at `port` (0: any that is free) of `address` alone, or at all (None). Raises OSError when the port is taken."""
    if address is not None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.create_server((address, port), family=family)
    elif socket.has_dualstack_ipv6():
        listening = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listening = socket.create_server(("", port))
    port = listening.getsockname()[1]
    return TCPStore(
        address or "localhost", port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=listening.detach()
    )
