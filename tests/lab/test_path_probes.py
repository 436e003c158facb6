"""Sockets as our probes make them: by their own link, and no connections of that link.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from dataplane.lab import Lab, Topology, lan, link, servers, uplinks
from dataplane.lab.topology import MBIT, Address, Family, Link
from dataplane.system import conntrack
from tests.lab.conftest import MakeLab
from tests.lab.talk import counted, eventually, file_with, rightful_sources, tracked

KEY = "0123456789abcdef"
MASK = 0x7F000000
PROBE = 124 << 24
PRIORITY = 0x65766C00
SITUATIONS: dict[str, dict[str, object]] = {
    "first": {},
    "every": {"sections": {"queue": {"mode": "every"}}},
    "own-main": {"own_traffic": "main"},
    "no-ipv6": {"ipv6": False},
}
EACH_SITUATION = pytest.mark.parametrize("options", SITUATIONS.values(), ids=SITUATIONS.keys())


@contextmanager
def probing(
    lab: Lab, way: Link, kind: int, family: Family, protocol: int = 0
) -> Iterator[socket.socket]:
    """A socket with what a probe's has: device, mark and priority."""
    number = lab.topology.links.index(way) + 1
    with lab.router.inside():
        made = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind, protocol)
    with made:
        made.settimeout(5)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, way.interface.encode())
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, number << 24)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PRIORITY)
        yield made


@contextmanager
def serving(lab: Lab, target: Address, kind: int) -> Iterator[socket.socket]:
    with lab.server.inside():
        made = socket.socket(socket.AF_INET if target.version == 4 else socket.AF_INET6, kind)
    with made:
        made.settimeout(5)
        made.bind((str(target), 0))
        if kind == socket.SOCK_STREAM:
            made.listen()
        yield made


def forget_the_links(lab: Lab) -> None:
    with lab.router.inside():
        for number in range(1, len(lab.topology.links) + 1):
            for family in (4, 6):
                conntrack.forget(number << 24, MASK, family)


def is_a_probes(lab: Lab, *words: str) -> bool:
    """There is one entry with these words, and it has the mark of probes."""
    lines = tracked(lab, *words)
    return len(lines) == 1 and f"mark={PROBE}" in lines[0].split()


def ask_udp(lab: Lab, way: Link, target: Address, family: Family) -> None:
    with serving(lab, target, socket.SOCK_DGRAM) as far:
        with probing(lab, way, socket.SOCK_DGRAM, family) as near:
            near.connect(far.getsockname()[:2])
            for _ in range(3):
                near.send(b"question")
                heard, peer = far.recvfrom(64)
                assert (heard, ip_address(peer[0])) == (b"question", way.address(family))
                forget_the_links(lab)
                far.sendto(b"answer", peer)
                assert near.recv(64) == b"answer"
            words = (f"sport={near.getsockname()[1]}", f"dport={far.getsockname()[1]}")
            assert is_a_probes(lab, *words)
        # What comes too late is refused, by the same link, and the refusal adopts nothing.
        far.connect(peer[:2])
        far.send(b"late")
        with pytest.raises(ConnectionRefusedError):
            far.recv(64)
        assert is_a_probes(lab, *words)


def ask_tcp(lab: Lab, way: Link, target: Address, family: Family) -> None:
    with serving(lab, target, socket.SOCK_STREAM) as listener:
        with probing(lab, way, socket.SOCK_STREAM, family) as near:
            near.connect(listener.getsockname()[:2])
            far, peer = listener.accept()
            far.settimeout(5)
            assert ip_address(peer[0]) == way.address(family)
            forget_the_links(lab)
            near.send(b"question")
            assert far.recv(64) == b"question"
            far.send(b"answer")
            assert near.recv(64) == b"answer"
            words = (f"sport={near.getsockname()[1]}", f"dport={listener.getsockname()[1]}")
            assert is_a_probes(lab, *words)
        # Nobody reads the rest any more: the kernel speaks for itself.
        assert far.recv(64) == b""
        far.send(b"late")
        far.close()
        assert is_a_probes(lab, *words)


def ask_ping(lab: Lab, way: Link, target: Address, family: Family) -> None:
    protocol, asks, answers = (1, 8, 0) if family == 4 else (58, 128, 129)
    with probing(lab, way, socket.SOCK_RAW, family, protocol) as near:
        head = struct.pack("!BBHHH", asks, 0, 0, 4711, 1)
        if family == 4:
            total = sum(struct.unpack("!4H", head))
            head = head[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[4:]
        near.sendto(head, (str(target), 0))

        def heard() -> bool:
            packet, peer = near.recvfrom(256)
            echo = packet[(packet[0] & 15) * 4 :] if family == 4 else packet
            return ip_address(peer[0]) == target and echo[0] == answers and echo[4:6] == head[4:6]

        eventually(heard)
    assert is_a_probes(lab, "id=4711", f"src={way.address(family)}", f"dst={target}")


def check(lab: Lab) -> None:
    with rightful_sources(lab):
        for way in lab.topology.links:
            for family in way.families:
                targets = lab.topology.serving(family)
                ask_udp(lab, way, targets[0], family)
                ask_tcp(lab, way, targets[1], family)
                ask_ping(lab, way, targets[2], family)
    assert counted(lab, "fallback") == counted(lab, "wrong_source") == 0


@EACH_SITUATION
def test_probes_keep_to_their_link(make_lab: MakeLab, options: dict[str, object]) -> None:
    families: tuple[Family, ...] = (4,) if options.get("ipv6") is False else (4, 6)
    lab = make_lab(uplinks(10_000_000, 20_000_000, families=families, shaped=False))
    lab.run(file_with(lab, key=KEY, **options))  # type: ignore[arg-type]
    check(lab)


def test_links_that_share_an_interface(make_lab: MakeLab) -> None:
    """
    client ── router ── one Ethernet segment ─┬─ a ─┬─ server
                                              └─ b ─┘
    """
    links = tuple(
        link(name, n, n * 10 * MBIT, interface="wan", shaped=False, host=n)
        for n, name in enumerate(("a", "b"), 1)
    )
    lab = make_lab(Topology(links, (lan(),), servers(4)))
    lab.run(lab.file(key=KEY))
    check(lab)


def test_others_sockets_are_no_probes(make_lab: MakeLab) -> None:
    """Another priority, or none: the connection is the link's."""
    lab = make_lab(uplinks(10_000_000, 20_000_000, shaped=False))
    lab.run(lab.file(key=KEY))
    target = lab.topology.serving(4)[0]
    way = lab.topology.links[1]
    for priority in (0, 6, PRIORITY + 1):
        with (
            serving(lab, target, socket.SOCK_DGRAM) as far,
            probing(lab, way, socket.SOCK_DGRAM, 4) as near,
        ):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)
            near.connect(far.getsockname()[:2])
            near.send(b"question")
            assert ip_address(far.recvfrom(64)[1][0]) == way.address(4)
            words = (f"sport={near.getsockname()[1]}", f"dport={far.getsockname()[1]}")
            assert tracked(lab, f"mark={2 << 24}", *words)
