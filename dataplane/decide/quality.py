"""How one target answers: round trips, and what was lost, over the last rounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

# At two rounds a second, half a minute.
WINDOW_ROUNDS = 60
# Before so many rounds a loss is chance.
LEAST_ROUNDS = 20

LEAST_TIMEOUT_MS = 500.0
MOST_TIMEOUT_MS = 5_000.0
# However steady a round trip was, the next one may be a little longer.
LEAST_SLACK_MS = 100.0
# Whoever has been silent for so long tells no more how long to wait for the others.
FRESH_MS = 60_000.0


class RoundTrip:
    """The round trip's smoothed value and variation in ms, as RFC 6298 has them for TCP."""

    __slots__ = ("_smooth_ms", "_variation_ms", "heard_ms")

    def __init__(self) -> None:
        self._smooth_ms: float | None = None
        self._variation_ms = 0.0
        self.heard_ms: float | None = None

    def add(self, rtt_ms: float, now_ms: float) -> None:
        """Takes a measurement, of a late answer too."""
        if self._smooth_ms is None:
            self._smooth_ms, self._variation_ms = rtt_ms, rtt_ms / 2
        else:
            self._variation_ms += (abs(rtt_ms - self._smooth_ms) - self._variation_ms) / 4
            self._smooth_ms += (rtt_ms - self._smooth_ms) / 8
        self.heard_ms = now_ms

    def smooth_ms(self, now_ms: float) -> float | None:
        """How long an answer takes; None when nothing was heard lately."""
        if self.heard_ms is None or now_ms - self.heard_ms > FRESH_MS:
            return None
        return self._smooth_ms

    def timeout_ms(self, now_ms: float) -> float | None:
        """How long to wait for an answer; None when nothing was heard lately."""
        smooth_ms = self.smooth_ms(now_ms)
        if smooth_ms is None:
            return None
        return smooth_ms + max(4 * self._variation_ms, LEAST_SLACK_MS)


def timeout_ms(targets: Iterable[RoundTrip], now_ms: float) -> float:
    """How long a round waits: for the slowest of those that answer, within bounds."""
    known = (one.timeout_ms(now_ms) for one in targets)
    longest = max((one for one in known if one is not None), default=0.0)
    return min(max(longest, LEAST_TIMEOUT_MS), MOST_TIMEOUT_MS)


class Window:
    """The last rounds of one target, at most WINDOW_ROUNDS: a round trip in ms each, or None."""

    __slots__ = ("_answered", "_rounds", "_sum_ms")

    def __init__(self) -> None:
        self._rounds: deque[float | None] = deque()
        self._answered = 0
        self._sum_ms = 0.0

    def add(self, rtt_ms: float | None) -> None:
        """Takes what one round gave: None, if no answer came in time."""
        self._rounds.append(rtt_ms)
        self._count(rtt_ms, 1)
        if len(self._rounds) > WINDOW_ROUNDS:
            self._count(self._rounds.popleft(), -1)

    def _count(self, rtt_ms: float | None, sign: int) -> None:
        if rtt_ms is not None:
            self._answered += sign
            self._sum_ms += sign * rtt_ms

    @property
    def full_enough(self) -> bool:
        """Whether there are rounds enough to judge by."""
        return len(self._rounds) >= LEAST_ROUNDS

    @property
    def loss(self) -> float | None:
        """The share of rounds without an answer, 0 to 1; None before the first round."""
        rounds = len(self._rounds)
        return (rounds - self._answered) / rounds if rounds else None

    @property
    def latency_ms(self) -> float | None:
        """The mean round trip; None when nothing was answered."""
        return max(self._sum_ms, 0.0) / self._answered if self._answered else None
