"""Where rules lead while links live and die, and which links new connections reach by that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.config.model import DEFAULT_GROUP, Config
from dataplane.decide.balance import GroupNow
from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.liveness import LinkState

MAIN = "main"
REJECT = "reject"
NEXT = "next"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a rule leads: a link, a group, "main", "reject" or "next".

    `instead`: by the rule's `else`, since the links of its `use` are dead.
    """

    target: str
    instead: bool = False


def outcome_of(
    use: str,
    otherwise: str,
    groups: Mapping[str, GroupNow],
    states: Mapping[str, LinkState],
    family: Family,
) -> Outcome:
    """Where a rule with this `use` and `else` leads packets of the family now."""

    def lives(name: str) -> bool:
        if name in groups:
            return family in groups[name].living
        return states[name].way(family).alive

    def usable(name: str) -> bool:
        if name in groups:
            return family in groups[name].serving
        return states[name].way(family).usable

    if use in (MAIN, REJECT) or lives(use):
        return Outcome(use)
    if otherwise in (NEXT, REJECT):
        return Outcome(otherwise, instead=True)
    for name in (otherwise, DEFAULT_GROUP):
        if lives(name):
            return Outcome(name, instead=True)
    # Nothing lives: what is not well may carry something all the same.
    if usable(use):
        return Outcome(use)
    return Outcome(DEFAULT_GROUP, instead=True)


def used_links(
    config: Config, groups: Mapping[str, GroupNow], states: Mapping[str, LinkState]
) -> dict[Family, frozenset[str]]:
    """By family, the links that the default group and the rules send new connections to.

    A group whose links are all dead has some that would serve; but as long as the rules that name
    it lead elsewhere, nobody goes there.
    """
    said = {(rule.use, rule.otherwise) for rule in config.rules}
    found = {}
    for family in FAMILIES:
        targets = {outcome_of(*each, groups, states, family).target for each in said}
        names = {name for name in targets if name in states}
        for name in {DEFAULT_GROUP, *targets} & groups.keys():
            names |= groups[name].serving.get(family, frozenset())
        found[family] = frozenset(names)
    return found
