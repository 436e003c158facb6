"""Packets for properties: well formed by scapy, built by hand where scapy cannot, and mutated."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

ports = st.integers(0, 65535)
octets = st.integers(0, 255)
addresses4 = st.ip_addresses(v=4).map(str)
addresses6 = st.ip_addresses(v=6).map(str)


@st.composite
def _transports(draw: st.DrawFn, ipv6: bool) -> Packet:
    kind = draw(st.sampled_from(["udp", "tcp", "sctp", "icmp"]))
    source, destination = draw(ports), draw(ports)
    body = Raw(draw(st.binary(max_size=24)))
    if kind == "udp":
        return UDP(sport=source, dport=destination) / body
    if kind == "tcp":
        return TCP(sport=source, dport=destination, options=[("NOP", None)] * 4) / body
    if kind == "sctp":
        return SCTP(sport=source, dport=destination) / body
    return (ICMPv6EchoRequest() if ipv6 else ICMP()) / body


@st.composite
def ipv4(draw: st.DrawFn) -> bytes:
    """With and without options, whole and fragments."""
    fragment = draw(st.sampled_from([("DF", 0), (0, 0), ("MF", 0), ("MF", 17), (0, 8191)]))
    header = IP(
        src=draw(addresses4),
        dst=draw(addresses4),
        flags=fragment[0],
        frag=fragment[1],
        tos=draw(octets),
        options=[IPOption_NOP()] * draw(st.sampled_from([0, 0, 1, 4, 40])),
    )
    return bytes(header / draw(_transports(False)))


@st.composite
def ipv6(draw: st.DrawFn) -> bytes:
    """With up to four extension headers that scapy knows."""
    packet: Packet = IPv6(src=draw(addresses6), dst=draw(addresses6), tc=draw(octets))
    for kind in draw(st.lists(st.sampled_from("hrdfa"), max_size=4)):
        options = [PadN(optdata=bytes(draw(st.integers(0, 20))))]
        if kind == "h":
            packet /= IPv6ExtHdrHopByHop(options=options)
        elif kind == "d":
            packet /= IPv6ExtHdrDestOpt(options=options)
        elif kind == "r":
            packet /= IPv6ExtHdrRouting(addresses=["2001:db8::1"] * draw(st.integers(0, 3)))
        elif kind == "f":
            packet /= IPv6ExtHdrFragment(
                m=draw(st.integers(0, 1)), offset=draw(st.sampled_from([0, 1, 8191]))
            )
        else:
            packet /= IPv6ExtHdrFragment(m=0, offset=0)
    return bytes(packet / draw(_transports(True)))


@st.composite
def ipv6_chains(draw: st.DrawFn) -> bytes:
    """Chains of any extension headers, AH and mobility too, too long ones, lengths that lie."""
    kinds = draw(st.lists(st.sampled_from([0, 43, 44, 51, 60, 135]), max_size=14))
    last = draw(st.sampled_from([6, 17, 33, 58, 59, 50, 132, 136]))
    body = b""
    for kind, following in pairwise([*kinds, last]):
        words = draw(st.sampled_from([0, 0, 0, 1, 2]))
        if kind == 44:
            word = draw(st.sampled_from([0, 0, 0, 0, 6, 1, 8, 0xFFF9]))
            body += bytes([following, 0]) + word.to_bytes(2, "big") + bytes(4)
        elif kind == 51:
            body += bytes([following, words]) + bytes(4 * (words + 2) - 2)
        else:
            body += bytes([following, words]) + bytes(8 * (words + 1) - 2)
    body += draw(st.binary(max_size=24))
    length = draw(st.one_of(st.just(len(body)), st.sampled_from([0, 1, 7, 8, 40, 65535])))
    head = b"\x60\0\0\0" + length.to_bytes(2, "big") + bytes([kinds[0] if kinds else last, 64])
    return head + draw(st.binary(min_size=32, max_size=32)) + body


def edges() -> Iterator[bytes]:
    """Every way to lie around the least a plain packet has: 24 bytes of IPv4, 44 of IPv6."""
    protocols = [0, 1, 6, 17, 43, 44, 51, 58, 60, 61, 132, 135, 136, 255]
    body = bytes(range(1, 61))
    for protocol, there in product(protocols, [20, 21, 23, 24, 25, 28, 60]):
        for first, total, fragment in product(
            [0x45, 0x44, 0x46, 0x55, 0x65],
            [0, 19, 20, 23, 24, 28, 256, 65535],
            [0, 0x4000, 0x2000, 1],
        ):
            head = bytes(
                [first, 0, *divmod(total, 256), 0, 0, *divmod(fragment, 256), 64, protocol]
            )
            yield head + body[len(head) : there]
    for protocol, there in product(protocols, [40, 43, 44, 45, 48, 60]):
        for first, payload in product([0x60, 0x6F, 0x50, 0x40], [0, 3, 4, 5, 8, 256, 65535]):
            head = bytes([first, 0, 0, 0, *divmod(payload, 256), protocol, 64])
            yield head + body[len(head) : there]


well_formed = st.one_of(ipv4(), ipv6())


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A packet with bytes changed, cut out, put in or cut off."""
    packet = bytearray(draw(st.one_of(ipv4(), ipv6(), ipv6_chains())))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(packet), 96)))
        change = draw(st.sampled_from(["set", "set", "cut", "remove", "insert"]))
        if change == "set" and at < len(packet):
            packet[at] = draw(st.integers(0, 255))
        elif change == "cut":
            del packet[at:]
        elif change == "remove":
            del packet[at : at + draw(st.integers(1, 8))]
        else:
            packet[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(packet)


anything = st.one_of(well_formed, ipv6_chains(), mutated(), st.binary(max_size=80))
