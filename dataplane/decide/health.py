"""Probe results -> up or down. The clock is an argument, in milliseconds.

A link has a `Health` for each family that it carries, its ways. The table says all that can happen:

    state        cut    joined       silent    poor    steady
    ---------    ----   ---------    ------    ----    ------
    new          cut    up                                        before the first look
    up           cut                 silent    poor
    poor         cut                 silent            up         answers, but badly
    silent       cut                                   up         does not answer
    returning    cut                 silent            up         has a carrier again
    cut                 returning                                 no carrier, address or gateway

    cut       carrier, address or gateway are gone        joined    they are there
    silent    one probe had `down` bad rounds in a row
    poor      one probe's loss or latency is over its `_down` threshold
    steady    all probes had `up` good rounds in a row, and for the time of the hold none was
              silent, and none over an `_up` threshold

A link that leaves `up` within a minute after it returned has its hold doubled, from 5 s up to what
the file allows; each whole minute that it stayed up halves it. The first time is without a hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dataplane.config.model import Probe
from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.liveness import Condition, Judgement, Judgements
from dataplane.decide.quality import Window

CALM_MS = 60_000.0
_BEFORE = "did not answer before the daemon's restart"
FIRST_HOLD_MS = 5_000.0


class State(StrEnum):
    """What a way is."""

    NEW = "new"
    UP = "up"
    POOR = "poor"
    SILENT = "silent"
    RETURNING = "returning"
    CUT = "cut"


class Sign(StrEnum):
    """What may change it."""

    CUT = "cut"
    JOINED = "joined"
    SILENT = "silent"
    POOR = "poor"
    STEADY = "steady"


TABLE: Mapping[tuple[State, Sign], State] = {
    (State.NEW, Sign.CUT): State.CUT,
    (State.NEW, Sign.JOINED): State.UP,
    (State.UP, Sign.CUT): State.CUT,
    (State.UP, Sign.SILENT): State.SILENT,
    (State.UP, Sign.POOR): State.POOR,
    (State.POOR, Sign.CUT): State.CUT,
    (State.POOR, Sign.SILENT): State.SILENT,
    (State.POOR, Sign.STEADY): State.UP,
    (State.SILENT, Sign.CUT): State.CUT,
    (State.SILENT, Sign.STEADY): State.UP,
    (State.RETURNING, Sign.CUT): State.CUT,
    (State.RETURNING, Sign.SILENT): State.SILENT,
    (State.RETURNING, Sign.STEADY): State.UP,
    (State.CUT, Sign.JOINED): State.RETURNING,
}

_CONDITIONS = {
    State.NEW: Condition.LIVING,
    State.UP: Condition.LIVING,
    State.POOR: Condition.POOR,
    State.SILENT: Condition.SILENT,
    State.RETURNING: Condition.SILENT,
    State.CUT: Condition.CUT,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one target gave in one round: a round trip in ms, or None. `name` is the file's.

    `beyond`: it is not the gateway.
    """

    name: str
    beyond: bool
    rtt_ms: float | None


def good_round(answers: Sequence[Answer], need: int) -> bool | None:
    """Whether enough targets answered; None when there was none to ask.

    The gateway counts only where nothing beyond it is asked: its word is worth little.
    """
    judged = judges(answers)
    if not judged:
        return None
    return sum(one.rtt_ms is not None for one in judged) >= min(need, len(judged))


def judges(answers: Sequence[Answer]) -> list[Answer]:
    """Those whose answers count."""
    return [one for one in answers if one.beyond] or list(answers)


class Tally:
    """The rounds of one probe on one way, counted."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.bad = 0
        self.good = 0
        # There was a good round, and not `down` bad ones in a row since.
        self.alive = False
        # None before the first round; empty where there was nothing to ask.
        self.asked: Sequence[Answer] | None = None
        self._windows: dict[str, Window] = {}

    def forget(self) -> None:
        """Everything from before belongs to another path."""
        self.bad = self.good = 0
        self.alive = False
        self.asked = None
        self._windows.clear()

    def add(self, answers: Sequence[Answer]) -> None:
        """Takes a closed round."""
        self.asked = answers
        judgement = good_round(answers, self.probe.need)
        if judgement is None:
            self.bad = self.good = 0
            self.alive = False
        elif judgement:
            if self.silent:
                # What was lost while the path was dead says nothing of how it is now.
                self._windows.clear()
            self.bad, self.good = 0, self.good + 1
            self.alive = True
        else:
            self.bad, self.good = self.bad + 1, 0
            self.alive = self.alive and not self.silent
        for one in answers:
            self._windows.setdefault(one.name, Window()).add(one.rtt_ms)

    def heard_late(self, after: int) -> None:
        """Enough answers to a bad round came when it was over, and `after` more rounds are.

        The path was alive then, so only what came after can speak against it.
        """
        if not self.silent:
            self.bad = min(self.bad, after)

    def window(self, name: str) -> Window | None:
        """The last rounds of a target."""
        return self._windows.get(name)

    @property
    def silent(self) -> bool:
        return self.bad >= self.probe.down

    @property
    def steady(self) -> bool:
        return self.good >= self.probe.up or self._nobody

    @property
    def _nobody(self) -> bool:
        """There was a round, and nobody to ask."""
        return self.asked is not None and not self.asked

    @property
    def well(self) -> bool:
        """It is alive, and quality is good enough to come back."""
        alive = self.alive or self._nobody
        return alive and not self._over(self.probe.loss_up, self.probe.latency_up_ms)

    @property
    def poor(self) -> str:
        """What is too bad to stay; empty if nothing is."""
        return self._over(self.probe.loss_down, self.probe.latency_down_ms)

    def _over(self, loss: float | None, latency_ms: float | None) -> str:
        lost = self._best("loss") if loss is not None else None
        if loss is not None and lost is not None and lost > loss:
            return f"{lost:.0%} of the answers are lost, more than {loss:.0%}"
        slow = self._best("latency_ms") if latency_ms is not None else None
        if latency_ms is not None and slow is not None and slow > latency_ms:
            return f"answers take {slow:.0f} ms, longer than {latency_ms:.0f} ms"
        return ""

    def _best(self, what: str) -> float | None:
        """The value that `need` of the targets keep within; None while too little is known."""
        judged = judges(self.asked or ())
        windows = [self._windows[one.name] for one in judged if one.name in self._windows]
        values = sorted(
            value
            for window in windows
            if window.full_enough and (value := getattr(window, what)) is not None
        )
        need = min(self.probe.need, len(judged))
        return values[need - 1] if 0 < need <= len(values) else None


class Health:
    """One way of a link: what its probes, its carrier and its past make of it."""

    def __init__(self, probes: Sequence[Probe], hold_ms: float, *, silent: bool = False) -> None:
        """`hold_ms` is the longest hold. `silent`: it was so when the daemon ended."""
        self._most_hold_ms = hold_ms
        self.tallies = [Tally(probe) for probe in probes]
        self.state = State.SILENT if silent else State.NEW
        self.why = _BEFORE if silent else ""
        self._returned_ms: float | None = None
        self._well_ms: float | None = None
        self._doublings = 0

    def take_probes(self, probes: Sequence[Probe], hold_ms: float) -> None:
        """Another file: its probes begin anew, the state stays.

        Until their first rounds are over, whom the old ones asked says whether a way follows.
        """
        self._most_hold_ms = hold_ms
        before, self.tallies = self.tallies, [Tally(probe) for probe in probes]
        for old, new in zip(before, self.tallies, strict=False):
            new.asked = old.asked
        self._well_ms = None

    def cut(self, why: str, now_ms: float) -> None:
        """Carrier, address or gateway are not there."""
        self._take(Sign.CUT, why, now_ms)
        if self.state is State.CUT:
            self.why = why

    def joined(self, now_ms: float) -> None:
        """Carrier, address and gateway are there."""
        if self.state is State.CUT:
            for tally in self.tallies:
                tally.forget()
            self._well_ms = None
        self._take(Sign.JOINED, "it is back, and has to prove itself", now_ms)
        self.judge(now_ms)

    def heard(self, number: int, answers: Sequence[Answer], now_ms: float) -> None:
        """A round of probe `number` is closed. What comes while the way is cut is no news."""
        if self.state is not State.CUT:
            self.tallies[number].add(answers)
            self.judge(now_ms)

    def heard_late(self, number: int, after: int) -> None:
        """See `Tally.heard_late`."""
        self.tallies[number].heard_late(after)

    def judge(self, now_ms: float) -> None:
        """Follows from the counts and the clock; to be called when a hold ends, too."""
        silent = next((one for one in self.tallies if one.silent), None)
        poor = next((one.poor for one in self.tallies if one.poor), "")
        well = all(one.well for one in self.tallies)
        if not well:
            self._well_ms = None
        elif self._well_ms is None:
            self._well_ms = now_ms
        if silent:
            if self.why == _BEFORE:
                self.why = _silence(silent)
            self._take(Sign.SILENT, _silence(silent), now_ms)
        elif poor:
            self._take(Sign.POOR, poor, now_ms)
        elif well and all(one.steady for one in self.tallies) and not self.hold_left_ms(now_ms):
            self._take(Sign.STEADY, "", now_ms)

    @property
    def reach(self) -> int:
        """How far this way's own probes ask: 0 nobody, 1 the gateway, 2 beyond it."""
        asked = (one for tally in self.tallies for one in tally.asked or ())
        return max((2 if one.beyond else 1 for one in asked), default=0)

    def follows(self, other: Health) -> bool:
        """Whether it is known that the other one's probes ask further than its own."""
        known = all(tally.asked is not None for tally in self.tallies)
        return known and other.reach > self.reach

    @property
    def doubtful(self) -> bool:
        """It is up, but its last round was bad: nobody can tell yet."""
        return self.state is State.UP and any(tally.bad for tally in self.tallies)

    @property
    def hold_ms(self) -> float:
        """How long it has to be well before it is taken back."""
        if not self._doublings:
            return 0.0
        return min(FIRST_HOLD_MS * 2.0 ** (self._doublings - 1), self._most_hold_ms)

    def hold_left_ms(self, now_ms: float) -> float:
        """What is left of the hold; all of it while the way is not well. 0 while it is up."""
        if self.state in (State.NEW, State.UP):
            return 0.0
        well_ms = 0.0 if self._well_ms is None else now_ms - self._well_ms
        return max(self.hold_ms - well_ms, 0.0)

    @property
    def judgement(self) -> Judgement:
        return Judgement(_CONDITIONS[self.state], self.why)

    def _take(self, sign: Sign, why: str, now_ms: float) -> None:
        after = TABLE.get((self.state, sign))
        if after is None:
            return
        if self.state is State.UP:
            self._count_stay(now_ms)
        if after is State.UP:
            why = ""
            if self.state is not State.NEW:
                self._returned_ms = now_ms
        else:
            self._well_ms = None
        self.state, self.why = after, why

    def _count_stay(self, now_ms: float) -> None:
        """The way leaves `up`: was that soon after a return?"""
        if self._returned_ms is None:
            return
        calm_minutes = int((now_ms - self._returned_ms) // CALM_MS)
        if calm_minutes:
            self._doublings = max(self._doublings - calm_minutes, 0)
        elif self.hold_ms < self._most_hold_ms:
            self._doublings += 1


def _silence(tally: Tally) -> str:
    asked = tally.asked or ()
    silent = [one.name for one in judges(asked) if one.rtt_ms is None]
    said = f"no answer from {' and '.join(silent)}"
    gateway = next((one for one in asked if not one.beyond), None)
    if gateway is None or gateway.name in silent:
        return said
    return said + ("; the gateway answers" if gateway.rtt_ms is not None else ", nor the gateway")


def judgements(ways: Mapping[Family, Health]) -> dict[Family, Judgement]:
    """The judgement on each family of one link.

    A family whose probes ask less far than the other one's follows that.
    """
    found = {family: health.judgement for family, health in ways.items()}
    for family, health in ways.items():
        for other in ways.values():
            if health.follows(other) and State.CUT not in (health.state, other.state):
                found[family] = other.judgement
    return found


def doubts(ways: Mapping[Family, Health]) -> set[Family]:
    """The families of one link that are up and in doubt; who follows doubts with the other."""
    found = {family for family, health in ways.items() if health.doubtful}
    for family, health in ways.items():
        if any(health.follows(other) and other.doubtful for other in ways.values()):
            found.add(family)
    return found


def published(
    before: Judgements, found: Judgements, doubtful: Collection[tuple[str, Family]]
) -> dict[tuple[str, Family], Judgement]:
    """The judgements that are acted upon: `found`, but that one waits where all are in doubt.

    If the targets themselves are dead, all links fall silent within a moment. Were the first one
    left at once, its connections would be forgotten for nothing. So what falls silent waits while
    every other way of its family that is living is doubtful: it will be good or silent within
    `down` rounds, and what falls silent together stays together.
    """
    after = dict(found)
    for family in FAMILIES:
        fell = [
            way
            for way, judgement in found.items()
            if way[1] == family
            and judgement.condition is Condition.SILENT
            and way in before
            and before[way].condition is Condition.LIVING
        ]
        others = [
            way
            for way, judgement in found.items()
            if way[1] == family and judgement.condition is Condition.LIVING
        ]
        if others and all(way in doubtful for way in others):
            after.update((way, before[way]) for way in fell)
    return after
