"""Which rule takes a flow: bit vectors in C, and an oracle that tries one rule after the other."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config.marks import Marks
from dataplane.config.model import Fields, Ports
from dataplane.decide.program import ProgramRule, Slots, compile_program, everywhere
from dataplane.hotpath import CONDITIONS, Classifier, Decision, Learned, Lists, Program
from tests.policies import (
    compiled,
    flattened,
    flow_of,
    many_ranges,
    policies,
    table,
)
from tests.reference import Flow, Policy, Span, Taught

TABLE = table(1, Marks())
HERE, THERE = bytes([10, 0, 0, 1]), bytes([192, 0, 2, 1])


def classified(classifier: Classifier, flow: Flow, mark: int = 0, peek: bool = True) -> Decision:
    return classifier.classify_flow(
        flow.source,
        flow.destination,
        flow.protocol,
        flow.source_port,
        flow.destination_port,
        mark,
        dscp=flow.dscp,
        interface=flow.interface,
        peek=peek,
    )


@settings(max_examples=200, deadline=None)
@given(policies(), st.integers(0, 2**32))
def test_rules_mean_what_the_oracle_says(policy: Policy, seed: int) -> None:
    classifier, chance = Classifier(compiled(policy)), random.Random(seed)
    for _ in range(25):
        flow = flow_of(policy, chance)
        expected = policy.flow_outcome(flow, 0x12345678)
        assert tuple(classified(classifier, flow, 0x12345678)) == flattened(expected)


@settings(max_examples=80, deadline=None)
@given(policies(), st.integers(0, 2**32))
def test_it_is_said_which_conditions_do_not_hold(policy: Policy, seed: int) -> None:
    classifier, chance = Classifier(compiled(policy)), random.Random(seed)
    for _ in range(6):
        flow = flow_of(policy, chance)
        found = classifier.matching(
            flow.source,
            flow.destination,
            flow.protocol,
            flow.source_port,
            flow.destination_port,
            dscp=flow.dscp,
            interface=flow.interface,
        )
        names = [{name for n, name in enumerate(CONDITIONS) if bits >> n & 1} for bits in found]
        assert names == [policy.wrong(rule, flow) for rule in policy.rules]


def only(rule: ProgramRule) -> Classifier:
    """A classifier of a program with that rule alone."""
    return Classifier(compiled(Policy(Marks(), 0, [rule])))


def test_ports_hold_at_both_ends_of_their_ranges() -> None:
    ranges = (Ports(80, 80), Ports(100, 200), Ports(150, 300), Ports(65535, 65535), Ports(0, 0))
    classifier = only(ProgramRule("r", everywhere(1), destination_ports=ranges))
    held = {port for each in ranges for port in range(each.first, each.last + 1)}
    for port in (0, 1, 79, 80, 81, 99, 100, 149, 200, 201, 300, 301, 65534, 65535):
        found = classifier.classify_flow(HERE, THERE, 6, 1, port)
        assert (found.decision == 1) == (port in held)


@pytest.mark.parametrize("protocol", [1, 2, 47, 50, 58])
def test_a_protocol_without_ports_holds_no_port(protocol: int) -> None:
    classifier = only(ProgramRule("r", everywhere(1), source_ports=(Ports(0, 65535),)))
    assert classifier.classify_flow(HERE, THERE, protocol).reason == "no-rule"
    assert classifier.classify_flow(HERE, THERE, 17).decision == 1


def test_a_fragment_holds_no_port() -> None:
    classifier = only(ProgramRule("r", everywhere(1), source_ports=(Ports(0, 65535),)))
    packet = b"\x45\0\0\x1c\0\0%b\x40\x11\0\0" + HERE + THERE + bytes(8)
    assert classifier.classify(packet % b"\0\0").decision == 1
    assert classifier.classify(packet % b"\x20\0").reason == "no-rule"


def test_a_packet_of_the_router_itself_came_by_no_interface() -> None:
    classifier = only(ProgramRule("r", everywhere(1), interfaces=(7, 0)))
    packet = b"\x45\0\0\x1c\0\0\0\0\x40\x11\0\0" + HERE + THERE + bytes(8)
    assert classifier.classify(packet, interface=7).decision == 1
    assert classifier.mark(packet, 0, interface=7) == Marks().mark(1)
    for other in (0, 6, 8, 2**32 - 1):
        assert classifier.classify(packet, interface=other).reason == "no-rule"


@pytest.mark.parametrize("dscp", [0, 1, 46, 63])
def test_dscp_is_read_from_both_families(dscp: int) -> None:
    classifier = only(ProgramRule("r", everywhere(1), dscp=(dscp,)))
    for code, ecn in product(range(64), range(4)):
        octet = code << 2 | ecn
        four = bytes([0x45, octet]) + b"\0\x1c\0\0\0\0\x40\x11\0\0" + bytes(16)
        six = bytes([0x60 | octet >> 4, octet << 4 & 0xF0 | 5]) + b"\0\0\0\x08\x11\x40" + bytes(40)
        for packet in (four, six):
            found = classifier.classify(packet)
            assert (found.dscp, found.reason == "decided") == (code, code == dscp)


def test_a_rule_that_is_not_live_for_a_family_is_not_there() -> None:
    policy = Policy(
        Marks(),
        0,
        [ProgramRule("four", {4: 1}), ProgramRule("none", {}), ProgramRule("six", {6: 2})],
    )
    classifier = Classifier(compiled(policy))
    assert classifier.classify_flow(HERE, THERE, 6).rule == 0
    assert classifier.classify_flow(bytes(16), bytes(16), 6).rule == 2


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 129, 4096])
def test_any_number_of_rules(count: int) -> None:
    """Each for a port of its own; the last one for all that is left."""
    rules = [
        ProgramRule(f"r{n}", everywhere(1 + n % 100), destination_ports=(Ports(n, n),))
        for n in range(count - 1)
    ]
    rules.append(ProgramRule("rest", everywhere(126)))
    classifier = Classifier(compiled(Policy(Marks(), 0, rules)))
    for port in {0, 1, 62, 63, 64, count - 2, count - 1, count, 5000} - {-1}:
        found = classifier.classify_flow(HERE, THERE, 17, 9, port)
        assert found.rule == min(port, count - 1)


def test_hundreds_of_lists() -> None:
    """Each list is one prefix, some of the next one's too; the first rule that holds it wins."""
    names = [f"list {n:03}" for n in range(300)]
    lists = {
        name: [Span(4, n << 16, (n << 16) + 9), Span(4, (n + 1) << 16, (n + 1) << 16)]
        for n, name in enumerate(names)
    }
    rules = [
        ProgramRule(name, everywhere(1 + n % 100), source=(name,)) for n, name in enumerate(names)
    ]
    policy = Policy(Marks(), 0, [*rules, ProgramRule("rest", everywhere(126))], lists)
    classifier = Classifier(compiled(policy))
    for number, offset in product((0, 1, 63, 64, 65, 150, 299, 300), (0, 9, 10)):
        flow = Flow(((number << 16) + offset).to_bytes(4, "big"), bytes(4), 6)
        assert tuple(classified(classifier, flow)) == flattened(policy.flow_outcome(flow))


def test_many_prefixes() -> None:
    """Searched against a set, since the oracle would take all day."""
    chosen = random.Random(1).sample(range(1 << 24), 20_000)
    packed = many_ranges([(n << 8, (n << 8) + 255) for n in chosen])
    rules = [
        ProgramRule("many", everywhere(1), destination=("many",)),
        ProgramRule("rest", everywhere(2)),
    ]
    block = compile_program(marks=Marks(), key=0, rules=rules, lists=["many"])
    classifier = Classifier(Program(block, Lists([packed], [b""])))
    held = set(chosen)
    for number in random.Random(2).sample(range(1 << 24), 3000) + chosen[:3000]:
        address = (number << 8 | 77).to_bytes(4, "big")
        decision = classifier.classify_flow(bytes(4), address, 6)
        assert decision.decision == (1 if number in held else 2)


def test_applications_are_known_by_either_end() -> None:
    taught = [
        Taught("server", THERE, ("video",), 6, 443),
        Taught("client", HERE, ("games",), 17, 6881),
    ]
    rules = [
        ProgramRule("video", everywhere(1), applications=("video",)),
        ProgramRule("games", everywhere(2), applications=("games", "video")),
    ]
    policy = Policy(Marks(), 0, rules, {}, ["video", "games"], taught)
    classifier = Classifier(compiled(policy))
    asked = {
        (6, 1, 443): 1,
        (6, 1, 444): 0,
        (17, 1, 443): 0,
        (17, 6881, 9): 2,
        (17, 6882, 9): 0,
    }
    for (protocol, source_port, port), decision in asked.items():
        found = classifier.classify_flow(HERE, THERE, protocol, source_port, port)
        assert found.decision == decision
    assert classifier.classify_flow(THERE, HERE, 6, 443, 1).reason == "no-rule"


def test_names_of_a_list_are_learned_addresses() -> None:
    """A list of which nothing is known but what was learned, beside one with ranges."""
    lists = {"ranges": [Span(4, 0, 1 << 31)], "names": []}
    rules = [
        ProgramRule("names", everywhere(1), destination=("names",)),
        ProgramRule("ranges", everywhere(2), destination=("ranges",)),
    ]
    taught = [Taught("address", THERE, ("names",))]
    classifier = Classifier(compiled(Policy(Marks(), 0, rules, lists, (), taught)))
    assert classifier.classify_flow(HERE, THERE, 6, 1, 2).decision == 1
    assert classifier.classify_flow(THERE, HERE, 6, 1, 2).decision == 2


def test_lists_outlive_the_programs_that_share_them() -> None:
    """A million prefixes are not built again because a link died."""
    lists = Lists([many_ranges([(0, 255)])], [b""])
    learned = Learned(b"", [])
    rules = [ProgramRule("r", everywhere(1), source=("a",))]
    programs = [
        Program(compile_program(marks=Marks(), key=0, rules=rules[:n], lists=["a"]), lists, learned)
        for n in (0, 1)
    ]
    assert [program.lists for program in programs] == [lists, lists]
    classifier = Classifier(programs.pop())
    del lists, learned, programs
    assert classifier.classify_flow(bytes(4), THERE, 6).decision == 1


def test_actions_may_differ_by_family() -> None:
    slots = Slots(TABLE, Fields.SRC_PORT, symmetric=True)
    policy = Policy(Marks(), 4, [ProgramRule("r", {4: 3, 6: slots})])
    classifier = Classifier(compiled(policy))
    for flow in (Flow(HERE, THERE, 17, 5, 6), Flow(bytes(16), bytes(16), 17, 5, 6)):
        assert tuple(classified(classifier, flow)) == flattened(policy.flow_outcome(flow))
