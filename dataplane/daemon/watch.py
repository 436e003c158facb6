"""Asks the links' targets, round by round, and keeps their health. Lives on the event loop.

`see` hears what the machine says of the links, `judgements` says what health makes of it, and
`changed` is called when that became something else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from dataplane.config.model import Config, Link
from dataplane.daemon.asking import Asking, RoundTrips
from dataplane.daemon.naming import Naming
from dataplane.decide.facts import FAMILIES, Facts, Family
from dataplane.decide.health import Health, State, doubts, judgements, published
from dataplane.decide.liveness import Judgement, Judgements, LinkState
from dataplane.system.probe import Exit

log = logging.getLogger("evenlink")

# Three bad rounds of the others take less, at the usual pace.
MOST_WAIT_S = 2.0


class Watch:
    """All links. `see` comes first, and asking begins with `serve`."""

    def __init__(
        self, changed: Callable[[], None], silent_before: Collection[tuple[str, Family]]
    ) -> None:
        self._changed = changed
        self._silent_before = silent_before
        self._links: dict[str, _Watched] = {}
        self._published: dict[tuple[str, Family], Judgement] = {}
        # Something waits until others are no longer in doubt, until then at the latest.
        self._waiting: asyncio.TimerHandle | None = None

    def take(self, config: Config) -> None:
        """Watches the links of this file. Those that were watched before keep their health."""
        before, self._links = self._links, {}
        for link in config.links:
            watched = before.get(link.name)
            if watched is not None and watched.same_path(link):
                del before[link.name]
                watched.take(link, config.hold_ms)
            else:
                silent = {f for f in FAMILIES if (link.name, f) in self._silent_before}
                watched = _Watched(link, config.hold_ms, silent, self._conclude)
            self._links[link.name] = watched
        self._published = self._found()
        # Of the next links of these names nothing is known.
        self._silent_before = ()
        for gone in before.values():
            gone.close()

    def see(self, facts: Facts, states: Mapping[str, LinkState]) -> None:
        """What the machine says of the links now. Others than those that are watched are left."""
        for name, watched in self._links.items():
            if name in states:
                try:
                    watched.see(facts, states[name])
                except Exception:
                    # The other links are seen all the same.
                    log.exception("link %s cannot be watched; the next look tries again", name)

    def serve(self, marks: Mapping[str, int]) -> None:
        """Asks from now on, each link's probes with its mark."""
        for name, watched in self._links.items():
            watched.serve(marks[name])

    def judgements(self) -> Judgements:
        """What health makes of each way."""
        return self._published

    def _conclude(self, changed: bool) -> None:
        """After a round of one link. `changed`: its judgement is another one."""
        if not changed and self._waiting is None:
            return
        found = self._found()
        doubtful = {
            (name, family) for name, watched in self._links.items() for family in watched.doubtful
        }
        after = published(self._published, found, doubtful)
        self._wait_for_others(after != found)
        self._publish(after)

    def _wait_for_others(self, waiting: bool) -> None:
        loop = asyncio.get_running_loop()
        if waiting and self._waiting is None:
            self._waiting = loop.call_later(MOST_WAIT_S, self._waited)
        elif not waiting and self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _waited(self) -> None:
        self._waiting = None
        self._publish(self._found())

    def _publish(self, after: dict[tuple[str, Family], Judgement]) -> None:
        if after != self._published:
            self._published = after
            self._changed()

    def _found(self) -> dict[tuple[str, Family], Judgement]:
        return {
            (name, family): judgement
            for name, watched in self._links.items()
            for family, judgement in watched.judgements.items()
        }

    def round_trips(self) -> dict[tuple[str, Family], float | None]:
        """By link and family, the round trip in ms to the nearest target beyond the gateway."""
        return {
            (name, family): watched.round_trip_ms(family)
            for name, watched in self._links.items()
            for family in FAMILIES
        }

    def report(self) -> dict[str, dict[str, Any]]:
        """By link, what each target said last, and how long the link's hold is."""
        return {name: watched.report() for name, watched in self._links.items()}

    def close(self) -> None:
        self._wait_for_others(False)
        for watched in self._links.values():
            watched.close()
        self._links.clear()


class _Watched:
    """One link."""

    def __init__(
        self,
        link: Link,
        hold_ms: float,
        silent: Collection[Family],
        concluded: Callable[[bool], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._concluded = concluded
        self._ways = {
            family: Health(link.probes, hold_ms, silent=family in silent) for family in FAMILIES
        }
        self._hold_ms = hold_ms
        self._index: int | None = None
        self._mark: int | None = None
        self._state: LinkState | None = None
        # What the sockets of the probes depend on; they are made anew when it changes.
        self._path: object = None
        self._askings: list[Asking] = []
        self._trips: RoundTrips = {}
        self._naming = _naming(link)
        self._hold: asyncio.TimerHandle | None = None
        self.judgements = judgements(self._ways)

    def same_path(self, link: Link) -> bool:
        mine = self._link
        return (mine.interface, mine.gateway, mine.gateway6) == (
            link.interface,
            link.gateway,
            link.gateway6,
        )

    def take(self, link: Link, hold_ms: float) -> None:
        if (link.probes, hold_ms) != (self._link.probes, self._hold_ms):
            for health in self._ways.values():
                health.take_probes(link.probes, hold_ms)
            self._ask_nobody()
            self._trips.clear()
            self._naming.close()
            self._naming = _naming(link)
        self._link, self._hold_ms = link, hold_ms

    def see(self, facts: Facts, state: LinkState) -> None:
        now_ms = self._now_ms()
        interface = facts.interface(self._link.interface)
        index = interface.index if interface else None
        if self._index is not None and index not in (None, self._index):
            for health in self._ways.values():
                health.cut("the interface was made anew", now_ms)
            self._trips.clear()
        self._index = index if index is not None else self._index
        for family, health in self._ways.items():
            way = state.way(family)
            if way.joined:
                health.joined(now_ms)
            else:
                health.cut(way.why, now_ms)
        self._state = state
        path = (index, *((way.joined, way.gateway) for way in state.ways))
        if path != self._path:
            self._path = path
            self._ask_nobody()
        self._ask()
        self._conclude()

    def serve(self, mark: int) -> None:
        if mark != self._mark:
            self._mark = mark
            self._ask_nobody()
        self._ask()

    def _ask(self) -> None:
        """Has the probes asked, if they can be and are not yet."""
        state = self._state
        if self._askings or self._mark is None or state is None:
            return
        ways = {family: state.way(family) for family in FAMILIES if state.way(family).joined}
        if not ways:
            return
        by = Exit(self._link.interface, self._mark)
        for number, probe in enumerate(self._link.probes):
            healths = {family: self._ways[family] for family in ways}
            gateways = {family: way.gateway for family, way in ways.items()}
            self._askings.append(
                Asking(
                    probe,
                    number,
                    by,
                    healths,
                    gateways,
                    self._naming,
                    self._trips,
                    self._conclude,
                )
            )

    def _ask_nobody(self) -> None:
        for asking in self._askings:
            asking.close()
        self._askings.clear()

    def _conclude(self) -> None:
        """After every change of what is known: is the judgement another one?"""
        found = judgements(self._ways)
        changed, self.judgements = found != self.judgements, found
        self._concluded(changed)
        self._wait_for_hold()

    @property
    def doubtful(self) -> set[Family]:
        """The families that are up, and in doubt."""
        return doubts(self._ways)

    def _wait_for_hold(self) -> None:
        """Without probes, nothing else comes by when a hold ends."""
        if self._link.probes or self._hold:
            return
        now_ms = self._now_ms()
        settled = (State.NEW, State.UP, State.CUT)
        waiting = [health for health in self._ways.values() if health.state not in settled]
        left_ms = min((h.hold_left_ms(now_ms) for h in waiting), default=0.0)
        if left_ms:
            self._hold = self._loop.call_later(left_ms / 1000 + 0.001, self._hold_ended)

    def _hold_ended(self) -> None:
        self._hold = None
        for health in self._ways.values():
            health.judge(self._now_ms())
        self._conclude()

    def _now_ms(self) -> float:
        return self._loop.time() * 1000

    def round_trip_ms(self, family: Family) -> float | None:
        """Smoothed; None when no target beyond the gateway answered lately."""
        now_ms = self._now_ms()
        known = (
            trip.smooth_ms(now_ms)
            for (_, target, of), trip in self._trips.items()
            if of == family and not target.gateway
        )
        return min((one for one in known if one is not None), default=None)

    def report(self) -> dict[str, Any]:
        now_ms = self._now_ms()
        held = (health.hold_left_ms(now_ms) for health in self._ways.values())
        return {
            "targets": [one for asking in self._askings for one in asking.report()],
            "hold_ms": round(max(held)),
            "faults": [
                *self._naming.faults(),
                *(fault for asking in self._askings for fault in asking.faults()),
            ],
        }

    def close(self) -> None:
        self._ask_nobody()
        self._naming.close()
        if self._hold:
            self._hold.cancel()
            self._hold = None


def _naming(link: Link) -> Naming:
    """The names of all targets of the link."""
    names = (target.name for probe in link.probes for target in probe.targets)
    return Naming({name for name in names if name is not None}, FAMILIES)
