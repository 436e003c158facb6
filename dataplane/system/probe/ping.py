"""ICMP and ICMPv6 echo through raw sockets: cheap, for it is what most links are probed with."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import count

from dataplane.config.model import Target
from dataplane.system.probe.asker import Address, Exit, Told, open_socket, place, refused, words

_ECHO = struct.Struct("!BBHHH")  # type, code, checksum, identifier, sequence
_WORDS16 = struct.Struct("!12H")
_REQUEST4, _REPLY4, _REQUEST6, _REPLY6 = 8, 0, 128, 129
_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1
# A set bit keeps a type out.
_ONLY_REPLIES4 = struct.pack("=I", 0xFFFFFFFF & ~(1 << _REPLY4))
_ONLY_REPLIES6 = struct.pack(
    "=8I", *(0xFFFFFFFF & ~(1 << _REPLY6 % 32 if n == _REPLY6 // 32 else 0) for n in range(8))
)
# Who asks, for those who look at their wire; a nonce follows.
_SIGN, _NONCE_BYTES = b"evenlink", 8
_READ_BYTES = 256
# Then the loop has its turn again, however fast somebody sends.
_READ_AT_ONCE = 64

_identifiers = count(int.from_bytes(os.urandom(2), "big"))


@dataclass(frozen=True, slots=True)
class _Asked:
    token: int
    target: str
    address: Address
    payload: bytes
    sent_ns: int
    until_ns: int


class PingAsker:
    """An answer counts if sender, identifier, sequence and payload are those of a question."""

    def __init__(self, by: Exit, told: Told) -> None:
        self.remarks: dict[str, str] = {}
        self._told = told
        self._identifier = next(_identifiers) & 0xFFFF
        self._sequence = 0
        self._asked: dict[int, _Asked] = {}
        self._loop = asyncio.get_running_loop()
        self._socket6: socket.socket | None = None
        try:
            self._socket4 = open_socket(by, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        except OSError as refusal:
            raise refused(by, "ping", refusal) from refusal
        try:
            self._socket4.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES4)
            self._socket6 = _open6(by)
        except OSError as refusal:
            self._socket4.close()
            raise refused(by, "ping", refusal) from refusal
        self._loop.add_reader(self._socket4, self._read4)
        if self._socket6 is not None:
            self._loop.add_reader(self._socket6, self._read6)

    def ask(self, token: int, target: Target, address: Address, limit_s: float) -> None:
        four = address.version == 4
        through = self._socket4 if four else self._socket6
        if through is None:
            self._told(token, None, "this kernel has no IPv6")
            return
        sequence = self._sequence = (self._sequence + 1) & 0xFFFF
        payload = _SIGN + os.urandom(_NONCE_BYTES)
        header = _ECHO.pack(_REQUEST4 if four else _REQUEST6, 0, 0, self._identifier, sequence)
        # Of IPv6, the kernel adds the checksum.
        packet = _with_checksum(header, payload) if four else header + payload
        now = time.monotonic_ns()
        self._forget(now, sequence)
        try:
            through.sendto(packet, place(address, 0))
        except OSError as refusal:
            self._told(token, None, words(refusal))
            return
        until = now + int(limit_s * 1e9)
        self._asked[sequence] = _Asked(token, target.text, address, payload, now, until)

    def _forget(self, now_ns: int, sequence: int) -> None:
        """What is over, oldest first, and who had this sequence 65,536 questions ago."""
        asked = self._asked
        while asked and asked[oldest := next(iter(asked))].until_ns < now_ns:
            del asked[oldest]
        asked.pop(sequence, None)

    def _read4(self) -> None:
        for _ in range(_READ_AT_ONCE):
            try:
                packet = self._socket4.recv(_READ_BYTES)
            except OSError:  # EAGAIN: all is read
                return
            if len(packet) < 20:
                continue
            echo = packet[(packet[0] & 15) * 4 :]
            if len(echo) >= _ECHO.size and echo[0] == _REPLY4:
                self._hear(echo, packet[12:16])

    def _read6(self) -> None:
        assert self._socket6 is not None
        for _ in range(_READ_AT_ONCE):
            try:
                echo, sender = self._socket6.recvfrom(_READ_BYTES)
            except OSError:  # EAGAIN: all is read
                return
            if len(echo) >= _ECHO.size and echo[0] == _REPLY6:
                self._hear(echo, ip_address(sender[0].partition("%")[0]).packed)

    def _hear(self, echo: bytes, sender: bytes) -> None:
        """One echo reply; nobody's question, and somebody else's ping, are passed over."""
        heard_ns = time.monotonic_ns()
        _, code, _, identifier, sequence = _ECHO.unpack_from(echo)
        asked = self._asked.get(sequence)
        if asked is None or heard_ns > asked.until_ns:
            return
        own = identifier == self._identifier
        payload = echo[_ECHO.size :] == asked.payload
        same = sender == asked.address.packed
        if own and payload and same and code == 0:
            del self._asked[sequence]
            self.remarks.pop(asked.target, None)
            self._told(asked.token, (heard_ns - asked.sent_ns) / 1e6, "")
        elif payload and not same:
            self.remarks[asked.target] = f"an answer came from {ip_address(sender)} instead"
        elif payload:
            self.remarks[asked.target] = "an answer came with a wrong identifier"
        elif own and same:
            self.remarks[asked.target] = "an answer came with another payload than was sent"

    def close(self) -> None:
        self._asked.clear()
        for one in (self._socket4, self._socket6):
            if one is not None and one.fileno() >= 0:
                self._loop.remove_reader(one)
                one.close()


def _open6(by: Exit) -> socket.socket | None:
    """None where the kernel has no IPv6."""
    try:
        made = open_socket(by, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    except OSError as refusal:
        if refusal.errno == errno.EAFNOSUPPORT:
            return None
        raise
    try:
        made.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, _ONLY_REPLIES6)
    except OSError:
        made.close()
        raise
    return made


def _with_checksum(header: bytes, payload: bytes) -> bytes:
    total: int = sum(_WORDS16.unpack(header + payload))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return header[:2] + (total ^ 0xFFFF).to_bytes(2, "big") + header[4:] + payload
