"""Capacities and living links → slot table: which link each of 65,536 hash slots belongs to.

    home      the quotas of the weights, dealt in a fixed order; a pure function of the links
    overlay   the home table with dead links' slots lent to the living; pure, so a link that comes
              back has exactly its home slots
    reweight  other weights, other links, with the least possible movement

Quotas are Hamilton's (largest remainder): a link's slots differ from its exact share by less than
one; ties go by link name. All arithmetic is on integers, so every machine agrees.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import compress
from math import lcm

SLOTS = 65536
MOST_LINKS = 254

# Below this many slots for each candidate, quotas are mostly rounding and cost more than they are
# worth: a slot draws its next link by itself.
_SLOTS_FOR_A_QUOTA = 4


def _scattered() -> array[int]:
    """The order in which slots are dealt: a bijection of 0 to 65535 without visible order. It is
    part of the format: never change it.

    Each step can be undone (xor with a right shift of itself, times an odd number modulo 65536),
    hence so can all of them together. In one loop, since every start waits for it.
    """
    order = array("H")
    for rank in range(SLOTS):
        x = (rank ^ rank >> 7) * 0x6B43 + 0x5F17 & 0xFFFF
        x = (x ^ x >> 9) * 0x9E2D + 0x5F17 & 0xFFFF
        x = (x ^ x >> 6) * 0x34A7 + 0x5F17 & 0xFFFF
        order.append(x ^ x >> 8)
    return order


def _ranks(order: array[int]) -> array[int]:
    """Each slot's place in the order."""
    ranks = array("H", order)
    for rank, slot in enumerate(order):
        ranks[slot] = rank
    return ranks


_ORDER = _scattered()
_RANK = _ranks(_ORDER)

# A draw is a look at another slot of the table: which one, follows from the slot and the draw's
# key. After the last draw a slot goes wherever the quota of the whole has room.
_DRAW_KEYS = tuple(_ORDER[0x0101 * draw] for draw in range(1, 17))
_DRAWN = array("H", map(_ORDER.__getitem__, _ORDER))


@dataclass(frozen=True, slots=True)
class SlotTable:
    """`links` sorted by name; `slots[slot]` is an index into them, one byte for each slot.

    A link may hold no slot: a share of less than half a slot is rounded to nothing.
    """

    links: tuple[str, ...]
    slots: bytes

    def __post_init__(self) -> None:
        """Judge a table that may come from a file. ValueError says what is wrong with it."""
        if not 1 <= len(self.links) <= MOST_LINKS:
            raise ValueError(f"expected 1 to {MOST_LINKS} links, got {len(self.links)}")
        if any(a >= b for a, b in zip(self.links, self.links[1:], strict=False)):
            raise ValueError("expected links sorted by name, each once")
        if len(self.slots) != SLOTS:
            raise ValueError(f"expected {SLOTS} slots, got {len(self.slots)}")
        if stray := self.slots.translate(None, delete=bytes(range(len(self.links)))):
            raise ValueError(f"expected links 0 to {len(self.links) - 1}, got a slot of {stray[0]}")

    def counts(self) -> dict[str, int]:
        """How many slots each link holds."""
        found = Counter(self.slots)
        return {name: found[index] for index, name in enumerate(self.links)}

    def shares(self) -> dict[str, float]:
        """Each link's part of the slots, 0 to 1."""
        return {name: count / SLOTS for name, count in self.counts().items()}


def quotas(weights: Mapping[str, Fraction], places: int = SLOTS) -> dict[str, int]:
    """Divide `places` by the largest remainder; names in order.

    Raises ValueError if there are no weights, or one is not above zero.
    """
    names = sorted(weights)
    return dict(zip(names, _quotas(_integers(names, weights), places), strict=True))


def home(weights: Mapping[str, Fraction]) -> SlotTable:
    """The table of a fresh start: a pure function of the names and the ratios of their weights.

    Raises ValueError if there are no weights, or one is not above zero.
    """
    links = tuple(sorted(weights))
    by_rank = b"".join(
        bytes((index,)) * count
        for index, count in enumerate(_quotas(_integers(links, weights), SLOTS))
    )
    return SlotTable(links, bytes(map(by_rank.__getitem__, _RANK)))


def overlay(table: SlotTable, alive: Collection[str], weights: Mapping[str, Fraction]) -> SlotTable:
    """Lend the slots of the links that are not in `alive` to those that are.

    Slots of living links stay. Together the dead links' slots are divided by quota. Without a
    living link, or without a dead one, the table is returned as it is. `weights` must hold every
    link of the table, the dead ones too; other names in `alive` and `weights` do not matter.

    Each slot has its own order of links, so that when one more link dies, what was lent to the
    others stays with them: a dead link's slots are dealt to *all* other links by quota; those that
    fall to a link that is dead too are dealt once more, to all but these two; and so on, while
    there are enough of them for a quota. The last step moves the few slots by which these quotas
    of parts miss the quota of the whole; with one dead link there are none.
    """
    living = [index for index, name in enumerate(table.links) if name in alive]
    if not living or len(living) == len(table.links):
        return table
    if len(living) == 1:
        return SlotTable(table.links, bytes(living) * SLOTS)
    pool = _Pool(table, living, _integers(table.links, weights))
    for link, held in _held(table, set(range(len(table.links))).difference(living)).items():
        pool.hand_out(held, (link,))
    pool.draw()
    pool.level()
    owners = bytearray(table.slots)
    for link, taken in pool.taken.items():
        for slot in taken:
            owners[slot] = link
    return SlotTable(table.links, bytes(owners))


def reweight(table: SlotTable, weights: Mapping[str, Fraction]) -> SlotTable:
    """The quotas of `weights`, reached by moving Σ max(0, old - new) slots, which no table beats.

    Links may be added and removed. Raises ValueError if there are no weights, or one is not above
    zero.
    """
    links = tuple(sorted(weights))
    want = _quotas(_integers(links, weights), SLOTS)
    owners = bytearray(table.slots.translate(_renumber(table.links, links)))
    found = Counter(owners)
    surplus = {index: found[index] - count for index, count in enumerate(want)}
    surplus[_NOBODY] = found[_NOBODY]
    receivers = iter([index for index, extra in surplus.items() for _ in range(-extra)])
    for slot in _in_order(owners, {index for index, extra in surplus.items() if extra > 0}):
        giver = owners[slot]
        if surplus[giver] > 0:
            surplus[giver] -= 1
            owners[slot] = next(receivers)
    return SlotTable(links, bytes(owners))


def moved(old: SlotTable, new: SlotTable) -> int:
    """How many slots have another link, by name, in `new`."""
    before = old.slots.translate(_renumber(old.links, new.links))
    difference = int.from_bytes(before, "little") ^ int.from_bytes(new.slots, "little")
    return SLOTS - difference.to_bytes(SLOTS, "little").count(0)


def bound(old: SlotTable, new: SlotTable) -> int:
    """Σ max(0, old - new): what any table with `new`'s counts must move at the least."""
    after = new.counts()
    return sum(max(0, count - after.get(name, 0)) for name, count in old.counts().items())


class _Pool:
    """The slots of dead links on their way to the living."""

    def __init__(self, table: SlotTable, living: Sequence[int], weights: Sequence[int]) -> None:
        self.taken: dict[int, list[int]] = {link: [] for link in living}
        self._undealt: list[int] = []
        self._slots = table.slots
        self._weights = weights

    def hand_out(self, slots: Sequence[int], path: tuple[int, ...]) -> None:
        """Deal `slots`, whose links of first choice are the dead ones of `path`, to all others."""
        others = [link for link in range(len(self._weights)) if link not in path]
        if len(path) > 1 and len(slots) < _SLOTS_FOR_A_QUOTA * len(others):
            self._undealt += slots
            return
        counts = _quotas([self._weights[link] for link in others], len(slots))
        start = 0
        for link, count in zip(others, counts, strict=True):
            part = slots[start : start + count]
            start += count
            if link in self.taken:
                self.taken[link] += part
            elif part:
                self.hand_out(part, (*path, link))

    def draw(self) -> None:
        """Each slot left over takes the link of other slots of the table, until one lives."""
        for key in _DRAW_KEYS:
            links = [self._slots[_DRAWN[slot ^ key]] for slot in self._undealt]
            undealt = []
            for slot, link in zip(self._undealt, links, strict=True):
                if link in self.taken:
                    self.taken[link].append(slot)
                else:
                    undealt.append(slot)
            self._undealt = undealt

    def level(self) -> None:
        """Move as few slots as the quota of the whole demands."""
        places = len(self._undealt) + sum(map(len, self.taken.values()))
        weights = [self._weights[link] for link in self.taken]
        want = dict(zip(self.taken, _quotas(weights, places), strict=True))
        for link, slots in self.taken.items():
            if len(slots) > want[link]:
                slots.sort(key=_RANK.__getitem__)
                self._undealt += slots[want[link] :]
                del slots[want[link] :]
        self._undealt.sort(key=_RANK.__getitem__)
        start = 0
        for link, slots in self.taken.items():
            lacking = want[link] - len(slots)
            slots += self._undealt[start : start + lacking]
            start += lacking


# An owner that no table has, for slots of a link that is gone.
_NOBODY = 255


def _integers(links: Sequence[str], weights: Mapping[str, Fraction]) -> list[int]:
    """The weights of `links` times one number that makes them all whole."""
    if not links:
        raise ValueError("expected at least one link")
    for name in links:
        if weights[name] <= 0:
            raise ValueError(f"the weight of {name} must be above zero, got {weights[name]}")
    scale = lcm(*(weights[name].denominator for name in links))
    return [int(weights[name] * scale) for name in links]


def _quotas(weights: Sequence[int], places: int) -> list[int]:
    total = sum(weights)
    quotient_and_rest = [divmod(places * weight, total) for weight in weights]
    counts = [quotient for quotient, _ in quotient_and_rest]
    by_rest = sorted(range(len(weights)), key=lambda link: -quotient_and_rest[link][1])
    for link in by_rest[: places - sum(counts)]:
        counts[link] += 1
    return counts


def _in_order(owners: bytes | bytearray, links: Collection[int]) -> Iterable[int]:
    """The slots of `links`, in the order in which slots are dealt."""
    chosen = owners.translate(bytes(link in links for link in range(256)))
    return compress(_ORDER, map(chosen.__getitem__, _ORDER))


def _held(table: SlotTable, links: Collection[int]) -> dict[int, list[int]]:
    """The slots of each of `links`, in the order in which slots are dealt."""
    held: dict[int, list[int]] = {link: [] for link in sorted(links)}
    for slot in _in_order(table.slots, links):
        held[table.slots[slot]].append(slot)
    return held


def _renumber(old: Sequence[str], new: Sequence[str]) -> bytes:
    """A translation of indices into `old` to indices into `new`; links that are gone: _NOBODY."""
    index = {name: place for place, name in enumerate(new)}
    numbers = [index.get(name, _NOBODY) for name in old]
    return bytes(numbers) + bytes((_NOBODY,)) * (256 - len(numbers))
