"""Sets of numbers as ranges with both ends included: merged, compared, intersected."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

Range = tuple[int, int]


def merge(ranges: Iterable[Range]) -> list[Range]:
    """The same numbers in ascending ranges that neither overlap nor touch."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            if last > merged[-1][1]:
                merged[-1] = merged[-1][0], last
        else:
            merged.append((first, last))
    return merged


def contains(outer: Sequence[Range], inner: Iterable[Range]) -> bool:
    """Whether merged ranges hold all of the others."""
    for first, last in inner:
        place = bisect_right(outer, first, key=lambda one: one[0])
        if not place or last > outer[place - 1][1]:
            return False
    return True


def intersection(one: Sequence[Range], other: Sequence[Range]) -> list[Range]:
    """What two merged sets have in common."""
    common: list[Range] = []
    left = right = 0
    while left < len(one) and right < len(other):
        first = max(one[left][0], other[right][0])
        last = min(one[left][1], other[right][1])
        if first <= last:
            common.append((first, last))
        if one[left][1] < other[right][1]:
            left += 1
        else:
            right += 1
    return common
