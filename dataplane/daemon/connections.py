"""What becomes of the connections that are there, when links go and come."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from dataplane.config.marks import Marks
from dataplane.daemon.failback import Failback
from dataplane.decide.compiled import program_of
from dataplane.decide.facts import FAMILIES, Destination, Family
from dataplane.decide.failback import Connection, Home, Homeward
from dataplane.decide.learned import Known
from dataplane.decide.policy import policy
from dataplane.decide.wish import Wish
from dataplane.errors import Error
from dataplane.hotpath import Classifier
from dataplane.system import conntrack

log = logging.getLogger("evenlink")


class Connections:
    """Forgets those of links that went, and has failback see to those of links that came."""

    def __init__(
        self, ask: Callable[[str, int], Destination], known: Callable[[], Known | None]
    ) -> None:
        """`ask` is what main's specific routes say of an address, given the mark `ask`; `known` is
        what has been learned by now.
        """
        # (number, family) of links whose connections are still to be forgotten.
        self._left: set[tuple[int, Family]] = set()
        # The same of what is no more what it was when its connections began.
        self._changed: set[tuple[int, Family]] = set()
        # (link, family) of what returned and was not yet told to failback.
        self._returned: set[tuple[str, Family]] = set()
        self._failback = Failback(lambda wish: home_by(wish, known()), ask)

    def may_have_left(self, numbers: Collection[int]) -> None:
        """Of these links it is not known whether they went."""
        self._left |= {(number, family) for number in numbers for family in FAMILIES}

    def changed(self, old: Wish, new: Wish) -> None:
        """The new wish took the place of the old one."""
        ways = _ways(new)
        self._changed |= {
            (number, family)
            for number, way in _ways(old).items()
            for family in FAMILIES
            if number in ways and ways[number] != way
        }
        self._left |= {
            (old.ids[name], family)
            for name in old.states
            for family in FAMILIES
            if old.keeps(name, family) and not new.keeps(name, family)
        }
        self._returned |= {
            (name, family)
            for name, state in old.states.items()
            for family in FAMILIES
            if name in new.states
            and new.states[name].way(family).alive
            and not state.way(family).alive
        }

    def settle(self, wish: Wish, wait_passed: Callable[[], None]) -> None:
        """Does what is to be done now. What is refused is tried again at the next call.

        `wait_passed` returns when no worker can hold an old verdict any more.
        """
        names = {number: name for name, number in wish.ids.items()}
        self._left = {
            (number, family)
            for number, family in self._left
            if number not in names or not wish.keeps(names[number], family)
        }
        if self._left or self._changed or self._returned:
            wait_passed()
        if self._left or self._changed:
            self._forget(Marks(wish.config.mark_mask))
        returned, self._returned = self._returned, set()
        for link, family in sorted(returned):
            self._failback.returned(link, family, wish)
        if returned:
            self.step(wish)

    def step(self, wish: Wish) -> None:
        """Goes on with failback; to be called every second or two."""
        self._failback.step(wish, time.monotonic())

    def _forget(self, marks: Marks) -> None:
        """Twice, since a packet may have been on its way."""
        try:
            for _ in range(2):
                for number, family in sorted(self._left | self._changed):
                    conntrack.forget(marks.mark(number), marks.mask, family)
        except Error as refusal:
            log.error("connections of dead links are not forgotten yet: %s", refusal)
            return
        self._left, self._changed = set(), set()


def _ways(wish: Wish) -> dict[int, object]:
    """By number, what a link's connections cannot outlive a change of."""
    return {
        wish.ids[link.name]: (link.name, link.interface, link.snat_address, link.snat_address6)
        for link in wish.config.links
    }


def home_by(wish: Wish, known: Known | None) -> Home:
    """What the wish's program decides of a connection; 0 for what is drawn: it belongs nowhere."""
    classifier = Classifier(program_of(wish, known))
    rules = policy(wish)

    def home(connection: Connection, interface: str) -> Homeward:
        known_as = wish.interface_index(interface) if interface in wish.config.lan else None
        found = classifier.classify_flow(
            connection.source,
            connection.destination,
            connection.protocol,
            connection.source_port,
            connection.destination_port,
            interface=known_as or 0,
            peek=True,
        )
        target = rules[found.rule].outcomes[connection.family].target
        now = wish.groups.get(target)
        return Homeward(found.decision, now.group.failback if now else None)

    return home
