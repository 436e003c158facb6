"""What the operator wants, given the machine as it is: one value from which all else follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dataplane.config.marks import Marks
from dataplane.config.model import Config
from dataplane.decide.balance import (
    families_serving,
    family_tables,
    home_table,
    program_block,
    without,
)
from dataplane.decide.facts import Facts, Family
from dataplane.decide.liveness import Condition, Judgements, LinkState, judged, link_states
from dataplane.decide.plan import Plan, make_plan
from dataplane.decide.slots import SlotTable


@dataclass(frozen=True, slots=True)
class Wish:
    """A file, the link numbers and the home table that go with it, and how the links are now.

    `serving` are the balanced links that take new connections, by family; `tables` are the slots,
    with the others' lent to them.
    """

    config: Config
    ids: Mapping[str, int]
    home: SlotTable
    key: int
    facts: Facts
    states: Mapping[str, LinkState]
    serving: Mapping[Family, frozenset[str]]
    tables: Mapping[Family, SlotTable]

    def plan(self) -> Plan:
        """What the kernel should hold."""
        return make_plan(self.config, self.ids, self.facts, self.states, self.tables, self.key)

    def program(self) -> bytes:
        """What the queue workers should run."""
        return program_block(self.config, self.ids, self.tables, self.key)

    def without(self, dead: Collection[str]) -> Wish:
        """The same wish, as if these links were dead too."""
        states = without(self.states, dead)
        serving = families_serving(self.config, states, self.serving)
        tables = family_tables(self.config, self.home, serving)
        return replace(self, states=states, serving=serving, tables=tables)

    @property
    def link_marks(self) -> dict[str, int]:
        """By link, the mark of what leaves by it."""
        marks = Marks(self.config.mark_mask)
        return {name: marks.mark(number) for name, number in self.ids.items()}

    def keeps(self, name: str, family: Family) -> bool:
        """Whether the link's connections of the family are left alone: it carries them still."""
        if name not in self.states:
            return False
        way = self.states[name].way(family)
        return way.condition >= Condition.DRAINED or name in self.serving.get(family, ())

    def serves(self, name: str, family: Family) -> bool:
        """Whether new connections of the family go there, or would if it had a share."""
        return self.states[name].way(family).alive or name in self.serving.get(family, ())


def make_wish(
    config: Config,
    facts: Facts,
    key: int,
    known_ids: Mapping[str, int],
    running: SlotTable | None,
    *,
    states: Mapping[str, LinkState] | None = None,
    judgements: Judgements | None = None,
    drained: Collection[str] = (),
    served: Mapping[Family, frozenset[str]] | None = None,
) -> Wish:
    """The wish for this file on this machine.

    `known_ids` and `running` are what an earlier start or file left: numbers stay, and the home
    table moves as little as the file demands. `states` are judged from the facts if not given,
    with health's `judgements` and the names of `drained` links. `served` is the `serving` of the
    wish before this one.
    """
    if states is None:
        states = judged(link_states(config, facts), judgements or {}, drained)
    home = home_table(config, running)
    last = Marks(config.mark_mask).last_link
    ids = number_links([link.name for link in config.links], known_ids, last)
    serving = families_serving(config, states, served or {})
    tables = family_tables(config, home, serving)
    return Wish(config, ids, home, key, facts, states, serving, tables)


def number_links(names: Sequence[str], known: Mapping[str, int], last: int) -> dict[str, int]:
    """A number from 1 to `last` for each of at most `last` links.

    Links that have one keep it, since connections carry it. The number of a known link that is not
    in `names` is given to another only when no other is left.
    """
    numbers: dict[str, int] = {}
    for name in names:
        number = known.get(name, 0)
        if 1 <= number <= last and number not in numbers.values():
            numbers[name] = number
    free = [number for number in range(1, last + 1) if number not in numbers.values()]
    free.sort(key=lambda number: number in known.values())
    return numbers | dict(zip((name for name in names if name not in numbers), free, strict=False))
