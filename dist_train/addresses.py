"""The one address at which the other nodes of a job find this one: `python -m dist_train.addresses NAME` prints it, for scripts.

A node may know its own name as 127.0.1.1 (Debian's /etc/hosts), or as the address of each of its networks, of which others know one.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys

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


def the_address(host: str, here: list[str]) -> str | None:
    """The one of its addresses `here`, for which `host` stands, that is no loopback; None, and a warning, where it is not the only one."""
    known = [address for address in here if not ipaddress.ip_address(address).is_loopback]
    known = [address for address in known if ":" not in address] or known  # who knows a node by both versions tries both
    if len(known) == 1:
        return known[0]
    print(
        f"warning: the processes meet at every address of {host}, because on this node the name stands for {', '.join(here)}; a name that "
        f"stands for the one address at which the other nodes find it, or that address, keeps the port closed elsewhere",
        file=sys.stderr,
        flush=True,
    )
    return None


def to_hand_on(host: str) -> str:
    """What the launchers of a job are told instead of `host`, this node's name, for all to mean one address; the name where none is sure.

    The address of the interface that GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names, where one does, else that of the name here.
    """
    interfaces = own_addresses()
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if named := interfaces.get(os.environ.get(variable, "").lstrip("=")):
            return named[0]
    here = addresses_here(host)
    return (the_address(host, here) if here else None) or host


if __name__ == "__main__":
    found = to_hand_on(sys.argv[1])
    print(f"[{found}]" if ":" in found else found)
