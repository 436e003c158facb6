"""Interfaces, routes and rules of this network namespace, through pyroute2."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
)
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkError
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from dataplane.config.marks import MOST_LINKS
from dataplane.decide.facts import FAMILIES, Destination, Facts, Family, InterfaceFacts
from dataplane.decide.multipath import Nexthop
from dataplane.decide.plan import LAST_TABLE, MAIN_TABLE, PROTOCOL, Route, Rule, table_of
from dataplane.errors import KernelError

_AF: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_SCOPE_GLOBAL, _SCOPE_LINK = 0, 253
_IFF_UP, _IFF_POINTOPOINT, _IFF_LOWER_UP = 0x1, 0x10, 0x10000
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_RTNH_F_ONLINK = 4
_FR_ACT_TO_TBL, _FR_ACT_UNREACHABLE = 1, 7
# linux/if_addr.h. Of IPv4 addresses, the first bit says secondary, which is as good as others.
_TEMPORARY, _DEPRECATED = 0x01, 0x20
_TENTATIVE, _DADFAILED = 0x40, 0x08
_NTF_USE = 0x01
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=8BI")
# Where a route's message has them, behind the header.
_PREFIX_LENGTH_AT, _PROTOCOL_AT = 17, 21
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_RTA_TABLE = 15
_PATIENCE_S = 10
_SIOCGIFINDEX = 0x8933
_IFREQ = struct.Struct("16si20x")
# How `route get` answers where a route refuses. Our own rule at the end says ENETUNREACH.
_REFUSALS = {
    errno.EACCES: "prohibit",
    errno.EINVAL: "blackhole",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "",
}
_DESTINATIONS = {1: "specific", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}


@contextmanager
def _refusals(gone_is_well: bool = False, present_is_well: bool = False) -> Iterator[None]:
    """Turns the kernel's refusals, and a socket's, into KernelError."""
    try:
        yield
    except (NetlinkError, NetlinkDecodeError, OSError) as refusal:
        code = getattr(refusal, "code", None)
        if gone_is_well and code in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
            return
        if present_is_well and code == errno.EEXIST:
            return
        words = str(refusal.args[1] if len(refusal.args) > 1 else refusal)
        raise KernelError(words or type(refusal).__name__) from refusal


class Netlink:
    """One route socket. Every method raises KernelError with the kernel's own words."""

    @_refusals()
    def __init__(self) -> None:
        self._ipr = IPRoute()

    @_refusals()
    def close(self) -> None:
        self._ipr.close()

    @_refusals()
    def facts(self, names: frozenset[str], learn: frozenset[str], native_queue: bool) -> Facts:
        """The interfaces of these names that exist.

        For those in `learn`, the gateways that main's default routes name are looked up too.
        """
        learned = {family: self._default_gateways(family) for family in FAMILIES if learn}
        interfaces = []
        for message in self._ipr.get_links():
            name = message.get_attr("IFLA_IFNAME")
            if name not in names:
                continue
            index = message["index"]
            gateway4 = learned[4].get(index) if name in learn else None
            gateway6 = learned[6].get(index) if name in learn else None
            assert gateway4 is None or isinstance(gateway4, IPv4Address)
            assert gateway6 is None or isinstance(gateway6, IPv6Address)
            interfaces.append(
                InterfaceFacts(
                    name=name,
                    index=index,
                    enabled=bool(message["flags"] & _IFF_UP),
                    carrier=bool(message["flags"] & _IFF_LOWER_UP),
                    point_to_point=bool(message["flags"] & _IFF_POINTOPOINT),
                    mtu=message.get_attr("IFLA_MTU"),
                    addresses4=tuple(
                        address
                        for address in self._addresses(4, index)
                        if isinstance(address, IPv4Interface)
                    ),
                    addresses6=tuple(
                        address
                        for address in self._addresses(6, index)
                        if isinstance(address, IPv6Interface)
                    ),
                    learned_gateway4=gateway4,
                    learned_gateway6=gateway6,
                )
            )
        return Facts(
            tuple(sorted(interfaces, key=lambda one: one.index)),
            native_queue,
            foreign_routes=tuple(_foreign_routes()),
        )

    def _addresses(self, family: Family, index: int) -> list[IPv4Interface | IPv6Interface]:
        """In the kernel's order, but of IPv6 those last that nothing new should use as source."""
        found: list[tuple[int, IPv4Interface | IPv6Interface]] = []
        for message in self._ipr.get_addr(family=_AF[family], index=index):
            # Those of the header are only the first eight bits.
            flags = message.get_attr("IFA_FLAGS") or message["flags"]
            if message["scope"] != _SCOPE_GLOBAL or flags & (_TENTATIVE | _DADFAILED):
                continue
            # On point-to-point interfaces IFA_ADDRESS is the peer's and IFA_LOCAL ours.
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            length = message["prefixlen"]
            if family == 4:
                found.append((0, IPv4Interface(f"{text}/{length}")))
            else:
                passing = flags & (_DEPRECATED | _TEMPORARY)
                found.append((passing, IPv6Interface(f"{text}/{length}")))
        return [address for _, address in sorted(found, key=lambda one: one[0])]

    def _default_gateways(self, family: Family) -> dict[int, IPv4Address | IPv6Address]:
        """Interface index -> gateway of main's best default route through it."""
        best: dict[int, tuple[int, IPv4Address | IPv6Address]] = {}
        for message in _default_routes(family, table=MAIN_TABLE):
            if message["type"] != _RTN_UNICAST or _expired(message):
                continue
            metric = message.get_attr("RTA_PRIORITY") or 0
            for index, gateway in _nexthops(message):
                if gateway and (index not in best or metric < best[index][0]):
                    best[index] = (metric, ip_address(gateway))
        return {index: gateway for index, (_, gateway) in best.items()}

    @_refusals()
    def gateway_mac(self, gateway: str, index: int) -> str | None:
        """What the neighbour table has for a gateway."""
        family = _AF[4 if ip_address(gateway).version == 4 else 6]
        for message in self._ipr.get_neighbours(family=family, ifindex=index):
            if message.get_attr("NDA_DST") == gateway:
                found: str | None = message.get_attr("NDA_LLADDR")
                return found
        return None

    @_refusals(present_is_well=True)
    def ask_neighbour(self, gateway: str, index: int) -> None:
        """Makes the kernel ask for a gateway's MAC address."""
        family = _AF[4 if ip_address(gateway).version == 4 else 6]
        self._ipr.neigh("replace", family=family, dst=gateway, ifindex=index, flags=_NTF_USE)

    @_refusals()
    def routes(self) -> frozenset[Route]:
        """The routes of ours that the kernel holds, whoever put them there."""
        names = self._names()
        found = set()
        for family in FAMILIES:
            for message in _default_routes(family, protocol=PROTOCOL):
                unicast = message["type"] == _RTN_UNICAST
                hops = _hops(message, names) if unicast else ()
                only = hops[0] if len(hops) == 1 else Nexthop("")
                found.add(
                    Route(
                        family=family,
                        table=message.get_attr("RTA_TABLE") or message["table"],
                        metric=message.get_attr("RTA_PRIORITY") or 0,
                        kind="unicast" if unicast else "unreachable",
                        interface=only.interface,
                        gateway=only.gateway,
                        source=(message.get_attr("RTA_PREFSRC") or "") if unicast else "",
                        onlink=only.onlink,
                        nexthops=hops if len(hops) > 1 else (),
                    )
                )
        return frozenset(found)

    def _names(self) -> dict[int, str]:
        return {link["index"]: link.get_attr("IFLA_IFNAME") for link in self._ipr.get_links()}

    @_refusals()
    def rules(self) -> frozenset[Rule]:
        """The rules of ours that the kernel holds."""
        return frozenset(
            _rule(family, message)
            for family in FAMILIES
            for message in self._ipr.get_rules(family=_AF[family])
            if message.get_attr("FRA_PROTOCOL") == PROTOCOL
        )

    @_refusals()
    def foreign_marks(self) -> list[tuple[int, int, int]]:
        """(priority, mark, mask) of every rule by mark that is not ours."""
        return sorted(
            {
                (
                    message.get_attr("FRA_PRIORITY") or 0,
                    message.get_attr("FRA_FWMARK") or 0,
                    message.get_attr("FRA_FWMASK") or 0,
                )
                for family in FAMILIES
                for message in self._ipr.get_rules(family=_AF[family])
                if message.get_attr("FRA_PROTOCOL") != PROTOCOL and message.get_attr("FRA_FWMASK")
            }
        )

    @_refusals()
    def add_route(self, route: Route) -> None:
        """Adds the route, or replaces the one in its place."""
        self._ipr.route("replace", **_route_request(route))

    @_refusals(gone_is_well=True)
    def delete_route(self, route: Route) -> None:
        """Deletes the route; one that is gone already, with its interface or not, is well."""
        if route.interface and _index(route.interface) is None:
            return
        # A multipath route is alone in its place; of ways that are named, one may be gone already.
        self._ipr.route("del", **(_place_request if route.nexthops else _route_request)(route))

    @_refusals(present_is_well=True)
    def add_rule(self, rule: Rule) -> None:
        """Adds the rule; one that is there already is well."""
        self._ipr.rule("add", **_rule_request(rule))

    @_refusals(gone_is_well=True)
    def delete_rule(self, rule: Rule) -> None:
        """Deletes the rule; one that is gone already is well."""
        self._ipr.rule("del", **_rule_request(rule))

    @_refusals()
    def destination(self, address: str, ask_mark: int) -> Destination:
        """What the exempt step of the packet path finds for an address.

        `ask_mark` leads past main's default routes to a rule that answers unreachable, so that
        only connected networks and specific routes are found.
        """
        family: Family = 4 if ip_address(address).version == 4 else 6
        address, _, _ = address.partition("%")
        try:
            found = self._ipr.route("get", family=_AF[family], dst=address, mark=ask_mark)
        except NetlinkError as refusal:
            if refusal.code not in _REFUSALS:
                raise
            return Destination(_REFUSALS[refusal.code], "")
        for message in found:
            kind = _DESTINATIONS.get(message["type"], "")
            index = message.get_attr("RTA_OIF")
            return Destination(kind, _name(index) if kind and index else "")
        return Destination("", "")

    @_refusals()
    def counters(self, names: frozenset[str]) -> dict[str, tuple[int, int]]:
        """Interface name -> bytes received and sent."""
        found = {}
        for message in self._ipr.get_links():
            name = message.get_attr("IFLA_IFNAME")
            stats = message.get_attr("IFLA_STATS64")
            if name in names and stats:
                found[name] = (stats["rx_bytes"], stats["tx_bytes"])
        return found


def _index(name: str) -> int | None:
    """Not pyroute2's link_lookup: it keeps the acknowledgement of each question for ever.

    Nor socket.if_nametoindex: before Python 3.13 its refusal does not say why.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            found = fcntl.ioctl(asking, _SIOCGIFINDEX, _IFREQ.pack(name.encode(), 0))
        except OSError as refusal:
            if refusal.errno not in (errno.ENODEV, errno.ENXIO):
                raise
            return None
    return int(_IFREQ.unpack(found)[1])


def _index_of(name: str) -> int:
    """The same of an interface that has to be there: KernelError if it is not."""
    index = _index(name)
    if index is None:
        raise KernelError(f"interface {name} does not exist")
    return index


def _name(index: int) -> str:
    """One by one: a dump of all interfaces for each of a thousand flows takes seconds."""
    with suppress(OSError):
        return socket.if_indextoname(index)
    return ""


def _default_routes(family: Family, table: int = 0, protocol: int = 0) -> Iterator[Any]:
    """Of the table and the protocol; 0 is any."""
    for message in _route_messages(family, table, protocol):
        if message[_PREFIX_LENGTH_AT] == 0:
            yield _decoded(message)


def _foreign_routes() -> Iterator[tuple[int, str]]:
    """Table and words of what is not ours in our tables: the first of each is told."""
    for family in FAMILIES:
        for table in range(LAST_TABLE, table_of(MOST_LINKS) + 1):
            for message in _route_messages(family, table):
                if message[_PROTOCOL_AT] != PROTOCOL:
                    route = _decoded(message)
                    target = route.get_attr("RTA_DST") or ("0.0.0.0" if family == 4 else "::")
                    yield table, f"{target}/{route['dst_len']} proto {route['proto']}"
                    break


def _route_messages(family: Family, table: int = 0, protocol: int = 0) -> Iterator[bytes]:
    """Each route as the kernel wrote it; 0 is any table or protocol.

    The kernel itself leaves out the others: there may be a million, and decoding takes its time.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
        asking.settimeout(_PATIENCE_S)
        body = _ROUTE.pack(_AF[family], 0, 0, 0, 0, protocol, 0, 0, 0)
        if table:
            body += struct.pack("=HHI", 8, _RTA_TABLE, table)
        size = _HEADER.size + len(body)
        asking.send(_HEADER.pack(size, rtnl.RTM_GETROUTE, _REQUEST | _DUMP, 1, 0) + body)
        while True:
            data = asking.recv(1 << 18)
            place = 0
            while place + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, place)
                if kind in (_ERROR, _DONE):
                    (code,) = struct.unpack_from("=i", data, place + _HEADER.size)
                    # ENOENT: there is no such table.
                    if code and -code != errno.ENOENT:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield data[place : place + length]
                place += (length + 3) & ~3


def _decoded(message: bytes) -> Any:
    decoded = rtmsg(message)
    decoded.decode()
    return decoded


def _expired(message: Any) -> bool:
    """Whether an advertised route ran out: the kernel lists it for half a minute more."""
    info = message.get_attr("RTA_CACHEINFO")
    return info is not None and info["rta_expires"] < 0


def _nexthops(message: Any) -> Iterator[tuple[int, str | None]]:
    index = message.get_attr("RTA_OIF")
    if index:
        yield index, message.get_attr("RTA_GATEWAY")
    for hop in message.get_attr("RTA_MULTIPATH") or ():
        yield hop["oif"], hop.get_attr("RTA_GATEWAY")


def _hops(message: Any, names: Mapping[int, str]) -> tuple[Nexthop, ...]:
    """A route's nexthops, sorted, with the names of their interfaces."""
    index = message.get_attr("RTA_OIF")
    found = [(index, message.get_attr("RTA_GATEWAY"), 0, message["flags"])] if index else []
    found += [
        (hop["oif"], hop.get_attr("RTA_GATEWAY"), hop["hops"], hop["flags"])
        for hop in message.get_attr("RTA_MULTIPATH") or ()
    ]
    return tuple(
        sorted(
            Nexthop(
                interface=names.get(index, f"#{index}"),
                gateway=gateway or "",
                weight=hops + 1,
                onlink=bool(flags & _RTNH_F_ONLINK),
            )
            for index, gateway, hops, flags in found
        )
    )


def _place_request(route: Route) -> dict[str, Any]:
    return {
        "family": _AF[route.family],
        "dst": "0.0.0.0/0" if route.family == 4 else "::/0",
        "table": route.table,
        "priority": route.metric,
        "proto": PROTOCOL,
        "type": _RTN_UNICAST if route.kind == "unicast" else _RTN_UNREACHABLE,
    }


def _route_request(route: Route) -> dict[str, Any]:
    request = _place_request(route)
    if route.kind != "unicast":
        return request
    if route.source:
        request["prefsrc"] = route.source
    if route.nexthops:
        request["multipath"] = [_hop_request(hop) for hop in route.nexthops]
        return request
    request["oif"] = _index_of(route.interface)
    if route.gateway:
        request["gateway"] = route.gateway
    else:
        request["scope"] = _SCOPE_LINK
    if route.onlink:
        request["flags"] = _RTNH_F_ONLINK
    return request


def _hop_request(hop: Nexthop) -> dict[str, Any]:
    request: dict[str, Any] = {"oif": _index_of(hop.interface), "hops": hop.weight - 1}
    if hop.gateway:
        request["gateway"] = hop.gateway
    if hop.onlink:
        request["flags"] = _RTNH_F_ONLINK
    return request


def _rule(family: Family, message: Any) -> Rule:
    unreachable = message["action"] == _FR_ACT_UNREACHABLE
    mark = message.get_attr("FRA_FWMARK") or 0
    return Rule(
        family=family,
        priority=message.get_attr("FRA_PRIORITY") or 0,
        table=0 if unreachable else (message.get_attr("FRA_TABLE") or message["table"]),
        mark=mark,
        mask=(message.get_attr("FRA_FWMASK") or 0) if mark else 0,
        source=message.get_attr("FRA_SRC") or "",
        bound_interface=message.get_attr("FRA_OIFNAME") or "",
        own_only=message.get_attr("FRA_IIFNAME") == "lo",
        specific_only=message.get_attr("FRA_SUPPRESS_PREFIXLEN") == 0,
    )


def _rule_request(rule: Rule) -> dict[str, Any]:
    request: dict[str, Any] = {
        "family": _AF[rule.family],
        "priority": rule.priority,
        "protocol": PROTOCOL,
    }
    if rule.table:
        request |= {"table": rule.table, "action": _FR_ACT_TO_TBL}
    else:
        request["action"] = _FR_ACT_UNREACHABLE
    if rule.mask:
        request |= {"fwmark": rule.mark, "fwmask": rule.mask}
    if rule.source:
        request |= {"src": rule.source, "src_len": 32 if rule.family == 4 else 128}
    if rule.bound_interface:
        request["oifname"] = rule.bound_interface
    if rule.own_only:
        request["iifname"] = "lo"
    if rule.specific_only:
        request["FRA_SUPPRESS_PREFIXLEN"] = 0
    return request
