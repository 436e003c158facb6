"""Many links break and mend in random order; afterwards nothing must be left of it.

clients ── router ─┬─ isp-1 … isp-64 ─┬─ server      several of them broken at any time
"""

from __future__ import annotations

import heapq
import random
import signal
import time
from collections import Counter
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from dataplane.lab import Daemon, Lab, Topology, faults, lan, link, servers
from dataplane.lab.faults import Fault
from dataplane.lab.witness import Witness
from tests.soak import remains
from tests.soak.remains import MASK, PROBE, Held
from tests.soak.traffic import Dripping
from tests.soak.watching import (
    Asker,
    Minutes,
    Outcome,
    Say,
    Transitions,
    complaints,
    homes,
    lacking,
    links_of,
    too_late,
    until,
)

KEY = "0123456789abcdef"
FAULTS: tuple[Fault, ...] = (
    faults.no_carrier,
    faults.dropping,
    faults.unplugged,
    faults.interface_down,
)
# So that what the flapping left behind in conntrack is over while somebody waits for it.
_FORGOTTEN_S = 10
_PATIENCE_S = 60.0
# The memory of the first part is what the daemon needs; the second part is judged.
_GROWTH_MIB = 1.0


def topology(count: int) -> Topology:
    """That many links with both families."""
    links = (link(f"isp-{n}", n, 10_000_000, shaped=False) for n in range(1, count + 1))
    return Topology(tuple(links), (lan(hosts=8),), servers(8))


@dataclass(frozen=True, slots=True)
class Break:
    """One fault of one link, in seconds from the beginning."""

    link: str
    fault: Fault
    from_s: float
    to_s: float


def schedule(names: list[str], seconds: float, at_once: int, dice: random.Random) -> list[Break]:
    """Breaks without end until then, `at_once` at any time, none twice on one link."""
    whole, found = list(names), []
    mends: list[tuple[float, str]] = []
    now_s = 0.0
    while now_s < seconds:
        if len(mends) < min(at_once, len(names)):
            name = whole.pop(dice.randrange(len(whole)))
            to_s = now_s + dice.uniform(0.2, 6.0)
            found.append(Break(name, dice.choice(FAULTS), now_s, min(to_s, seconds)))
            heapq.heappush(mends, (to_s, name))
        else:
            now_s, name = heapq.heappop(mends)
            whole.append(name)
    return found


@dataclass(slots=True)
class Flaps:
    """What was done to the links."""

    breaks: Counter[str] = field(default_factory=Counter)
    late_s: float = 0.0


def flap(lab: Lab, breaks: list[Break], witness: Witness, clock: Minutes, said: Flaps) -> None:
    """Breaks and mends as it is scheduled, or later where that is too fast."""
    began_s = time.monotonic()
    acts = sorted(
        ((at_s, one, begins) for one in breaks for at_s, begins in _ends(one)),
        key=lambda act: (act[0], act[2]),
    )
    with ExitStack() as last:
        living: dict[str, AbstractContextManager[None]] = {}
        for at_s, one, begins in acts:
            while (ahead_s := began_s + at_s - time.monotonic()) > 0:
                clock.tick(lambda: f"{said.breaks.total()} breaks")
                time.sleep(min(ahead_s, 0.5))
            said.late_s = max(said.late_s, -ahead_s)
            if begins:
                living[one.link] = fault = one.fault(lab, one.link)
                fault.__enter__()
                last.callback(lambda link=one.link: _mend(living, link))  # type: ignore[misc]
                said.breaks[getattr(one.fault, "__name__", "fault")] += 1
            else:
                _mend(living, one.link)
                if one.fault is faults.unplugged:
                    witness.attend(one.link)


def _ends(one: Break) -> tuple[tuple[float, bool], tuple[float, bool]]:
    return (one.from_s, True), (one.to_s, False)


def _mend(living: dict[str, AbstractContextManager[None]], link: str) -> None:
    fault = living.pop(link, None)
    if fault is not None:
        fault.__exit__(None, None, None)


def run(
    lab: Lab, minutes: float, seed: int, say: Say, *, hold_ms: int = 0, at_once: int = 12
) -> Outcome:
    """Flaps for that long, in four parts with a pause after each. `lab` has a `topology`."""
    found = Outcome()
    names = [link.name for link in lab.topology.links]
    dice = random.Random(seed)
    untouched = remains.kernel(lab)
    daemon = lab.run(lab.file(key=KEY, probe={"hold_ms": hold_ms}))
    lab.router.set(
        {
            "net/netfilter/nf_conntrack_udp_timeout": _FORGOTTEN_S,
            "net/netfilter/nf_conntrack_udp_timeout_stream": _FORGOTTEN_S,
            "net/netfilter/nf_conntrack_icmp_timeout": _FORGOTTEN_S,
            "net/netfilter/nf_conntrack_icmpv6_timeout": _FORGOTTEN_S,
        }
    )
    process = daemon.process.pid
    found.faults += _settle(daemon, _PATIENCE_S)
    fresh, fresh_homes, fresh_shares = remains.kernel(lab), homes(lab, daemon), _shares(daemon)
    fresh_descriptors, fresh_marks = remains.descriptors(process), remains.marks(lab)
    held = [Held.by(process)]
    transitions, said = Transitions(daemon), Flaps()
    spent_s, breaks_s = 0.0, 0.0
    counted: list[int] = []
    with Asker(daemon) as asked, Witness(lab) as witness, Dripping(lab):
        clock = Minutes(minutes, say)
        for _ in range(4):
            breaks = schedule(names, minutes * 60 / 4, at_once, dice)
            before_s, began_s = remains.cpu_s(process), time.monotonic()
            flap(lab, breaks, witness, clock, said)
            breaks_s += time.monotonic() - began_s
            spent_s += sum(remains.cpu_s(process).values()) - sum(before_s.values())
            found.faults += _settle(daemon, _PATIENCE_S + hold_ms / 1000)
            held.append(Held.by(process))
            counted.append(len(transitions.lines()) - sum(counted))
        seen = witness.testimony()
    found.faults += [
        f"{n} packets with a source not its own left by {name}: {seen.examples[0]}"
        for name, n in seen.wrong_source_packets.items()
    ]
    found.faults += [f"status was refused: {words}" for words in asked.refusals]
    found.faults += _remaining(lab, daemon, fresh_descriptors, fresh_marks)
    found.faults += remains.differences(fresh, remains.kernel(lab))
    if homes(lab, daemon) != fresh_homes or _shares(daemon) != fresh_shares:
        found.faults.append("not every pair is back on its home link")
    grown_mib = held[4].resident_mib - held[2].resident_mib
    if grown_mib > _GROWTH_MIB:
        found.faults.append(f"{grown_mib:.2f} MiB more resident after the second half")
    late = [line for line in complaints(daemon) if too_late(line)]
    found.faults += [line for line in complaints(daemon) if line not in late]
    daemon.stop(signal.SIGINT)
    found.faults += [
        f"after the end: {line}" for line in remains.differences(untouched, remains.kernel(lab))
    ]
    took = sorted(asked.took_s)
    found.told += [
        f"{said.breaks.total()} breaks of {len(names)} links in {breaks_s:.0f} s "
        f"({', '.join(f'{name} {n}' for name, n in sorted(said.breaks.items()))}), "
        f"the latest {said.late_s:.1f} s behind its time",
        f"{sum(counted)} transitions, by quarter {counted}; the longest hold {hold_ms / 1000:g} s",
        f"{len(late)} times what was to be applied came too late for an interface that had gone",
        f"status: asked {len(took)} times, median {took[len(took) // 2]:.2f} s, "
        f"worst {took[-1]:.2f} s",
        f"CPU while links flapped: {spent_s / breaks_s:.0%} of a core (with status asked)",
        *(
            f"{when}: {one}"
            for when, one in zip(
                ("at first", *(f"after part {n}" for n in range(1, 5))), held, strict=True
            )
        ),
        f"descriptors: {dict(sorted(fresh_descriptors.items()))}",
    ]
    return found


def _settle(daemon: Daemon, limit_s: float) -> list[str]:
    """Waits until every link is up and every target answers; what does not, if it takes longer."""
    return [] if until(lambda: not lacking(daemon), limit_s) else lacking(daemon)


def _shares(daemon: Daemon) -> dict[str, tuple[float, float]]:
    links = links_of(daemon).items()
    return {name: (one["share_slots"], one["share_slots_ipv6"]) for name, one in links}


def _remaining(
    lab: Lab, daemon: Daemon, descriptors: Counter[str], marked: Counter[int]
) -> list[str]:
    """Descriptors and tracked connections that are more than at first, when all had time to end."""
    process = daemon.process.pid
    found = []
    if not until(lambda: remains.descriptors(process) == descriptors, 30.0):
        now = remains.descriptors(process)
        found.append(f"descriptors: {dict(now - descriptors)} more, {dict(descriptors - now)} less")
    ours = [mark for mark in marked if mark & MASK]
    most = Counter({mark: marked[mark] for mark in {*ours, PROBE}})

    def left() -> dict[int, int]:
        now = remains.marks(lab)
        return {mark >> 24: n for mark, n in now.items() if mark and n > most[mark]}

    if not until(lambda: not left(), 4.0 * _FORGOTTEN_S):
        found.append(f"tracked connections by mark, more than at first: {left()}")
    return found
