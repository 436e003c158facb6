"""A link as the plan has it: its number, and what the rules need to know of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.config.marks import Marks
from dataplane.config.model import Config, Link, Nat
from dataplane.decide.facts import FAMILIES, Facts, Family, InterfaceFacts
from dataplane.decide.liveness import Address, LinkState, Way, source_towards


@dataclass(frozen=True, slots=True)
class PlannedLink:
    """A link with its number and what the rules need to know of the machine.

    `shared`: another link uses the same interface, told apart by mark and by gateway's MAC.
    `own_addresses` leaves out those that another link has too: they identify nobody, and are the
    `doubtful_addresses`. `slots` are those that it holds now, by family. `resolvers` are those
    that are pinned to it now. `gateways` are those known, by family; empty for none.
    """

    id: int
    mark: int
    table: int
    link: Link
    shared: bool
    gateway_macs: tuple[str, ...]
    own_addresses: tuple[Address, ...]
    doubtful_addresses: tuple[Address, ...]
    slots: tuple[int, int]
    mss: int | None
    resolvers: tuple[Address, ...] = ()
    gateways: tuple[str, str] = ("", "")

    def slots_of(self, family: Family) -> int:
        return self.slots[FAMILIES.index(family)]

    def gateway(self, family: Family) -> str:
        return self.gateways[FAMILIES.index(family)]


def planned_link(
    link: Link,
    link_id: int,
    table: int,
    marks: Marks,
    config: Config,
    facts: Facts,
    states: Mapping[str, LinkState],
    held: Mapping[Family, Mapping[str, int]],
) -> PlannedLink:
    """The link with that number and routing table. `held` are the slots, by family and link."""
    state = states[link.name]
    claimed = _claimed(link, config, facts, state)
    foreign = {
        address
        for other in config.links
        if other.name != link.name
        for address in _claimed(other, config, facts, states[other.name])
    }
    macs = dict(facts.gateway_macs)
    gateways = tuple(str(way.gateway) if way.gateway else "" for way in state.ways)
    return PlannedLink(
        id=link_id,
        mark=marks.mark(link_id),
        table=table,
        link=link,
        shared=_shared(link, config),
        gateway_macs=tuple(sorted({macs[gateway] for gateway in gateways if gateway in macs})),
        own_addresses=tuple(address for address in claimed if address not in foreign),
        doubtful_addresses=tuple(address for address in claimed if address in foreign),
        slots=(held.get(4, {}).get(link.name, 0), held.get(6, {}).get(link.name, 0)),
        mss=_mss(link, facts),
        resolvers=pinned_resolvers(link, state),
        gateways=(gateways[0], gateways[1]),
    )


def pinned_resolvers(link: Link, state: LinkState) -> tuple[Address, ...]:
    """The resolvers whose family the link carries now: queries to them leave by it."""
    return tuple(one for one in link.resolvers if state.way(4 if one.version == 4 else 6).alive)


def _shared(link: Link, config: Config) -> bool:
    return sum(other.interface == link.interface for other in config.links) > 1


def _claimed(link: Link, config: Config, facts: Facts, state: LinkState) -> tuple[Address, ...]:
    """The addresses that the link leaves with: of a shared interface, one a family."""
    if not _shared(link, config):
        return tuple(address for way in state.ways for address in way.addresses)
    sources = (source_of(link, way, facts) for way in state.ways)
    return tuple(source for source in sources if source is not None)


def source_of(link: Link, way: Way, facts: Facts) -> Address | None:
    """The link's address by this way. The file's own word tells two links of one network apart."""
    for named in (link.snat_address, link.snat_address6):
        if named is not None and named in way.addresses:
            return named
    return source_towards(way, facts.interface(link.interface))


def _mss(link: Link, facts: Facts) -> int | None:
    """What IPv4 TCP is clamped to: as configured, else for links with less than Ethernet's MTU."""
    if link.mss is not None:
        return link.mss
    interface = facts.interface(link.interface)
    return interface.mtu - 40 if interface and interface.mtu < 1500 else None


def onlink(way: Way, interface: InterfaceFacts | None) -> bool:
    """Some leases give an address that is alone in its network, and a gateway outside of it."""
    if way.gateway is None or way.gateway.is_link_local or interface is None:
        return False
    return not any(way.gateway in address.network for address in interface.addresses)


def uses_nat(planned: PlannedLink) -> bool:
    """Whether a source that is not the link's must never leave by it."""
    return planned.link.nat is not Nat.NONE
