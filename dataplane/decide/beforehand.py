"""What is decided before any rule is asked: what is left alone, and what is pinned to a link."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from dataplane.config.model import Config, Link, Nat
from dataplane.decide.facts import Destination
from dataplane.decide.flow import Flow
from dataplane.decide.liveness import LinkState

_DHCP_PORTS = frozenset({67, 68, 546, 547})
_UDP = 17


def exempt(config: Config, flow: Flow, destination: Destination) -> str:
    """Why the connection is left alone; empty when it is balanced."""
    if flow.interface and flow.interface not in config.lan:
        return f"it arrives on {flow.interface}, which is not of the LAN side"
    if flow.family == 6 and not config.ipv6:
        return "IPv6 is switched off in the file"
    if _no_unicast(flow.destination) or destination.kind in ("broadcast", "anycast", "multicast"):
        return f"{flow.destination} is not a unicast address"
    if destination.kind == "local":
        return f"{flow.destination} is an address of this router"
    if flow.destination.is_link_local or flow.source.is_link_local or flow.source.is_unspecified:
        return "link-local traffic stays on its network"
    if flow.protocol == _UDP and flow.destination_port in _DHCP_PORTS:
        return "DHCP is left alone"
    if destination.kind in ("blackhole", "unreachable", "prohibit"):
        return f"main has a specific route to {flow.destination} that refuses it"
    if destination.kind == "specific":
        return (
            f"main has a connected network or a specific route to {flow.destination} "
            f"by {destination.interface}"
        )
    return ""


def _no_unicast(address: IPv4Address | IPv6Address) -> bool:
    """What the kernel calls broadcast or multicast whatever the routes say (inet_addr_type)."""
    return (
        address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and address.packed[0] == 0)
        or address.packed == b"\xff\xff\xff\xff"
    )


def pinned(config: Config, flow: Flow) -> Link | None:
    """The link in whose delegated prefix the source lies."""
    for link in config.links:
        if link.prefix6 and link.nat is not Nat.PREFIX and flow.source in link.prefix6:
            return link
    return None


def own(config: Config, states: Mapping[str, LinkState], flow: Flow) -> Link | None:
    """The link whose address alone is the source of the router's own traffic."""
    found = [
        name for name, state in states.items() if flow.source in state.way(flow.family).addresses
    ]
    return config.link(found[0]) if len(found) == 1 and not flow.interface else None


def asked(config: Config, flow: Flow) -> Link | None:
    """The link among whose resolvers the destination is."""
    for link in config.links:
        if flow.destination in link.resolvers:
            return link
    return None


def main_decides(config: Config, link: Link) -> bool:
    """Whether a link's address as the source says nothing: main's default route gives it."""
    return config.own_traffic == "main" and link.nat is not Nat.NONE
