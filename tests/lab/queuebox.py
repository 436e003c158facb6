"""A namespace with a queue, and packets that are told apart by their destination port.

sender ──► mangle OUTPUT: mark, NFQUEUE ──► postrouting: who was seen with which mark ──► lo
"""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dataplane.config.marks import Marks
from dataplane.config.model import Engine, Fields, Queue
from dataplane.daemon.engine import QueueEngine
from dataplane.decide.program import ProgramRule, Slots, compile_program, everywhere
from dataplane.hotpath import (
    Classifier,
    Program,
    QueueWorker,
    kernel_queues,
)
from dataplane.lab import namespaces

NUMBER = 7477
MARKS = Marks()
OTHERS = 0x8000_00AB
QUEUED_MARK = MARKS.mark(MARKS.ask) | OTHERS
TABLE = bytes(1 + slot % 5 for slot in range(65536))
DEADLINE_S = 10.0
_counter = itertools.count(1)

SEEN = """
table inet seen {
    set marks { type inet_service . mark; flags dynamic; size 65535; }
    chain leaving {
        type filter hook postrouting priority 0;
        meta l4proto udp update @marks { udp dport . meta mark }
    }
}
"""


def fixed(decision: int) -> Program:
    rule = ProgramRule("fixed", everywhere(decision))
    return Program(compile_program(marks=MARKS, key=1, rules=[rule]))


def by_ports() -> Program:
    slots = Slots(TABLE, Fields.BOTH_ADDRESSES_AND_PORTS)
    rule = ProgramRule("ports", everywhere(slots))
    return Program(compile_program(marks=MARKS, key=1, rules=[rule]))


def eventually(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.002)


class Box:
    """The namespace, a sender a family, and what was seen leaving."""

    def __init__(self, space: namespaces.Namespace) -> None:
        self.space = space
        space.run("ip", "link", "set", "lo", "up")
        space.run("nft", "-f", "-", stdin=SEEN)
        for tool in ("iptables", "ip6tables"):
            rule = (tool, "-t", "mangle", "-A", "OUTPUT", "-p", "udp", "-j")
            space.run(*rule, "MARK", "--set-mark", hex(QUEUED_MARK))
            space.run(*rule, "NFQUEUE", "--queue-num", str(NUMBER), "--queue-bypass")
        with space.inside():
            self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.sender6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self.receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.bind(("127.0.0.1", 999))
        self.sender6.bind(("::1", 999))
        self.receiver.bind(("127.0.0.1", 0))
        self.receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
        self.receiver.setblocking(False)

    def send(self, port: int) -> None:
        self.sender.sendto(b"evenlink", ("127.0.0.1", port))

    def send6(self, port: int) -> None:
        self.sender6.sendto(b"evenlink", ("::1", port))

    def send_home(self) -> None:
        """To the receiver, which counts."""
        self.sender.sendto(b"evenlink", self.receiver.getsockname())

    def received(self) -> int:
        count = 0
        while True:
            try:
                self.receiver.recv(64)
            except BlockingIOError:
                return count
            count += 1

    def marks(self) -> dict[int, set[int]]:
        """By destination port, the marks that packets left with."""
        listed = json.loads(
            self.space.run("nft", "-j", "list", "set", "inet", "seen", "marks").stdout
        )
        seen: dict[int, set[int]] = {}
        for element in next(item["set"] for item in listed["nftables"] if "set" in item).get(
            "elem", []
        ):
            port, mark = element["concat"]
            seen.setdefault(port, set()).add(mark)
        return seen

    def mark_of(self, port: int) -> int:
        eventually(lambda: port in self.marks(), f"a packet to port {port} leaves")
        (mark,) = self.marks()[port]
        return mark

    def queue(self) -> int:
        """How many packets wait for a verdict."""
        with self.space.inside():
            return kernel_queues()[NUMBER]["waiting"]

    def worker(self, program: Program, **options: int) -> QueueWorker:
        with self.space.inside():
            return QueueWorker(NUMBER, program, **options)

    def engine(
        self, program: Program, engine: Engine = Engine.BATCH, workers: int = 1
    ) -> QueueEngine:
        with self.space.inside():
            return QueueEngine(Queue(number=NUMBER, engine=engine, workers=workers), program)

    def close(self) -> None:
        for each in (self.sender, self.sender6, self.receiver):
            each.close()
        self.space.remove()


@pytest.fixture
def box() -> Iterator[Box]:
    made = Box(namespaces.Namespace(namespaces.name(next(_counter), "queue")))
    yield made
    made.close()


@contextmanager
def running(worker: QueueWorker) -> Iterator[QueueWorker]:
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        eventually(worker.serving, "the worker serves")
        yield worker
    finally:
        worker.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the worker did not stop"
        worker.close()


@contextmanager
def serving(engine: QueueEngine) -> Iterator[QueueEngine]:
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def flood(box: Box) -> Iterator[list[int]]:
    """Packets to the receiver as fast as may be; the list's one entry counts them."""
    sent = [0]
    enough = threading.Event()

    def send() -> None:
        while not enough.is_set():
            box.send_home()
            sent[0] += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        eventually(lambda: sent[0] > 100, "packets flow")
        yield sent
    finally:
        enough.set()
        thread.join()


def predicted(program: Program, port: int, address: bytes) -> int:
    return Classifier(program).classify_flow(address, address, 17, 999, port, QUEUED_MARK).mark
