"""Policies for properties: rules of every kind, what they speak of, and flows on and beside their
edges; and how two answers are compared."""

from __future__ import annotations

import random
import struct
from array import array
from dataclasses import astuple
from functools import cache
from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from dataplane.config.marks import Marks
from dataplane.config.model import Addresses, Fields, Ports, Sticky
from dataplane.decide.program import (
    Action,
    Draw,
    Family,
    ProgramRule,
    Slots,
    compile_program,
    everywhere,
)
from dataplane.hotpath import Learned, Lists, Program
from tests.reference import Flow, Outcome, Policy, Span, Taught

MASKS = [0x7F000000, 0xF0, 0xF, 0xFF00, 0x3F000000, 0xF0000000, 0xFFFFFFFF]
NAMES = ["a", "b", "c"]
APPLICATIONS = ["video", "games"]
FAMILIES: tuple[Family, ...] = (4, 6)
PROTOCOLS = [1, 6, 17, 33, 58, 132, 136, 255]
INTERFACES = [1, 2, 3, 4_000_000_000]
KINDS = {"address": 0, "server": 1, "client": 2}

keys = st.one_of(st.sampled_from([0, 1, 2**64 - 1]), st.integers(0, 2**64 - 1))
masks = st.sampled_from(MASKS).map(Marks)
ports = st.one_of(st.sampled_from([0, 1, 53, 443, 65534, 65535]), st.integers(0, 65535))
# A few, so that what is learned is met.
addresses = st.tuples(st.sampled_from([4, 16]), st.integers(1, 4)).map(
    lambda drawn: bytes([10, *bytes(drawn[0] - 2), drawn[1]])
)


@cache
def table(seed: int, marks: Marks) -> bytes:
    """65,536 legal decisions, no two neighbours alike on purpose."""
    return bytes(random.Random(seed).choices(legal(marks), k=65536))


def legal(marks: Marks) -> bytes:
    """Every decision that there is."""
    return bytes([*range(1, marks.last_link + 1), marks.main, marks.reject])


@st.composite
def spans(draw: st.DrawFn) -> Span:
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
    return Span(family, first, last)


@st.composite
def taught(draw: st.DrawFn) -> list[Taught]:
    """Of each address and endpoint once."""
    found = {}
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["address", "server", "client"]))
        address = draw(addresses)
        bare = kind == "address"
        known = (*NAMES, *APPLICATIONS) if bare else APPLICATIONS
        members = tuple(draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True)))
        protocol = 0 if bare else draw(st.sampled_from([6, 17, 1]))
        port = 0 if bare else draw(st.sampled_from([0, 53, 443]))
        found[kind, address, protocol, port] = Taught(kind, address, members, protocol, port)
    return list(found.values())


@st.composite
def actions(draw: st.DrawFn, marks: Marks, draws: bool) -> Action:
    kind = draw(st.sampled_from(["slots", "slots", "fixed", "draw"] if draws else ["slots"]))
    decisions = st.sampled_from(legal(marks))
    if kind == "fixed":
        return draw(decisions)
    if kind == "draw":
        weights = st.dictionaries(decisions, st.integers(1, 9), min_size=1, max_size=4)
        return Draw(draw(st.sampled_from(["nth", "random"])), draw(weights))
    return Slots(
        table(draw(st.integers(0, 3)), marks), draw(st.sampled_from(list(Fields))), draw(booleans)
    )


booleans = st.booleans()


def _some(values: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    """Mostly none: a rule with every condition matches nothing."""
    return st.one_of(st.just(()), st.just(()), st.lists(values, min_size=1, max_size=3).map(tuple))


_ranges = st.tuples(ports, ports).map(lambda ends: Ports(min(ends), max(ends)))


@st.composite
def rules(draw: st.DrawFn, marks: Marks, number: int) -> ProgramRule:
    families: list[Family] = draw(
        st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=2, unique=True)
    )
    return ProgramRule(
        name=f"rule {number}",
        actions={family: draw(actions(marks, draws=True)) for family in families},
        interfaces=draw(_some(st.sampled_from([0, *INTERFACES]))),
        source=draw(_some(st.sampled_from(NAMES))),
        destination=draw(_some(st.sampled_from(NAMES))),
        protocols=draw(_some(st.sampled_from(PROTOCOLS))),
        source_ports=draw(_some(_ranges)),
        destination_ports=draw(_some(_ranges)),
        dscp=draw(_some(st.sampled_from([0, 8, 46, 63]))),
        applications=draw(_some(st.sampled_from(APPLICATIONS))),
    )


@st.composite
def policies(draw: st.DrawFn, conditions: bool = True) -> Policy:
    """Without conditions: one rule that hashes, for one family or both."""
    marks = draw(masks)
    if not conditions:
        families: list[Family] = draw(
            st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=2, unique=True)
        )
        rule = ProgramRule(
            "all", {family: draw(actions(marks, draws=False)) for family in families}
        )
        return Policy(marks, draw(keys), [rule])
    lists = {name: draw(st.lists(spans(), max_size=4)) for name in NAMES}
    drawn = [draw(rules(marks, number)) for number in range(draw(st.integers(0, 6)))]
    # Rules that never match fill words of the vectors.
    idle = [ProgramRule("idle", everywhere(1), interfaces=(0,))]
    drawn = idle * draw(st.sampled_from([0, 0, 0, 63, 64, 130])) + drawn
    return Policy(marks, draw(keys), drawn, lists, APPLICATIONS, draw(taught()))


@st.composite
def remembering(draw: st.DrawFn, marks: Marks) -> Policy:
    """Two or three rules by protocol that remember, or are sticky, or both; two groups."""
    groups = ["one", "two"]
    drawn = []
    for number, protocol in enumerate(draw(st.sampled_from([(6, 17), (6, 17, 1), (17, 6)]))):
        families = {family: draw(actions(marks, draws=True)) for family in FAMILIES}
        sticky = draw(st.sampled_from([None, Sticky.PAIR, Sticky.SOURCE]))
        drawn.append(
            ProgramRule(
                f"rule {number}",
                families,
                protocols=(protocol,),
                group=draw(st.sampled_from(groups)),
                remember=draw(booleans),
                sticky=sticky,
                sticky_ms=draw(st.sampled_from([1, 500, 2500, 600_000])),
                allowed=draw(
                    st.just({})
                    | st.fixed_dictionaries({4: st.sets(st.sampled_from(legal(marks)), max_size=4)})
                ),
            )
        )
    return Policy(marks, draw(keys), drawn)


@st.composite
def pair_policies(draw: st.DrawFn) -> Policy:
    """Most routers' policy: the first rule that is live takes every packet and hashes its address
    pair. A family may be without links, or have a rule of its own; rules behind are not reached."""
    marks = draw(masks)
    families: list[Family] = draw(
        st.lists(st.sampled_from(FAMILIES), min_size=1, max_size=2, unique=True)
    )
    found = [ProgramRule("dead", {})] * draw(st.integers(0, 1))
    for family in families:
        found.append(ProgramRule("all", {family: Slots(table(draw(st.integers(0, 3)), marks))}))
    found += [ProgramRule("behind", everywhere(1))] * draw(st.integers(0, 1))
    return Policy(marks, draw(keys), found)


def flow_of(policy: Policy, chance: random.Random) -> Flow:
    """On and beside the edges of what the policy speaks of more often than not."""
    family: Family = chance.choice(FAMILIES)
    interfaces = [0, *INTERFACES, 9]
    source, destination = (_address(policy, family, chance) for _ in range(2))
    protocol = chance.choice([*PROTOCOLS, chance.randrange(256)])
    ranges = [
        each for rule in policy.rules for each in (*rule.source_ports, *rule.destination_ports)
    ]
    edges = [53, 443, 0, 65535, *(edge for each in ranges for edge in each)]
    ends = [
        min(max(chance.choice(edges) + chance.choice([0, 0, -1, 1]), 0), 65535) for _ in range(2)
    ]
    if protocol not in (6, 17, 33, 132, 136):
        ends = [0, 0]
    return Flow(
        source,
        destination,
        protocol,
        *ends,
        dscp=chance.choice([0, 8, 46, 63, chance.randrange(64)]),
        interface=chance.choice(interfaces),
    )


def _address(policy: Policy, family: Family, chance: random.Random) -> bytes:
    size = 4 if family == 4 else 16
    known = [each.address for each in policy.taught if len(each.address) == size]
    edges = [
        edge + step
        for ranges in policy.lists.values()
        for span in ranges
        if span.family == family
        for edge in (span.first, span.last)
        for step in (-1, 0, 1)
    ]
    kind = chance.choice(["known", "edge", "edge", "any"])
    if kind == "known" and known:
        return chance.choice(known)
    if kind == "edge" and edges:
        return (chance.choice(edges) % (1 << 8 * size)).to_bytes(size, "big")
    return chance.randbytes(size)


def lists_of(policy: Policy) -> Lists:
    packed = [
        Addresses.of(
            (IPv4Address(span.first), IPv4Address(span.last))
            if span.family == 4
            else (IPv6Address(span.first), IPv6Address(span.last))
            for span in ranges
        )
        for ranges in policy.lists.values()
    ]
    return Lists([each.ranges4 for each in packed], [each.ranges6 for each in packed])


def learned_of(policy: Policy) -> Learned:
    """Each entry with a set of its own."""
    members = [*policy.lists, *policy.applications]
    entries = b"".join(
        struct.pack(
            "=BBBxHxxI16s",
            KINDS[each.kind],
            4 if len(each.address) == 4 else 6,
            each.protocol,
            each.port,
            number,
            each.address,
        )
        for number, each in enumerate(policy.taught, start=1)
    )
    sets = [[members.index(name) for name in each.members] for each in policy.taught]
    return Learned(entries, sets)


def block_of(policy: Policy) -> bytes:
    return compile_program(
        marks=policy.marks,
        key=policy.key,
        rules=policy.rules,
        lists=list(policy.lists),
        applications=policy.applications,
    )


def compiled(policy: Policy) -> Program:
    return Program(
        block_of(policy),
        lists_of(policy) if policy.lists else None,
        learned_of(policy) if policy.taught else None,
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
    # The last field of a flow is the interface, which is none of the packet's.
    return head + (astuple(outcome.flow)[:-1] if outcome.flow else (b"", b"", 0, 0, 0, False, 0))


def many_ranges(ranges: list[tuple[int, int]]) -> bytes:
    """IPv4 ranges as Addresses packs them, for lists that are too long for the oracle."""
    return array("I", (end for span in ranges for end in span)).tobytes()
