"""What the operator wants, given the machine as it is: one value from which all else follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dataplane.config.marks import Marks
from dataplane.config.model import DEFAULT_GROUP, Config, Method
from dataplane.decide.balance import Choices, GroupNow, Served, group_now, home_table, without
from dataplane.decide.facts import Facts, Family
from dataplane.decide.liveness import Condition, Judgements, LinkState, judged, link_states
from dataplane.decide.multipath import EcmpGroup
from dataplane.decide.outcomes import used_links
from dataplane.decide.plan import Plan, make_plan
from dataplane.decide.slots import SlotTable


@dataclass(frozen=True, slots=True)
class Before:
    """What an earlier start, file or look left.

    `ids`: by link name, its number, and by "@" and a group's name, that of an ecmp group; numbers
    stay. `homes`: by group, the home table, which moves as little as it must. `served`: by group
    and family, the links that took new connections.
    """

    ids: Mapping[str, int] = field(default_factory=dict)
    homes: Mapping[str, SlotTable] = field(default_factory=dict)
    served: Served = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wish:
    """A file, the numbers that go with it, and how the links and groups are now.

    `ids` are the numbers of the links, `group_ids` those of the ecmp groups. `groups` are all of
    the file, the default group first. `used` are, by family, the links that the default group and
    the rules send new connections to.
    """

    config: Config
    ids: Mapping[str, int]
    group_ids: Mapping[str, int]
    groups: Mapping[str, GroupNow]
    key: int
    facts: Facts
    states: Mapping[str, LinkState]
    used: Mapping[Family, frozenset[str]]

    def plan(self) -> Plan:
        """What the kernel should hold."""
        ecmp = self._ecmp()
        return make_plan(
            self.config, self.ids, self.facts, self.states, self.tables, self.key, ecmp
        )

    def without(self, dead: Collection[str]) -> Wish:
        """The same wish, as if these links were dead too."""
        states = without(self.states, dead)
        choices = {name: now.preferred for name, now in self.groups.items()}
        groups = _groups(self.config, self.homes, states, self.served, choices)
        used = used_links(self.config, groups, states)
        return replace(self, states=states, groups=groups, used=used)

    @property
    def default(self) -> GroupNow:
        """The group of what no rule takes."""
        return self.groups[DEFAULT_GROUP]

    @property
    def serving(self) -> Mapping[Family, frozenset[str]]:
        """The links of the default group that take new connections, by family."""
        return self.default.serving

    @property
    def tables(self) -> Mapping[Family, SlotTable]:
        """The default group's slots, by family."""
        return self.default.tables

    @property
    def homes(self) -> dict[str, SlotTable]:
        """By group, the home table."""
        return {name: now.home for name, now in self.groups.items()}

    @property
    def served(self) -> Served:
        """By group and family, the links that take new connections."""
        return {name: now.serving for name, now in self.groups.items()}

    @property
    def before(self) -> Before:
        """What the next wish goes on from."""
        groups = {f"@{name}": number for name, number in self.group_ids.items()}
        return Before({**self.ids, **groups}, self.homes, self.served)

    @property
    def link_marks(self) -> dict[str, int]:
        """By link, the mark of what leaves by it."""
        marks = Marks(self.config.mark_mask)
        return {name: marks.mark(number) for name, number in self.ids.items()}

    def interface_index(self, name: str) -> int | None:
        """The kernel's number of an interface of the LAN side; None while it does not exist.

        Where no machine was looked at, its place in the file.
        """
        if not self.facts.interfaces:
            return self.config.lan.index(name) + 1
        interface = self.facts.interface(name)
        return interface.index if interface else None

    def in_use(self, name: str, family: Family) -> bool:
        """Whether the default group or a rule sends new connections of the family there."""
        return name in self.used[family]

    def keeps(self, name: str, family: Family) -> bool:
        """Whether the link's connections of the family are left alone: it carries them still."""
        if name not in self.states:
            return False
        way = self.states[name].way(family)
        return way.condition >= Condition.DRAINED or self.in_use(name, family)

    def serves(self, name: str, family: Family) -> bool:
        """Whether new connections of the family go there, or would if it had a share."""
        return self.states[name].way(family).alive or self.in_use(name, family)

    def _ecmp(self) -> dict[str, EcmpGroup]:
        """What the plan has to know of the ecmp groups."""
        return {
            name: EcmpGroup(
                number,
                {
                    family: {link: self.config.link(link).weight for link in sorted(names)}
                    for family, names in self.groups[name].serving.items()
                },
            )
            for name, number in self.group_ids.items()
        }


def make_wish(
    config: Config,
    facts: Facts,
    key: int,
    before: Before,
    *,
    states: Mapping[str, LinkState] | None = None,
    judgements: Judgements | None = None,
    drained: Collection[str] = (),
    choices: Choices | None = None,
) -> Wish:
    """The wish for this file on this machine.

    `states` are judged from the facts if not given, with health's `judgements` and the names of
    `drained` links. `choices` are what measurements prefer.
    """
    if states is None:
        states = judged(link_states(config, facts), judgements or {}, drained)
    last = Marks(config.mark_mask).last_link
    ids = number_links([link.name for link in config.links], before.ids, last)
    homes = {
        group.name: home_table(config, group, before.homes.get(group.name))
        for group in config.all_groups
    }
    groups = _groups(config, homes, states, before.served, choices or {})
    numbers = _number_groups(config, ids, before, last)
    used = used_links(config, groups, states)
    return Wish(config, ids, numbers, groups, key, facts, states, used)


def _groups(
    config: Config,
    homes: Mapping[str, SlotTable],
    states: Mapping[str, LinkState],
    served: Served,
    choices: Choices,
) -> dict[str, GroupNow]:
    return {
        group.name: group_now(
            config,
            group,
            homes[group.name],
            states,
            served.get(group.name, {}),
            choices.get(group.name, {}),
        )
        for group in config.all_groups
    }


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


def _number_groups(
    config: Config, ids: Mapping[str, int], before: Before, last: int
) -> dict[str, int]:
    """A number for each ecmp group, from the highest down; one that it has stays if it can.

    No connection carries it for longer than its first packet.
    """
    numbers: dict[str, int] = {}
    for group in config.all_groups:
        if group.method is Method.ECMP:
            taken = {*ids.values(), *numbers.values()}
            known = before.ids.get(f"@{group.name}", 0)
            free = (number for number in range(last, 0, -1) if number not in taken)
            usable = 1 <= known <= last and known not in taken
            numbers[group.name] = known if usable else next(free)
    return numbers
