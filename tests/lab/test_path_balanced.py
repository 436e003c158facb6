"""Which packets are balanced, which are left to main, and whose mark bits are whose.

client ─┐          ┌─ isp-a ─┐
        ├─ router ─┤         ├─ server
dmz ────┘          └─ isp-b ─┘
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from itertools import product

import pytest

from dataplane.lab import Daemon, Lab, Topology, lan, link, servers
from dataplane.lab.topology import MBIT, Address, Family
from dataplane.lab.witness import Witness
from tests.lab.talk import Talk, call, counted, link_of, queued, rightful_sources, tracked

MAIN = f"mark={126 << 24}"
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    links = (link("isp-a", 1, 10 * MBIT, shaped=False), link("isp-b", 2, 20 * MBIT, shaped=False))
    with Lab(Topology(links, (lan(), lan("dmz", 1)), servers(4))) as built:
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return lab.run(lab.file(key="0123456789abcdef"))


@pytest.fixture(autouse=True)
def witness(lab: Lab, daemon: Daemon) -> Iterator[Witness]:
    with rightful_sources(lab) as witness:
        yield witness


def pairs(lab: Lab, family: Family) -> list[tuple[Address, Address]]:
    """Every (host, server) pair of the first LAN."""
    return list(product(lab.topology.lans[0].clients(family), lab.topology.serving(family)))


@contextmanager
def route(lab: Lab, prefix: str, *words: str) -> Iterator[None]:
    """A route in the router's main table."""
    family = "-6" if ":" in prefix else "-4"
    lab.router.run("ip", family, "route", "add", prefix, *words)
    try:
        yield
    finally:
        lab.router.run("ip", family, "route", "del", prefix, *words)


@contextmanager
def marking(lab: Lab, mark: int) -> Iterator[None]:
    """Another program on the router marks what comes from the LAN, before we see it."""
    rules = f"""
    table inet foreign {{
        counter kept {{}}
        chain before {{
            type filter hook prerouting priority mangle - 10;
            iifname "lan0" meta mark set {mark:#x}
        }}
        chain after {{
            type filter hook postrouting priority mangle + 10;
            meta mark & 0x80ffffff == {mark & 0x80FFFFFF:#x} oifname {{ "wan1", "wan2" }} \
                counter name kept
        }}
    }}"""
    lab.router.run("nft", "-f", "-", stdin=rules)
    try:
        yield
    finally:
        lab.router.run("nft", "delete", "table", "inet", "foreign")


def test_only_the_first_packet_is_queued(lab: Lab, daemon: Daemon) -> None:
    before = queued(daemon)
    with call(lab, lab.topology.servers[0]) as talk:
        talk.says()
        assert queued(daemon) == before + 1
        for _ in range(5):
            talk.goes_on()
    with call(lab, lab.topology.servers[0], "tcp") as talk:
        for _ in range(5):
            talk.goes_on()
    assert queued(daemon) == before + 2


@FAMILIES
def test_unanswered_datagrams_are_queued_once(lab: Lab, daemon: Daemon, family: Family) -> None:
    before = queued(daemon)
    with call(lab, lab.topology.serving(family)[1]) as talk:
        assert len({talk.says() for _ in range(6)}) == 1
    assert queued(daemon) == before + 1


@FAMILIES
def test_a_pair_keeps_one_link_that_explain_foretells(
    lab: Lab, daemon: Daemon, family: Family
) -> None:
    asked = [f"{source} {target} tcp 1 2" for source, target in pairs(lab, family)]
    foretold = [found["link"] for found in daemon.explain(asked)]
    assert set(foretold) == {"isp-a", "isp-b"}
    for (source, target), name in zip(pairs(lab, family), foretold, strict=True):
        for protocol in ("udp", "tcp", "udp", "tcp"):
            with call(lab, target, protocol, source=source) as talk:
                assert link_of(lab, talk.goes_on()) == name


@FAMILIES
def test_connected_networks_stay_in_main(lab: Lab, daemon: Daemon, family: Family) -> None:
    before = queued(daemon)
    source = lab.topology.lans[0].clients(family)[0]
    target = lab.topology.lans[1].clients(family)[0]
    for protocol in ("udp", "tcp"):
        with Talk(lab.client, source, lab["dmz"], target, protocol=protocol) as talk:
            # Unanswered UDP stays new: main must be saved, else it would be asked again.
            assert {talk.says() for _ in range(4)} == {source}
            sport, dport = talk.ports
            assert tracked(lab, MAIN, f"sport={sport}", f"dport={dport}")
            assert talk.goes_on() == source
    assert queued(daemon) == before


@FAMILIES
def test_both_lans_are_balanced(lab: Lab, family: Family) -> None:
    for network in lab.topology.lans:
        used = set()
        for target in lab.topology.serving(family):
            for source in network.clients(family):
                with Talk(lab[network.name], source, lab.server, target) as talk:
                    used.add(link_of(lab, talk.goes_on()))
        assert used == {"isp-a", "isp-b"}


@FAMILIES
def test_specific_routes_stay_in_main(lab: Lab, daemon: Daemon, family: Family) -> None:
    behind = "198.18.200.7" if family == 4 else "2001:db8:77::7"
    via = str(lab.topology.lans[1].clients(family)[0])
    lab["dmz"].run("ip", "address", "replace", behind, "dev", "lo")
    before = queued(daemon)
    with route(lab, behind, "via", via):
        source = lab.topology.lans[0].clients(family)[0]
        with Talk(lab.client, source, lab["dmz"], behind) as talk:
            assert {talk.goes_on() for _ in range(3)} == {source}
    assert queued(daemon) == before


@FAMILIES
@pytest.mark.parametrize("name", ["isp-a", "isp-b"])
def test_specific_route_through_a_link_is_that_links(
    lab: Lab, daemon: Daemon, family: Family, name: str
) -> None:
    way = lab.topology.link(name)
    number = lab.topology.links.index(way) + 1
    before = queued(daemon)
    for target in lab.topology.serving(family):
        with route(lab, str(target), "via", str(way.gateway(family)), "dev", way.interface):
            for protocol in ("udp", "tcp"):
                with call(lab, target, protocol) as talk:
                    assert {link_of(lab, talk.goes_on()) for _ in range(2)} == {name}
                    mark, sport = f"mark={number << 24}", f"sport={talk.ports[0]}"
                    assert tracked(lab, mark, sport), "saved by the interface it left by"
    assert queued(daemon) == before


@pytest.mark.parametrize(
    "target",
    ["239.1.2.3", "169.254.7.7", "10.10.255.255", "255.255.255.255", "ff02::fb", "ff05::2"],
)
def test_what_is_not_unicast_is_left_alone(lab: Lab, daemon: Daemon, target: str) -> None:
    before = queued(daemon)
    version = ip_address(target).version
    source = str(lab.topology.lans[0].clients(6 if version == 6 else 4)[0])
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    with lab.client.inside(), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if version == 6:
            index = socket.if_nametoindex("eth0")
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        else:
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        sender.bind((source, 0))
        for _ in range(3):
            with suppress(OSError):
                sender.sendto(b"to everybody", (target, 5353))
    with call(lab, lab.topology.servers[0]) as talk:
        talk.goes_on()  # what was sent before has passed
    assert queued(daemon) == before + 1


@FAMILIES
def test_the_router_itself_is_reached(lab: Lab, daemon: Daemon, family: Family) -> None:
    """By its address on the LAN side and by those on the links."""
    before = queued(daemon)
    source = lab.topology.lans[0].clients(family)[0]
    targets = [lab.topology.lans[0].router(family), lab.topology.lans[1].router(family)]
    targets += [way.address(family) for way in lab.topology.links]
    for target in targets:
        for protocol in ("udp", "tcp"):
            with Talk(lab.client, source, lab.router, target, protocol=protocol) as talk:
                assert talk.goes_on() == source
    assert queued(daemon) == before


@FAMILIES
def test_other_mark_bits_are_kept_and_do_not_stop_balancing(
    lab: Lab, daemon: Daemon, family: Family
) -> None:
    before = queued(daemon)
    with marking(lab, 0x80FF0042):
        sent = 0
        used = set()
        for source, target in pairs(lab, family):
            with call(lab, target, source=source) as talk:
                used |= {link_of(lab, talk.goes_on()) for _ in range(3)}
                sent += 3
        kept = lab.router.run("nft", "list", "counter", "inet", "foreign", "kept").stdout
    assert f"packets {sent} " in kept, "a bit that is not ours was changed"
    assert used == {"isp-a", "isp-b"}
    assert queued(daemon) == before + len(pairs(lab, family))


def test_other_bits_of_a_connections_mark_are_kept(lab: Lab) -> None:
    rules = """
    table inet foreign {
        chain before {
            type filter hook prerouting priority mangle - 10;
            iifname "lan0" ct state new ct mark set 0x80001234
        }
    }"""
    lab.router.run("nft", "-f", "-", stdin=rules)
    try:
        with call(lab, lab.topology.servers[0]) as talk:
            used = {link_of(lab, talk.goes_on()) for _ in range(3)}
            number = 1 if used == {"isp-a"} else 2
            assert tracked(lab, f"mark={0x80001234 | number << 24}", f"sport={talk.ports[0]}")
    finally:
        lab.router.run("nft", "delete", "table", "inet", "foreign")


@FAMILIES
def test_exempt_marks_are_left_to_main(lab: Lab, daemon: Daemon, family: Family) -> None:
    before, fallback = queued(daemon), counted(lab, "fallback")
    way = lab.topology.link("isp-a")
    default = "default" if family == 4 else "::/0"
    hop = ("via", str(way.gateway(family)), "dev", way.interface)
    with marking(lab, 0xCA6C), route(lab, default, *hop):
        for target in lab.topology.serving(family):
            with call(lab, target) as talk:
                assert {link_of(lab, talk.goes_on()) for _ in range(3)} == {"isp-a"}
                assert tracked(lab, "mark=0", f"sport={talk.ports[0]}")
    assert queued(daemon) == before
    assert counted(lab, "fallback") == fallback


def test_a_mark_that_only_contains_an_exempt_one_is_balanced(lab: Lab, daemon: Daemon) -> None:
    before = queued(daemon)
    with marking(lab, 0x1CA6C), call(lab, lab.topology.servers[0]) as talk:
        talk.goes_on()
    assert queued(daemon) == before + 1


@FAMILIES
def test_a_default_route_in_main_draws_nothing(lab: Lab, family: Family) -> None:
    """Balanced connections go by their mark, whatever main's default says."""
    way = lab.topology.link("isp-a")
    hop = ("via", str(way.gateway(family)), "dev", way.interface)
    with route(lab, "default" if family == 4 else "::/0", *hop):
        used = set()
        for source, target in pairs(lab, family):
            with call(lab, target, source=source) as talk:
                used.add(link_of(lab, talk.goes_on()))
    assert used == {"isp-a", "isp-b"}
