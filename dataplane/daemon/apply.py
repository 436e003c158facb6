"""The difference between what is observed and the plan, as steps.

Everything that changes the kernel goes through here: the first start, every later change, mending
and removal. Steps are values, so they can be shown first; each knows what undoes it. What is
missing is added before what is too much is deleted; only routes to interfaces that are no link's
any more go first, since nothing translates for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from dataplane.daemon.steps import (
    AddQueueRule,
    AddRule,
    Change,
    DeleteQueueRule,
    DeleteRoute,
    DeleteRule,
    DeleteTable,
    LoadTable,
    PutRoute,
    SetSysctl,
    Step,
    summary_of,
)
from dataplane.decide.plan import PRIORITY_MARK, PRIORITY_SOURCE, Plan, QueueRule, Route, Rule
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
    def empty(self) -> bool:
        """Nothing of ours is there."""
        return not (self.routes or self.rules or self.queue_rules or self.table)


def digest_of(table: nft.Table | None) -> str:
    """A digest of the table as nft lists it; empty when there is none."""
    return hashlib.sha256(table.listing.encode()).hexdigest() if table else ""


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


def difference(observed: Observed, plan: Plan, known_listing: str = "") -> list[Step]:
    """The steps from what is observed to the plan; none when they agree.

    `known_listing` is the digest of the listing that our own last load gave. When the table says
    that it is this plan's but lists otherwise, another hand changed it, and it is loaded again.
    """
    kept, steps = _leave_unwanted(observed.routes, plan)
    steps += [
        Step(AddQueueRule(rule), DeleteQueueRule(rule))
        for rule in sorted(plan.queue_rules - observed.queue_rules)
    ]
    # Translation and guard have to be there before anything leads to a link: else the LAN's own
    # addresses leave by it.
    steps += _table_steps(observed, plan, known_listing)
    steps += _sysctl_steps(observed, plan)
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


def _leave_unwanted(observed: frozenset[Route], plan: Plan) -> tuple[frozenset[Route], list[Step]]:
    """The steps away from interfaces that the plan uses no more, and the routes after them.

    The new table does not translate for these. A multipath route goes on by its other ways.
    """
    used = {(route.family, name) for route in plan.routes for name in route.interfaces}
    kept: set[Route] = set()
    steps = []
    for route in sorted(observed):
        wanted = {name for name in route.interfaces if (route.family, name) in used}
        left = _confined(route, wanted)
        if left is not None:
            kept.add(left)
        if left is None:
            steps.append(Step(DeleteRoute(route), PutRoute(route)))
        elif left != route:
            steps.append(Step(PutRoute(left), PutRoute(route)))
    return frozenset(kept), steps


def _confined(route: Route, interfaces: Collection[str]) -> Route | None:
    """The route by these interfaces alone; None if nothing is left of it."""
    if route.kind == "unreachable" or set(route.interfaces) <= set(interfaces):
        return route
    hops = tuple(hop for hop in route.nexthops if hop.interface in interfaces)
    if not hops:
        return None
    if len(hops) > 1:
        return replace(route, nexthops=hops)
    only = hops[0]
    return replace(
        route, interface=only.interface, gateway=only.gateway, onlink=only.onlink, nexthops=()
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
        steps.append(Step(DeleteTable(), _load_again(observed.table)))
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


def perform_all(steps: Iterable[Step], netlink: Netlink) -> None:
    """Takes every step, also behind one that the kernel refuses: for removal, where less is better.

    Raises KernelError with what is left.
    """
    left = []
    for step in steps:
        try:
            step.change.perform(netlink)
        except Exception as refusal:
            left.append(f"{step.summary}: {refusal}")
    if left:
        raise KernelError("not all could be removed: " + "; ".join(left))


def _undo(done: list[Step], netlink: Netlink) -> str:
    left = []
    for step in reversed(done):
        try:
            step.undo.perform(netlink)
        except Exception as refusal:
            left.append(f"{summary_of(step.undo)}: {refusal}")
    return "; ".join(left)


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
    if table and digest_chain(plan) in table.chains and digest_of(table) == known_listing:
        return []
    text = render(plan, table.chains, table.sets) if table else render(plan)
    undo: Change = _load_again(table) if table else DeleteTable()
    return [Step(LoadTable(text), undo)]


def _load_again(table: nft.Table) -> LoadTable:
    """Loads what was listed. Remembered pairs are lost then: reading them all takes seconds."""
    return LoadTable(f"add table inet {TABLE}\ndelete table inet {TABLE}\n{table.listing}")
