"""Names in lists: learned from answers that pass the router, or resolved by the router itself.

client ── router ─┬─ isp-a ─┬─ server, and the name server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import signal
import socket
import struct
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import dns.message
import pytest

from dataplane.lab import Daemon, Lab, Topology, lan, servers
from dataplane.lab import link as uplink
from dataplane.lab.topology import MBIT, Address
from tests.lab.conftest import MakeLab
from tests.lab.machine import held, live_in
from tests.lab.talk import call, eventually, link_of, rightful_sources, status
from tests.lab.zone import PORT, SERVER, Zone, ask, resolving

KEY = "0123456789abcdef"
ALL_BY_A = """
[list.shops]
names = {names}

[[rule]]
destination = ["@shops"]
use = "isp-a"
"""


def file_for(lab: Lab, *names: str) -> Path:
    """What goes to these names goes by isp-a."""
    text = lab.file(key=KEY).read_text()
    listed = ", ".join(f'"{name}"' for name in names)
    return lab.file(text=text + ALL_BY_A.replace("{names}", f"[{listed}]"))


def by_b(lab: Lab, version: int = 4, count: int = 1) -> list[tuple[Address, Address]]:
    """Pairs that go by isp-b as long as no rule says otherwise, each with a server of its own."""
    found: dict[Address, Address] = {}
    for source, target in lab.topology.pairs():
        # The first server is the name server's host.
        if target.version == version and target not in found and str(target) != SERVER:
            with call(lab, target, source=source) as talk:
                if link_of(lab, talk.goes_on()) == "isp-b":
                    found[target] = source
    assert len(found) >= count, "no such pairs: another key would have some"
    return [(source, target) for target, source in list(found.items())[:count]]


def way(lab: Lab, pair: tuple[Address, Address], protocol: str = "udp") -> str:
    """The link that a new connection of the pair takes."""
    source, target = pair
    with call(lab, target, protocol, source=source) as talk:
        return link_of(lab, talk.goes_on())


def learned(daemon: Daemon) -> int:
    """How much is learned for the list."""
    (one,) = (one for one in status(daemon)["lists"] if one["name"] == "shops")
    assert isinstance(one["learned"], int)
    return one["learned"]


def dns_of(daemon: Daemon) -> dict[str, Any]:
    found = status(daemon)["dns"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_a_wildcard_is_learned_from_answers(two_links: Lab, version: int) -> None:
    """A host asks for a name; whoever connects there afterwards follows the list's rule."""
    lab = two_links
    daemon = lab.run(file_for(lab, "*.example.org"))
    with rightful_sources(lab):
        named, other = by_b(lab, version, 2)
        held_s = 300
        names = {"www.example.org": (held_s, [named[1]]), "www.example.net": (held_s, [other[1]])}
        with Zone(lab, names):
            assert ask(lab, "www.example.net", version=version) == [str(other[1])]
            assert ask(lab, "www.example.org", version=version) == [str(named[1])]
            eventually(lambda: way(lab, named) == "isp-a")
        assert way(lab, named, "tcp") == "isp-a"
        assert way(lab, other) == "isp-b"
        assert learned(daemon) == 1
        assert dns_of(daemon)["answers"] == 1


def test_running_connections_stay(two_links: Lab) -> None:
    """What is learned is for new ones."""
    lab = two_links
    lab.run(file_for(lab, "*.example.org"))
    with rightful_sources(lab):
        (pair,) = by_b(lab)
        with (
            Zone(lab, {"www.example.org": (300, [pair[1]])}),
            call(lab, pair[1], "tcp", source=pair[0]) as before,
        ):
            assert link_of(lab, before.goes_on()) == "isp-b"
            ask(lab, "www.example.org")
            eventually(lambda: way(lab, pair) == "isp-a")
            assert link_of(lab, before.goes_on()) == "isp-b"


def test_what_the_router_asks_itself_is_learned_too(two_links: Lab) -> None:
    """As a name server on the router does for the LAN."""
    lab = two_links
    lab.run(file_for(lab, "*.example.org"))
    (pair,) = by_b(lab)
    with Zone(lab, {"www.example.org": (300, [pair[1]])}):
        assert ask(lab, "www.example.org", near=lab.router, source="0.0.0.0") == [str(pair[1])]
        eventually(lambda: way(lab, pair) == "isp-a")


def test_a_flood_of_questions_is_not_copied_whole(two_links: Lab) -> None:
    """It leaves the reader time; when it is over, learning goes on."""
    lab = two_links
    daemon = lab.run(file_for(lab, "*.example.org"))
    named, other = by_b(lab, count=2)

    def flood() -> bool:
        with lab.client.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.bind((str(other[0]), 0))
            for _ in range(5_000):
                asking.sendto(b"?", (str(other[1]), PORT))
        return bool(status(daemon)["not_copied"])

    eventually(flood)
    with Zone(lab, {"www.example.org": (300, [named[1]])}):
        eventually(lambda: bool(ask(lab, "www.example.org")) and way(lab, named) == "isp-a")


def test_an_answer_without_a_question(two_links: Lab) -> None:
    """A name server that says what nobody asked, or says it twice, teaches nothing more."""
    lab = two_links
    daemon = lab.run(file_for(lab, "*.example.org"))
    named, forged = by_b(lab, count=2)
    with Zone(lab, {"www.example.org": (300, [named[1]])}) as zone, lab.client.inside():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asking:
            asking.settimeout(5)
            asking.bind((str(named[0]), 0))
            asking.connect((SERVER, PORT))
            question = dns.message.make_query("www.example.org", "A")
            asking.send(question.to_wire())
            asking.recv(4096)
            eventually(lambda: dns_of(daemon)["answers"] == 1)
            # The same server, the same connection, the same identifier.
            zone.names["www.example.org"] = (300, [forged[1]])
            again = zone.answer(question).to_wire()
            zone._socket.sendto(again, zone.askers[-1])
            asking.recv(4096)
            eventually(lambda: dns_of(daemon)["ignored"] == 1)
    assert learned(daemon) == 1
    assert way(lab, forged) == "isp-b"


def test_an_answer_that_a_host_of_the_lan_forges(make_lab: MakeLab) -> None:
    """It knows all of the question, and whom it went to; but it comes from the LAN."""
    links = tuple(
        uplink(f"isp-{name}", n, n * 10 * MBIT, families=(4,), shaped=False)
        for n, name in enumerate("ab", 1)
    )
    lans = (lan(families=(4,)), lan("guests", 1, families=(4,)))
    lab = make_lab(Topology(links, lans, servers(4, (4,))))
    daemon = lab.run(file_for(lab, "*.example.org"))
    named, forged = by_b(lab, count=2)
    client = str(named[0])
    # Nothing on the way minds whose address it is.
    lab.router.set({"net/ipv4/conf/all/rp_filter": 0, "net/ipv4/conf/lan1/rp_filter": 0})
    with Zone(lab, {"www.example.org": (300, [named[1]])}) as zone:
        zone.silent = True
        with lab.client.inside():
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with lab["guests"].inside():
            forging = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with asking, forging:
            asking.settimeout(5)
            asking.bind((client, 0))
            question = dns.message.make_query("www.example.org", "A")
            asking.sendto(question.to_wire(), (SERVER, PORT))
            eventually(lambda: dns_of(daemon)["questions"] == 1)
            lie = Zone.answer(_Saying(zone, forged[1]), question).to_wire()
            ports = (PORT, asking.getsockname()[1])
            forging.sendto(_packet(SERVER, client, ports, lie), (client, 0))
            assert asking.recv(4096) == lie, "the lie gets through to the host"
            # The truth comes later.
            zone._socket.sendto(zone.answer(question).to_wire(), zone.askers[-1])
            eventually(lambda: way(lab, named) == "isp-a")
    assert way(lab, forged) == "isp-b"
    assert learned(daemon) == 1


class _Saying(Zone):
    """The zone, saying something else."""

    def __init__(self, zone: Zone, address: Address) -> None:
        self.names = dict.fromkeys(zone.names, (300, [address]))


def _packet(source: str, target: str, ports: tuple[int, int], data: bytes) -> bytes:
    udp = struct.pack("!HHHH", *ports, 8 + len(data), 0) + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    return head + ip_address(source).packed + ip_address(target).packed + udp


def test_names_that_the_router_resolves(two_links: Lab) -> None:
    """It asks again when the name's time is over, and follows what it hears then."""
    lab = two_links
    with resolving(lab):
        first, second = ip_address("203.0.113.2"), ip_address("203.0.113.3")
        with Zone(lab, {"shop.example.org": (1, [first])}) as zone:
            daemon = lab.run(file_for(lab, "shop.example.org", "gone.example.org"))
            eventually(lambda: learned(daemon) == 1)
            pairs = [(source, target) for source, target in lab.topology.pairs()]
            to_first = [pair for pair in pairs if pair[1] == first]
            to_second = [pair for pair in pairs if pair[1] == second]
            assert {way(lab, pair) for pair in to_first} == {"isp-a"}
            assert {way(lab, pair) for pair in to_second} == {"isp-a", "isp-b"}
            zone.names["shop.example.org"] = (1, [second])
            eventually(lambda: learned(daemon) == 2)
            assert {way(lab, pair) for pair in to_second} == {"isp-a"}
            faults = "list shops: gone.example.org does not resolve: NXDOMAIN"
            assert faults in status(daemon)["faults"]


def test_nothing_is_left(two_links: Lab) -> None:
    """Neither chains nor settings, once it is undone."""
    lab = two_links
    live_in(lab)
    before = held(lab)
    daemon = lab.run(file_for(lab, "*.example.org"))
    assert "copy_forward" in lab.router.run("nft", "list", "ruleset").stdout
    daemon.stop(signal.SIGINT)
    assert held(lab) == before
