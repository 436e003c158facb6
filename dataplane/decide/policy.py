"""The policy as it is now: what becomes of each rule while links live and die.

A rule whose links are all dead does what its `else` says. The two families may fare differently,
so each rule says for both where it leads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd, lcm

from dataplane.config.marks import Marks
from dataplane.config.model import (
    DEFAULT_GROUP,
    Addresses,
    Config,
    Method,
    Rule,
    Selection,
)
from dataplane.decide.balance import PREFERRING, GroupNow
from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.outcomes import MAIN as MAIN
from dataplane.decide.outcomes import NEXT as NEXT
from dataplane.decide.outcomes import REJECT as REJECT
from dataplane.decide.outcomes import Outcome as Outcome
from dataplane.decide.outcomes import outcome_of
from dataplane.decide.program import Action, Draw, ProgramRule, Slots
from dataplane.decide.wish import Wish

# What the program takes.
_MOST_WEIGHT = 1 << 40

# With these, what one packet of a burst decides is no help for the next one.
_REMEMBERED = PREFERRING | {Method.NTH, Method.RANDOM}


@dataclass(frozen=True, slots=True)
class RuleNow:
    """One rule of the program: the rule of the file, or None for the default group behind all.

    A rule of the file whose families lead to different places is two of these.
    """

    rule: Rule | None
    outcomes: Mapping[Family, Outcome]
    compiled: ProgramRule

    @property
    def name(self) -> str:
        return self.rule.name if self.rule else DEFAULT_GROUP


def policy(wish: Wish) -> tuple[RuleNow, ...]:
    """The rules of the program, in order; the last one is the default group and takes all."""
    found = []
    for rule in wish.config.rules:
        outcomes = {family: outcome(wish, rule, family) for family in FAMILIES}
        if outcomes[4] == outcomes[6]:
            found.append(_rule_now(wish, rule, outcomes))
        else:
            found += [_rule_now(wish, rule, {family: one}) for family, one in outcomes.items()]
    default = dict.fromkeys(FAMILIES, Outcome(DEFAULT_GROUP))
    return (*found, _rule_now(wish, None, default))


def outcome(wish: Wish, rule: Rule, family: Family) -> Outcome:
    """Where the rule leads packets of the family now."""
    return outcome_of(rule.use, rule.otherwise, wish.groups, wish.states, family)


def member_lists(config: Config) -> dict[str, Addresses]:
    """The lists of the program in their order: those of the file, then the rules' own ranges."""
    lists = {one.name: one.addresses for one in config.lists}
    for rule in config.rules:
        for direction, selection in (("source", rule.source), ("destination", rule.destination)):
            if selection.addresses:
                lists[_own_list(rule, direction)] = selection.addresses
    return lists


def member_applications(config: Config) -> tuple[str, ...]:
    """What rules ask of applications, as learned entries are labelled, each once."""
    return tuple(dict.fromkeys(label for rule in config.rules for label in labels(rule)))


def labels(rule: Rule) -> tuple[str, ...]:
    """The labels of the learned entries of which the rule asks for one."""
    return (
        *(f"application:{name}" for name in rule.applications),
        *(f"host:{pattern}" for pattern in rule.hosts),
    )


def _own_list(rule: Rule, direction: str) -> str:
    # No list of the file has a name with a space.
    return f"{rule.name} {direction}"


def _rule_now(wish: Wish, rule: Rule | None, outcomes: Mapping[Family, Outcome]) -> RuleNow:
    here = {family: one.target for family, one in outcomes.items() if one.target != NEXT}
    actions = {family: _action(wish, rule, target, family) for family, target in here.items()}
    # One group at the most: families that lead to different places have a rule each.
    now = next((wish.groups[target] for target in here.values() if target in wish.groups), None)
    compiled = _conditions(wish, rule, actions) if rule else ProgramRule(DEFAULT_GROUP, actions)
    if now:
        compiled = replace(
            compiled,
            group=now.group.name,
            remember=now.group.method in _REMEMBERED,
            sticky=now.group.sticky,
            sticky_ms=now.group.sticky_ms,
            allowed={
                family: [wish.ids[name] for name in now.serving[family]]
                for family in actions
                if family in now.serving
            },
        )
    return RuleNow(rule, outcomes, compiled)


def _conditions(wish: Wish, rule: Rule, actions: Mapping[Family, Action]) -> ProgramRule:
    indices = (wish.interface_index(name) for name in rule.interfaces)
    return ProgramRule(
        rule.name,
        actions,
        interfaces=tuple(index or 0 for index in indices),
        source=_lists(rule, "source", rule.source),
        destination=_lists(rule, "destination", rule.destination),
        protocols=rule.protocols,
        source_ports=rule.source_ports,
        destination_ports=rule.destination_ports,
        dscp=rule.dscp,
        applications=labels(rule),
    )


def _lists(rule: Rule, direction: str, selection: Selection) -> tuple[str, ...]:
    own = (_own_list(rule, direction),) if selection.addresses else ()
    return (*selection.lists, *own)


def _action(wish: Wish, rule: Rule | None, target: str, family: Family) -> Action:
    marks = Marks(wish.config.mark_mask)
    if target in (MAIN, REJECT):
        return marks.main if target == MAIN else marks.reject
    if target not in wish.groups:
        return wish.ids[target]
    now = wish.groups[target]
    if family not in now.serving:
        # No link is set up for the family: main may know what to do with it.
        return marks.main
    match now.group.method:
        case Method.ECMP:
            return wish.group_ids[target]
        case Method.NTH:
            return Draw("nth", _draw_weights(wish, now, family))
        case Method.RANDOM:
            return Draw("random", _draw_weights(wish, now, family))
        case Method.PCC:
            return _slots(wish, rule, now, family)
        case _:
            return wish.ids[now.preferred[family]]


def _slots(wish: Wish, rule: Rule | None, now: GroupNow, family: Family) -> Slots:
    table = now.tables[family]
    numbers = bytes(wish.ids[name] for name in table.links).ljust(256, b"\0")
    fields = rule.fields if rule and rule.fields else now.group.fields
    return Slots(table.slots.translate(numbers), fields, now.group.symmetric)


def _draw_weights(wish: Wish, now: GroupNow, family: Family) -> dict[int, int]:
    """Whole numbers in the ratio of the serving links' weights; the largest is rounded if it has to
    be."""
    serving = sorted(now.serving[family])
    wanted = [wish.config.link(name).weight for name in serving]
    scale = lcm(*(weight.denominator for weight in wanted))
    whole = [int(weight * scale) for weight in wanted]
    divisor = max(gcd(*whole), -(-max(whole) // _MOST_WEIGHT))
    numbers = (wish.ids[name] for name in serving)
    return {
        number: max(1, round(Fraction(weight, divisor)))
        for number, weight in zip(numbers, whole, strict=True)
    }
