"""What a worker remembers and whose turn it is: cext/memory.h against a model, under sanitizers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sanitized import answers, built

KEEP, RECALL, NEXT, RANDOM, SCALED = range(1, 6)
RECENT, STICKY = range(2)
WAYS = 8
SETS = {RECENT: 4096 // WAYS, STICKY: 65536 // WAYS}


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(Path(__file__).parent / "memory.c", tmp_path_factory.mktemp("memory"))


class Model:
    """Eight places for the hashes with the same remainder; the one kept longest ago goes."""

    def __init__(self, table: int) -> None:
        self.table = table
        self.kept: dict[int, dict[int, tuple[int, int]]] = {}

    def keep(self, hash_: int, decision: int, now: int) -> None:
        places = self.kept.setdefault(hash_ % SETS[self.table], {})
        if hash_ not in places and len(places) == WAYS:
            del places[min(places, key=lambda each: places[each][1])]
        places[hash_] = decision, now

    def recall(self, hash_: int, now: int, ttl: int) -> int:
        decision, kept = self.kept.get(hash_ % SETS[self.table], {}).get(hash_, (0, 0))
        return decision if now - kept < ttl else 0


@pytest.mark.parametrize("begin", [0, 2**32 - 3000, 2**55])
@pytest.mark.parametrize("table", [RECENT, STICKY])
def test_a_long_life(memory: Path, table: int, begin: int) -> None:
    """Few sets, so that they overflow; also where 32 bits of milliseconds come to their end."""
    chance = random.Random(begin + table)
    hashes = [
        chance.randrange(3) + SETS[table] * chance.getrandbits(40) for _ in range(3 * WAYS + 9)
    ]
    model, now, numbers, expected = Model(table), begin, [1], []
    for _ in range(4000):
        now += chance.randrange(1, 9)
        hash_, ttl = chance.choice(hashes), chance.choice([1, 50, 300, 2000])
        expected.append(model.recall(hash_, now, ttl))
        numbers += [RECALL, table, hash_, now, ttl]
        if chance.random() < 0.5:
            decision = chance.randrange(1, 120)
            model.keep(hash_, decision, now)
            numbers += [KEEP, table, hash_, decision, now]
    assert [int(line) for line in answers(memory, numbers)] == expected
    assert 0 < expected.count(0) < len(expected)


def test_the_oldest_goes(memory: Path) -> None:
    alike = [SETS[RECENT] * number + 5 for number in range(WAYS + 1)]
    numbers = [1]
    for now, hash_ in enumerate(alike[:WAYS], start=100):
        numbers += [KEEP, RECENT, hash_, now, now]
    numbers += [KEEP, RECENT, alike[0], 9, 200]  # again: now the second is the oldest
    numbers += [KEEP, RECENT, alike[WAYS], 10, 201]
    for hash_ in alike:
        numbers += [RECALL, RECENT, hash_, 202, 2000]
    found = [int(line) for line in answers(memory, numbers)]
    assert found == [9, 0, 102, 103, 104, 105, 106, 107, 10]


def test_the_time_to_live_is_the_askers(memory: Path) -> None:
    numbers = [1, KEEP, STICKY, 0, 7, 1000]
    for now, ttl in [(1000, 1), (1001, 1), (1999, 1000), (2000, 1000), (2000, 1001)]:
        numbers += [RECALL, STICKY, 0, now, ttl]
    assert answers(memory, numbers) == ["7", "0", "7", "0", "7"]


def test_a_clock_that_went_back_remembers_nothing(memory: Path) -> None:
    numbers = [1, KEEP, RECENT, 3, 7, 1000, RECALL, RECENT, 3, 999, 2000]
    assert answers(memory, numbers) == ["0"]


def test_both_tables_are_full_and_apart(memory: Path) -> None:
    """Nothing is lost as long as each set has room, and neither table knows the other's."""
    chance = random.Random(4)
    tops = [chance.getrandbits(30) << 16 for _ in range(WAYS)]
    numbers, asked = [1], []
    for table, sets in SETS.items():
        hashes = [top + low for top in tops for low in range(sets)]
        for hash_ in hashes:
            numbers += [KEEP, table, hash_, hash_ % 100 + 1 + table, 10]
        asked += [(table, hash_) for hash_ in chance.sample(hashes, 3000)]
    for table, hash_ in asked:
        numbers += [RECALL, table, hash_, 11, 2]
    assert list(map(int, answers(memory, numbers))) == [
        hash_ % 100 + 1 + table for table, hash_ in asked
    ]


def drawn(memory: Path, numbers: list[int]) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in answers(memory, [1, *numbers])]


def in_turn(weights: Sequence[int], draws: int, number: int = 0, identity: int = 1) -> list[int]:
    return [NEXT, number, identity, draws, len(weights), *weights]


def is_fair(weights: Sequence[int], links: Sequence[int]) -> None:
    """After every draw each link has had its share, rounded down or up."""
    total, had = sum(weights), [0] * len(weights)
    for draws, link in enumerate(links, start=1):
        had[link - 1] += 1
        for weight, count in zip(weights, had, strict=True):
            assert abs(Fraction(weight * draws, total) - count) < 1, (weights, draws)


many_weights = st.lists(
    st.one_of(st.integers(1, 9), st.integers(1, 1 << 40)), min_size=1, max_size=24
)


@settings(max_examples=60, deadline=None)
@given(many_weights)
def test_nth_is_fair_after_every_draw(memory: Path, weights: list[int]) -> None:
    [links] = drawn(memory, in_turn(weights, 400))
    is_fair(weights, links)


@pytest.mark.parametrize(
    "weights",
    [
        [1],
        [1] * 128,
        [1, 1 << 61],
        [(1 << 62) - 2, 1],
        [0, 3, 0, 5],
        [10_000_000, 20_000_000],
        [1 << 55] * 64 + [1] * 63,
    ],
)
def test_nth_at_the_edges(memory: Path, weights: list[int]) -> None:
    [links] = drawn(memory, in_turn(weights, 1000))
    is_fair(weights, links)


def test_nth_is_smooth_and_begins_again(memory: Path) -> None:
    """A round has as many draws as the weights say together, and its links lie apart."""
    [links] = drawn(memory, in_turn([5, 1, 1], 21))
    assert links == [1, 1, 1, 2, 1, 1, 3] * 3


def test_whose_turn_it_is_is_kept_by_number(memory: Path) -> None:
    """Another number has a turn of its own; other links or weights begin anew; else it goes on."""
    whole = drawn(memory, in_turn([3, 2, 2], 40))[0]
    numbers = [
        *in_turn([3, 2, 2], 5),
        *in_turn([1, 1], 3, number=8191),
        *in_turn([3, 2, 2], 35),
        *in_turn([3, 2, 2], 40, identity=2),
    ]
    first, other, second, anew = drawn(memory, numbers)
    assert first + second == whole
    assert anew == whole
    assert other == [1, 2, 1]


def test_random_draws_by_weight(memory: Path) -> None:
    """Chi-square at 1 %: 11.34 for three degrees of freedom. The seed is fixed."""
    weights, draws = [1, 0, 2, 3, 4], 20_000
    [links] = drawn(memory, [RANDOM, draws, len(weights), *weights])
    assert 2 not in links
    shares = {link: draws * weight / 10 for link, weight in enumerate(weights, start=1) if weight}
    square = sum((links.count(link) - share) ** 2 / share for link, share in shares.items())
    assert square < 11.34


def test_random_draws_the_heaviest_and_the_last(memory: Path) -> None:
    numbers = [RANDOM, 50, 2, 1, (1 << 62) - 2, RANDOM, 50, 3, 0, 0, 1]
    assert drawn(memory, numbers) == [[2] * 50, [3] * 50]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 2**62)), min_size=1))
def test_numbers_are_scaled_exactly(memory: Path, asked: list[tuple[int, int]]) -> None:
    numbers = [word for number, below in asked for word in (SCALED, number, below)]
    expected = [number * below >> 64 for number, below in asked]
    assert [int(line) for line in answers(memory, [1, *numbers])] == expected
