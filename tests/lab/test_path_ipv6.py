"""What IPv6 needs besides: advertisements, neighbours, errors; and IPv6 alone, or not at all.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import errno
import socket
from functools import partial
from itertools import product

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether

from dataplane.lab import Lab, Topology, lan, link, servers, uplinks
from dataplane.lab.topology import MBIT, Family
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
    status,
    tracked,
)

KEY = "0123456789abcdef"
AUTO = {"isp-a": {"gateway6": "auto"}, "isp-b": {"gateway6": "auto"}}


def link_local(lab: Lab, role: str, interface: str) -> tuple[str, str]:
    """The MAC address and the link-local address of an interface."""
    mac = lab[role].run("cat", f"/sys/class/net/{interface}/address").stdout.strip()
    shown = lab[role].run("ip", "-6", "-o", "address", "show", "dev", interface, "scope", "link")
    return mac, shown.stdout.split("inet6 ")[1].split("/")[0]


def advertise(lab: Lab, name: str, lifetime_s: int = 1800, mtu: int = 1500) -> None:
    """The provider's router advertisement, as radvd sends it."""
    mac, source = link_local(lab, name, "link")
    prefix = str(next(a for a in lab.topology.link(name).addresses if a.version == 6).network[0])
    advertisement = (
        Ether(src=mac, dst="33:33:00:00:00:01")
        / IPv6(src=source, dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=lifetime_s)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac)
        / ICMPv6NDOptMTU(mtu=mtu)
        / ICMPv6NDOptPrefixInfo(prefix=prefix, prefixlen=64, L=1, A=0)
    )
    with lab[name].inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("link", 0))
        sender.send(bytes(advertisement))


def learned(lab: Lab) -> set[str]:
    """The interfaces that have a default route from an advertisement in main."""
    shown = lab.router.run("ip", "-6", "route", "show", "default", "proto", "ra").stdout
    shown += lab.router.run("ip", "-6", "route", "show", "default").stdout
    return {name for name in ("wan1", "wan2") if f"dev {name}" in shown}


def use_both(lab: Lab, family: Family = 6) -> None:
    """Connections of every pair, over both links."""
    used = set()
    pairs = product(lab.topology.lans[0].clients(family), lab.topology.serving(family))
    for source, target in pairs:
        for protocol in ("udp", "tcp"):
            with call(lab, target, protocol, source=source) as talk:
                used.add(link_of(lab, talk.goes_on()))
    assert used == {link.name for link in lab.topology.links}


def test_learned_gateways_survive_forwarding(two_links: Lab) -> None:
    lab = two_links
    assert lab.router.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding").stdout.strip() == "0"
    for name in ("isp-a", "isp-b"):
        advertise(lab, name)
    eventually(lambda: learned(lab) == {"wan1", "wan2"})
    daemon = lab.run(file_with(lab, AUTO, key=KEY))
    assert learned(lab) == {"wan1", "wan2"}, "purged when forwarding was switched on"
    for wan in ("wan1", "wan2"):
        assert lab.router.run("cat", f"/proc/sys/net/ipv6/conf/{wan}/accept_ra").stdout == "2\n"
    for number, name in ((1, "isp-a"), (2, "isp-b")):
        routes = lab.router.run("ip", "-6", "route", "show", "table", f"700{number}").stdout
        assert f"via {link_local(lab, name, 'link')[1]} dev wan{number}" in routes
    with rightful_sources(lab):
        use_both(lab)
    assert status(daemon)["queue"]["fallback"] == 0


def test_advertisements_are_followed_while_running(two_links: Lab) -> None:
    """A gateway that is learned later, withdrawn, and learned again."""
    lab = two_links
    advertise(lab, "isp-a")
    eventually(lambda: learned(lab) == {"wan1"})
    daemon = lab.run(file_with(lab, AUTO, key=KEY))

    def carrying() -> list[str]:
        return [link["name"] for link in status(daemon)["links"] if "ipv6" in link["carries"]]

    assert carrying() == ["isp-a"]
    with rightful_sources(lab):
        advertise(lab, "isp-b")
        eventually(lambda: carrying() == ["isp-a", "isp-b"])
        use_both(lab)
        advertise(lab, "isp-b", lifetime_s=0)
        eventually(lambda: carrying() == ["isp-a"])
        eventually(lambda: not [t for t in tracked(lab, f"mark={2 << 24}") if "ipv6" in t])
        for source in lab.topology.lans[0].clients(6):
            for target in lab.topology.serving(6):
                with call(lab, target, source=source) as talk:
                    assert link_of(lab, talk.goes_on()) == "isp-a"
        advertise(lab, "isp-b")
        eventually(lambda: carrying() == ["isp-a", "isp-b"])
        use_both(lab)
    with rightful_sources(lab):
        use_both(lab, 4)


def test_neighbours_are_found_anew(two_links: Lab) -> None:
    """Discovery is neither queued nor steered, on the LAN side and on the links."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    with rightful_sources(lab):
        for _ in range(3):
            for role in ("router", "client", "isp-a", "isp-b"):
                lab[role].run("ip", "-6", "neigh", "flush", "all")
            before = queued(daemon)
            with call(lab, lab.topology.serving(6)[0]) as talk:
                talk.goes_on()
            assert queued(daemon) == before + 1


def test_errors_find_their_way_back(two_links: Lab) -> None:
    """Packet too big, hop limit exceeded and unreachable, from beyond both links."""
    lab = two_links
    lab.run(lab.file(key=KEY))
    for name in ("isp-a", "isp-b"):
        lab[name].run("ip", "link", "set", "dev", "core", "mtu", "1300")
    used = set()
    with rightful_sources(lab):
        for source in lab.topology.lans[0].clients(6):
            for target in lab.topology.serving(6):
                with call(lab, target, source=source) as talk:
                    used.add(link_of(lab, talk.goes_on()))
                    talk.near.setsockopt(socket.IPPROTO_IPV6, 23, 2)  # IPV6_MTU_DISCOVER, DO
                    told = eventually(partial(refused, talk, bytes(1400)))
                    assert told == errno.EMSGSIZE
        assert used == {"isp-a", "isp-b"}
        target = lab.topology.serving(6)[0]
        for source in lab.topology.lans[0].clients(6):
            said = lab.client.run(
                "ping", "-6", "-n", "-c1", "-W2", "-t", "2", "-I", str(source), str(target),
                check=False,
            ).stdout  # fmt: skip
            assert "Hop limit" in said or "Time exceeded" in said, said
            with lab.client.inside(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as one:
                one.settimeout(5)
                one.bind((str(source), 0))
                one.connect((str(target), 9))
                one.send(b"is anybody there?")
                with pytest.raises(ConnectionRefusedError):
                    one.recv(10)


def refused(talk: Talk, data: bytes) -> int:
    """The error number that a send ends with, 0 if it does not."""
    try:
        talk.near.send(data)
    except OSError as error:
        return error.errno or 0
    return 0


def test_ipv6_alone(make_lab: MakeLab) -> None:
    lab = make_lab(uplinks(10 * MBIT, 20 * MBIT, shaped=False, families=(6,)))
    daemon = lab.run(lab.file(key=KEY))
    with rightful_sources(lab):
        use_both(lab)
        for target in lab.topology.serving(6):
            with Talk(lab.router, None, lab.server, target) as talk:
                assert link_of(lab, talk.goes_on()) in ("isp-a", "isp-b")
            for way in lab.topology.links:
                with Talk(lab.server, target, lab.router, way.address(6), protocol="tcp") as talk:
                    assert talk.goes_on() == target
    told = status(daemon)
    assert told["queue"]["fallback"] == 0
    assert told["links"][0]["share_slots"] == pytest.approx(1 / 3, abs=1 / 65536)
    assert told["links"][0]["carries"] == ["ipv6"]


def test_ipv6_off_is_left_alone(two_links: Lab) -> None:
    """Nothing of IPv6 is touched: no rule, no route, no forwarding, no queue, no translation."""
    lab = two_links
    for number in (1, 2):
        lab.router.run("ip", "-6", "route", "add", f"2001:db8:53::{number}",
                       "via", f"2001:db8:{number}::1")  # fmt: skip
    before = lab.router.run("sh", "-c", "ip -6 rule; ip -6 route show table all").stdout
    daemon = lab.run(lab.file(key=KEY, ipv6=False))
    assert lab.router.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding").stdout == "0\n"
    assert lab.router.run("cat", "/proc/sys/net/ipv6/conf/wan1/accept_ra").stdout == "1\n"
    assert lab.router.run("sh", "-c", "ip -6 rule; ip -6 route show table all").stdout == before
    use_both(lab, 4)
    asked = queued(daemon)
    with Talk(lab.router, None, lab.server, "2001:db8:53::1") as talk:
        assert str(talk.goes_on()) == "2001:db8:1::2"
        assert tracked(lab, "mark=0", f"sport={talk.ports[0]}")
    lab.router.set({"net/ipv6/conf/all/forwarding": 1})
    source = lab.topology.lans[0].clients(6)[0]
    core = "2001:db8:c002::1"
    lab.server.run("ip", "route", "add", str(source), "via", core)
    lab["isp-b"].run("ip", "route", "add", str(source), "via", "2001:db8:2::2")
    with call(lab, lab.topology.serving(6)[1]) as talk:
        assert talk.goes_on() == source, "not translated"
    assert queued(daemon) == asked
    assert counted(lab, "fallback") == counted(lab, "wrong_source") == 0


def test_a_family_without_links_is_left_to_main(make_lab: MakeLab) -> None:
    """IPv4 links only, and a tunnel of somebody else's that carries IPv6 by main's default."""
    links = tuple(
        link(name, n, n * 10 * MBIT, shaped=False, families=(4,))
        for n, name in enumerate(("isp-a", "isp-b"), 1)
    )
    lab = make_lab(Topology(links, (lan(), lan("dmz", 1)), servers(4)))
    tunnel, far = str(lab.topology.lans[1].clients(6)[0]), "2001:db8:53::1"
    lab.router.run("ip", "-6", "route", "add", "default", "via", tunnel)
    lab["dmz"].run("ip", "address", "add", far, "dev", "lo")
    daemon = lab.run(lab.file(key=KEY))
    use_both(lab, 4)
    source = lab.topology.lans[0].clients(6)[0]
    before = queued(daemon)
    with Talk(lab.client, source, lab["dmz"], far) as talk:
        # Unanswered: main is a decision too, else each would be asked about.
        assert {talk.says() for _ in range(5)} == {source}
        assert tracked(lab, f"mark={126 << 24}", f"sport={talk.ports[0]}")
    assert queued(daemon) == before + 1
    assert counted(lab, "fallback") == 0
