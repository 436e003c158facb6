"""Connections on a path: room for them in conntrack's table, and making those of the sender.

with room_for_connections(4_000_000):
    ...
establish(path)        # one established connection for each of the sender's address pairs
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.path import ADDRESSES, Path3
from bench.sender import Sender
from dataplane.errors import MachineError
from dataplane.lab.namespaces import LabError, environment

# One for the whole machine: namespaces see it, and cannot set it.
_MOST = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_CONNECTION_BYTES = 512  # with its address translation and extensions; 320 were seen
_KEPT_S = 3600
_PORT = 9
_IP_PKTINFO = 8
_INFO = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, local address, destination
_SLOWLY = 20_000  # packets a second, which no rival loses
_PATIENCE_S = 5.0


@contextmanager
def room_for_connections(count: int) -> Iterator[None]:
    """Let the machine track that many meanwhile; MachineError without the memory for them."""
    needed = count * _CONNECTION_BYTES
    if _available_bytes() < 2 * needed:
        raise MachineError(f"{count} connections need {2 * needed >> 20} MiB of free memory")
    # Asking loads the module, without which there is no such setting.
    subprocess.run(["conntrack", "-C"], env=environment(), capture_output=True)
    try:
        before = int(_MOST.read_text())
    except OSError as fault:
        raise MachineError(f"this kernel tracks no connections: {fault}") from fault
    try:
        if before < count:
            try:
                _MOST.write_text(str(count))
            except OSError as fault:
                raise MachineError(f"no room for {count} connections: {fault}") from fault
        yield
    finally:
        with suppress(OSError):
            _MOST.write_text(str(before))


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


def establish(path: Path3) -> None:
    """One packet of each address pair, each answered once by the sink: conntrack then holds an
    established connection for each, and keeps it for an hour without a packet. LabError where
    some got no answer."""
    path.router.set(
        {f"net/netfilter/nf_conntrack_udp_timeout{which}": _KEPT_S for which in ("", "_stream")}
    )
    with path.sink.inside():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, path.answering():
        server.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        server.bind(("", _PORT))
        server.settimeout(_PATIENCE_S)
        with Sender(path, rate=_SLOWLY, count=ADDRESSES) as sender:
            sender.go()
            for number in range(ADDRESSES):
                try:
                    _answer(server)
                except TimeoutError:
                    raise LabError(f"{number} of {ADDRESSES} connections were made") from None
            sender.wait()


def _answer(server: socket.socket) -> None:
    """One packet, from the address that it was sent to."""
    data, controls, _, peer = server.recvmsg(64, socket.CMSG_SPACE(_INFO.size))
    for level, kind, value in controls:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            _, _, destination = _INFO.unpack(value)
            info = _INFO.pack(0, destination, destination)
            server.sendmsg([data], [(level, kind, info)], 0, peer)
