"""The one address at which the other nodes of a job find this one: `python -m dist_train.addresses NAME` prints it, for scripts.

A node may know its own name as 127.0.1.1 (Debian's /etc/hosts), or as the address of each of its networks, of which others know one.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterable, Sequence

import psutil


def own_addresses() -> dict[str, list[str]]:
    """The addresses of this node by the name of their interface, IPv4 before IPv6; not those that reach no further than its link."""
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [one.address for family in families for one in found if one.family == family and "%" not in one.address]
        for name, found in psutil.net_if_addrs().items()
    }


def addresses_here(host: str) -> list[str]:
    """Those of the addresses that the name `host` stands for which are this node's own; none where it is the name of another node."""
    try:
        found = {str(place[0]) for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except socket.gaierror:
        return []
    own = {address for addresses in own_addresses().values() for address in addresses}
    return sorted(address for address in found if address in own or address.startswith("127."))  # 127.0.1.1 is of no interface


def the_address(here: Sequence[str]) -> str | None:
    """The one of a node's own addresses, for which its name stands, that is no loopback; None where it is not the only one."""
    known = [address for address in here if not ipaddress.ip_address(address).is_loopback]
    known = [address for address in known if ":" not in address] or known  # who knows a node by both versions tries both
    return known[0] if len(known) == 1 else None


def to_hand_on(host: str) -> str:
    """What the launchers of a job are told instead of `host`, this node's name, for all to mean one address; the name where none is sure.

    The address of the interface that GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME name, where one does, else that of the name here.
    """
    interfaces = own_addresses()
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        said = os.environ.get(variable, "")
        for name in _named(said, interfaces):
            if interfaces[name]:
                return interfaces[name][0]
        if said and not said.startswith("^"):
            print(f"warning: {variable}={said} names no interface of this node that has an address", file=sys.stderr, flush=True)
    return the_address(addresses_here(host)) or host


def _named(said: str, interfaces: Iterable[str]) -> list[str]:
    """The interfaces that such a variable names: by their names, or as NCCL has it by how these begin; none for ^those to avoid."""
    if said.startswith("^"):
        return []
    words = [word.partition(":")[0] for word in said.lstrip("=").split(",") if word]
    exact = [word for word in words if word in interfaces]
    return exact or [name for word in words for name in sorted(interfaces) if name.startswith(word) and not said.startswith("=")]


if __name__ == "__main__":
    found = to_hand_on(sys.argv[1])
    print(f"[{found}]" if ":" in found else found)
