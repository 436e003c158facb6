"""How much later does a connection's first packet arrive, on a machine with nothing else to do?

    sender ──ping──► router: a mark, or not ──► sink, whose kernel answers        one path for each

Pings of 64 bytes, each a connection of its own, with pauses between them: whoever serves a queue
sleeps and has to be woken. They run on one core and the workers on the other. All rivals stand
ready at the same time and are asked in turn, ping by ping, in another order each round, since an
idle machine's wake-ups change by the second. Only the way there is queued, the way back is not.

`forward` is the whole round trip; the others are what they add to it in the same run: `evenlink` as
its reader sleeps, `evenlink-spin` with `spin_us` above the pauses, so that it never sleeps, and
keeps a core busy. `evenlink-first` is the daemon as `evenlink run` starts it, and what it adds to
the same path with connections tracked and translated, `forward+conntrack`.
"""

from __future__ import annotations

import statistics
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from bench import native, sender
from bench.measure import OURS, Options, Result, Row, Sample
from bench.path import QUEUE, SERVER, Path3, missing
from bench.rivals import Rival, Serving, daemon, kernel, queued
from bench.turns import Standing, lines, stand
from dataplane.config.marks import Marks
from dataplane.config.model import Queue
from dataplane.daemon.engine import QueueEngine
from dataplane.decide.program import ProgramRule, Slots, compile_program, everywhere
from dataplane.decide.slots import SLOTS
from dataplane.hotpath import Program
from dataplane.lab.namespaces import PYTHON, LabError

SPIN = "evenlink-spin"
FIRST = "evenlink-first"
FORWARD, TRACKED = "forward", "forward+conntrack"
PAUSE_US = 1000
SPIN_US = 10_000
_PINGS_A_SECOND = 800  # of each row, by `seconds`
_FEWEST = 20
_ANSWERED = 0.99
_LONGEST_S = 120.0
# Whose round trip is shown whole; all others' is what they add to FORWARD's, or to that one's.
_WHOLE = (FORWARD, TRACKED)
_BASES = {FIRST: TRACKED}
_CALLBACK = "netfilterqueue-python"
_AGAINST_OURS = ("callback", "nfq-c-perpacket", _CALLBACK, "netfilterqueue-scapy")


@contextmanager
def spinning(path: Path3) -> Iterator[Serving]:
    """The batch engine, which looks for SPIN_US before it sleeps."""
    with (
        path.demand_mark(),
        queued.worker(path, PYTHON, "-m", "bench.latency", str(SPIN_US)) as serving,
        path.iptables(*path.queued()),
    ):
        yield serving


def _known() -> dict[str, Rival]:
    """By the name of its row, in the order of the table."""
    every = {rival.name: rival for rival in (*kernel.RIVALS, *queued.RIVALS)}
    first = {rival.name: rival for rival in daemon.RIVALS}
    spin = Rival(SPIN, spinning, kernel.needs_iptables)
    chosen = {name: every[name] for name in (*_AGAINST_OURS, "hmark")}
    ours = {FORWARD: every[FORWARD], OURS: every[OURS], SPIN: spin}
    return {**ours, **chosen, FIRST: first[OURS], TRACKED: first[FORWARD]}


class _Trips:
    """Round trips in microseconds by row, a list for each run, and the worker's CPU for one."""

    def __init__(self) -> None:
        self.us: dict[str, list[list[float]]] = defaultdict(list)
        self.cpu_us: dict[str, list[float]] = defaultdict(list)

    def ask(self, standing: Mapping[str, Standing], rounds: int) -> None:
        """One run: each that many times. LabError if more than a few got no answer."""
        spaces = [one.path.sender.name for one in standing.values()]
        before = {name: one.worker_s() for name, one in standing.items()}
        said = lines(
            native.build("echo.c"),
            (sender.sender_core(), SERVER, rounds, PAUSE_US, *spaces),
            _LONGEST_S,
        )
        for name, column in zip(standing, zip(*said, strict=True), strict=True):
            trips = [nanoseconds / 1000 for nanoseconds in column if nanoseconds]
            if len(trips) < _ANSWERED * rounds:
                raise LabError(f"{name}: of {rounds} pings {len(trips)} got an answer in a second")
            self.us[name].append(trips)
            self.cpu_us[name].append((standing[name].worker_s() - before[name]) * 1e6 / rounds)

    def row(self, name: str, base: str | None = None) -> Row:
        """The median of each run, less that of `base`; beside it the round trips themselves."""
        medians = [statistics.median(run) for run in self.us[name]]
        bases = [statistics.median(run) for run in self.us[base]] if base else [0.0] * len(medians)
        every = [trip for run in self.us[name] for trip in run]
        return Row(
            name,
            "us added" if base else "us",
            # A spinning worker may answer sooner than one core alone would: it adds nothing.
            [Sample(max(0.0, median - less)) for median, less in zip(medians, bases, strict=True)],
            against=OURS if name in _AGAINST_OURS else None,
            extra={
                "round_trip_us": round(statistics.median(medians), 2),
                "p99_us": round(statistics.quantiles(every, n=100)[98], 2),
                "pings": len(every),
                "worker_us": round(statistics.median(self.cpu_us[name]), 2),
            },
        )


def measure(options: Options) -> Result:
    """Every run asks those that sleep in turn, then the spinning one, which leaves others no core,
    with plain forwarding beside it."""
    rivals = {
        name: rival
        for name, rival in _known().items()
        if name in (FORWARD, TRACKED) or options.wants(name)
    }
    why = missing() or native.missing("echo.c")
    reasons = {name: said for name, rival in rivals.items() if (said := why or rival.missing())}
    asleep, awake = _Trips(), _Trips()
    rounds = max(_FEWEST, int(_PINGS_A_SECOND * options.seconds))
    options.progress.expect(2 * options.runs)
    with ExitStack() as stack:
        spin = rivals.pop(SPIN, None)
        ready = stand(stack, rivals, reasons, {})
        if FORWARD in reasons:
            reasons |= dict.fromkeys(_known(), reasons[FORWARD])
        for run in range(options.runs if FORWARD in ready else 0):
            options.progress.step(f"asleep, {run + 1} of {options.runs}")
            for name in {FIRST, TRACKED} & ready.keys():
                ready[name].path.forget_connections()
            asleep.ask(ready, rounds)
            options.progress.step(f"awake, {run + 1} of {options.runs}")
            if spin and SPIN not in reasons:
                with Path3(links=spin.links) as path, spin.serve(path) as serving:
                    awake.ask({FORWARD: ready[FORWARD], SPIN: Standing(path, serving)}, rounds)
    return _result(options, asleep, awake, reasons)


def _result(options: Options, asleep: _Trips, awake: _Trips, reasons: Mapping[str, str]) -> Result:
    rows = [
        trips.row(name, _BASES.get(name, FORWARD) if name not in _WHOLE else None)
        for name in _known()
        for trips in ([awake] if name == SPIN else [asleep])
        if name in trips.us and _BASES.get(name, FORWARD) in trips.us and options.wants(name)
    ]
    result = Result(rows, {name: why for name, why in reasons.items() if options.wants(name)})
    result.extra["lower_is_better"] = True
    spin, callback = result.row(SPIN), result.row(_CALLBACK)
    if spin and callback:
        ratio = round(spin.median / callback.median, 3)
        result.extra["ratios"] = {f"{SPIN}/{_CALLBACK}": ratio, **result.ratios}
        result.extra["notes"] = [
            f"`{SPIN}` adds {ratio:.2f} of what `{_CALLBACK}` does. Its worker looks for packets "
            f"all the time: {spin.extra['worker_us']:,.0f} µs of CPU for a ping, where the one of "
            f"`{_CALLBACK}` needs {callback.extra['worker_us']:,.0f}."
        ]
    return result


def _serve(spin_us: int) -> None:
    """A process of its own that serves as the daemon's worker does."""
    slots = bytes(1 if slot % 3 == 0 else 2 for slot in range(SLOTS))
    rule = ProgramRule("default", everywhere(Slots(slots)))
    program = Program(compile_program(marks=Marks(), key=1, rules=[rule]))
    QueueEngine(Queue(number=QUEUE, spin_us=spin_us), program).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
