"""The provider's side: what it saw with a source that is not its link's, and who used which link.

A packet socket on each provider's end of the link reads what the router sent, before the shaper.
The lab's clients begin their payloads with a magic number and the connection's number, so the
packets themselves say which link a connection took; no one else's word is needed.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from dataplane.lab import packetfilter
from dataplane.lab.namespaces import LabError
from dataplane.lab.network import Lab
from dataplane.lab.topology import Link

_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_BUFFER_BYTES = 64 << 20
_KEPT = 20


@dataclass(slots=True)
class Evidence:
    """What was seen so far.

    `links[id]` is the set of links that connection `id` used, one name unless it was torn.
    `wrong_source_packets` counts per link; `examples` describes the first few of them.
    """

    links: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    wrong_source_packets: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def torn(self) -> list[int]:
        """Connections that used more than one link."""
        return sorted(number for number, used in self.links.items() if len(used) > 1)

    def split(self, pair_of: Mapping[int, object]) -> int:
        """How many address pairs used more than one link; `pair_of[id]` is the connection's."""
        used: dict[object, set[str]] = defaultdict(set)
        for number, links in self.links.items():
            if number in pair_of:
                used[pair_of[number]] |= links
        return sum(1 for links in used.values() if len(links) > 1)


class Witness:
    """Reads while its `with` block runs. `testimony()` takes in what the kernel holds by then.

    No thread is needed: the filter passes little, and the buffers hold minutes of it.
    """

    def __init__(self, lab: Lab, buffer_bytes: int = _BUFFER_BYTES) -> None:
        self._lab = lab
        self._buffer_bytes = buffer_bytes
        self._sockets: dict[str, socket.socket] = {}
        self._indices: dict[str, int] = {}
        self._stack = ExitStack()
        self._seen = Evidence()

    def __enter__(self) -> Self:
        for link in self._lab.topology.links:
            self.attend(link.name)
        return self

    def attend(self, name: str) -> None:
        """Reads on the link from now on: for a link whose interface was made anew."""
        link = self._lab.topology.link(name)
        with self._lab[name].inside():
            index = socket.if_nametoindex("link")
            if self._indices.get(name) == index:
                return
            opened = self._stack.enter_context(_open(link, self._buffer_bytes))
        if name in self._sockets:
            self._drain(link, self._sockets[name])
            self._sockets[name].close()
        self._sockets[name], self._indices[name] = opened, index

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def testimony(self) -> Evidence:
        """Everything seen until now. LabError if the kernel lost a packet of it."""
        for name, opened in self._sockets.items():
            self._drain(self._lab.topology.link(name), opened)
            # struct tpacket_stats: packets, drops; reading sets both to zero.
            statistics = opened.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            dropped = struct.unpack("=II", statistics)[1]
            if dropped:
                raise LabError(f"the witness on {name} lost {dropped} packets: it proves nothing")
        return self._seen

    def _drain(self, link: Link, opened: socket.socket) -> None:
        while True:
            try:
                frame = opened.recv(packetfilter.SNAP_BYTES)
            except BlockingIOError:
                return
            except OSError as told:
                # Once, when the interface goes down; the socket goes on when it comes back.
                if told.errno != errno.ENETDOWN:
                    raise
                continue
            self._read(link, frame)

    def _read(self, link: Link, frame: bytes) -> None:
        packet = frame[14:]
        four = packet[0] >> 4 == 4
        source = ip_address(packet[12:16] if four else packet[8:24])
        if not any(source.version == p.version and source in p for p in link.rightful):
            self._seen.wrong_source_packets[link.name] += 1
            if len(self._seen.examples) < _KEPT:
                target = ip_address(packet[16:20] if four else packet[24:40])
                protocol = packet[9] if four else packet[6]
                self._seen.examples.append(
                    f"{link.name}: {source} > {target}, protocol {protocol}: {packet.hex()}"
                )
            return
        number = _connection(packet, four)
        if number is not None:
            self._seen.links[number].add(link.name)


def _connection(packet: bytes, four: bool) -> int | None:
    """The number in the payload of a packet that the filter passed."""
    header = (packet[0] & 15) * 4 if four else 40
    protocol = packet[9] if four else packet[6]
    transport = 8 if protocol == socket.IPPROTO_UDP else (packet[header + 12] >> 4) * 4
    payload = packet[header + transport : header + transport + 8]
    if len(payload) < 8:
        return None
    magic, number = struct.unpack("!II", payload)
    return int(number) if magic == packetfilter.MAGIC else None


def _open(link: Link, buffer_bytes: int) -> socket.socket:
    """A packet socket on `link` of this namespace. It reads nothing before its filter is on."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
    program = packetfilter.build(link.rightful)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and where they are.
    attached = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
    opened.bind(("link", _ETH_P_ALL))
    return opened
