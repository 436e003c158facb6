"""What was learned while running: addresses and endpoints, each with labels that end.

The store is bounded, and the oldest goes out first. It is kept packed as cext/learned.h wants it,
so that handing it over is a copy, whatever its size. Times are seconds of any clock that never
goes back.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from ipaddress import IPv4Address, IPv6Address

MOST_ENTRIES = 65536
# Of them, what the router resolves itself is not put out by what others make it learn.
MOST_HELD = MOST_ENTRIES // 2

Address = IPv4Address | IPv6Address

# struct learned_entry: kind, family, protocol, port, set, address.
_ENTRY = struct.Struct("=BBBxHxxI16s")
_SET = struct.Struct("=I")
_SET_AT = 8


class Kind(IntEnum):
    """What an entry is about: an address with any port, or one side's address, protocol, port."""

    ADDRESS = 0
    SERVER = 1
    CLIENT = 2


@dataclass(frozen=True, slots=True)
class Known:
    """All that is known at a time.

    `entries`: packed `struct learned_entry`s. Their set numbers count from 1; set n has the labels
    `sets[n - 1]`.
    """

    entries: bytes = b""
    sets: tuple[tuple[str, ...], ...] = ()

    def labelled(self) -> Iterator[tuple[bytes, tuple[str, ...]]]:
        """Each entry's key, and its labels."""
        for at in range(0, len(self.entries), _ENTRY.size):
            entry = self.entries[at : at + _ENTRY.size]
            (number,) = _SET.unpack_from(entry, _SET_AT)
            key = entry[:_SET_AT] + bytes(_SET.size) + entry[_SET_AT + _SET.size :]
            yield key, self.sets[number - 1]


def address_key(address: Address) -> bytes:
    """The key of an address, whatever the port."""
    return _ENTRY.pack(Kind.ADDRESS, address.version, 0, 0, 0, address.packed)


def endpoint_key(kind: Kind, address: Address, protocol: int, port: int) -> bytes:
    """The key of a server's or a client's endpoint; `protocol` is the IP protocol's number."""
    return _ENTRY.pack(kind, address.version, protocol, port, 0, address.packed)


@dataclass(slots=True)
class _Entry:
    """`place` among the packed ones, the number of its labels, and until when each of them counts.

    `held_until_s`: until then it is not put out for a newer one.
    """

    place: int
    number: int
    until_s: tuple[float, ...]
    held_until_s: float


class Learned:
    """The store. Every method is cheap but `keep`, which looks at each entry."""

    def __init__(self, most: int = MOST_ENTRIES, most_held: int = MOST_HELD) -> None:
        self._most = most
        self._most_held = most_held
        # In the order in which they were taught last.
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._packed = bytearray()
        self._at: list[bytes] = []
        self._sets = _Sets()
        self._held = 0
        self._looked_at = 0
        self._changed = False
        self.oldest_out = 0
        """How many were put out for newer ones."""

    def __len__(self) -> int:
        return len(self._entries)

    def teach(
        self,
        key: bytes,
        labels: Iterable[str],
        until_s: float,
        now_s: float,
        *,
        held: bool = False,
    ) -> None:
        """Makes the labels count for the key until then, at least.

        `held`: it is not put out for a newer one before, if there is room for so many.
        """
        fresh = dict.fromkeys(labels, until_s)
        if not fresh:
            return
        entry = self._entries.get(key)
        if entry is None:
            self._make_room(now_s)
            entry = self._add(key)
        self._entries.move_to_end(key)
        known = dict(zip(self._sets.labels(entry.number), entry.until_s, strict=True))
        for label, until in known.items():
            fresh[label] = max(until, fresh.get(label, 0.0))
        if held and (entry.held_until_s or self._held < self._most_held):
            self._held += not entry.held_until_s
            entry.held_until_s = max(until_s, entry.held_until_s)
        self._write(entry, fresh)

    def age(self, now_s: float, most: int = MOST_ENTRIES) -> None:
        """Forgets what is over. Looks at `most` entries, and at the others the next times."""
        for _ in range(min(most, len(self._at))):
            if not self._at:
                return
            # Downwards: what takes the place of one that goes has mostly been looked at.
            place = min(self._looked_at, len(self._at))
            self._looked_at = (place or len(self._at)) - 1
            key = self._at[self._looked_at]
            entry = self._entries[key]
            if min(entry.until_s) <= now_s:
                self._keep_of(key, entry, lambda _, until_s: until_s > now_s)

    def keep(self, labels: Collection[str]) -> None:
        """Forgets all other labels."""
        for key, entry in list(self._entries.items()):
            self._keep_of(key, entry, lambda label, _: label in labels)

    def snapshot(self) -> Known | None:
        """All that is known now; None if that is what the last snapshot said."""
        if not self._changed:
            return None
        self._changed = False
        return Known(bytes(self._packed), self._sets.all())

    def counts(self) -> dict[str, int]:
        """By label, how many entries have it."""
        found: dict[str, int] = {}
        for labels, entries in self._sets.used():
            for label in labels:
                found[label] = found.get(label, 0) + entries
        return found

    def _keep_of(self, key: bytes, entry: _Entry, stays: Callable[[str, float], bool]) -> None:
        known = dict(zip(self._sets.labels(entry.number), entry.until_s, strict=True))
        kept = {label: until for label, until in known.items() if stays(label, until)}
        if not kept:
            self._remove(key)
        elif len(kept) < len(known):
            self._write(entry, kept)

    def _make_room(self, now_s: float) -> None:
        while len(self._entries) >= self._most:
            key, entry = next(iter(self._entries.items()))
            if entry.held_until_s > now_s:
                self._entries.move_to_end(key)
            else:
                self._remove(key)
                self.oldest_out += 1

    def _add(self, key: bytes) -> _Entry:
        entry = self._entries[key] = _Entry(len(self._at), 0, (), 0.0)
        self._at.append(key)
        self._packed += key
        return entry

    def _remove(self, key: bytes) -> None:
        """The last of the packed ones takes its place."""
        entry = self._entries.pop(key)
        self._held -= bool(entry.held_until_s)
        self._sets.release(entry.number)
        size = _ENTRY.size
        last = self._at.pop()
        if last != key:
            self._at[entry.place] = last
            self._entries[last].place = entry.place
            at = entry.place * size
            self._packed[at : at + size] = self._packed[-size:]
        del self._packed[-size:]
        self._changed = True

    def _write(self, entry: _Entry, known: dict[str, float]) -> None:
        labels = tuple(sorted(known))
        entry.until_s = tuple(known[label] for label in labels)
        if entry.number and labels == self._sets.labels(entry.number):
            return
        before, entry.number = entry.number, self._sets.take(labels)
        self._sets.release(before)
        _SET.pack_into(self._packed, entry.place * _ENTRY.size + _SET_AT, entry.number)
        self._changed = True


class _Sets:
    """Sets of labels, numbered from 1, each for as long as some entry has it."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, ...], int] = {}
        self._labels: list[tuple[str, ...]] = []
        self._entries: list[int] = []
        self._free: list[int] = []

    def labels(self, number: int) -> tuple[str, ...]:
        """None for 0."""
        return self._labels[number - 1] if number else ()

    def take(self, labels: tuple[str, ...]) -> int:
        """The number of the set, for one more entry."""
        number = self._numbers.get(labels)
        if number is None:
            if self._free:
                number = heappop(self._free)
                self._labels[number - 1] = labels
            else:
                self._labels.append(labels)
                self._entries.append(0)
                number = len(self._labels)
            self._numbers[labels] = number
        self._entries[number - 1] += 1
        return number

    def release(self, number: int) -> None:
        """One entry less has the set."""
        if not number:
            return
        self._entries[number - 1] -= 1
        if not self._entries[number - 1]:
            del self._numbers[self._labels[number - 1]]
            self._labels[number - 1] = ()
            heappush(self._free, number)

    def all(self) -> tuple[tuple[str, ...], ...]:
        return tuple(self._labels)

    def used(self) -> Iterable[tuple[tuple[str, ...], int]]:
        """Each set, and how many entries have it."""
        return zip(self._labels, self._entries, strict=True)
