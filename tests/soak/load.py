"""A link dies and returns again and again under load; who was not on it never notices.

clients ── router ─┬─ isp-a ─┬─ server      300 pairs, TCP and UDP
                   ├─ isp-b ─┤
                   └─ isp-c ─┘
"""

from __future__ import annotations

import random
from statistics import median

from dataplane.lab import Lab, faults, uplinks
from dataplane.lab.calling import Caller
from dataplane.lab.failover import Failover, measure
from dataplane.lab.faults import Fault
from dataplane.lab.topology import MBIT
from dataplane.lab.traffic import connections, serve
from dataplane.lab.witness import Witness
from tests.soak.watching import Minutes, Outcome, Say, complaints, lacking, until

TOPOLOGY = uplinks(10 * MBIT, 20 * MBIT, 30 * MBIT, shaped=False, hosts=15, server_count=10)
FAULTS: tuple[Fault, ...] = (faults.no_carrier, faults.dropping, faults.unplugged)
_PORT = 5001
_PATIENCE_S = 30.0


def run(lab: Lab, minutes: float, seed: int, say: Say, *, least: int = 1) -> Outcome:
    """One death after another for that long, `least` in any case. `lab` has TOPOLOGY."""
    found = Outcome()
    dice = random.Random(seed)
    daemon = lab.run(lab.file(probe={"hold_ms": 0}))
    serve(lab, _PORT)
    pairs = lab.topology.pairs()
    outages: list[Failover] = []
    first = 1
    with Witness(lab) as witness, Caller(lab, witness, _PORT) as caller:
        clock = Minutes(minutes, say)
        while clock.tick(lambda: _sum(outages)) or len(outages) < least:
            if not until(lambda: not lacking(daemon), _PATIENCE_S):
                found.faults += lacking(daemon)
                break
            name, fault = dice.choice(lab.topology.links).name, dice.choice(FAULTS)
            older = connections(pairs, _PORT, heavy=0, first_number=first)
            first += len(older)
            if first > 30_000:
                first = 1
            one = measure(caller, name, fault, older)
            outages.append(one)
            found.faults += [f"{name}, {_name(fault)}: {words}" for words in _faults(one)]
    found.faults += complaints(daemon)
    found.told += [f"{len(pairs)} pairs; {_sum(outages)}"]
    return found


def _name(fault: Fault) -> str:
    return getattr(fault, "__name__", "fault")


def _faults(one: Failover) -> list[str]:
    found = list(one.notes)
    if one.wrong_source_packets:
        found.append(f"{one.wrong_source_packets} packets with a source not the link's")
    if one.pairs_moved != one.pairs_moved_bound:
        found.append(f"{one.pairs_moved:.2%} of the pairs moved, not {one.pairs_moved_bound:.2%}")
    return found


def _sum(outages: list[Failover]) -> str:
    if not outages:
        return "no death yet"
    detected = [one.detected_ms for one in outages]
    back = [one.udp_back_ms for one in outages]
    return (
        f"{len(outages)} deaths, {sum(one.survivor_connections_broken for one in outages)} of "
        f"{sum(one.survivors for one in outages)} connections of surviving links broken, new "
        f"connections elsewhere after {median(detected):.0f} ms (worst {max(detected):.0f}), "
        f"old UDP after {median(back):.0f} ms (worst {max(back):.0f})"
    )
