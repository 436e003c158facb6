"""From readings of counters to choices: averages, interfaces that come and go, another file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dataplane.config.model import Config, Group, Link, Method
from dataplane.daemon.choosing import INTERVAL_S, Choosing
from dataplane.decide.balance import Served
from dataplane.decide.choice import Measured, Rate

A = Link("a", "wan-a", download_bps=10_000_000)
B = Link("b", "wan-b", download_bps=20_000_000)
SERVING: Served = {"default": {4: frozenset("ab")}}


def config(method: Method, *links: Link) -> Config:
    return Config(("lan0",), links, Group("default", tuple(one.name for one in links), method))


OVERFLOW = config(Method.OVERFLOW, A, B)


class Seen:
    """Stands where the choice is made, and keeps what was measured."""

    def __init__(self) -> None:
        self.measured: list[Measured] = []

    def step(self, _: Config, __: Served, measured: Measured, ___: float) -> dict[str, Any]:
        self.measured.append(measured)
        return {}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    made = Seen()
    monkeypatch.setattr("dataplane.daemon.choosing.Choice", lambda: made)
    return made


def rates(seen: Seen, name: str = "a") -> list[Rate | None]:
    return [measured.rates.get(name) for measured in seen.measured]


def received(seen: Seen) -> list[float | None]:
    """What was made of the readings of wan-a, in kbit/s."""
    return [None if one is None else one.rx_bps / 1000 for one in rates(seen)]


def test_the_average_of_a_second(seen: Seen) -> None:
    """Of the last three readings at half a second; until there are two, nothing."""
    choosing = Choosing(OVERFLOW)
    for number, kilobytes in enumerate((0, 0, 0, 50, 150, 250, 250, 250)):
        counters = {"wan-a": (1_000_000 + kilobytes * 1000, 7), "wan-b": (0, 0)}
        choosing.sample(100.0 + number * INTERVAL_S, counters, {}, SERVING)
    assert received(seen) == [None, 0, 0, 400, 1200, 1600, 800, 0]


def test_both_directions(seen: Seen) -> None:
    choosing = Choosing(OVERFLOW)
    choosing.sample(0.0, {"wan-a": (1000, 5000)}, {}, SERVING)
    choosing.sample(0.5, {"wan-a": (2000, 8000)}, {}, SERVING)
    assert rates(seen) == [None, Rate(16_000, 48_000)]


@pytest.mark.parametrize("pause_s", [0.4, 0.5, 0.55, 0.9, 2.0, 600.0])
def test_any_pause_is_fair(seen: Seen, pause_s: float) -> None:
    """A rate is a rate, however late the reading."""
    choosing = Choosing(OVERFLOW)
    for number in range(10):
        now_s = number * pause_s
        choosing.sample(now_s, {"wan-a": (round(now_s * 1000), 0)}, {}, SERVING)
    assert received(seen)[1:] == pytest.approx([8] * 9, rel=0.01)


def test_two_readings_at_once_tell_nothing(seen: Seen) -> None:
    choosing = Choosing(OVERFLOW)
    for now_s in (0.0, 0.0, 0.01):
        choosing.sample(now_s, {"wan-a": (10_000, 0)}, {}, SERVING)
    assert rates(seen) == [None, None, None]


def test_an_interface_that_went_and_came_counts_anew(seen: Seen) -> None:
    choosing = Choosing(OVERFLOW)
    for now_s, counters in enumerate(
        ({"wan-a": (9000, 0)}, {"wan-a": (10_000, 0)}, {}, {"wan-a": (0, 0)}, {"wan-a": (1000, 0)})
    ):
        choosing.sample(now_s, counters, {}, SERVING)
    assert received(seen) == [None, 8, None, None, 8]


def test_counters_that_fall_are_of_another_interface(seen: Seen) -> None:
    """It went and came between two readings."""
    choosing = Choosing(OVERFLOW)
    for now_s, count in enumerate((9000, 10_000, 100, 1100)):
        choosing.sample(now_s, {"wan-a": (count, 0)}, {}, SERVING)
    assert received(seen) == [None, 8, None, 8]


def test_links_of_one_interface_carry_all_of_it(seen: Seen) -> None:
    choosing = Choosing(config(Method.OVERFLOW, A, replace(B, interface="wan-a")))
    for now_s in range(2):
        choosing.sample(now_s, {"wan-a": (1000 * now_s, 0)}, {}, SERVING)
    assert seen.measured[-1].rates == {"a": Rate(8000, 0), "b": Rate(8000, 0)}


def test_round_trips_are_handed_on(seen: Seen) -> None:
    trips = {("a", 4): 20.0, ("b", 4): None}
    Choosing(OVERFLOW).sample(0.0, {}, trips, SERVING)  # type: ignore[arg-type]
    assert seen.measured[0].rtts_ms == trips


def test_a_full_link_is_left_and_taken_back() -> None:
    choosing = Choosing(OVERFLOW)
    now_s, bytes_a, found = 0.0, 0.0, []
    for half in range(40):
        now_s += INTERVAL_S
        bytes_a += (1.2e6 if half < 12 else 0) * INTERVAL_S
        choices = choosing.sample(
            now_s, {"wan-a": (round(bytes_a), 0), "wan-b": (0, 0)}, {}, SERVING
        )
        found.append(choices["default"][4])
    left, back = found.index("b"), len(found) - found[::-1].index("b")
    assert left * INTERVAL_S <= 2.5
    assert 5.0 <= (back - 12) * INTERVAL_S <= 6.5
    assert found == ["a"] * left + ["b"] * (back - left) + ["a"] * (len(found) - back)


def test_it_is_needed_for_three_methods() -> None:
    needed = {method for method in Method if Choosing(config(method, A, B)).needed}
    assert needed == {Method.OVERFLOW, Method.LEAST_USED, Method.LOWEST_LATENCY}
    group = Group("work", ("b",), Method.LEAST_USED)
    assert Choosing(replace(config(Method.PCC, A, B), groups=(group,))).needed


def test_another_file_goes_on_from_what_is_known() -> None:
    choosing = Choosing(OVERFLOW)
    for half in range(6):
        counters = {"wan-a": (round(half * 0.6e6), 0), "wan-b": (0, 0)}
        choices = choosing.sample(half * INTERVAL_S, counters, {}, SERVING)
    assert choices == {"default": {4: "b"}}
    choosing.take(replace(OVERFLOW, own_traffic="main"))
    assert choosing.sample(3.0, {"wan-a": (3_600_000, 0), "wan-b": (0, 0)}, {}, SERVING) == choices
    choosing.take(config(Method.PCC, A, B))
    assert not choosing.needed
    assert choosing.sample(3.5, {}, {}, SERVING) == {}
