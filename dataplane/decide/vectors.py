"""Conditions of rules as bit vectors: for each value, the rules that let it through.

A vector is a whole number whose bit n is rule n. Each condition is given as what every rule asks
for: one collection of values a rule, empty where it does not have the condition.
"""

from __future__ import annotations

import struct
from array import array
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TypeVar

from dataplane.config.model import Ports

NONE = 0xFFFFFFFF
PORTS = 65536

_Value = TypeVar("_Value", bound=Hashable)
Section = tuple[int, bytes]


class Vectors:
    """All vectors of a program, each kept once, and its conditions as sections of the block."""

    def __init__(self, rules: int) -> None:
        self.words = -(-rules // 64)
        self.numbers: dict[int, int] = {}
        self.without: list[int] = []
        """By condition: the number of the vector of the rules that do not have it, or NONE."""

    def number(self, vector: int) -> int:
        """The vector's number in the block."""
        return self.numbers.setdefault(vector, len(self.numbers))

    def block(self) -> bytes:
        """Every vector as 64-bit words, the first rules in the first word."""
        packed = b"".join(vector.to_bytes(8 * self.words, "little") for vector in self.numbers)
        return array("Q", struct.unpack(f"<{len(packed) // 8}Q", packed)).tobytes()

    def begin(self, asked: Sequence[Collection[object]]) -> int | None:
        """Begin the next condition: the vector of the rules without it; None: no rule has it."""
        vector = sum(1 << rule for rule, values in enumerate(asked) if not values)
        if vector == (1 << len(asked)) - 1:
            self.without.append(NONE)
            return None
        self.without.append(self.number(vector))
        return vector

    def by_value(self, asked: Sequence[Collection[int]], count: int) -> Section:
        """Vector numbers for the values 0 to count - 1."""
        without = self.begin(asked)
        if without is None:
            return _EMPTY
        held = _by_value(asked)
        return _numbers(self.number(without | held.get(value, 0)) for value in range(count))

    def by_member(self, asked: Sequence[Collection[_Value]], members: Sequence[_Value]) -> Section:
        """Vector numbers by member; they hold only rules that ask for it."""
        if self.begin(asked) is None:
            return _EMPTY
        held = _by_value(asked)
        return _numbers(self.number(held.get(member, 0)) for member in members)

    def by_interface(self, asked: Sequence[Collection[int]]) -> Section:
        """Steps, one for each interface that is asked for. Index 0 is none, and gets none."""
        without = self.begin(asked)
        if without is None:
            return _EMPTY
        held = sorted(_by_value(asked).items())
        return _steps((index, self.number(without | vector)) for index, vector in held if index)

    def by_port(self, asked: Sequence[Collection[Ports]]) -> Section:
        """Steps, each for the ports from its first one up to the next step's."""
        without = self.begin(asked)
        if without is None:
            return _EMPTY
        return _steps((first, self.number(without | vector)) for first, vector in _sweep(asked))


def _by_value(asked: Sequence[Collection[_Value]]) -> dict[_Value, int]:
    held: dict[_Value, int] = defaultdict(int)
    for rule, values in enumerate(asked):
        for value in values:
            held[value] |= 1 << rule
    return held


def _sweep(asked: Sequence[Collection[Ports]]) -> Iterable[tuple[int, int]]:
    """Where the rules that hold a port change: (first port, vector), from 0 on. Ranges of one rule
    may overlap, so that it is counted how many of them are open."""
    changes: dict[int, list[tuple[int, int]]] = defaultdict(list, {0: []})
    for rule, ranges in enumerate(asked):
        for ports in ranges:
            changes[ports.first].append((rule, 1))
            changes[ports.last + 1].append((rule, -1))
    opened: dict[int, int] = defaultdict(int)
    vector, before = 0, None
    for port, steps in sorted(changes.items()):
        for rule, step in steps:
            opened[rule] += step
            vector = vector | 1 << rule if opened[rule] else vector & ~(1 << rule)
        if vector != before and port < PORTS:
            yield port, vector
            before = vector


_EMPTY: Section = (0, b"")


def _numbers(numbers: Iterable[int]) -> Section:
    packed = array("I", numbers)
    return len(packed), packed.tobytes()


def _steps(steps: Iterable[tuple[int, int]]) -> Section:
    packed = array("I", (number for step in steps for number in step))
    return len(packed) // 2, packed.tobytes()
