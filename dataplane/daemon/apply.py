"""The difference between what is observed and the plan, as steps.

Everything that changes the kernel goes through here: the first start, every later change, mending
and removal. Steps are values, so they can be shown first; each knows what undoes it. What is
missing is added before what is too much is deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from dataplane.decide.facts import FAMILIES
from dataplane.decide.plan import (
    MAIN_TABLE,
    PRIORITY_MARK,
    PRIORITY_SOURCE,
    PROTOCOL,
    Plan,
    QueueRule,
    Route,
    Rule,
)
from dataplane.decide.ruleset import TABLE, digest_chain, render
from dataplane.errors import KernelError, MachineError
from dataplane.system import iptables, nft, sysctl
from dataplane.system.netlink import Netlink


@dataclass(frozen=True, slots=True)
class Observed:
    """What the kernel holds of ours. `sysctls` has the keys that were asked about."""

    routes: frozenset[Route]
    rules: frozenset[Rule]
    queue_rules: frozenset[QueueRule]
    table: nft.Table | None
    sysctls: Mapping[str, str | None]

    @property
    def listing(self) -> str:
        """A digest of the table as nft lists it; empty when there is none."""
        return hashlib.sha256(self.table.listing.encode()).hexdigest() if self.table else ""

    @property
    def empty(self) -> bool:
        """Nothing of ours is there."""
        return not (self.routes or self.rules or self.queue_rules or self.table)


def observe(netlink: Netlink, keys: Iterable[str]) -> Observed:
    """Looks at the kernel."""
    return Observed(
        routes=netlink.routes(),
        rules=netlink.rules(),
        queue_rules=iptables.rules(),
        table=nft.read(),
        sysctls={key: sysctl.read(key) for key in keys},
    )


def check_mask(observed: Observed, mask: int) -> None:
    """MachineError if an earlier run still serves with another mask: connections carry its marks,
    which mean something else, or nothing, under this one.
    """
    for rule in observed.rules:
        if PRIORITY_MARK <= rule.priority < PRIORITY_SOURCE and rule.mask not in (0, mask):
            raise MachineError(
                f"mark_mask: {rule.mask:#010x} is what an earlier run serves with; "
                "`evenlink down` first, then `run` with another"
            )


class Change(Protocol):
    """One change of the kernel: what an administrator would type, and the doing of it."""

    @property
    def tool(self) -> str: ...

    @property
    def line(self) -> str: ...

    def perform(self, netlink: Netlink) -> None: ...


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """`then` are settings that the kernel changes along with this one, and their values after."""

    key: str
    value: str
    then: tuple[tuple[str, str], ...] = ()
    tool: str = "sysctl"

    @property
    def line(self) -> str:
        # A dot may be part of an interface's name, so slashes are what sysctl takes safely.
        return " ".join(["sysctl -w", *(f"{key}={value}" for key, value in self._all)])

    @property
    def _all(self) -> tuple[tuple[str, str], ...]:
        return (self.key, self.value), *self.then

    def perform(self, netlink: Netlink) -> None:
        for key, value in self._all:
            sysctl.write(key, value)


@dataclass(frozen=True, slots=True)
class PutRoute:
    route: Route
    tool: str = "ip"

    @property
    def line(self) -> str:
        return f"ip -{self.route.family} route replace {_route_words(self.route)}"

    def perform(self, netlink: Netlink) -> None:
        netlink.add_route(self.route)


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    route: Route
    tool: str = "ip"

    @property
    def line(self) -> str:
        return f"ip -{self.route.family} route del {_route_words(self.route)}"

    def perform(self, netlink: Netlink) -> None:
        netlink.delete_route(self.route)


@dataclass(frozen=True, slots=True)
class AddRule:
    rule: Rule
    tool: str = "ip"

    @property
    def line(self) -> str:
        return f"ip -{self.rule.family} rule add {_rule_words(self.rule)}"

    def perform(self, netlink: Netlink) -> None:
        netlink.add_rule(self.rule)


@dataclass(frozen=True, slots=True)
class DeleteRule:
    rule: Rule
    tool: str = "ip"

    @property
    def line(self) -> str:
        return f"ip -{self.rule.family} rule del {_rule_words(self.rule)}"

    def perform(self, netlink: Netlink) -> None:
        netlink.delete_rule(self.rule)


@dataclass(frozen=True, slots=True)
class AddQueueRule:
    rule: QueueRule
    tool: str = "iptables"

    @property
    def line(self) -> str:
        return _queue_line("-A", self.rule)

    def perform(self, netlink: Netlink) -> None:
        iptables.add(self.rule)


@dataclass(frozen=True, slots=True)
class DeleteQueueRule:
    rule: QueueRule
    tool: str = "iptables"

    @property
    def line(self) -> str:
        return _queue_line("-D", self.rule)

    def perform(self, netlink: Netlink) -> None:
        iptables.delete(self.rule)


@dataclass(frozen=True, slots=True)
class LoadTable:
    text: str
    tool: str = "nft"

    @property
    def line(self) -> str:
        return f"nft -f - <<'END'\n{self.text}END"

    def perform(self, netlink: Netlink) -> None:
        nft.load(self.text)


@dataclass(frozen=True, slots=True)
class DeleteTable:
    tool: str = "nft"

    @property
    def line(self) -> str:
        return f"nft delete table inet {TABLE}"

    def perform(self, netlink: Netlink) -> None:
        nft.delete()


@dataclass(frozen=True, slots=True)
class Step:
    """A change, and what takes it back."""

    change: Change
    undo: Change

    @property
    def tool(self) -> str:
        return self.change.tool

    @property
    def line(self) -> str:
        return self.change.line

    @property
    def summary(self) -> str:
        """The line, without the text that it may bring along."""
        return _summary(self.change)


def difference(observed: Observed, plan: Plan, known_listing: str = "") -> list[Step]:
    """The steps from what is observed to the plan; none when they agree.

    `known_listing` is the digest of the listing that our own last load gave. When the table says
    that it is this plan's but lists otherwise, another hand changed it, and it is loaded again.
    """
    steps = [Step(DeleteRoute(route), PutRoute(route)) for route in _unwanted_ways(observed, plan)]
    steps += [
        Step(AddQueueRule(rule), DeleteQueueRule(rule))
        for rule in sorted(plan.queue_rules - observed.queue_rules)
    ]
    # Translation and guard have to be there before anything leads to a link: else the LAN's own
    # addresses leave by it.
    steps += _table_steps(observed, plan, known_listing)
    steps += _sysctl_steps(observed, plan)
    kept = observed.routes - set(_unwanted_ways(observed, plan))
    steps += _route_steps(kept, plan.routes)
    steps += [Step(AddRule(rule), DeleteRule(rule)) for rule in sorted(plan.rules - observed.rules)]
    steps += [
        Step(DeleteQueueRule(rule), AddQueueRule(rule))
        for rule in sorted(observed.queue_rules - plan.queue_rules)
    ]
    steps += [Step(DeleteRule(rule), AddRule(rule)) for rule in sorted(observed.rules - plan.rules)]
    places = {route.place for route in plan.routes}
    steps += [
        Step(DeleteRoute(route), PutRoute(route))
        for route in sorted(kept - plan.routes)
        if route.place not in places
    ]
    return steps


def _unwanted_ways(observed: Observed, plan: Plan) -> list[Route]:
    """Routes to interfaces that the plan uses no more, and the new table does not translate for."""
    used = {(route.family, route.interface) for route in plan.routes}
    return sorted(
        route
        for route in observed.routes
        if route.kind == "unicast" and (route.family, route.interface) not in used
    )


def removal(observed: Observed, original_sysctls: Mapping[str, str]) -> list[Step]:
    """The steps that take away all that is ours and put settings back as they were.

    The table goes last: it translates, and guards, until nothing leads to the links any more.
    """
    steps = [Step(DeleteRule(rule), AddRule(rule)) for rule in sorted(observed.rules)]
    steps += [Step(DeleteRoute(route), PutRoute(route)) for route in sorted(observed.routes)]
    for key, value in reversed(tuple(original_sysctls.items())):
        now = sysctl.read(key)
        # A key that is gone went with its interface.
        if now is not None and now != value:
            swept = sysctl.swept_by(key)
            then = tuple((one, original_sysctls[one]) for one in swept if one in original_sysctls)
            steps.append(Step(SetSysctl(key, value, then), _set_again(key, now)))
    steps += [
        Step(DeleteQueueRule(rule), AddQueueRule(rule)) for rule in sorted(observed.queue_rules)
    ]
    if observed.table:
        steps.append(Step(DeleteTable(), LoadTable(nft.read_whole())))
    return steps


def perform(steps: Iterable[Step], netlink: Netlink) -> None:
    """Takes the steps in order. When the kernel refuses one, those before it are undone.

    Raises KernelError with the step and the kernel's words.
    """
    done: list[Step] = []
    for step in steps:
        try:
            step.change.perform(netlink)
        except Exception as refusal:
            left = _undo(done, netlink)
            raise KernelError(
                f"{step.summary}: {refusal}; "
                + (f"not all could be undone: {left}" if left else "what was done before is undone")
            ) from refusal
        done.append(step)


def _undo(done: list[Step], netlink: Netlink) -> str:
    left = []
    for step in reversed(done):
        try:
            step.undo.perform(netlink)
        except Exception as refusal:
            left.append(f"{_summary(step.undo)}: {refusal}")
    return "; ".join(left)


def _summary(change: Change) -> str:
    if isinstance(change, LoadTable):
        return f"nft -f - (table inet {TABLE})"
    return change.line


def _sysctl_steps(observed: Observed, plan: Plan) -> list[Step]:
    steps = []
    for wanted in plan.sysctls:
        now = observed.sysctls.get(wanted.key)
        if now is None or now == wanted.value or (wanted.only_from and now != wanted.only_from):
            continue
        steps.append(Step(SetSysctl(wanted.key, wanted.value), _set_again(wanted.key, now)))
    return steps


def _set_again(key: str, value: str) -> SetSysctl:
    """What puts a setting back to its present value, and those that go along with it."""
    return SetSysctl(key, value, tuple(sysctl.apart(key).items()))


def _route_steps(observed: frozenset[Route], planned: frozenset[Route]) -> list[Step]:
    before = {route.place: route for route in observed}
    steps = []
    for route in sorted(planned - observed):
        old = before.get(route.place)
        steps.append(Step(PutRoute(route), PutRoute(old) if old else DeleteRoute(route)))
    return steps


def _table_steps(observed: Observed, plan: Plan, known_listing: str) -> list[Step]:
    table = observed.table
    if table and digest_chain(plan) in table.chains and observed.listing == known_listing:
        return []
    text = render(plan, table.chains, table.sets) if table else render(plan)
    undo: Change = LoadTable(_replacement(nft.read_whole())) if table else DeleteTable()
    return [Step(LoadTable(text), undo)]


def _replacement(listing: str) -> str:
    return f"delete table inet {TABLE}\n{listing}"


def _route_words(route: Route) -> str:
    if route.kind == "unreachable":
        where = "unreachable default"
    else:
        via = f"via {route.gateway} " if route.gateway else ""
        source = f" src {route.source}" if route.source else ""
        where = f"default {via}dev {route.interface}{source}"
    return f"{where} table {route.table} metric {route.metric} proto {PROTOCOL}"


def _rule_words(rule: Rule) -> str:
    words = [f"priority {rule.priority}"]
    if rule.source:
        words.append(f"from {rule.source}")
    if rule.mask:
        words.append(f"fwmark {rule.mark:#x}/{rule.mask:#x}")
    if rule.own_only:
        words.append("iif lo")
    if rule.bound_interface:
        words.append(f"oif {rule.bound_interface}")
    if rule.table:
        words.append(f"lookup {'main' if rule.table == MAIN_TABLE else rule.table}")
    else:
        words.append("type unreachable")
    if rule.specific_only:
        words.append("suppress_prefixlength 0")
    words.append(f"protocol {PROTOCOL}")
    return " ".join(words)


def _queue_line(verb: str, rule: QueueRule) -> str:
    command = "iptables" if rule.family == FAMILIES[0] else "ip6tables"
    return f"{command} -t mangle {verb} {rule.chain} {' '.join(iptables.arguments(rule))}"
