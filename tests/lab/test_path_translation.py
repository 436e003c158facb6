"""What a link does to sources, and what segments may weigh.

client ─┐          ┌─ isp-a ─┐          isp-a's MTU is 1400, and it delegates a prefix
        ├─ router ─┤         ├─ server
dmz ────┘          └─ isp-b ─┘
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import ip_address
from itertools import product

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from dataplane.lab import Daemon, Lab, Topology, lan, link, servers
from dataplane.lab.namespaces import Namespace
from dataplane.lab.topology import MBIT, Address, Family
from tests.lab.conftest import MakeLab
from tests.lab.talk import (
    Talk,
    call,
    counted,
    eventually,
    file_with,
    link_of,
    queued,
    rightful_sources,
    tracked,
)

KEY = "0123456789abcdef"
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    a = link("isp-a", 1, 10 * MBIT, shaped=False, mtu=1400, delegated=True)
    b = link("isp-b", 2, 20 * MBIT, shaped=False)
    assert a.delegated is not None
    lans = (lan(delegated=[a.delegated]), lan("dmz", 1))
    return make_lab(Topology((a, b), lans, servers(4)))


def run(lab: Lab, links: Mapping[str, Mapping[str, object]]) -> Daemon:
    return lab.run(file_with(lab, links, key=KEY))


def pairs(lab: Lab, family: Family) -> list[tuple[Address, Address]]:
    return list(product(lab.topology.lans[0].clients(family), lab.topology.serving(family)))


def delegated_hosts(lab: Lab) -> tuple[Address, ...]:
    prefix = lab.topology.link("isp-a").delegated
    assert prefix is not None
    return lab.topology.lans[0].delegated_clients(prefix)


def test_delegated_sources_are_pinned_and_untouched(lab: Lab) -> None:
    daemon = lab.run(lab.file(key=KEY))
    with rightful_sources(lab):
        for source, target in product(delegated_hosts(lab), lab.topology.serving(6)):
            for protocol in ("udp", "tcp"):
                with call(lab, target, protocol, source=source) as talk:
                    assert {talk.goes_on() for _ in range(2)} == {source}
                    assert tracked(lab, f"mark={1 << 24}", f"sport={talk.ports[0]}")
        assert queued(daemon) == 0
        # Hosts with local addresses are translated and balanced as ever.
        used = set()
        for source, target in pairs(lab, 6):
            with call(lab, target, source=source) as talk:
                seen = talk.goes_on()
                used.add(link_of(lab, seen))
                assert seen in [way.address(6) for way in lab.topology.links]
        assert used == {"isp-a", "isp-b"}
    assert counted(lab, "wrong_source") == 0


def test_delegated_hosts_are_reached_from_outside(lab: Lab) -> None:
    lab.run(lab.file(key=KEY))
    with rightful_sources(lab):
        for asker in lab.topology.serving(6):
            for protocol in ("udp", "tcp"):
                with Talk(
                    lab.server, asker, lab.client, delegated_hosts(lab)[0], protocol=protocol
                ) as talk:
                    assert {talk.goes_on() for _ in range(2)} == {asker}


def test_prefix_translation_keeps_the_host_part(lab: Lab) -> None:
    """Hosts with local addresses leave isp-a inside its prefix, one to one; isp-b's masquerade."""
    run(lab, {"isp-a": {"nat": "prefix"}})
    prefix = lab.topology.link("isp-a").delegated
    assert prefix is not None
    with rightful_sources(lab):
        seen: dict[Address, set[Address]] = {}
        for source, target in pairs(lab, 6):
            for protocol in ("udp", "tcp"):
                with call(lab, target, protocol, source=source) as talk:
                    outside = talk.goes_on()
                    assert talk.goes_on() == outside
                if link_of(lab, outside) == "isp-a":
                    seen.setdefault(source, set()).add(outside)
                    assert outside in prefix
                    assert int(outside) & (1 << 64) - 1 == int(source) & (1 << 64) - 1
        assert seen
        assert all(len(outsides) == 1 for outsides in seen.values())
        assert len(set().union(*seen.values())) == len(seen), "one to one"
    assert counted(lab, "wrong_source") == 0


@FAMILIES
def test_snat_writes_the_address_of_the_file(lab: Lab, family: Family) -> None:
    """A second address of the link, routed to us by the provider."""
    extra = {4: "192.0.2.77", 6: "2001:db8:1::77"}[family]
    length = {4: 24, 6: 64}[family]
    nodad = ["nodad"] if family == 6 else []
    lab.router.run("ip", "address", "add", f"{extra}/{length}", "dev", "wan1", *nodad)
    core = {4: "198.19.1.1", 6: "2001:db8:c001::1"}[family]
    lab.server.run("ip", "route", "add", extra, "via", core)
    run(lab, {"isp-a": {"nat": "snat", "address": [extra]}})
    used = set()
    for source, target in pairs(lab, family):
        for protocol in ("udp", "tcp"):
            with call(lab, target, protocol, source=source) as talk:
                used.add(str(talk.goes_on()))
    assert used == {extra, str(lab.topology.link("isp-b").address(family))}
    assert counted(lab, "wrong_source") == 0


@FAMILIES
def test_nat_none_leaves_sources_alone(lab: Lab, family: Family) -> None:
    """The provider routes the LAN's network to us, as between offices."""
    inside = str(lab.topology.lans[0].addresses[0 if family == 4 else 1].network)
    way = lab.topology.link("isp-a")
    core = {4: "198.19.1.1", 6: "2001:db8:c001::1"}[family]
    lab["isp-a"].run("ip", "route", "add", inside, "via", str(way.address(family)))
    lab.server.run("ip", "route", "add", inside, "via", core)
    run(lab, {"isp-a": {"nat": "none"}})
    used = set()
    for source, target in pairs(lab, family):
        for protocol in ("udp", "tcp"):
            with call(lab, target, protocol, source=source) as talk:
                seen = talk.goes_on()
                used.add("isp-a" if seen == source else link_of(lab, seen))
    assert used == {"isp-a", "isp-b"}
    # And from outside, to a host of the LAN by its own address.
    host, asker = lab.topology.lans[0].clients(family)[0], lab.topology.serving(family)[0]
    for protocol in ("udp", "tcp"):
        with Talk(lab.server, asker, lab.client, host, protocol=protocol) as talk:
            assert talk.goes_on() == asker
            assert tracked(lab, f"mark={1 << 24}", f"sport={talk.ports[0]}")


class SynReader:
    """Reads the MSS of SYN and SYN-ACK that an interface receives."""

    def __init__(self, namespace: Namespace, interface: str) -> None:
        with namespace.inside():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self._socket.bind((interface, 3))
        self._socket.settimeout(5)

    def mss(self, port: int, flags: str) -> int:
        """Of the next segment with these flags and that port on either side."""
        while True:
            frame, (_, _, kind, *_) = self._socket.recvfrom(2048)
            if kind == socket.PACKET_OUTGOING:
                continue
            segment = Ether(frame).getlayer(TCP)
            if segment and segment.flags == flags and port in (segment.sport, segment.dport):
                return int(dict(segment.options)["MSS"])

    def close(self) -> None:
        self._socket.close()


@FAMILIES
@pytest.mark.parametrize("mss", [None, 1200], ids=["by MTU", "by file"])
def test_segments_are_clamped_in_both_directions(lab: Lab, family: Family, mss: int | None) -> None:
    run(lab, {"isp-a": {"mss": mss}} if mss else {})
    extra = 20 if family == 6 else 0
    clamped = {"isp-a": (mss or 1360) - extra, "isp-b": 1460 - extra}
    readers = {name: SynReader(lab[name], "link") for name in clamped}
    inside = SynReader(lab.client, "eth0")
    used = set()
    try:
        for source, target in pairs(lab, family):
            with call(lab, target, "tcp", source=source) as talk:
                name = link_of(lab, talk.goes_on())
                used.add(name)
                assert talk.peer is not None
                port = talk.ports[1]
                assert readers[name].mss(port, "S") == clamped[name], "the SYN"
                assert inside.mss(port, "SA") == clamped[name], "the SYN-ACK"
    finally:
        for reader in (inside, *readers.values()):
            reader.close()
    assert used == {"isp-a", "isp-b"}


@FAMILIES
def test_long_streams_pass_the_small_link(lab: Lab, family: Family) -> None:
    """Both directions, with ICMP errors of the provider's path stopped: only the MSS helps."""
    run(lab, {})
    lab["isp-a"].run("iptables", "-A", "OUTPUT", "-p", "icmp", "-j", "DROP")
    lab["isp-a"].run(
        "ip6tables", "-A", "OUTPUT", "-p", "icmpv6", "--icmpv6-type", "2", "-j", "DROP"
    )
    for source, target in pairs(lab, family):
        with call(lab, target, "tcp", source=source) as talk:
            if link_of(lab, talk.goes_on()) != "isp-a":
                continue
            for one, other in ((talk.near, talk.far), (talk.far, talk.near)):
                one.sendall(bytes(50_000))
                left = 50_000
                while left:
                    left -= len(other.recv(65536))
            return
    pytest.fail("no pair went by isp-a")


@FAMILIES
def test_a_masqueraded_connection_never_leaves_by_another_link(lab: Lab, family: Family) -> None:
    """A new route in main sends it there: the kernel forgets it, and what follows is new."""
    lab.run(lab.file(key=KEY))
    # A local address of the LAN, since a delegated one would not be translated.
    source = lab.topology.lans[0].clients(family)[0]
    target = lab.topology.serving(family)[0]
    with rightful_sources(lab, moving=True), call(lab, target, source=source) as talk:
        kept = link_of(lab, talk.goes_on())
        (other,) = (way for way in lab.topology.links if way.name != kept)
        gateway = next(str(at) for at in other.gateways if at.version == family)
        route = [str(target), "via", gateway, "dev", other.interface]
        lab.router.run("ip", f"-{family}", "route", "add", *route)
        talk.far.settimeout(0.2)

        def heard_from() -> str:
            talk.near.send(talk.payload)
            try:
                return link_of(lab, ip_address(talk.far.recvfrom(64)[1][0]))
            except TimeoutError:
                return kept

        eventually(lambda: heard_from() == other.name, "it begins anew by the other link")


def test_what_another_translated_leaves_by_its_own_link_only(lab: Lab) -> None:
    """Somebody else's NAT comes first and gives everything isp-a's address."""
    lab.run(lab.file(key=KEY))
    way = lab.topology.link("isp-a")
    lan = lab.topology.lans[0]
    lab.router.run(
        *("nft", "-f", "-"),
        stdin=f"""table ip other {{
    chain translate {{
        type nat hook postrouting priority srcnat - 1;
        ip saddr {lan.clients(4)[0]} snat to {way.address(4)}
    }}
}}
""",
    )
    stopped = 0
    with rightful_sources(lab):
        for target in lab.topology.serving(4):
            with call(lab, target, source=lan.clients(4)[0], patience_s=0.3) as talk:
                before = counted(lab, "wrong_source")
                try:
                    assert link_of(lab, talk.goes_on()) == "isp-a"
                except TimeoutError:
                    stopped += 1
                    assert counted(lab, "wrong_source") > before
    assert 0 < stopped < len(lab.topology.serving(4)), "both links were chosen"
