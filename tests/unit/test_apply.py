"""The difference between what is observed and the plan: empty, ordered, and undone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import pytest

from dataplane.daemon.apply import Observed, difference, digest_of, perform, removal
from dataplane.daemon.steps import (
    AddQueueRule,
    AddRule,
    DeleteQueueRule,
    DeleteRoute,
    DeleteRule,
    DeleteTable,
    LoadTable,
    PutRoute,
    SetSysctl,
    Step,
)
from dataplane.decide.plan import Plan, QueueRule, Route, Rule
from dataplane.decide.ruleset import digest_chain
from dataplane.errors import KernelError
from dataplane.system import nft, sysctl
from dataplane.system.netlink import Netlink
from tests.golden.cases import CASES, THIRD, interface, plan_of, two, with_interface

NOTHING = Observed(frozenset(), frozenset(), frozenset(), None, {})


@pytest.fixture(autouse=True)
def _no_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removal needs the settings: the machine's own are not asked for."""
    monkeypatch.setattr(sysctl, "read", lambda key: "1")


def as_planned(plan: Plan) -> Observed:
    """What the kernel holds when the plan was carried out."""
    return Observed(
        plan.routes,
        plan.rules,
        plan.queue_rules,
        nft.Table("listing", frozenset({digest_chain(plan)}), frozenset()),
        {one.key: one.value for one in plan.sysctls},
    )


def kinds(steps: list[Step]) -> list[type]:
    return [type(step.change) for step in steps]


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_do_when_they_agree(name: str) -> None:
    plan = plan_of(CASES[name].text, CASES[name].facts)
    seen = as_planned(plan)
    assert difference(seen, plan, digest_of(seen.table)) == []


@pytest.mark.parametrize("name", CASES)
def test_all_is_done_on_an_empty_machine(name: str) -> None:
    plan = plan_of(CASES[name].text, CASES[name].facts)
    steps = difference(NOTHING, plan)
    assert {s.change.route for s in steps if isinstance(s.change, PutRoute)} == plan.routes
    assert {s.change.rule for s in steps if isinstance(s.change, AddRule)} == plan.rules
    assert {s.change.rule for s in steps if isinstance(s.change, AddQueueRule)} == plan.queue_rules
    assert kinds(steps).count(LoadTable) == 1
    assert not {DeleteRoute, DeleteRule, DeleteQueueRule, DeleteTable} & set(kinds(steps))


def test_translation_is_there_before_anything_leads_to_a_link() -> None:
    order = kinds(
        difference(replace(NOTHING, sysctls={"net/ipv4/ip_forward": "0"}), plan_of(two()))
    )
    loaded = order.index(LoadTable)
    assert loaded < order.index(SetSysctl)
    assert loaded < order.index(PutRoute) < order.index(AddRule)
    assert order.index(AddQueueRule) < loaded


def test_what_is_missing_is_added_before_what_is_too_much_is_deleted() -> None:
    plan = plan_of(two())
    foreign_rule = Rule(4, 30999, 7009)
    foreign_route = Route(4, 7009, 100, "unicast", "wan1", "192.0.2.1")
    foreign_queue = QueueRule(4, "PREROUTING", 1, 1, 7, 7)
    seen = replace(
        NOTHING,
        rules=frozenset({foreign_rule}),
        routes=frozenset({foreign_route}),
        queue_rules=frozenset({foreign_queue}),
    )
    steps = difference(seen, plan)
    order = kinds(steps)
    last_added = max(n for n, kind in enumerate(order) if kind in (AddRule, PutRoute, AddQueueRule))
    first_deleted = min(order.index(kind) for kind in (DeleteRule, DeleteRoute, DeleteQueueRule))
    assert last_added < first_deleted
    deleted = [s.change for s in steps if isinstance(s.change, DeleteRule)]
    assert deleted == [DeleteRule(foreign_rule)]


def test_a_removed_links_routes_go_before_its_translation() -> None:
    """The new table does not translate for it any more."""
    three = plan_of(two(end=THIRD), with_interface(interface("wwan0", 4, "198.18.3.2/24")))
    seen = as_planned(three)
    steps = difference(seen, plan_of(two()), digest_of(seen.table))
    order = kinds(steps)
    deleted = {
        number: step.change.route
        for number, step in enumerate(steps)
        if isinstance(step.change, DeleteRoute)
    }
    gone = [number for number, route in deleted.items() if route.interface == "wwan0"]
    assert gone
    assert max(gone) < order.index(LoadTable)


def test_a_route_in_the_same_place_is_replaced_not_deleted() -> None:
    plan = plan_of(two())
    seen = as_planned(plan)
    mine = min(route for route in plan.routes if route.kind == "unicast" and route.table == 7001)
    other = replace(mine, gateway="192.0.2.9")
    steps = difference(
        replace(seen, routes=seen.routes - {mine} | {other}), plan, digest_of(seen.table)
    )
    assert [(step.change, step.undo) for step in steps] == [(PutRoute(mine), PutRoute(other))]


def test_a_changed_table_is_loaded_again() -> None:
    plan = plan_of(two())
    seen = as_planned(plan)
    assert kinds(difference(seen, plan, "another listing's digest")) == [LoadTable]
    another = replace(seen, table=nft.Table("listing", frozenset({"plan_0"}), frozenset()))
    assert kinds(difference(another, plan, digest_of(another.table))) == [LoadTable]


def test_accept_ra_is_changed_only_where_the_kernel_listens() -> None:
    plan = plan_of(two())
    for now, wanted in (("0", []), ("2", []), ("1", ["2"])):
        settings = {one.key: now if "accept_ra" in one.key else one.value for one in plan.sysctls}
        seen = replace(as_planned(plan), sysctls=settings)
        steps = difference(seen, plan, digest_of(seen.table))
        assert [cast(SetSysctl, step.change).value for step in steps] == wanted * 2


def test_settings_that_do_not_exist_are_left_out() -> None:
    plan = plan_of(two())
    seen = replace(as_planned(plan), sysctls={one.key: None for one in plan.sysctls})
    assert difference(seen, plan, digest_of(seen.table)) == []


def test_removal_takes_all_and_the_table_last() -> None:
    plan = plan_of(two())
    steps = removal(as_planned(plan), {"net/ipv4/ip_forward": "0"})
    order = kinds(steps)
    assert order[-1] is DeleteTable
    assert order.count(DeleteRule) == len(plan.rules)
    assert order.count(DeleteRoute) == len(plan.routes)
    assert order.count(DeleteQueueRule) == len(plan.queue_rules)
    assert order.index(SetSysctl) < order.index(DeleteTable), "no forwarding without translation"
    assert removal(NOTHING, {}) == []


@dataclass
class Recorded:
    """A change that writes down that it was made, or refuses."""

    name: str
    made: list[str]
    refuses: bool = False
    tool: str = "ip"

    @property
    def line(self) -> str:
        return self.name

    def perform(self, netlink: Netlink) -> None:
        if self.refuses:
            raise KernelError("no, never")
        self.made.append(self.name)


def recorded(made: list[str], name: str, refuses: bool = False, stays: bool = False) -> Step:
    return Step(Recorded(name, made, refuses), Recorded(f"not {name}", made, stays))


def test_a_refusal_undoes_what_was_done() -> None:
    made: list[str] = []
    steps = [recorded(made, "a"), recorded(made, "b"), recorded(made, "c", refuses=True)]
    with pytest.raises(KernelError, match="c: no, never; what was done before is undone"):
        perform([*steps, recorded(made, "d")], cast(Netlink, None))
    assert made == ["a", "b", "not b", "not a"]


def test_what_could_not_be_undone_is_said() -> None:
    made: list[str] = []
    steps = [
        recorded(made, "a"),
        recorded(made, "b", stays=True),
        recorded(made, "c", refuses=True),
    ]
    with pytest.raises(KernelError, match="not all could be undone: not b: no, never"):
        perform(steps, cast(Netlink, None))
    assert made == ["a", "b", "not a"]


@pytest.mark.parametrize("name", CASES)
def test_every_step_can_be_shown(name: str) -> None:
    plan = plan_of(CASES[name].text, CASES[name].facts)
    for step in difference(NOTHING, plan):
        assert step.line
        assert step.undo.line
        assert step.tool in ("ip", "nft", "iptables", "sysctl")
