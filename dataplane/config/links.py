"""The tables [link.NAME] → links, each judged by itself and then all together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from dataplane.config import keys, units
from dataplane.config.model import AUTO, Auto, Failback, Link, Nat, Probe, ProbeKind
from dataplane.config.probes import Default, read_probes
from dataplane.config.tables import Table, judge_names
from dataplane.config.units import show

_GATEWAY = 'an IPv4 address or "auto"'
_GATEWAY6 = 'an IPv6 address or "auto"'
_ADDRESSES = (IPv4Address, IPv6Address)
_ADDRESS = "an IPv4 or IPv6 address or an IPv6 prefix"
_RESOLVER = "an IPv4 or IPv6 address"

MOST_RESOLVERS = 16


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rest of the file says: the LAN side, [probe], and whether there is IPv6."""

    lan: Collection[str]
    probing: Default
    ipv6: bool


@dataclass(frozen=True, slots=True)
class _Reading:
    """A link made of what is right in its table, and the table, where faults are reported."""

    link: Link
    table: Table


def read_links(tables: Table, around: Surroundings, most: int | None) -> tuple[Link, ...]:
    """All links, in the order of the file; `most` is how many the mark mask can tell apart."""
    if tables.demanding and not tables.names():
        tables.fault_here("missing: expected at least one [link.NAME] with interface and capacity")
    readings = []
    pinned: dict[IPv4Address | IPv6Address, str] = {}
    for name in tables.names():
        table = tables.table(name)
        readings.append(_Reading(_read_link(name, table, around, pinned), table))
    judge_names(tables, {}, "link")
    _judge_number(tables, most)
    _judge_shares(readings)
    _judge_interfaces(readings)
    _judge_prefixes(readings)
    return tuple(reading.link for reading in readings)


def _read_link(
    name: str, table: Table, around: Surroundings, pinned: dict[IPv4Address | IPv6Address, str]
) -> Link:
    """One link. `pinned` are the resolvers of those before it, with their links; it adds its."""
    table.refuse_others(keys.LINK, keys.LINK_LATER)
    table.demand("interface", "the interface of this uplink")
    interface = table.take("interface", units.interface, "")
    if interface and interface in around.lan:
        table.fault("interface", f"expected an interface that is not in lan, got {show(interface)}")
    capacity_bps = table.take("capacity", units.rate, None)
    nat = table.take("nat", units.member(Nat), Nat.MASQUERADE)
    address, address6, prefix6 = _read_addresses(table, nat)
    metered = table.take("metered", units.flag, False)
    probes = read_probes(table, around.probing, metered=metered, ipv6=around.ipv6)
    _judge_arp(table, probes)
    return Link(
        name=name,
        interface=interface,
        gateway=table.take("gateway", _gateway, None),
        gateway6=table.take("gateway6", _gateway6, AUTO),
        download_bps=table.take("download", units.rate, capacity_bps),
        upload_bps=table.take("upload", units.rate, capacity_bps),
        share=table.take("share", units.share, None),
        metered=metered,
        nat=nat,
        snat_address=address,
        snat_address6=address6,
        prefix6=prefix6,
        mss=table.take("mss", units.integer(536, 65495), None),
        resolvers=_read_resolvers(name, table, pinned),
        probes=probes,
        failback=table.take("failback", units.member(Failback), Failback.KEEP),
    )


def _gateway(value: object) -> IPv4Address | Auto:
    return AUTO if value == AUTO else units.ipv4(_GATEWAY, value)


def _gateway6(value: object) -> IPv6Address | Auto:
    return AUTO if value == AUTO else units.ipv6(_GATEWAY6, value)


def _address(value: object) -> IPv4Address | IPv6Address | IPv6Network:
    if isinstance(value, str) and "/" in value:
        return units.provider_prefix(value)
    return units.address(_ADDRESS, value)


def _resolver(value: object) -> IPv4Address | IPv6Address:
    address = units.address(_RESOLVER, value)
    if isinstance(address, IPv6Address) and address.is_link_local:
        raise units.refuse(f"{_RESOLVER} that is routed, not a link-local one", value)
    return address


def _read_resolvers(
    name: str, table: Table, pinned: dict[IPv4Address | IPv6Address, str]
) -> tuple[IPv4Address | IPv6Address, ...]:
    """Connections to a resolver leave by its link, so it can be that of one only."""
    taken = table.take_all("resolvers", "addresses of resolvers", _resolver)
    own: dict[IPv4Address | IPv6Address, None] = {}
    for index, address in taken:
        owner = pinned.setdefault(address, name)
        if owner != name:
            message = f"expected another address than one of link {owner}'s, got {address}"
            table.fault("resolvers", message, index)
        elif address in own:
            table.fault("resolvers", f"expected each address once, got {address} again", index)
        own[address] = None
    if (length := table.length("resolvers")) > MOST_RESOLVERS:
        table.fault("resolvers", f"expected at most {MOST_RESOLVERS}, got {length}")
    return tuple(own)


def _judge_arp(table: Table, probes: Sequence[Probe]) -> None:
    """A link that names no gateway has none to ask."""
    if "probe" not in table or "gateway" in table or not table.demanding:
        return
    for index, probe in enumerate(probes):
        alone = bool(probe.targets) and all(target.gateway for target in probe.targets)
        if probe.kind is ProbeKind.ARP and alone:
            message = 'expected the link to have a gateway, which kind = "arp" asks, or an address'
            table.fault("probe", message, index)


def _read_addresses(
    table: Table, nat: Nat
) -> tuple[IPv4Address | None, IPv6Address | None, IPv6Network | None]:
    """What `address` says: at most one address of each family and one prefix."""
    address, address6, prefix6 = None, None, None
    taken = table.take_all("address", "addresses", _address, alone=True)
    for index, value in taken:
        again = False
        match value:
            case IPv4Address():
                again, address = address is not None, value
            case IPv6Address():
                again, address6 = address6 is not None, value
            case IPv6Network():
                again, prefix6 = prefix6 is not None, value
        if again:
            table.fault("address", f"expected one of each kind, got {value} too", index)
        elif nat is not Nat.SNAT and not isinstance(value, IPv6Network):
            table.fault(
                "address", f'expected nat = "snat" beside it, else {value} has no use', index
            )
    if table.demanding and (taken or "address" not in table):
        if nat is Nat.SNAT and address is None and address6 is None:
            table.fault("address", 'missing: nat = "snat" needs an IPv4 or IPv6 address')
        if nat is Nat.PREFIX and prefix6 is None:
            table.fault("address", f'missing: nat = "prefix" needs {units.PREFIX}')
    return address, address6, prefix6


def _judge_number(tables: Table, most: int | None) -> None:
    count = len(tables.names())
    if most is not None and count > most:
        beyond = tables.names()[most]
        tables.fault(beyond, f"expected at most {most} links, as mark_mask can tell, got {count}")


def _judge_shares(readings: Sequence[_Reading]) -> None:
    """A share is a part of the sum of shares, a rate one of the sum of rates: they do not mix."""
    with_share = next((reading.link.name for reading in readings if "share" in reading.table), None)
    for reading in readings:
        table = reading.table
        for key in ("download", "upload"):
            if "capacity" in table and key in table:
                table.fault(key, f"expected capacity or {key}, got both")
        if "share" in table:
            continue
        if with_share is not None:
            table.demand("share", f"a share, since link {with_share} has one")
        elif "download" not in table:
            table.demand("capacity", "capacity, or download, or share")


def _judge_interfaces(readings: Sequence[_Reading]) -> None:
    """Links that share an interface are told apart by their gateways' addresses alone."""
    by_interface: dict[str, list[_Reading]] = {}
    for reading in readings:
        if reading.link.interface:
            by_interface.setdefault(reading.link.interface, []).append(reading)
    for interface, sharers in by_interface.items():
        seen: dict[IPv4Address | IPv6Address, str] = {}
        for reading in sharers if len(sharers) > 1 else ():
            link, table = reading.link, reading.table
            gateways = {"gateway": link.gateway, "gateway6": link.gateway6}
            known = {key: value for key, value in gateways.items() if isinstance(value, _ADDRESSES)}
            for key, gateway in known.items():
                if gateway in seen:
                    table.fault(
                        key,
                        f"expected another gateway than that of link {seen[gateway]}, which is "
                        f"on {interface} too, got {gateway}",
                    )
                seen.setdefault(gateway, link.name)
            if not known:
                key = "gateway" if "gateway" in table else "interface"
                others = [other.link.name for other in sharers if other is not reading]
                table.fault(
                    key,
                    f"expected the address of a gateway, since link {others[0]} is on {interface} "
                    "too",
                )


def _judge_prefixes(readings: Sequence[_Reading]) -> None:
    """A source inside a provider's prefix is pinned to that provider, so it can be in one only."""
    seen: list[Link] = []
    for reading in readings:
        prefix = reading.link.prefix6
        if prefix is None:
            continue
        for other in seen:
            if other.prefix6 is not None and other.prefix6.overlaps(prefix):
                reading.table.fault(
                    "address", f"expected a prefix apart from link {other.name}'s, got {prefix}"
                )
        seen.append(reading.link)
