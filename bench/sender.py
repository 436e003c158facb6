"""Sends small UDP packets as fast as the kernel takes them: one sendmmsg for many.

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
PAYLOAD = bytes(22)  # 64 bytes with the headers of UDP, IPv4 and Ethernet
BATCH = 64


class _Address(ctypes.Structure):
    _fields_ = (
        ("family", ctypes.c_ushort),
        ("port", ctypes.c_ubyte * 2),
        ("address", ctypes.c_ubyte * 4),
        ("zero", ctypes.c_ubyte * 8),
    )


class _Piece(ctypes.Structure):
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
    """The prepared messages: one packet to each of `count` addresses, BATCH at a time."""

    def __init__(self, first: IPv4Address, count: int) -> None:
        self._payload = ctypes.create_string_buffer(PAYLOAD, len(PAYLOAD))
        self._piece = _Piece(ctypes.addressof(self._payload), len(PAYLOAD))
        self._addresses = (_Address * count)()
        self._messages = (_Message * count)()
        for number in range(count):
            address = self._addresses[number]
            address.family = socket.AF_INET
            address.port[:] = PORT.to_bytes(2, "big")
            address.address[:] = (first + number).packed
            message = self._messages[number]
            message.name = ctypes.addressof(address)
            message.name_length = ctypes.sizeof(address)
            message.pieces = ctypes.addressof(self._piece)
            message.piece_count = 1
        self._starts = range(0, count - BATCH + 1, BATCH)
        self._send = ctypes.CDLL(None, use_errno=True).sendmmsg

    def round(self, descriptor: int) -> int:
        """One packet to every address; how many the kernel took."""
        sent = 0
        size = ctypes.sizeof(_Message)
        for start in self._starts:
            got = self._send(descriptor, ctypes.byref(self._messages, start * size), BATCH, 0)
            sent += max(got, 0)
        return sent


def main() -> None:
    core, first, count = int(sys.argv[1]), IPv4Address(sys.argv[2]), int(sys.argv[3])
    os.sched_setaffinity(0, {core})
    blaster = Blaster(first, count)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        print("ready", flush=True)
        sys.stdin.readline()
        sent = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            sent += blaster.round(sender.fileno())
    print(sent, flush=True)


if __name__ == "__main__":
    main()
