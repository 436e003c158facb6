"""The in-process benchmark: all deciders find the same, and captures are read as they were sent."""

from __future__ import annotations

import gzip
import struct
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.utils import PcapNgWriter

from bench import capture, deciders, hotpath, native
from bench.deciders import MARKS, Packets
from bench.measure import Options
from dataplane.decide.facts import Family
from dataplane.errors import MachineError
from dataplane.hotpath import Classifier
from tests.reference import Policy

FOUR = bytes(IP(src="192.0.2.1", dst="198.51.100.2") / UDP(sport=7, dport=9))
SIX = bytes(IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=7, dport=9))
ETHER = bytes(12)
SHORT = partial(Options, runs=1, seconds=0.001, quick=True)


def pcap(link_type: int, *frames: bytes) -> bytes:
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link_type)
    return head + b"".join(struct.pack("<IIII", 1, 0, len(f), len(f)) + f for f in frames)


def written(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("make", [Packets.random, Packets.of_all_sizes])
@pytest.mark.parametrize("family", [4, 6])
def test_ours_floor_and_oracle_decide_alike(
    family: Family, make: Callable[[Family, int], Packets]
) -> None:
    if why := native.missing("floor.c"):
        pytest.skip(why)
    packets, table = make(family, 300), deciders.slots(8)
    ours = deciders.ours(packets, deciders.program(table))
    floor = deciders.floor(packets, table)
    ours()
    floor()
    found = [MARKS.decision(mark) for mark in ours.args[-1]]
    policy = Policy(MARKS, deciders.KEY, [deciders.one_rule(table)])
    assert found == [policy.outcome(packet).decision for packet in packets]
    assert list(floor.args[-1]) == found


def test_half_of_the_packets_meet_the_list() -> None:
    program, spans = deciders.program_with_lists(1, 50, deciders.slots(2))
    packets = Packets.random(4, 200, spans)
    classifier = Classifier(program)
    classifier.classify_batch(packets.buffer, packets.offsets, array("I", bytes(4 * 200)))
    counted = classifier.counters()["rules"]
    assert counted[0] >= 100
    assert sum(counted.values()) == 200


@pytest.mark.parametrize(
    ("link_type", "head"),
    [
        (1, ETHER + b"%s"),
        (1, ETHER + b"\x81\0\0\x07%s"),
        (1, ETHER + b"\x88\xa8\0\x01\x81\0\0\x07%s"),
        (101, b""),
        (113, bytes(14) + b"%s"),
        (276, b"%s" + bytes(18)),
    ],
)
def test_link_types(link_type: int, head: bytes, tmp_path: Path) -> None:
    kinds = {FOUR: b"\x08\0", SIX: b"\x86\xdd"}
    frames = [head.replace(b"%s", kind) + packet for packet, kind in kinds.items()]
    found = capture.read(written(tmp_path / "a.pcap", pcap(link_type, *frames)))
    assert found.buffer == FOUR + SIX
    assert found.offsets.tolist() == [0, len(FOUR), len(FOUR) + len(SIX)]
    assert not found.skipped


def test_frames_without_ip_are_skipped_and_counted(tmp_path: Path) -> None:
    arp, cut = ETHER + b"\x08\x06" + bytes(28), ETHER + b"\x81\0\0"
    frames = [arp, ETHER + b"\x08\0" + FOUR, cut, arp, b""]
    found = capture.read(written(tmp_path / "a.pcap", pcap(1, *frames)))
    assert found.buffer == FOUR
    assert found.skipped == {"ethertype 0x0806": 2, "frame cut off": 2}
    other = capture.read(written(tmp_path / "b.pcap", pcap(105, FOUR)))
    assert (other.packets, other.skipped) == (0, {"link type 105": 1})


def test_pcapng_and_gzip(tmp_path: Path) -> None:
    with PcapNgWriter(str(tmp_path / "a.pcapng")) as writer:
        writer.write([IP(FOUR), IP(FOUR)])
    assert capture.read(tmp_path / "a.pcapng").buffer == 2 * FOUR
    packed = written(tmp_path / "a.pcap.gz", gzip.compress(pcap(101, FOUR)))
    assert capture.read(packed).buffer == FOUR


@pytest.mark.parametrize("content", [b"", b"[link.a]\n", pcap(1)[:20], b"\x1f\x8b garbage"])
def test_what_is_no_capture_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"x\.pcap: not a capture"):
        capture.read(written(tmp_path / "x.pcap", content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"gone\.pcap: No such file"):
        capture.read(tmp_path / "gone.pcap")


def test_captures_become_rows_and_notes(tmp_path: Path) -> None:
    files = (
        written(tmp_path / "a.pcap", pcap(101, FOUR, SIX, FOUR[:22], b"")),
        tmp_path / "gone.pcap",
        written(tmp_path / "empty.pcap", pcap(1)),
    )
    found = hotpath.measure(SHORT(only=frozenset({"none", "evenlink-a.pcap"}), pcaps=files))
    (row,) = found.as_json()["rows"]
    assert row["name"] == "evenlink-a.pcap"
    assert row["reasons"] == {"decided": 2, "short-header": 1, "short-ports": 1}
    assert sum(row["shares"].values()) == 1
    assert any("a.pcap: 4 packets; decided 2" in note for note in found.extra["notes"])
    assert set(found.left_out) == {"evenlink-gone.pcap", "evenlink-empty.pcap"}


def test_rows_and_curves() -> None:
    if why := native.missing("floor.c"):
        pytest.skip(why)
    found = hotpath.measure(SHORT()).as_json()
    assert {"evenlink", "floor", "oracle", "scapy", "evenlink-1M-ipv6"} <= {
        row["name"] for row in found["rows"]
    }
    assert {"evenlink/floor", "evenlink-ipv6/floor-ipv6"} <= set(found["ratios"])
    assert set(found["left_out"]) == {"evenlink-list-1M", "evenlink-16-rules-1M"}
    for curves in found["curves"].values():
        assert set(curves) == {"evenlink", "floor", "evenlink-ipv6", "floor-ipv6"}
        assert all(len(points) > 1 for points in curves.values())
