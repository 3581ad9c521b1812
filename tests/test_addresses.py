"""At which address the nodes of a job find each other."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import psutil
import pytest

from dist_train import addresses
from dist_train.addresses import addresses_here, the_address, to_hand_on


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of two networks, without IPv6, whose resolver knows names by all sorts of addresses."""
    networks = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.1"], "ib0": ["10.1.0.1"]}
    found = {name: [SimpleNamespace(family=socket.AF_INET, address=one) for one in own] for name, own in networks.items()}
    names = {
        "one": ["10.0.0.1"],
        "debian": ["127.0.1.1"],
        "all": ["10.0.0.1", "10.1.0.1"],
        "both": ["10.0.0.1", "fd00::1"],
        "localhost": ["127.0.0.1", "::1"],
        "other": ["10.0.0.2", "fd00::2"],
    }

    def resolve(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(None, None, None, "", (address, 0)) for address in names[host]]

    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("one", ["10.0.0.1"]),
        ("debian", ["127.0.1.1"]),
        ("both", ["10.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        ("other", []),
        ("unknown", []),
    ],
)
def test_of_what_a_name_stands_for_the_addresses_that_this_node_has_are_known(name: str, here: list[str]) -> None:
    assert addresses_here(name) == here


@pytest.mark.parametrize(
    ("here", "address"),
    [
        (["10.0.0.1"], "10.0.0.1"),
        (["10.0.0.1", "127.0.1.1"], "10.0.0.1"),
        (["10.0.0.1", "fd00::1"], "10.0.0.1"),
        (["fd00::1"], "fd00::1"),
        (["127.0.1.1"], None),
        (["10.0.0.1", "172.17.0.1"], None),
    ],
)
def test_where_a_name_stands_for_several_addresses_or_none_but_loopback_none_is_sure(here: list[str], address: str | None) -> None:
    assert the_address(here) == address


@pytest.mark.usefixtures("node")
@pytest.mark.parametrize(
    ("name", "interface", "told"),
    [
        ("one", "", "10.0.0.1"),
        ("debian", "eth0", "10.0.0.1"),
        ("all", "", "all"),
        ("other", "", "other"),
        *(("one", said, "10.1.0.1") for said in ("ib0", "=ib0", "ib", "ib0:1", "ib0,eth0", "none,ib0")),
        *(("one", said, "10.0.0.1") for said in ("^ib", "=ib", "none")),
    ],
)
def test_the_launchers_are_handed_the_address_of_the_interface_that_is_named_or_of_the_name_where_it_is_sure(
    name: str, interface: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", interface)
    assert to_hand_on(name) == told


def test_this_node_knows_its_own_addresses() -> None:
    assert "127.0.0.1" in addresses.own_addresses()["lo"] and "127.0.0.1" in addresses_here("localhost")
    assert addresses_here("198.51.100.1") == []
