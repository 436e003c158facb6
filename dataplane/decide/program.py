"""Compile a policy into the flat block that cext/program.h reads.

One immutable block: a header, then sections that begin at multiples of 64 bytes. Rules are tried
in order. All lists of a policy share one sorted array of disjoint ranges per family, each with
the set of lists that hold it, so that a flow is looked up once whatever the number of rules. The
loader in C checks the block again and trusts nothing here.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from typing import NamedTuple

from dataplane.config.marks import Marks
from dataplane.config.model import Fields
from dataplane.decide.facts import Family
from dataplane.decide.slots import SLOTS

MOST_RULES = 4096
MOST_LISTS = 4096

_MAGIC = 0x4C4E5645
_VERSION = 1
_ALIGNMENT = 64
_NO_TABLE = 0xFFFFFFFF
_HEADER = struct.Struct("=IIQQIIII")
_SECTION = struct.Struct("=QQ")
_RULE = struct.Struct("=IIIIBBB13x")
_FIELDS = {fields: number for number, fields in enumerate(Fields)}


class AddressRange(NamedTuple):
    """Addresses of one family, as numbers, both ends included."""

    family: Family
    first: int
    last: int

    @classmethod
    def of(cls, network: IPv4Network | IPv6Network) -> AddressRange:
        """The range of a prefix."""
        return cls(network.version, int(network.network_address), int(network.broadcast_address))


@dataclass(frozen=True, slots=True)
class ProgramRule:
    """One rule: what it matches, and how it decides.

    `tables` holds, by family, 65,536 bytes: a slot's decision value each. A family without a table
    gets no decision from this rule, and none from a later one. `decision`, if given, is the same
    for every flow, and `tables` is empty then. `source` and `destination` name lists, one of which
    must hold the address; empty: any address.
    """

    name: str
    fields: Fields = Fields.BOTH_ADDRESSES
    symmetric: bool = False
    tables: Mapping[Family, bytes] = field(default_factory=dict)
    decision: int | None = None
    source: tuple[str, ...] = ()
    destination: tuple[str, ...] = ()


def compile_program(
    *,
    marks: Marks,
    key: int,
    rules: Sequence[ProgramRule],
    lists: Mapping[str, Iterable[AddressRange]] | None = None,
) -> bytes:
    """The block for `dataplane.hotpath.Program`.

    `key` is the 64-bit hash key. Raises ValueError where a rule cannot be expressed: an unknown
    list, a table that is not 65,536 bytes, a rule with both or neither of tables and decision.
    """
    if len(rules) > MOST_RULES:
        raise ValueError(f"{len(rules)} rules: legal are 0 to {MOST_RULES}")
    used = sorted({name for rule in rules for name in (*rule.source, *rule.destination)})
    if len(used) > MOST_LISTS:
        raise ValueError(f"{len(used)} lists: legal are 0 to {MOST_LISTS}")
    known = lists or {}
    for name in used:
        if name not in known:
            raise ValueError(f"list {name!r} does not exist")

    sets = _Sets(used)
    tables = _Tables()
    rule_bytes = b"".join(_rule(rule, sets, tables) for rule in rules)
    ranges4, ranges6 = (
        _ranges(family, {name: known[name] for name in used}, sets) if used else _NO_RANGES
        for family in (4, 6)
    )
    sections = [
        (len(rules), rule_bytes),
        (len(tables.blocks), b"".join(tables.blocks)),
        (len(sets.numbers), sets.block()),
        *((len(part), part.tobytes()) for part in ranges4),
        *((len(part) // per, part.tobytes()) for part, per in zip(ranges6, (2, 1, 1), strict=True)),
    ]
    return _assemble(marks, key, sets.words, sections)


def _assemble(marks: Marks, key: int, words: int, sections: list[tuple[int, bytes]]) -> bytes:
    at = _aligned(_HEADER.size + _SECTION.size * len(sections))
    directory, body = [], []
    for count, content in sections:
        directory.append(_SECTION.pack(at, count))
        body.append(content.ljust(_aligned(len(content)), b"\0"))
        at += len(body[-1])
    header = _HEADER.pack(_MAGIC, _VERSION, at, key, marks.mask, marks.shift, words, 0)
    head = header + b"".join(directory)
    return b"".join([head.ljust(_aligned(len(head)), b"\0"), *body])


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class _Tables:
    """Slot tables, each kept once."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, table: bytes) -> int:
        if table not in self._numbers:
            self._numbers[table] = len(self.blocks)
            self.blocks.append(table)
        return self._numbers[table]


class _Sets:
    """Sets of lists as bit masks, each kept once; set 0 is empty."""

    def __init__(self, lists: Sequence[str]) -> None:
        self._bits = {name: 1 << at for at, name in enumerate(lists)}
        self.words = max(1, -(-len(lists) // 64))
        self.numbers: dict[int, int] = {0: 0}

    def bit(self, name: str) -> int:
        return self._bits[name]

    def number(self, mask: int) -> int:
        return self.numbers.setdefault(mask, len(self.numbers))

    def number_of(self, names: Iterable[str]) -> int:
        mask = 0
        for name in names:
            mask |= self._bits[name]
        return self.number(mask)

    def block(self) -> bytes:
        """Every set as 64-bit words, the lowest bits in the first word."""
        words = array("Q")
        for mask in self.numbers:
            words.extend(mask >> 64 * at & 0xFFFFFFFFFFFFFFFF for at in range(self.words))
        return words.tobytes()


def _rule(rule: ProgramRule, sets: _Sets, tables: _Tables) -> bytes:
    if (rule.decision is None) == (not rule.tables):
        raise ValueError(f"rule {rule.name!r}: either tables or a decision must be given")
    numbers = []
    for family in (4, 6):
        table = rule.tables.get(family)
        if table is not None and len(table) != SLOTS:
            raise ValueError(f"rule {rule.name!r}: a table of {len(table)} bytes, not {SLOTS}")
        numbers.append(_NO_TABLE if table is None else tables.number(table))
    return _RULE.pack(
        *numbers,
        sets.number_of(rule.source),
        sets.number_of(rule.destination),
        _FIELDS[rule.fields],
        rule.symmetric,
        rule.decision or 0,
    )


_NO_RANGES = (array("I"), array("I"), array("I"))


def _ranges(
    family: int, lists: Mapping[str, Iterable[AddressRange]], sets: _Sets
) -> tuple[array[int], array[int], array[int]]:
    """First addresses, sets and index of one family (IPv6 addresses as two 64-bit halves)."""
    bits = 32 if family == 4 else 128
    boundaries = list(_boundaries(family, bits, lists, sets))
    held = array("I", (sets.number(mask) for _, mask in boundaries))
    if family == 4:
        starts = array("I", (start for start, _ in boundaries))
    else:
        starts = array("Q")
        for start, _ in boundaries:
            starts.extend((start >> 64, start & 0xFFFFFFFFFFFFFFFF))

    # Range n holds the addresses top << (bits - 16) of all tops from its own first one up to the
    # next range's.
    tops = [-(-start >> (bits - 16)) for start, _ in boundaries]
    index = array("I")
    for number, (top, end) in enumerate(pairwise([*tops, 65536])):
        index.extend(array("I", [number]) * (end - top))
    index.append(len(boundaries) - 1)
    return starts, held, index


def _boundaries(
    family: int, bits: int, lists: Mapping[str, Iterable[AddressRange]], sets: _Sets
) -> Iterable[tuple[int, int]]:
    """Where the set of lists changes: (first address, mask of lists), ascending, from 0 on.

    A sweep over the ends of all ranges. A list's ranges may overlap, so each list counts how many
    of its ranges are open.
    """
    events: list[tuple[int, int, int]] = []
    for name, ranges in lists.items():
        bit = sets.bit(name)
        for span in ranges:
            if not 0 <= span.first <= span.last < 1 << (32 if span.family == 4 else 128):
                raise ValueError(f"list {name!r}: {span} is not a range of addresses")
            if span.family == family:
                events.append((span.first, 1, bit))
                events.append((span.last + 1, -1, bit))
    events.sort()

    depth: dict[int, int] = {}
    mask = last = start = 0
    for address, step, bit in events:
        if address != start:
            if mask != last or start == 0:
                yield start, mask
                last = mask
            start = address
        depth[bit] = depth.get(bit, 0) + step
        mask = mask | bit if depth[bit] else mask & ~bit
    if start < 1 << bits and (mask != last or start == 0):
        yield start, mask
