"""How many packets each rule decided, whatever became of the program meanwhile.

The workers count by the place of a rule in their program. The places move when a link dies, since
a rule whose families lead to different places has two; and a new worker counts from 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from dataplane.config.model import Rule
from dataplane.decide.policy import policy
from dataplane.decide.wish import Wish


@dataclass(frozen=True, slots=True)
class _Read:
    """What was counted under earlier programs, and of this one what is in that already."""

    rules: tuple[Rule, ...] = ()
    names: tuple[str, ...] = ()
    read: Mapping[int, int] = field(default_factory=dict)
    before: Mapping[str, int] = field(default_factory=dict)


class Tally:
    """Packets by the name of the rule, since a file with these rules was taken.

    One thread follows; any may ask for the totals.
    """

    def __init__(self) -> None:
        self._now = _Read()

    def follow(self, wish: Wish, counted: Mapping[int, int]) -> None:
        """From now on, the workers decide by this wish; `counted` is what they counted so far."""
        rules = wish.config.rules
        before = self.totals(counted) if rules == self._now.rules else {}
        names = tuple(now.name for now in policy(wish))
        self._now = _Read(rules, names, dict(counted), before)

    def begin_anew(self, counted: Mapping[int, int]) -> None:
        """These workers end, with these last counts, and others count from 0."""
        now = self._now
        self._now = _Read(now.rules, now.names, {}, self.totals(counted))

    def totals(self, counted: Mapping[int, int]) -> dict[str, int]:
        """By rule name, given what the workers counted by place."""
        now = self._now
        found = Counter(now.before)
        for place, packets in counted.items():
            if place < len(now.names):
                found[now.names[place]] += max(0, packets - now.read.get(place, 0))
        return dict(found)
