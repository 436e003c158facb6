"""The names of lists, resolved by the router itself and asked for again before they are over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.learned import Address
from dataplane.errors import Error
from dataplane.system.resolver import addresses

log = logging.getLogger("evenlink")

# A name, its addresses of one family, and the seconds that its servers say they hold.
Found = Callable[[str, Sequence[Address], float], None]

# A thousand names are no reason to burst.
_AT_ONCE = 8
_LIMIT_S = 5.0
# After a failure; doubled with each further one.
_AGAIN_S, _AGAIN_MOST_S = 10.0, 300.0


@dataclass(slots=True, eq=False)
class _Name:
    """One name in one family. `trouble` None: nobody was asked yet; empty: all is well."""

    name: str
    family: Family
    failures: int = 0
    trouble: str | None = None


class Names:
    """Resolves names for as long as they are among those that were taken last."""

    def __init__(self, found: Found) -> None:
        """`found` hears of every name that was resolved, again and again."""
        self._found = found
        self._loop = asyncio.get_running_loop()
        self._known: dict[tuple[str, Family], _Name] = {}
        # When, a number that keeps equals in order, and what.
        self._due: list[tuple[float, int, _Name]] = []
        self._pushed = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, names: Collection[str], anew: Collection[str] = ()) -> None:
        """These names, and no others. Of those that were taken before, some are asked for anew."""
        before, self._known = self._known, {}
        for name in names:
            for family in FAMILIES:
                one = before.get((name, family)) if name not in anew else None
                if one is None:
                    one = _Name(name, family)
                    self._push(one, 0.0)
                self._known[name, family] = one
        self._due = sorted(due for due in self._due if self._wanted(due[2]))
        self._turn()

    def faults(self) -> dict[str, str]:
        """The names that do not resolve in either family, and why."""
        faults = {}
        for (name, family), one in self._known.items():
            if family == FAMILIES[0]:
                troubles = [self._known[name, each].trouble for each in FAMILIES]
                if all(troubles):
                    faults[name] = str(one.trouble)
        return faults

    def close(self) -> None:
        """Nobody is asked any more. Again does nothing."""
        self._known.clear()
        self._due.clear()
        for task in self._asking:
            task.cancel()
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _wanted(self, one: _Name) -> bool:
        return self._known.get((one.name, one.family)) is one

    def _push(self, one: _Name, in_s: float) -> None:
        self._pushed += 1
        heappush(self._due, (self._loop.time() + in_s, self._pushed, one))

    def _turn(self) -> None:
        """Asks what is due, as far as there is room, and waits for the next."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._due and len(self._asking) < _AT_ONCE:
            # A timer may fire up to the clock's resolution early.
            if self._due[0][0] > self._loop.time() + 0.001:
                self._timer = self._loop.call_at(self._due[0][0], self._turn)
                return
            _, _, one = heappop(self._due)
            task = self._loop.create_task(self._ask(one))
            self._asking.add(task)
            task.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            if fault := task.exception():
                log.error("resolving names failed", exc_info=fault)
            self._turn()

    async def _ask(self, one: _Name) -> None:
        again_s = _AGAIN_MOST_S
        try:
            known, again_s = await addresses(one.name, one.family, _LIMIT_S)
            one.failures, one.trouble = 0, ""
            if self._wanted(one):
                self._found(one.name, known, again_s)
        except Error as refusal:
            one.trouble = str(refusal)
            again_s = min(_AGAIN_S * 2**one.failures, _AGAIN_MOST_S)
            # The power of a name that never resolves must not grow for ever.
            one.failures = min(one.failures + 1, 10)
        finally:
            if self._wanted(one):
                self._push(one, again_s)
