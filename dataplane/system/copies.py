"""Copies of packets, which the kernel's `log group` rules send (linux/netfilter/nfnetlink_log.h).

A copy delays nothing and holds nothing up: where the socket's buffer is full, the copy is lost and
the packet goes its way. What is lost can be counted, since the kernel numbers the copies.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dataplane.errors import KernelError, MachineError

_NETLINK_NETFILTER = 12
_MSG_PACKET, _MSG_CONFIG = 4 << 8, 4 << 8 | 1
_REQUEST, _ACK = 0x1, 0x4
_ERROR = 2
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("!BBH")
_ATTRIBUTE = struct.Struct("=HH")
_KIND = 0x3FFF

_CFG_CMD, _CFG_MODE, _CFG_BUFFER, _CFG_TIMEOUT, _CFG_THRESHOLD, _CFG_FLAGS = range(1, 7)
_BIND, _COPY_PACKET, _NUMBERED = 1, 2, 1
_IN, _OUT, _PAYLOAD, _PREFIX, _NUMBER = 4, 5, 9, 10, 12
_SO_RCVBUFFORCE = 33
_BOUND = Path("/proc/thread-self/net/netfilter/nfnetlink_log")

# The kernel gathers copies up to this size into one datagram, and no datagram is larger by much.
GATHERED_BYTES = 65536
LARGEST_DATAGRAM = 131072
_PATIENCE_S = 10


@dataclass(frozen=True, slots=True)
class Copy:
    """One packet from its IP header on, cut off behind the bytes that were asked for.

    `prefix` is the rule's. `came_by` and `leaves_by` are interface indexes, 0 where there is none.
    """

    packet: bytes
    prefix: str = ""
    came_by: int = 0
    leaves_by: int = 0


class Copies:
    """The copies of one log group, from now on. MachineError where the group is another's or the
    right to it is missing, KernelError where the kernel refuses otherwise.

    At most `copy_bytes` of each packet are copied. The kernel hands copies over when `threshold`
    of them wait or the first has waited for `timeout_ms`.
    """

    def __init__(
        self,
        group: int,
        *,
        copy_bytes: int = 4096,
        threshold: int = 64,
        timeout_ms: int = 50,
        buffer_bytes: int = 4 << 20,
    ) -> None:
        self.group = group
        self.lost = 0
        """Copies that the kernel numbered and that never came."""
        self.overflows = 0
        """How often the socket said that its buffer had been full."""
        self._next: int | None = None
        try:
            self.socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
        except OSError as refusal:
            raise KernelError(f"log group {group}: {refusal.strerror or refusal}") from refusal
        try:
            self._open(copy_bytes, threshold, timeout_ms, buffer_bytes)
        except OSError as refusal:
            self.socket.close()
            if refusal.errno in (errno.EPERM, errno.EBUSY):
                if _is_bound(group):
                    words = f"log group {group} is bound by another process"
                    raise MachineError(words) from refusal
                raise MachineError(f"log group {group}: binding needs CAP_NET_ADMIN") from refusal
            raise KernelError(f"log group {group}: {refusal.strerror or refusal}") from refusal

    def _open(self, copy_bytes: int, threshold: int, timeout_ms: int, buffer_bytes: int) -> None:
        self.socket.bind((0, 0))
        self.socket.settimeout(_PATIENCE_S)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._ask(_attribute(_CFG_CMD, struct.pack("!B", _BIND)))
        self._ask(
            _attribute(_CFG_MODE, struct.pack("!IBB", copy_bytes, _COPY_PACKET, 0))
            + _attribute(_CFG_BUFFER, struct.pack("!I", GATHERED_BYTES))
            + _attribute(_CFG_TIMEOUT, struct.pack("!I", max(1, timeout_ms // 10)))
            + _attribute(_CFG_THRESHOLD, struct.pack("!I", threshold))
            + _attribute(_CFG_FLAGS, struct.pack("!H", _NUMBERED))
        )
        self.socket.setblocking(False)

    def _ask(self, attributes: bytes) -> None:
        """OSError if the kernel refuses. Copies that come before its answer are passed over."""
        body = _GENERIC.pack(socket.AF_UNSPEC, 0, self.group) + attributes
        size = _HEADER.size + len(body)
        self.socket.send(_HEADER.pack(size, _MSG_CONFIG, _REQUEST | _ACK, 1, 0) + body)
        while True:
            answer = self.socket.recv(LARGEST_DATAGRAM)
            if len(answer) >= _HEADER.size + 4 and _HEADER.unpack_from(answer)[1] == _ERROR:
                (code,) = struct.unpack_from("=i", answer, _HEADER.size)
                if code:
                    raise OSError(-code, errno.errorcode.get(-code, "unknown"))
                return

    def fileno(self) -> int:
        return self.socket.fileno()

    def receive(self) -> list[Copy]:
        """The copies of one datagram; none if none waits. KernelError if the socket fails."""
        try:
            data = self.socket.recv(LARGEST_DATAGRAM)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as refusal:
            if refusal.errno != errno.ENOBUFS:
                raise KernelError(f"log group {self.group}: {refusal.strerror}") from refusal
            self.overflows += 1
            return []
        found = []
        for number, copy in parse(data):
            if number is not None:
                if self._next is not None:
                    self.lost += (number - self._next) & 0xFFFFFFFF
                self._next = (number + 1) & 0xFFFFFFFF
            found.append(copy)
        return found

    def close(self) -> None:
        self.socket.close()


def parse(data: bytes) -> list[tuple[int | None, Copy]]:
    """The copies of a datagram, each with its number. Whatever has no packet is left out."""
    found = []
    place = 0
    while place + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, place)
        if length < _HEADER.size or place + length > len(data):
            break
        if kind == _MSG_PACKET:
            body = data[place + _HEADER.size + _GENERIC.size : place + length]
            attributes = _attributes(body)
            if packet := attributes.get(_PAYLOAD, b""):
                number = attributes.get(_NUMBER, b"")
                prefix = attributes.get(_PREFIX, b"").rstrip(b"\0")
                found.append(
                    (
                        int.from_bytes(number, "big") if len(number) == 4 else None,
                        Copy(
                            packet,
                            prefix.decode("ascii", "replace"),
                            _index(attributes.get(_IN)),
                            _index(attributes.get(_OUT)),
                        ),
                    )
                )
        place += (length + 3) & ~3
    return found


def _attributes(data: bytes) -> dict[int, bytes]:
    """Kind -> payload, up to the first attribute that does not fit."""
    found = {}
    place = 0
    while place + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if length < _ATTRIBUTE.size or place + length > len(data):
            break
        found[kind & _KIND] = data[place + _ATTRIBUTE.size : place + length]
        place += (length + 3) & ~3
    return found


def _is_bound(group: int) -> bool:
    """The kernel refuses both another's group and a lack of rights by EPERM."""
    with suppress(OSError):
        for line in _BOUND.read_text().splitlines():
            if line.split()[0] == str(group):
                return True
    return False


def _index(payload: bytes | None) -> int:
    return int.from_bytes(payload, "big") if payload and len(payload) == 4 else 0


def _attribute(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)
