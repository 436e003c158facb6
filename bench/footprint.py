"""How soon does the daemon decide, and how much memory does it hold?

    clients ──► router: `evenlink run`, two links ──► providers, which throw away what comes

`start` is the time from the start of the process to its first verdict, while connections begin all
the time; `restart` the same where an earlier daemon left the kernel serving. `idle` is resident
memory before the first packet, `connections` the same with half a million connections tracked, of
each of which the daemon decided the first packet. What they take in the kernel is in `kernel`.
"""

from __future__ import annotations

import itertools
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bench import cpu
from bench.connections import room_for_connections
from bench.measure import Options, Result, Row, Sample
from bench.path import missing
from dataplane.errors import Error
from dataplane.hotpath import kernel_queues
from dataplane.lab import Lab, uplinks
from dataplane.lab.daemon import Daemon, toml
from dataplane.lab.namespaces import LabError

if TYPE_CHECKING:
    from dataplane.hotpath import KernelQueue

CONNECTIONS = 500_000
TOPOLOGY = uplinks(10_000_000, 20_000_000, shaped=False, hosts=64, server_count=64)

PROBED = uplinks(*[10_000_000] * 8, families=(4,), shaped=False)
PROBING_S = 20.0
QUICK_PROBING_S = 2.0

_FIRST_PORT, _LAST_PORT = 1024, 65535
# Of the queue's 1,024 places: what finds it full is settled by the kernel, and not decided.
_MOST_WAITING = 512
_AT_ONCE = 256
_PAUSE_S = 0.001
_PATIENCE_S = 30.0
# By then the daemon has sampled the counters and looked at the machine again.
_SETTLED_S = 1.0
_MIB = 1024.0

_THROW_AWAY = """
table inet bench {
    chain arriving { type filter hook prerouting priority -300; iifname "link" drop; }
}
"""


class Beginner:
    """Begins connections from the lab's clients: of each address pair one, then one more of each.

    A UDP datagram each, to a port that the pair has not used before.
    """

    def __init__(self, lab: Lab) -> None:
        pairs = lab.topology.pairs()
        self._sockets: dict[object, socket.socket] = {}
        with lab.client.inside():
            for client, _ in pairs:
                if client not in self._sockets:
                    family = socket.AF_INET if client.version == 4 else socket.AF_INET6
                    self._sockets[client] = one = socket.socket(family, socket.SOCK_DGRAM)
                    one.bind((str(client), 0))
        targets = [(self._sockets[client].sendto, str(server)) for client, server in pairs]
        self._places = (
            (send, (server, port))
            for port in range(_FIRST_PORT, _LAST_PORT + 1)
            for send, server in targets
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in self._sockets.values():
            one.close()

    def begin(self, count: int) -> None:
        for send, place in itertools.islice(self._places, count):
            send(b"", place)


def throw_away(lab: Lab) -> None:
    """Lets the providers take nothing in: neither answers nor their own tables fill up."""
    for link in lab.topology.links:
        lab[link.name].run("nft", "-f", "-", stdin=_THROW_AWAY)


def queue_of(lab: Lab) -> KernelQueue | None:
    """The router's one bound queue."""
    with lab.router.inside():
        return next(iter(kernel_queues().values()), None)


def fill(lab: Lab, beginner: Beginner, count: int) -> None:
    """Begins that many connections, no faster than they are decided."""
    begun = 0
    while begun < count:
        few = min(_AT_ONCE, count - begun)
        beginner.begin(few)
        begun += few
        wait_below(lab, _MOST_WAITING)
    wait_below(lab, 1)


def wait_below(lab: Lab, most: int) -> None:
    """Until fewer packets wait in the queue; LabError if that takes too long, or it is gone."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        queue = queue_of(lab)
        if queue is None:
            raise LabError("nobody serves the queue")
        if queue["waiting"] < most:
            return
        if time.monotonic() > end:
            raise LabError(f"{queue['waiting']} packets still wait after {_PATIENCE_S:g} s")
        time.sleep(_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, in MiB: resident, its peak, and with shared pages divided by who shares."""

    resident_mib: float
    peak_mib: float
    proportional_mib: float

    @classmethod
    def of(cls, process: int) -> Memory:
        status = _kib(Path("/proc", str(process), "status"))
        rollup = _kib(Path("/proc", str(process), "smaps_rollup"))
        return cls(status["VmRSS"] / _MIB, status["VmHWM"] / _MIB, rollup["Pss"] / _MIB)

    def as_json(self) -> dict[str, float]:
        return {
            "resident_mib": round(self.resident_mib, 2),
            "peak_mib": round(self.peak_mib, 2),
            "proportional_mib": round(self.proportional_mib, 2),
        }


def _kib(file: Path) -> dict[str, int]:
    """The lines `Name:  1234 kB`."""
    found = {}
    for line in file.read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            found[name] = int(rest.split()[0])
    return found


def kernel_mib() -> dict[str, float]:
    """What the kernel holds for connections, as far as it says: all of its conntrack entries, and
    all memory of its allocator that cannot be given back."""
    found = {"unreclaimable": _kib(Path("/proc/meminfo"))["SUnreclaim"] / _MIB}
    for line in Path("/proc/slabinfo").read_text().splitlines():
        words = line.split()
        if words[0] == "nf_conntrack":
            # objects that are there, and bytes of each
            found["nf_conntrack"] = int(words[2]) * int(words[3]) / _MIB**2
    return found


def tracked(lab: Lab) -> int:
    """Connections that the router's conntrack has."""
    return int(lab.router.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count").stdout)


def first_verdict_ms(lab: Lab, beginner: Beginner) -> tuple[Daemon, float]:
    """Starts the daemon, begins a connection a millisecond, and waits until one is decided."""
    started = time.monotonic()
    daemon = lab.run(wait=False)
    while True:
        beginner.begin(1)
        queue = queue_of(lab)
        if queue is not None and queue["sequence"] > queue["waiting"]:
            return daemon, (time.monotonic() - started) * 1000
        if daemon.process.poll() is not None:
            raise LabError(f"evenlink run ended: {daemon.log.strip()}")
        if time.monotonic() - started > _PATIENCE_S:
            raise LabError(f"no verdict after {_PATIENCE_S:g} s: {daemon.log.strip()}")
        time.sleep(_PAUSE_S)


def _starts(lab: Lab, beginner: Beginner) -> Iterator[tuple[str, float]]:
    """Milliseconds of a start, and of another behind a daemon that left the kernel serving."""
    for name, end in (("start", signal.SIGTERM), ("restart", signal.SIGINT)):
        daemon, passed_ms = first_verdict_ms(lab, beginner)
        yield name, passed_ms
        daemon.wait_ready()
        daemon.stop(end)
    lab.router.run("conntrack", "-F")


def _memory(lab: Lab, beginner: Beginner) -> tuple[Memory, Memory, dict[str, Any]]:
    """Idle, with all connections, and what else there is to say about it."""
    kernel = kernel_mib()
    daemon = lab.run()
    process = daemon.process.pid
    time.sleep(_SETTLED_S)
    idle = Memory.of(process)
    fill(lab, beginner, CONNECTIONS)
    time.sleep(_SETTLED_S)
    full, kernel_then, held = Memory.of(process), kernel_mib(), tracked(lab)
    asked = time.monotonic()
    queue = daemon.status()["queue"]
    asked = time.monotonic() - asked
    asked_for = Memory.of(process)
    daemon.stop(signal.SIGINT)
    lab.router.run("conntrack", "-F")
    decided = queue["packets"] - queue["fallback"]
    if min(held, decided) < CONNECTIONS:
        raise LabError(f"{held} connections are tracked, {decided} were decided")
    said = {
        "tracked": held,
        "decided": decided,
        "idle": idle.as_json(),
        "connections": full.as_json(),
        "after_status": asked_for.as_json(),
        "status_s": round(asked, 2),
        "kernel": {f"{k}_mib": round(kernel_then[k] - kernel[k], 1) for k in kernel_then},
    }
    return idle, full, said


def _busy_pct(lab: Lab, probes: bool, seconds: float) -> float:
    """What an idle daemon takes of a core, in percent, with and without probes."""
    text = toml(lab.topology, lab.directory)
    if not probes:
        text = text.replace("\ninterface = ", "\nprobes = false\ninterface = ")
    daemon = lab.run(lab.file(text=text))
    processes = {"daemon": daemon.process.pid}
    time.sleep(_SETTLED_S)
    began_s, before_s = time.monotonic(), cpu.spent_s(processes)["daemon"]
    time.sleep(seconds)
    spent_s = cpu.spent_s(processes)["daemon"] - before_s
    busy_pct = 100 * spent_s / (time.monotonic() - began_s)
    targets = [one for link in daemon.status()["links"] for one in link["targets"]]
    daemon.stop(signal.SIGINT)
    asked = [one for one in targets if one["ok"]]
    if len(asked) != (3 * len(lab.topology.links) if probes else 0):
        raise LabError(f"{len(asked)} targets answer, of {len(targets)}")
    return busy_pct


def probing(runs: int, seconds: float = PROBING_S) -> Row:
    """The row of what probing costs. Raises errors.Error if the machine refuses."""
    row = Row("probing", "% of a core", against=None)
    busy: dict[bool, list[float]] = {False: [], True: []}
    with Lab(PROBED) as lab:
        for _ in range(runs):
            for probes, found in busy.items():
                found.append(_busy_pct(lab, probes, seconds))
            row.samples.append(Sample(busy[True][-1] - busy[False][-1]))
    row.extra = {
        "links": len(PROBED.links),
        "with_pct": round(median(busy[True]), 3),
        "without_pct": round(median(busy[False]), 3),
    }
    return row


def _starts_and_memory(options: Options, rows: dict[str, Row]) -> dict[str, Any]:
    """Samples for the rows of these, and what else there is to say."""
    said: dict[str, Any] = {}
    with room_for_connections(2 * CONNECTIONS), Lab(TOPOLOGY) as lab, Beginner(lab) as beginner:
        throw_away(lab)
        # Longer than a run takes: what is counted should still be there.
        lab.router.set({"net/netfilter/nf_conntrack_udp_timeout": 600})
        for run in range(options.runs):
            options.progress.step(f"{run + 1} of {options.runs}")
            for name, passed_ms in _starts(lab, beginner):
                rows[name].samples.append(Sample(passed_ms))
            if run % 2 == 0:
                idle, full, said = _memory(lab, beginner)
                rows["idle"].samples.append(Sample(idle.resident_mib))
                rows["connections"].samples.append(Sample(full.resident_mib))
    return said


def measure(options: Options) -> Result:
    """Starts in every run, memory and probing, which hardly differ, in every second."""
    ours = {"start": None, "restart": "start", "idle": "connections", "connections": None}
    rows = {
        name: Row(name, "ms" if "start" in name else "MiB", against=other)
        for name, other in ours.items()
    }
    rows["probing"] = Row("probing", "% of a core", against=None)
    extra: dict[str, Any] = {}
    why = missing("conntrack")
    if why:
        return Result([], dict.fromkeys(rows, why))
    options.progress.expect(options.runs)
    try:
        if not options.only or options.only - {"probing"}:
            extra = _starts_and_memory(options, rows)
        if options.wants("probing"):
            seconds = QUICK_PROBING_S if options.quick else PROBING_S
            rows["probing"] = probing((options.runs + 1) // 2, seconds)
    except Error as fault:
        return Result([], dict.fromkeys(rows, str(fault)))
    return Result([row for row in rows.values() if options.wants(row.name)], extra=extra)
