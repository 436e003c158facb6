"""Which link a load-driven group prefers, from what is measured, in a town of pipes and water."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.model import Config, Group, Link, Method
from dataplane.decide.balance import Served
from dataplane.decide.choice import (
    MOST_EMPTY_FOR_S,
    MOST_SOONER_FOR_S,
    Choice,
    Measured,
    Rate,
    free_bps,
    load_driven,
    utilisation,
)
from dataplane.decide.facts import Family
from tests.unit.town import ALL, MINUTE_S, STEP_S, A, B, C, Town, config


class TestOverflow:
    """The first link that is not full."""

    def town(self, *links: Link, full: float = 0.9) -> Town:
        return Town(config(Method.OVERFLOW, *(links or (A, B)), full=full))

    def test_a_full_link_is_left_in_two_seconds(self) -> None:
        town = self.town()
        assert town.goes_on(MINUTE_S) == []
        town.lasting["a"] = 12
        assert 1.0 < town.until("b") <= 2.5

    def test_a_busy_link_is_not_left(self) -> None:
        town = self.town()
        town.lasting["a"] = 8.9
        assert town.goes_on(60 * MINUTE_S) == []

    def test_a_moment_is_not_full(self) -> None:
        """A page that loads in a second, again and again."""
        town = self.town()
        for _ in range(100):
            town.lasting["a"] = 10
            town.goes_on(1.0)
            town.lasting["a"] = 1
            town.goes_on(4.0)
        assert [name for _, name in town.changes] == ["a"]

    @pytest.mark.parametrize("full", [0.5, 0.7])
    def test_full_is_what_the_file_says(self, full: float) -> None:
        town = self.town(full=full)
        town.lasting["a"] = 10 * full - 0.1
        assert town.goes_on(MINUTE_S) == []
        town.lasting["a"] = 10 * full + 0.1
        assert town.goes_on(MINUTE_S) == ["b"]

    def test_the_upload_fills_a_link_too(self) -> None:
        link = Link("a", "wan-a", download_bps=10_000_000, upload_bps=1_000_000)
        choice, file = Choice(), config(Method.OVERFLOW, link, B)
        for number in range(10):
            measured = Measured({"a": Rate(1e6, 0.95e6), "b": Rate()})
            found = choice.step(file, ALL, measured, number / 2)
        assert found == {"default": {4: "b"}}

    def test_it_returns_when_the_load_has_ended(self) -> None:
        town = self.town()
        town.lasting["a"] = 12
        town.fresh = 3
        town.until("b")
        assert town.goes_on(5 * MINUTE_S) == []
        town.lasting["a"] = 0
        assert 5.0 <= town.until("a") <= 7.0
        assert town.goes_on(60 * MINUTE_S) == []

    def test_a_load_between_the_two_thresholds_stays_where_it_is(self) -> None:
        town = self.town()
        town.lasting["a"] = 10
        town.until("b")
        town.lasting["a"] = 7
        assert town.goes_on(60 * MINUTE_S) == []
        town.lasting["a"] = 6.5
        town.until("a", 7.0)

    @given(
        st.floats(0, 15),
        st.floats(0.5, 120),
        st.floats(0, 15),
    )
    def test_a_constant_load_does_not_swing(
        self, fresh: float, life_s: float, lasting: float
    ) -> None:
        """Neither one of lasting connections nor one that follows the choice, nor both."""
        town = self.town()
        town.fresh, town.life_s, town.lasting["a"] = fresh, life_s, lasting
        assert town.goes_on(5 * MINUTE_S) in ([], ["b"])

    def test_what_would_not_fit_is_tried_seldom(self) -> None:
        town = self.town()
        town.fresh = 15
        town.until("b")
        changes = town.goes_on(60 * MINUTE_S)
        assert set(changes) == {"a", "b"}
        assert len(changes) <= 2 * 60 * MINUTE_S / MOST_EMPTY_FOR_S

    def test_what_the_second_link_carried_before_does_not_hinder_a_return(self) -> None:
        town = self.town()
        town.lasting = {"b": 15}
        town.goes_on(10)
        town.lasting["a"] = 10
        town.until("b")
        town.lasting["a"] = 0
        assert town.until("a") <= 7.0

    def test_a_link_that_fills_again_and_again_is_taken_back_ever_later(self) -> None:
        town = self.town()
        waited = []
        for _ in range(9):
            town.lasting["a"] = 10
            town.until("b")
            town.lasting["a"] = 0
            waited.append(town.until("a", 700.0))
        assert waited == pytest.approx([5, 10, 20, 40, 80, 160, 320, 600, 600], abs=1)
        # Three calm minutes are three times half of it.
        town.goes_on(3.5 * MINUTE_S)
        town.lasting["a"] = 10
        town.until("b")
        town.lasting["a"] = 0
        assert town.until("a", 700.0) == pytest.approx(75, abs=1)

    def test_three_links_in_their_order(self) -> None:
        town = self.town(A, C, B)
        town.lasting["a"] = 10
        town.until("c")
        town.lasting["c"] = 5
        town.until("b")
        assert town.goes_on(5 * MINUTE_S) == []
        town.lasting["c"] = 0
        town.until("c")
        town.lasting["a"] = 0
        town.until("a")

    def test_when_all_are_full_the_freest_takes_it(self) -> None:
        town = self.town()
        town.lasting = {"a": 10, "b": 18.5}
        assert town.goes_on(MINUTE_S) == ["b"], "of 20 Mbit/s, 1.5 are free"
        town.lasting = {"a": 9.5, "b": 19.9}
        assert town.goes_on(MINUTE_S) == [], "0.4 Mbit/s are no margin"

    def test_a_contest_that_was_broken_off_begins_anew(self) -> None:
        """The second link was better for a moment, and then the first one was not full."""
        town = self.town()
        town.lasting = {"a": 9.1, "b": 18.5}
        town.goes_on(3.0)
        assert town.chosen == "a", "both are full"
        town.lasting = {"a": 6.5, "b": 20}
        town.goes_on(4.5)
        town.lasting["b"] = 14
        town.goes_on(5.0)
        assert [name for _, name in town.changes] == ["a"]
        town.lasting = {"a": 10, "b": 14}
        assert 2.5 < town.until("b") <= 3.5, "two seconds to be full, one to be beaten"

    def test_a_link_that_is_held_is_better_than_a_full_one(self) -> None:
        """It would have to wait; but the other one has no room."""
        town = self.town()
        town.lasting["a"] = 10
        town.until("b")
        town.lasting = {"a": 7, "b": 20}
        assert town.until("a") <= 4.0

    def test_more_than_any_link_can_take_does_not_flutter(self) -> None:
        """Connections that come and go, 28 Mbit/s of them: now here, now there."""
        town = self.town()
        town.fresh = 28
        assert 0 < len(town.goes_on(5 * MINUTE_S)) <= 5 * MINUTE_S / 2

    def test_a_dead_link_is_left_at_once(self) -> None:
        town = self.town()
        town.dead = {"a"}
        assert town.step() == "b"
        town.dead = set()
        assert town.step() == "a"

    def test_what_comes_back_is_another_link(self) -> None:
        """It was full when it died."""
        town = self.town()
        town.lasting["a"] = 10
        town.until("b")
        town.dead, town.lasting = {"a"}, {}
        town.step()
        town.dead = set()
        assert town.step() == "a"


class TestLeastUsed:
    """The link with most capacity free."""

    def town(self, *links: Link) -> Town:
        return Town(config(Method.LEAST_USED, *(links or (A, B))))

    def test_the_widest_of_idle_links(self) -> None:
        assert self.town().chosen == "b"

    def test_another_has_to_be_freer_by_a_tenth_of_itself(self) -> None:
        town = self.town()
        town.lasting["b"] = 10.9
        assert town.goes_on(MINUTE_S) == []
        town.lasting["b"] = 11.1
        assert town.until("a") <= 2.5
        town.lasting["b"] = 8.1
        assert town.goes_on(MINUTE_S) == []
        town.lasting["b"] = 7.9
        assert town.until("b") <= 2.5

    def test_a_moment_moves_nothing(self) -> None:
        town = self.town()
        for _ in range(100):
            town.lasting["b"] = 20
            town.step()
            town.lasting["b"] = 0
            town.goes_on(2.0)
        assert [name for _, name in town.changes] == ["b"]

    @pytest.mark.parametrize("life_s", [0.5, 5, 60])
    def test_a_herd_is_turned_round_soon(self, life_s: float) -> None:
        """All go where it was free a moment ago; so links take turns, none for a second or less."""
        town = self.town()
        town.fresh, town.life_s = 24, life_s
        town.goes_on(5 * MINUTE_S)
        spans = town.spans()
        assert spans
        assert min(spans) >= 1.0
        # In the long run the free capacities are alike.
        sums = dict.fromkeys(("a", "b"), 0.0)
        for _ in range(1200):
            town.step()
            for link in (A, B):
                sums[link.name] += town.carried(link) / 1200
        assert abs((10 - sums["a"]) - (20 - sums["b"])) < 4

    def test_without_measurements_the_first(self) -> None:
        choice, file = Choice(), config(Method.LEAST_USED, A, B)
        assert choice.step(file, ALL, Measured(), 0.0) == {"default": {4: "a"}}
        half = Measured({"b": Rate()})
        assert choice.step(file, ALL, half, 5.0) == {"default": {4: "a"}}
        whole = Measured({"a": Rate(), "b": Rate()})
        assert choice.step(file, ALL, whole, 10.0) == {"default": {4: "a"}}
        assert choice.step(file, ALL, whole, 11.0) == {"default": {4: "b"}}


class TestLowestLatency:
    """The link whose probes answer soonest."""

    def town(self, margin_ms: int = 10, **rtts: float | None) -> Town:
        town = Town(config(Method.LOWEST_LATENCY, A, B, C, margin_ms=margin_ms))
        town.rtts.update(rtts)
        return town

    def test_another_has_to_be_faster_by_the_margin_for_three_seconds(self) -> None:
        town = self.town(a=30, b=21)
        assert town.goes_on(MINUTE_S) == []
        town.rtts["b"] = 20
        assert 3.0 <= town.until("b") <= 3.5

    def test_a_moment_moves_nothing(self) -> None:
        town = self.town(a=30, b=25)
        for _ in range(100):
            town.rtts["a"] = 300
            town.goes_on(2.0)
            town.rtts["a"] = 30
            town.step()
        assert [name for _, name in town.changes] == ["a"]

    def test_who_is_not_measured_comes_last(self) -> None:
        town = self.town(a=None, b=None, c=500)
        assert 3.0 <= town.until("c") <= 3.5
        town.rtts["c"] = None
        assert town.goes_on(MINUTE_S) == [], "all alike"
        town.dead = {"c"}
        assert town.step() == "a"

    def test_to_the_fastest_of_those_that_are_faster(self) -> None:
        """Two that take turns in being the fastest are faster together."""
        town = self.town(a=100)
        for number in range(6):
            town.rtts |= {"b": 20 + number % 2, "c": 21 - number % 2}
            town.step()
        assert town.until("b" if town.rtts["b"] == 20 else "c") <= 1.0

    def test_at_first_it_is_no_merit_to_be_measured_before_others(self) -> None:
        serving: Served = {"default": {4: frozenset("abc")}}
        for rtts, name in (
            ({"b": 5.0}, "a"),
            ({"a": 30.0, "b": 22.0, "c": 21.0}, "a"),
            ({"a": 30.0, "b": 22.0, "c": 19.0}, "b"),
        ):
            measured = Measured(rtts_ms={(link, 4): rtt for link, rtt in rtts.items()})
            file = config(Method.LOWEST_LATENCY, A, B, C)
            assert Choice().step(file, serving, measured, 0.0) == {"default": {4: name}}

    def test_a_latency_that_follows_the_load_changes_at_most_once_a_minute(self) -> None:
        town = self.town(margin_ms=5, b=50, c=900)
        for _ in range(int(20 * MINUTE_S / STEP_S)):
            town.rtts["a"] = 200 if town.chosen == "a" else 20
            town.step()
        spans = town.spans()
        assert spans[:4] == sorted(spans[:4])
        assert min(spans[5:]) >= MOST_SOONER_FOR_S

    def test_a_dead_link_is_left_at_once(self) -> None:
        town = self.town(a=10, b=90, c=50)
        town.dead = {"a"}
        assert town.step() == "c"
        town.dead = {"a", "c"}
        assert town.step() == "b"
        town.rtts |= {"a": None, "c": 85}
        town.dead = {"b"}
        assert town.step() == "c", "who is not measured comes last"

    def test_families_are_chosen_apart(self) -> None:
        choice, file = Choice(), config(Method.LOWEST_LATENCY, A, B)
        measured = Measured(
            rtts_ms={("a", 4): 10.0, ("b", 4): 90.0, ("a", 6): 90.0, ("b", 6): None}
        )
        both: Served = {"default": {4: frozenset("ab"), 6: frozenset("ab")}}
        assert choice.step(file, both, measured, 0.0) == {"default": {4: "a", 6: "a"}}
        less: Served = {"default": {4: frozenset("ab"), 6: frozenset("b")}}
        assert choice.step(file, less, measured, 0.5) == {"default": {4: "a", 6: "b"}}


METHODS = [Method.OVERFLOW, Method.LEAST_USED, Method.LOWEST_LATENCY]
RATE = st.builds(Rate, st.floats(0, 3e7), st.floats(0, 3e7))
SOME = st.frozensets(st.sampled_from("abc"))


@given(
    st.sampled_from(METHODS),
    st.lists(
        st.tuples(
            SOME,
            SOME,
            st.dictionaries(st.sampled_from("abc"), RATE),
            st.dictionaries(
                st.tuples(st.sampled_from("abc"), st.sampled_from((4, 6))),
                st.none() | st.floats(0, 1000),
            ),
            st.floats(0, 1000),
        ),
        max_size=20,
    ),
)
def test_somebody_who_serves_is_chosen(
    method: Method, steps: Sequence[tuple[frozenset[str], frozenset[str], Any, Any, float]]
) -> None:
    """Whatever is measured, for every family that somebody serves."""
    choice, now_s = Choice(), 0.0
    for four, six, rates, rtts, pause_s in steps:
        now_s += pause_s
        serving: Mapping[Family, frozenset[str]] = {4: four, 6: six}
        found = choice.step(
            config(method, A, B, C), {"default": serving}, Measured(rates, rtts), now_s
        )["default"]
        for family, names in serving.items():
            assert (found[family] in names) if names else (family not in found)


def test_groups_choose_apart_and_others_are_left_alone() -> None:
    file = Config(
        ("lan0",),
        (A, B),
        Group("default", ("a", "b")),
        groups=(
            Group("first", ("a", "b"), Method.OVERFLOW),
            Group("other", ("b", "a"), Method.OVERFLOW),
        ),
    )
    serving: Served = {name: {4: frozenset("ab")} for name in ("default", "first", "other")}
    assert load_driven(file)
    assert not load_driven(config(Method.PCC, A, B))
    found = Choice().step(file, serving, Measured(), 0.0)
    assert found == {"first": {4: "a"}, "other": {4: "b"}}
    assert Choice().step(file, {}, Measured(), 0.0) == {"first": {}, "other": {}}


def test_another_method_begins_anew() -> None:
    choice = Choice()
    measured = Measured({"a": Rate(), "b": Rate()}, {("a", 4): 90.0, ("b", 4): 10.0})
    steps = [
        (Method.LEAST_USED, "b"),
        (Method.OVERFLOW, "a"),
        (Method.LOWEST_LATENCY, "b"),
        (Method.OVERFLOW, "a"),
    ]
    for number, (method, name) in enumerate(steps):
        found = choice.step(config(method, A, B), ALL, measured, number / 2)
        assert found == {"default": {4: name}}
    assert choice.step(config(Method.PCC, A, B), ALL, measured, 9.0) == {}


def test_utilisation() -> None:
    both = Link("x", "wan", download_bps=100, upload_bps=10)
    assert utilisation(both, Rate(50, 9)) == pytest.approx(0.9)
    assert free_bps(both, Rate(50, 9)) == pytest.approx(10)
    assert utilisation(Link("x", "wan", download_bps=100), Rate(20, 30)) == pytest.approx(0.3)
    assert utilisation(Link("x", "wan"), Rate(50, 9)) == 0.0
    assert free_bps(Link("x", "wan"), Rate(50, 9)) == 0.0
