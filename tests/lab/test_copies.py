"""Copies of packets, as the kernel sends them."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading

import pytest

from dataplane.errors import MachineError
from dataplane.system.copies import Copies, Copy
from tests.lab.copybox import GROUP, CopyBox, box, eventually

__all__ = ["box"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="no root: makes network namespaces")


def all_of(copies: Copies, count: int) -> list[Copy]:
    got: list[Copy] = []

    def enough() -> bool:
        got.extend(copies.receive())
        return len(got) >= count

    eventually(enough, f"{count} copies")
    return got


def test_packets_their_prefix_and_their_interface(box: CopyBox) -> None:
    copies = box.copies()
    with box.space.inside():
        loopback = socket.if_nametoindex("lo")
    for number in range(10):
        box.send(bytes([number]) * 100)
    got = all_of(copies, 10)
    assert [copy.packet[28:] for copy in got] == [bytes([number]) * 100 for number in range(10)]
    assert {(copy.prefix, copy.came_by, copy.leaves_by) for copy in got} == {
        ("lan original", 0, loopback)
    }
    assert (copies.lost, copies.overflows) == (0, 0)
    assert copies.receive() == []
    copies.close()


def test_only_so_much_of_a_packet_as_is_wanted(box: CopyBox) -> None:
    copies = box.copies(copy_bytes=64)
    box.send(bytes(1000))
    (copy,) = all_of(copies, 1)
    assert len(copy.packet) == 64
    copies.close()


def test_the_kernel_gathers_copies(box: CopyBox) -> None:
    """As many as were asked for, in one datagram."""
    copies = box.copies(threshold=20, timeout_ms=10_000)
    for number in range(20):
        box.send(bytes([number]))
    assert len(all_of(copies, 1)) == 20
    copies.close()


def test_a_full_buffer_loses_copies_only_and_counts_them(box: CopyBox) -> None:
    with box.space.inside():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.2", 50000))
    receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
    copies = box.copies(threshold=1, buffer_bytes=8192)
    for _ in range(200):
        box.send(bytes(1000))
    got = [copy for _ in range(200) for copy in copies.receive()]
    box.send(b"last")
    got += all_of(copies, 1)
    assert copies.lost > 0
    assert copies.overflows > 0
    assert len(got) + copies.lost == 201
    assert sum(1 for _ in range(201) if receiver.recv(2000, socket.MSG_DONTWAIT)) == 201
    receiver.close()
    copies.close()


def test_a_group_of_another_is_refused(box: CopyBox) -> None:
    copies = box.copies()
    with pytest.raises(MachineError, match=f"log group {GROUP} is bound by another process"):
        box.copies()
    assert box.groups() == {GROUP}
    copies.close()
    assert box.groups() == set()
    box.copies().close()


def test_without_the_right_the_message_says_so(box: CopyBox) -> None:
    """A thread without CAP_NET_ADMIN."""
    said: list[str] = []

    def bind() -> None:
        libc = ctypes.CDLL(None)
        header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
        rights = ctypes.create_string_buffer(24)
        assert libc.capget(header, rights) == 0
        words = list(struct.unpack("=6I", rights.raw[:24]))
        words[0] &= ~(1 << 12)  # the effective CAP_NET_ADMIN
        assert libc.capset(header, struct.pack("=6I", *words)) == 0
        try:
            Copies(GROUP)
        except MachineError as fault:
            said.append(str(fault))

    thread = threading.Thread(target=bind)
    thread.start()
    thread.join()
    assert said == [f"log group {GROUP}: binding needs CAP_NET_ADMIN"]
