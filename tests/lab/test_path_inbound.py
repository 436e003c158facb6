"""Connections from outside are answered by the link that they came in by.

client ─┐          ┌─ isp-a ─┐
        ├─ router ─┤         ├─ server
dmz ────┘          └─ isp-b ─┘
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from dataplane.lab import Daemon, Lab, Topology, lan, link, servers
from dataplane.lab.topology import MBIT, Family, Link
from tests.lab.talk import Talk, eventually, queued, rightful_sources, tracked

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
LINKS = pytest.mark.parametrize("name", ["isp-a", "isp-b"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    links = (link("isp-a", 1, 10 * MBIT, shaped=False), link("isp-b", 2, 20 * MBIT, shaped=False))
    with Lab(Topology(links, (lan(), lan("dmz", 1)), servers(6))) as built:
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return lab.run(lab.file(key="0123456789abcdef"))


@pytest.fixture(autouse=True)
def _witness(lab: Lab, daemon: Daemon) -> Iterator[None]:
    with rightful_sources(lab):
        yield


def mark_of(lab: Lab, way: Link) -> str:
    return f"mark={(lab.topology.links.index(way) + 1) << 24}"


@FAMILIES
@LINKS
@PROTOCOLS
def test_the_router_is_reached_on_each_link(
    lab: Lab, daemon: Daemon, family: Family, name: str, protocol: str
) -> None:
    """The near side is connected: it hears only answers from the address that it asked."""
    way = lab.topology.link(name)
    before = queued(daemon)
    for asker in lab.topology.serving(family):
        with Talk(lab.server, asker, lab.router, way.address(family), protocol=protocol) as talk:
            for _ in range(3):
                assert talk.goes_on() == asker
            assert tracked(lab, mark_of(lab, way), f"sport={talk.ports[0]}")
    assert queued(daemon) == before


@FAMILIES
@LINKS
def test_the_router_answers_pings_and_refusals_by_the_same_link(
    lab: Lab, family: Family, name: str
) -> None:
    way = lab.topology.link(name)
    asked = str(way.address(family))
    for asker in lab.topology.serving(family)[:3]:
        lab.server.run("ping", "-n", "-c1", "-W2", "-I", str(asker), asked)
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        with lab.server.inside(), socket.socket(kind, socket.SOCK_DGRAM) as closed:
            closed.settimeout(5)
            closed.bind((str(asker), 0))
            closed.connect((asked, 9))
            closed.send(b"is anybody there?")
            # The ICMP error is RELATED to the connection and goes by its link.
            with pytest.raises(ConnectionRefusedError):
                closed.recv(10)
        with lab.server.inside(), socket.socket(kind, socket.SOCK_STREAM) as stream:
            stream.settimeout(5)
            stream.bind((str(asker), 0))
            assert stream.connect_ex((asked, 9)) == errno.ECONNREFUSED


@FAMILIES
@LINKS
@PROTOCOLS
@pytest.mark.parametrize("host", ["client", "dmz"])
def test_port_forwards_answer_by_the_link_that_was_asked(
    lab: Lab, daemon: Daemon, family: Family, name: str, protocol: str, host: str
) -> None:
    way = lab.topology.link(name)
    network = next(found for found in lab.topology.lans if found.name == host)
    inside, asked = network.clients(family)[0], way.address(family)
    words = ("ip", str(inside)) if family == 4 else ("ip6", str(inside))
    rules = f"""
    table inet admin {{
        chain forwards {{
            type nat hook prerouting priority dstnat;
            iifname "{way.interface}" meta l4proto {{ tcp, udp }} th dport 8080 \
                dnat {words[0]} to {words[1]}
        }}
    }}"""
    lab.router.run("nft", "-f", "-", stdin=rules)
    before = queued(daemon)
    try:
        for asker in lab.topology.serving(family)[:4]:
            with Talk(
                lab.server, asker, lab[host], asked, at=inside, port=8080, protocol=protocol
            ) as talk:
                for _ in range(3):
                    assert talk.goes_on() == asker
                assert tracked(lab, mark_of(lab, way), f"sport={talk.ports[0]}")
    finally:
        lab.router.run("nft", "delete", "table", "inet", "admin")
    assert queued(daemon) == before


@FAMILIES
def test_both_links_asked_at_once_by_one_host(lab: Lab, family: Family) -> None:
    """Both links asked from one address and port at once: two connections, two ways."""
    asker = lab.topology.serving(family)[0]
    talks = [Talk(lab.server, asker, lab.router, way.address(family)) for way in lab.topology.links]
    for _ in range(3):
        for talk in talks:
            assert talk.says() == asker
        for talk in reversed(talks):
            talk.answers()
    for talk in talks:
        talk.close()
    eventually(lambda: len(tracked(lab, f"src={asker}")) >= 2)
