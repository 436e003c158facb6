"""The table of what was learned: cext/learned.h against a dictionary, under the sanitizers."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sanitized import answers, built

ADDRESS, SERVER, CLIENT = range(3)
# What cext/learned.h does at most for one look-up.
MOST_PROBES = 64

# Kind, family, protocol, port, the upper and the lower half of the address: an IPv4 address fills
# the upper 32 bits of the upper one.
Key = tuple[int, int, int, int, int, int]


def key(kind: int, family: int, address: int, protocol: int = 0, port: int = 0) -> Key:
    bits = address << 96 if family == 4 else address
    return kind, family, protocol, port, bits >> 64, bits & (1 << 64) - 1


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(Path(__file__).parent / "learned.c", tmp_path_factory.mktemp("learned"))


def opened(
    table: Path, entries: Sequence[tuple[Key, int]], asked: Sequence[Key], seed: int = 1
) -> list[str]:
    """What the program says: of the table, and the set of each that is asked for."""
    numbers = [seed, 1 + max((number for _, number in entries), default=0), len(entries)]
    numbers += chain(*((*known[:4], number, *known[4:]) for known, number in entries))
    return answers(table, [*numbers, len(asked), *chain(*asked)])


def found(
    table: Path, entries: Mapping[Key, int], asked: Sequence[Key], seed: int = 1
) -> list[int]:
    return [int(line) for line in opened(table, list(entries.items()), asked, seed)[1:]]


def expected(entries: Mapping[Key, int], asked: Key) -> int:
    kind, family, protocol, port, high, low = asked
    if kind == ADDRESS:
        protocol = port = 0
    if family == 4:
        high, low = high >> 32 << 32, 0
    return entries.get((kind, family, protocol, port, high, low), 0)


few = st.integers(0, 3)
families = st.sampled_from([4, 6])
asked_keys = st.builds(key, few.filter(lambda kind: kind < 3), families, few, few, few)


@st.composite
def known_keys(draw: st.DrawFn) -> Key:
    if draw(st.booleans()):
        return key(ADDRESS, draw(families), draw(few))
    kind = draw(st.sampled_from([SERVER, CLIENT]))
    return key(kind, draw(families), draw(few), draw(few), draw(few))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(known_keys(), st.integers(1, 5)), st.lists(asked_keys, max_size=40))
def test_a_few_that_are_alike(table: Path, entries: dict[Key, int], asked: list[Key]) -> None:
    asked = asked + list(entries)
    assert found(table, entries, asked) == [expected(entries, each) for each in asked]


def one_server_with_every_port() -> list[Key]:
    return [key(SERVER, 4, 0x0A000001, 6, port) for port in range(65536)]


def one_network_after_the_other() -> list[Key]:
    return [key(ADDRESS, 6, (0x2A02 << 112) + (number << 64)) for number in range(65536)]


def anybody() -> list[Key]:
    chance = random.Random(1)
    return [
        key(CLIENT, 6, chance.getrandbits(128), 17, chance.getrandbits(16)) for _ in range(65536)
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
@pytest.mark.parametrize("keys", [one_server_with_every_port, one_network_after_the_other, anybody])
def test_sixty_five_thousand(table: Path, keys: Callable[[], list[Key]], seed: int) -> None:
    known = keys()
    entries = {each: number % 7 + 1 for number, each in enumerate(known)}
    others = [key(kind, 4, 0xC0000201, 6, port) for kind in range(3) for port in range(1000)]
    absent = [each for each in others if not expected(entries, each)]
    answered = found(table, entries, [*known, *absent], seed)
    assert answered == [*entries.values(), *(0 for _ in absent)]


def hashed(known: Key, seed: int) -> int:
    kind, family, protocol, port, high, low = known
    rest = kind << 32 | family << 24 | protocol << 16 | port
    return xxhash.xxh3_64_intdigest(struct.pack(">QQ", high, low) + struct.pack("=Q", rest), seed)


def test_who_knows_the_seed_makes_it_take_another(table: Path) -> None:
    """Keys that would all lie in one place of the table are spread by the next seed."""
    seed = 77
    addresses = (key(ADDRESS, 4, number) for number in range(1 << 32))
    together = (each for each in addresses if hashed(each, seed) % 256 < 8)
    entries = {next(together): number for number in range(1, MOST_PROBES + 50)}
    said, *sets = opened(table, list(entries.items()), list(entries), seed)
    assert int(said.split()[0]) != seed
    assert [int(number) for number in sets] == list(entries.values())


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([((3, 4, 0, 0, 0, 0), 1)], "entry 0: kind 3, family 4"),
        ([((1, 5, 0, 0, 0, 0), 1)], "entry 0: kind 1, family 5"),
        ([(key(ADDRESS, 4, 1), 0)], "entry 0: set 0, legal are 1 to 0"),
        ([(key(ADDRESS, 4, 1, 6), 1)], "entry 0: what it does not use is not zero"),
        ([((SERVER, 4, 6, 80, 1, 0), 1)], "entry 0: what it does not use is not zero"),
        ([(key(SERVER, 4, 1, 6, 80), 1)] * 2, "entry 1 is there a second time"),
    ],
)
def test_refused_with_words(table: Path, entries: list[tuple[Key, int]], words: str) -> None:
    assert opened(table, entries, []) == [f"refused: learned {words}"]


def test_nothing_learned(table: Path) -> None:
    assert found(table, {}, [key(ADDRESS, 4, 0), key(SERVER, 6, 0, 6, 80)]) == [0, 0]
