"""Readings of the interface counters, twice a second -> the links that load-driven groups prefer.

choosing = Choosing(config)
if choosing.needed:
    choices = choosing.sample(now_s, counters, round_trips, serving)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from dataplane.config.model import Config
from dataplane.decide.balance import Choices, Served
from dataplane.decide.choice import Choice, Measured, Rate, load_driven
from dataplane.decide.facts import Family

INTERVAL_S = 0.5
# Some drivers read their hardware's counters but once a second.
_AVERAGED_S = 1.0
# Clocks tick unevenly; and what is shorter than this is no average.
_LEAST_S = 0.25


class Choosing:
    """All load-driven groups of one file. `sample` is to be called every `interval_s`."""

    interval_s = INTERVAL_S

    def __init__(self, config: Config) -> None:
        self._choice = Choice()
        self._meters: dict[str, _Meter] = {}
        self.take(config)

    def take(self, config: Config) -> None:
        """Another file. What is known of links and groups of the same names is kept."""
        self._config = config

    @property
    def needed(self) -> bool:
        """Whether any group has a load-driven method."""
        return load_driven(self._config)

    def sample(
        self,
        now_s: float,
        counters: Mapping[str, tuple[int, int]],
        round_trips: Mapping[tuple[str, Family], float | None],
        serving: Served,
    ) -> Choices:
        """By group and family, the link that new connections should take now.

        `counters` are, by interface, the bytes received and sent. Whoever shares an interface with
        another link is taken to carry all of it.
        """
        self._meters = {name: self._meters.get(name) or _Meter() for name in counters}
        for name, (received, sent) in counters.items():
            self._meters[name].add(now_s, received, sent)
        rates = {}
        for link in self._config.links:
            meter = self._meters.get(link.interface)
            rate = meter.rate() if meter else None
            if rate is not None:
                rates[link.name] = rate
        return self._choice.step(self._config, serving, Measured(rates, round_trips), now_s)


class _Meter:
    """The readings of one interface that its rate is made of."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int, int]] = deque()

    def add(self, now_s: float, received: int, sent: int) -> None:
        readings = self._readings
        if readings and (received < readings[-1][1] or sent < readings[-1][2]):
            # An interface that was made anew counts anew.
            readings.clear()
        readings.append((now_s, received, sent))
        while len(readings) > 2 and now_s - readings[1][0] > _AVERAGED_S - _LEAST_S:
            readings.popleft()

    def rate(self) -> Rate | None:
        """Over the last second or so; None until there are two readings."""
        if len(self._readings) < 2:
            return None
        (first_s, *first), (last_s, *last) = self._readings[0], self._readings[-1]
        seconds = last_s - first_s
        if seconds < _LEAST_S:
            return None
        received, sent = (8 * (b - a) / seconds for a, b in zip(first, last, strict=True))
        return Rate(received, sent)
