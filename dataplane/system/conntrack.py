"""Connections by mark: how many there are, and forgetting those of a link.

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
from dataplane.errors import KernelError

_AF: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_NETLINK_NETFILTER = 12
_SUBSYSTEM_CTNETLINK = 1 << 8
_GET, _DELETE = _SUBSYSTEM_CTNETLINK | 1, _SUBSYSTEM_CTNETLINK | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_ERROR, _DONE = 2, 3
_CTA_MARK, _CTA_MARK_MASK = 8, 21
_HEADER = struct.Struct("=IHHII")


def forget(mark: int, mask: int, family: Family) -> None:
    """Deletes every connection of the family whose mark has this value under the mask."""
    with _socket() as netlink:
        netlink.send(_request(_DELETE, _REQUEST | _ACK, mark, mask, _AF[family]))
        answer = netlink.recv(65536)
        kind = _HEADER.unpack_from(answer)[1]
        code = struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _ERROR else 0
        # ENOENT: there was none.
        if code and -code != 2:
            raise KernelError(f"conntrack: forgetting mark {mark:#x}: {os.strerror(-code)}")


def count(mark: int, mask: int) -> int:
    """How many connections have this mark value under the mask."""
    found = 0
    with _socket() as netlink:
        netlink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        netlink.send(_request(_GET, _REQUEST | _DUMP, mark, mask, socket.AF_UNSPEC))
        while True:
            data = memoryview(netlink.recv(262144))
            place = 0
            while place + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, place)
                if kind == _DONE:
                    return found
                if kind == _ERROR or length < _HEADER.size:
                    raise KernelError("conntrack: the kernel refused to list connections")
                found += 1
                place += (length + 3) & ~3


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


def _request(kind: int, flags: int, mark: int, mask: int, family: int) -> bytes:
    body = struct.pack("=BBH", family, 0, 0)
    for attribute, value in ((_CTA_MARK, mark), (_CTA_MARK_MASK, mask)):
        body += struct.pack("=HH", 8, attribute) + struct.pack("!I", value)
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 1, 0) + body
