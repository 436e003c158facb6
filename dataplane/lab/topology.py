"""The lab's layout as data: links, LAN side, servers, and the addresses that they have.

Nothing here touches the machine. Addresses come from the ranges for documentation and benchmarks
(RFC 5737, RFC 2544, RFC 3849) and from private ranges, but for the resolvers':

    link n      192.0.2.0/24, 198.51.100.0/24, then 198.18.n.0/24     2001:db8:n::/64
                provider .1, router .2                                delegated 2001:db8:d00n::/56
    core n      198.19.n.0/30                                         2001:db8:c00n::/64
    servers     203.0.113.1, .2, …                                    2001:db8:53::1, …
    resolvers   the public ones that probes ask unless told otherwise, where the servers are
    LAN n       10.(10+n).0.0/16, router .0.1, hosts .1.0, .1.1, …    fd00:db8:n::/64
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from itertools import product
from typing import Literal

from dataplane.config.model import PUBLIC_RESOLVERS

Family = Literal[4, 6]
Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
Attachment = Literal["direct", "bridge", "vlan"]
BOTH: tuple[Family, ...] = (4, 6)
MBIT = 1_000_000

_LAN6 = IPv6Address("fd00:db8::")
_LINK6 = IPv6Address("2001:db8::")
_DELEGATED6 = IPv6Address("2001:db8:d000::")
_CORE4 = IPv4Address("198.19.0.0")
_CORE6 = IPv6Address("2001:db8:c000::")
_SERVER4 = IPv4Address("203.0.113.0")
_SERVER6 = IPv6Address("2001:db8:53::")
_LINK4 = (IPv4Address("192.0.2.0"), IPv4Address("198.51.100.0"), IPv4Address("198.18.0.0"))


@dataclass(frozen=True, slots=True)
class Link:
    """One uplink and the provider behind it.

    `capacity_bps` is what the file says and, where `shaped`, what the provider lets through
    downwards; `upload_bps` upwards (None: the same). `addresses` are the router's on `interface`,
    `gateways` the provider's; two links with one `interface` meet in one Ethernet segment.
    A `delegated` prefix is routed to the router's IPv6 address. On a `point_to_point` link the
    file names no gateway, and the provider answers ARP for everybody.
    """

    name: str
    interface: str
    capacity_bps: int
    addresses: tuple[Interface, ...]
    gateways: tuple[Address, ...]
    upload_bps: int | None = None
    shaped: bool = True
    mtu: int = 1500
    delegated: IPv6Network | None = None
    point_to_point: bool = False

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that the link carries."""
        return tuple(f for f in BOTH if any(a.version == f for a in self.addresses))

    def address(self, family: Family) -> Address:
        """The router's address on the link; KeyError if it has none of that family."""
        for address in self.addresses:
            if address.version == family:
                return address.ip
        raise KeyError(family)

    def gateway(self, family: Family) -> Address:
        """The provider's address on the link; KeyError if it has none of that family."""
        for gateway in self.gateways:
            if gateway.version == family:
                return gateway
        raise KeyError(family)

    @property
    def rightful(self) -> tuple[Network, ...]:
        """The sources that the provider may see: the link's addresses and what was delegated."""
        own = tuple(_host(address.ip) for address in self.addresses)
        return (*own, self.delegated) if self.delegated else own


@dataclass(frozen=True, slots=True)
class Lan:
    """One network of the LAN side, with its own namespace of that `name`.

    `attachment` is how the router holds it: the interface itself, a port of a bridge, or a VLAN.
    `hosts` addresses of each family, plus as many in `delegated` prefixes (one /64 of each).
    """

    name: str
    interface: str
    addresses: tuple[Interface, ...]
    hosts: int = 4
    attachment: Attachment = "direct"
    delegated: tuple[IPv6Network, ...] = ()

    def router(self, family: Family) -> Address:
        """The router's address in this network; KeyError if it has none of that family."""
        for address in self.addresses:
            if address.version == family:
                return address.ip
        raise KeyError(family)

    def clients(self, family: Family) -> tuple[Address, ...]:
        """The hosts' addresses of that family, without those in delegated prefixes."""
        found: list[Address] = []
        for address in self.addresses:
            if address.version == family:
                base = address.network.network_address + 256
                found += [base + number for number in range(self.hosts)]
        return tuple(found)

    def delegated_clients(self, prefix: IPv6Network) -> tuple[IPv6Address, ...]:
        """The hosts' addresses in the first /64 of a delegated prefix."""
        return tuple(prefix.network_address + 256 + number for number in range(self.hosts))

    @property
    def port(self) -> str:
        """The router's Ethernet interface below a bridge or a VLAN, or the interface itself."""
        return self.interface if self.attachment == "direct" else f"{self.name}-port"


@dataclass(frozen=True, slots=True)
class Topology:
    """A whole lab. `queue_ms` is how long a packet waits in a full shaper before it is lost."""

    links: tuple[Link, ...]
    lans: tuple[Lan, ...]
    servers: tuple[Address, ...]
    queue_ms: int = 300

    def __post_init__(self) -> None:
        names = [link.name for link in self.links] + [lan.name for lan in self.lans]
        reserved = {"router", "server", "client"} & {link.name for link in self.links}
        if len(set(names)) < len(names) or reserved:
            raise ValueError(f"every link and LAN needs a name of its own, got {names}")

    def link(self, name: str) -> Link:
        """The link of that name; KeyError if there is none."""
        for link in self.links:
            if link.name == name:
                return link
        raise KeyError(name)

    @property
    def families(self) -> tuple[Family, ...]:
        """Families that the first LAN, the servers and at least one link have."""
        return tuple(
            family
            for family in BOTH
            if self.lans[0].clients(family)
            and self.serving(family)
            and any(family in link.families for link in self.links)
        )

    def serving(self, family: Family) -> tuple[Address, ...]:
        """The servers' addresses of that family."""
        return tuple(server for server in self.servers if server.version == family)

    @property
    def answering(self) -> tuple[Address, ...]:
        """What answers pings beyond the providers: the servers and the public resolvers."""
        return tuple(dict.fromkeys((*self.servers, *PUBLIC_RESOLVERS)))

    def pairs(self) -> tuple[tuple[Address, Address], ...]:
        """Every (client, server) address pair of the first LAN, the families in turn."""
        families = [
            list(product(self.lans[0].clients(family), self.serving(family)))
            for family in self.families
        ]
        turns = max((len(pairs) for pairs in families), default=0)
        return tuple(pairs[n] for n in range(turns) for pairs in families if n < len(pairs))

    def translates(self, link: Link) -> bool:
        """Whether the provider has to translate, since another link has the same address."""
        others = [other for other in self.links if other.name != link.name]
        taken = {address.ip for other in others for address in other.addresses}
        return any(address.ip in taken for address in link.addresses)

    @property
    def shared(self) -> tuple[str, ...]:
        """The router's interfaces that carry more than one link."""
        names = [link.interface for link in self.links]
        return tuple(sorted({name for name in names if names.count(name) > 1}))


def _host(address: Address) -> Network:
    """The prefix that holds one address only."""
    if isinstance(address, IPv4Address):
        return IPv4Network(address)
    return IPv6Network(address)


def link(
    name: str,
    number: int,
    capacity_bps: int,
    *,
    families: Sequence[Family] = BOTH,
    interface: str | None = None,
    network4: IPv4Network | None = None,
    network6: IPv6Network | None = None,
    host: int = 1,
    delegated: bool = False,
    **rest: object,
) -> Link:
    """Link `number` (from 1) of the address plan; `rest` are more fields of `Link`.

    `network4` and `network6` put it elsewhere, for instance onto another link's network. The
    provider takes the `host`-th odd address and the router the even one after it.
    """
    base4 = _LINK4[number - 1] if number < len(_LINK4) else _LINK4[-1] + (number << 8)
    network4 = network4 or IPv4Network((base4, 24))
    network6 = network6 or IPv6Network((_LINK6 + (number << 80), 64))
    addresses: list[Interface] = []
    gateways: list[Address] = []
    mine, theirs = 2 * host, 2 * host - 1
    if 4 in families:
        addresses.append(IPv4Interface((network4.network_address + mine, network4.prefixlen)))
        gateways.append(network4.network_address + theirs)
    if 6 in families:
        addresses.append(IPv6Interface((network6.network_address + mine, network6.prefixlen)))
        gateways.append(network6.network_address + theirs)
    plain = Link(
        name=name,
        interface=interface or f"wan{number}",
        capacity_bps=capacity_bps,
        addresses=tuple(addresses),
        gateways=tuple(gateways),
        delegated=IPv6Network((_DELEGATED6 + (number << 80), 56)) if delegated else None,
    )
    return replace(plain, **rest)  # type: ignore[arg-type]


def lan(
    name: str = "client",
    number: int = 0,
    *,
    families: Sequence[Family] = BOTH,
    hosts: int = 4,
    attachment: Attachment = "direct",
    delegated: Iterable[IPv6Network] = (),
) -> Lan:
    """LAN `number` (from 0) of the address plan; the first one's namespace is "client"."""
    addresses: list[Interface] = []
    if 4 in families:
        addresses.append(IPv4Interface(f"10.{10 + number}.0.1/16"))
    if 6 in families:
        addresses.append(IPv6Interface((_LAN6 + (number << 80) + 1, 64)))
    interface = {"direct": f"lan{number}", "bridge": f"br-lan{number}", "vlan": f"lan{number}.10"}
    return Lan(name, interface[attachment], tuple(addresses), hosts, attachment, tuple(delegated))


def servers(count: int, families: Sequence[Family] = BOTH) -> tuple[Address, ...]:
    """`count` (at most 250) server addresses of each family."""
    bases: dict[Family, Address] = {4: _SERVER4, 6: _SERVER6}
    return tuple(bases[f] + number for f in families for number in range(1, count + 1))


def core(number: int, family: Family) -> tuple[Interface, Interface]:
    """The addresses of provider `number` (from 1) and of the servers on the wire between them."""
    if family == 4:
        base4 = _CORE4 + (number << 8)
        return IPv4Interface((base4 + 1, 30)), IPv4Interface((base4 + 2, 30))
    base6 = _CORE6 + (number << 80)
    return IPv6Interface((base6 + 1, 64)), IPv6Interface((base6 + 2, 64))


def uplinks(
    *capacities_bps: int,
    families: Sequence[Family] = BOTH,
    hosts: int = 4,
    server_count: int = 4,
    shaped: bool = True,
) -> Topology:
    """The everyday lab: links isp-a, isp-b, … of these capacities, one LAN, all of `families`."""
    links = tuple(
        link(f"isp-{chr(ord('a') + n)}", n + 1, rate, families=families, shaped=shaped)
        for n, rate in enumerate(capacities_bps)
    )
    return Topology(links, (lan(families=families, hosts=hosts),), servers(server_count, families))
