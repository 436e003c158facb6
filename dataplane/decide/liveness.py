"""Which link carries which family now, by what way, and why not.

A link carries a family when its interface exists, is enabled, has a carrier, an address of that
family, and a gateway (or is point-to-point and needs none).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dataplane.config.model import AUTO, Config, Link
from dataplane.decide.facts import FAMILIES, Facts, Family, InterfaceFacts

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Way:
    """How a link carries one family.

    `usable`: routes can be installed (the interface is enabled). `alive`: new connections may be
    sent there. `why` says what is missing, in words; empty when alive. `gateway` None on a usable
    way means point-to-point.
    """

    usable: bool
    alive: bool
    why: str
    gateway: Address | None = None
    addresses: tuple[Address, ...] = ()


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
    def why(self) -> str:
        """Why the link is down; empty when it carries anything."""
        return "" if self.alive else next(way.why for way in self.ways if way.why)


def link_states(config: Config, facts: Facts) -> dict[str, LinkState]:
    """The state of every configured link, in the order of the file."""
    return {link.name: _state(link, config, facts) for link in config.links}


def alive(states: Mapping[str, LinkState], family: Family) -> frozenset[str]:
    """The names of the links that carry the family now."""
    return frozenset(name for name, state in states.items() if state.way(family).alive)


def carriers(states: Mapping[str, LinkState], family: Family) -> frozenset[str]:
    """The names of the links that could carry the family: they are set up for it."""
    return frozenset(name for name, state in states.items() if state.way(family).usable)


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
        absent = Way(False, False, f"interface {link.interface} does not exist")
        return LinkState(link.name, (absent, absent))
    way4 = _way(
        interface,
        link.gateway,
        interface.learned_gateway4,
        tuple(address.ip for address in interface.addresses4),
        "IPv4",
    )
    if not config.ipv6:
        return LinkState(link.name, (way4, Way(False, False, "IPv6 is switched off in the file")))
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
    if not interface.enabled:
        return Way(False, False, f"interface {interface.name} is not enabled", gateway, addresses)
    if not addresses:
        return Way(False, False, f"interface {interface.name} has no {family} address", gateway)
    if gateway is None and not interface.point_to_point:
        return Way(False, False, f"no {family} gateway is known", None, addresses)
    if not interface.carrier:
        return Way(True, False, f"interface {interface.name} has no carrier", gateway, addresses)
    return Way(True, True, "", gateway, addresses)
