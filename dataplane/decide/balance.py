"""What each group does now: its slots, the links that serve, and the one that is preferred."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from dataplane.config.groups import MOST_GROUPS
from dataplane.config.model import Config, Group, Method
from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.liveness import Condition, LinkState, Way, serving
from dataplane.decide.slots import SLOTS, SlotTable, home, overlay, reweight

# Which link a group prefers now, by group and family: what was measured says so.
Choices = Mapping[str, Mapping[Family, str]]
# The links of each group that served before, by family.
Served = Mapping[str, Mapping[Family, frozenset[str]]]

# Methods by which all new connections of a group go to one link at a time.
PREFERRING = frozenset({Method.FAILOVER, Method.OVERFLOW, Method.LEAST_USED, Method.LOWEST_LATENCY})


@dataclass(frozen=True, slots=True)
class GroupNow:
    """A group as it is now.

    `serving` are the links that take its new connections, by family; a family that no link of it
    is set up for is left out. `tables` are the slots, with the others' lent to those that serve,
    or all of them the preferred link's. `preferred` is empty but for the methods that send
    everything to one link at a time. `living` are the families that a link of it carries well.
    """

    group: Group
    home: SlotTable
    serving: Mapping[Family, frozenset[str]]
    tables: Mapping[Family, SlotTable]
    preferred: Mapping[Family, str]
    living: frozenset[Family]


def weights(config: Config, group: Group) -> dict[str, Fraction]:
    """What the shares of the group's links are in proportion to."""
    return {name: config.link(name).weight for name in group.links}


def home_table(config: Config, group: Group, running: SlotTable | None) -> SlotTable:
    """The home table: fresh, or the running one moved as little as the new weights demand."""
    return _home(running, tuple(sorted(weights(config, group).items())))


@lru_cache(maxsize=2 * MOST_GROUPS)
def _home(running: SlotTable | None, wanted: tuple[tuple[str, Fraction], ...]) -> SlotTable:
    """Remembered: every look at the machine asks for all groups again, and a table takes 9 ms."""
    return home(dict(wanted)) if running is None else reweight(running, dict(wanted))


def group_now(
    config: Config,
    group: Group,
    home: SlotTable,
    states: Mapping[str, LinkState],
    before: Mapping[Family, frozenset[str]],
    choice: Mapping[Family, str],
) -> GroupNow:
    """The group with its links in these states.

    `before` is the `serving` of the time before, `choice` what measurements prefer, by family; a
    choice that does not serve is none.
    """
    found = {
        family: serving(states, family, group.links, before.get(family, frozenset()))
        for family in FAMILIES
    }
    serves = {family: names for family, names in found.items() if names}
    preferred: dict[Family, str] = {}
    if group.method in PREFERRING:
        preferred = {
            family: _preferred(group, names, choice.get(family)) for family, names in serves.items()
        }
        tables = {family: _all_of(home, name) for family, name in preferred.items()}
    else:
        wanted = tuple(sorted(weights(config, group).items()))
        tables = {family: _overlay(home, names, wanted) for family, names in serves.items()}
    living = frozenset(
        family for family in FAMILIES if any(states[name].way(family).alive for name in group.links)
    )
    return GroupNow(group, home, serves, tables, preferred, living)


@lru_cache(maxsize=2 * MOST_GROUPS)
def _overlay(
    home: SlotTable, serving: frozenset[str], wanted: tuple[tuple[str, Fraction], ...]
) -> SlotTable:
    """Remembered as well: 3 ms a group and family while a link of it is dead."""
    return overlay(home, serving, dict(wanted))


def _preferred(group: Group, serving: frozenset[str], choice: str | None) -> str:
    if choice in serving and group.method is not Method.FAILOVER:
        return choice
    return next(name for name in group.links if name in serving)


def _all_of(home: SlotTable, name: str) -> SlotTable:
    return SlotTable(home.links, bytes([home.links.index(name)]) * SLOTS)


def without(states: Mapping[str, LinkState], dead: Collection[str]) -> dict[str, LinkState]:
    """The same states, as if these links were dead."""
    return {
        name: LinkState(name, (_dead(state.way(4)), _dead(state.way(6)))) if name in dead else state
        for name, state in states.items()
    }


def _dead(way: Way) -> Way:
    return replace(
        way, condition=min(way.condition, Condition.CUT), why=way.why or "assumed to be dead"
    )


def all_alive(config: Config) -> dict[str, LinkState]:
    """Every link as the file hopes for it: what is explained when no machine is asked."""
    off = Way(Condition.ABSENT, "IPv6 is switched off in the file")
    living = Way(Condition.LIVING)
    return {
        link.name: LinkState(link.name, (living, living if config.ipv6 else off))
        for link in config.links
    }
