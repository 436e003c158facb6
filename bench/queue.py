"""How many packets a second pass the queue, when every one of them is queued?

    sender ──veth──► router: mangle PREROUTING, NFQUEUE ──► postrouting: counted ──veth──► sink

64-byte UDP to 1,024 addresses, more than any rival can take. The sender runs on one core, and with
it all receive work up to the queue; the rival runs on the other, and with it reinjection, routing
and transmission. Counted is what leaves the router with a decision: what the full queue let pass
without one, or dropped, is not done.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

import netfilterqueue

from bench.measure import OURS, Result, Sample, in_turn
from dataplane.config.marks import Marks
from dataplane.config.model import Engine, Queue
from dataplane.daemon.engine import QueueEngine
from dataplane.decide.program import ProgramRule, compile_program
from dataplane.hotpath import Program
from dataplane.lab.namespaces import PYTHON, LabError, Namespace, name

NUMBER = 7477
ADDRESSES = 1024
FIRST = "10.64.0.1"
WARM_UP_S = 0.3
MARKS = Marks()

COUNT = f"""
table inet bench {{
    counter decided {{ }}
    chain leaving {{
        type filter hook postrouting priority 0;
        meta mark & {MARKS.mask:#x} != 0 counter name decided
    }}
}}
"""
SWALLOW = """
table inet bench {
    chain arriving { type filter hook prerouting priority -300; iifname "left" drop; }
}
"""

# What a rival is: serves the queue while entered.
Rival = Callable[["Path3"], AbstractContextManager[None]]


class Path3:
    """Three namespaces in a row."""

    def __init__(self) -> None:
        self.spaces: list[Namespace] = []
        try:
            for role in ("sender", "router", "sink"):
                self.spaces.append(Namespace(name(90, role)))
            self.sender, self.router, self.sink = self.spaces
            self._wire(self.sender, "right", "192.0.2.1/24", self.router, "left", "192.0.2.2/24")
            self._wire(
                self.router, "right", "198.51.100.1/24", self.sink, "left", "198.51.100.2/24"
            )
            self.sender.run("ip", "route", "add", "10.0.0.0/8", "via", "192.0.2.2")
            self.sender.run("ethtool", "-K", "right", "tx-udp-segmentation", "off", "gso", "off")
            self.router.run("ip", "route", "add", "10.0.0.0/8", "via", "198.51.100.2")
            self.router.set({"net/ipv4/ip_forward": 1})
            self.router.run("nft", "-f", "-", stdin=COUNT)
            self.sink.run("nft", "-f", "-", stdin=SWALLOW)
        except BaseException:
            self.remove()
            raise

    def _wire(
        self, near: Namespace, end: str, address: str, far: Namespace, other: str, its: str
    ) -> None:
        near.run("ip", "link", "add", end, "type", "veth", "peer", other, "netns", far.name)
        near.run("ip", "address", "add", address, "dev", end)
        far.run("ip", "address", "add", its, "dev", other)
        near.run("ip", "link", "set", end, "up")
        far.run("ip", "link", "set", other, "up")

    def queue(self, add: bool) -> None:
        """Queue every packet that comes from the sender, or no longer."""
        self.router.run(
            *("iptables", "-t", "mangle", "-A" if add else "-D", "PREROUTING", "-i", "left"),
            *("-p", "udp", "-j", "NFQUEUE", "--queue-num", str(NUMBER), "--queue-bypass"),
        )

    def decided(self) -> int:
        """Packets that have left the router with a decision."""
        listed = json.loads(
            self.router.run("nft", "-j", "list", "counter", "inet", "bench", "decided").stdout
        )
        return int(next(i["counter"]["packets"] for i in listed["nftables"] if "counter" in i))

    def arrived(self) -> int:
        """Packets that have come to the sink, decided or not."""
        with self.sink.inside():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        (columns,) = (line.split() for line in lines if line.split()[0] == "left:")
        return int(columns[2])

    def remove(self) -> None:
        for space in self.spaces:
            space.remove()


def program() -> Program:
    """Two links, as 1 to 2."""
    slots = bytes(1 if slot % 3 == 0 else 2 for slot in range(65536))
    rule = ProgramRule("default", tables={4: slots, 6: slots})
    return Program(compile_program(marks=MARKS, key=1, rules=[rule]))


def engine(kind: Engine) -> Rival:
    """Evenlink's engine of that kind."""

    @contextmanager
    def serve(path: Path3) -> Iterator[None]:
        with path.router.inside():
            served = QueueEngine(Queue(number=NUMBER, engine=kind), program())
        served.start()
        try:
            yield
        finally:
            served.stop()

    return serve


class _DoneError(Exception):
    """Leaves NetfilterQueue's loop."""


@contextmanager
def smallest_callback(path: Path3) -> Iterator[None]:
    """NetfilterQueue with a callback that only sets a mark."""
    done = threading.Event()

    def mark(packet: netfilterqueue.Packet) -> None:
        packet.set_mark(MARKS.mark(1))
        packet.accept()
        if done.is_set():
            raise _DoneError

    with path.router.inside():
        queue = netfilterqueue.NetfilterQueue()
        queue.bind(NUMBER, mark, max_len=8192, range=128, sock_len=8192 * 1152)
    readable = select.poll()
    readable.register(queue.get_fd(), select.POLLIN)

    def run() -> None:
        while not done.is_set():
            readable.poll(50)
            with suppress(_DoneError):
                queue.run(block=False)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        queue.unbind()


def cpu_s(process: int) -> float:
    """CPU time of all threads of a process, softirqs on their behalf included."""
    total = 0
    for task in Path("/proc", str(process), "task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def one_run(path: Path3, rival: Rival | None, seconds: float) -> Sample:
    """One rival, one window of time, after a warm-up."""
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    sending = path.sender.start(
        *(PYTHON, "-m", "bench.sender"),
        *(str(cores[0]), FIRST, str(ADDRESSES)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    os.sched_setaffinity(0, {cores[-1]})  # threads that are started from here inherit it
    try:
        if rival is None:
            return _window(sending, path.arrived, seconds)
        with rival(path):
            path.queue(True)
            try:
                return _window(sending, path.decided, seconds)
            finally:
                path.queue(False)
    finally:
        os.sched_setaffinity(0, before)
        sending.kill()
        sending.wait()


def _window(sending: subprocess.Popen[str], count: Callable[[], int], seconds: float) -> Sample:
    assert sending.stdin is not None
    assert sending.stdout is not None
    sending.stdout.readline()
    sending.stdin.write("go\n")
    sending.stdin.flush()
    time.sleep(WARM_UP_S)

    def now() -> tuple[float, int, float]:
        return time.monotonic(), count(), cpu_s(sending.pid) + cpu_s(os.getpid())

    start, packets, cpu = now()
    time.sleep(seconds)
    end, packets_then, cpu_then = now()
    done = packets_then - packets
    if not done:
        raise LabError("no packet got through in a whole run")
    return Sample(done / (end - start), (cpu_then - cpu) * 1e6 / done)


def measure(runs: int, seconds: float) -> Result:
    """Packets per second of each rival."""
    path = Path3()
    rivals: dict[str, Rival | None] = {
        OURS: engine(Engine.BATCH),
        "callback": engine(Engine.CALLBACK),
        "netfilterqueue-python": smallest_callback,
        "forward": None,
    }
    try:
        return in_turn(
            {name: partial(one_run, path, rival, seconds) for name, rival in rivals.items()},
            "packets/s",
            runs,
        )
    finally:
        path.remove()
