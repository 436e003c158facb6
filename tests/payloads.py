"""What applications say first, and packets around it. No payload here is a recorded one."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

from tests import quic

SYN, ACK, PUSH = 0x02, 0x10, 0x08
INFO_HASH = bytes(range(20))
PEER = b"-EL0001-abcdefghijkl"


def client_hello(host: str | None, protocols: Sequence[str] = ("h2", "http/1.1")) -> bytes:
    """TLS's first record, as Python's own TLS makes it; `host` is what it asks for."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    said = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), said, server_hostname=host)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return said.read()
    raise AssertionError("a handshake without an answer")


def _server_name(host: str) -> bytes:
    name = host.encode()
    entry = struct.pack("!BH", 0, len(name)) + name
    return struct.pack("!HHH", 0, 2 + len(entry), len(entry)) + entry


def _quic_hello(host: str) -> bytes:
    """A ClientHello of TLS 1.3 as QUIC carries it: no record around it, ALPN h3."""
    alpn = b"\x00\x10\x00\x05\x00\x03\x02h3"
    versions = b"\x00\x2b\x00\x03\x02\x03\x04"
    groups = b"\x00\x0a\x00\x04\x00\x02\x00\x1d"
    signatures = b"\x00\x0d\x00\x04\x00\x02\x04\x03"
    share = b"\x00\x33\x00\x26\x00\x24\x00\x1d\x00\x20" + bytes(range(32))
    parameters = b"\x00\x39\x00\x04\x01\x02\x67\x10"
    extensions = _server_name(host) + alpn + versions + groups + signatures + share + parameters
    body = b"\x03\x03" + bytes(range(32)) + b"\x00" + b"\x00\x02\x13\x01" + b"\x01\x00"
    body += struct.pack("!H", len(extensions)) + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + body


def quic_initial(host: str, connection: bytes = b"evenlink") -> bytes:
    """QUIC's first datagram, version 1."""
    return quic.initial(_quic_hello(host), connection)


def http_request(host: str, path: str = "/") -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "User-Agent: Evenlink", "Accept: */*"]
    return "\r\n".join([*lines, "", ""]).encode()


def _dns_name(name: str) -> bytes:
    labels = [label.encode() for label in name.rstrip(".").split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def dns_query(name: str, number: int = 0x1234, kind: int = 1) -> bytes:
    """A question for addresses; `kind` 1 is A, 28 is AAAA."""
    header = struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0)
    return header + _dns_name(name) + struct.pack("!HH", kind, 1)


def dns_answer(
    name: str, addresses: Sequence[str], number: int = 0x1234, ttl_s: int = 300
) -> bytes:
    """The answer to the question for these addresses, all of one family."""
    versions = {ip_address(address).version for address in addresses}
    kind = 28 if versions == {6} else 1
    question = dns_query(name, number, kind)[12:]
    header = struct.pack("!HHHHHH", number, 0x8180, 1, len(addresses), 0, 0)
    answers = b""
    for address in addresses:
        packed = ip_address(address).packed
        answers += b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, ttl_s, len(packed)) + packed
    return header + question + answers


def bittorrent_handshake() -> bytes:
    return b"\x13BitTorrent protocol" + bytes(8) + INFO_HASH + PEER


def bittorrent_question() -> bytes:
    """One of its distributed hash table, over UDP."""
    return b"d1:ad2:id20:" + PEER + b"9:info_hash20:" + INFO_HASH + b"e1:q9:get_peers1:t2:aa1:y1:qe"


def micro_transport(kind: int = 4, number: int = 1) -> bytes:
    """The header of uTP, BitTorrent's own transport over UDP; kind 4 opens a connection."""
    return struct.pack("!BBHIIIHH", kind << 4 | 1, 0, 4711, 1_000_000, 0, 1 << 20, number, 0)


def udp(source: str, sport: int, destination: str, dport: int, payload: bytes) -> bytes:
    """One packet from its IP header on. Checksums are left out."""
    segment = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return _ip(source, destination, socket.IPPROTO_UDP, segment)


def tcp(
    source: str,
    sport: int,
    destination: str,
    dport: int,
    payload: bytes = b"",
    flags: int = ACK,
    sequence: int = 0,
    acknowledged: int = 0,
) -> bytes:
    """One packet from its IP header on. Checksums are left out."""
    head = struct.pack(
        "!HHIIBBHHH", sport, dport, sequence, acknowledged, 5 << 4, flags, 64240, 0, 0
    )
    return _ip(source, destination, socket.IPPROTO_TCP, head + payload)


def _ip(source: str, destination: str, protocol: int, body: bytes) -> bytes:
    source_, destination_ = ip_address(source).packed, ip_address(destination).packed
    if len(source_) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0x4000, 64, protocol, 0)
    else:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
    return head + source_ + destination_ + body


@dataclass
class Conversation:
    """The packets of one connection, with the prefix that the router's copies of them have.

    `inbound` ones begin outside: the client is then no host of the LAN.
    """

    client: str
    sport: int
    server: str
    dport: int
    inbound: bool = False
    copies: list[tuple[bytes, bytes]] = field(default_factory=list)
    _sent: dict[bool, int] = field(default_factory=lambda: {True: 1000, False: 2000})

    def _copy(self, by_client: bool, packet: bytes) -> None:
        self.copies.append((packet, b"lan" if by_client != self.inbound else b"wan"))

    def segment(self, payload: bytes = b"", flags: int = ACK, *, by_client: bool = True) -> None:
        """One packet of TCP."""
        ends = (self.client, self.sport, self.server, self.dport)
        if not by_client:
            ends = (self.server, self.dport, self.client, self.sport)
        sequence = self._sent[by_client]
        acknowledged = self._sent[not by_client] if flags & ACK else 0
        self._copy(by_client, tcp(*ends, payload, flags, sequence, acknowledged))
        self._sent[by_client] += len(payload) + (1 if flags & SYN else 0)

    def open(self) -> Conversation:
        """TCP's three packets before anything is said."""
        self.segment(flags=SYN)
        self.segment(flags=SYN | ACK, by_client=False)
        self.segment()
        return self

    def say(self, payload: bytes, *, by_client: bool = True, most: int = 1400) -> Conversation:
        """As many segments as it takes, each answered by an empty one."""
        for at in range(0, len(payload), most):
            self.segment(payload[at : at + most], ACK | PUSH, by_client=by_client)
            self.segment(by_client=not by_client)
        return self

    def datagram(self, payload: bytes, *, by_client: bool = True) -> Conversation:
        """One packet of UDP."""
        ends = (self.client, self.sport, self.server, self.dport)
        if not by_client:
            ends = (self.server, self.dport, self.client, self.sport)
        self._copy(by_client, udp(*ends, payload))
        return self
