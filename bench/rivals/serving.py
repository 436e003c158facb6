"""A queue served in Python, as a process: `python -m bench.rivals.serving KIND`.

It says "ready" when the queue is bound, and serves until it is killed. KIND is `evenlink` or
`callback`, the engines of the daemon; `netfilterqueue-python`, that package with the smallest
callback; `netfilterqueue-scapy`, with scapy in it; or `fnfqueue`.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
from collections.abc import Callable

from bench.path import QUEUE
from bench.rivals.queued import BUFFER_BYTES, COPY_BYTES, LENGTH

_SO_RCVBUFFORCE = 33


def ready() -> None:
    print("ready", flush=True)


def evenlink(kind: str) -> None:
    """The daemon's engine, whose workers are threads: this one only waits."""
    from dataplane.config.marks import Marks
    from dataplane.config.model import Engine, Queue
    from dataplane.daemon.engine import QueueEngine
    from dataplane.decide.program import ProgramRule, Slots, compile_program, everywhere
    from dataplane.hotpath import Program

    slots = bytes(1 if slot % 3 == 0 else 2 for slot in range(65536))
    rule = ProgramRule("default", everywhere(Slots(slots)))
    program = Program(compile_program(marks=Marks(), key=1, rules=[rule]))
    which = Engine.BATCH if kind == "evenlink" else Engine.CALLBACK
    queue = Queue(number=QUEUE, engine=which, length=LENGTH, copy_bytes=COPY_BYTES)
    QueueEngine(queue, program).start()
    ready()
    threading.Event().wait()


def netfilterqueue_python() -> None:
    import netfilterqueue

    def mark(packet: netfilterqueue.Packet) -> None:
        packet.set_mark(1)
        packet.accept()

    _serve(mark)


def netfilterqueue_scapy() -> None:
    import netfilterqueue
    from scapy.layers.inet import IP

    def mark(packet: netfilterqueue.Packet) -> None:
        read = IP(packet.get_payload())
        packet.set_mark(1 + hash((read.src, read.dst)) % 3)
        packet.accept()

    _serve(mark)


def _serve(callback: Callable[..., None]) -> None:
    """By NetfilterQueue's own loop."""
    import netfilterqueue

    queue = netfilterqueue.NetfilterQueue()
    queue.bind(QUEUE, callback, max_len=LENGTH, range=COPY_BYTES, sock_len=BUFFER_BYTES)
    ready()
    queue.run()


def fnfqueue() -> None:
    """Its own loop, as its documentation shows it; the smallest body."""
    package = importlib.import_module("fnfqueue")  # not there until a bench installs it
    # As it comes, 80 KiB are kept for each packet that waits, and the socket's buffer cannot be
    # set: bursts that other rivals hold would overflow it.
    connection = package.Connection(packet_size=4096)
    with socket.socket(fileno=os.dup(connection._conn.fd)) as same:
        same.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    queue = connection.bind(QUEUE)
    queue.set_mode(COPY_BYTES, package.COPY_PACKET)
    queue.set_maxlen(LENGTH)
    queue.fail_open = queue.gso = True
    ready()
    while True:
        try:
            for packet in connection:
                packet.mark = 1
                packet.mangle()
        except package.BufferOverflowException:
            connection.reset()


def main() -> None:
    kind = sys.argv[1]
    if kind in ("evenlink", "callback"):
        evenlink(kind)
    elif kind == "netfilterqueue-python":
        netfilterqueue_python()
    elif kind == "netfilterqueue-scapy":
        netfilterqueue_scapy()
    elif kind == "fnfqueue":
        fnfqueue()
    else:
        sys.exit(f"no such kind: {kind}")


if __name__ == "__main__":
    main()
