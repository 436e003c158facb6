"""The compiled policy: what the compiler writes means what the oracle says, and the loader in C
trusts nothing."""

from __future__ import annotations

import random
import struct
import sys
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config.marks import Marks
from dataplane.config.model import Fields
from dataplane.decide.program import AddressRange, ProgramRule, compile_program
from dataplane.hotpath import Classifier, Program
from tests.policies import MASKS, addresses_of, compiled, flattened, policies, table
from tests.reference import Flow, Policy

TABLE = table(1, Marks())


@settings(max_examples=150, deadline=None)
@given(policies(), st.data())
def test_rules_and_lists_mean_what_the_oracle_says(policy: Policy, data: st.DataObject) -> None:
    classifier = Classifier(compiled(policy))
    for _ in range(6):
        source, destination = data.draw(addresses_of(policy))
        flow = Flow(source, destination, 17, 5, 7)
        decision = classifier.classify_flow(source, destination, 17, 5, 7, 0x12345678)
        assert tuple(decision) == flattened(policy.flow_outcome(flow, 0x12345678))


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_can_say_every_decision(mask: int) -> None:
    marks = Marks(mask)
    for decision in {1, marks.last_link, marks.main, marks.reject}:
        rules = [ProgramRule("fixed", decision=decision)]
        found = Classifier(compiled(Policy(marks, 0, rules, {}))).classify_flow(
            bytes(4), bytes(4), 6, mark=0xFFFFFFFF
        )
        assert found.decision == decision == marks.decision(found.mark)
        assert found.mark & marks.others == marks.others


@pytest.mark.parametrize("mask", MASKS)
def test_ask_and_nothing_are_no_decisions(mask: int) -> None:
    marks = Marks(mask)
    for wrong in (0, marks.ask, marks.last_link + 1, marks.reject + 1, 255):
        tainted = bytes([1]) * 40000 + bytes([wrong]) + bytes([1]) * 25535
        with pytest.raises(ValueError, match=r"slot table 0, slot 40000: \d+ is not a decision"):
            compiled(Policy(marks, 0, [ProgramRule("bad", tables={4: tainted})], {}))
        if wrong:
            with pytest.raises(ValueError, match=r"rule 0: \d+ is not a decision"):
                compiled(Policy(marks, 0, [ProgramRule("bad", decision=wrong)], {}))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([ProgramRule("r", tables={4: b"\1"})], "a table of 1 bytes"),
        ([ProgramRule("r")], "either tables or a decision"),
        ([ProgramRule("r", decision=1, tables={4: TABLE})], "either tables or a decision"),
        ([ProgramRule("r", decision=1, source=("nowhere",))], "list 'nowhere' does not exist"),
        ([ProgramRule("r", decision=1)] * 4097, "4097 rules"),
    ],
)
def test_what_cannot_be_expressed_is_refused(rules: list[ProgramRule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_program(marks=Marks(), key=0, rules=rules)


@pytest.mark.parametrize(
    "span",
    [AddressRange(4, 5, 4), AddressRange(4, 0, 1 << 32), AddressRange(6, -1, 4)],
)
def test_ranges_that_are_none_are_refused(span: AddressRange) -> None:
    rules = [ProgramRule("r", decision=1, source=("a",))]
    with pytest.raises(ValueError, match="not a range of addresses"):
        compile_program(marks=Marks(), key=0, rules=rules, lists={"a": [span]})


def test_prefixes_become_ranges() -> None:
    assert AddressRange.of(IPv4Network("192.0.2.0/24")) == (4, 0xC0000200, 0xC00002FF)
    assert AddressRange.of(IPv6Network("::/127")) == (6, 0, 1)


def test_compiling_is_pure_and_shares_equal_tables() -> None:
    rules = [ProgramRule(f"r{n}", tables={4: TABLE, 6: TABLE}) for n in range(300)]
    block = compile_program(marks=Marks(), key=3, rules=rules)
    assert block == compile_program(marks=Marks(), key=3, rules=rules)
    assert len(block) < 2 * 65536


def test_hundreds_of_rules_and_lists() -> None:
    """Each list is one prefix; the last list that holds an address has its own rule."""
    names = [f"list {n:03}" for n in range(300)]
    lists = {name: [AddressRange(4, n << 16, (n << 16) + 9)] for n, name in enumerate(names)}
    rules = [
        ProgramRule(name, decision=1 + n % 100, source=(name,)) for n, name in enumerate(names)
    ]
    policy = Policy(Marks(), 0, [*rules, ProgramRule("rest", decision=126)], lists)
    classifier = Classifier(compiled(policy))
    for number in (0, 1, 63, 64, 65, 150, 299, 300):
        for offset in (0, 9, 10):
            source = ((number << 16) + offset).to_bytes(4, "big")
            decision = classifier.classify_flow(source, bytes(4), 6)
            assert tuple(decision) == flattened(policy.flow_outcome(Flow(source, bytes(4), 6)))


def test_many_prefixes() -> None:
    """Searched against a dictionary, since the oracle would take all day."""
    chosen = random.Random(1).sample(range(1 << 24), 20_000)
    lists = {"many": [AddressRange(4, n << 8, (n << 8) + 255) for n in chosen]}
    rules = [
        ProgramRule("many", decision=1, destination=("many",)),
        ProgramRule("rest", decision=2),
    ]
    classifier = Classifier(compiled(Policy(Marks(), 0, rules, lists)))
    held = set(chosen)
    for number in random.Random(2).sample(range(1 << 24), 3000) + chosen[:3000]:
        address = (number << 8 | 77).to_bytes(4, "big")
        decision = classifier.classify_flow(bytes(4), address, 6)
        assert decision.decision == (1 if number in held else 2)


def example_block() -> bytes:
    lists = {
        "a": [AddressRange(4, 5, 900), AddressRange(6, 1 << 100, 1 << 101)],
        "b": [AddressRange(4, 800, 1 << 31)],
    }
    rules = [
        ProgramRule("first", decision=126, source=("a",), destination=("b",)),
        ProgramRule("second", fields=Fields.DST_PORT, symmetric=True, tables={4: TABLE, 6: TABLE}),
    ]
    return compile_program(marks=Marks(), key=11, rules=rules, lists=lists)


BLOCK = example_block()
HEADER = struct.Struct("=IIQQIIII")


def sections() -> list[tuple[int, int]]:
    return [struct.unpack_from("=QQ", BLOCK, HEADER.size + 16 * n) for n in range(9)]


def poked(at: int, value: int, size: int = 4) -> bytes:
    return BLOCK[:at] + value.to_bytes(size, sys.byteorder) + BLOCK[at + size :]


RULES, TABLES, SETS, V4, V4_SETS, V4_INDEX, V6, V6_SETS, V6_INDEX = (at for at, _ in sections())


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"", "0 bytes are less than the header"),
        (BLOCK[:100], "100 bytes are less than the header"),
        (BLOCK[:-1], "the header says"),
        (BLOCK + b"\0", "the header says"),
        (poked(0, 1), "not a program of version 1"),
        (poked(4, 2), "not a program of version 1"),
        (poked(36, 1), "reserved field"),
        (poked(24, 0), "mark mask"),
        (poked(24, 0x05000000), "mark mask"),
        (poked(24, 0x07000000), "mark mask"),
        (poked(28, 23), "mark mask"),
        (poked(32, 0), "sets of 0 words"),
        (poked(32, 65), "sets of 65 words"),
        (poked(40, 1, 8), "section rules: offset 1 "),
        (poked(40, 1 << 63, 8), "section rules: offset"),
        (poked(48, 1 << 60, 8), "section rules: .* do not fit"),
        (poked(48, 5000, 8), "5000 rules"),
        (poked(72, 1 << 61, 8), "section sets: offset"),
        (poked(80, 1 << 61, 8), "section sets: .* do not fit"),
        (poked(80, 0, 8), "section sets: the empty set is missing"),
        (poked(RULES, 7), "rule 0: slot table 7 of 1"),
        (poked(RULES + 8, 9), "rule 0: sets 9 and"),
        (poked(RULES + 16, 9, 1), "rule 0: fields 9"),
        (poked(RULES + 17, 2, 1), "rule 0: .*symmetric 2"),
        (poked(RULES + 18, 125, 1), "rule 0: 125 is not a decision"),
        (poked(RULES + 25, 1, 1), "rule 0: a reserved byte"),
        (poked(TABLES, 0, 1), "slot table 0, slot 0: 0 is not a decision"),
        (poked(SETS, 1, 8), "set 0 is not empty"),
        (poked(V4, 1), "v4 ranges: the first one does not start at 0"),
        (poked(V4 + 4, 0), "v4 range 1 does not come after"),
        (poked(V4_SETS + 4, 99), "v4 range 1: set 99"),
        (poked(V4_INDEX, 1), "v4 index: entry 0 is wrong"),
        (poked(V4_INDEX + 4, 0xFFFFFFFF), "v4 index: entry 1 is wrong"),
        (poked(V4_INDEX + 4 * 65536, 0), "v4 index: it does not end"),
        (poked(V6 + 8, 1, 8), "v6 ranges: the first one does not start at 0"),
        (poked(V6_SETS, 99), "v6 range 0: set 99"),
        (poked(V6_INDEX + 8, 3), "v6 index: entry 2 is wrong"),
    ],
)
def test_a_block_that_lies_is_refused_with_words(block: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"program block: .*({message})"):
        Program(block)


INTERESTING = sorted(
    {
        *range(0, 256),
        *(start + step for start, _ in sections() for step in range(24)),
        *range(TABLES - 64, TABLES),
    }
)


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.sampled_from(INTERESTING), st.integers(0, 255)), min_size=1, max_size=4)
)
def test_a_mutated_block_is_refused_or_safe(changes: list[tuple[int, int]]) -> None:
    block = bytearray(BLOCK)
    for at, value in changes:
        block[at] = value
    try:
        program = Program(block)
    except ValueError:
        return
    classifier = Classifier(program)
    for address in (bytes(4), b"\xff" * 4, b"\0\0\3\x20", bytes(16), b"\xff" * 16):
        decision = classifier.classify_flow(address, address, 6, 1, 2, 3)
        assert decision.reason in ("decided", "no-rule", "no-links")


def test_the_block_is_copied() -> None:
    block = bytearray(BLOCK)
    program = Program(block)
    before = Classifier(program).classify_flow(bytes(4), bytes(4), 6)
    block[:] = bytes(len(block))
    assert Classifier(program).classify_flow(bytes(4), bytes(4), 6) == before


def test_serials_rise() -> None:
    first, second = Program(BLOCK), Program(BLOCK)
    assert second.serial > first.serial
    assert (first.size, first.rules) == (len(BLOCK), 2)
