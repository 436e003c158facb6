"""A capture file as the packets it holds: IP and nothing before it, one behind the other.

pcap and pcapng, also compressed by gzip; link types Ethernet (also with VLAN tags), raw IP, and
Linux "cooked" captures of both versions, as `tcpdump -i any` writes them.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dataplane.errors import MachineError

# Link types of libpcap: where the EtherType stands, and where what follows it begins.
_ETHERTYPE = {1: (12, 14), 113: (14, 16), 276: (0, 20)}
_RAW = {12, 14, 101, 228, 229}
_IP = {0x0800, 0x86DD}
_VLAN = {0x8100, 0x88A8, 0x9100}


@dataclass(frozen=True, slots=True)
class Capture:
    """`buffer` and `offsets` as `Classifier.classify_batch` takes them; `skipped`: frames that hold
    no IP, by kind."""

    buffer: bytes
    offsets: array[int]
    skipped: Mapping[str, int]

    @property
    def packets(self) -> int:
        return len(self.offsets) - 1


def read(path: Path) -> Capture:
    """All packets of the file; MachineError where it cannot be read."""
    try:
        from scapy.error import Scapy_Exception
        from scapy.utils import RawPcapReader
    except ImportError:
        raise MachineError(f"{path}: captures are read by scapy, which is not installed") from None

    packets: list[bytes] = []
    skipped: Counter[str] = Counter()
    try:
        with RawPcapReader(str(path)) as reader:
            for frame, about in reader:
                link_type = getattr(about, "linktype", None)
                packet = ip(frame, reader.linktype if link_type is None else link_type)
                if isinstance(packet, str):
                    skipped[packet] += 1
                else:
                    packets.append(packet)
    except OSError as fault:
        raise MachineError(f"{path}: {fault.strerror or fault}") from None
    except (Scapy_Exception, EOFError) as fault:
        raise MachineError(f"{path}: not a capture: {fault}") from None
    offsets = array("Q", [0])
    for packet in packets:
        offsets.append(offsets[-1] + len(packet))
    return Capture(b"".join(packets), offsets, dict(skipped))


def ip(frame: bytes, link_type: int) -> bytes | str:
    """The IP packet within the frame, or what the frame holds instead."""
    if link_type in _RAW:
        return frame
    if link_type not in _ETHERTYPE:
        return f"link type {link_type}"
    at, behind = _ETHERTYPE[link_type]
    while len(frame) >= behind:
        kind = int.from_bytes(frame[at : at + 2], "big")
        if kind in _IP:
            return frame[behind:]
        if kind not in _VLAN:
            return f"ethertype {kind:#06x}"
        at, behind = behind + 2, behind + 4
    return "frame cut off"
