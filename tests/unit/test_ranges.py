"""Which lists hold an address: cext/ranges.h against a comparison a range, under the sanitizers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sanitized import answers, built

BITS = {4: 32, 6: 128}
MB = 1_000_000

# Family, first address, last address.
Span = tuple[int, int, int]
Address = tuple[int, int]


@pytest.fixture(scope="module")
def ranges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(Path(__file__).parent / "ranges.c", tmp_path_factory.mktemp("ranges"))


def halves(address: int) -> tuple[int, int]:
    return address >> 64, address & (1 << 64) - 1


def packed(lists: Sequence[Iterable[Span]]) -> list[int]:
    numbers = [len(lists)]
    for spans in lists:
        pairs = [ends for family, *ends in spans if family == 4]
        quads = [chain(*map(halves, ends)) for family, *ends in spans if family == 6]
        numbers += [len(pairs), *chain(*pairs), len(quads), *chain(*quads)]
    return numbers


def answered(
    ranges: Path, lists: Sequence[Sequence[Span]], addresses: Iterable[Address]
) -> dict[Address, list[int]]:
    """Of each address (family, number) the lists that hold it."""
    asked = sorted(set(addresses))
    old = [number for family, number in asked if family == 4]
    new = [number for family, number in asked if family == 6]
    numbers = [*packed(lists), len(old), *old, len(new), *chain(*map(halves, new))]
    _, *lines = answers(ranges, numbers)
    return dict(zip(asked, ([int(word) for word in line.split()] for line in lines), strict=True))


def compared(lists: Sequence[Sequence[Span]], address: Address) -> list[int]:
    """The slow way."""
    family, number = address
    return [
        position
        for position, spans in enumerate(lists)
        if any(family == of and first <= number <= last for of, first, last in spans)
    ]


def edges(lists: Sequence[Sequence[Span]]) -> list[Address]:
    """What lies on the ends of all ranges, beside them, and on those of the whole space."""
    ends = [(family, end) for spans in lists for family, *both in spans for end in both]
    ends += [(4, 0), (6, 0)]
    return [(family, (end + by) % (1 << BITS[family])) for family, end in ends for by in (-1, 0, 1)]


@st.composite
def crowded(draw: st.DrawFn) -> Span:
    """Around few addresses, so that ranges overlap, touch and nest."""
    family = draw(st.sampled_from([4, 6]))
    bits = BITS[family]
    around = [0, 1 << bits - 16, (5 << bits - 16) + (1 << bits // 2), (1 << bits) - 1]
    ends = st.one_of(
        st.tuples(st.sampled_from(around), st.integers(-5, 5)).map(
            lambda drawn: sum(drawn) % (1 << bits)
        ),
        st.integers(0, (1 << bits) - 1),
    )
    first, last = sorted((draw(ends), draw(ends)))
    return family, first, last


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(crowded(), max_size=6), max_size=5))
def test_a_few_crowded_ranges(ranges: Path, lists: list[list[Span]]) -> None:
    for address, held in answered(ranges, lists, edges(lists)).items():
        assert held == compared(lists, address), address


def somewhere(chance: random.Random, family: int, within: int) -> Span:
    """A prefix or a range of any size, within the last `within` bits of some part of the space."""
    bits = BITS[family]
    base = 0x2A00 << bits - 16
    first = base + chance.getrandbits(within)
    size = 1 << chance.randrange(within)
    if chance.random() < 0.5:
        return family, first, min(first + chance.randrange(size), (1 << bits) - 1)
    return family, first // size * size, first // size * size + size - 1


@pytest.mark.parametrize(
    ("family", "within"),
    [(4, 8), (4, 18), (4, 31), (6, 8), (6, 62), (6, 68), (6, 80), (6, 112), (6, 126)],
)
def test_hundreds_in_a_space_of_any_size(ranges: Path, family: int, within: int) -> None:
    chance = random.Random(within)
    lists = [[somewhere(chance, family, within) for _ in range(60)] for _ in range(7)]
    lists[3] = []
    anywhere = [(family, somewhere(chance, family, within)[1]) for _ in range(500)]
    asked = chance.sample(edges(lists), 800) + anywhere
    for address, held in answered(ranges, lists, asked).items():
        assert held == compared(lists, address), address


def test_the_whole_space(ranges: Path) -> None:
    whole = [[(4, 0, 2**32 - 1)], [(6, 0, 2**128 - 1)], [(4, 0, 2**31), (4, 2**31, 2**32 - 1)]]
    found = answered(ranges, whole, [*edges(whole), (4, 77 << 20), (6, 77 << 100)])
    assert found == {address: [0, 2] if address[0] == 4 else [1] for address in found}


@pytest.mark.parametrize("lists", [[], [[]], [[]] * 4096])
def test_nothing_holds_anything(ranges: Path, lists: list[list[Span]]) -> None:
    found = answered(ranges, lists, edges(lists))
    assert set(map(tuple, found.values())) == {()}


def test_what_touches_becomes_one(ranges: Path) -> None:
    """A list is as large as what it says, however often it says it."""
    once = packed([[(4, 0, 2**24 - 1), (6, 0, 2**96 - 1)]])
    pieces: list[Span] = [(4, n << 8, (n << 8) + 255) for n in range(1 << 16)]
    pieces += [(6, n << 80, ((n + 1) << 80) - 1) for n in range(1 << 16)]
    random.Random(1).shuffle(pieces)
    assert answers(ranges, [*packed([pieces * 2]), 0, 0]) == answers(ranges, [*once, 0, 0])


def test_every_combination_of_lists(ranges: Path) -> None:
    """An address in each combination of 15 lists: 32,768 sets."""
    lists = [
        [(4, number << 7, (number << 7) + 99) for number in range(1 << 15) if number >> bit & 1]
        for bit in range(15)
    ]
    chance = random.Random(2)
    for number in chance.sample(range(1 << 15), 5):
        found = answered(ranges, lists, [(4, (number << 7) + 50), (4, (number << 7) + 100)])
        assert list(found.values()) == [[bit for bit in range(15) if number >> bit & 1], []]


def test_the_last_list_of_4096(ranges: Path) -> None:
    lists: list[list[Span]] = [[(4, number, number + 1)] for number in range(4096)]
    found = answered(ranges, lists, [(4, 0), (4, 1), (4, 4095), (4, 4096), (4, 4097)])
    assert list(found.values()) == [[0], [0, 1], [4094, 4095], [4095], []]


def test_refused_with_words(ranges: Path) -> None:
    backwards = answers(ranges, packed([[], [(4, 1, 2), (4, 7, 6)]]))
    assert backwards == [
        "refused: list 1, IPv4 range 1: its last address 00000006 is before its first 00000007"
    ]
    [words] = answers(ranges, packed([[(6, 1 << 64, (1 << 64) - 1)]]))
    assert words.startswith("refused: list 0, IPv6 range 0: its last address 0000000000000000ff")
    many = answers(ranges, packed([[]] * 4097))
    assert many == ["refused: 4097 lists, legal are 0 to 4096"]


def test_lists_that_overlap_in_too_many_ways(ranges: Path) -> None:
    """Each within the one before: small lists, but their sets would fill the memory."""
    nested: list[list[Span]] = [[(4, number, 9999 - number)] for number in range(4096)]
    [words] = answers(ranges, packed(nested))
    assert words.startswith("refused: the lists overlap in too many ways:")


@pytest.mark.parametrize(
    ("family", "lengths", "most"),
    [
        (4, (16, 32), 20 * MB),
        (6, (32, 64), 45 * MB),
    ],
)
def test_a_million_prefixes_are_small(
    ranges: Path, family: int, lengths: tuple[int, int], most: int
) -> None:
    chance = random.Random(sum(lengths))
    bits = BITS[family]
    spans = []
    for _ in range(MB):
        wide = bits - chance.randint(*lengths)
        first = chance.getrandbits(bits - 3) >> wide << wide
        spans.append((family, first, first | (1 << wide) - 1))
    [said] = answers(ranges, [*packed([spans]), 0, 0])
    size, sets = map(int, said.split())
    print(f"{size / MB:.1f} MB")
    assert sets == 2
    assert size <= most
