"""The router's own traffic: bound sockets and unbound ones, without a default route in main.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator

import pytest

from dataplane.lab import Daemon, Lab, uplinks
from dataplane.lab.topology import Family
from tests.lab.conftest import MakeLab
from tests.lab.talk import (
    Talk,
    counted,
    link_of,
    queued,
    rightful_sources,
    status,
    tracked,
)

KEY = "0123456789abcdef"
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
LINKS = pytest.mark.parametrize("name", ["isp-a", "isp-b"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
_IP_PKTINFO, _IPV6_PKTINFO = 8, 50


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(uplinks(10_000_000, 20_000_000, shaped=False, server_count=8)) as built:
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return lab.run(lab.file(key=KEY))


@pytest.fixture
def watched(lab: Lab, daemon: Daemon) -> Iterator[Daemon]:
    with rightful_sources(lab):
        yield daemon


@FAMILIES
@PROTOCOLS
def test_unbound_sockets_are_balanced(
    lab: Lab, watched: Daemon, family: Family, protocol: str
) -> None:
    source = lab.topology.lans[0].router(family)
    targets = lab.topology.serving(family)
    asked = [f"{source} {target} {protocol} 1 2" for target in targets]
    foretold = [one["link"] for one in watched.explain(asked)]
    before, used = queued(watched), []
    for target in targets:
        with Talk(lab.router, None, lab.server, target, protocol=protocol) as talk:
            used.append(link_of(lab, talk.goes_on()))
            for _ in range(3):
                assert link_of(lab, talk.goes_on()) == used[-1]
    assert set(used) == {"isp-a", "isp-b"}
    assert used == foretold
    assert queued(watched) == before + len(targets)
    assert counted(lab, "fallback") == 0


@FAMILIES
@LINKS
@PROTOCOLS
def test_sockets_bound_to_an_interface_use_it(
    lab: Lab, watched: Daemon, family: Family, name: str, protocol: str
) -> None:
    way = lab.topology.link(name)
    before = queued(watched)
    for target in lab.topology.serving(family):
        with Talk(
            lab.router, None, lab.server, target, protocol=protocol, device=way.interface
        ) as talk:
            for _ in range(3):
                assert talk.goes_on() == way.address(family)
    assert queued(watched) == before


@FAMILIES
@LINKS
@PROTOCOLS
def test_sockets_bound_to_an_address_use_its_link(
    lab: Lab, watched: Daemon, family: Family, name: str, protocol: str
) -> None:
    way = lab.topology.link(name)
    address = way.address(family)
    before = queued(watched)
    for target in lab.topology.serving(family):
        with Talk(lab.router, address, lab.server, target, protocol=protocol) as talk:
            for _ in range(3):
                assert talk.goes_on() == address
            number = lab.topology.links.index(way) + 1
            assert tracked(lab, f"mark={number << 24}", f"sport={talk.ports[0]}")
    assert queued(watched) == before


@FAMILIES
@LINKS
def test_a_remembered_source_uses_its_link(
    lab: Lab, watched: Daemon, family: Family, name: str
) -> None:
    """As WireGuard does it: an unbound socket says the source with each packet."""
    address = lab.topology.link(name).address(family)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    for target in lab.topology.serving(family):
        with lab.server.inside():
            far = socket.socket(kind, socket.SOCK_DGRAM)
        with lab.router.inside():
            near = socket.socket(kind, socket.SOCK_DGRAM)
        with far, near:
            far.settimeout(5)
            far.bind((str(target), 0))
            if family == 4:
                packed = struct.pack("=I4s4x", 0, address.packed)
                told = (socket.IPPROTO_IP, _IP_PKTINFO, packed)
            else:
                packed = address.packed + struct.pack("=I", 0)
                told = (socket.IPPROTO_IPV6, _IPV6_PKTINFO, packed)
            for _ in range(3):
                near.sendmsg([b"tunnel"], [told], 0, far.getsockname()[:2])
                assert ipaddress.ip_address(far.recvfrom(16)[1][0]) == address


@FAMILIES
@LINKS
def test_a_socket_that_sets_our_bits_has_chosen(
    lab: Lab, watched: Daemon, family: Family, name: str
) -> None:
    number = lab.topology.links.index(lab.topology.link(name)) + 1
    before = queued(watched)
    for target in lab.topology.serving(family):
        with Talk(lab.router, None, lab.server, target, mark=number << 24 | 0x42) as talk:
            assert {link_of(lab, talk.goes_on()) for _ in range(3)} == {name}
    assert queued(watched) == before


@FAMILIES
def test_towards_the_lan_nothing_is_asked(lab: Lab, watched: Daemon, family: Family) -> None:
    before = queued(watched)
    host = lab.topology.lans[0].clients(family)[0]
    for protocol in ("tcp", "udp"):
        with Talk(lab.router, None, lab.client, host, protocol=protocol) as talk:
            assert talk.goes_on() == lab.topology.lans[0].router(family)
    assert queued(watched) == before


@FAMILIES
def test_pings_of_the_router(lab: Lab, watched: Daemon, family: Family) -> None:
    for target in lab.topology.serving(family)[:4]:
        for bound in ([], ["-I", "wan1"], ["-I", "wan2"]):
            lab.router.run("ping", "-n", "-c1", "-W3", *bound, str(target))


@FAMILIES
def test_left_to_main(make_lab: MakeLab, family: Family) -> None:
    """own_traffic = "main": main's default decides for the unbound, and nothing is asked."""
    lab = make_lab(uplinks(10_000_000, 20_000_000, shaped=False))
    way = lab.topology.link("isp-a")
    prefixes: dict[Family, str] = {4: "default", 6: "::/0"}
    for version, prefix in prefixes.items():
        hop = ("via", str(way.gateway(version)), "dev", way.interface)
        lab.router.run("ip", f"-{version}", "route", "add", prefix, *hop)
    daemon = lab.run(lab.file(key=KEY, own_traffic="main"))
    with rightful_sources(lab):
        for target in lab.topology.serving(family):
            for protocol in ("tcp", "udp"):
                with Talk(lab.router, None, lab.server, target, protocol=protocol) as talk:
                    assert link_of(lab, talk.goes_on()) == "isp-a"
                for other in lab.topology.links:
                    with Talk(
                        lab.router, None, lab.server, target,
                        protocol=protocol, device=other.interface,
                    ) as talk:  # fmt: skip
                        assert link_of(lab, talk.goes_on()) == other.name
        for other in lab.topology.links:
            asker = lab.topology.serving(family)[0]
            with Talk(lab.server, asker, lab.router, other.address(family)) as talk:
                assert talk.goes_on() == asker
    assert status(daemon)["queue"]["packets"] == 0
