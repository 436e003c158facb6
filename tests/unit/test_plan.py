"""The plan as a value: a pure function, complete, and in the right order."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from ipaddress import ip_address

import pytest

from dataplane.config.load import read
from dataplane.decide.plan import (
    LAST_TABLE,
    MAIN_TABLE,
    PRIORITY_LAST,
    PRIORITY_SPECIFIC,
    UNREACHABLE_METRIC,
    Plan,
)
from dataplane.decide.ruleset import digest_chain, render, slots_chain
from dataplane.decide.wish import Before, make_wish
from tests.golden.cases import (
    CASES,
    DOWN,
    KEY,
    MACHINE,
    SHARED,
    THIRD,
    interface,
    plan_of,
    two,
    with_interface,
)

EACH_CASE = pytest.mark.parametrize("name", CASES)


def plan(name: str) -> Plan:
    return plan_of(CASES[name].text, CASES[name].facts)


@EACH_CASE
def test_it_is_a_pure_function(name: str) -> None:
    assert plan(name) == plan(name)
    assert render(plan(name)) == render(plan(name))


@EACH_CASE
def test_every_table_ends_in_unreachable(name: str) -> None:
    """Else what belongs to one link would leave by another."""
    made = plan(name)
    for planned in made.links:
        for family in made.families:
            worst = max(
                (route for route in made.routes
                 if route.table == planned.table and route.family == family),
                key=lambda route: route.metric,
            )  # fmt: skip
            assert (worst.kind, worst.metric) == ("unreachable", UNREACHABLE_METRIC)


@EACH_CASE
def test_every_decision_has_its_rule(name: str) -> None:
    made = plan(name)
    for family in made.families:
        by_mark = {rule.mark: rule for rule in made.rules if rule.family == family and rule.mask}
        for planned in made.links:
            assert by_mark[planned.mark].table == planned.table
            assert by_mark[planned.mark].mask == made.marks.mask
        assert by_mark[made.marks.mark(made.marks.main)].table == MAIN_TABLE
        assert by_mark[made.marks.mark(made.marks.reject)].table == 0
        assert by_mark[made.marks.mark(made.marks.ask)].table == 0
        for mark in made.exempt_marks:
            assert by_mark[mark].mask == 0xFFFFFFFF, "compared whole"


@EACH_CASE
def test_rules_stand_in_order(name: str) -> None:
    """Specific routes of main come first of all, the last table behind main."""
    made = plan(name)
    for family in made.families:
        rules = sorted(rule for rule in made.rules if rule.family == family)
        # What is bound to an interface of several links, and marked, is the link's in any case.
        rules = [rule for rule in rules if not (rule.mask and rule.bound_interface)]
        assert (rules[0].priority, rules[0].specific_only) == (PRIORITY_SPECIFIC, True)
        assert (rules[-1].priority, rules[-1].table) == (PRIORITY_LAST, LAST_TABLE)
        assert len({rule.place for rule in made.routes}) == len(made.routes)


@EACH_CASE
def test_marks_stay_inside_the_mask(name: str) -> None:
    made = plan(name)
    for planned in made.links:
        assert planned.mark & made.marks.others == 0
        assert planned.mark
    assert made.marks.mask & made.marks.others == 0


def test_forwarding_is_switched_on_last() -> None:
    """Before accept_ra is 2, it would purge what was learned from advertisements."""
    keys = [one.key for one in plan_of(two()).sysctls]
    learning = [n for n, key in enumerate(keys) if key.endswith("accept_ra")]
    assert learning
    assert max(learning) < keys.index("net/ipv6/conf/all/forwarding")


def test_ipv6_off_leaves_no_trace_of_it() -> None:
    made = plan_of(two(top="ipv6 = false"))
    assert {rule.family for rule in made.rules} == {4}
    assert {route.family for route in made.routes} == {4}
    assert {rule.family for rule in made.queue_rules} == {4}
    assert not [one for one in made.sysctls if one.key.startswith("net/ipv6")]


def test_a_dead_link_lends_its_slots_and_keeps_its_table() -> None:
    made = plan_of(two(), DOWN)
    assert [planned.slots_of(4) for planned in made.links] == [65536, 0]
    tables = {route.table for route in made.routes if route.kind == "unicast"}
    assert made.links[1].table in tables, "its routes stay while its interface does"
    last = min(route for route in made.routes if route.table == LAST_TABLE)
    assert last.interface == "wan1", "the router itself leaves by a living link"


def test_a_link_that_is_not_enabled_keeps_only_unreachable() -> None:
    down = with_interface(replace(interface("wan2", 3, "198.51.100.2/24"), enabled=False))
    made = plan_of(two(), down)
    kinds = {route.kind for route in made.routes if route.table == made.links[1].table}
    assert kinds == {"unreachable"}


def test_a_missing_interface_is_planned_around() -> None:
    gone = replace(MACHINE, interfaces=MACHINE.interfaces[:2])
    made = plan_of(two(), gone)
    assert [planned.slots_of(4) for planned in made.links] == [65536, 0]
    assert "wan2" not in {route.interface for route in made.routes}
    assert not [one for one in made.sysctls if "/wan2/" in one.key]


def test_a_metered_link_is_the_routers_last_way() -> None:
    facts = with_interface(interface("wwan0", 4, "198.18.3.2/24"))
    made = plan_of(two(end=THIRD), facts)
    ways = sorted(route for route in made.routes if route.table == LAST_TABLE and route.family == 4)
    assert [way.interface for way in ways] == ["wan2", "wan1", "wwan0"]


def test_numbers_stay_with_their_links() -> None:
    """A connection carries its link's number: a new file must not give it to another link."""
    config = read(two(), "evenlink.toml")
    made = make_wish(config, MACHINE, KEY, Before({"gone": 1, "isp-b": 2}))
    assert made.ids == {"isp-a": 3, "isp-b": 2}


def test_an_address_of_two_links_identifies_neither() -> None:
    same = with_interface(interface("wan2", 3, "192.0.2.2/24", "2001:db8:2::2/64"))
    made = plan_of(two(b='gateway6 = "2001:db8:2::1"').replace("198.51.100.1", "192.0.2.1"), same)
    twice = ip_address("192.0.2.2")
    for planned in made.links:
        assert twice not in planned.own_addresses
        assert planned.doubtful_addresses == (twice,)
    assert "192.0.2.2" not in {rule.source for rule in made.rules}


def test_links_of_one_interface_are_told_apart() -> None:
    made = plan_of(CASES["shared-interface"].text, SHARED)
    own = [[str(address) for address in planned.own_addresses] for planned in made.links]
    assert own == [["192.0.2.2"], ["198.51.100.2"]]
    assert [planned.gateway_macs for planned in made.links] == [
        ("02:00:00:00:00:01",), ("02:00:00:00:00:02",),
    ]  # fmt: skip
    bound = {rule for rule in made.rules if rule.bound_interface}
    assert {(rule.bound_interface, rule.mark, rule.table) for rule in bound} == {
        ("wan1", planned.mark, planned.table) for planned in made.links
    }
    assert all(rule.priority < PRIORITY_SPECIFIC for rule in bound)
    text = render(made)
    for number, address in enumerate(("192.0.2.2", "198.51.100.2"), 1):
        mark = f"{number << 24:#010x}"
        assert f"meta mark & 0x7f000000 == {mark} meta nfproto ipv4 snat ip to {address}" in text


def test_resolvers_are_pinned_while_their_link_lives() -> None:
    made = plan("resolvers")
    assert [[str(one) for one in planned.resolvers] for planned in made.links] == [
        ["203.0.113.53", "203.0.113.54", "2001:db8:53::53"], ["198.51.100.53"],
    ]  # fmt: skip
    assert [planned.resolvers for planned in plan("resolvers-of-a-dead-link").links][1] == ()
    # One family alone may be dead.
    facts = with_interface(interface("wan1", 2, "192.0.2.2/24"))
    half = plan_of(CASES["resolvers"].text, facts)
    assert [str(one) for one in half.links[0].resolvers] == ["203.0.113.53", "203.0.113.54"]


def test_specific_routes_of_main_come_before_resolvers() -> None:
    made = render(plan("resolvers")).partition("chain prerouting_restore")[2].partition("}\n\n")[0]
    steps = ["jump exempt", "oif exists goto mark_main", "ip daddr vmap"]
    assert sorted(steps, key=made.index) == steps


def test_what_the_router_asks_of_resolvers() -> None:
    """A socket bound to a link's address stays, unless main's default route gives unbound ones
    that address; then only a link that translates may take it.
    """

    def order(name: str) -> list[str]:
        text = render(plan(name)).partition("chain output_restore")[2].partition("}\n\n")[0]
        return [
            line.split(" vmap ")[0].strip() for line in text.splitlines() if "addr vmap" in line
        ]

    asked = ["ct state new ip daddr", "ct state new ip6 daddr"]
    assert order("resolvers") == ["ip saddr", "ip6 saddr", *asked]
    assert order("resolvers-own-traffic-main") == [*asked, "ip saddr", "ip6 saddr", *asked]
    text = render(plan("resolvers-own-traffic-main"))
    own = text.partition("chain output_restore")[2]
    assert "198.51.100.53" not in own.partition("ip saddr vmap")[0]


@pytest.mark.parametrize(("mtu", "mss"), [(1500, None), (1492, 1452), (1400, 1360), (9000, None)])
def test_small_links_are_clamped(mtu: int, mss: int | None) -> None:
    facts = with_interface(interface("wan2", 3, "198.51.100.2/24", mtu=mtu))
    assert plan_of(two(), facts).links[1].mss == mss


def test_the_digest_follows_every_change() -> None:
    digests = {digest_chain(plan(name)) for name in CASES}
    assert len(digests) == len(CASES) - 1, "both-addresses is what is meant where nothing is said"
    assert digest_chain(plan_of(two())) in render(plan_of(two()))


def test_shares_in_the_fallback_are_the_slots() -> None:
    made = plan_of(two())
    count = made.links[0].slots_of(4)
    assert abs(Fraction(count, 65536) - Fraction(1, 3)) < Fraction(1, 65536)
    spread = f"vmap {{ 0-{count - 1} : goto mark_1, {count}-65535 : goto mark_2 }}"
    assert render(made).count(spread) == 2, "one a family"


def test_rendering_again_deletes_only_what_is_stale() -> None:
    made = plan_of(two())
    there = {"mark_9", "leave_1", digest_chain(made), slots_chain(made)}
    text = render(made, there, {"pairs4_1", "pairs4_9"})
    assert "delete chain inet evenlink mark_9" in text
    assert "delete chain inet evenlink leave_1" not in text
    assert "delete set inet evenlink pairs4_9" in text
    assert "flush set" not in text, "the same slots keep the remembered pairs"
    other = render(made, {"plan_0123456789abcdef"}, {"pairs4_1"})
    assert "flush set inet evenlink pairs4_1" in other
    assert "delete chain inet evenlink plan_0123456789abcdef" in other
