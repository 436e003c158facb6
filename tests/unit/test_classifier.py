"""Packet -> decision: C and the oracle agree on reason, flow, hash, slot, rule and mark."""

from __future__ import annotations

import random
import threading
from array import array
from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from dataplane.config.marks import Marks
from dataplane.config.model import Fields, Ports
from dataplane.decide.program import Family, ProgramRule, Slots, everywhere
from dataplane.hotpath import REASONS, Classifier
from tests import packets
from tests.policies import compiled, flattened, pair_policies, policies, table
from tests.reference import Policy, Span

TABLE = table(1, Marks())


def policy(fields: Fields = Fields.BOTH_ADDRESSES, symmetric: bool = False, key: int = 9) -> Policy:
    rule = ProgramRule("all", everywhere(Slots(TABLE, fields, symmetric)))
    return Policy(Marks(), key, [rule])


marks = st.integers(0, 2**32 - 1)


@settings(max_examples=300, deadline=None)
@given(policies(conditions=False), st.lists(packets.anything, min_size=1, max_size=8), marks)
def test_c_and_oracle_decide_alike(policy: Policy, packets: list[bytes], mark: int) -> None:
    classifier = Classifier(compiled(policy))
    for packet in packets:
        expected = policy.outcome(packet, mark)
        assert tuple(classifier.classify(packet, mark)) == flattened(expected)
        assert classifier.mark(packet, mark) == expected.mark
        if expected.flow and not expected.flow.fragment:
            flow = expected.flow
            again = classifier.classify_flow(
                flow.source,
                flow.destination,
                flow.protocol,
                flow.source_port,
                flow.destination_port,
                mark,
                dscp=flow.dscp,
            )
            assert tuple(again) == flattened(expected)


@settings(max_examples=100, deadline=None)
@given(
    policies(conditions=False), st.lists(st.tuples(packets.anything, marks)), st.sampled_from("IQ")
)
def test_a_batch_decides_as_single_packets_do(
    policy: Policy, queued: list[tuple[bytes, int]], width: str
) -> None:
    single, batch = Classifier(compiled(policy)), Classifier(compiled(policy))
    expected = [single.mark(packet, mark) for packet, mark in queued]
    offsets = array(width, accumulate((len(packet) for packet, _ in queued), initial=0))
    found = array("I", (mark for _, mark in queued))
    decided = batch.classify_batch(b"".join(packet for packet, _ in queued), offsets, found)
    assert found.tolist() == expected
    assert batch.counters() == single.counters()
    assert decided == batch.reasons()["decided"]


@settings(max_examples=300, deadline=None)
@given(
    pair_policies(),
    st.lists(st.tuples(st.one_of(packets.well_formed, packets.anything), marks)),
    st.sampled_from("IQ"),
)
def test_a_batch_decides_as_the_oracle_does(
    policy: Policy, queued: list[tuple[bytes, int]], width: str
) -> None:
    """Policies whose batches hash the address pair out of the packet, where it is plain."""
    assert_batch_decides(policy, queued, width)


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)])
def test_a_batch_goes_no_short_way_with_packets_that_lie(families: tuple[Family, ...]) -> None:
    rule = ProgramRule("all", dict.fromkeys(families, Slots(TABLE)))
    assert_batch_decides(
        Policy(Marks(), 9, [rule]), [(packet, 0) for packet in packets.edges()], "I"
    )


HALF = [Span(4, 0, 1 << 31), Span(6, 0, 1 << 127)]
PAIRS = everywhere(Slots(TABLE))


@pytest.mark.parametrize(
    "first",
    [
        *(
            ProgramRule(f"fields {fields}", everywhere(Slots(TABLE, fields)))
            for fields in Fields
            if fields is not Fields.BOTH_ADDRESSES
        ),
        ProgramRule("symmetric", everywhere(Slots(TABLE, symmetric=True))),
        ProgramRule("from half", PAIRS, source=("half",)),
        ProgramRule("to half", PAIRS, destination=("half",)),
        ProgramRule("by an interface", PAIRS, interfaces=(7,)),
        ProgramRule("udp", PAIRS, protocols=(17,)),
        ProgramRule("from some ports", PAIRS, source_ports=(Ports(0, 30000),)),
        ProgramRule("to some ports", PAIRS, destination_ports=(Ports(0, 30000),)),
        ProgramRule("dscp", PAIRS, dscp=(0,)),
        ProgramRule("application", PAIRS, applications=("video",)),
        ProgramRule("fixed", everywhere(5)),
    ],
    ids=lambda rule: str(rule.name),
)
def test_a_batch_goes_no_short_way_where_the_first_rule_asks_for_more(first: ProgramRule) -> None:
    rules = [first, ProgramRule("rest", everywhere(6))]
    policy = Policy(Marks(), 9, rules, {"half": HALF}, ["video"])
    any_ = random.Random(1)
    plain = [b"\x45\0\0\x1c" + any_.randbytes(24) for _ in range(40)]
    plain += [b"\x60\0\0\0\0\x08\x11\x40" + any_.randbytes(40) for _ in range(40)]
    assert_batch_decides(policy, [(packet, 0) for packet in plain], "Q")


def assert_batch_decides(policy: Policy, queued: list[tuple[bytes, int]], width: str) -> None:
    """Marks and counters of one batch are the oracle's."""
    classifier = Classifier(compiled(policy))
    outcomes = [policy.outcome(packet, mark) for packet, mark in queued]
    offsets = array(width, accumulate((len(packet) for packet, _ in queued), initial=0))
    found = array("I", (mark for _, mark in queued))
    classifier.classify_batch(b"".join(packet for packet, _ in queued), offsets, found)
    assert found.tolist() == [outcome.mark for outcome in outcomes]
    decided = [outcome for outcome in outcomes if outcome.reason == "decided"]
    reasons = dict.fromkeys(REASONS, 0) | Counter(outcome.reason for outcome in outcomes)
    assert classifier.counters() == {
        "reasons": reasons,
        "decisions": Counter(outcome.decision for outcome in decided),
        "rules": Counter(outcome.rule for outcome in decided),
    }


@pytest.mark.parametrize("fields", Fields)
@pytest.mark.parametrize("version", [4, 6])
def test_symmetric_directions_agree(fields: Fields, version: int) -> None:
    """Both directions of a connection get one slot, whichever fields are hashed."""
    classifier = Classifier(compiled(policy(fields, symmetric=True)))
    ends = [("192.0.2.1", 1), ("198.51.100.2", 2)]
    if version == 6:
        ends = [("2001:db8::1", 1), ("2001:db8::2", 2)]
    network = IP if version == 4 else IPv6
    slots = {
        classifier.classify(bytes(network(src=a, dst=b) / UDP(sport=p, dport=q))).hash
        for (a, p), (b, q) in (ends, ends[::-1])
    }
    assert len(slots) == 1


def test_equal_addresses_are_ordered_by_port() -> None:
    classifier = Classifier(compiled(policy(Fields.SRC_PORT, symmetric=True)))
    pair = [
        classifier.classify_flow(b"\1" * 4, b"\1" * 4, 17, *ports).hash
        for ports in ((1, 2), (2, 1))
    ]
    assert pair[0] == pair[1]


def test_ports_of_a_protocol_without_ports_count_as_zero() -> None:
    classifier = Classifier(compiled(policy(Fields.BOTH_ADDRESSES_AND_PORTS)))
    icmp = classifier.classify(bytes(IP(src="192.0.2.1", dst="192.0.2.2") / ICMP(id=7)))
    bare = classifier.classify_flow(icmp.source, icmp.destination, 1, 5, 6)
    assert (icmp.source_port, icmp.destination_port) == (0, 0)
    assert bare.hash == icmp.hash


def test_only_our_bits_of_the_mark_change() -> None:
    classifier = Classifier(compiled(policy()))
    decision = classifier.classify(bytes(IP(dst="192.0.2.1") / TCP()), 0xFD00_BEEF)
    assert decision.mark & ~0x7F000000 == 0x8000BEEF
    assert (decision.mark & 0x7F000000) >> 24 == decision.decision
    assert classifier.classify(b"", 0xFD00_BEEF).mark == 0xFD00_BEEF


def test_a_family_without_an_action_is_not_decided() -> None:
    rule = ProgramRule("four", {4: Slots(TABLE)})
    classifier = Classifier(compiled(Policy(Marks(), 0, [rule])))
    decision = classifier.classify(bytes(IPv6(dst="2001:db8::1") / TCP()), 5)
    assert (decision.reason, decision.rule, decision.mark) == ("no-rule", -1, 5)


def test_a_swapped_program_decides_and_counters_stay() -> None:
    classifier = Classifier(compiled(policy()))
    packet = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / TCP())
    classifier.classify(packet)
    fixed = compiled(Policy(Marks(), 0, [ProgramRule("main", everywhere(126))]))
    classifier.swap(fixed)
    assert classifier.program is fixed
    assert classifier.classify(packet).decision == 126
    assert classifier.counters()["rules"] == {0: 2}


def test_counters_name_every_reason() -> None:
    assert tuple(Classifier(compiled(policy())).reasons()) == REASONS
    assert REASONS[0] == "decided"


@pytest.mark.parametrize(
    ("offsets", "marks"),
    [([], 0), ([0], 1), ([0, 4], 2), ([0, 9], 1), ([0, 5, 4], 2), ([9, 9], 1), ([4, 0], 1)],
)
@pytest.mark.parametrize("width", "IQ")
def test_offsets_that_lie_are_refused(offsets: list[int], marks: int, width: str) -> None:
    found = array("I", [7] * marks)
    classifier = Classifier(compiled(policy()))
    with pytest.raises(ValueError, match="offset"):
        classifier.classify_batch(bytes(8), array(width, offsets), found)
    assert set(found) <= {7}
    assert sum(classifier.reasons().values()) == 0


def test_empty_batches_and_empty_packets() -> None:
    classifier = Classifier(compiled(policy()))
    assert classifier.classify_batch(b"", array("I", [0]), array("I")) == 0
    assert classifier.classify_batch(b"", array("Q", [0, 0, 0]), array("I", [1, 2])) == 0
    assert classifier.reasons()["short-header"] == 2


@pytest.mark.parametrize(("source", "destination"), [(3, 4), (4, 16), (16, 4), (0, 0), (17, 17)])
def test_addresses_of_wrong_length_are_refused(source: int, destination: int) -> None:
    with pytest.raises(ValueError, match="4 or 16"):
        Classifier(compiled(policy())).classify_flow(bytes(source), bytes(destination), 6)


def test_batches_run_without_the_gil() -> None:
    """Another thread's Python goes on while a long batch is decided."""
    classifier = Classifier(compiled(policy()))
    packet = bytes(IP(src="192.0.2.1", dst="192.0.2.2") / UDP())
    count = 300_000
    offsets = array("I", range(0, len(packet) * (count + 1), len(packet)))
    ran = threading.Event()
    done = threading.Event()
    steps = 0

    def step() -> None:
        nonlocal steps
        ran.wait()
        while not done.is_set():
            steps += 1

    thread = threading.Thread(target=step)
    thread.start()
    ran.set()
    for _ in range(20):
        assert (
            classifier.classify_batch(packet * count, offsets, array("I", bytes(4 * count)))
            == count
        )
    done.set()
    thread.join()
    assert steps > 0
