"""Links, what flows through them, and one load-driven group whose choice makes it flow."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from dataplane.config.model import Config, Group, Link, Method
from dataplane.decide.balance import Served
from dataplane.decide.choice import Choice, Measured, Rate

MBIT = 1e6
STEP_S = 0.5
MINUTE_S = 60.0
A, B, C = (
    Link(name, f"wan-{name}", download_bps=mbit * 1_000_000)
    for name, mbit in (("a", 10), ("b", 20), ("c", 5))
)
ALL: Served = {"default": {4: frozenset("ab")}}


def config(method: Method, *links: Link, **more: Any) -> Config:
    names = tuple(link.name for link in links)
    return Config(("lan0",), links, Group("default", names, method, **more))


@dataclass
class Town:
    """Links, what they carry, and what one group chooses.

    `lasting` is the load of connections that stay, by link, in Mbit/s. `fresh` is the load that
    new connections make together; each lives `life_s` on an average, on the link where it began.
    `rtts` are round trips in ms.
    """

    config: Config
    lasting: dict[str, float] = field(default_factory=dict)
    fresh: float = 0.0
    life_s: float = 5.0
    rtts: dict[str, float | None] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    now_s: float = 1000.0
    changes: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.choice = Choice()
        self.chosen = ""
        self.born = {link.name: 0.0 for link in self.config.links}
        self._before: dict[str, float] = {}
        self.step()

    def carried(self, link: Link) -> float:
        """What goes through, in Mbit/s."""
        wanted = self.lasting.get(link.name, 0.0) + self.born[link.name]
        return min(wanted, (link.download_bps or 0) / MBIT)

    def step(self) -> str:
        """Half a second."""
        for name in self.born:
            begun = self.fresh if name == self.chosen else 0.0
            self.born[name] += (begun - self.born[name]) * min(STEP_S / self.life_s, 1.0)
        carried = {link.name: self.carried(link) for link in self.config.links}
        # An average over a second.
        rates = {
            name: Rate((mbit + self._before.get(name, mbit)) / 2 * MBIT)
            for name, mbit in carried.items()
        }
        self._before = carried
        measured = Measured(rates, {(name, 4): rtt for name, rtt in self.rtts.items()})
        living = frozenset(self.born) - self.dead
        self.now_s += STEP_S
        found = self.choice.step(self.config, {"default": {4: living}}, measured, self.now_s)
        if found["default"][4] != self.chosen:
            self.chosen = found["default"][4]
            self.changes.append((self.now_s, self.chosen))
        return self.chosen

    def until(self, name: str, limit_s: float = 60.0) -> float:
        """Goes on until that link is chosen; how many seconds it took."""
        began_s = self.now_s
        while self.chosen != name:
            assert self.now_s - began_s < limit_s, f"{self.chosen} is chosen, not {name}"
            self.step()
        return self.now_s - began_s

    def goes_on(self, seconds: float) -> list[str]:
        """The changes meanwhile."""
        before, ends_s = len(self.changes), self.now_s + seconds
        while self.now_s < ends_s:
            self.step()
        return [name for _, name in self.changes[before:]]

    def spans(self) -> list[float]:
        """The seconds from one change to the next."""
        return [later - at_s for (at_s, _), (later, _) in pairwise(self.changes[1:])]
