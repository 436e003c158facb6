"""Takes connections back to a link that has returned, as its `failback`, or their group's, says.

"keep" leaves them where they are. "kill" forgets them, so that each goes home with its next packet.
"drain" forgets each one when it has been idle for a while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dataplane.config.marks import Marks
from dataplane.config.model import Failback as Mode
from dataplane.decide.facts import Destination, Family
from dataplane.decide.failback import Connection, Home, Policy, home_of
from dataplane.decide.wish import Wish
from dataplane.errors import Error
from dataplane.system import conntrack

log = logging.getLogger("evenlink")

# Applications that want to keep a connection through NAT say something every 15 to 30 s, and few
# are content with 55: who was silent for a minute has nothing under way.
IDLE_S = 60.0
# Timeouts are whole seconds, and a pass takes some time.
_TOLERANCE_S = 2.0
# The router's thread has links to watch; the rest of a pass waits for the next step.
_SLICE_S = 0.1
# What is watched and what was asked is remembered; more has to wait for its turn.
_MOST_REMEMBERED = 32768
# A packet may be on its way while the first pass is made.
_PASSES_TO_KILL = 2

Way = tuple[str, Family]


@dataclass(frozen=True, slots=True)
class _Seen:
    """When an idle connection was first seen so, and what was left of its timeout then."""

    since_s: float
    timeout_s: int


class Failback:
    """What is under way. All calls come from one thread.

    `home` gives, for a wish, the decision of its program for a flow. `ask` is what main's specific
    routes say of an address, given the mark `ask`.
    """

    def __init__(
        self,
        home: Callable[[Wish], Home],
        ask: Callable[[str, int], Destination],
        idle_s: float = IDLE_S,
    ) -> None:
        self._home = home
        self._ask = ask
        self._idle_s = idle_s
        self._check_s = idle_s / 6
        # What has to be taken back, and how many passes were made for it.
        self._open: dict[Way, int] = {}
        self._watched: dict[tuple[int, bytes], _Seen] = {}
        self._pass: Iterator[None] | None = None
        self._of: Wish | None = None
        self._due_s = 0.0

    def returned(self, link: str, family: Family, wish: Wish) -> None:
        """The link carries the family again. Comes when no worker holds a verdict from before, and
        `step` comes right after it.
        """
        if not _modes(wish, link) - {Mode.KEEP}:
            return
        self._open[link, family] = 0
        self._start_anew()

    def gone(self, link: str, family: Family) -> None:
        """The link does not carry the family any more: what is elsewhere stays there."""
        if self._open.pop((link, family), None) is not None:
            self._start_anew()

    def step(self, wish: Wish, now_s: float) -> bool:
        """Does a slice of what is due; whether anything is left, now or later.

        `now_s` is of a clock that only goes forward. May be called as often as one likes; once a
        second is enough.
        """
        for link, family in list(self._open):
            if not _takes_back(wish, link, family):
                self.gone(link, family)
        if wish is not self._of:
            if self._pass is not None:
                self._start_anew()
            self._of = wish
        if not self._open:
            self._watched.clear()
            return False
        if self._pass is None:
            if now_s < self._due_s:
                return True
            self._due_s = now_s + self._check_s
            self._pass = self._go_through(wish, now_s)
        try:
            self._slice(self._pass)
        except Error as refusal:
            log.error("connections do not go back to their links yet: %s", refusal)
            self._pass = None
        return bool(self._open)

    def _start_anew(self) -> None:
        self._pass, self._due_s = None, 0.0

    def _slice(self, of: Iterator[None]) -> None:
        end = time.monotonic() + _SLICE_S
        for _ in of:
            if time.monotonic() >= end:
                return
        self._pass = None

    def _go_through(self, wish: Wish, now_s: float) -> Iterator[None]:
        """One pass over the connections of all links, a yield after each."""
        marks = Marks(wish.config.mark_mask)
        policy = Policy.of(wish.config, wish.facts, wish.states)
        home, ask = self._home(wish), self._remembering(marks.mark(marks.ask))
        watched: dict[tuple[int, bytes], _Seen] = {}
        left: set[Way] = set()
        names = {number: name for name, number in wish.ids.items()}
        for family in sorted({family for _, family in self._open}):
            returned = {wish.ids[name] for name, its in self._open if its == family}
            for connection, on in _elsewhere(wish, marks, family):
                homeward = home_of(connection, on, returned, policy, home, ask)
                if homeward.number:
                    link = names[homeward.number]
                    mode = homeward.failback or wish.config.link(link).failback
                    if mode is Mode.KILL:
                        conntrack.forget_one(connection)
                    elif mode is Mode.DRAIN:
                        left.add((link, family))
                        self._watch(connection, now_s, watched)
                yield
        self._watched = watched
        self._passed(wish, left)

    def _passed(self, wish: Wish, left: set[Way]) -> None:
        for way, passes in list(self._open.items()):
            killed = Mode.KILL in _modes(wish, way[0])
            if way not in left and (not killed or passes + 1 >= _PASSES_TO_KILL):
                del self._open[way]
            else:
                self._open[way] = passes + 1
                if killed:
                    self._due_s = 0.0

    def _watch(
        self, connection: Connection, now_s: float, watched: dict[tuple[int, bytes], _Seen]
    ) -> None:
        """Forgets it if it has been idle for long enough, else remembers it in `watched`."""
        if connection.timeout_s is None or len(watched) >= _MOST_REMEMBERED:
            return
        key = connection.id, connection.original
        seen = self._watched.get(key)
        if seen is not None:
            past_s = now_s - seen.since_s
            if abs(seen.timeout_s - past_s - connection.timeout_s) <= _TOLERANCE_S:
                if past_s >= self._idle_s:
                    conntrack.forget_one(connection)
                else:
                    watched[key] = seen
                return
        watched[key] = _Seen(now_s, connection.timeout_s)

    def _remembering(self, mark: int) -> Callable[[IPv4Address | IPv6Address], Destination]:
        """`ask`, which is a question to the kernel, once an address."""
        asked: dict[IPv4Address | IPv6Address, Destination] = {}

        def ask(address: IPv4Address | IPv6Address) -> Destination:
            if address not in asked:
                if len(asked) >= _MOST_REMEMBERED:
                    asked.clear()
                asked[address] = self._ask(str(address), mark)
            return asked[address]

        return ask


def _elsewhere(wish: Wish, marks: Marks, family: Family) -> Iterator[tuple[Connection, int]]:
    """The connections of the links that live, and each one's link. Those of a drained link stay
    there, and those of a dead one are forgotten anyway.
    """
    for name, number in wish.ids.items():
        if wish.states[name].way(family).alive:
            for connection in conntrack.connections(marks.mark(number), marks.mask, family):
                yield connection, number


def _modes(wish: Wish, link: str) -> set[Mode]:
    """What the link's connections may be told to do when it returns."""
    said = {now.group.failback for now in wish.groups.values() if link in now.group.links}
    return {mode or wish.config.link(link).failback for mode in {*said, None}}


def _takes_back(wish: Wish, link: str, family: Family) -> bool:
    return (
        link in wish.ids
        and wish.states[link].way(family).alive
        and bool(_modes(wish, link) - {Mode.KEEP})
    )
