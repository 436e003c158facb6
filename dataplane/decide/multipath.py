"""Groups whose connections the kernel's own multipath route spreads: nexthops and their weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import lcm

from dataplane.decide.facts import Family

# What a nexthop's weight can be.
MOST_WEIGHT = 256

# IPv6 takes no nexthop of a multipath route without a gateway. On an interface that asks for no
# neighbour, which is what point-to-point ones are, any link-local address is as good as none.
NO_GATEWAY6 = "fe80::7477:7477"


@dataclass(frozen=True, slots=True)
class EcmpGroup:
    """An ecmp group as it is now.

    `number` is its decision, beside those of the links. `serving` has the links that take its new
    connections and what their shares are in proportion to, by family; a family that none serves
    is left out.
    """

    number: int
    serving: Mapping[Family, Mapping[str, Fraction]]


@dataclass(frozen=True, slots=True, order=True)
class Nexthop:
    """One way of a multipath route. `gateway` empty: the interface alone. `weight`: 1 to 256."""

    interface: str
    gateway: str = ""
    weight: int = 1
    onlink: bool = False


def nexthop_weights(shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Whole weights from 1 to 256 that are nearest to the shares, which are above 0.

    The widest link gets each number from 1 to 256 in turn and the others what is nearest to their
    ratio to it, but no less than 1; of these the one with the least total variation distance is
    taken, and of equal ones the smallest. What is narrower than 1/512 of the widest gets more than
    its share.
    """
    if not shares:
        return {}
    unit = lcm(*(share.denominator for share in shares.values()))
    exact = [int(share * unit) for share in shares.values()]
    widest, total = max(exact), sum(exact)
    best: list[int] = []
    least = (1, 0)  # distance, as a fraction
    for top in range(1, MOST_WEIGHT + 1):
        tried = [max(1, (2 * one * top + widest) // (2 * widest)) for one in exact]
        scale = sum(tried)
        off = sum(abs(one * total - of * scale) for one, of in zip(tried, exact, strict=True))
        if not best or off * least[1] < least[0] * scale:
            best, least = tried, (off, scale)
        if off == 0:
            break
    return dict(zip(shares, best, strict=True))


def merged(hops: Iterable[Nexthop]) -> tuple[Nexthop, ...]:
    """The nexthops in order, those that are the same way made one: the kernel refuses twins."""
    found: dict[tuple[str, str], Nexthop] = {}
    for hop in hops:
        way = (hop.interface, hop.gateway)
        twin = found.get(way)
        weight = min(hop.weight + (twin.weight if twin else 0), MOST_WEIGHT)
        found[way] = replace(hop, weight=weight)
    return tuple(sorted(found.values()))
