"""Which connections belong back on a link that has returned. Pure: what is asked is an argument."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple, Self

from dataplane.config.model import Config, Failback, Nat
from dataplane.decide.facts import Destination, Facts, Family
from dataplane.decide.liveness import LinkState

# What main's connected and specific routes say of an address.
Ask = Callable[[IPv4Address | IPv6Address], Destination]


class Connection(NamedTuple):
    """One connection as the kernel tracks it. A tuple, since thousands are made in a row.

    Addresses are packed, those of the original direction; ports are 0 where a protocol has none,
    and `icmp` is the id, type and code of an echo. `answered_at` is the destination of the replies:
    the address that the source was translated to. `timeout_s` is what remains until the kernel
    forgets it by itself, None where the kernel does not say. `id` with `original`, the tuple as the
    kernel spells it, and `zone` name exactly this entry.
    """

    family: Family
    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int
    icmp: tuple[int, int, int]
    answered_at: bytes
    mark: int
    status: int
    timeout_s: int | None
    id: int
    original: bytes
    zone: int


class Homeward(NamedTuple):
    """Where a connection belongs: the decision of the program in force, and what its group says of
    going there; None leaves that to the link.
    """

    number: int
    failback: Failback | None = None


STAYS = Homeward(0)
# A connection, and the interface of the LAN side it came by, empty where none asks for that or it
# is the router's own.
Home = Callable[[Connection, str], Homeward]


@dataclass(frozen=True, slots=True)
class Policy:
    """What says that a connection was not balanced, though its link's mark is on it.

    `lan` are the interfaces of the LAN side. `pinned_sources` are the links' own addresses,
    `pinned_prefixes` the providers' delegated prefixes, `resolvers` those of all links, whether or
    not they are pinned now. `own_balanced`: the router's own connections are balanced, too.
    `by_interface`: rules ask for the interface that a connection came by.
    """

    lan: frozenset[str]
    pinned_sources: frozenset[bytes]
    pinned_prefixes: tuple[IPv6Network, ...]
    resolvers: frozenset[bytes]
    own_balanced: bool
    by_interface: bool

    @classmethod
    def of(cls, config: Config, facts: Facts, states: Mapping[str, LinkState]) -> Self:
        held = {
            address for state in states.values() for way in state.ways for address in way.addresses
        }
        for link in config.links:
            interface = facts.interface(link.interface)
            held |= {one.ip for one in interface.addresses} if interface else set()
        return cls(
            lan=frozenset(config.lan),
            pinned_sources=frozenset(address.packed for address in held),
            pinned_prefixes=tuple(
                link.prefix6 for link in config.links
                if link.prefix6 and link.nat is not Nat.PREFIX
            ),
            resolvers=frozenset(one.packed for link in config.links for one in link.resolvers),
            own_balanced=config.own_traffic == "balance",
            by_interface=any(rule.interfaces for rule in config.rules),
        )  # fmt: skip


def home_of(
    connection: Connection, on: int, returned: Collection[int], policy: Policy, home: Home, ask: Ask
) -> Homeward:
    """The returned link that a new connection like this one would take, else STAYS.

    `on` is the number of the link that carries it. What was never balanced stays as well: what
    came in from outside or from beside the LAN, has a specific route of main, or is pinned.
    """
    interface = ask(ip_address(connection.source)).interface if policy.by_interface else ""
    found = home(connection, interface)
    if found.number == on or found.number not in returned:
        return STAYS
    return found if balanced(connection, policy, ask) else STAYS


def balanced(connection: Connection, policy: Policy, ask: Ask) -> bool:
    """Whether its link was chosen by its hash."""
    if connection.source in policy.pinned_sources or connection.destination in policy.resolvers:
        return False
    source, destination = ip_address(connection.source), ip_address(connection.destination)
    if any(source in prefix for prefix in policy.pinned_prefixes):
        return False
    # The destination's question is the one by which the packet path exempts; it leaves out what
    # came in from outside, too, since that leads to the router or to a network of the LAN side.
    return not ask(destination).kind and _ours(ask(source), policy)


def _ours(source: Destination, policy: Policy) -> bool:
    """Whether that address is of a host of the LAN side or of the router itself."""
    if source.kind == "local":
        return policy.own_balanced
    return source.kind == "specific" and source.interface in policy.lan
