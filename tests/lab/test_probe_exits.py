"""No probe leaves by another link, even where the routing table knows no other way."""

from __future__ import annotations

import socket
from ipaddress import IPv6Address

import pytest

from dataplane.config.model import ProbeKind
from tests.lab.probebox import HOSTS, Address, Box, asker, box, eventually, inside, target

__all__ = ["box"]

KINDS = [ProbeKind.PING, ProbeKind.TCP, ProbeKind.DNS, ProbeKind.HTTP]


@HOSTS
@pytest.mark.parametrize("kind", KINDS)
def test_the_interface_binds(box: Box, kind: ProbeKind, host: Address) -> None:
    """The main table leads to b, link a's rules are gone, and b would answer: it hears nothing.

    IPv6 says that there is no way; IPv4 takes the target for a neighbour on link a.
    """
    for family, gateway in (("-4", "198.51.100.1"), ("-6", "2001:db8:2::1")):
        box.router.run("ip", family, "rule", "delete", "lookup", "101")
        box.router.run("ip", family, "route", "add", "default", "via", gateway, "dev", "up-b")
    box.bound("b", socket.SOCK_STREAM, host, 80)
    box.bound("b", socket.SOCK_DGRAM, host, 53)
    asked = target("http://host/", 53 if kind is ProbeKind.DNS else 80)

    async def work() -> None:
        async with asker(kind) as (made, told):
            made.ask(1, asked, host, 5)
            if host.version == 6:
                assert await told.answer(1) == (None, "network unreachable")
            else:
                await eventually(lambda: box.packets_to("a", host))

    inside(box, work)
    assert box.packets_to("b", host) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_link_local_neighbours_are_asked_by_the_link(box: Box, kind: ProbeKind) -> None:
    """A gateway that router advertisements gave has such an address; both links have the same."""
    for link in ("a", "b"):
        box[link].run("ip", "address", "add", "fe80::1/64", "dev", "link", "nodad")
        answering = box.socket(link, socket.AF_INET6, socket.SOCK_STREAM)
        answering.bind(("::", 80))
        answering.listen()
    gateway = IPv6Address("fe80::1")

    async def work() -> None:
        async with asker(kind) as (made, told):
            made.ask(1, target("http://host/", 80), gateway, 1)
            ms, words = await told.answer(1)
            expected = {
                ProbeKind.PING: "",
                ProbeKind.TCP: "",
                ProbeKind.DNS: "refused",
                ProbeKind.HTTP: "no answer within 1 s",
            }
            assert words == expected[kind]
            assert (ms is None) == bool(words)

    inside(box, work)
    assert box.packets_to("a", gateway) > 0
    assert box.packets_to("b", gateway) == 0
    assert box.counted()["strange"] == 0
