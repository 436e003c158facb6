"""The laws of the slot table, as properties over 1 to 120 links and shares from 1:1 to 1:1,000,000.

Exact shares are Fractions; nothing here is compared with a tolerance that is not written down.
"""

from collections.abc import Collection, Mapping
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.decide.slots import (
    SLOTS,
    SlotTable,
    bound,
    home,
    moved,
    overlay,
    quotas,
    reweight,
)

Weights = dict[str, Fraction]

# Tables are large: fewer examples than usual, and none is too slow.
LAW = settings(max_examples=50, deadline=None)


@st.composite
def weight(draw: st.DrawFn) -> Fraction:
    """Like a share or a capacity: small numbers, round ones, and all magnitudes to a million."""
    magnitude = draw(st.sampled_from([1, 1, 1, 10, 1_000, 1_000_000]))
    return Fraction(draw(st.integers(1, magnitude)), draw(st.sampled_from([1, 1, 3, 10])))


def weights_of(least: int, most: int) -> st.SearchStrategy[Weights]:
    names = st.integers(0, 999).map("l{:03}".format)
    few = st.dictionaries(names, weight(), min_size=least, max_size=min(most, 8))
    many = st.builds(
        lambda count, magnitude, random: {
            f"l{number:03}": Fraction(random.randint(1, magnitude)) for number in range(count)
        },
        st.integers(least, most),
        st.sampled_from([1, 10, 1_000_000]),
        st.randoms(use_true_random=False),
    )
    return st.one_of(few, few, many)


@st.composite
def weights_and_order(draw: st.DrawFn) -> tuple[Weights, list[str]]:
    """Links, and an order in which they die."""
    weights = draw(weights_of(2, 120))
    return weights, draw(st.permutations(sorted(weights)))


def exact(weights: Mapping[str, Fraction], places: int = SLOTS) -> dict[str, Fraction]:
    total = sum(weights.values())
    return {name: places * part / total for name, part in weights.items()}


def assert_within_one(counts: Mapping[str, int], shares: Mapping[str, Fraction]) -> None:
    assert counts.keys() == shares.keys()
    assert sum(counts.values()) == sum(shares.values())
    for name, count in counts.items():
        assert abs(count - shares[name]) < 1, name


def lent(table: SlotTable, with_dead: SlotTable, alive: Collection[str]) -> dict[str, int]:
    """How many slots each living link has beyond its own."""
    own, now = table.counts(), with_dead.counts()
    return {name: now[name] - own[name] for name in alive}


# Quotas


def test_quotas_of_the_largest_remainder() -> None:
    weights = {"a": Fraction(47), "b": Fraction(16), "c": Fraction(158), "d": Fraction(12)}
    assert quotas(weights, 10) == {"a": 2, "b": 1, "c": 7, "d": 0}


def test_ties_go_by_name() -> None:
    equal = dict.fromkeys(("b", "a", "c"), Fraction(1))
    assert quotas(equal, 2) == {"a": 1, "b": 1, "c": 0}
    assert home(equal).counts() == {"a": 21846, "b": 21845, "c": 21845}


def test_one_third_and_two_thirds() -> None:
    table = home({"isp-a": Fraction(10_000_000), "isp-b": Fraction(20_000_000)})
    assert table.counts() == {"isp-a": 21845, "isp-b": 43691}
    assert table.shares() == {"isp-a": 21845 / 65536, "isp-b": 43691 / 65536}


@LAW
@given(weights_of(1, 120), st.integers(0, 70_000))
def test_a_quota_is_within_one_of_the_exact_share(weights: Weights, places: int) -> None:
    assert_within_one(quotas(weights, places), exact(weights, places))


@pytest.mark.parametrize("weights", [{}, {"a": Fraction(0)}, {"a": Fraction(1), "b": Fraction(-1)}])
def test_weights_are_above_zero(weights: Weights) -> None:
    with pytest.raises(ValueError, match=r"expected at least one|must be above zero"):
        home(weights)


# Home


@LAW
@given(weights_of(1, 120))
def test_home_has_the_quotas(weights: Weights) -> None:
    assert home(weights).counts() == quotas(weights)


@LAW
@given(weights_of(1, 120), weight(), st.randoms(use_true_random=False))
def test_home_depends_on_names_and_ratios_alone(
    weights: Weights, factor: Fraction, random: Random
) -> None:
    names = sorted(weights)
    random.shuffle(names)
    assert home({name: weights[name] * factor for name in names}) == home(weights)


def test_home_is_the_same_on_every_machine_and_version() -> None:
    """Routers with the same file agree only as long as this table stays what it is."""
    table = home({"a": Fraction(1), "b": Fraction(2), "c": Fraction(5)})
    assert table.slots[:32].hex() == GOLDEN_HOME
    assert overlay(table, ["a", "c"], dict.fromkeys("abc", Fraction(1))).slots[:32].hex() == (
        GOLDEN_OVERLAY
    )


GOLDEN_HOME = "0202020202010201020201010202000200010101010202020202020101020002"
GOLDEN_OVERLAY = "0202020202020202020200000202000200020002020202020202020200020002"


def test_slots_of_a_link_lie_everywhere() -> None:
    """Whatever stretch of slots one looks at, links have about their shares of it."""
    table = home({"a": Fraction(1), "b": Fraction(3)})
    for start in range(0, SLOTS, 1024):
        assert 150 < table.slots.count(0, start, start + 1024) < 362


# Overlay


@LAW
@given(weights_and_order(), st.data())
def test_the_living_keep_their_slots_and_share_those_of_the_dead(
    links: tuple[Weights, list[str]], data: st.DataObject
) -> None:
    weights, names = links
    alive = set(names[: data.draw(st.integers(1, len(names)))])
    table = home(weights)
    now = overlay(table, alive, weights)

    for index, name in enumerate(table.links):
        if name in alive:
            mine = bytes(link == index for link in range(256))
            before, after = table.slots.translate(mine), now.slots.translate(mine)
            assert int.from_bytes(before) & ~int.from_bytes(after) == 0
        else:
            assert index not in now.slots
    dead_slots = sum(count for name, count in table.counts().items() if name not in alive)
    living = {name: weights[name] for name in alive}
    assert lent(table, now, alive) == quotas(living, dead_slots)
    # Own quota and lent quota are each within one.
    for name, share in exact(living).items():
        assert abs(now.counts()[name] - share) < 3
    assert moved(table, now) == bound(table, now) == dead_slots


@LAW
@given(weights_and_order(), st.data())
def test_overlay_has_no_memory(links: tuple[Weights, list[str]], data: st.DataObject) -> None:
    weights, names = links
    table = home(weights)
    alive = names[: data.draw(st.integers(1, len(names)))]
    assert overlay(table, alive, weights) == overlay(table, frozenset(alive), dict(weights))
    assert overlay(table, [*alive, "other"], weights) == overlay(table, alive, weights)
    assert overlay(table, names, weights) is table
    assert overlay(table, [], weights) is table


@LAW
@given(weights_and_order())
def test_a_second_failure_moves_what_the_dead_link_held(links: tuple[Weights, list[str]]) -> None:
    """Beyond that, at most 12 slots for each living link, which is the rounding of the parts.

    Each part is rounded by less than one a link, or is left to draws where it has fewer than
    4 slots a link; two dead links make four parts.
    """
    weights, names = links
    table = home(weights)
    one = overlay(table, names[1:], weights)
    two = overlay(table, names[2:], weights)
    held = one.counts()[names[1]] if len(names) > 2 else 0
    assert moved(one, two if names[2:] else one) <= held + 12 * len(names[2:])


@pytest.mark.parametrize(("links", "most"), [(3, 0.001), (5, 0.01), (8, 0.02), (16, 0.05)])
def test_failure_after_failure_moves_little_else(links: int, most: float) -> None:
    """Until one link is left, in three orders: slots moved beyond the bound, as a part of it."""
    random = Random(links)
    excess = bounds = 0
    for _ in range(3):
        weights = {f"l{n:02}": Fraction(random.randint(1, 10)) for n in range(links)}
        names = random.sample(sorted(weights), links)
        table = before = home(weights)
        for dead in range(1, links):
            held = before.counts()[names[dead - 1]]
            after = overlay(table, names[dead:], weights)
            excess += moved(before, after) - held
            bounds += held
            before = after
    assert excess <= most * bounds


# Reweight


@LAW
@given(weights_of(1, 120), weights_of(1, 120))
def test_reweight_moves_exactly_the_bound(old: Weights, new: Weights) -> None:
    before = home(old)
    after = reweight(before, new)
    assert after.counts() == quotas(new)
    assert moved(before, after) == bound(before, after)
    assert reweight(after, new) == after
    assert reweight(after, {name: part * 7 for name, part in new.items()}) == after


@LAW
@given(weights_of(2, 120), st.data())
def test_reweight_after_reweight_stays_within_quota(weights: Weights, data: st.DataObject) -> None:
    table = home(weights)
    for _ in range(3):
        name = data.draw(st.sampled_from(sorted(weights)))
        weights = weights | {name: data.draw(weight())}
        if len(weights) > 2:
            weights.pop(data.draw(st.sampled_from(sorted(weights))))
        before, table = table, reweight(table, weights)
        assert_within_one(table.counts(), exact(weights))
        assert moved(before, table) == bound(before, table)


def test_a_reweighted_table_takes_an_overlay_too() -> None:
    weights = {name: Fraction(part) for name, part in zip("abcd", (1, 2, 3, 4), strict=True)}
    table = reweight(home({"a": Fraction(1), "x": Fraction(1)}), weights)
    now = overlay(table, "abd", weights)
    assert lent(table, now, "abd") == quotas({n: weights[n] for n in "abd"}, table.counts()["c"])
    assert moved(table, now) == table.counts()["c"]


# Tables


def test_moved_goes_by_name() -> None:
    one = SlotTable(("b",), bytes(SLOTS))
    two = SlotTable(("a", "b"), b"\1" * SLOTS)
    assert moved(one, two) == bound(one, two) == 0
    assert moved(two, SlotTable(("a", "c"), bytes(SLOTS))) == SLOTS


@pytest.mark.parametrize(
    ("links", "slots", "message"),
    [
        ((), bytes(SLOTS), "expected 1 to 254 links, got 0"),
        (tuple(f"{n:03}" for n in range(255)), bytes(SLOTS), "expected 1 to 254 links, got 255"),
        (("b", "a"), bytes(SLOTS), "expected links sorted by name, each once"),
        (("a", "a"), bytes(SLOTS), "expected links sorted by name, each once"),
        (("a",), bytes(SLOTS - 1), "expected 65536 slots, got 65535"),
        (("a", "b"), b"\2" + bytes(SLOTS - 1), "expected links 0 to 1, got a slot of 2"),
    ],
)
def test_a_table_that_is_none(links: tuple[str, ...], slots: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlotTable(links, slots)
