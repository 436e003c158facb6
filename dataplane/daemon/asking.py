"""One probe of one link: sends its rounds, hears the answers, and closes each round in order."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataplane.config.model import Probe, ProbeKind, Target
from dataplane.daemon.naming import Naming
from dataplane.decide.facts import Family
from dataplane.decide.health import Answer, Health, State, good_round
from dataplane.decide.liveness import Address
from dataplane.decide.quality import MOST_TIMEOUT_MS, RoundTrip, timeout_ms
from dataplane.errors import Error
from dataplane.system.probe import Asker, Exit, make_asker

RoundTrips = dict[tuple[int, Target, Family], RoundTrip]

log = logging.getLogger("evenlink")

# An answer that comes later teaches nothing any more.
_LISTEN_MS = MOST_TIMEOUT_MS
# A way in one of these is about to be judged, so it is asked faster while rounds are bad.
_UNDECIDED = (State.NEW, State.UP, State.POOR, State.RETURNING)


@dataclass(slots=True, eq=False)
class _Tracked:
    """One target on one family."""

    target: Target
    family: Family
    address: Address | None
    trip: RoundTrip
    rtt_ms: float | None = None
    answered: bool | None = None
    said: str = ""


@dataclass(slots=True, eq=False)
class _Round:
    """What was asked at once. `tokens` are of `asked`, in order.

    `unknown` are the families of which it was too early to say whom to ask.
    """

    tokens: range
    asked: list[_Tracked]
    unknown: set[Family]
    opened_ms: float
    deadline_ms: float
    waiting: int
    answers: dict[_Tracked, float] = field(default_factory=dict)
    closed: bool = False


class Asking:
    """Asks from the moment it is made until `close`. `judged` is called after each round."""

    def __init__(
        self,
        probe: Probe,
        number: int,
        by: Exit,
        ways: Mapping[Family, Health],
        gateways: Mapping[Family, Address | None],
        naming: Naming,
        trips: RoundTrips,
        judged: Callable[[], None],
    ) -> None:
        """`number` is the probe's place among the link's; `ways` are those that can be asked.

        `trips` outlast this one: what is slow is still slow when sockets are made anew.
        """
        self._loop = asyncio.get_running_loop()
        self._probe = probe
        self._number = number
        self._by = by
        self._ways = ways
        self._naming = naming
        self._judged = judged
        self._tracked = [
            _Tracked(
                target,
                family,
                gateways[family] if target.gateway else target.address,
                trips.setdefault((number, target, family), RoundTrip()),
            )
            for family in ways
            for target in probe.targets
            if _asks(probe, target, family)
        ]
        self._asker: Asker | None = None
        self._trouble = ""
        self._open_rounds: deque[_Round] = deque()
        self._closed_rounds: deque[_Round] = deque()
        self._next_token = 0
        self._last_ms = -math.inf
        self._bad = False
        self._timer: asyncio.TimerHandle | None = None
        self._due()

    def _now_ms(self) -> float:
        return self._loop.time() * 1000

    def _open(self) -> None:
        """Asks every target that can be asked."""
        now_ms = self._last_ms = self._now_ms()
        past = self._closed_rounds
        while past and now_ms - past[0].opened_ms > 2 * _LISTEN_MS:
            past.popleft()
        asker = self._open_asker()
        asked = [one for one in self._tracked if asker and self._resolved(one)]
        if self._probe.timeout_ms is not None:
            timeout = float(self._probe.timeout_ms)
        else:
            timeout = timeout_ms((one.trip for one in asked), now_ms)
        first, self._next_token = self._next_token, self._next_token + len(asked)
        tokens = range(first, self._next_token)
        unknown = {family for family in self._ways if self._unknown(family)}
        opened = _Round(tokens, asked, unknown, now_ms, now_ms + timeout, len(asked))
        self._open_rounds.append(opened)
        for token, one in zip(tokens, asked, strict=True):
            assert asker is not None, "only what has a socket is asked"
            assert one.address is not None, "only what is resolved is asked"
            asker.ask(token, one.target, one.address, max(timeout, _LISTEN_MS) / 1000)
        self._settle()

    def _open_asker(self) -> Asker | None:
        if self._asker is None:
            try:
                self._asker = make_asker(self._probe.kind, self._by, self._told)
                self._trouble = ""
            except Error as refusal:
                # The interface may have just gone: the next round tries again.
                self._trouble = str(refusal)
                for one in self._tracked:
                    one.answered, one.said = None, self._trouble
        return self._asker

    def _unknown(self, family: Family) -> bool:
        """Whether it is too early to say that there is nobody to ask."""
        return self._asker is None or any(
            one.target.name is not None
            and one.family == family
            and not self._naming.found(one.target.name, family).asked
            for one in self._tracked
        )

    def _resolved(self, one: _Tracked) -> bool:
        """Whether the target has an address to be asked at."""
        if one.target.name is not None:
            found = self._naming.found(one.target.name, one.family)
            one.address = found.address
            if one.address is None:
                one.answered, one.said = None, found.trouble
        return one.address is not None

    def _told(self, token: int, rtt_ms: float | None, words: str) -> None:
        """What became of a question."""
        asked = self._round_of(token)
        if asked is None:
            return
        one = asked.asked[token - asked.tokens.start]
        now_ms = self._now_ms()
        if rtt_ms is not None:
            one.trip.add(rtt_ms, now_ms)
        if asked.closed:
            if rtt_ms is not None:
                if not one.answered:
                    one.said = f"answered too late, after {rtt_ms:.0f} ms"
                asked.answers[one] = rtt_ms
                self._heard_late(asked, one.family)
            return
        one.said = words
        if rtt_ms is not None:
            asked.answers[one] = rtt_ms
        asked.waiting -= 1
        if not asked.waiting and self._asker is not None:
            self._settle()

    def _heard_late(self, over: _Round, family: Family) -> None:
        """If the closed round has enough answers now, the path was alive when it was asked."""
        if good_round(self._answers(over, family), self._probe.need):
            after = len(self._closed_rounds) - 1 - self._closed_rounds.index(over)
            self._ways[family].heard_late(self._number, after)

    @staticmethod
    def _answers(of: _Round, family: Family) -> list[Answer]:
        return [
            Answer(one.target.text, not one.target.gateway, of.answers.get(one))
            for one in of.asked
            if one.family == family
        ]

    def _round_of(self, token: int) -> _Round | None:
        for rounds in (self._open_rounds, self._closed_rounds):
            for one in reversed(rounds):
                if token in one.tokens:
                    return one
        return None

    def _settle(self) -> None:
        """Closes what is complete or over, in order, and waits for what comes next."""
        now_ms = self._now_ms()
        heard = False
        while self._open_rounds:
            first = self._open_rounds[0]
            if first.waiting and first.deadline_ms > now_ms:
                break
            self._closed_rounds.append(self._open_rounds.popleft())
            self._close_round(first, now_ms)
            heard = True
        if heard:
            self._judged()
        self._wait()

    def _close_round(self, over: _Round, now_ms: float) -> None:
        over.closed = True
        for one in over.asked:
            one.rtt_ms = over.answers.get(one)
            one.answered = one.rtt_ms is not None
            if one.answered:
                one.said = ""
            elif not one.said or one.said.startswith("no answer within"):
                one.said = f"no answer within {over.deadline_ms - over.opened_ms:.0f} ms"
        self._bad = False
        for family, health in self._ways.items():
            answers = self._answers(over, family)
            if any(one.beyond for one in answers) or family not in over.unknown:
                health.heard(self._number, answers, now_ms)
            tally = health.tallies[self._number]
            self._bad = self._bad or (tally.bad > 0 and health.state in _UNDECIDED)

    def _wait(self) -> None:
        interval_ms = self._probe.interval_ms / 2 if self._bad else self._probe.interval_ms
        due_ms = self._last_ms + interval_ms
        if self._open_rounds:
            due_ms = min(due_ms, self._open_rounds[0].deadline_ms)
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_ms / 1000, self._due)

    def _due(self) -> None:
        """Whatever goes wrong in one round, the next one is asked."""
        try:
            self._open_or_settle()
        except Exception:
            log.exception("a round of %s by %s failed", self._probe.kind, self._by.interface)
            self._last_ms = self._now_ms()
            self._open_rounds.clear()
            self._wait()

    def _open_or_settle(self) -> None:
        interval_ms = self._probe.interval_ms / 2 if self._bad else self._probe.interval_ms
        # A timer may fire up to the clock's resolution early.
        if self._now_ms() + 1 >= self._last_ms + interval_ms:
            self._open()
        else:
            self._settle()

    def report(self) -> list[dict[str, Any]]:
        """What each target said last, as `status` tells it."""
        found = []
        for one in self._tracked:
            window = self._ways[one.family].tallies[self._number].window(one.target.text)
            loss = window.loss if window else None
            said = one.said
            if not one.answered and self._asker is not None:
                remark = self._asker.remarks.get(one.target.text)
                said = f"{said}; {remark}" if said and remark else said or remark or ""
            found.append(
                {
                    "target": one.target.text,
                    "kind": self._probe.kind.value,
                    "family": one.family,
                    "ok": one.answered,
                    "rtt_ms": None if one.rtt_ms is None else round(one.rtt_ms, 3),
                    "loss": None if loss is None else round(loss, 4),
                    "said": said,
                }
            )
        return found

    def faults(self) -> list[str]:
        """What keeps us from asking: sockets that are refused."""
        return [self._trouble] if self._trouble else []

    def close(self) -> None:
        """Nothing is asked or heard any more. Again does nothing."""
        if self._timer:
            self._timer.cancel()
        if self._asker:
            self._asker.close()
            self._asker = None


def _asks(probe: Probe, target: Target, family: Family) -> bool:
    """Whether the target is of the family, or may be."""
    if target.address is not None:
        return target.address.version == family
    return family == 4 or probe.kind is not ProbeKind.ARP
