"""Connections by mark: how many there are, which, and forgetting them.

The kernel filters by CTA_MARK and CTA_MARK_MASK itself, in dumps and in deletions (conntrack's
netlink interface, linux/netfilter/nfnetlink_conntrack.h), so nothing else is read or touched.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from dataplane.decide.facts import Family
from dataplane.decide.failback import Connection
from dataplane.errors import KernelError

_AF: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_NETLINK_NETFILTER = 12
_SUBSYSTEM_CTNETLINK = 1 << 8
_GET, _DELETE = _SUBSYSTEM_CTNETLINK | 1, _SUBSYSTEM_CTNETLINK | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_GENERIC_BYTES = 4
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_KIND = 0x3FFF

_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_STATUS, _CTA_TIMEOUT = 1, 2, 3, 7
_CTA_MARK, _CTA_ID, _CTA_ZONE, _CTA_MARK_MASK = 8, 12, 18, 21
_TUPLE_IP, _TUPLE_PROTO = 1, 2
# Source and destination address, by family.
_IP: dict[Family, tuple[int, int, int]] = {4: (1, 2, 4), 6: (3, 4, 16)}
_PROTO_NUM, _PROTO_SPORT, _PROTO_DPORT = 1, 2, 3
# Id, type and code, by protocol.
_ICMP = {1: (4, 5, 6), 58: (7, 8, 9)}

Attributes = dict[int, bytes]


def forget(mark: int, mask: int, family: Family) -> None:
    """Deletes every connection of the family whose mark has this value under the mask."""
    _delete(_by_mark(mark, mask), family, f"forgetting mark {mark:#x}")


def forget_one(connection: Connection) -> None:
    """Deletes this very entry, and not a later one of the same addresses and ports.

    As far as the kernel's id tells: a later one in the same place of its memory has the same.
    """
    body = _attribute(_CTA_TUPLE_ORIG | _NESTED, connection.original)
    body += _attribute(_CTA_ID, struct.pack("!I", connection.id))
    if connection.zone:
        body += _attribute(_CTA_ZONE, struct.pack("!H", connection.zone))
    _delete(body, connection.family, "forgetting a connection")


def count(mark: int, mask: int) -> int:
    """How many connections have this mark value under the mask."""
    return sum(1 for _ in _dump(mark, mask, socket.AF_UNSPEC))


def connections(mark: int, mask: int, family: Family) -> Iterator[Connection]:
    """The connections of the family whose mark has this value under the mask.

    They are read as they are asked for, so that a large table needs no memory. Whoever forgets
    some of them meanwhile may meet others twice, but misses none.
    """
    for message in _dump(mark, mask, _AF[family]):
        found = parse(message, family)
        if found is not None:
            yield found


def parse(message: bytes, family: Family) -> Connection | None:
    """The attributes of one dumped entry as a connection, or None if they name no entry."""
    attributes = _attributes(message)
    original = attributes.get(_CTA_TUPLE_ORIG, b"")
    tuple_ = _attributes(original)
    source_kind, destination_kind, size = _IP[family]
    addresses = _attributes(tuple_.get(_TUPLE_IP, b""))
    proto = _attributes(tuple_.get(_TUPLE_PROTO, b""))
    source, destination = addresses.get(source_kind, b""), addresses.get(destination_kind, b"")
    id_ = attributes.get(_CTA_ID, b"")
    protocol = proto.get(_PROTO_NUM, b"")
    if len(source) != size or len(destination) != size or len(id_) != 4 or len(protocol) != 1:
        return None
    answered = _attributes(_attributes(attributes.get(_CTA_TUPLE_REPLY, b"")).get(_TUPLE_IP, b""))
    timeout = attributes.get(_CTA_TIMEOUT)
    return Connection(
        family,
        source,
        destination,
        protocol[0],
        _number(proto.get(_PROTO_SPORT), 2),
        _number(proto.get(_PROTO_DPORT), 2),
        _echo(protocol[0], proto),
        answered.get(destination_kind, b""),
        _number(attributes.get(_CTA_MARK)),
        _number(attributes.get(_CTA_STATUS)),
        None if timeout is None else _number(timeout),
        _number(id_),
        original,
        _number(attributes.get(_CTA_ZONE), 2),
    )


def _echo(protocol: int, proto: Attributes) -> tuple[int, int, int]:
    if protocol not in _ICMP:
        return 0, 0, 0
    id_, type_, code = _ICMP[protocol]
    return _number(proto.get(id_), 2), _number(proto.get(type_), 1), _number(proto.get(code), 1)


def _attributes(data: bytes) -> Attributes:
    """Kind -> payload, up to the first attribute that does not fit."""
    found = {}
    place, end = 0, len(data) - 3
    while place < end:
        length, kind = _ATTRIBUTE.unpack_from(data, place)
        if length < 4 or place + length > len(data):
            break
        found[kind & _KIND] = data[place + 4 : place + length]
        place += (length + 3) & ~3
    return found


def _number(payload: bytes | None, size: int = 4) -> int:
    """In network order; 0 where it is missing or not of that size."""
    return int.from_bytes(payload, "big") if payload and len(payload) == size else 0


def _dump(mark: int, mask: int, family: int) -> Iterator[bytes]:
    """The attributes of each entry, as the kernel sends them, about a hundred at a time."""
    with _socket() as netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        netlink.send(_request(_GET, _REQUEST | _DUMP, _by_mark(mark, mask), family))
        while True:
            data = netlink.recv(262144)
            place = 0
            while place + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, place)
                if kind == _DONE:
                    return
                if kind == _ERROR or length < _HEADER.size:
                    raise KernelError("conntrack: the kernel refused to list connections")
                yield data[place + _HEADER.size + _GENERIC_BYTES : place + length]
                place += (length + 3) & ~3


def _delete(body: bytes, family: Family, doing: str) -> None:
    with _socket() as netlink:
        netlink.send(_request(_DELETE, _REQUEST | _ACK, body, _AF[family]))
        answer = netlink.recv(65536)
        kind = _HEADER.unpack_from(answer)[1]
        code = struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _ERROR else 0
        # ENOENT: there was none.
        if code and -code != 2:
            raise KernelError(f"conntrack: {doing}: {os.strerror(-code)}")


@contextmanager
def _socket() -> Iterator[socket.socket]:
    """Whatever goes wrong with it, silence too, is a KernelError."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
            netlink.bind((0, 0))
            netlink.settimeout(10)
            yield netlink
    except OSError as refusal:
        raise KernelError(f"conntrack: {refusal.strerror or refusal}") from refusal


def _by_mark(mark: int, mask: int) -> bytes:
    return _attribute(_CTA_MARK, struct.pack("!I", mark)) + _attribute(
        _CTA_MARK_MASK, struct.pack("!I", mask)
    )


def _attribute(kind: int, payload: bytes) -> bytes:
    padding = bytes(-len(payload) % 4)
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + padding


def _request(kind: int, flags: int, attributes: bytes, family: int) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + attributes
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body
