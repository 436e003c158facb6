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
    30300+ a link's mark, or an ecmp group's -> its table
    30500+ a link's address as source -> its table
    30700  the router's own, not yet decided -> our last table (where own_traffic is "balance")
    32767  behind main: whatever found no route -> our last table
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from ipaddress import IPv6Network
from typing import Literal

from dataplane.config.marks import Marks
from dataplane.config.model import Config, Group, Queue
from dataplane.decide.facts import FAMILIES, Facts, Family
from dataplane.decide.liveness import Condition, LinkState, Way
from dataplane.decide.multipath import NO_GATEWAY6, EcmpGroup, Nexthop, merged, nexthop_weights
from dataplane.decide.planned import PlannedLink, onlink, planned_link, source_of
from dataplane.decide.slots import SLOTS, SlotTable
from dataplane.decide.wanted import learns_answers, learns_packets

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

    `onlink`: no network of the interface has the gateway, which is there all the same. With
    `nexthops`, two or more and sorted, it is a multipath route: interface, gateway and onlink are
    theirs.
    """

    family: Family
    table: int
    metric: int
    kind: Literal["unicast", "unreachable"]
    interface: str = ""
    gateway: str = ""
    source: str = ""
    onlink: bool = False
    nexthops: tuple[Nexthop, ...] = ()

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Those that it leads to."""
        if self.nexthops:
            return tuple(hop.interface for hop in self.nexthops)
        return (self.interface,) if self.interface else ()

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
class PlannedGroup:
    """An ecmp group: its number is a decision as a link's is, with a mark and a table of its own.

    `families` are those in which a way leads out of its table.
    """

    name: str
    id: int
    mark: int
    table: int
    families: tuple[Family, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the kernel should hold.

    `seed` is of the fallback's jhash; `slots_digest` changes when any slot changes its link.
    `groups` are the ecmp groups. The last two say whether first packets of connections are copied,
    and DNS answers, since something is to be learned from them.
    """

    marks: Marks
    links: tuple[PlannedLink, ...]
    groups: tuple[PlannedGroup, ...]
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
    copies_packets: bool
    copies_answers: bool

    @property
    def spread(self) -> PlannedGroup | None:
        """The default group, if the kernel's multipath route spreads it."""
        return next((group for group in self.groups if group.name == self.balance.name), None)


def make_plan(
    config: Config,
    ids: Mapping[str, int],
    facts: Facts,
    states: Mapping[str, LinkState],
    tables: Mapping[Family, SlotTable],
    key: int,
    ecmp: Mapping[str, EcmpGroup] | None = None,
) -> Plan:
    """The plan for these links in these states.

    `ids` numbers the links from 1 and `tables` gives the slots as they are now; a family without
    a table is not balanced. `key` is the 64-bit hash key; its low half seeds the fallback. `ecmp`
    has the groups that the kernel's multipath routes spread, by name.
    """
    marks = Marks(config.mark_mask)
    families: tuple[Family, ...] = FAMILIES if config.ipv6 else (4,)
    held = {family: table.counts() for family, table in tables.items()}
    links = tuple(
        planned_link(
            link, ids[link.name], table_of(ids[link.name]), marks, config, facts, states, held
        )
        for link in sorted(config.links, key=lambda link: ids[link.name])
    )
    hops = {
        name: {
            family: _nexthops(family, group.serving.get(family, {}), links, facts, states)
            for family in families
        }
        for name, group in (ecmp or {}).items()
    }
    groups = tuple(
        PlannedGroup(
            name=name,
            id=group.number,
            mark=marks.mark(group.number),
            table=table_of(group.number),
            families=tuple(family for family in families if hops[name][family]),
        )
        for name, group in sorted((ecmp or {}).items(), key=lambda item: item[1].number)
    )
    return Plan(
        marks=marks,
        links=links,
        groups=groups,
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
            route
            for family in families
            for route in (
                *_routes(family, config, links, facts, states),
                *(
                    route
                    for group in groups
                    for route in _group_routes(
                        family, group, hops[group.name][family], config, facts
                    )
                ),
            )
        ),
        rules=frozenset(
            rule for family in families for rule in _rules(family, config, marks, links, groups)
        ),
        queue_rules=frozenset(() if facts.native_queue else _queue_rules(families, config, marks)),
        copies_packets=learns_packets(config),
        copies_answers=learns_answers(config),
    )


def _slots_digest(ids: Mapping[str, int], tables: Mapping[Family, SlotTable]) -> str:
    digest = hashlib.sha256()
    for family, table in sorted(tables.items()):
        owners = [(name, ids[name]) for name in table.links]
        digest.update(f"{family} {owners} ".encode() + table.slots)
    return digest.hexdigest()[:16]


def table_of(link_id: int) -> int:
    """The routing table of a link, or of an ecmp group, by its number."""
    return LAST_TABLE + link_id


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
    if learns_packets(config):
        # Only the first packets of a connection are copied, so they have to be counted.
        wanted.append(Sysctl("net/netfilter/nf_conntrack_acct", "1"))
    return tuple(wanted)


def _routes(
    family: Family,
    config: Config,
    links: tuple[PlannedLink, ...],
    facts: Facts,
    states: Mapping[str, LinkState],
) -> list[Route]:
    routes: list[Route] = []
    lan_source = _lan_source(family, config, facts)
    preferred = sorted(
        links, key=lambda planned: (planned.link.metered, -planned.link.weight, planned.id)
    )
    for rank, planned in enumerate(preferred):
        routes.append(Route(family, planned.table, UNREACHABLE_METRIC, "unreachable"))
        way = states[planned.link.name].way(family)
        if not way.usable:
            continue
        gateway = str(way.gateway) if way.gateway else ""
        source = str(source_of(planned.link, way, facts))
        own = Route(
            family,
            planned.table,
            100,
            "unicast",
            planned.link.interface,
            gateway,
            source,
            onlink(way, facts.interface(planned.link.interface)),
        )
        metric = 100 + rank + _handicap(planned, way, family)
        last_source = lan_source or source
        routes.append(own)
        routes.append(replace(own, table=LAST_TABLE, metric=metric, source=last_source))
    return routes


def _lan_source(family: Family, config: Config, facts: Facts) -> str:
    """The router's address on the LAN side, which is translated whatever link is chosen."""
    found = facts.lan_source4(config.lan) if family == 4 else facts.lan_source6(config.lan)
    return str(found) if found else ""


def _nexthops(
    family: Family,
    shares: Mapping[str, Fraction],
    links: Sequence[PlannedLink],
    facts: Facts,
    states: Mapping[str, LinkState],
) -> tuple[Nexthop, ...]:
    """The ways of an ecmp group's links, those that have one."""
    ways = {
        planned.link.name: (planned, states[planned.link.name].way(family))
        for planned in links
        if planned.link.name in shares and states[planned.link.name].way(family).usable
    }
    weights = nexthop_weights({name: shares[name] for name in ways})
    return merged(
        Nexthop(
            planned.link.interface,
            planned.gateway(family),
            weights[name],
            onlink(way, facts.interface(planned.link.interface)),
        )
        for name, (planned, way) in ways.items()
    )


def _group_routes(
    family: Family,
    group: PlannedGroup,
    hops: tuple[Nexthop, ...],
    config: Config,
    facts: Facts,
) -> list[Route]:
    """A multipath route, and behind it a route by each of its ways, the widest first.

    When an interface is deleted, the kernel deletes the whole IPv4 multipath route that uses it:
    until it is there again, the others still lead out.
    """
    ends = Route(family, group.table, UNREACHABLE_METRIC, "unreachable")
    source = _lan_source(family, config, facts)
    single = [
        Route(
            family,
            group.table,
            100 + rank,
            "unicast",
            hop.interface,
            hop.gateway,
            source,
            hop.onlink,
        )
        for rank, hop in enumerate(sorted(hops, key=lambda hop: (-hop.weight, hop)), 1)
    ]
    if len(hops) < 2:
        return [ends, *(replace(route, metric=100) for route in single)]
    if family == 6:
        hops = tuple(sorted(replace(hop, gateway=hop.gateway or NO_GATEWAY6) for hop in hops))
    return [
        ends,
        Route(family, group.table, 100, "unicast", source=source, nexthops=hops),
        *single,
    ]


def _handicap(planned: PlannedLink, way: Way, family: Family) -> int:
    """By how much its condition, and having no slots, make its metric in the last table worse.

    It is the link's own, so that one death changes one route, and not those of all behind it.
    """
    conditions = Condition.LIVING - way.condition
    return 1000 * conditions + (0 if planned.slots_of(family) else 500)


def _rules(
    family: Family,
    config: Config,
    marks: Marks,
    links: tuple[PlannedLink, ...],
    groups: tuple[PlannedGroup, ...],
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
    rules += [
        Rule(family, PRIORITY_MARK + group.id, group.table, group.mark, marks.mask)
        for group in groups
    ]
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
