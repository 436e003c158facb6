"""Rules while links live and die: where each leads, and what is compiled of it."""

from __future__ import annotations

import random
from fractions import Fraction
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.marks import Marks
from dataplane.config.model import (
    Addresses,
    AddressList,
    Config,
    Fields,
    Group,
    Link,
    Method,
    Rule,
    Selection,
    Sticky,
)
from dataplane.decide.balance import all_alive, without
from dataplane.decide.compiled import program_of
from dataplane.decide.facts import FAMILIES, Facts, InterfaceFacts
from dataplane.decide.liveness import Condition, LinkState, Way
from dataplane.decide.policy import Outcome, member_applications, member_lists, policy
from dataplane.decide.program import Draw, Slots
from dataplane.decide.slots import SLOTS
from dataplane.decide.wish import Before, Wish, make_wish
from dataplane.errors import ConfigError
from dataplane.hotpath import Classifier

KEY = 0x1122334455667788
NOBODY = Facts((), native_queue=False)
LINKS = (
    Link("a", "wan1", download_bps=10_000_000),
    Link("b", "wan2", download_bps=20_000_000),
    Link("c", "wan3", download_bps=20_000_000),
)
DOMESTIC = Addresses.of([(ip_address("203.0.113.0"), ip_address("203.0.113.255"))])


def config_of(*rules: Rule, groups: tuple[Group, ...] = (), **more: object) -> Config:
    balance = Group("default", ("a", "b", "c"))
    return Config(
        ("lan0",), LINKS, **{"balance": balance, "groups": groups, "rules": rules, **more}
    )  # type: ignore[arg-type]


def wish_of(config: Config, *dead: str, before: Before | None = None, **more: object) -> Wish:
    states = without(all_alive(config), dead)
    return make_wish(config, NOBODY, KEY, before or Before(), states=states, **more)  # type: ignore[arg-type]


def leads(wish: Wish) -> list[str]:
    """Where the rules of the file lead in IPv4, in words; "*" where it is not their first word."""
    found = [rule.outcomes[4] for rule in policy(wish) if rule.rule and 4 in rule.outcomes]
    return [one.target + "*" * one.instead for one in found]


@pytest.mark.parametrize(
    ("otherwise", "all_live", "one_dead", "both_dead", "all_dead"),
    [
        # Rule 1 is for link a alone, rule 2 for a group of a and b.
        ("default", ["a", "ab"], ["default*", "ab"], ["default*", "default*"], ["a", "ab"]),
        ("next", ["a", "ab"], ["next*", "ab"], ["next*", "next*"], ["next*", "next*"]),
        ("reject", ["a", "ab"], ["reject*", "ab"], ["reject*", "reject*"], ["reject*", "reject*"]),
        ("spare", ["a", "ab"], ["spare*", "ab"], ["spare*", "spare*"], ["a", "ab"]),
    ],
)
def test_what_a_rule_does_when_its_links_are_dead(
    otherwise: str,
    all_live: list[str],
    one_dead: list[str],
    both_dead: list[str],
    all_dead: list[str],
) -> None:
    groups = (Group("ab", ("a", "b"), Method.NTH), Group("spare", ("c",)))
    config = config_of(
        Rule(1, "a", otherwise, source=Selection(DOMESTIC)), Rule(2, "ab", otherwise), groups=groups
    )
    assert leads(wish_of(config)) == all_live
    assert leads(wish_of(config, "a")) == one_dead
    assert leads(wish_of(config, "a", "b")) == both_dead
    assert leads(wish_of(config, "a", "b", "c")) == all_dead


def test_a_dead_link_keeps_no_connection_for_a_rule_that_leads_elsewhere() -> None:
    """The group still has a link that would serve, but nobody is sent there any more."""
    alone = (Group("alone", ("a",), Method.FAILOVER),)
    config = config_of(Rule(1, "alone"), Rule(2, "a", "next"), groups=alone)
    dead = wish_of(config, "a")
    assert leads(dead) == ["default*", "next*"]
    assert not dead.in_use("a", 4)
    assert not dead.keeps("a", 4)
    assert dead.in_use("b", 4)
    assert wish_of(config).without(["a"]).used == dead.used


def test_what_a_rule_falls_back_on_keeps_its_connections() -> None:
    """Link c is in no group, and used by its rule alone: also while it, and all else, is dead."""
    config = config_of(Rule(1, "c"), balance=Group("default", ("a", "b")))
    all_dead = wish_of(config, "a", "b", "c")
    assert leads(all_dead) == ["c"]
    assert all_dead.keeps("c", 4)
    assert not wish_of(config, "c").keeps("c", 4)


def test_lent_slots_are_worked_out_once() -> None:
    """Every look at the machine asks for those of all groups, and 64 of them take half a second."""
    config = config_of()
    assert wish_of(config, "a").tables[4] is wish_of(config, "a").tables[4]


def test_families_fare_by_themselves() -> None:
    """IPv6 has no link a: there the rule is passed over, and the program holds two of it."""
    config = config_of(Rule(1, "a", "next"))
    states = all_alive(config)
    states["a"] = LinkState("a", (Way(Condition.LIVING), Way(Condition.ABSENT, "no address")))
    wish = make_wish(config, NOBODY, KEY, Before(), states=states)
    found = [(rule.name, dict(rule.outcomes)) for rule in policy(wish)[:-1]]
    assert found == [
        ("rule 1", {4: Outcome("a")}),
        ("rule 1", {6: Outcome("next", instead=True)}),
    ]
    assert [dict(rule.compiled.actions) for rule in policy(wish)[:-1]] == [{4: wish.ids["a"]}, {}]
    classifier = Classifier(program_of(wish))
    four = classifier.classify_flow(bytes([10, 0, 0, 1]), bytes([203, 0, 113, 1]), 6)
    six = classifier.classify_flow(bytes(15) + b"\1", bytes(15) + b"\2", 6)
    assert (four.rule, four.decision, six.rule) == (0, wish.ids["a"], 2)


@pytest.mark.parametrize("method", list(Method), ids=str)
def test_what_a_method_is_compiled_to(method: Method) -> None:
    group = Group("g", ("b", "a"), method, sticky=None if method is Method.PCC else Sticky.PAIR)
    wish = wish_of(config_of(Rule(1, "g"), groups=(group,)), choices={"g": {4: "a", 6: "b"}})
    rule = policy(wish)[0].compiled
    a, b = wish.ids["a"], wish.ids["b"]
    wanted: dict[Method, list[object]] = {
        Method.NTH: [Draw("nth", {a: 1, b: 2})] * 2,
        Method.RANDOM: [Draw("random", {a: 1, b: 2})] * 2,
        Method.ECMP: [Marks().last_link] * 2,
        Method.FAILOVER: [b, b],
        Method.OVERFLOW: [a, b],
        Method.LEAST_USED: [a, b],
        Method.LOWEST_LATENCY: [a, b],
    }
    if method is Method.PCC:
        slots = rule.actions[4]
        assert isinstance(slots, Slots)
        assert abs(slots.table.count(a) - SLOTS / 3) < 1
        assert set(slots.table) == {a, b}
    else:
        assert [rule.actions[family] for family in FAMILIES] == wanted[method]
    assert rule.remember == (method not in (Method.PCC, Method.ECMP))
    assert rule.group == "g"
    assert {family: sorted(rule.allowed[family]) for family in FAMILIES} == {4: [a, b], 6: [a, b]}


def test_a_choice_that_does_not_serve_is_none() -> None:
    group = Group("g", ("a", "b", "c"), Method.OVERFLOW)
    config = config_of(Rule(1, "g"), groups=(group,))
    wish = wish_of(config, "b", choices={"g": {4: "b", 6: "c"}})
    assert dict(wish.groups["g"].preferred) == {4: "a", 6: "c"}


def test_fields_of_a_rule_win() -> None:
    config = config_of(Rule(1, "default", fields=Fields.SRC_ADDRESS))
    slots = policy(wish_of(config))[0].compiled.actions[4]
    assert isinstance(slots, Slots)
    assert slots.fields is Fields.SRC_ADDRESS


def test_numbers_of_ecmp_groups_stay() -> None:
    """They are counted from the highest, and a link never has to give way to one."""
    groups = (Group("x", ("a",), Method.ECMP), Group("y", ("b",), Method.ECMP))
    first = wish_of(config_of(groups=groups))
    assert dict(first.group_ids) == {"x": 120, "y": 119}
    later = wish_of(config_of(groups=groups[1:]), before=first.before)
    assert dict(later.group_ids) == {"y": 119}
    narrow = wish_of(config_of(groups=groups[1:], mark_mask=0x0F))
    assert sorted([*narrow.ids.values(), *narrow.group_ids.values()]) == [1, 2, 3, 8]


def test_lists_and_applications_are_numbered_as_the_program_has_them() -> None:
    config = config_of(
        Rule(1, "a", source=Selection(DOMESTIC), hosts=("*.example.org",)),
        Rule(2, "b", applications=("bittorrent",), hosts=("*.example.org",)),
    )
    assert member_lists(config) == {"rule 1 source": DOMESTIC}
    assert member_applications(config) == ("host:*.example.org", "application:bittorrent")


def test_an_interface_that_is_missing_matches_nothing() -> None:
    config = config_of(Rule(1, "a", interfaces=("lan0",)))
    lan = InterfaceFacts("lan0", 7, True, True, False, 1500)
    for facts, index in ((Facts((lan,), False), 7), (Facts((lan_named("x"),), False), 0)):
        wish = make_wish(config, facts, KEY, Before(), states=all_alive(config))
        assert policy(wish)[0].compiled.interfaces == (index,)


def lan_named(name: str) -> InterfaceFacts:
    return InterfaceFacts(name, 3, True, True, False, 1500)


@given(st.lists(st.fractions(Fraction(1, 1000), 10**13), min_size=1, max_size=3))
def test_weights_of_draws_keep_the_ratio(shares: list[Fraction]) -> None:
    """Within a part in 2^30, however odd the shares are; none becomes nothing."""
    links = tuple(Link(f"l{n}", f"wan{n}", share=share) for n, share in enumerate(shares))
    config = Config(
        ("lan0",), links, Group("default", tuple(one.name for one in links), Method.NTH)
    )
    wish = wish_of(config)
    draw = policy(wish)[0].compiled.actions[4]
    assert isinstance(draw, Draw)
    assert all(1 <= weight <= 1 << 40 for weight in draw.weights.values())
    for link in links:
        got = Fraction(draw.weights[wish.ids[link.name]], sum(draw.weights.values()))
        assert abs(got - link.weight / sum(shares)) < Fraction(1, 1 << 30)


def test_lists_that_overlap_in_too_many_ways_are_a_fault_of_the_file() -> None:
    """Each by itself is legal. What is refused is said in words, and the old program stays."""
    chance = random.Random(1)
    lists = tuple(
        AddressList(f"l{number}", Addresses.of(some_spans(chance, 60))) for number in range(1000)
    )
    config = config_of(Rule(1, "a", destination=Selection(lists=("l0",))), lists=lists)
    with pytest.raises(ConfigError, match="the policy: lists: the lists overlap in too many ways"):
        program_of(wish_of(config))


def some_spans(chance: random.Random, count: int) -> list[tuple[IPv4Address, IPv4Address]]:
    firsts = (chance.randrange(1 << 31) for _ in range(count))
    return [(IPv4Address(one), IPv4Address(one + (1 << 26))) for one in firsts]
