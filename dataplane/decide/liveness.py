"""Which link carries which family now, by what way, and why not.

The machine says whether a link can carry a family: its interface exists, is enabled, has a
carrier, an address of that family, and a gateway (or is point-to-point and needs none). Its health
says whether anybody answers by it, and the operator may have drained it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address

from dataplane.config.model import AUTO, Config, Link
from dataplane.decide.facts import FAMILIES, Facts, Family, InterfaceFacts

Address = IPv4Address | IPv6Address


class Condition(IntEnum):
    """How well a link can carry a family; what is higher is better.

    ABSENT: no routes can be installed. CUT: no carrier. SILENT: nobody answers, or not for long
    enough. POOR: answers are lost or late. DRAINED: well, but taken out by hand.
    """

    ABSENT = 0
    CUT = 1
    SILENT = 2
    POOR = 3
    DRAINED = 4
    LIVING = 5


@dataclass(frozen=True, slots=True)
class Judgement:
    """What health makes of a way, and why, in words; LIVING without a reason."""

    condition: Condition
    why: str = ""


Judgements = Mapping[tuple[str, Family], Judgement]


@dataclass(frozen=True, slots=True)
class Way:
    """How a link carries one family.

    `why` says what is missing, in words; empty when living. `gateway` None on a usable way means
    point-to-point.
    """

    condition: Condition
    why: str = ""
    gateway: Address | None = None
    addresses: tuple[Address, ...] = ()

    @property
    def usable(self) -> bool:
        """Routes can be installed."""
        return self.condition is not Condition.ABSENT

    @property
    def alive(self) -> bool:
        """New connections may be sent there."""
        return self.condition is Condition.LIVING

    @property
    def joined(self) -> bool:
        """There is a carrier, an address and a gateway: it can be probed."""
        return self.condition > Condition.CUT


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link's two ways."""

    name: str
    ways: tuple[Way, Way]

    def way(self, family: Family) -> Way:
        return self.ways[FAMILIES.index(family)]

    @property
    def alive(self) -> bool:
        return any(way.alive for way in self.ways)

    @property
    def drained(self) -> bool:
        """Taken out by hand, and well otherwise."""
        return not self.alive and any(way.condition is Condition.DRAINED for way in self.ways)

    @property
    def why(self) -> str:
        """Why the link is down; empty when it carries anything."""
        if self.alive:
            return ""
        best = max(way.condition for way in self.ways)
        return next(way.why for way in self.ways if way.condition is best)


def link_states(config: Config, facts: Facts) -> dict[str, LinkState]:
    """What the machine says of every configured link, in the order of the file."""
    return {link.name: _state(link, config, facts) for link in config.links}


def judged(
    states: Mapping[str, LinkState], judgements: Judgements, drained: Collection[str]
) -> dict[str, LinkState]:
    """The same states after health and the operator had their say.

    What has no judgement yet is believed to be well.
    """
    return {
        name: LinkState(
            name,
            (
                _judged(state.way(4), judgements.get((name, 4)), name in drained),
                _judged(state.way(6), judgements.get((name, 6)), name in drained),
            ),
        )
        for name, state in states.items()
    }


def _judged(way: Way, judgement: Judgement | None, drained: bool) -> Way:
    if not way.alive:
        return way
    if judgement is not None and judgement.condition is not Condition.LIVING:
        # Cut means that the carrier came back after health was asked.
        condition = max(judgement.condition, Condition.SILENT)
        return replace(way, condition=condition, why=judgement.why)
    if drained:
        return replace(way, condition=Condition.DRAINED, why="drained by hand")
    return way


def serving(
    states: Mapping[str, LinkState],
    family: Family,
    among: Collection[str],
    before: Collection[str] = (),
) -> frozenset[str]:
    """The links of `among` that new connections of the family are sent to.

    The living; while none lives, those in the best condition, and of them the ones that served
    `before`: the last link stays, and nothing moves to where it would be no better off. Empty only
    if no link is set up for the family.
    """
    conditions = {
        name: state.way(family).condition
        for name, state in states.items()
        if name in among and state.way(family).usable
    }
    best = max(conditions.values(), default=Condition.ABSENT)
    found = frozenset(name for name, condition in conditions.items() if condition is best)
    return found if best is Condition.LIVING else found & frozenset(before) or found


def source_towards(way: Way, interface: InterfaceFacts | None) -> Address | None:
    """The link's address in its gateway's network, else its first; None when it has none."""
    if way.gateway is not None and interface is not None:
        for address in interface.addresses:
            if way.gateway in address.network:
                return address.ip
    return way.addresses[0] if way.addresses else None


def _state(link: Link, config: Config, facts: Facts) -> LinkState:
    interface = facts.interface(link.interface)
    if interface is None:
        absent = Way(Condition.ABSENT, f"interface {link.interface} does not exist")
        return LinkState(link.name, (absent, absent))
    way4 = _way(
        interface,
        link.gateway,
        interface.learned_gateway4,
        tuple(address.ip for address in interface.addresses4),
        "IPv4",
    )
    if not config.ipv6:
        return LinkState(
            link.name, (way4, Way(Condition.ABSENT, "IPv6 is switched off in the file"))
        )
    way6 = _way(
        interface,
        link.gateway6,
        interface.learned_gateway6,
        tuple(address.ip for address in interface.addresses6),
        "IPv6",
    )
    return LinkState(link.name, (way4, way6))


def _way(
    interface: InterfaceFacts,
    configured: Address | str | None,
    learned: Address | None,
    addresses: tuple[Address, ...],
    family: str,
) -> Way:
    gateway = learned if configured == AUTO else configured
    assert not isinstance(gateway, str)
    absent, name = Condition.ABSENT, interface.name
    if not interface.enabled:
        return Way(absent, f"interface {name} is not enabled", gateway, addresses)
    if not addresses:
        return Way(absent, f"interface {name} has no {family} address", gateway)
    if gateway is None and not interface.point_to_point:
        return Way(absent, f"no {family} gateway is known", None, addresses)
    if configured != AUTO and gateway is not None and not reaches(interface, gateway):
        return Way(absent, f"gateway {gateway} is in no network of {name}", gateway, addresses)
    if not interface.carrier:
        return Way(Condition.CUT, f"interface {name} has no carrier", gateway, addresses)
    return Way(Condition.LIVING, "", gateway, addresses)


def reaches(interface: InterfaceFacts, gateway: Address) -> bool:
    """Whether the gateway lies in a network of the interface, as far as its addresses tell.

    Those that are alone in their network, as some leases give them, tell nothing.
    """
    networks = [
        address.network
        for address in interface.addresses
        if address.version == gateway.version and address.network.num_addresses > 1
    ]
    if gateway.is_link_local or interface.point_to_point or not networks:
        return True
    return any(gateway in network for network in networks)
