"""A link dies and returns under traffic: how long that takes, who moves, and who notices.

    serve(lab, 5001)
    with Witness(lab) as witness, Caller(lab, witness, 5001) as caller:
        found = measure(caller, "isp-b", faults.dropping, connections(pairs, 5001, heavy=0))
        found.detected_ms, found.survivor_connections_broken, …
        with outage(caller, "isp-b", faults.no_carrier) as quick:        # the times alone
            quick.detected_ms

Every figure is the providers': the witness says which link a connection took. `explain` and
`status` are not asked, so rivals that have neither are measured in the same way.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from dataplane.lab.calling import PATIENCE_S, Caller, Flow, Pair
from dataplane.lab.faults import Fault
from dataplane.lab.namespaces import LabError
from dataplane.lab.topology import Family
from dataplane.lab.traffic import Connection, Load

_INTERVAL_S = 0.005
_QUIET_S = 0.2
KEPT = 8
_KEPT_INTERVAL_S = 0.05
_SLOW_S = 1.0


class NeverError(LabError):
    """What was waited for did not come."""


Stage = Literal["dying", "dead", "mended", "back"]
Told = Callable[[Stage], object]
"""Told that the link is about to be killed, that another serves, that the fault is mended, that
the link serves again."""


def _nobody(_: Stage) -> None:
    """Nobody is told."""


@dataclass(slots=True)
class Outage:
    """Milliseconds from just before the fault, of the slower family.

    `detected_ms`: until a new connection of a pair that was at home on the link is answered by
    another; one is begun every 5 ms. `udp_back_ms`: until old UDP flows of the link are answered
    by another, the last of some that are watched. `returned_ms`: from the mended fault until a new
    connection of such a pair is answered by its home link again.
    Times are monotonic; `killed_s` is just before the fault was made, `revived_s` before it was
    mended.
    """

    link: str
    homes: dict[Pair, str]
    killed_s: float = 0.0
    revived_s: float = 0.0
    detected_ms: float = 0.0
    udp_back_ms: float = 0.0
    returned_ms: float = 0.0

    @property
    def evicted(self) -> list[Pair]:
        """The pairs that were at home on the link."""
        return [pair for pair, home in self.homes.items() if home == self.link]


@dataclass(frozen=True, slots=True)
class Failover:
    """What came of one death and return. Shares are of all pairs.

    `survivors` are connections that were not on the link when it died. One of them is broken if it
    failed, waited more than a second for an answer, or was seen on another link than before.
    `pairs_moved` are those whose new connections went elsewhere, `pairs_moved_bound` those that
    were at home on the link. `returned_exactly`: afterwards each pair's new connections took its
    home link. `udp_lost`: UDP connections of the dead link that were never answered again. `notes`
    tell what went wrong.
    """

    outage: Outage
    connections: int
    survivors: int
    survivor_connections_broken: int
    pairs: int
    pairs_moved: float
    pairs_moved_bound: float
    returned_exactly: bool
    udp_lost: int
    wrong_source_packets: int
    began_s: float
    ended_s: float
    notes: tuple[str, ...] = ()

    @property
    def killed(self) -> str:
        return self.outage.link

    @property
    def detected_ms(self) -> float:
        return self.outage.detected_ms

    @property
    def udp_back_ms(self) -> float:
        return self.outage.udp_back_ms


@contextmanager
def outage(
    caller: Caller,
    link: str,
    fault: Fault,
    *,
    pairs: Sequence[Pair] = (),
    homes: dict[Pair, str] | None = None,
    limit_s: float = PATIENCE_S,
    within_s: float = 1.0,
    kept: int = KEPT,
    told: Told = _nobody,
) -> Iterator[Outage]:
    """Kills the link at a random moment `within_s`; the block runs while it is dead.

    When the block is over the link is revived, and waited for. `homes` where they are known, else
    they are surveyed, of `pairs` or all of the topology; `kept` is how many old UDP flows are
    watched. LabError if the link is nobody's home, NeverError if nothing happens within `limit_s`.
    `told` hears how far it is.
    """
    if homes is None:
        homes = caller.survey(pairs or caller.lab.topology.pairs())
    found = Outage(link, homes)
    evicted = found.evicted
    if not evicted:
        raise LabError(f"no pair is at home on {link}")
    old = [caller.keep(pair) for pair in _spread(evicted, kept)]
    _settle(caller, old, link)
    _Watch(caller, evicted, old).run_for(_QUIET_S + random.uniform(0, within_s))

    told("dying")
    watch = _Watch(caller, evicted, old)
    found.killed_s = time.monotonic()
    with fault(caller.lab, link):
        watch.until_elsewhere(link, found.killed_s, limit_s)
        found.detected_ms = 1000 * (max(watch.first_s.values()) - found.killed_s)
        if old:
            found.udp_back_ms = 1000 * (max(watch.back_s.values()) - found.killed_s)
        told("dead")
        yield found
        found.revived_s = time.monotonic()
    caller.witness.attend(link)
    told("mended")
    caller.drop(old)
    watch = _Watch(caller, evicted, [])
    watch.until_home(link, found.revived_s, limit_s)
    found.returned_ms = 1000 * (max(watch.first_s.values()) - found.revived_s)
    told("back")


@dataclass(slots=True)
class _Watch:
    """Calls of the pairs that are at home on one link, the families in turn, and of old flows.

    `first_s`: by family, when the first new connection was answered as wanted; `back_s` the same
    by old flow.
    """

    caller: Caller
    pairs: Sequence[Pair]
    kept: Sequence[Flow]
    first_s: dict[Family, float] = field(default_factory=dict)
    back_s: dict[Flow, float] = field(default_factory=dict)

    def until_elsewhere(self, dead: str, since_s: float, limit_s: float) -> None:
        """Until each family's calls, and all old flows, are answered by another link."""
        self._run(lambda link: link not in (None, dead), since_s, limit_s)

    def until_home(self, home: str, since_s: float, limit_s: float) -> None:
        self._run(lambda link: link == home, since_s, limit_s)

    def run_for(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        for _ in self._calls():
            if time.monotonic() > ends:
                return

    def _run(self, wanted: Callable[[str | None], bool], since_s: float, limit_s: float) -> None:
        families = {_family(pair) for pair in self.pairs}
        for answered in self._calls():
            for number in answered:
                call = self.caller[number]
                if call.sent_s < since_s or not wanted(self.caller.link(number)):
                    continue
                assert call.answered_s is not None
                if call.flow in self.kept:
                    self.back_s.setdefault(call.flow, call.answered_s)
                else:
                    self.first_s.setdefault(_family(call.flow.pair), call.answered_s)
            if len(self.first_s) == len(families) and len(self.back_s) == len(self.kept):
                return
            if time.monotonic() - since_s > limit_s:
                raise NeverError(self._missing(families, limit_s))

    def _calls(self) -> Iterator[list[int]]:
        """Calls without end; gives each time the numbers of what was answered."""
        families = sorted({_family(pair) for pair in self.pairs})
        turns = [
            itertools.cycle([pair for pair in self.pairs if _family(pair) == family])
            for family in families
        ]
        kept_s = 0.0
        for turn in itertools.cycle(turns):
            self.caller.call(next(turn))
            if time.monotonic() - kept_s > _KEPT_INTERVAL_S:
                kept_s = time.monotonic()
                for flow in self.kept:
                    self.caller.again(flow)
            yield self.caller.listen(_INTERVAL_S)

    def _missing(self, families: set[Family], limit_s: float) -> str:
        silent = sorted(families - set(self.first_s))
        if silent:
            names = " and ".join(f"IPv{family}" for family in silent)
            return f"no new connection of {names} got through as it should in {limit_s:g} s"
        flow = next(flow for flow in self.kept if flow not in self.back_s)
        source, target = flow.pair
        return f"the UDP flow from {source} to {target} does not flow again after {limit_s:g} s"


def _spread(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """That many of them, at most, from all over."""
    few = min(count, len(pairs))
    return [pairs[number * len(pairs) // few] for number in range(few)]


def _settle(caller: Caller, kept: Sequence[Flow], link: str) -> None:
    """Until each old flow was answered by the link."""
    waiting = set(kept)
    ends = time.monotonic() + PATIENCE_S
    while waiting:
        for flow in waiting:
            caller.again(flow)
        for number in caller.listen(_KEPT_INTERVAL_S):
            if caller.link(number) == link:
                waiting.discard(caller[number].flow)
        if time.monotonic() > ends:
            raise LabError(f"a pair that was at home on {link} is not answered by it")


def _family(pair: Pair) -> Family:
    return 6 if pair[0].version == 6 else 4


def measure(
    caller: Caller,
    link: str,
    fault: Fault,
    older: Sequence[Connection],
    *,
    light_bytes: int = 200,
    light_interval_s: float = 1.0,
    told: Told = _nobody,
) -> Failover:
    """Kills and revives the link under a load of `older` connections, of which none comes late."""
    older = [replace(one, late=False) for one in older]
    lab, witness = caller.lab, caller.witness
    pairs = list(dict.fromkeys(one.pair for one in older))
    seen = witness.testimony()
    for one in older:  # an earlier load may have had the same numbers
        seen.links.pop(one.number, None)
    before = seen.wrong_source_packets.total()
    began_s = time.monotonic()
    load = Load(
        lab,
        older,
        load_s=None,
        light_bytes=light_bytes,
        light_interval_s=light_interval_s,
        patience_s=10.0,
        udp_wait_s=0.1,
        slow_s=_SLOW_S,
    )
    load.until("open")
    homes = caller.survey(pairs)
    used = {one.number: set(witness.testimony().links.get(one.number, ())) for one in older}
    with outage(caller, link, fault, homes=homes, told=told) as found:
        elsewhere = caller.survey(pairs)
    again = caller.survey(pairs)
    load.end()
    seen = witness.testimony()
    survivors = [one for one in older if link not in used[one.number]]
    broken = _broken(survivors, load, seen.links)
    lost = [
        one
        for one in older
        if one.protocol == "udp" and link in used[one.number] and one.number in load.failures
    ]
    astray = [pair for pair in pairs if again[pair] != homes[pair]]
    return Failover(
        outage=found,
        connections=len(older),
        survivors=len(survivors),
        survivor_connections_broken=len(broken),
        pairs=len(pairs),
        pairs_moved=sum(elsewhere[pair] != homes[pair] for pair in pairs) / len(pairs),
        pairs_moved_bound=len(found.evicted) / len(pairs),
        returned_exactly=not astray,
        udp_lost=len(lost),
        wrong_source_packets=seen.wrong_source_packets.total() - before,
        began_s=began_s,
        ended_s=time.monotonic(),
        notes=(
            *broken.values(),
            *(f"{one.flow} was not answered again" for one in lost),
            *(
                f"{source} {target} is at home on {homes[source, target]}, "
                f"and came back to {again[source, target]}"
                for source, target in astray
            ),
        ),
    )


def _broken(
    survivors: Sequence[Connection], load: Load, links: dict[int, set[str]]
) -> dict[int, str]:
    """By number, what happened to those that should not have noticed."""
    slow = {one.number: one.took_s for one in load.slow}
    found = {}
    for one in survivors:
        used = links.get(one.number, set())
        if one.number in load.failures:
            found[one.number] = f"{one.flow} failed: {load.failures[one.number]}"
        elif one.number in slow:
            found[one.number] = f"{one.flow} waited {slow[one.number]:.1f} s"
        elif len(used) != 1:
            found[one.number] = f"{one.flow} was seen on {', '.join(sorted(used)) or 'no link'}"
    return found
