"""Policies for properties: slot tables, rules and lists, and how two answers are compared."""

from __future__ import annotations

import random
from dataclasses import astuple
from functools import cache
from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from dataplane.config.marks import Marks
from dataplane.config.model import Fields
from dataplane.decide.program import AddressRange, Family, ProgramRule, compile_program
from dataplane.hotpath import Program
from tests.reference import Outcome, Policy

MASKS = [0x7F000000, 0xF0, 0xF, 0xFF00, 0x3F000000, 0xF0000000, 0xFFFFFFFF]
NAMES = ["a", "b", "c"]
FAMILIES: tuple[Family, ...] = (4, 6)

keys = st.one_of(st.sampled_from([0, 1, 2**64 - 1]), st.integers(0, 2**64 - 1))
masks = st.sampled_from(MASKS).map(Marks)


@cache
def table(seed: int, marks: Marks) -> bytes:
    """65,536 legal decisions, no two neighbours alike on purpose."""
    legal = bytes([*range(1, marks.last_link + 1), marks.main, marks.reject])
    return bytes(random.Random(seed).choices(legal, k=65536))


@st.composite
def spans(draw: st.DrawFn) -> AddressRange:
    """Crowded into few addresses, so that lists overlap, touch and nest; both families."""
    family = draw(st.sampled_from(FAMILIES))
    bits = 32 if family == 4 else 128
    edges = st.one_of(
        st.integers(0, 12),
        st.integers(0, 12).map(lambda n: (1 << bits) - 1 - n),
        st.integers(0, 12).map(lambda n: (5 << bits - 16) - 6 + n),  # around an index boundary
        st.integers(0, (1 << bits) - 1),
    )
    first, last = sorted((draw(edges), draw(edges)))
    return AddressRange(family, first, last)


@st.composite
def policies(draw: st.DrawFn, with_lists: bool = True) -> Policy:
    marks = draw(masks)
    legal = [*range(1, marks.last_link + 1), marks.main, marks.reject]
    lists = {name: draw(st.lists(spans(), max_size=6)) for name in NAMES if with_lists}
    named = st.lists(st.sampled_from(NAMES), max_size=2, unique=True) if with_lists else st.just([])
    rules = []
    for number in range(draw(st.integers(0, 4) if with_lists else st.just(1))):
        fixed = draw(st.none() | st.sampled_from(legal)) if with_lists else None
        families: list[Family] = draw(
            st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=2, unique=True)
        )
        rules.append(
            ProgramRule(
                name=f"rule {number}",
                fields=draw(st.sampled_from(list(Fields))),
                symmetric=draw(st.booleans()),
                tables={}
                if fixed
                else {n: table(draw(st.integers(0, 3)), marks) for n in families},
                decision=fixed,
                source=tuple(draw(named)),
                destination=tuple(draw(named)),
            )
        )
    return Policy(marks, draw(keys), rules, lists)


@st.composite
def pair_policies(draw: st.DrawFn) -> Policy:
    """Most routers' policy: the first rule takes every packet and hashes its address pair. A
    family may be without links; rules behind it are never reached."""
    marks = draw(masks)
    families: list[Family] = draw(
        st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=2, unique=True)
    )
    first = ProgramRule("all", tables={n: table(draw(st.integers(0, 3)), marks) for n in families})
    behind = [ProgramRule("behind", decision=1)] * draw(st.integers(0, 1))
    return Policy(marks, draw(keys), [first, *behind], {})


@st.composite
def addresses_of(draw: st.DrawFn, policy: Policy) -> tuple[bytes, bytes]:
    """A pair of one family, on and beside the edges of the policy's ranges more often than not."""
    family = draw(st.sampled_from([4, 6]))
    size, kind = (4, IPv4Address) if family == 4 else (16, IPv6Address)
    edges = {
        (edge + step) % (1 << 8 * size)
        for ranges in policy.lists.values()
        for span in ranges
        if span.family == family
        for edge in (span.first, span.last)
        for step in (-1, 0, 1)
    }
    near = st.sampled_from(sorted(edges)) if edges else st.nothing()
    pick = near | st.integers(0, (1 << 8 * size) - 1)
    return kind(draw(pick)).packed, kind(draw(pick)).packed


def compiled(policy: Policy) -> Program:
    return Program(
        compile_program(marks=policy.marks, key=policy.key, rules=policy.rules, lists=policy.lists)
    )


def flattened(outcome: Outcome) -> tuple[object, ...]:
    """The oracle's answer in the order of Decision's fields."""
    head = (
        outcome.reason,
        outcome.decision,
        outcome.mark,
        outcome.rule,
        outcome.hash,
        outcome.slot,
    )
    return head + (astuple(outcome.flow) if outcome.flow else (b"", b"", 0, 0, 0, False))
