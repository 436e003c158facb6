"""Bytes -> flow | reason: the C parser, the oracle and scapy read every packet alike."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop

from dataplane.config.marks import Marks
from dataplane.decide.program import ProgramRule, Slots, compile_program, everywhere
from dataplane.hotpath import Classifier, Decision, Program
from tests import packets, reference
from tests.reference import Flow, Undecided

TABLE = bytes(1 + slot % 3 for slot in range(65536))
CLASSIFIER = Classifier(
    Program(
        compile_program(marks=Marks(), key=1, rules=[ProgramRule("all", everywhere(Slots(TABLE)))])
    )
)


def flow_of(decision: Decision) -> Flow:
    return Flow(
        decision.source,
        decision.destination,
        decision.protocol,
        decision.source_port,
        decision.destination_port,
        decision.fragment,
        decision.dscp,
    )


def read_in_c(packet: bytes) -> Flow | str:
    decision = CLASSIFIER.classify(packet)
    return flow_of(decision) if decision.reason == "decided" else decision.reason


def read_by_oracle(packet: bytes) -> Flow | str:
    try:
        return reference.read(packet)
    except Undecided as why:
        return str(why.args[0])


@given(packets.well_formed)
def test_c_oracle_and_scapy_agree_on_well_formed_packets(packet: bytes) -> None:
    assert read_in_c(packet) == read_by_oracle(packet) == reference.scapy_flow(packet)


@settings(max_examples=400)
@given(packets.anything)
def test_c_and_oracle_agree_on_anything(packet: bytes) -> None:
    assert read_in_c(packet) == read_by_oracle(packet)


@given(packets.ipv6_chains())
def test_c_and_oracle_agree_on_extension_headers(packet: bytes) -> None:
    assert read_in_c(packet) == read_by_oracle(packet)


@settings(max_examples=50)
@given(packets.well_formed)
def test_every_prefix_of_a_packet_is_read_alike(packet: bytes) -> None:
    for length in range(min(len(packet), 120) + 1):
        assert read_in_c(packet[:length]) == read_by_oracle(packet[:length])


UDP4 = bytes(IP(src="192.0.2.1", dst="198.51.100.2") / UDP(sport=7, dport=9) / b"payload")
TCP6 = bytes(IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(sport=7, dport=9))


def test_ipv4() -> None:
    assert read_in_c(UDP4) == Flow(bytes([192, 0, 2, 1]), bytes([198, 51, 100, 2]), 17, 7, 9)


def test_ipv6() -> None:
    flow = read_in_c(TCP6)
    assert isinstance(flow, Flow)
    assert (flow.source, flow.destination) == (TCP6[8:24], TCP6[24:40])
    assert (flow.protocol, flow.source_port, flow.destination_port) == (6, 7, 9)


def changed(packet: bytes, at: int, value: int) -> bytes:
    return packet[:at] + bytes([value]) + packet[at + 1 :]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "short-header"),
        (b"\x45", "short-header"),
        (UDP4[:19], "short-header"),
        (changed(UDP4, 0, 0x4F), "bad-total-length"),
        (changed(changed(UDP4, 0, 0x4A), 3, 40)[:39], "short-header"),
        (changed(UDP4, 0, 0x44), "bad-header-length"),
        (changed(UDP4, 3, 19), "bad-total-length"),
        (changed(UDP4, 3, 23), "short-ports"),
        (UDP4[:23], "short-ports"),
        (b"\x50" + UDP4[1:], "not-ip"),
        (b"\x00" * 60, "not-ip"),
        (TCP6[:39], "short-header"),
        (TCP6[:43], "short-ports"),
        (changed(TCP6, 5, 3), "short-ports"),
        (changed(TCP6, 6, 0)[:47], "short-extension"),
        (changed(changed(TCP6, 6, 0), 41, 255), "short-extension"),
        (b"\x60\0\0\0\0\x80\0\x40" + bytes(32 + 128), "many-extensions"),
    ],
)
def test_each_reason(packet: bytes, reason: str) -> None:
    assert read_in_c(packet) == reason
    assert read_by_oracle(packet) == reason


def test_reasons_are_counted() -> None:
    classifier = Classifier(CLASSIFIER.program)
    for packet in (UDP4, UDP4, TCP6, b"", b"\x00"):
        classifier.classify(packet)
    counted = {reason: n for reason, n in classifier.reasons().items() if n}
    assert counted == {"decided": 3, "short-header": 1, "not-ip": 1}


@pytest.mark.parametrize("length", [0, 65535])
def test_a_total_length_beyond_the_copied_bytes_is_no_fault(length: int) -> None:
    """Only the first bytes of a packet are copied; BIG TCP leaves a length of 0."""
    packet = UDP4[:2] + length.to_bytes(2, "big") + UDP4[4:28]
    assert read_in_c(packet) == read_in_c(UDP4)


def test_all_fragments_of_a_packet_give_one_flow() -> None:
    header = IP(src="192.0.2.1", dst="198.51.100.2", proto=17)
    first = header.copy()
    first.flags = "MF"
    later = header.copy()
    later.frag = 3
    pieces = [bytes(first / UDP(sport=7, dport=9)), bytes(later / b"\xff")]
    assert {read_in_c(piece) for piece in pieces} == {
        Flow(UDP4[12:16], UDP4[16:20], 17, fragment=True)
    }

    header6 = IPv6(src="2001:db8::1", dst="2001:db8::2")
    pieces6 = [
        bytes(header6 / IPv6ExtHdrFragment(m=1, nh=60) / IPv6ExtHdrHopByHop()),
        bytes(header6 / IPv6ExtHdrFragment(m=1, nh=60, offset=2) / b"\xff"),
        bytes(header6 / IPv6ExtHdrFragment(m=0, nh=60, offset=4) / b"\x00"),
    ]
    assert {read_in_c(piece) for piece in pieces6} == {
        Flow(TCP6[8:24], TCP6[24:40], 60, fragment=True)
    }
