"""What becomes of a flow that a rule has taken: turns, draws, and what is remembered of them."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from dataclasses import replace
from math import ceil, floor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config.marks import Marks
from dataplane.config.model import Sticky
from dataplane.decide.program import Action, Draw, Family, ProgramRule, Slots, everywhere
from dataplane.hotpath import Classifier, Program
from tests.policies import compiled, flow_of, remembering, table
from tests.reference import Flow, Policy, Remembering

WEIGHTS = [
    {1: 10, 2: 20},
    {1: 1, 2: 3, 3: 7},
    {1: 200_000_000, 2: 50_000_000, 3: 1},
    {1: 1},
    {n: n for n in range(1, 121)},
    {1: 1 << 40, 2: 1, 3: (1 << 40) - 1},
]
MILLION = 1_000_000


def one_rule(action: Action, **asked: object) -> Policy:
    return Policy(Marks(), 7, [replace(ProgramRule("r", everywhere(action)), **asked)])


def nth(weights: dict[int, int], **asked: object) -> Policy:
    return one_rule(Draw("nth", weights), **asked)


def connect(classifier: Classifier, source: int, port: int = 1, family: Family = 4) -> int:
    """The decision for a new connection of that host from that port."""
    size = 4 if family == 4 else 16
    here, there = source.to_bytes(size, "big"), (9).to_bytes(size, "big")
    return classifier.classify_flow(here, there, 6, port, 443).decision


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: str(weights)[:40])
def test_in_turn_each_link_has_its_share_after_every_connection(weights: dict[int, int]) -> None:
    """Rounded down or up, and never further away, from the first one on."""
    classifier = Classifier(compiled(nth(weights)))
    total, had = sum(weights.values()), Counter[int]()
    for draws in range(1, 3001):
        had[connect(classifier, draws)] += 1
        for decision, weight in weights.items():
            exact = weight * draws, total
            assert exact[0] // exact[1] <= had[decision] <= -(-exact[0] // exact[1])
    assert set(had) <= set(weights)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 300))
def test_in_turn_whatever_the_weights(drawn: list[int], draws: int) -> None:
    weights = dict(enumerate(drawn, start=1))
    classifier = Classifier(compiled(nth(weights)))
    had = Counter(connect(classifier, source) for source in range(draws))
    for decision, weight in weights.items():
        exact = weight * draws / sum(drawn)
        assert floor(exact) <= had[decision] <= ceil(exact)


def test_another_group_s_death_costs_nobody_the_turn() -> None:
    draws = [everywhere(Draw("nth", {1: 1, 2: n})) for n in (1, 2, 3)]
    rules = [
        ProgramRule(f"r{n}", draw, protocols=(n,), group=str(n)) for n, draw in enumerate(draws)
    ]
    all_, last = (compiled(Policy(Marks(), 7, some)) for some in (rules, rules[2:]))
    classifier, unmoved = Classifier(all_), Classifier(last)
    expected, found = (
        [one.classify_flow(bytes(4), bytes(4), 2).decision for one in (each, each)]
        for each in (unmoved, classifier)
    )
    classifier.swap(last)
    for each, decisions in ((unmoved, expected), (classifier, found)):
        decisions += [each.classify_flow(bytes(4), bytes(4), 2).decision for _ in range(9)]
    assert found == expected


def test_families_and_groups_have_turns_of_their_own() -> None:
    draw = everywhere(Draw("nth", {1: 1, 2: 1}))
    rules = [
        ProgramRule("tcp", draw, protocols=(6,), group="one"),
        ProgramRule("udp", draw, protocols=(17,), group="two"),
    ]
    classifier = Classifier(compiled(Policy(Marks(), 7, rules)))
    first = [connect(classifier, 1), connect(classifier, 1, family=6)]
    first.append(classifier.classify_flow(bytes(4), bytes(4), 17).decision)
    assert len(set(first)) == 1


def test_rules_of_one_group_take_one_turn() -> None:
    draw = everywhere(Draw("nth", {1: 1, 2: 2}))
    rules = [
        ProgramRule("tcp", draw, protocols=(6,), group="one"),
        ProgramRule("rest", draw, group="one"),
    ]
    classifier = Classifier(compiled(Policy(Marks(), 7, rules)))
    had = Counter(
        classifier.classify_flow(bytes(4), bytes(4), protocol).decision
        for protocol in [6, 17] * 150
    )
    assert had == {1: 100, 2: 200}


def test_a_turn_goes_on_under_another_program() -> None:
    """As long as it is the same links with the same weights."""
    program, other = compiled(nth({1: 1, 2: 3})), compiled(nth({1: 3, 2: 1}))
    unmoved, swapped = Classifier(program), Classifier(program)
    expected = [connect(unmoved, n) for n in range(20)]
    found = []
    for n in range(20):
        swapped.swap(compiled(nth({1: 1, 2: 3})))
        found.append(connect(swapped, n))
    assert found == expected
    swapped.swap(other)
    assert Counter(connect(swapped, n) for n in range(40)) == {1: 30, 2: 10}


@pytest.mark.parametrize(
    "weights", [{1: 10, 2: 20}, {1: 1, 2: 3, 3: 7}, {n: n for n in range(1, 9)}]
)
def test_at_random_each_link_has_its_share_in_the_long_run(weights: dict[int, int]) -> None:
    """Chi-square at 1 %, with a seed."""
    least = {1: 6.635, 2: 9.210, 7: 18.475}[len(weights) - 1]
    classifier = Classifier(compiled(one_rule(Draw("random", weights))), seed=5)
    draws, total = 20_000, sum(weights.values())
    had = Counter(connect(classifier, n) for n in range(draws))
    expected = {decision: draws * weight / total for decision, weight in weights.items()}
    assert sum((had[n] - each) ** 2 / each for n, each in expected.items()) < least
    assert set(had) <= set(weights)


def test_the_seed_is_what_random_draws_begin_with() -> None:
    program = compiled(one_rule(Draw("random", {1: 1, 2: 1})))
    runs = [
        [connect(classifier, n) for n in range(64)]
        for classifier in (Classifier(program, 1), Classifier(program, 1), Classifier(program, 2))
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("method", ["nth", "random"])
def test_a_peek_draws_nothing_and_counts_nothing(method: str) -> None:
    drawn = Draw("nth" if method == "nth" else "random", {1: 1, 2: 1})
    program = compiled(one_rule(drawn))
    peeking, other = Classifier(program, 3), Classifier(program, 3)
    for n in range(10):
        found = peeking.classify_flow(bytes(4), bytes(4), 6, mark=5, peek=True)
        assert (found.reason, found.decision, found.rule, found.mark) == ("drawn", 0, 0, 5)
        assert connect(peeking, n) == connect(other, n)
    assert peeking.counters() == other.counters()


STICKY = {"sticky": Sticky.SOURCE, "sticky_ms": 1000}


def test_a_burst_is_not_torn() -> None:
    """For two seconds the packets of a connection get one decision, and each renews them."""
    classifier = Classifier(compiled(nth({1: 1, 2: 1}, remember=True)))
    first, second = connect(classifier, 1, 10), connect(classifier, 1, 11)
    assert {first, second} == {1, 2}
    for _ in range(5):
        classifier.now_ms += 1999
        assert connect(classifier, 1, 10) == first
        assert connect(classifier, 1, 11) == second
    classifier.now_ms += 2000
    assert [connect(classifier, 1, port) for port in (12, 13, 10)] == [first, second, first]


def test_a_source_stays_as_long_as_it_comes_back_in_time() -> None:
    classifier = Classifier(compiled(nth({1: 1, 2: 1}, **STICKY)))
    first = connect(classifier, 1)
    for port in range(20):
        classifier.now_ms += 999
        assert connect(classifier, 1, port) == first
    classifier.now_ms += 1000
    assert connect(classifier, 1, 99) != first


def test_a_pair_stays_and_another_destination_does_not() -> None:
    program = compiled(nth({1: 1, 2: 1}, sticky=Sticky.PAIR))
    classifier = Classifier(program)
    here = bytes(4)
    first = classifier.classify_flow(here, b"\1" * 4, 6, 1, 2).decision
    assert classifier.classify_flow(here, b"\2" * 4, 6, 1, 2).decision != first
    assert classifier.classify_flow(here, b"\1" * 4, 17, 3, 4).decision == first


@pytest.mark.parametrize("asked", [{"remember": True}, STICKY])
def test_a_link_that_died_is_not_remembered(asked: dict[str, object]) -> None:
    """The one that stands in is kept instead: the link's return moves nobody."""
    both, one = compiled(nth({1: 1, 2: 1}, **asked)), compiled(nth({2: 1}, **asked))
    classifier = Classifier(both)
    decisions = {source: connect(classifier, source) for source in range(10)}
    assert set(decisions.values()) == {1, 2}
    classifier.swap(one)
    assert {connect(classifier, source) for source in range(10)} == {2}
    classifier.swap(both)
    assert {connect(classifier, source) for source in range(10)} == {2}


def test_a_changed_choice_moves_no_connection_that_began() -> None:
    """What load-driven methods compile to: one link for all, while the others are still allowed."""
    allowed = {4: {1, 2}}
    first, second, without = (
        compiled(one_rule(link, remember=True, allowed=still))
        for link, still in ((1, allowed), (2, allowed), (2, {4: {2}}))
    )
    classifier = Classifier(first)
    assert connect(classifier, 1) == 1
    classifier.swap(second)
    assert (connect(classifier, 1), connect(classifier, 2)) == (1, 2)
    classifier.swap(without)
    assert connect(classifier, 1) == 2


def test_sticky_slots_outlast_a_change_of_the_slots() -> None:
    marks = Marks()
    rules = [
        replace(ProgramRule("r", everywhere(Slots(table(n, marks)))), **STICKY) for n in (1, 2)
    ]
    first, second = (Classifier(compiled(Policy(marks, 7, [rule]))) for rule in rules)
    moved = Classifier(first.program)
    before = {source: connect(moved, source) for source in range(50)}
    assert before == {source: connect(first, source) for source in range(50)}
    moved.swap(second.program)
    assert before == {source: connect(moved, source) for source in range(50)}
    assert before != {source: connect(second, source) for source in range(50)}


@pytest.mark.parametrize("asked", [STICKY, {"remember": True}])
def test_a_batch_goes_no_short_way_past_the_memory(asked: dict[str, object]) -> None:
    any_, marks = random.Random(1), Marks()
    packets = [b"\x45\0\0\x1c" + any_.randbytes(24) for _ in range(64)]
    offsets = array("I", range(0, 28 * 65, 28))
    first, second = (one_rule(Slots(table(n, marks)), **asked) for n in (1, 2))
    classifier, found = Classifier(compiled(first)), []
    for policy in (first, second):
        classifier.swap(compiled(policy))
        given = array("I", bytes(4 * 64))
        classifier.classify_batch(b"".join(packets), offsets, given)
        found.append(given.tolist())
    assert found[0] == found[1]


def test_groups_do_not_remember_for_one_another() -> None:
    draw = everywhere(Draw("nth", {1: 1, 2: 1}))
    rules = [
        ProgramRule("tcp", draw, protocols=(6,), group="one", sticky=Sticky.SOURCE),
        ProgramRule("udp", everywhere(3), protocols=(17,), group="two", sticky=Sticky.SOURCE),
        ProgramRule("rest", draw, group="one", sticky=Sticky.SOURCE),
    ]
    classifier = Classifier(compiled(Policy(Marks(), 7, rules)))
    here = bytes(4)
    tcp, udp, rest = (classifier.classify_flow(here, here, n).decision for n in (6, 17, 1))
    assert (udp, rest) == (3, tcp)


def test_memory_is_the_classifier_s_and_not_the_program_s() -> None:
    program = compiled(nth({1: 1, 2: 1}, **STICKY))
    first, second = Classifier(program), Classifier(program)
    assert connect(first, 1) == connect(second, 2)


def test_a_great_many_sources_push_out_the_oldest_and_nothing_worse() -> None:
    classifier = Classifier(compiled(nth({1: 1, 2: 1}, **STICKY)))
    for source in range(100_000):
        classifier.now_ms = source // 200
        connect(classifier, source)
    newest = {source: connect(classifier, source) for source in range(99_000, 100_000)}
    classifier.swap(compiled(nth({1: 1, 2: 2}, **STICKY)))
    again = {source: connect(classifier, source) for source in newest}
    assert sum(newest[source] == again[source] for source in newest) > 990


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 2**32))
def test_what_is_remembered_is_what_the_oracle_remembers(data: st.DataObject, seed: int) -> None:
    """A few hosts and ports, two programs in turn, and time that passes."""
    marks, chance, oracle = Marks(), random.Random(seed), Remembering()
    first = data.draw(remembering(marks))
    turns = [first, replace(data.draw(remembering(marks)), key=first.key)]
    programs: list[Program] = [compiled(policy) for policy in turns]
    classifier = Classifier(programs[0], seed)
    few = [flow_of(first, chance) for _ in range(5)]
    flows = [replace(flow, protocol=protocol) for flow in few for protocol in (6, 17, 1)]
    flows = [
        flow if flow.protocol != 1 else replace(flow, source_port=0, destination_port=0)
        for flow in flows
    ]
    for _ in range(40):
        turn = chance.choice([0, 0, 0, 1])
        classifier.swap(programs[turn])
        classifier.now_ms += chance.choice([0, 1, 400, 1999, 2000, 3000])
        assert_right(classifier, turns[turn], chance.choice(flows), oracle)


def assert_right(classifier: Classifier, policy: Policy, flow: Flow, oracle: Remembering) -> None:
    right = oracle.right(policy, flow, classifier.now_ms)
    found = classifier.classify_flow(
        flow.source, flow.destination, flow.protocol, flow.source_port, flow.destination_port
    )
    assert found.decision in right
    if found.decision:
        oracle.keep(policy, flow, classifier.now_ms, found.rule, found.decision)
