"""The demo's experiment: one link alone, then all of them, under the same traffic; then one dies.

The daemon is the real one in all parts: first with a file that names the better link only, then
with one that names all. The links' shapers, the clients and the servers stay the same. The better
link dies twice under a light load: once its path, silently, beyond the gateway, and once its
carrier.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, isqrt

from dataplane.errors import KernelError
from dataplane.lab import Daemon, Lab, Topology, faults, uplinks
from dataplane.lab.calling import Caller
from dataplane.lab.failover import Failover, Stage, measure
from dataplane.lab.faults import Fault
from dataplane.lab.meter import Meter
from dataplane.lab.traffic import Connection, Event, Load, connections, serve
from dataplane.lab.witness import Evidence, Witness
from dataplane.tools.demo_result import DemoResult, FailoverResult, LinkResult

Report = Callable[[str, float, str], None]
"""Told the part's name, how much of it is done (0 to 1), and how it goes."""

ALONE_S = 8.0
PARTS = ("the lab", "one link alone", "all links", "a link dies and returns")
_PORT = 5001
_SETTLE_S = 1.0
_NOTES = 10
# The light load of the last part takes that much of all links, at most: nothing waits for capacity.
_LIGHT_OF_SUM = 0.35
_LIGHT_BYTES, _LIGHTER_BYTES, _LIGHTER_BELOW_BPS = 3000, 200, 10_000_000
_LIGHT_HEADERS_BYTES = 250


@dataclass(frozen=True, slots=True)
class _Part:
    """One load: what was carried while it was steady, and what came of it."""

    carried: dict[str, int]
    seconds: float
    goodput_bps: float
    failures: dict[int, str]
    began_s: float
    ended_s: float

    @property
    def carried_bps(self) -> float:
        return sum(self.carried.values()) * 8 / self.seconds


def layout(links_bps: Sequence[int], pairs: int, ipv6_only: bool) -> Topology:
    """Links of these capacities with enough hosts and servers for that many address pairs."""
    families = 1 if ipv6_only else 2
    server_count = isqrt(ceil(pairs / families) * 2 // 3)
    hosts = ceil(pairs / families / server_count)
    return uplinks(
        *links_bps,
        families=(6,) if ipv6_only else (4, 6),
        hosts=hosts,
        server_count=server_count,
    )


def experiment(topology: Topology, seconds: float, report: Report) -> DemoResult:
    """Builds the lab, loads it, removes it. Raises errors.Error if the machine refuses."""
    began_s = time.monotonic()
    report(PARTS[0], 0.0, "")
    with Lab(topology) as lab, Witness(lab) as witness, Meter(lab) as meter:
        serve(lab, _PORT)
        pairs = topology.pairs()
        before = connections(pairs, _PORT)
        report(PARTS[0], 1.0, f"{len(lab.roles)} namespaces")

        best = max(topology.links, key=lambda link: link.capacity_bps).name
        daemon = lab.run(lab.file(name="one.toml", links=[best]))
        alone = _load(lab, meter, before, min(ALONE_S, seconds), lambda *a: report(PARTS[1], *a))
        _end(daemon)

        wanted = connections(pairs, _PORT, first_number=len(before) + 1)
        daemon = lab.run(lab.file(name="all.toml"))
        foretold = [answer["link"] for answer in daemon.explain([one.flow for one in wanted])]
        together = _load(lab, meter, wanted, seconds, lambda *a: report(PARTS[2], *a))
        status = {link["name"]: link for link in daemon.status()["links"]}

        with Caller(lab, witness, _PORT) as caller:
            first = wanted[-1].number + 1
            deaths = _deaths(caller, best, first, lambda *a: report(PARTS[3], *a))
        _end(daemon)

        seen = witness.testimony()
        rates = {
            name: [(at_s - began_s, bps) for at_s, bps in points]
            for name, points in meter.rates().items()
        }
    slots = {
        name: tuple(
            link["share_slots" if family == 4 else "share_slots_ipv6"]
            for family in topology.families
        )
        for name, link in status.items()
    }
    used = {one.number: seen.links.get(one.number, set()) for one in wanted}
    wrong = [
        (one, said)
        for one, said in zip(wanted, foretold, strict=True)
        if used[one.number] != {said}
    ]
    return DemoResult(
        links=_links(topology, slots, together, used),
        connections=len(wanted),
        pairs=len(pairs),
        pairs_split=seen.split({one.number: one.pair for one in wanted}),
        connections_opened=len(before) + len(wanted),
        connections_failed=len(alone.failures) + len(together.failures),
        carried_bps=together.carried_bps,
        carried_one_link_bps=alone.carried_bps,
        one_link=best,
        goodput_bps=together.goodput_bps,
        wrong_source_packets=seen.wrong_source_packets.total(),
        mispredicted=len(wrong),
        failover=_failover(*deaths),
        seconds=time.monotonic() - began_s,
        rates=rates,
        phases=(
            *(
                (
                    f"{name}: {part.carried_bps / 1e6:.1f}",
                    part.began_s - began_s,
                    part.ended_s - began_s,
                )
                for name, part in ((f"{best} alone", alone), ("all links", together))
            ),
            (
                f"{best} dies and returns",
                deaths[0].began_s - began_s,
                deaths[1].ended_s - began_s,
            ),
        ),
        turns=tuple(
            (name, one.outage.killed_s - began_s)
            for name, one in zip(("path dead", "carrier lost"), deaths, strict=True)
        ),
        notes=(
            *_notes(alone, together, wrong, used, seen),
            *(note for one in deaths for note in one.notes[:_NOTES]),
        ),
    )


def _deaths(
    caller: Caller, link: str, first_number: int, report: Callable[[float, str], None]
) -> tuple[Failover, Failover]:
    """The link dies beyond its gateway and returns, and then loses its carrier and returns."""
    topology = caller.lab.topology
    sum_bps = sum(each.capacity_bps for each in topology.links)
    light_bytes = _LIGHT_BYTES if sum_bps >= _LIGHTER_BELOW_BPS else _LIGHTER_BYTES
    done = 0

    def told(stage: Stage) -> None:
        nonlocal done
        done += 1
        report(done / 8, f"{link} {stage}")

    def die(fault: Fault, first_number: int) -> Failover:
        older = connections(topology.pairs(), _PORT, heavy=0, first_number=first_number)
        light_bits = len(older) * (light_bytes + _LIGHT_HEADERS_BYTES) * 8
        return measure(
            caller,
            link,
            fault,
            older,
            light_bytes=light_bytes,
            light_interval_s=max(1.0, light_bits / (_LIGHT_OF_SUM * sum_bps)),
            told=told,
        )

    report(0.0, "")
    path = die(faults.dropping, first_number)
    return path, die(faults.no_carrier, first_number + path.connections)


def _failover(path: Failover, carrier: Failover) -> FailoverResult:
    """Of both deaths; where one share is to be shown, that of the worse."""
    worse = max((path, carrier), key=lambda one: abs(one.pairs_moved - one.pairs_moved_bound))
    return FailoverResult(
        killed=path.killed,
        detected_ms=path.detected_ms,
        carrier_ms=carrier.detected_ms,
        udp_back_ms=max(path.udp_back_ms, carrier.udp_back_ms),
        survivors=path.survivors + carrier.survivors,
        survivor_connections_broken=(
            path.survivor_connections_broken + carrier.survivor_connections_broken
        ),
        pairs_moved=worse.pairs_moved,
        pairs_moved_bound=worse.pairs_moved_bound,
        returned_exactly=path.returned_exactly and carrier.returned_exactly,
    )


def _end(daemon: Daemon) -> None:
    status = daemon.stop(signal.SIGINT)
    if status not in (0, 130):
        raise KernelError(f"evenlink run ended with status {status}: {daemon.log.strip()}")


def _load(
    lab: Lab,
    meter: Meter,
    wanted: Sequence[Connection],
    seconds: float,
    report: Callable[[float, str], None],
) -> _Part:
    began_s = time.monotonic()
    load = Load(lab, wanted, load_s=seconds + _SETTLE_S)
    events: dict[str, Event] = {}
    heard: list[Event] = []
    expected_s = seconds + 5.0
    for event in load.events():
        events[event.kind] = event
        heard.append(event)
        done = min((event.at_s - began_s) / expected_s, 1.0)
        report(done, f"{event.open} connections")
    start_s, end_s = events["open"].at_s + _SETTLE_S, events["closing"].at_s
    report(1.0, f"{events['done'].open} connections")
    carried, carried_s = meter.carried(start_s, end_s)
    steady = [event for event in heard if start_s <= event.at_s <= end_s]
    received = steady[-1].received - steady[0].received
    goodput_bps = received * 8 / (steady[-1].at_s - steady[0].at_s)
    return _Part(
        carried, carried_s, goodput_bps, load.failures, events["open"].at_s, events["closing"].at_s
    )


def _links(
    topology: Topology,
    slots: dict[str, tuple[float, ...]],
    part: _Part,
    used: dict[int, set[str]],
) -> tuple[LinkResult, ...]:
    capacity = sum(link.capacity_bps for link in topology.links)
    carried = sum(part.carried.values())
    took = Counter(name for links in used.values() for name in links)
    return tuple(
        LinkResult(
            name=link.name,
            capacity_bps=link.capacity_bps,
            share_wanted=link.capacity_bps / capacity,
            share_slots=slots[link.name],
            share_connections=took[link.name] / max(took.total(), 1),
            share_bytes=part.carried[link.name] / max(carried, 1),
            carried_bps=part.carried[link.name] * 8 / part.seconds,
        )
        for link in topology.links
    )


def _notes(
    alone: _Part,
    together: _Part,
    wrong: Sequence[tuple[Connection, str | None]],
    used: dict[int, set[str]],
    seen: Evidence,
) -> tuple[str, ...]:
    """Examples of what went wrong, a few of each kind."""
    failed = [
        f"connection {number} failed: {why}"
        for part in (alone, together)
        for number, why in part.failures.items()
    ]
    foretold = [
        f"{one.flow}: explain said {said}, it took {', '.join(used[one.number]) or 'none'}"
        for one, said in wrong
    ]
    sources = [f"wrong source: {example}" for example in seen.examples]
    return (*failed[:_NOTES], *foretold[:_NOTES], *sources[:_NOTES])
