"""The plan: everything the kernel should hold, as a value.

`make_plan` is pure, and the plan is compared with what is observed; nothing is ever applied in
another way. Rules and routes of ours carry protocol number 201, the nft table is ours by name,
and the NFQUEUE rules by their comment, so that clean-up needs no memory.

Order of the ip rules (why each stands where it stands is in docs/design/0004-packet-path.md):

    29700+ sockets bound to an interface of several links, with one's mark -> its table
    30000  main without its default routes: connected networks and specific routes
    30001  ask      -> unreachable: lets the exempt step ask "has main a specific route?"
    30002  main     -> main
    30003  reject   -> unreachable
    30010+ exempt marks, compared whole -> main
    30100+ sockets bound to a link's interface -> its table
    30300+ a link's mark -> its table
    30500+ a link's address as source -> its table
    30700  the router's own, not yet decided -> our last table (where own_traffic is "balance")
    32767  behind main: whatever found no route -> our last table
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv6Network
from typing import Literal

from dataplane.config.marks import Marks
from dataplane.config.model import Config, Group, Link, Nat, Queue
from dataplane.decide.facts import FAMILIES, Facts, Family, InterfaceFacts
from dataplane.decide.liveness import Address, Condition, LinkState, Way, source_towards
from dataplane.decide.slots import SLOTS, SlotTable

PROTOCOL = 201
LAST_TABLE = 7000
MAIN_TABLE = 254
# The worst metric there is: a table that lost its route must not fall through to another.
UNREACHABLE_METRIC = 4294967295

PRIORITY_PROBE = 29700
PRIORITY_SPECIFIC = 30000
PRIORITY_ASK = 30001
PRIORITY_MAIN = 30002
PRIORITY_REJECT = 30003
PRIORITY_EXEMPT = 30010
PRIORITY_BOUND = 30100
PRIORITY_MARK = 30300
PRIORITY_SOURCE = 30500
PRIORITY_OWN = 30700
PRIORITY_LAST = 32767


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """A default route in one of our tables. `kind` unreachable has no interface.

    `onlink`: no network of the interface has the gateway, which is there all the same.
    """

    family: Family
    table: int
    metric: int
    kind: Literal["unicast", "unreachable"]
    interface: str = ""
    gateway: str = ""
    source: str = ""
    onlink: bool = False

    @property
    def place(self) -> tuple[int, int, int]:
        """Two routes of the same place exclude each other."""
        return self.family, self.table, self.metric


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """A policy routing rule. `table` 0 means that the rule answers unreachable."""

    family: Family
    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    source: str = ""
    bound_interface: str = ""
    own_only: bool = False
    specific_only: bool = False


@dataclass(frozen=True, slots=True, order=True)
class QueueRule:
    """The NFQUEUE rule of iptables, for kernels whose nft has no queue statement."""

    family: Family
    chain: Literal["PREROUTING", "OUTPUT"]
    mark: int
    mask: int
    first_queue: int
    last_queue: int


@dataclass(frozen=True, slots=True)
class Sysctl:
    """One key below /proc/sys, with slashes, and the value it should have.

    `only_from` not empty: the key is changed only where it has that value now.
    """

    key: str
    value: str
    only_from: str = ""


@dataclass(frozen=True, slots=True)
class PlannedLink:
    """A link with its number and what the rules need to know of the machine.

    `shared`: another link uses the same interface, told apart by mark and by gateway's MAC.
    `own_addresses` leaves out those that another link has too: they identify nobody, and are the
    `doubtful_addresses`. `slots` are those that it holds now, by family. `resolvers` are those
    that are pinned to it now.
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

    def slots_of(self, family: Family) -> int:
        return self.slots[FAMILIES.index(family)]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the kernel should hold.

    `seed` is of the fallback's jhash; `slots_digest` changes when any slot changes its link.
    """

    marks: Marks
    links: tuple[PlannedLink, ...]
    lan: tuple[str, ...]
    lan_prefixes6: tuple[IPv6Network, ...]
    families: tuple[Family, ...]
    exempt_marks: tuple[int, ...]
    balance: Group
    balance_own: bool
    queue: Queue
    native_queue: bool
    seed: int
    slots_digest: str
    sysctls: tuple[Sysctl, ...]
    routes: frozenset[Route]
    rules: frozenset[Rule]
    queue_rules: frozenset[QueueRule]


def make_plan(
    config: Config,
    ids: Mapping[str, int],
    facts: Facts,
    states: Mapping[str, LinkState],
    tables: Mapping[Family, SlotTable],
    key: int,
) -> Plan:
    """The plan for these links in these states.

    `ids` numbers the links from 1 and `tables` gives the slots as they are now; a family without
    a table is not balanced. `key` is the 64-bit hash key; its low half seeds the fallback.
    """
    marks = Marks(config.mark_mask)
    families: tuple[Family, ...] = FAMILIES if config.ipv6 else (4,)
    held = {family: table.counts() for family, table in tables.items()}
    links = tuple(
        _planned(link, ids[link.name], marks, config, facts, states, held)
        for link in sorted(config.links, key=lambda link: ids[link.name])
    )
    return Plan(
        marks=marks,
        links=links,
        lan=config.lan,
        lan_prefixes6=facts.lan_prefixes6(config.lan),
        families=families,
        exempt_marks=config.exempt_marks,
        balance=config.balance,
        balance_own=config.own_traffic == "balance",
        queue=config.queue,
        native_queue=facts.native_queue,
        seed=key & 0xFFFFFFFF,
        slots_digest=_slots_digest(ids, tables),
        sysctls=_sysctls(config, facts),
        routes=frozenset(
            route for family in families for route in _routes(family, config, links, facts, states)
        ),
        rules=frozenset(
            rule for family in families for rule in _rules(family, config, marks, links, facts)
        ),
        queue_rules=frozenset(() if facts.native_queue else _queue_rules(families, config, marks)),
    )


def _slots_digest(ids: Mapping[str, int], tables: Mapping[Family, SlotTable]) -> str:
    digest = hashlib.sha256()
    for family, table in sorted(tables.items()):
        owners = [(name, ids[name]) for name in table.links]
        digest.update(f"{family} {owners} ".encode() + table.slots)
    return digest.hexdigest()[:16]


def table_of(link_id: int) -> int:
    """The routing table of a link."""
    return LAST_TABLE + link_id


def _planned(
    link: Link,
    link_id: int,
    marks: Marks,
    config: Config,
    facts: Facts,
    states: Mapping[str, LinkState],
    held: Mapping[Family, Mapping[str, int]],
) -> PlannedLink:
    state = states[link.name]
    claimed = _claimed(link, config, facts, state)
    foreign = {
        address
        for other in config.links
        if other.name != link.name
        for address in _claimed(other, config, facts, states[other.name])
    }
    macs = dict(facts.gateway_macs)
    gateways = [str(way.gateway) for way in state.ways if way.gateway]
    return PlannedLink(
        id=link_id,
        mark=marks.mark(link_id),
        table=table_of(link_id),
        link=link,
        shared=_shared(link, config),
        gateway_macs=tuple(sorted({macs[gateway] for gateway in gateways if gateway in macs})),
        own_addresses=tuple(address for address in claimed if address not in foreign),
        doubtful_addresses=tuple(address for address in claimed if address in foreign),
        slots=(held.get(4, {}).get(link.name, 0), held.get(6, {}).get(link.name, 0)),
        mss=_mss(link, facts),
        resolvers=pinned_resolvers(link, state),
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
    sources = (_source(link, way, facts) for way in state.ways)
    return tuple(source for source in sources if source is not None)


def _source(link: Link, way: Way, facts: Facts) -> Address | None:
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


def _sysctls(config: Config, facts: Facts) -> tuple[Sysctl, ...]:
    """In the order in which they are set.

    accept_ra comes before forwarding: otherwise the learned default route is purged and new
    advertisements are ignored. Where it is 0, somebody else reads the advertisements.
    """
    interfaces = dict.fromkeys(
        link.interface for link in config.links if facts.interface(link.interface)
    )
    wanted: list[Sysctl] = []
    for name in interfaces:
        wanted.append(Sysctl(f"net/ipv4/conf/{name}/rp_filter", "2"))
        wanted.append(Sysctl(f"net/ipv4/conf/{name}/src_valid_mark", "1"))
        if config.ipv6:
            wanted.append(Sysctl(f"net/ipv6/conf/{name}/accept_ra", "2", only_from="1"))
    wanted.append(Sysctl("net/ipv4/ip_forward", "1"))
    if config.ipv6:
        wanted.append(Sysctl("net/ipv6/conf/all/forwarding", "1"))
    return tuple(wanted)


def _routes(
    family: Family,
    config: Config,
    links: tuple[PlannedLink, ...],
    facts: Facts,
    states: Mapping[str, LinkState],
) -> list[Route]:
    routes: list[Route] = []
    lan_source = facts.lan_source4(config.lan) if family == 4 else facts.lan_source6(config.lan)
    preferred = sorted(
        links, key=lambda planned: (planned.link.metered, -planned.link.weight, planned.id)
    )
    for rank, planned in enumerate(preferred):
        routes.append(Route(family, planned.table, UNREACHABLE_METRIC, "unreachable"))
        way = states[planned.link.name].way(family)
        if not way.usable:
            continue
        gateway = str(way.gateway) if way.gateway else ""
        source = str(_source(planned.link, way, facts))
        own = Route(
            family,
            planned.table,
            100,
            "unicast",
            planned.link.interface,
            gateway,
            source,
            _onlink(way, facts.interface(planned.link.interface)),
        )
        metric = 100 + rank + _handicap(planned, way, family)
        last_source = str(lan_source) if lan_source else source
        routes.append(own)
        routes.append(replace(own, table=LAST_TABLE, metric=metric, source=last_source))
    return routes


def _handicap(planned: PlannedLink, way: Way, family: Family) -> int:
    """By how much its condition, and having no slots, make its metric in the last table worse.

    It is the link's own, so that one death changes one route, and not those of all behind it.
    """
    conditions = Condition.LIVING - way.condition
    return 1000 * conditions + (0 if planned.slots_of(family) else 500)


def _onlink(way: Way, interface: InterfaceFacts | None) -> bool:
    """Some leases give an address that is alone in its network, and a gateway outside of it."""
    if way.gateway is None or way.gateway.is_link_local or interface is None:
        return False
    return not any(way.gateway in address.network for address in interface.addresses)


def _rules(
    family: Family,
    config: Config,
    marks: Marks,
    links: tuple[PlannedLink, ...],
    facts: Facts,
) -> list[Rule]:
    rules = [
        Rule(family, PRIORITY_SPECIFIC, MAIN_TABLE, specific_only=True),
        Rule(family, PRIORITY_ASK, 0, marks.mark(marks.ask), marks.mask),
        Rule(family, PRIORITY_MAIN, MAIN_TABLE, marks.mark(marks.main), marks.mask),
        Rule(family, PRIORITY_REJECT, 0, marks.mark(marks.reject), marks.mask),
    ]
    for place, mark in enumerate(config.exempt_marks):
        rules.append(Rule(family, PRIORITY_EXEMPT + place, MAIN_TABLE, mark, 0xFFFFFFFF))
    for planned in links:
        interface = planned.link.interface
        if planned.shared:
            # Probes: a route of main by this interface may be the other link's.
            probe = PRIORITY_PROBE + planned.id
            rules.append(
                Rule(family, probe, planned.table, planned.mark, marks.mask, "", interface)
            )
        else:
            bound = PRIORITY_BOUND + planned.id
            rules.append(Rule(family, bound, planned.table, bound_interface=interface))
        marked = PRIORITY_MARK + planned.id
        rules.append(Rule(family, marked, planned.table, planned.mark, marks.mask))
        for address in planned.own_addresses:
            if address.version == family:
                source = PRIORITY_SOURCE + planned.id
                rules.append(Rule(family, source, planned.table, source=str(address)))
    if config.own_traffic == "balance":
        rules.append(Rule(family, PRIORITY_OWN, LAST_TABLE, own_only=True))
    # Loose rp_filter asks for any route back, as if the packet had come in from the LAN side.
    rules.append(Rule(family, PRIORITY_LAST, LAST_TABLE))
    return rules


def _queue_rules(families: tuple[Family, ...], config: Config, marks: Marks) -> list[QueueRule]:
    queue = config.queue
    chains: list[Literal["PREROUTING", "OUTPUT"]] = ["PREROUTING"]
    if config.own_traffic == "balance":
        chains.append("OUTPUT")
    return [
        QueueRule(
            family,
            chain,
            marks.mark(marks.ask),
            marks.mask,
            queue.number,
            queue.number + queue.workers - 1,
        )
        for family in families
        for chain in chains
    ]


def slots_balanced(plan: Plan, family: Family) -> bool:
    """Whether connections of the family are spread at all."""
    return sum(planned.slots_of(family) for planned in plan.links) == SLOTS


def uses_nat(planned: PlannedLink) -> bool:
    """Whether a source that is not the link's must never leave by it."""
    return planned.link.nat is not Nat.NONE
