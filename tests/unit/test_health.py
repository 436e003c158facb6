"""The transition table, driven by a clock of our own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dataplane.config.model import Probe
from dataplane.decide.facts import Family
from dataplane.decide.health import (
    CALM_MS,
    FIRST_HOLD_MS,
    TABLE,
    Answer,
    Health,
    Sign,
    State,
    doubts,
    good_round,
    judgements,
    published,
)
from dataplane.decide.liveness import Condition, Judgement
from dataplane.decide.quality import LEAST_ROUNDS, WINDOW_ROUNDS

PROBE = Probe()
ROUND_MS = 500.0
MOST_HOLD_MS = 60_000.0


def answers(*rtts_ms: float | None, gateway: float | None = 1.0) -> list[Answer]:
    """The gateway's answer, then one a target beyond it."""
    beyond = [Answer(f"t{number}", True, rtt) for number, rtt in enumerate(rtts_ms, 1)]
    return [Answer("gateway", False, gateway), *beyond]


GOOD, BAD = answers(10.0, 12.0), answers(None, None)


class Clocked:
    """A way with one probe, and a clock that goes on by a round with each round."""

    def __init__(self, probe: Probe = PROBE, hold_ms: float = MOST_HOLD_MS) -> None:
        self.now_ms = 1_000_000.0
        self.health = Health([probe], hold_ms)
        self.health.joined(self.now_ms)

    def rounds(self, count: int, heard: list[Answer]) -> State:
        for _ in range(count):
            self.now_ms += ROUND_MS
            self.health.heard(0, heard, self.now_ms)
        return self.health.state

    def until_up(self) -> float:
        """Good rounds until it is up; how long that took, in ms."""
        began_ms = self.now_ms
        while self.rounds(1, GOOD) is not State.UP:
            assert self.now_ms - began_ms < 2 * MOST_HOLD_MS
        return self.now_ms - began_ms

    def wait(self, ms: float) -> None:
        """Good rounds for so long."""
        self.rounds(int(ms // ROUND_MS), GOOD)


def test_the_table_is_the_one_in_the_file() -> None:
    """Nothing is up that was not up, steady or new before; cut wins everywhere."""
    assert all((state, Sign.CUT) in TABLE for state in State if state is not State.CUT)
    ways_up = {key for key, after in TABLE.items() if after is State.UP}
    assert {sign for _, sign in ways_up} == {Sign.JOINED, Sign.STEADY}
    assert (State.CUT, Sign.STEADY) not in TABLE
    assert [state for state, sign in ways_up if sign is Sign.JOINED] == [State.NEW]


def test_three_bad_rounds_and_five_good_ones() -> None:
    way = Clocked()
    assert way.rounds(2, BAD) is State.UP
    assert way.rounds(1, GOOD) is State.UP
    assert way.rounds(2, BAD) is State.UP, "only rounds in a row count"
    assert way.rounds(1, BAD) is State.SILENT
    assert way.health.why == "no answer from t1 and t2; the gateway answers"
    assert way.rounds(4, GOOD) is State.SILENT
    assert way.rounds(1, BAD) is State.SILENT
    assert way.rounds(4, GOOD) is State.SILENT
    assert way.rounds(1, GOOD) is State.UP
    assert way.health.why == ""


@pytest.mark.parametrize(
    ("heard", "need", "good"),
    [
        (answers(1.0, None), 1, True),
        (answers(1.0, None), 2, False),
        (answers(None, None), 1, False),
        (answers(None, None, gateway=1.0), 1, False),
        (answers(1.0, 1.0, gateway=None), 1, True),
        (answers(1.0), 2, True),
        (answers(gateway=1.0), 1, True),
        (answers(gateway=None), 1, False),
        ([], 1, None),
    ],
)
def test_k_of_n(heard: list[Answer], need: int, good: bool | None) -> None:
    """`need` of those beyond the gateway; the gateway counts where there is nobody else."""
    assert good_round(heard, need) is good


def test_why_tells_a_silent_gateway_from_a_silent_path() -> None:
    way = Clocked()
    way.rounds(3, answers(None, None, gateway=None))
    assert way.health.why == "no answer from t1 and t2, nor the gateway"
    way = Clocked()
    way.rounds(3, answers(gateway=None))
    assert way.health.why == "no answer from gateway"


def test_one_silent_target_never_decides() -> None:
    way = Clocked()
    assert way.rounds(1000, answers(10.0, None)) is State.UP
    assert way.rounds(1000, answers(10.0, None, gateway=None)) is State.UP


def test_what_cannot_be_asked_says_nothing() -> None:
    """A name that does not resolve is no reason to think ill of the link, nor well."""
    way = Clocked()
    assert way.rounds(50, []) is State.UP
    assert way.rounds(3, BAD) is State.SILENT
    assert way.rounds(1, []) is State.UP, "nobody says otherwise"


def test_a_carrier_that_comes_back_has_to_prove_itself() -> None:
    way = Clocked()
    way.health.cut("no carrier", way.now_ms)
    assert way.health.judgement.condition is Condition.CUT
    assert way.rounds(10, GOOD) is State.CUT, "what arrives late is no news"
    way.health.joined(way.now_ms)
    assert way.health.state is State.RETURNING
    assert way.health.judgement.condition is Condition.SILENT
    assert way.rounds(4, GOOD) is State.RETURNING
    assert way.rounds(1, GOOD) is State.UP


def test_without_probes_the_carrier_alone_says() -> None:
    health = Health([], MOST_HOLD_MS)
    health.joined(0)
    assert health.state is State.UP
    health.cut("no carrier", 1000)
    health.joined(2000)
    assert health.state is State.UP, "the first return waits for nothing"
    health.cut("no carrier", 3000)
    health.joined(4000)
    assert health.state is State.RETURNING
    assert health.hold_left_ms(4000) == FIRST_HOLD_MS
    health.judge(4000 + FIRST_HOLD_MS - 1)
    assert health.state is State.RETURNING
    health.judge(4000 + FIRST_HOLD_MS)
    assert health.state is State.UP


def test_holds_double_up_to_the_ceiling_and_fall_with_each_calm_minute() -> None:
    way = Clocked()
    holds = []
    for _ in range(7):
        way.rounds(3, BAD)
        holds.append(way.health.hold_ms)
        waited_ms = way.until_up()
        assert waited_ms >= way.health.hold_ms
    assert holds == [0, 5_000, 10_000, 20_000, 40_000, 60_000, 60_000]
    way.wait(2 * CALM_MS + ROUND_MS)
    way.rounds(3, BAD)
    assert way.health.hold_ms == 20_000, "two calm minutes, two halvings"
    way.until_up()
    way.wait(20 * CALM_MS)
    way.rounds(3, BAD)
    assert way.health.hold_ms == 0


def test_silence_begins_the_hold_anew_and_a_bad_round_does_not() -> None:
    """Else a link with one bad round in a hundred would never come back from a long hold."""
    way = Clocked()
    way.rounds(3, BAD)
    way.until_up()
    way.rounds(3, BAD)
    way.rounds(3, GOOD)
    way.rounds(2, BAD)
    way.rounds(1, GOOD)
    assert way.health.hold_left_ms(way.now_ms) == FIRST_HOLD_MS - 5 * ROUND_MS
    way.rounds(3, BAD)
    assert way.health.hold_left_ms(way.now_ms) == FIRST_HOLD_MS
    assert way.rounds(10, GOOD) is State.SILENT
    assert way.rounds(1, GOOD) is State.UP


def test_up_takes_good_rounds_at_the_end_of_the_hold_too() -> None:
    way = Clocked()
    way.rounds(3, BAD)
    way.until_up()
    way.rounds(3, BAD)
    way.rounds(9, GOOD)
    assert way.rounds(1, BAD) is State.SILENT
    assert way.rounds(4, GOOD) is State.SILENT
    assert way.health.hold_left_ms(way.now_ms) == 0
    assert way.rounds(1, GOOD) is State.UP


def test_a_late_answer_speaks_for_the_path() -> None:
    """Only rounds that were asked after it can still speak against it."""
    way = Clocked()
    way.rounds(2, BAD)
    way.health.heard_late(0, 1)
    assert way.rounds(1, BAD) is State.UP, "one bad round after it, and this one"
    assert way.rounds(1, BAD) is State.SILENT
    way.health.heard_late(0, 0)
    assert way.rounds(4, GOOD) is State.SILENT, "it is no good round"
    assert way.rounds(1, GOOD) is State.UP


def test_doubt_follows_as_verdicts_do() -> None:
    four, six = Clocked(), Clocked()
    six.rounds(1, answers())
    assert doubts({4: four.health, 6: six.health}) == set()
    four.rounds(1, BAD)
    assert doubts({4: four.health, 6: six.health}) == {4, 6}
    six.rounds(1, GOOD)
    assert doubts({4: four.health, 6: six.health}) == {4}


def test_other_probes_begin_anew_and_the_state_stays() -> None:
    way = Clocked()
    way.rounds(3, BAD)
    way.health.take_probes([PROBE, PROBE], MOST_HOLD_MS)
    assert way.health.state is State.SILENT
    for _ in range(5):
        assert way.health.state is State.SILENT
        way.rounds(1, GOOD)
        way.health.heard(1, GOOD, way.now_ms)
    assert way.health.state is State.UP


def test_no_damping() -> None:
    way = Clocked(hold_ms=0)
    for _ in range(20):
        assert way.rounds(3, BAD) is State.SILENT
        assert way.rounds(5, GOOD) is State.UP


LOSSY = replace(PROBE, loss_down=0.3, loss_up=0.1)


def test_loss_has_two_thresholds() -> None:
    lost_one = answers(None, 10.0)
    way = Clocked(replace(LOSSY, need=2, down=100))
    assert way.rounds(WINDOW_ROUNDS, GOOD) is State.UP
    # Exactly 30 % is within, one more is not.
    assert way.rounds(round(WINDOW_ROUNDS * 0.3), lost_one) is State.UP
    assert way.rounds(1, lost_one) is State.POOR
    assert way.health.why == "32% of the answers are lost, more than 30%"
    assert way.health.judgement.condition is Condition.POOR
    # 19 of 60 are lost; they leave the window behind the good ones, until 6 are left.
    kept = WINDOW_ROUNDS - 19
    assert way.rounds(kept + 12, GOOD) is State.POOR
    assert way.rounds(1, GOOD) is State.UP


def test_latency_has_two_thresholds() -> None:
    way = Clocked(replace(PROBE, latency_down_ms=100, latency_up_ms=50))
    assert way.rounds(WINDOW_ROUNDS, answers(100.0, 900.0)) is State.UP
    assert way.rounds(WINDOW_ROUNDS, answers(110.0, 900.0)) is State.POOR
    assert way.health.why == "answers take 100 ms, longer than 100 ms"
    assert way.rounds(WINDOW_ROUNDS, answers(60.0, 900.0)) is State.POOR
    assert way.rounds(WINDOW_ROUNDS, answers(40.0, 900.0)) is State.UP


def test_quality_is_not_judged_by_a_few_rounds() -> None:
    way = Clocked(replace(LOSSY, down=100))
    assert way.rounds(LEAST_ROUNDS - 1, BAD) is State.UP
    assert way.rounds(1, BAD) is State.POOR


def test_a_dead_path_is_not_held_against_the_living_one() -> None:
    """What was lost while it was silent is no loss of the path that came back."""
    way = Clocked(LOSSY)
    way.rounds(WINDOW_ROUNDS, BAD)
    assert way.rounds(5, GOOD) is State.UP
    assert way.rounds(100, GOOD) is State.UP


def test_who_asks_nobody_follows_who_asks_the_gateway() -> None:
    """As on a link that is asked by ARP. Gateways of both families say each their own."""
    four, six = Clocked(), Clocked()
    six.health.heard(0, [], six.now_ms)
    four.rounds(3, answers(gateway=None))
    found = judgements({4: four.health, 6: six.health})
    assert found == dict.fromkeys((4, 6), four.health.judgement)
    assert found[6].condition is Condition.SILENT
    six.rounds(1, answers())
    assert judgements({4: four.health, 6: six.health})[6].condition is Condition.LIVING


def test_a_family_without_targets_follows_the_other() -> None:
    four, six = Clocked(), Clocked()
    six.rounds(1, answers())
    four.rounds(3, BAD)
    assert judgements({4: four.health, 6: six.health}) == {
        4: four.health.judgement,
        6: four.health.judgement,
    }
    fresh = Clocked()
    fresh.health.cut("no carrier", fresh.now_ms)
    fresh.health.joined(fresh.now_ms)
    four.rounds(5, GOOD)
    found = judgements({4: four.health, 6: fresh.health})[6]
    assert found.condition is Condition.SILENT, "before the first round, nobody knows"
    four.rounds(3, BAD)
    six.health.cut("no IPv6 address", six.now_ms)
    assert judgements({4: four.health, 6: six.health})[6].condition is Condition.CUT
    four.health.cut("no IPv4 address", four.now_ms)
    six.health.joined(six.now_ms)
    six.rounds(5, answers())
    assert judgements({4: four.health, 6: six.health})[6].condition is Condition.LIVING


UP, GONE = Judgement(Condition.LIVING), Judgement(Condition.SILENT, "no answer")
A4, B4, C4, B6 = ("a", 4), ("b", 4), ("c", 4), ("b", 6)
Ways = dict[tuple[str, Family], Judgement]


@pytest.mark.parametrize(
    ("before", "found", "doubtful", "waits"),
    [
        ({A4: UP, B4: UP}, {A4: GONE, B4: UP}, [], False),
        ({A4: UP, B4: UP}, {A4: GONE, B4: UP}, [B4], True),
        ({A4: UP, B4: UP}, {A4: GONE, B4: UP}, [B6], False),
        ({A4: UP, B4: UP, C4: UP}, {A4: GONE, B4: UP, C4: UP}, [B4], False),
        ({A4: UP, B4: UP, C4: UP}, {A4: GONE, B4: UP, C4: UP}, [B4, C4], True),
        ({A4: UP, B4: UP, C4: GONE}, {A4: GONE, B4: UP, C4: GONE}, [B4], True),
        ({A4: UP, B4: UP}, {A4: GONE, B4: GONE}, [], False),
        ({A4: UP}, {A4: GONE}, [], False),
        ({A4: GONE, B4: UP}, {A4: GONE, B4: UP}, [B4], False),
        ({}, {A4: GONE, B4: UP}, [B4], False),
    ],
)
def test_one_that_falls_silent_waits_while_all_are_in_doubt(
    before: Ways, found: Ways, doubtful: list[tuple[str, Family]], waits: bool
) -> None:
    after = published(before, found, doubtful)
    assert after == ({**found, A4: UP} if waits else found)


def test_doubt_is_a_bad_round_of_what_is_up() -> None:
    way = Clocked()
    assert not way.health.doubtful
    way.rounds(1, BAD)
    assert way.health.doubtful
    way.rounds(1, GOOD)
    assert not way.health.doubtful
    way.rounds(3, BAD)
    assert not way.health.doubtful, "that is no doubt any more"


def test_all_probes_have_to_agree() -> None:
    health = Health([PROBE, PROBE], 0)
    health.joined(0)
    for _ in range(3):
        health.heard(0, GOOD, 0)
        health.heard(1, BAD, 0)
    assert health.state is State.SILENT
    for _ in range(5):
        assert health.state is State.SILENT
        health.heard(0, GOOD, 0)
        health.heard(1, GOOD, 0)
    assert health.state is State.UP


def test_what_was_silent_before_a_restart_is_not_believed() -> None:
    health = Health([PROBE], 0, silent=True)
    health.joined(0)
    assert health.judgement.condition is Condition.SILENT
    for _ in range(5):
        health.heard(0, GOOD, 0)
    assert health.state is State.UP


class AnyLife(RuleBasedStateMachine):
    """Whatever happens to a way, the rules on top of the file hold."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = replace(PROBE, down=3, up=5)
        self.health = Health([self.probe], MOST_HOLD_MS)
        self.now_ms = 0.0
        self.bad = self.good = 0
        self.well_since_ms: float | None = None
        self.health.joined(self.now_ms)

    def _follows_the_table(self, before: State) -> None:
        """One sign at most was taken, and the table has a way for it."""
        after = self.health.state
        assert before is after or after in {
            state for (of, _), state in TABLE.items() if of is before
        }

    def _step(self, before: State, left_ms: float) -> None:
        after = self.health.state
        self._follows_the_table(before)
        if after is State.UP and before not in (State.UP, State.NEW):
            assert self.good >= self.probe.up, "up only after good rounds"
            assert left_ms == 0, "and after the hold"
        if after is State.SILENT and before is not State.SILENT:
            assert self.bad >= self.probe.down, "down only after bad rounds"
        assert 0 <= self.health.hold_ms <= MOST_HOLD_MS

    @precondition(lambda self: self.health.state is not State.CUT)
    @rule(good=st.booleans(), ms=st.floats(1, 5_000), count=st.integers(1, 12))
    def hear(self, good: bool, ms: float, count: int) -> None:
        for _ in range(count):
            before = self.health.state
            self.now_ms += ms
            self.good, self.bad = (self.good + 1, 0) if good else (0, self.bad + 1)
            if self.bad >= self.probe.down:
                self.well_since_ms = None
            elif good and self.well_since_ms is None:
                self.well_since_ms = self.now_ms
            well_ms = 0.0 if self.well_since_ms is None else self.now_ms - self.well_since_ms
            left_ms = max(self.health.hold_ms - well_ms, 0.0)
            self.health.heard(0, GOOD if good else BAD, self.now_ms)
            self._step(before, left_ms)

    @rule()
    def cut(self) -> None:
        self.health.cut("no carrier", self.now_ms)
        assert self.health.state is State.CUT

    @rule()
    def join(self) -> None:
        before = self.health.state
        was_cut = before is State.CUT
        self.health.joined(self.now_ms)
        self._follows_the_table(before)
        assert self.health.state is not State.CUT
        if was_cut:
            assert self.health.state is State.RETURNING
            self.good = self.bad = 0
            self.well_since_ms = None

    @rule(ms=st.floats(0, 10 * CALM_MS))
    def wait(self, ms: float) -> None:
        before, hold_ms = self.health.state, self.health.hold_ms
        self.now_ms += ms
        self.health.judge(self.now_ms)
        self._follows_the_table(before)
        assert self.health.hold_ms <= hold_ms, "time alone never makes a hold longer"

    @invariant()
    def one_condition(self) -> None:
        alive = self.health.judgement.condition is Condition.LIVING
        assert alive == (self.health.state in (State.UP, State.NEW))
        assert alive == (self.health.why == "")


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=400))
def test_never_up_and_down_at_once_and_counts_respected(rounds: list[tuple[bool, bool]]) -> None:
    """Two targets that answer as they like: transitions come from runs of rounds only."""
    way = Clocked(hold_ms=0)
    run: list[bool] = []
    for first, second in rounds:
        before = way.health.state
        way.rounds(1, answers(10.0 if first else None, 10.0 if second else None))
        run.append(first or second)
        if way.health.state is not before:
            if way.health.state is State.UP:
                assert all(run[-PROBE.up :])
                assert len(run) >= PROBE.up
            else:
                assert not any(run[-PROBE.down :])
        elif before is State.UP:
            assert any(run[-PROBE.down :]) or len(run) < PROBE.down
        else:
            assert not all(run[-PROBE.up :])
