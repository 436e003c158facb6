"""The first packet of a connection, whatever its protocol, and the link by which it leaves."""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address

from dataplane.daemon.calling import ask
from dataplane.daemon.messages import Reload
from dataplane.lab import Daemon, Lab, Topology, lan, link, servers
from dataplane.lab.topology import MBIT
from tests.lab.links import FAST, KEY, is_quiet, undone
from tests.lab.talk import counted, link_of, rightful_sources

NAMES = ("isp-a", "isp-b", "isp-c")
# What no rule takes leaves by isp-a, so the link tells which rule it was.
DEFAULT = '[balance]\nlinks = ["isp-a"]\n'
# RFC 3692 keeps this protocol for experiments.
EXPERIMENT = 253
SILENT_S = 0.15
HERE, THERE = "10.10.1.0", "203.0.113.1"
HERE6, THERE6 = "fd00:db8::100", "2001:db8:53::1"

TOPOLOGY = Topology(
    tuple(link(name, n, n * 10 * MBIT, shaped=False) for n, name in enumerate(NAMES, 1)),
    (lan(), lan("dmz", 1)),
    servers(8),
)
# Has the daemon take the topology's file with these lines added.
Take = Callable[[str], None]


@contextmanager
def serving(lab: Lab) -> Iterator[Daemon]:
    """A daemon; afterwards the router is what it was."""
    with undone(lab):
        started = lab.run(lab.file(key=KEY, probe=FAST))
        yield started
        is_quiet(started)
        assert started.stop(signal.SIGINT) == 0


@contextmanager
def taking(lab: Lab, moving: bool = False) -> Iterator[Take]:
    """Nobody sees a wrong source meanwhile, and no connection on two links unless some move."""

    def take(lines: str) -> None:
        path = lab.file(key=KEY, probe=FAST)
        path.write_text(f"{path.read_text()}\n{lines}")
        ask(path.parent / "control.sock", Reload())
        # What has no ports would go on with a connection of the test before.
        lab.router.run("conntrack", "-F")

    with rightful_sources(lab, moving):
        yield take
    assert counted(lab, "wrong_source") == 0


@dataclass(frozen=True)
class Sent:
    """The first packet of a connection."""

    source: str | None = HERE
    target: str = THERE
    protocol: str = "udp"
    port: int = 9
    source_port: int = 0
    dscp: int = 0
    lan: str = "client"

    def by(self, lab: Lab, patience_s: float = 5.0) -> str:
        """The link by which it leaves, as the server sees it."""
        far = socket_of(lab, "server", self)
        near = socket_of(lab, self.lan, self)
        with far, near:
            if self.source is not None:
                near.bind((self.source, self.source_port))
            far.bind((self.target, self.port if self.protocol in ("tcp", "udp") else 0))
            for one in (near, far):
                one.settimeout(patience_s)
            if self.protocol == "tcp":
                far.listen()
            near.connect((self.target, self.port))
            if self.protocol == "tcp":
                accepted, peer = far.accept()
                accepted.close()
            else:
                near.send(payload(self.protocol))
                _, peer = far.recvfrom(1500)
        return link_of(lab, ip_address(peer[0]))


def payload(protocol: str) -> bytes:
    """An echo request, or anything."""
    if protocol == "icmp":
        return struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - 7 - 1, 7, 1)
    # The kernel fills in ICMPv6's checksum.
    return struct.pack("!BBHHH", 128, 0, 0, 7, 1) if protocol == "icmpv6" else b"datagram"


def socket_of(lab: Lab, role: str, sent: Sent) -> socket.socket:
    six = ":" in sent.target
    family = socket.AF_INET6 if six else socket.AF_INET
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    protocols = {"icmp": socket.IPPROTO_ICMP, "icmpv6": socket.IPPROTO_ICMPV6}
    raw = protocols.get(sent.protocol, EXPERIMENT)
    with lab[role].inside():
        if sent.protocol in kinds:
            made = socket.socket(family, kinds[sent.protocol])
        else:
            made = socket.socket(family, socket.SOCK_RAW, raw)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    level, option = (
        (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if six else (socket.IPPROTO_IP, socket.IP_TOS)
    )
    made.setsockopt(level, option, sent.dscp << 2)
    return made


def rule(conditions: str, use: str = "isp-b") -> str:
    return f'\n[[rule]]\n{conditions}\nuse = "{use}"\n'


@contextmanager
def leaving(lab: Lab, port: int) -> Iterator[Callable[[], int]]:
    """Counts packets to that port that any provider receives."""
    table = (
        "table inet seen {{\ncounter seen {{}}\n"
        "chain in {{\ntype filter hook prerouting priority -300\n"
        'iifname "link" th dport {port} counter name seen\n}}\n}}\n'
    )
    for name in NAMES:
        lab[name].run("nft", "-f", "-", stdin=table.format(port=port))
    try:
        yield lambda: sum(
            int(
                lab[name]
                .run("nft", "list", "counter", "inet", "seen", "seen")
                .stdout.split("packets")[1]
                .split()[0]
            )
            for name in NAMES
        )
    finally:
        for name in NAMES:
            lab[name].run("nft", "delete", "table", "inet", "seen")
