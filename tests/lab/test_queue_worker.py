"""The queue workers on a real NFQUEUE.

        sender ──► mangle OUTPUT: mark, NFQUEUE ──► postrouting: who was seen with which mark ──► lo
                              │         ▲
                              ▼         │
                            worker under test

One namespace, loopback only. Packets are told apart by their destination port.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import signal
import socket
import struct
import threading
import weakref

import pytest

from dataplane.config.model import Engine, Queue
from dataplane.daemon.engine import QueueEngine
from dataplane.decide.program import ProgramRule, Slots, compile_program
from dataplane.errors import MachineError
from dataplane.hotpath import (
    Program,
    QueueWorker,
    kernel_queues,
    set_queue_length,
)
from tests.lab.queuebox import (
    DEADLINE_S,
    MARKS,
    NUMBER,
    OTHERS,
    QUEUED_MARK,
    TABLE,
    Box,
    box,
    by_ports,
    eventually,
    fixed,
    flood,
    predicted,
    running,
    serving,
)

__all__ = ["box"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="no root: makes network namespaces")


@pytest.mark.parametrize("engine", Engine)
def test_both_engines_mark_as_the_classifier_says(box: Box, engine: Engine) -> None:
    """IPv4 and IPv6; our bits replaced, the others kept."""
    program = by_ports()
    home4, home6 = socket.inet_aton("127.0.0.1"), socket.inet_pton(socket.AF_INET6, "::1")
    with serving(box.engine(program, engine)) as served:
        for port in range(20000, 20200):
            box.send(port)
            box.send6(port + 1000)
        eventually(lambda: served.counters()["packets"] == 400, "400 packets are counted")
        counted = served.counters()
    expected = {port: predicted(program, port, home4) for port in range(20000, 20200)}
    expected |= {port: predicted(program, port, home6) for port in range(21000, 21200)}
    seen = box.marks()
    assert {port: seen[port] for port in expected} == {p: {m} for p, m in expected.items()}
    assert all(mark & ~MARKS.mask == OTHERS for mark in expected.values())
    decisions = [MARKS.decision(mark) for mark in expected.values()]
    assert counted["decisions"] == {value: decisions.count(value) for value in set(decisions)}
    assert counted["rules"] == {0: 400}
    assert counted["reasons"]["decided"] == 400
    assert (counted["verdict_errors"], counted["waiting"], counted["kernel_dropped"]) == (0, 0, 0)


def test_neighbours_that_share_a_verdict_get_their_own_marks(box: Box) -> None:
    """200 packets wait when the worker begins: full batches, with runs of equal marks."""
    program = by_ports()
    ports = range(20000, 20200)
    worker = box.worker(program)
    set_queue_length(worker.fileno(), NUMBER, len(ports))
    for port in ports:
        box.send(port)
    eventually(lambda: box.queue() == len(ports), "all wait")
    with running(worker):
        eventually(lambda: worker.counters()["packets"] == len(ports), "all are counted")
    home = socket.inet_aton("127.0.0.1")
    seen = box.marks()
    assert {port: seen[port] for port in ports} == {
        port: {predicted(program, port, home)} for port in ports
    }
    assert worker.counters()["batches"] < 10
    assert worker.counters()["verdict_errors"] == 0


@pytest.mark.parametrize("engine", Engine)
def test_what_is_not_decided_passes_with_its_mark(box: Box, engine: Engine) -> None:
    """The settle chain of the real ruleset takes it from there."""
    rule = ProgramRule("ipv4 only", {4: Slots(TABLE)})
    program = Program(compile_program(marks=MARKS, key=1, rules=[rule]))
    with serving(box.engine(program, engine)) as served:
        box.send6(20000)
        assert box.mark_of(20000) == QUEUED_MARK
        assert served.counters()["reasons"]["no-rule"] == 1
        assert served.counters()["decisions"] == {}


def test_the_kernel_grants_what_was_asked_for(box: Box) -> None:
    worker = box.worker(fixed(1), length=500, copy_bytes=100, socket_buffer_bytes=300_000)
    assert worker.granted() == {
        "length": 500,
        "copy_bytes": 100,
        "socket_buffer_bytes": 600_000,
        "flags": ("fail-open", "gso"),
    }
    worker.close()


def test_a_queue_of_another_is_refused(box: Box) -> None:
    first = box.worker(fixed(1))
    with pytest.raises(OSError, match=f"queue {NUMBER}") as fault:
        box.worker(fixed(1))
    assert fault.value.errno == errno.EBUSY
    for engine in Engine:
        with pytest.raises(MachineError, match=f"queue {NUMBER} is bound by another process"):
            box.engine(fixed(1), engine)
    first.close()
    box.worker(fixed(1)).close()


def test_an_engine_that_cannot_have_all_queues_takes_none(box: Box) -> None:
    with box.space.inside():
        second = QueueWorker(NUMBER + 1, fixed(1))
        with pytest.raises(MachineError, match=f"queue {NUMBER + 1} is bound"):
            QueueEngine(Queue(number=NUMBER, workers=2), fixed(1))
        assert set(kernel_queues()) == {NUMBER + 1}
    second.close()


def test_without_the_right_the_message_says_so(box: Box) -> None:
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
            QueueEngine(Queue(number=NUMBER), fixed(1))
        except MachineError as fault:
            said.append(str(fault))

    thread = threading.Thread(target=bind)
    thread.start()
    thread.join()
    assert said == [f"queue {NUMBER}: binding needs CAP_NET_ADMIN"]


def test_verdicts_for_packets_that_are_gone_are_counted(box: Box) -> None:
    """A device that goes down takes its packets out of the queue, under the worker's hands.

    The packets get equal marks, so one verdict is for all of them.
    """
    worker = box.worker(fixed(1))
    set_queue_length(worker.fileno(), NUMBER, 100)
    for port in range(20000, 20005):
        box.send(port)
    eventually(lambda: box.queue() == 5, "5 packets wait")
    box.space.run("ip", "link", "set", "lo", "down")
    eventually(lambda: box.queue() == 0, "the kernel drops them")
    with running(worker):
        eventually(lambda: worker.counters()["verdict_errors"] == 1, "the error is counted")
        assert worker.counters()["verdict_errors_by_errno"] == {"ENOENT": 1}
        assert worker.counters()["packets"] == 5


def test_a_full_socket_is_counted_and_loses_nothing(box: Box) -> None:
    worker = box.worker(fixed(1), socket_buffer_bytes=8192)
    set_queue_length(worker.fileno(), NUMBER, 8192)
    for _ in range(200):
        box.send_home()
    eventually(lambda: worker.counters()["refused"] > 0, "the socket refuses packets")
    with running(worker):
        eventually(lambda: worker.counters()["enobufs"] > 0, "ENOBUFS is counted")
        got = box.received()
        while got < 200:
            eventually(lambda: box.queue() == 0, "no packet waits")
            got += box.received()
    assert got == 200
    assert worker.counters()["packets"] < 200


@pytest.mark.parametrize("engine", Engine)
def test_messages_of_others_are_refused(box: Box, engine: Engine) -> None:
    """A process sends the worker what looks like a queued packet."""
    attributes = struct.pack("=HHIHBx", 11, 1, socket.htonl(1), socket.htons(0x800), 3)
    message = struct.pack("!BBH", 2, 0, NUMBER) + attributes
    header = struct.pack("=IHHII", 16 + len(message), 3 << 8, 0, 0, 0)
    with serving(box.engine(fixed(1), engine)) as served:
        with box.space.inside():
            owner = kernel_queues()[NUMBER]["owner"]
            forger = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        with forger, pytest.raises(ConnectionRefusedError):
            forger.sendto(header + message, (owner, 0))
        assert served.counters()["packets"] == 0


@pytest.mark.parametrize("engine", Engine)
def test_swapping_while_packets_flow(box: Box, engine: Engine) -> None:
    """Once passed, no packet gets an older decision; none is lost; old programs are freed."""
    first = fixed(1)
    gone = weakref.ref(first)
    with serving(box.engine(first, engine)) as served:
        del first
        with flood(box) as sent:
            for step in range(30):
                program = fixed(2 + step)
                served.swap(program)
                assert served.wait_passed(program.serial, DEADLINE_S)
                box.send(20000 + step)
        probes = range(20000, 20030)
        eventually(lambda: box.marks().keys() >= set(probes), "all probes have left")
        seen = box.marks()
        counted = served.counters()
    for step, port in enumerate(probes):
        (mark,) = seen[port]
        assert 2 + step <= MARKS.decision(mark) <= 31
    assert box.received() == sent[0]
    assert counted["packets"] == sent[0] + len(probes)
    assert (counted["verdict_errors"], counted["refused"]) == (0, 0)
    gc.collect()
    assert gone() is None


def test_passed_when_idle_stopped_or_never_run(box: Box) -> None:
    first, second, third = fixed(1), fixed(2), fixed(3)
    worker = box.worker(first)
    assert worker.passed(first.serial)
    worker.swap(second)
    assert worker.passed(second.serial)
    assert worker.passed(first.serial)
    with pytest.raises(ValueError, match="never given"):
        worker.passed(third.serial)
    with running(worker):
        worker.swap(third)
        eventually(lambda: worker.passed(third.serial), "an idle worker counts as passed")
        worker.swap(first)  # an older program again
        eventually(lambda: worker.passed(first.serial), "an idle worker counts as passed")
        box.send(20000)
        assert box.mark_of(20000) == MARKS.mark(1) | OTHERS
    assert worker.passed(first.serial)


@pytest.mark.parametrize("engine", Engine)
def test_stopping_while_packets_flow_loses_none(box: Box, engine: Engine) -> None:
    """After the stop the queue lets everything pass; after the unbinding the rule's bypass does."""
    served = box.engine(fixed(1), engine)
    served.start()
    with flood(box) as sent:
        eventually(lambda: served.counters()["packets"] > 1000, "packets are decided")
        served.stop()
        at_stop = sent[0]
        eventually(lambda: sent[0] > at_stop + 100, "packets go on")
    got = box.received()
    assert got == sent[0]
    assert not served.alive()
    assert served.faults() == {}
    with box.space.inside():
        assert kernel_queues() == {}
    served.stop()


def test_a_worker_serves_again_after_a_stop(box: Box) -> None:
    worker = box.worker(fixed(1))
    worker.stop()
    worker.run()  # told to stop before: returns at once
    for port in (20000, 20001):
        thread = threading.Thread(target=worker.run)
        thread.start()
        eventually(worker.serving, "the worker serves")
        box.send(port)
        assert box.mark_of(port) == MARKS.mark(1) | OTHERS
        with pytest.raises(RuntimeError, match="being served"):
            worker.run()
        with pytest.raises(RuntimeError, match="stop it first"):
            worker.close()
        worker.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    worker.close()
    worker.close()
    with pytest.raises(RuntimeError, match="closed"):
        worker.run()


def test_a_signal_ends_a_worker_that_runs_in_the_main_thread(box: Box) -> None:
    """As Ctrl-C does: the handler runs, and what it raises comes out of `run`."""
    worker = box.worker(fixed(1))
    calls = []

    def handler(*_: object) -> None:
        calls.append(worker.serving())
        if len(calls) == 3:
            raise InterruptedError

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(InterruptedError):
            worker.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(calls) == 3
    assert not worker.serving()
    worker.close()


def test_packets_pass_while_the_worker_does_not_run(box: Box) -> None:
    """Bound and not served: nothing is caught."""
    worker = box.worker(fixed(1))
    box.send(20000)
    assert box.mark_of(20000) == QUEUED_MARK
    worker.close()


def test_spinning_serves_too(box: Box) -> None:
    with running(box.worker(fixed(3), spin_us=2000)) as worker:
        for port in range(20000, 20010):
            box.send(port)
            assert box.mark_of(port) == MARKS.mark(3) | OTHERS
        assert worker.counters()["packets"] == 10


def test_two_queues_two_workers(box: Box) -> None:
    box.space.run(
        *("iptables", "-t", "mangle", "-I", "OUTPUT", "2", "-p", "udp", "--dport", "21000:21009"),
        *("-j", "NFQUEUE", "--queue-num", str(NUMBER + 1)),
    )
    with serving(box.engine(fixed(4), workers=2)) as served:
        assert served.alive()
        assert set(served.granted()) == {NUMBER, NUMBER + 1}
        for number in range(10):
            box.send(20000 + number)
            box.send(21000 + number)
        eventually(lambda: served.counters()["packets"] == 20, "both decide")
        each = served.counters()["workers"]
        assert {number: counted["packets"] for number, counted in each.items()} == {
            NUMBER: 10,
            NUMBER + 1: 10,
        }
        assert served.counters()["decisions"] == {4: 20}


def test_a_dead_worker_is_seen(box: Box) -> None:
    """Its socket is taken away before it starts."""
    before = set(os.listdir("/proc/self/fd"))
    served = box.engine(fixed(1))
    opened = sorted(set(os.listdir("/proc/self/fd")) - before)
    (descriptor,) = (fd for fd in opened if "socket" in os.readlink(f"/proc/self/fd/{fd}"))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), int(descriptor))
    served.start()
    eventually(lambda: not served.alive(), "the thread ends")
    assert list(served.faults()) == [NUMBER]
    assert f"serving queue {NUMBER}" in served.faults()[NUMBER]
    served.stop()
