"""The compiled policy as a block of bytes: what cannot be expressed is refused, and the loader in C
trusts nothing. What the rules mean is in test_matching.py and test_methods.py."""

from __future__ import annotations

import random
import struct
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config.marks import Marks
from dataplane.config.model import Fields, Ports, Sticky
from dataplane.decide.program import Draw, ProgramRule, Slots, compile_program, everywhere
from dataplane.hotpath import Classifier, Learned, Lists, Program
from tests.policies import MASKS, block_of, compiled, flow_of, learned_of, lists_of, table
from tests.reference import Policy, Span, Taught

TABLE = table(1, Marks())


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_can_say_every_decision(mask: int) -> None:
    marks = Marks(mask)
    for decision in {1, marks.last_link, marks.main, marks.reject}:
        rules = [ProgramRule("fixed", everywhere(decision))]
        found = Classifier(compiled(Policy(marks, 0, rules))).classify_flow(
            bytes(4), bytes(4), 6, mark=0xFFFFFFFF
        )
        assert found.decision == decision == marks.decision(found.mark)
        assert found.mark & marks.others == marks.others


@pytest.mark.parametrize("mask", MASKS)
def test_ask_and_nothing_are_no_decisions(mask: int) -> None:
    marks = Marks(mask)
    for wrong in (0, marks.ask, marks.last_link + 1, marks.reject + 1, 255):
        tainted = bytes([1]) * 40000 + bytes([wrong]) + bytes([1]) * 25535
        for action, message in (
            (Slots(tainted), r"slot table 0, slot 40000: \d+ is not a decision"),
            (wrong, r"rule 0: \d+ is not a decision"),
            (Draw("nth", {1: 1, wrong: 1}), r"link \d: weight 1 for \d+"),
        ):
            with pytest.raises(ValueError, match=message):
                compiled(Policy(marks, 0, [ProgramRule("bad", everywhere(action))]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"actions": {4: Slots(b"\1")}}, "a table of 1 bytes"),
        ({"source": ("nowhere",)}, "list 'nowhere' does not exist"),
        ({"destination": ("nowhere",)}, "list 'nowhere' does not exist"),
        ({"applications": ("nothing",)}, "application 'nothing' does not exist"),
        ({"interfaces": (-1,)}, "interface -1"),
        ({"protocols": (256,)}, "protocol 256: legal are 0 to 255"),
        ({"dscp": (64,)}, "dscp 64: legal are 0 to 63"),
        ({"source_ports": (Ports(5, 4),)}, "ports 5 to 4"),
        ({"destination_ports": (Ports(0, 65536),)}, "ports 0 to 65536"),
        ({"actions": {4: Draw("nth", {})}}, "nothing to draw from"),
        ({"actions": {4: Draw("nth", {1: 0})}}, "weight 0"),
        ({"actions": {4: Draw("random", {1: 2**40 + 1})}}, "weight 1099511627777"),
        ({"sticky": Sticky.PAIR, "sticky_ms": 0}, "sticky for 0 ms"),
        ({"sticky": Sticky.PAIR, "sticky_ms": 2**31}, "sticky for 2147483648 ms"),
    ],
)
def test_what_cannot_be_expressed_is_refused(asked: dict[str, Any], message: str) -> None:
    rule = ProgramRule(**{"name": "r", "actions": everywhere(1), **asked})
    with pytest.raises(ValueError, match=f"rule 'r': {message}"):
        compile_program(marks=Marks(), key=0, rules=[rule])


def test_there_are_at_most_4096_rules_and_lists() -> None:
    rule = ProgramRule("r", everywhere(1))
    with pytest.raises(ValueError, match="4097 rules"):
        compile_program(marks=Marks(), key=0, rules=[rule] * 4097)
    with pytest.raises(ValueError, match="4097 lists"):
        compile_program(marks=Marks(), key=0, rules=[], lists=[str(n) for n in range(4097)])


def test_compiling_is_pure_and_shares_equal_tables() -> None:
    rules = [ProgramRule(f"r{n}", everywhere(Slots(TABLE))) for n in range(300)]
    block = compile_program(marks=Marks(), key=3, rules=rules)
    assert block == compile_program(marks=Marks(), key=3, rules=rules)
    assert len(block) < 2 * 65536


def test_a_million_prefixes_are_not_in_the_block() -> None:
    """What is compiled whenever a link dies does not grow with the lists."""
    rules = [ProgramRule("r", everywhere(1), source=("a",))]
    assert len(compile_program(marks=Marks(), key=3, rules=rules, lists=["a"])) < 2048


EXAMPLE = Policy(
    Marks(),
    11,
    [
        ProgramRule(
            "first",
            everywhere(126),
            interfaces=(5, 9),
            source=("a",),
            destination=("b",),
            protocols=(6,),
            source_ports=(Ports(7, 9),),
            destination_ports=(Ports(443, 443),),
            dscp=(46,),
            applications=("video",),
        ),
        ProgramRule(
            "second",
            {4: Slots(TABLE, Fields.DST_PORT, symmetric=True), 6: Draw("nth", {1: 3, 2: 4})},
        ),
    ],
    {
        "a": [Span(4, 5, 900), Span(6, 1 << 100, 1 << 101)],
        "b": [Span(4, 800, 1 << 31)],
    },
    ["video"],
    [Taught("address", bytes(4), ("a",)), Taught("server", bytes(16), ("video",), 6, 443)],
)
BLOCK = block_of(EXAMPLE)
LISTS, LEARNED = lists_of(EXAMPLE), learned_of(EXAMPLE)
DIRECTORY = 80


def loaded(block: bytes | bytearray) -> Program:
    return Program(block, LISTS, LEARNED)


def sections() -> list[tuple[int, int]]:
    return [struct.unpack_from("=QQ", BLOCK, DIRECTORY + 16 * n) for n in range(13)]


def poked(at: int, value: int, size: int = 4) -> bytes:
    return BLOCK[:at] + value.to_bytes(size, sys.byteorder) + BLOCK[at + size :]


(
    RULES,
    TABLES,
    DRAWINGS,
    LINKS,
    VECTORS,
    INTERFACES,
    PROTOCOLS,
    DSCP,
    SOURCE_PORTS,
    DESTINATION_PORTS,
    SOURCES,
    DESTINATIONS,
    APPLICATIONS,
) = (at for at, _ in sections())
VECTOR_COUNT = sections()[4][1]


def directory(section: int, field: int = 8) -> int:
    """Where a section's offset or, by default, its count stands."""
    return DIRECTORY + 16 * section + field


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (b"", "0 bytes are less than the header"),
        (BLOCK[:100], "100 bytes are less than the header"),
        (BLOCK[:-1], "the header says"),
        (BLOCK + b"\0", "the header says"),
        (poked(0, 1), "not a program of version 2"),
        (poked(4, 1), "not a program of version 2"),
        (poked(24, 0), "mark mask"),
        (poked(24, 0x05000000), "mark mask"),
        (poked(24, 0x07000000), "mark mask"),
        (poked(28, 23), "mark mask"),
        (poked(32, 0), "vectors of 0 words for 2 rules"),
        (poked(32, 65), "vectors of 65 words, legal are 0 to 64"),
        (poked(36, 4097), "4097 lists"),
        (poked(36, 1), "sources: 2 entries instead of 1"),
        (poked(40, 65536), "65536 applications"),
        (poked(40, 2), "applications: 1 entries instead of 2"),
        (poked(44, 0), "family: rules say themselves"),
        (poked(48, 99), "interfaces: vector 99"),
        (poked(48, 0xFFFFFFFF), "interfaces: 2 entries, and no rule has the condition"),
        (poked(76, 0xFFFFFFFF), "applications: 1 entries, and no rule"),
        (poked(directory(0, 0), 1, 8), "section rules: offset 1 "),
        (poked(directory(0, 0), 1 << 63, 8), "section rules: offset"),
        (poked(directory(0), 5000, 8), "section rules: 5000 entries, legal are 0 to 4096"),
        (poked(directory(0), 4096, 8), "section rules: 4096 entries do not fit"),
        (poked(directory(0), 65, 8), "vectors of 1 words for 65 rules|do not fit"),
        (poked(directory(1), 1 << 61, 8), "section tables: .* legal are"),
        (poked(directory(2), 8193, 8), "section drawings: .* legal are"),
        (poked(directory(2), 0, 8), "rule 1: drawing 0 of 0"),
        (poked(directory(4), 1 << 61, 8), "section vectors: .* legal are"),
        (poked(directory(4), 1, 8), "vector [0-9]+ of 1"),
        (poked(directory(6), 255, 8), "protocols: 255 entries instead of 256"),
        (poked(directory(8), 0, 8), "source ports: they do not begin at 0"),
        (poked(RULES + 16, 1), "rule 0: drawing 1 of 1"),
        (poked(RULES + 20, 5, 1), "rule 0: action 5"),
        (poked(RULES + 20, 0, 1), "rule 0: 126 is not a decision"),
        (poked(RULES + 21, 125, 1), "rule 0: 125 is not a decision"),
        (poked(RULES + 22, 9, 1), "rule 0: fields 9"),
        (poked(RULES + 23, 2, 1), "rule 0: .*symmetric 2"),
        (poked(RULES + 24, 1, 8), "rule 0: a reserved field"),
        (poked(RULES, 1, 1), "rule 0: it allows 0"),
        (poked(RULES + 8 + 7, 0xA0, 1), "rule 0: it allows 125"),
        (poked(RULES + 72, 1 << 31), "rule 0: sticky 0 for 2147483648 ms"),
        (poked(RULES + 76, 3, 1), "rule 0: sticky 3"),
        (poked(RULES + 77, 2, 1), "rule 0: .*remember 2"),
        (poked(RULES + 127, 1, 1), "rule 0: a reserved field"),
        (poked(RULES + 128 + 16, 1), "rule 1: slot table 1 of 1"),
        (poked(TABLES, 0, 1), "slot table 0, slot 0: 0 is not a decision"),
        (poked(DRAWINGS + 8, 1), "drawing 0: links 1 and 2 more of 2"),
        (poked(DRAWINGS + 8, 0xFFFFFFFF), "drawing 0: links"),
        (poked(DRAWINGS + 12, 0), "drawing 0: links 0 and 0"),
        (poked(DRAWINGS + 12, 129), "drawing 0: links 0 and 129"),
        (poked(DRAWINGS + 16, 8192), "drawing 0: turn 8192 of 8192"),
        (poked(DRAWINGS + 20, 1), "drawing 0: turn"),
        (poked(LINKS, 0, 8), "link 0: weight 0"),
        (poked(LINKS, (1 << 40) + 1, 8), "link 0: weight 1099511627777"),
        (poked(LINKS + 8, 125, 1), "link 0: weight 3 for 125"),
        (poked(VECTORS, 7, 8), "vector 0: it holds rules that do not exist"),
        (poked(INTERFACES + 8, 5), "interfaces, entry 1 does not come after"),
        (poked(INTERFACES + 4, VECTOR_COUNT), "interfaces, entry 0: vector"),
        (poked(PROTOCOLS + 4 * 255, 99), "protocols, entry 255: vector 99"),
        (poked(DSCP, 99), "dscp, entry 0: vector 99"),
        (poked(SOURCE_PORTS, 1), "source ports: they do not begin at 0"),
        (poked(DESTINATION_PORTS + 8, 0), "destination ports, entry 1 does not come after"),
        (poked(SOURCES + 4, 99), "sources, entry 1: vector 99"),
        (poked(DESTINATIONS, 99), "destinations, entry 0: vector 99"),
        (poked(APPLICATIONS, 99), "applications, entry 0: vector 99"),
    ],
)
def test_a_block_that_lies_is_refused_with_words(block: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"program block: .*({message})"):
        loaded(block)


def test_lists_and_what_was_learned_have_to_belong_to_the_block() -> None:
    with pytest.raises(ValueError, match="it speaks of 2 lists, 0 were given"):
        Program(BLOCK)
    with pytest.raises(ValueError, match="it speaks of 2 lists, 1 were given"):
        Program(BLOCK, Lists([b""], [b""]), LEARNED)
    with pytest.raises(ValueError, match="it has 3 members, something was learned of member 3"):
        Program(BLOCK, LISTS, Learned(b"", [[0, 2], [3]]))
    Program(BLOCK, LISTS)
    with pytest.raises(ValueError, match="it speaks of 0 lists, 2 were given"):
        Program(compile_program(marks=Marks(), key=0, rules=[]), LISTS)


INTERESTING = sorted(
    {
        *range(288),
        *(start + step for start, _ in sections() for step in range(40)),
        *range(RULES, RULES + 256),
        *range(TABLES - 64, TABLES),
        *range(VECTORS, VECTORS + 8 * VECTOR_COUNT),
    }
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(INTERESTING), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 2**32),
)
def test_a_mutated_block_is_refused_or_safe(changes: list[tuple[int, int]], seed: int) -> None:
    block = bytearray(BLOCK)
    for at, value in changes:
        block[at] = value
    try:
        program = loaded(block)
    except ValueError:
        return
    classifier, chance = Classifier(program), random.Random(seed)
    for _ in range(10):
        flow = flow_of(EXAMPLE, chance)
        decision = classifier.classify_flow(
            flow.source,
            flow.destination,
            flow.protocol,
            flow.source_port,
            flow.destination_port,
            dscp=flow.dscp,
            interface=flow.interface,
        )
        assert decision.reason in ("decided", "no-rule")
        assert (decision.decision == 0) == (decision.reason == "no-rule")


def test_the_block_is_copied() -> None:
    block = bytearray(BLOCK)
    program = loaded(block)
    before = Classifier(program).classify_flow(bytes(4), bytes(4), 6)
    block[:] = bytes(len(block))
    assert Classifier(program).classify_flow(bytes(4), bytes(4), 6) == before


def test_serials_rise() -> None:
    first, second = loaded(BLOCK), loaded(BLOCK)
    assert second.serial > first.serial
    assert (first.size, first.rules) == (len(BLOCK), 2)


@pytest.mark.parametrize(
    ("ranges4", "ranges6", "message"),
    [
        ([b""], [], "as many of both"),
        ([bytes(7)], [b""], "7 bytes are no ranges of 8"),
        ([b""], [bytes(16)], "16 bytes are no ranges of 32"),
        ([struct.pack("=II", 2, 1)], [b""], "list 0"),
        ([b""], [struct.pack("=QQQQ", 1, 0, 0, 9)], "list 0"),
    ],
)
def test_ranges_that_are_none_are_refused(
    ranges4: list[bytes], ranges6: list[bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Lists(ranges4, ranges6)


@pytest.mark.parametrize(
    ("entries", "sets"),
    [(bytes(27), []), (bytes(28), []), (struct.pack("=BBBxHxxI16s", 0, 4, 0, 0, 2, b""), [[1]])],
)
def test_entries_that_are_none_are_refused(entries: bytes, sets: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="entr"):
        Learned(entries, sets)


def test_what_lists_and_learned_take() -> None:
    assert (LISTS.count, LEARNED.count) == (2, 2)
    assert LISTS.size > 100
    assert LEARNED.size > 100
