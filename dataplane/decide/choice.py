"""Measured rates and round trips -> the one link that a load-driven group prefers now.

The clock is an argument, in seconds. A `Choice` is stepped with every measurement, about twice a
second:

    overflow          the first link of the group's order that is not full; if all are, least-used
    least-used        the link with most capacity free
    lowest-latency    the link whose probes answer soonest

A choice draws load to the link that it takes, and so changes what it was made by. What keeps it
from swinging: another link has to be better by a margin, and for a while; a full link is taken back
only when what went elsewhere would fit, too; and what turned out wrong within a minute takes twice
as long the next time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dataplane.config.model import Config, Group, Link, Method
from dataplane.decide.balance import Served
from dataplane.decide.facts import Family

# A second, which is two measurements later; a little less, since no clock ticks exactly.
FULL_FOR_S = 0.9
# A full link is taken back at this part of the load that made it full, and when that has lasted.
EMPTY_PART = 0.75
EMPTY_FOR_S = 5.0
# As long as what went elsewhere would fill it anew, it is tried so seldom.
MOST_EMPTY_FOR_S = 600.0
# Another link needs so much of its own capacity more free, for so long; half of it among full ones.
FREE_MARGIN = 0.1
FREER_FOR_S = 0.9
MOST_FREER_FOR_S = 3.0
SOONER_FOR_S = 3.0
MOST_SOONER_FOR_S = 60.0
# What lasted so long was no mistake.
CALM_S = 60.0

# For how long another link has to be better, at first and at most.
_PATIENCE = {
    Method.OVERFLOW: (FREER_FOR_S, MOST_FREER_FOR_S),
    Method.LEAST_USED: (FREER_FOR_S, MOST_FREER_FOR_S),
    Method.LOWEST_LATENCY: (SOONER_FOR_S, MOST_SOONER_FOR_S),
}


@dataclass(frozen=True, slots=True)
class Rate:
    """What passes a link's interface, in bits per second, averaged over a second or so."""

    rx_bps: float = 0.0
    tx_bps: float = 0.0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.rx_bps + other.rx_bps, self.tx_bps + other.tx_bps)

    def beyond(self, base: Rate) -> Rate:
        """What is more than that."""
        return Rate(max(self.rx_bps - base.rx_bps, 0.0), max(self.tx_bps - base.tx_bps, 0.0))


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of the links, by name; what is not known is missing.

    `rtts_ms`: by link and family, the round trip to its nearest target beyond the gateway.
    """

    rates: Mapping[str, Rate] = field(default_factory=dict)
    rtts_ms: Mapping[tuple[str, Family], float | None] = field(default_factory=dict)


def load_driven(config: Config) -> bool:
    """Whether any group's choice follows what is measured."""
    return any(group.method in _PATIENCE for group in config.all_groups)


def utilisation(link: Link, rate: Rate) -> float:
    """The used part of the link's capacity, in the direction that is used more; 1 is all of it.

    A direction without a capacity is never used up.
    """
    download = link.download_bps
    upload = link.upload_bps or download
    return max(rate.rx_bps / download if download else 0.0, rate.tx_bps / upload if upload else 0.0)


def free_bps(link: Link, rate: Rate) -> float:
    """The unused part of the link's capacity, as a part of its download; negative if overused."""
    return (link.download_bps or 0) * (1.0 - utilisation(link, rate))


class Choice:
    """The choices of all load-driven groups, and what is remembered to keep them steady."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, Method], _Grouped] = {}

    def step(
        self, config: Config, serving: Served, measured: Measured, now_s: float
    ) -> dict[str, dict[Family, str]]:
        """By group and family, the preferred one of the links that are `serving`.

        Groups of other methods, and families that nobody serves, are left out. A group that is
        gone, or has another method, is forgotten.
        """
        before, self._groups = self._groups, {}
        found = {}
        for group in config.all_groups:
            if group.method in _PATIENCE:
                key = (group.name, group.method)
                self._groups[key] = known = before.get(key) or _Grouped()
                now = _Now(config, group, serving.get(group.name, {}), measured, now_s)
                found[group.name] = known.step(now)
        return found


@dataclass(frozen=True, slots=True)
class _Now:
    """One group with what is known at this moment."""

    config: Config
    group: Group
    serving: Mapping[Family, frozenset[str]]
    measured: Measured
    now_s: float

    def free_bps(self, name: str) -> float:
        return free_bps(self.config.link(name), self.measured.rates[name])

    def took_ms(self, name: str, family: Family) -> float:
        """The round trip; infinite if there is none."""
        rtt_ms = self.measured.rtts_ms.get((name, family))
        return float("inf") if rtt_ms is None else rtt_ms


class _Grouped:
    """What is remembered of one group."""

    def __init__(self) -> None:
        self._fills: dict[str, _Fill] = {}
        # What each chosen link carried when it was chosen.
        self._bases: dict[str, Rate] = {}
        self._seats: dict[Family, _Seat] = {}

    def step(self, now: _Now) -> dict[Family, str]:
        if now.group.method is Method.OVERFLOW:
            self._see_fills(now)
        found = {}
        for family, names in now.serving.items():
            if family not in self._seats:
                self._seats[family] = _Seat(_Patience(*_PATIENCE[now.group.method]))
            seat = self._seats[family]
            if seat.link not in names:
                seat.empty()
            order = [name for name in now.group.links if name in names]
            if order:
                found[family] = self._chosen(seat, order, family, now)
        rates = now.measured.rates
        self._bases = {
            name: self._bases.get(name) or rates.get(name, Rate()) for name in found.values()
        }
        return found

    def _chosen(self, seat: _Seat, order: list[str], family: Family, now: _Now) -> str:
        """`order` are the links to choose from, at least one."""
        match now.group.method:
            case Method.LOWEST_LATENCY:
                return _lowest_latency(seat, order, family, now)
            case Method.OVERFLOW:
                for name in order:
                    if not self._fills[name].full:
                        return seat.give(name)
        return _least_used(seat, order, now)

    def _see_fills(self, now: _Now) -> None:
        """Who is full. What does not serve is forgotten: it may come back as another."""
        names, rates = now.group.links, now.measured.rates
        some = frozenset[str]().union(*now.serving.values())
        self._fills = {name: self._fills.get(name) or _Fill() for name in names if name in some}
        for name, fill in self._fills.items():
            if name in rates:
                link = now.config.link(name)
                behind = names[names.index(name) + 1 :]
                load = utilisation(link, rates[name])
                after = utilisation(link, self._gone_to(behind, rates, rates[name]))
                fill.see(load, after, now.group.full, now.now_s)

    def _gone_to(self, links: Iterable[str], rates: Mapping[str, Rate], start: Rate) -> Rate:
        """`start`, and what these links carry more than when they were chosen."""
        for name in links:
            if name in self._bases and name in rates:
                start += rates[name].beyond(self._bases[name])
        return start


def _least_used(seat: _Seat, order: list[str], now: _Now) -> str:
    if not all(name in now.measured.rates for name in order):
        return seat.link or seat.give(order[0])
    if seat.link is None:
        return seat.give(max(order, key=now.free_bps))
    taken_bps = now.free_bps(seat.link)
    margin = FREE_MARGIN / 2 if now.group.method is Method.OVERFLOW else FREE_MARGIN

    def ahead_bps(name: str) -> float:
        margin_bps = margin * (now.config.link(name).download_bps or 0)
        return now.free_bps(name) - margin_bps - taken_bps

    best = max(order, key=lambda name: ahead_bps(name) if name != seat.link else 0.0)
    return seat.contest(seat.link, best, now.now_s)


def _lowest_latency(seat: _Seat, order: list[str], family: Family, now: _Now) -> str:
    took_ms = {name: now.took_ms(name, family) for name in order}
    best = min(order, key=lambda name: took_ms[name])
    margin_ms = now.group.margin_ms
    if seat.link is None:
        # At first some may be known a moment before others; then it is no merit to be known.
        early = seat.new and None in (now.measured.rtts_ms.get((name, family)) for name in order)
        near = (name for name in order if early or took_ms[name] <= took_ms[best] + margin_ms)
        return seat.give(next(near))
    # Two that are infinite are no number apart.
    better = best if took_ms[seat.link] - took_ms[best] >= margin_ms else seat.link
    return seat.contest(seat.link, better, now.now_s)


class _Seat:
    """The chosen link of one group and family, and who may take its place."""

    def __init__(self, patience: _Patience) -> None:
        self.link: str | None = None
        # Nobody ever had it.
        self.new = True
        self._patience = patience
        self._beaten = _Span()
        # When it was taken in a contest.
        self._taken_s: float | None = None

    def empty(self) -> None:
        self.link = self._taken_s = None
        self._beaten.end()

    def give(self, link: str) -> str:
        """To that one, at once."""
        if link != self.link:
            self.empty()
            self.link, self.new = link, False
        self._beaten.end()
        return link

    def contest(self, holder: str, best: str, now_s: float) -> str:
        """Who has it now: `best`, once the holder has been beaten for long enough."""
        beaten_s = self._beaten.see(best != holder, now_s)
        if beaten_s < self._patience.seconds:
            return holder
        if self._taken_s is not None:
            self._patience.learn(now_s - beaten_s - self._taken_s)
        self.give(best)
        self._taken_s = now_s
        return best


class _Fill:
    """Whether one link is full in the eyes of one group."""

    def __init__(self) -> None:
        self.full = False
        self._over, self._low, self._fits = _Span(), _Span(), _Span()
        self._patience = _Patience(EMPTY_FOR_S, MOST_EMPTY_FOR_S)
        self._emptied_s: float | None = None

    def see(self, load: float, after: float, full: float, now_s: float) -> None:
        """`load` is the link's utilisation, `after` that with what would come back to it."""
        over_s = self._over.see(load >= full, now_s)
        low_s = self._low.see(load <= EMPTY_PART * full, now_s)
        fits_s = self._fits.see(after <= EMPTY_PART * full, now_s)
        if not self.full and over_s >= FULL_FOR_S:
            self.full = True
            if self._emptied_s is not None:
                self._patience.learn(now_s - self._emptied_s)
        elif self.full and (fits_s >= self._patience.seconds or low_s >= MOST_EMPTY_FOR_S):
            self.full = False
            self._emptied_s = now_s


class _Span:
    """For how long something has been so without a break."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def see(self, is_so: bool, now_s: float) -> float:
        """Seconds since it became so; -1 while it is not."""
        if not is_so:
            self._since_s = None
            return -1.0
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s

    def end(self) -> None:
        self._since_s = None


class _Patience:
    """How long something has to last: doubled when it went wrong soon, halved each calm minute."""

    def __init__(self, least_s: float, most_s: float) -> None:
        self._least_s = least_s
        self._most_s = most_s
        self.seconds = least_s

    def learn(self, held_s: float) -> None:
        """What was decided held for so many seconds."""
        calm_minutes = int(held_s // CALM_S)
        if calm_minutes:
            # Nothing is doubled more often than that.
            self.seconds = max(self.seconds / 2.0 ** min(calm_minutes, 16), self._least_s)
        else:
            self.seconds = min(self.seconds * 2, self._most_s)
