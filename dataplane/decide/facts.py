"""What was seen on the machine, as values. Seen by system/, judged here and in liveness.py."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network
from typing import Literal

Family = Literal[4, 6]
FAMILIES: tuple[Family, ...] = (4, 6)


@dataclass(frozen=True, slots=True)
class InterfaceFacts:
    """One interface as the kernel has it. Addresses are those of global scope."""

    name: str
    index: int
    enabled: bool
    carrier: bool
    point_to_point: bool
    mtu: int
    addresses4: tuple[IPv4Interface, ...] = ()
    addresses6: tuple[IPv6Interface, ...] = ()
    learned_gateway4: IPv4Address | None = None
    learned_gateway6: IPv6Address | None = None

    @property
    def addresses(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """Of both families."""
        return self.addresses4 + self.addresses6


@dataclass(frozen=True, slots=True)
class Facts:
    """The machine as far as the plan depends on it.

    `interfaces` holds those that exist among the links' and the LAN side's. `gateway_macs` maps a
    gateway to its MAC address, asked for only where two links share an interface. `native_queue`:
    the kernel and nft know the queue statement. `foreign_marks`: priority, mark and mask of other
    people's rules by mark. `foreign_routes`: table and words of other people's routes in our
    tables, one for each table and family.
    """

    interfaces: tuple[InterfaceFacts, ...]
    native_queue: bool
    gateway_macs: tuple[tuple[str, str], ...] = ()
    foreign_marks: tuple[tuple[int, int, int], ...] = ()
    foreign_routes: tuple[tuple[int, str], ...] = ()

    def interface(self, name: str) -> InterfaceFacts | None:
        for interface in self.interfaces:
            if interface.name == name:
                return interface
        return None

    def lan_source4(self, lan: tuple[str, ...]) -> IPv4Address | None:
        """The router's first IPv4 address on the LAN side: what unbound sockets prefer."""
        for name in lan:
            interface = self.interface(name)
            if interface and interface.addresses4:
                return interface.addresses4[0].ip
        return None

    def lan_source6(self, lan: tuple[str, ...]) -> IPv6Address | None:
        """The router's first global or unique-local IPv6 address on the LAN side."""
        for name in lan:
            interface = self.interface(name)
            if interface and interface.addresses6:
                return interface.addresses6[0].ip
        return None

    def lan_prefixes6(self, lan: tuple[str, ...]) -> tuple[IPv6Network, ...]:
        """The IPv6 networks of the LAN side, in the order of the interfaces, each once."""
        found: dict[IPv6Network, None] = {}
        for name in lan:
            interface = self.interface(name)
            for address in interface.addresses6 if interface else ():
                found[address.network] = None
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Destination:
    """What main's routes without the default ones say of an address.

    `kind`: "specific" (connected or a specific route), "local" (this router), "broadcast",
    "anycast", "multicast", "blackhole", "unreachable", "prohibit", or empty: only a default route
    would lead there.
    """

    kind: str
    interface: str
