"""What the demo found out, as values: its JSON, and which of its reaches were missed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SLOT = 1 / 65_536
CARRIED_OF_SUM = 0.97
# Two links of 10 and 20 Mbit/s shall carry 1.45 times the better one, of 1.5 that are possible.
GAIN_OF_POSSIBLE = 1.45 / 1.5
DETECTED_MS, UDP_BACK_MS, CARRIER_MS = 1900, 2000, 100


@dataclass(frozen=True, slots=True)
class LinkResult:
    """One link: what it should have got, and what it got. Shares from 0 to 1.

    `share_slots` is one number for each family that the lab has.
    """

    name: str
    capacity_bps: int
    share_wanted: float
    share_slots: tuple[float, ...]
    share_connections: float
    share_bytes: float
    carried_bps: float


@dataclass(frozen=True, slots=True)
class FailoverResult:
    """What came of the death and the return of one link, as `lab.failover` measures it.

    `detected_ms` of a path that is silently dead beyond the gateway, `carrier_ms` of a carrier that
    is lost: until a new connection of the link's is answered by another. Shares of all pairs.
    """

    killed: str
    detected_ms: float
    carrier_ms: float
    udp_back_ms: float
    survivors: int
    survivor_connections_broken: int
    pairs_moved: float
    pairs_moved_bound: float
    returned_exactly: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "killed": self.killed,
            "detected_ms": round(self.detected_ms),
            "carrier_ms": round(self.carrier_ms),
            "survivor_connections_broken": self.survivor_connections_broken,
            "pairs_moved": round(self.pairs_moved, 6),
            "pairs_moved_bound": round(self.pairs_moved_bound, 6),
            "returned_exactly": self.returned_exactly,
        }

    def reaches(self) -> list[tuple[bool, str]]:
        back = "each pair returned" if self.returned_exactly else "some pair did not return"
        return [
            (
                self.survivor_connections_broken == 0,
                f"{self.survivor_connections_broken} of {self.survivors} connections of other "
                f"links broke when {self.killed} died",
            ),
            (
                self.pairs_moved == self.pairs_moved_bound,
                f"{self.pairs_moved:.2%} of the pairs moved, {self.pairs_moved_bound:.2%} were "
                f"at home on {self.killed}",
            ),
            (self.returned_exactly, f"{back} to its home link for new connections"),
        ]

    def times(self) -> list[tuple[bool, str]]:
        """Figures to look at: a busy machine may be late, which breaks no promise."""
        return [
            (
                self.detected_ms <= DETECTED_MS,
                f"a path dead beyond the gateway is left in {self.detected_ms:.0f} ms "
                f"({DETECTED_MS})",
            ),
            (
                self.udp_back_ms <= UDP_BACK_MS,
                f"its old UDP flows again in {self.udp_back_ms:.0f} ms ({UDP_BACK_MS})",
            ),
            (
                self.carrier_ms <= CARRIER_MS,
                f"a link without carrier is left in {self.carrier_ms:.0f} ms ({CARRIER_MS})",
            ),
        ]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The whole demo. Rates in bit/s; `carried_*` count Ethernet bytes, goodput answers' bytes.

    `connections` are those with all links; opened and failed ones, with one link alone too, where
    a failure would make the gain look better.
    `rates` holds for each link (seconds since the demo began, bit/s) for the picture, `phases`
    the title, start and end of each load, `turns` what was done to a link and when. `notes` are
    examples of what went wrong.
    """

    links: tuple[LinkResult, ...]
    connections: int
    pairs: int
    pairs_split: int
    connections_opened: int
    connections_failed: int
    carried_bps: float
    carried_one_link_bps: float
    one_link: str
    goodput_bps: float
    wrong_source_packets: int
    mispredicted: int
    failover: FailoverResult
    seconds: float
    rates: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    phases: tuple[tuple[str, float, float], ...] = ()
    turns: tuple[tuple[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def capacity_sum_bps(self) -> int:
        return sum(link.capacity_bps for link in self.links)

    @property
    def gain(self) -> float:
        """How many times the better link alone all links carried."""
        return self.carried_bps / max(self.carried_one_link_bps, 1.0)

    @property
    def gain_wanted(self) -> float:
        best = max(link.capacity_bps for link in self.links)
        return GAIN_OF_POSSIBLE * self.capacity_sum_bps / best

    def as_json(self) -> dict[str, Any]:
        """The object that docs promise to programs."""
        return {
            "links": [
                {
                    "name": link.name,
                    "capacity_bps": link.capacity_bps,
                    "share_wanted": round(link.share_wanted, 6),
                    "share_slots": round(link.share_slots[0], 6),
                    "share_connections": round(link.share_connections, 4),
                    "share_bytes": round(link.share_bytes, 4),
                    "carried_bps": round(link.carried_bps),
                }
                for link in self.links
            ],
            "connections": self.connections,
            "pairs": self.pairs,
            "pairs_split": self.pairs_split,
            "connections_opened": self.connections_opened,
            "connections_failed": self.connections_failed,
            "carried_bps": round(self.carried_bps),
            "carried_one_link_bps": round(self.carried_one_link_bps),
            "one_link": self.one_link,
            "goodput_bps": round(self.goodput_bps),
            "capacity_sum_bps": self.capacity_sum_bps,
            "failover": self.failover.as_json(),
            "wrong_source_packets": self.wrong_source_packets,
            "mispredicted": self.mispredicted,
            "seconds": round(self.seconds, 1),
        }

    def reaches(self) -> list[tuple[bool, str]]:
        """Each thing that the demo promises: whether it came true, and the figures."""
        sum_mbit, alone_mbit = self.capacity_sum_bps / 1e6, self.carried_one_link_bps / 1e6
        slots = max(
            abs(share - link.share_wanted) for link in self.links for share in link.share_slots
        )
        return [
            (
                slots <= SLOT,
                f"shares of slots are off by {slots * 65_536:.2f} slots of 65,536 at most (1)",
            ),
            (
                self.carried_bps >= CARRIED_OF_SUM * self.capacity_sum_bps,
                f"carried {self.carried_bps / 1e6:.1f} of {sum_mbit:g} Mbit/s "
                f"({CARRIED_OF_SUM * sum_mbit:.1f})",
            ),
            (
                self.gain >= self.gain_wanted,
                f"{self.gain:.2f} times the {alone_mbit:.1f} Mbit/s of {self.one_link} alone "
                f"({self.gain_wanted:.2f})",
            ),
            (self.pairs_split == 0, f"{self.pairs_split} of {self.pairs} address pairs were split"),
            (
                self.connections_failed == 0,
                f"{self.connections_failed} of {self.connections_opened} connections failed, "
                f"those of {self.one_link} alone among them",
            ),
            (
                self.mispredicted == 0,
                f"{self.mispredicted} of {self.connections} took a link that explain had not said",
            ),
            (
                self.wrong_source_packets == 0,
                f"{self.wrong_source_packets} packets reached a provider with a wrong source",
            ),
            *self.failover.reaches(),
        ]

    def missed(self) -> list[str]:
        """The reaches that did not come true."""
        return [figures for met, figures in self.reaches() if not met]
