"""The queue workers: one thread a queue, in batches in C or by NetfilterQueue's own loop."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TypedDict, TypeVar

from netfilterqueue import Packet

from dataplane.config.model import Engine, Queue
from dataplane.errors import Error, KernelError, MachineError
from dataplane.hotpath import (
    MOST_COPY_BYTES,
    Classifier,
    Program,
    QueueWorker,
    bind_queue,
    kernel_queues,
    set_queue_length,
    socket_refused,
)

if TYPE_CHECKING:
    from dataplane.hotpath import Counters, Granted

# What a queued packet takes of the socket's buffer, as the kernel counts after doubling what was
# asked for: 832 bytes with 128 copied, 2,304 with 1,500 (Linux 6.18). Nearly twice that is kept.
PACKET_OVERHEAD_BYTES = 640

# The kernel doubles it, into a signed 32-bit number.
_MOST_BUFFER_BYTES = 2**30 - 1

# NetfilterQueue's loop reads into 4 KiB, attributes included.
_CALLBACK_COPY_BYTES = 3584

_POLL_S = 0.001


class Worker(Protocol):
    """One bound queue. `hotpath.QueueWorker` says what each method does."""

    @property
    def number(self) -> int: ...
    def granted(self) -> Granted: ...
    def run(self) -> None: ...
    def serving(self) -> bool: ...
    def stop(self) -> None: ...
    def close(self) -> None: ...
    def swap(self, program: Program) -> None: ...
    def passed(self, serial: int) -> bool: ...
    def counters(self) -> Counters: ...


class _StopError(Exception):
    """Leaves NetfilterQueue's loop, which under load would never end by itself."""


class CallbackWorker:
    """One queue served by NetfilterQueue's own loop: a Python call and two system calls a packet.

    It makes the decisions that the batch engine makes. NetfilterQueue hides the errors of its
    verdicts and the overflows of its socket: `verdict_errors` and `enobufs` stay 0, `refused`
    counts.
    """

    def __init__(
        self,
        number: int,
        program: Program,
        *,
        length: int,
        copy_bytes: int,
        socket_buffer_bytes: int,
    ) -> None:
        self.number = number
        self._length = length
        self._classifier = Classifier(program, int.from_bytes(os.urandom(8)))
        self._orders = {program.serial: 0}
        self._highest = program.serial
        self._order = self._passed = self._batches = 0
        self._outside = True
        self._stopping = self._leave = self._serving = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._queue, self._granted = bind_queue(
                number,
                self._decide,
                length=length,
                copy_bytes=min(copy_bytes, _CALLBACK_COPY_BYTES),
                socket_buffer_bytes=socket_buffer_bytes,
            )
        except OSError:
            os.close(self._wake)
            raise
        self._gate(0)

    def granted(self) -> Granted:
        return self._granted

    def run(self) -> None:
        """Serve until `stop`; OSError if the socket fails."""
        ready = select.poll()
        ready.register(self._queue.get_fd(), select.POLLIN)
        ready.register(self._wake, select.POLLIN)
        try:
            self._gate(self._length)
            self._serving = True
            while not self._stopping:
                self._serve()
                self._outside = True
                ready.poll()
            self._gate(0)
            self._leave = False
            self._serve()
        finally:
            self._outside = True
            self._stopping = self._leave = self._serving = False
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)

    def serving(self) -> bool:
        return self._serving

    def stop(self) -> None:
        self._stopping = self._leave = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        if not self._outside:
            raise RuntimeError(f"queue {self.number} is being served: stop it first")
        if self._wake >= 0:
            self._queue.unbind()
            os.close(self._wake)
            self._wake = -1

    def swap(self, program: Program) -> None:
        self._classifier.swap(program)
        self._orders = {old: at for old, at in self._orders.items() if at > self._passed}
        self._orders[program.serial] = self._order + 1
        self._highest = max(self._highest, program.serial)
        self._order += 1  # after the program: a verdict of this order is made by it or a later one

    def passed(self, serial: int) -> bool:
        if serial > self._highest:
            raise ValueError(f"program {serial} was never given to queue {self.number}")
        return self._outside or self._passed >= self._orders.get(serial, 0)

    def counters(self) -> Counters:
        decided = self._classifier.counters()
        return {
            "packets": sum(decided["reasons"].values()),
            "batches": self._batches,
            "reasons": decided["reasons"],
            "decisions": decided["decisions"],
            "rules": decided["rules"],
            "verdict_errors": 0,
            "verdict_errors_by_errno": {},
            "enobufs": 0,
            "refused": socket_refused(self._queue.get_fd()) if self._wake >= 0 else 0,
            "recv_errors": 0,
            "send_retries": 0,
            "unknown_messages": 0,
        }

    def _serve(self) -> None:
        """Until nothing waits, or a stop is asked for."""
        self._outside = False
        self._passed = self._order
        self._batches += 1
        with contextlib.suppress(_StopError):
            self._queue.run(block=False)

    def _decide(self, packet: Packet) -> None:
        order = self._order
        try:
            payload = packet.get_payload()
        except RuntimeError:  # the message held none
            payload = b""
        self._classifier.now_ms = time.monotonic_ns() // 1_000_000
        packet.set_mark(self._classifier.mark(payload, packet.mark, packet.indev))
        packet.accept()
        self._passed = order
        if self._leave:
            raise _StopError

    def _gate(self, length: int) -> None:
        """A queue of length 0 that fails open lets every packet pass: nothing is caught in it."""
        if "fail-open" in self._granted["flags"]:
            set_queue_length(self._queue.get_fd(), self.number, length)


class EngineCounters(TypedDict):
    """All workers together. `kernel_dropped`: packets that found the queue or socket full and were
    not let through; `waiting`: packets without a verdict now. `workers`: each one's own."""

    packets: int
    batches: int
    reasons: dict[str, int]
    decisions: dict[int, int]
    rules: dict[int, int]
    verdict_errors: int
    enobufs: int
    refused: int
    recv_errors: int
    waiting: int
    kernel_dropped: int
    workers: dict[int, Counters]


class QueueEngine:
    """All queues of the file: bound by the constructor, served from `start` to `stop`.

    Raises MachineError where a queue is another's or the right to it is missing, KernelError where
    the kernel refuses otherwise.
    """

    def __init__(self, queue: Queue, program: Program) -> None:
        self._workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        self._faults: dict[int, BaseException] = {}
        self._closed = False
        try:
            for number in range(queue.number, queue.number + queue.workers):
                self._workers.append(_worker(queue, number, program))
        except Error:
            self._close()
            raise

    def start(self) -> None:
        """Start a thread a queue; returns when each one serves, or has died (see `alive`)."""
        for worker in self._workers:
            thread = threading.Thread(
                target=self._run, args=(worker,), name=f"queue-{worker.number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        for worker, thread in zip(self._workers, self._threads, strict=True):
            while thread.is_alive() and not worker.serving():
                time.sleep(_POLL_S)

    def alive(self) -> bool:
        """Every worker is serving."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def faults(self) -> dict[int, str]:
        """By queue number, what ended a worker that was not told to stop."""
        return {number: str(fault) for number, fault in self._faults.items()}

    def granted(self) -> dict[int, Granted]:
        """By queue number, what the kernel gave."""
        return {worker.number: worker.granted() for worker in self._workers}

    def swap(self, program: Program) -> None:
        """Give every worker another program, while packets flow."""
        for worker in self._workers:
            worker.swap(program)

    def wait_passed(self, serial: int, timeout_s: float) -> bool:
        """Wait until no verdict older than the swap of that program is still to come."""
        end = time.monotonic() + timeout_s
        while not all(worker.passed(serial) for worker in self._workers):
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_S)
        return True

    def counters(self) -> EngineCounters:
        """What was counted since the queues were bound."""
        each = {worker.number: worker.counters() for worker in self._workers}
        kernel = kernel_queues()
        ours = [kernel[number] for number in each if number in kernel]
        return {
            "packets": sum(counted["packets"] for counted in each.values()),
            "batches": sum(counted["batches"] for counted in each.values()),
            "reasons": _total(counted["reasons"] for counted in each.values()),
            "decisions": _total(counted["decisions"] for counted in each.values()),
            "rules": _total(counted["rules"] for counted in each.values()),
            "verdict_errors": sum(counted["verdict_errors"] for counted in each.values()),
            "enobufs": sum(counted["enobufs"] for counted in each.values()),
            "refused": sum(counted["refused"] for counted in each.values()),
            "recv_errors": sum(counted["recv_errors"] for counted in each.values()),
            "waiting": sum(queue["waiting"] for queue in ours),
            "kernel_dropped": sum(queue["dropped"] + queue["user_dropped"] for queue in ours),
            "workers": each,
        }

    def stop(self, timeout_s: float = 5.0) -> None:
        """Answer what waits, end the threads, unbind. A second call does nothing."""
        if self._closed:
            return
        running = [thread for thread in self._threads if thread.is_alive()]
        if running:
            for worker in self._workers:
                worker.stop()
        for thread in running:
            thread.join(timeout_s)
        if any(thread.is_alive() for thread in running):
            raise KernelError(f"a queue worker did not stop within {timeout_s:g} s")
        self._close()

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as fault:
            self._faults[worker.number] = fault

    def _close(self) -> None:
        self._closed = True
        for worker in self._workers:
            worker.close()


def _worker(queue: Queue, number: int, program: Program) -> Worker:
    copied = min(queue.copy_bytes, MOST_COPY_BYTES)
    buffer_bytes = min(queue.length * (PACKET_OVERHEAD_BYTES + copied), _MOST_BUFFER_BYTES)
    try:
        if queue.engine is Engine.CALLBACK:
            return CallbackWorker(
                number,
                program,
                length=queue.length,
                copy_bytes=queue.copy_bytes,
                socket_buffer_bytes=buffer_bytes,
            )
        return QueueWorker(
            number,
            program,
            length=queue.length,
            copy_bytes=queue.copy_bytes,
            socket_buffer_bytes=buffer_bytes,
            spin_us=queue.spin_us,
        )
    except OSError as fault:
        if fault.errno == errno.EBUSY:
            raise MachineError(f"queue {number} is bound by another process") from fault
        if fault.errno == errno.EPERM:
            raise MachineError(f"queue {number}: binding needs CAP_NET_ADMIN") from fault
        raise KernelError(f"queue {number}: {fault}") from fault


_Key = TypeVar("_Key")


def _total(parts: Iterable[dict[_Key, int]]) -> dict[_Key, int]:
    total: Counter[_Key] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
