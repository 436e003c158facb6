"""Compile a policy into the flat block that cext/program.h reads.

One immutable block: a header, then sections that begin at multiples of 64 bytes. Each condition is
a set of rules by value, as a bit vector: which rules an interface lets through, which a protocol,
which a list. What the lists hold is not in here: they are objects of their own, since they are
large and change seldom. The loader in C checks the block again and trusts nothing here.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dataplane.config.marks import Marks
from dataplane.config.model import Fields, Ports, Sticky
from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.slots import SLOTS
from dataplane.decide.vectors import NONE, Section, Vectors

MOST_RULES = 4096
MOST_LISTS = 4096
MOST_WEIGHT = 1 << 40
MOST_DECISIONS = 128
MOST_STICKY_MS = (1 << 31) - 1

_MAGIC = 0x4C4E5645
_VERSION = 2
_ALIGNMENT = 64
_HEADER = struct.Struct("=IIQQIIIII9I")
_SECTION = struct.Struct("=QQ")
_ACTION = struct.Struct("=QQIBBBBQ")
_RULE_REST = struct.Struct("=QIBB50x")
_DRAWING = struct.Struct("=QIII4x")
_LINK = struct.Struct("=QB7x")
_FIELDS = {fields: number for number, fields in enumerate(Fields)}
_TURNS = 8192
_FIXED, _SLOTS = 1, 2
_WORD = (1 << 64) - 1
_DRAWS = {"nth": 3, "random": 4}
_STICKY = {None: 0, Sticky.PAIR: 1, Sticky.SOURCE: 2}

Decision = int


@dataclass(frozen=True, slots=True)
class Slots:
    """By the slot of the flow's hash: method pcc. `table` holds a decision for each of the 65,536
    slots; `symmetric` gives both directions one slot."""

    table: bytes
    fields: Fields = Fields.BOTH_ADDRESSES
    symmetric: bool = False


@dataclass(frozen=True, slots=True)
class Draw:
    """In turn or at random, in proportion to the weights: methods nth and random.

    Weights are whole numbers from 1 to 2^40, by decision; only their proportion matters. nth goes
    on where it was when another program is swapped in, as long as its group and weights are the
    same.
    """

    method: Literal["nth", "random"]
    weights: Mapping[Decision, int]


Action = Decision | Slots | Draw


def everywhere(action: Action) -> dict[Family, Action]:
    """The same action for both families."""
    return dict.fromkeys(FAMILIES, action)


@dataclass(frozen=True, slots=True)
class ProgramRule:
    """One rule: what it matches, and how it decides.

    `actions` by family: where a family is missing, the rule does not match it. A condition that is
    empty holds for everything; one with several values holds for any of them. `interfaces` are
    kernel indices, and 0 one that does not exist: no packet came by it. `source` and `destination`
    name lists, `applications` those of the compiler's names.

    With `remember`, packets of one connection that come within two seconds get one decision; with
    `sticky`, new connections of a pair or a source go where the last one went less than `sticky_ms`
    ago (1 to 2^31 - 1). `group` is whose memory that is: rules of one group share it, and nth's
    turn. A remembered decision counts only if it is among those `allowed` by family; where nothing
    is said, those that the action itself can make.
    """

    name: str
    actions: Mapping[Family, Action]
    interfaces: tuple[int, ...] = ()
    source: tuple[str, ...] = ()
    destination: tuple[str, ...] = ()
    protocols: tuple[int, ...] = ()
    source_ports: tuple[Ports, ...] = ()
    destination_ports: tuple[Ports, ...] = ()
    dscp: tuple[int, ...] = ()
    applications: tuple[str, ...] = ()
    group: str = ""
    remember: bool = False
    sticky: Sticky | None = None
    sticky_ms: int = 600_000
    allowed: Mapping[Family, Collection[Decision]] = field(default_factory=dict)


def compile_program(
    *,
    marks: Marks,
    key: int,
    rules: Sequence[ProgramRule],
    lists: Sequence[str] = (),
    applications: Sequence[str] = (),
) -> bytes:
    """The block for `dataplane.hotpath.Program`.

    `key` is the 64-bit hash key. `lists` are the names of the lists in the order that
    `hotpath.Lists` has them, all of them, be they used or not. Together with `applications`, which
    come behind, they are the members that the sets of `hotpath.Learned` speak of: the first list is
    member 0. Raises ValueError where a rule cannot be expressed.
    """
    if len(rules) > MOST_RULES:
        raise ValueError(f"{len(rules)} rules: legal are 0 to {MOST_RULES}")
    if len(lists) > MOST_LISTS:
        raise ValueError(f"{len(lists)} lists: legal are 0 to {MOST_LISTS}")
    known_lists, known_applications = frozenset(lists), frozenset(applications)
    for rule in rules:
        _check(rule, known_lists, known_applications)
    shared = _Shared(key)
    rule_bytes = b"".join(_rule(rule, shared) for rule in rules)
    vectors = Vectors(len(rules))
    interfaces = vectors.by_interface([rule.interfaces for rule in rules])
    sources = vectors.by_member([rule.source for rule in rules], lists)
    destinations = vectors.by_member([rule.destination for rule in rules], lists)
    protocols = vectors.by_value([rule.protocols for rule in rules], 256)
    ports = [
        vectors.by_port([rule.source_ports for rule in rules]),
        vectors.by_port([rule.destination_ports for rule in rules]),
    ]
    dscp = vectors.by_value([rule.dscp for rule in rules], 64)
    learned = vectors.by_member([rule.applications for rule in rules], applications)
    sections = [
        (len(rules), rule_bytes),
        (len(shared.tables), b"".join(shared.tables)),
        (len(shared.drawings), b"".join(shared.drawings)),
        (shared.link_count, bytes(shared.links)),
        (len(vectors.numbers), vectors.block()),
        interfaces,
        protocols,
        dscp,
        *ports,
        sources,
        destinations,
        learned,
    ]
    return _assemble(marks, key, vectors, (len(lists), len(applications)), sections)


def _assemble(
    marks: Marks,
    key: int,
    vectors: Vectors,
    members: tuple[int, int],
    sections: Sequence[Section],
) -> bytes:
    at = _aligned(_HEADER.size + _SECTION.size * len(sections))
    directory, body = [], []
    for count, content in sections:
        directory.append(_SECTION.pack(at, count))
        body.append(content.ljust(_aligned(len(content)), b"\0"))
        at += len(body[-1])
    header = _HEADER.pack(
        _MAGIC,
        _VERSION,
        at,
        key,
        marks.mask,
        marks.shift,
        vectors.words,
        *members,
        NONE,  # family: the rules say themselves where they are live
        *vectors.without,
    )
    head = header + b"".join(directory)
    return b"".join([head.ljust(_aligned(len(head)), b"\0"), *body])


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _check(rule: ProgramRule, lists: Collection[str], applications: Collection[str]) -> None:
    def refuse(what: str) -> ValueError:
        return ValueError(f"rule {rule.name!r}: {what}")

    for kind, known, asked in (
        ("list", lists, (*rule.source, *rule.destination)),
        ("application", applications, rule.applications),
    ):
        for name in asked:
            if name not in known:
                raise refuse(f"{kind} {name!r} does not exist")
    for what, most, values in (
        ("interface", NONE, rule.interfaces),
        ("protocol", 255, rule.protocols),
        ("dscp", 63, rule.dscp),
    ):
        for value in values:
            if not 0 <= value <= most:
                raise refuse(f"{what} {value}: legal are 0 to {most}")
    for ports in (*rule.source_ports, *rule.destination_ports):
        if not 0 <= ports.first <= ports.last <= 65535:
            raise refuse(f"ports {ports.first} to {ports.last}")
    if rule.sticky and not 1 <= rule.sticky_ms <= MOST_STICKY_MS:
        raise refuse(f"sticky for {rule.sticky_ms} ms: legal are 1 to {MOST_STICKY_MS}")
    for allowed in rule.allowed.values():
        for decision in allowed:
            if not 0 <= decision < MOST_DECISIONS:
                raise refuse(f"{decision} is not a decision")
    for action in rule.actions.values():
        if isinstance(action, Slots) and len(action.table) != SLOTS:
            raise refuse(f"a table of {len(action.table)} bytes, not {SLOTS}")
        if isinstance(action, Draw):
            if not action.weights:
                raise refuse("nothing to draw from")
            for weight in action.weights.values():
                if not 1 <= weight <= MOST_WEIGHT:
                    raise refuse(f"weight {weight}: legal are 1 to {MOST_WEIGHT}")


class _Shared:
    """What rules have in common: slot tables and drawings, each kept once."""

    def __init__(self, key: int) -> None:
        self.tables: dict[bytes, int] = {}
        self.drawings: list[bytes] = []
        self.links = bytearray()
        self._numbers: dict[int, int] = {}
        # Where a worker keeps whose turn it is: by identity, so that it is the same place under
        # the next program.
        self._turns: set[int] = set()
        self._key = key.to_bytes(8, "little")

    @property
    def link_count(self) -> int:
        return len(self.links) // _LINK.size

    def table(self, table: bytes) -> int:
        return self.tables.setdefault(table, len(self.tables))

    def identity(self, *parts: object) -> int:
        """A number that stands for the parts; it cannot be guessed without the key."""
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little")

    def drawing(self, group: str, family: Family, draw: Draw) -> int:
        """Rules of a group whose links and weights are the same go on with one another's turn."""
        links = sorted(draw.weights.items())
        identity = self.identity(group, family, draw.method, links)
        if identity not in self._numbers:
            self._numbers[identity] = len(self.drawings)
            turn = identity % _TURNS
            while turn in self._turns:
                turn = (turn + 1) % _TURNS
            self._turns.add(turn)
            self.drawings.append(_DRAWING.pack(identity, self.link_count, len(links), turn))
            for decision, weight in links:
                self.links += _LINK.pack(weight, decision)
        return self._numbers[identity]


def _rule(rule: ProgramRule, shared: _Shared) -> bytes:
    actions = (
        _action(rule.actions[family], rule, family, shared)
        if family in rule.actions
        else _NO_ACTION
        for family in FAMILIES
    )
    rest = _RULE_REST.pack(
        shared.identity(rule.group),
        rule.sticky_ms if rule.sticky else 0,
        _STICKY[rule.sticky],
        rule.remember,
    )
    return b"".join((*actions, rest))


_NO_ACTION = _ACTION.pack(0, 0, 0, 0, 0, 0, 0, 0)


def _action(action: Action, rule: ProgramRule, family: Family, shared: _Shared) -> bytes:
    number, decision, fields, symmetric = 0, 0, Fields.BOTH_ADDRESSES, False
    if isinstance(action, Slots):
        kind, number = _SLOTS, shared.table(action.table)
        fields, symmetric = action.fields, action.symmetric
    elif isinstance(action, Draw):
        kind, number = _DRAWS[action.method], shared.drawing(rule.group, family, action)
    else:
        kind, decision = _FIXED, action
    allowed = 0
    if rule.remember or rule.sticky:
        for each in set(rule.allowed.get(family, _able(action))):
            allowed |= 1 << each % MOST_DECISIONS
    return _ACTION.pack(
        allowed & _WORD, allowed >> 64, number, kind, decision, _FIELDS[fields], symmetric, 0
    )


def _able(action: Action) -> Collection[Decision]:
    """The decisions that it can make."""
    if isinstance(action, Slots):
        return action.table
    return action.weights.keys() if isinstance(action, Draw) else (action,)
