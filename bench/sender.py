"""Sends 64-byte UDP packets as fast as the kernel makes them.

One sendmmsg for many messages, and each message is 64 packets to one address: UDP segmentation
offload, which the sending veth does not have, so that the kernel cuts the message up just before
it leaves. Sending a packet by itself costs its core as much as queueing it, and the sender would
be the limit of what is measured.

Run as a program, in the sender's namespace: `python -m bench.sender CORE FIRST-ADDRESS COUNT`. It
says "ready", sends to COUNT addresses in turn once a line comes in, and until standard input ends.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import sys
from ipaddress import IPv4Address

PORT = 9
PAYLOAD_BYTES = 22  # 64 with the headers of UDP, IPv4 and Ethernet
SEGMENTS = 64  # the most that Linux takes, before 6.2
BATCH = 16
_UDP_SEGMENT = 103


class _Address(ctypes.Structure):
    """struct sockaddr_in."""

    _fields_ = (
        ("family", ctypes.c_ushort),
        ("port", ctypes.c_ubyte * 2),
        ("address", ctypes.c_ubyte * 4),
        ("zero", ctypes.c_ubyte * 8),
    )


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("pieces", ctypes.c_void_p),
        ("piece_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


class Blaster:
    """Prepared messages, one an address."""

    def __init__(self, first: IPv4Address, count: int) -> None:
        size = PAYLOAD_BYTES * SEGMENTS
        self._payload = ctypes.create_string_buffer(size)
        self._piece = _Piece(ctypes.addressof(self._payload), size)
        self._addresses = (_Address * count)()
        self._messages = (_Message * count)()
        for number in range(count):
            address, message = self._addresses[number], self._messages[number]
            address.family = socket.AF_INET
            address.port[:] = PORT.to_bytes(2, "big")
            address.address[:] = (first + number).packed
            message.name = ctypes.addressof(address)
            message.name_length = ctypes.sizeof(address)
            message.pieces, message.piece_count = ctypes.addressof(self._piece), 1
        self._send = ctypes.CDLL(None, use_errno=True).sendmmsg

    def round(self, descriptor: int) -> int:
        """SEGMENTS packets to every address; how many the kernel took."""
        sent, size, count = 0, ctypes.sizeof(_Message), len(self._messages)
        for start in range(0, count, BATCH):
            few = min(BATCH, count - start)
            got = self._send(descriptor, ctypes.byref(self._messages, start * size), few, 0)
            if got < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent += got * SEGMENTS
        return sent


def main() -> None:
    core, first, count = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    blaster = Blaster(IPv4Address(first), int(count))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, PAYLOAD_BYTES)
        print("ready", flush=True)
        sys.stdin.readline()
        sent = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            sent += blaster.round(sender.fileno())
    print(sent, flush=True)


if __name__ == "__main__":
    main()
