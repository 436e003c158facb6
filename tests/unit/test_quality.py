"""Windows and timeouts of one target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.decide.quality import (
    FRESH_MS,
    LEAST_ROUNDS,
    LEAST_TIMEOUT_MS,
    MOST_TIMEOUT_MS,
    WINDOW_ROUNDS,
    RoundTrip,
    Window,
    timeout_ms,
)


def heard(*rtts_ms: float, now_ms: float = 0.0) -> RoundTrip:
    trip = RoundTrip()
    for rtt in rtts_ms:
        trip.add(rtt, now_ms)
    return trip


def test_a_near_target_is_given_the_least() -> None:
    assert timeout_ms([heard(*[20.0] * 50), heard(5.0)], 0) == LEAST_TIMEOUT_MS
    assert timeout_ms([], 0) == LEAST_TIMEOUT_MS
    assert timeout_ms([RoundTrip()], 0) == LEAST_TIMEOUT_MS


def test_a_satellite_is_waited_for() -> None:
    """The slowest of those that answer says how long, else its answers would count as lost."""
    assert timeout_ms([heard(20.0), heard(*[650.0] * 50)], 0) == pytest.approx(750, rel=0.01)
    assert timeout_ms([heard(650.0)], 0) == 650 + 4 * 325
    assert timeout_ms([heard(1e6)], 0) == MOST_TIMEOUT_MS


def test_who_has_gone_silent_does_not_slow_the_rest() -> None:
    gone = heard(900.0, now_ms=0.0)
    assert timeout_ms([gone], FRESH_MS) > LEAST_TIMEOUT_MS
    assert timeout_ms([gone], FRESH_MS + 1) == LEAST_TIMEOUT_MS


def test_a_smoothed_round_trip_is_of_who_answers() -> None:
    assert RoundTrip().smooth_ms(0) is None
    assert heard(20.0).smooth_ms(FRESH_MS) == 20.0
    assert heard(20.0).smooth_ms(FRESH_MS + 1) is None
    assert heard(20.0, 100.0).smooth_ms(0) == 30.0
    assert heard(20.0, *[100.0] * 50).smooth_ms(0) == pytest.approx(100, rel=0.01)


@given(st.lists(st.one_of(st.none(), st.floats(0.001, 10_000)), max_size=200))
def test_a_window_is_the_last_rounds(rounds: list[float | None]) -> None:
    window = Window()
    for rtt in rounds:
        window.add(rtt)
    last = rounds[-WINDOW_ROUNDS:]
    answered = [rtt for rtt in last if rtt is not None]
    assert window.full_enough == (len(last) >= LEAST_ROUNDS)
    assert window.loss == ((len(last) - len(answered)) / len(last) if last else None)
    if answered:
        assert window.latency_ms == pytest.approx(sum(answered) / len(answered), abs=1e-6)
    else:
        assert window.latency_ms is None
