"""ARP: is a neighbour there, whatever it lets through? IPv4 on Ethernet only."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address

from dataplane.config.model import Target
from dataplane.system.probe.asker import Address, Exit, Told, place, refused, words

_ETH_P_IP, _ETH_P_ARP, _ETHERNET = 0x0800, 0x0806, 1
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_REQUEST, _REPLY = 1, 2
_BROADCAST, _NOBODY = b"\xff" * 6, b"\0" * 6
_SO_ATTACH_FILTER = 26
_SIOCGIFFLAGS, _IFF_UP, _IFF_NOARP = 0x8913, 0x01, 0x80
_READ_AT_ONCE = 64
# "ldh [6]; jeq #2, else drop; return 64 bytes; drop": of ARP, the replies.
_ONLY_REPLIES = struct.pack(
    "=" + "HBBI" * 4, 0x28, 0, 0, 6, 0x15, 0, 1, _REPLY, 0x06, 0, 0, 64, 0x06, 0, 0, 0
)


@dataclass(frozen=True, slots=True)
class _Asked:
    token: int
    target: str
    own: bytes
    sent_ns: int
    until_ns: int


class ArpAsker:
    """ARP has no identifiers: an answer counts for the last question about that address."""

    def __init__(self, by: Exit, told: Told) -> None:
        self.remarks: dict[str, str] = {}
        self._by = by
        self._told = told
        self._asked: dict[IPv4Address, _Asked] = {}
        self._loop = asyncio.get_running_loop()
        try:
            # It hears nothing before it is bound, and by then only replies.
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0
            )
        except OSError as refusal:
            raise refused(by, "arp", refusal) from refusal
        try:
            _attach(self._socket, _ONLY_REPLIES)
            self._socket.bind((by.interface, _ETH_P_ARP))
        except OSError as refusal:
            self._socket.close()
            raise refused(by, "arp", refusal) from refusal
        self._loop.add_reader(self._socket, self._read)

    def ask(self, token: int, target: Target, address: Address, limit_s: float) -> None:
        if not isinstance(address, IPv4Address):
            self._told(token, None, "ARP is for IPv4 only")
            return
        try:
            if not self._has_arp():
                self._told(token, None, f"interface {self._by.interface} has no ARP")
                return
            source, mac = self._source(address), self._mac()
            question = _ARP.pack(
                _ETHERNET, _ETH_P_IP, 6, 4, _REQUEST, mac, source, _NOBODY, address.packed
            )
            # An interface that was down meanwhile left an error behind, which send would give.
            self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            now = time.monotonic_ns()
            everybody = (self._by.interface, _ETH_P_ARP, 0, 0, _BROADCAST)
            self._socket.sendto(question, everybody)
        except OSError as refusal:
            self._told(token, None, words(refusal))
            return
        for old in [known for known, asked in self._asked.items() if asked.until_ns < now]:
            del self._asked[old]
        until = now + int(limit_s * 1e9)
        self._asked[address] = _Asked(token, target.text, mac + source, now, until)

    def _has_arp(self) -> bool:
        request = struct.pack("16sH14x", self._by.interface.encode(), 0)
        flags = struct.unpack_from("16xH", fcntl.ioctl(self._socket, _SIOCGIFFLAGS, request))[0]
        name, _, _, hardware, _ = self._socket.getsockname()
        if name != self._by.interface:  # There is another one of that name by now.
            raise OSError(errno.ENODEV, "")
        if not flags & _IFF_UP:
            raise OSError(errno.ENETDOWN, "")
        return bool(hardware == _ETHERNET and not flags & _IFF_NOARP)

    def _mac(self) -> bytes:
        return bytes(self._socket.getsockname()[4])

    def _source(self, address: IPv4Address) -> bytes:
        """The address that the kernel itself would ask from.

        Without the mark, whose table may know the default route alone.
        """
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as routed:
            interface = self._by.interface.encode()
            routed.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface)
            routed.connect(place(address, 9))
            return IPv4Address(routed.getsockname()[0]).packed

    def _read(self) -> None:
        for _ in range(_READ_AT_ONCE):
            try:
                packet, sender = self._socket.recvfrom(64)
            except OSError:  # EAGAIN: all is read; ENETDOWN: once, when the interface goes down
                return
            if sender[2] == socket.PACKET_HOST and len(packet) >= _ARP.size:
                self._hear(packet)

    def _hear(self, packet: bytes) -> None:
        heard_ns = time.monotonic_ns()
        hardware, protocol, _, _, operation, _, sender, to_mac, to = _ARP.unpack_from(packet)
        if (hardware, protocol, operation) != (_ETHERNET, _ETH_P_IP, _REPLY):
            return
        asked = self._asked.get(IPv4Address(sender))
        if asked is None or heard_ns > asked.until_ns:
            return
        if to_mac + to != asked.own:
            to_whom = f"{IPv4Address(to)} at {to_mac.hex(':')}"
            self.remarks[asked.target] = f"an answer came for {to_whom} instead"
        else:
            del self._asked[IPv4Address(sender)]
            self.remarks.pop(asked.target, None)
            self._told(asked.token, (heard_ns - asked.sent_ns) / 1e6, "")

    def close(self) -> None:
        self._asked.clear()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()


def _attach(one: socket.socket, program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and where they are.
    attached = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
