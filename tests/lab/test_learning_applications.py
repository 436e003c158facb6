"""Applications and hosts: what one connection teaches, the next one follows.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dataplane.daemon.recogniser import available
from dataplane.lab import Daemon, Lab
from dataplane.lab.topology import Address
from tests import payloads
from tests.lab.talk import Talk, call, eventually, link_of, rightful_sources, status

pytestmark = pytest.mark.skipif(not available(), reason="built without nDPI")

KEY = "0123456789abcdef"
HOST = "www.example.org"
HOSTS = '{ host = ["*.example.org"] }'
COUNTING = Path("/proc/sys/net/netfilter/nf_conntrack_acct")

Pair = tuple[Address, Address]


def file_for(lab: Lab, application: str) -> Path:
    """What is that goes by isp-a."""
    text = lab.file(key=KEY).read_text()
    return lab.file(text=f'{text}\n[[rule]]\napplication = {application}\nuse = "isp-a"\n')


def serve(lab: Lab, application: str) -> Daemon:
    """The daemon, which recognises from now on."""
    daemon = lab.run(file_for(lab, application))
    eventually(lambda: recogniser(daemon)["running"], "the recogniser never ran")
    return daemon


def recogniser(daemon: Daemon) -> dict[str, Any]:
    found = status(daemon)["recogniser"]
    assert isinstance(found, dict)
    return found


def by_b(lab: Lab, protocol: str, port: int, version: int = 4) -> Pair:
    """A pair whose connections go by isp-b as long as nothing was learned."""
    for source, target in lab.topology.pairs():
        if target.version == version and way(lab, (source, target), protocol, port) == "isp-b":
            return source, target
    raise AssertionError("no pair goes by isp-b")


def way(lab: Lab, pair: Pair, protocol: str, port: int) -> str:
    """The link that a new connection of the pair to that port takes."""
    source, target = pair
    with call(lab, target, protocol, source=source, port=port) as talk:
        return link_of(lab, talk.goes_on())


@contextmanager
def speaking(lab: Lab, pair: Pair, protocol: str, port: int, said: bytes) -> Iterator[Talk]:
    """A connection in which the client says this first, and the server says something back."""
    source, target = pair
    with call(lab, target, protocol, source=source, port=port) as talk:
        talk.near.send(said)
        _, peer = talk.far.recvfrom(4096)
        if protocol == "tcp":
            talk.far.send(b"well")
        else:
            talk.far.sendto(b"well", peer)
        assert talk.near.recv(64) == b"well"
        yield talk


SPOKEN = {
    "tls": ("tcp", 443, payloads.client_hello(HOST)),
    "quic": ("udp", 443, payloads.quic_initial(HOST)),
    "http": ("tcp", 80, payloads.http_request(HOST)),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("name", SPOKEN)
def test_a_host_is_learned_from_what_a_client_says(two_links: Lab, name: str, version: int) -> None:
    """By its name in the first words; then that port of that server follows the rule."""
    lab = two_links
    protocol, port, said = SPOKEN[name]
    with rightful_sources(lab):
        daemon = serve(lab, HOSTS)
        pair = by_b(lab, protocol, port, version)
        assert way(lab, pair, protocol, port) == "isp-b"
        with speaking(lab, pair, protocol, port, said):
            eventually(lambda: status(daemon)["learned"]["entries"] == 1)
        eventually(lambda: way(lab, pair, protocol, port) == "isp-a")
        assert way(lab, pair, protocol, port + 1) == "isp-b", "another port is another server"
        assert recogniser(daemon)["findings"] >= 1


def test_another_host_teaches_nothing(two_links: Lab) -> None:
    lab = two_links
    daemon = serve(lab, HOSTS)
    pair = by_b(lab, "tcp", 443)
    with speaking(lab, pair, "tcp", 443, payloads.client_hello("www.example.net")):
        eventually(lambda: recogniser(daemon)["findings"] >= 1)
    assert status(daemon)["learned"]["entries"] == 0
    assert way(lab, pair, "tcp", 443) == "isp-b"


def test_bittorrent_teaches_both_ends(two_links: Lab) -> None:
    """Its client speaks to all others from one port, which follows the rule wherever it goes."""
    lab = two_links
    daemon = serve(lab, '["bittorrent"]')
    pair = by_b(lab, "udp", 6881)
    source, target = pair
    with speaking(lab, pair, "udp", 6881, payloads.bittorrent_question()) as talk:
        eventually(lambda: status(daemon)["learned"]["entries"] == 2)
        port = talk.ports[0]
    eventually(lambda: way(lab, pair, "udp", 6881) == "isp-a")
    others = [other for other in lab.topology.serving(4) if other != target]
    assert {way_from(lab, source, port, other) for other in others} == {"isp-a"}
    ways = {
        way_from(lab, source, free, other) for free in range(50_000, 50_003) for other in others
    }
    assert "isp-b" in ways, "other ports of the client go as ever"


def way_from(lab: Lab, source: Address, port: int, target: Address) -> str:
    """The link that a datagram from that very port takes."""
    with lab.client.inside():
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with lab.server.inside():
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with near, far:
        far.settimeout(5)
        near.bind((str(source), port))
        far.bind((str(target), 0))
        near.sendto(b"x", far.getsockname())
        _, (seen, _) = far.recvfrom(64)
    return link_of(lab, ip_address(seen))


def test_a_running_connection_keeps_its_link(two_links: Lab) -> None:
    """What it says is known too late for itself."""
    lab = two_links
    daemon = serve(lab, HOSTS)
    pair = by_b(lab, "tcp", 443)
    with rightful_sources(lab), speaking(lab, pair, "tcp", 443, SPOKEN["tls"][2]) as talk:
        eventually(lambda: status(daemon)["learned"]["entries"] == 1)
        assert link_of(lab, talk.goes_on()) == "isp-b"


def child(daemon: Daemon) -> int:
    """The recogniser's process."""
    for found in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # It may end meanwhile.
            fields = found.read_text().rpartition(")")[2].split()
            if int(fields[1]) == daemon.process.pid:
                return int(found.parent.name)
    raise AssertionError("it has none")


def test_a_full_buffer_costs_connections_nothing(two_links: Lab) -> None:
    """While the recogniser stands still, copies are lost and counted; packets go on."""
    lab = two_links
    daemon = serve(lab, HOSTS)
    pair = by_b(lab, "udp", 443)
    source, target = pair
    stopped = child(daemon)
    os.kill(stopped, signal.SIGSTOP)
    try:
        with rightful_sources(lab):
            # Each has eight packets that are copied, of as many bytes as fit into one.
            with lab.server.inside():
                far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            far.settimeout(5.0)
            with far, lab.client.inside():
                far.bind((str(target), 443))
                for _ in range(1200):
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
                        near.bind((str(source), 0))
                        for _ in range(8):
                            near.sendto(bytes(1400), (str(target), 443))
                        for _ in range(8):
                            assert far.recv(4096) == bytes(1400)
    finally:
        os.kill(stopped, signal.SIGCONT)
    # On a slow machine he was silent for ten seconds and is replaced; his losses went with him.
    eventually(lambda: recogniser(daemon)["lost"] > 0 or recogniser(daemon)["restarts"] > 0)
    with speaking(lab, pair, "tcp", 443, SPOKEN["tls"][2]):
        eventually(lambda: way(lab, pair, "tcp", 443 + 1) and status(daemon)["learned"]["entries"])


def test_packets_are_counted_only_while_that_is_needed(two_links: Lab) -> None:
    """The kernel's setting is put back with all the others."""
    lab = two_links
    with lab.router.inside():
        assert COUNTING.read_text() == "0\n"
    daemon = serve(lab, HOSTS)
    with lab.router.inside():
        assert COUNTING.read_text() == "1\n"
    stopped = child(daemon)
    daemon.stop(signal.SIGINT)
    with lab.router.inside():
        assert COUNTING.read_text() == "0\n"
    assert not Path("/proc", str(stopped)).exists()
