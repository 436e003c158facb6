"""The weights of a multipath route, and the routes of a group that the kernel spreads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.load import read
from dataplane.config.model import Method
from dataplane.daemon.apply import Observed, difference, digest_of
from dataplane.daemon.steps import DeleteRoute, LoadTable, PutRoute, Step
from dataplane.decide.facts import Facts, Family
from dataplane.decide.multipath import (
    MOST_WEIGHT,
    NO_GATEWAY6,
    EcmpGroup,
    Nexthop,
    merged,
    nexthop_weights,
)
from dataplane.decide.plan import PRIORITY_MARK, UNREACHABLE_METRIC, Plan, Route, make_plan
from dataplane.decide.ruleset import digest_chain, render
from dataplane.decide.wish import Before, make_wish
from dataplane.system import nft
from tests.golden.cases import KEY, MACHINE, SHARED, THIRD, interface, two, with_interface

NUMBER = 120
TABLE = 7000 + NUMBER


def shares(*of: int) -> dict[str, Fraction]:
    return {f"link-{number}": Fraction(one) for number, one in enumerate(of)}


def plan(
    text: str = "",
    facts: Facts = MACHINE,
    serving: Mapping[Family, tuple[str, ...]] | None = None,
    name: str = "default",
) -> Plan:
    """The everyday file with an ecmp group of that name; `serving` are its links, by family."""
    config = read(text or two(), "evenlink.toml")
    if name == "default":
        config = replace(config, balance=replace(config.balance, method=Method.ECMP))
    if serving is None:
        serving = {4: ("isp-a", "isp-b"), 6: ("isp-a", "isp-b")}
    wish = make_wish(config, facts, KEY, Before())
    group = EcmpGroup(
        NUMBER,
        {
            family: {one: config.link(one).weight for one in names}
            for family, names in serving.items()
        },
    )
    return make_plan(config, wish.ids, wish.facts, wish.states, wish.tables, KEY, {name: group})


def routes(made: Plan, family: Family) -> list[Route]:
    """The routes of the group's table, the best one first."""
    found = [one for one in made.routes if one.table == TABLE and one.family == family]
    return sorted(found, key=lambda route: route.metric)


def chain(made: Plan, name: str) -> list[str]:
    text = render(made).partition(f"\tchain {name} {{\n")[2].partition("\n\t}")[0]
    return [line.strip() for line in text.splitlines()]


@pytest.mark.parametrize(
    ("wanted", "weights"),
    [
        ((10, 20), (1, 2)),
        ((7, 7, 7), (1, 1, 1)),
        ((200_000_000, 50_000_000), (4, 1)),
        ((3, 5, 7, 11), (3, 5, 7, 11)),
        ((1,), (1,)),
        ((256, 1), (256, 1)),
        ((10_000, 1), (256, 1)),
        ((), ()),
    ],
)
def test_weights(wanted: tuple[int, ...], weights: tuple[int, ...]) -> None:
    assert tuple(nexthop_weights(shares(*wanted)).values()) == weights


@given(st.lists(st.integers(10_000, 1_000_000), min_size=1, max_size=16))
def test_weights_are_near_where_no_link_is_tiny(wanted: list[int]) -> None:
    """Of links that differ by a factor of 100 at most, none is off by 0.2 % of the whole."""
    found = nexthop_weights(shares(*wanted))
    assert all(1 <= weight <= MOST_WEIGHT for weight in found.values())
    for (name, share), weight in zip(shares(*wanted).items(), found.values(), strict=True):
        off = Fraction(weight, sum(found.values())) - share / sum(wanted)
        assert abs(off) < Fraction(2, 1000), name


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=8))
def test_every_link_gets_something(wanted: list[int]) -> None:
    found = nexthop_weights(shares(*wanted))
    assert all(1 <= weight <= MOST_WEIGHT for weight in found.values())
    by_share = sorted(found, key=lambda name: shares(*wanted)[name])
    assert [found[name] for name in by_share] == sorted(found.values()), "the wider the more"


def test_the_same_way_twice_is_one() -> None:
    a, b = Nexthop("wan", "192.0.2.1", 3), Nexthop("wan", "192.0.2.1", 5)
    other = Nexthop("wan", "192.0.2.3", 250)
    assert merged([b, other, a]) == (Nexthop("wan", "192.0.2.1", 8), other)
    assert merged([other, other]) == (replace(other, weight=MOST_WEIGHT),)


def test_the_table_of_a_group() -> None:
    """The multipath route, each way alone behind it, and the end."""
    for family, gateways in ((4, ("192.0.2.1", "198.51.100.1")), (6, ("fe80::2", "fe80::3"))):
        best, widest, other, last = routes(plan(), family)  # type: ignore[arg-type]
        assert best.nexthops == (
            Nexthop("wan1", gateways[0], 1),
            Nexthop("wan2", gateways[1], 2),
        )
        assert best.source == ("10.10.0.1" if family == 4 else "fd00:db8::1"), "as unbound ones"
        assert [widest.interface, other.interface] == ["wan2", "wan1"]
        assert best.metric < widest.metric < other.metric
        assert (last.kind, last.metric) == ("unreachable", UNREACHABLE_METRIC)


def test_its_mark_leads_there() -> None:
    made = plan()
    rules = [rule for rule in made.rules if rule.table == TABLE]
    assert {(rule.family, rule.priority, rule.mark, rule.mask) for rule in rules} == {
        (family, PRIORITY_MARK + NUMBER, NUMBER << 24, made.marks.mask) for family in (4, 6)
    }


def test_one_link_needs_no_multipath() -> None:
    best, last = routes(plan(serving={4: ("isp-b",)}), 4)
    assert (best.interface, best.nexthops) == ("wan2", ())
    assert last.kind == "unreachable"


def test_a_family_that_no_link_serves_ends() -> None:
    made = plan(serving={4: ("isp-a", "isp-b")})
    assert [route.kind for route in routes(made, 6)] == ["unreachable"]
    assert made.groups[0].families == (4,)
    assert not any("ipv6 goto mark_120" in rule for rule in chain(made, "settle"))


def test_a_way_without_a_gateway() -> None:
    """By the interface alone; IPv6 takes no such nexthop, and any gateway is as good there."""
    tunnel = replace(
        interface("wan2", 3, "198.51.100.2/32", "2001:db8:2::2/64"),
        point_to_point=True,
        learned_gateway6=None,
    )
    made = plan(two().replace('gateway = "198.51.100.1"', ""), with_interface(tunnel))
    assert routes(made, 4)[0].nexthops[1] == Nexthop("wan2", "", 2)
    assert routes(made, 6)[0].nexthops[1] == Nexthop("wan2", NO_GATEWAY6, 2)
    alone = next(route for route in routes(made, 6) if route.interface == "wan2")
    assert alone.gateway == ""


def test_the_groups_mark_becomes_the_links() -> None:
    assert chain(plan(), "postrouting_spread") == [
        "type filter hook postrouting priority mangle - 5; policy accept;",
        "meta mark & 0x7f000000 != 0x78000000 accept",
        'oifname vmap { "wan1" : goto mark_1, "wan2" : goto mark_2 }',
    ]
    assert "chain postrouting_spread" not in render(
        make_wish(read(two(), "evenlink.toml"), MACHINE, KEY, Before()).plan()
    )


def test_links_of_one_interface_are_told_by_the_nexthop() -> None:
    text = two(b_interface="wan1", b='gateway6 = "2001:db8:1::9"')
    assert chain(plan(text, SHARED), "postrouting_spread")[2:] == [
        'oifname "wan1" rt ip nexthop 192.0.2.1 goto mark_1',
        'oifname "wan1" rt ip6 nexthop fe80::2 goto mark_1',
        'oifname "wan1" rt ip nexthop 198.51.100.1 goto mark_2',
        'oifname "wan1" rt ip6 nexthop 2001:db8:1::9 goto mark_2',
    ]


def test_without_a_listener_the_kernel_spreads_too() -> None:
    settle = chain(plan(), "settle")
    assert not any("jhash" in rule for rule in settle)
    assert settle[-3:] == [
        "meta nfproto ipv4 goto mark_120",
        "meta nfproto ipv6 goto mark_120",
        "goto mark_main",
    ]
    assert "mark_1" in settle[0], "the pair's remembered link comes first"


def test_a_named_group_leaves_the_default_alone() -> None:
    settle = chain(plan(name="voice"), "settle")
    assert sum("jhash" in rule for rule in settle) == 2
    assert not any("mark_120" in rule for rule in settle)


def test_a_socket_that_chose_a_group_keeps_its_link() -> None:
    rules = chain(plan(), "output_restore")
    kept = next(n for n, rule in enumerate(rules) if "== 0x78000000 ct mark" in rule)
    assert rules[kept + 1] == "meta mark & 0x7f000000 != 0x00000000 accept"


def steps(before: Plan, after: Plan) -> list[Step]:
    """From a machine that holds what the one says to the other."""
    settings = {one.key: one.value for one in before.sysctls}
    chains = frozenset({digest_chain(before)})
    table = nft.Table("listing", chains, frozenset())
    seen = Observed(before.routes, before.rules, before.queue_rules, table, settings)
    return difference(seen, after, digest_of(table))


def of_group(taken: list[Step]) -> list[str]:
    """The steps in the group's table that are about its ways, in words."""
    return [step.line for step in taken if f"table {TABLE} " in step.line and step.tool == "ip"]


def test_a_link_that_dies_is_one_replaced_route() -> None:
    """Never a moment without one: what is too much goes after it."""
    one = plan(serving={4: ("isp-b",), 6: ("isp-a", "isp-b")})
    assert of_group(steps(plan(), one)) == [
        "ip -4 route replace default via 198.51.100.1 dev wan2 src 10.10.0.1 "
        f"table {TABLE} metric 100 proto 201",
        "ip -4 route del default via 198.51.100.1 dev wan2 src 10.10.0.1 "
        f"table {TABLE} metric 101 proto 201",
        "ip -4 route del default via 192.0.2.1 dev wan1 src 10.10.0.1 "
        f"table {TABLE} metric 102 proto 201",
    ]
    back = of_group(steps(one, plan()))
    assert back[0] == (
        f"ip -4 route replace default src 10.10.0.1 table {TABLE} metric 100 proto 201 "
        "nexthop via 192.0.2.1 dev wan1 weight 1 nexthop via 198.51.100.1 dev wan2 weight 2"
    )


def test_a_group_that_ends_loses_its_mark_before_its_routes() -> None:
    config = read(two(), "evenlink.toml")
    taken = steps(plan(), make_wish(config, MACHINE, KEY, Before()).plan())
    rules = [n for n, step in enumerate(taken) if f"lookup {TABLE} " in step.line]
    gone = [n for n, step in enumerate(taken) if f"table {TABLE} " in step.line]
    assert len(rules) == 2
    assert len(gone) == 8
    assert max(rules) < min(gone)
    lines = [taken[n].line for n in gone]
    assert f"ip -4 route del default table {TABLE} metric 100 proto 201" in lines


def test_a_removed_links_way_is_left_before_its_translation() -> None:
    """The others go on meanwhile, and the group's route is never away."""
    three = two(end=THIRD)
    facts = with_interface(interface("wwan0", 4, "198.18.3.2/24"))
    before = plan(three, facts, {4: ("isp-a", "isp-b", "lte")})
    taken = steps(before, plan(serving={4: ("isp-a", "isp-b")}))
    loaded = next(n for n, step in enumerate(taken) if isinstance(step.change, LoadTable))
    first = [step for step in taken[:loaded] if f"table {TABLE} " in step.line]
    assert [type(step.change) for step in first] == [PutRoute, DeleteRoute]
    put = first[0].change
    assert isinstance(put, PutRoute)
    assert put.route.interfaces == ("wan1", "wan2")
    assert isinstance(first[0].undo, PutRoute)
    assert first[0].undo.route.interfaces == ("wan1", "wan2", "wwan0")
    assert not any("dev wwan0" in step.line for step in taken[loaded:])


def test_of_two_ways_one_is_left_alone() -> None:
    only = read(two(), "evenlink.toml")
    before = plan()
    after = make_plan(
        replace(only, links=only.links[:1], balance=replace(only.balance, links=("isp-a",))),
        {"isp-a": 1}, MACHINE, make_wish(only, MACHINE, KEY, Before()).states, {}, KEY,
    )  # fmt: skip
    put = next(step.change for step in steps(before, after) if isinstance(step.change, PutRoute))
    assert (put.route.interface, put.route.gateway, put.route.nexthops) == (
        "wan1", "192.0.2.1", (),
    )  # fmt: skip
