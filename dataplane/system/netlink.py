"""Interfaces, routes and rules of this network namespace, through pyroute2."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
)
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.decide.facts import FAMILIES, Destination, Facts, Family, InterfaceFacts
from dataplane.decide.plan import MAIN_TABLE, PROTOCOL, Route, Rule
from dataplane.errors import KernelError

_AF: dict[Family, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_SCOPE_GLOBAL = 0
_IFF_UP, _IFF_POINTOPOINT, _IFF_LOWER_UP = 0x1, 0x10, 0x10000
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_FR_ACT_TO_TBL, _FR_ACT_UNREACHABLE = 1, 7
_TENTATIVE, _DADFAILED = 0x40, 0x08
_NTF_USE = 0x01
# How `route get` answers where a route refuses. Our own rule at the end says ENETUNREACH.
_REFUSALS = {13: "prohibit", 22: "blackhole", 113: "unreachable"}
_DESTINATIONS = {1: "specific", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}


class Netlink:
    """One route socket. Every method raises KernelError with the kernel's own words."""

    def __init__(self) -> None:
        self._ipr = IPRoute()

    def close(self) -> None:
        self._ipr.close()

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
        return Facts(tuple(sorted(interfaces, key=lambda one: one.index)), native_queue)

    def _addresses(self, family: Family, index: int) -> Iterator[IPv4Interface | IPv6Interface]:
        for message in self._ipr.get_addr(family=_AF[family], index=index):
            if message["scope"] != _SCOPE_GLOBAL:
                continue
            if (message.get_attr("IFA_FLAGS") or message["flags"]) & (_TENTATIVE | _DADFAILED):
                continue
            # On point-to-point interfaces IFA_ADDRESS is the peer's and IFA_LOCAL ours.
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            length = message["prefixlen"]
            yield (
                IPv4Interface(f"{text}/{length}")
                if family == 4
                else IPv6Interface(f"{text}/{length}")
            )

    def _default_gateways(self, family: Family) -> dict[int, IPv4Address | IPv6Address]:
        """Interface index -> gateway of main's best default route through it."""
        best: dict[int, tuple[int, IPv4Address | IPv6Address]] = {}
        for message in self._routes(family, MAIN_TABLE):
            if message["dst_len"] or message["type"] != _RTN_UNICAST:
                continue
            metric = message.get_attr("RTA_PRIORITY") or 0
            for index, gateway in _nexthops(message):
                if gateway and (index not in best or metric < best[index][0]):
                    best[index] = (metric, ip_address(gateway))
        return {index: gateway for index, (_, gateway) in best.items()}

    def _routes(self, family: Family, table: int) -> list[Any]:
        return [
            message
            for message in self._ipr.get_routes(family=_AF[family], table=table)
            if (message.get_attr("RTA_TABLE") or message["table"]) == table
        ]

    def gateway_mac(self, gateway: str, index: int) -> str | None:
        """What the neighbour table has for a gateway."""
        family = _AF[4 if ip_address(gateway).version == 4 else 6]
        for message in self._ipr.get_neighbours(family=family, ifindex=index):
            if message.get_attr("NDA_DST") == gateway:
                found: str | None = message.get_attr("NDA_LLADDR")
                return found
        return None

    def ask_neighbour(self, gateway: str, index: int) -> None:
        """Makes the kernel ask for a gateway's MAC address."""
        family = _AF[4 if ip_address(gateway).version == 4 else 6]
        with _refusals(present_is_well=True):
            self._ipr.neigh("replace", family=family, dst=gateway, ifindex=index, flags=_NTF_USE)

    def routes(self) -> frozenset[Route]:
        """The routes of ours that the kernel holds, whoever put them there."""
        names = self._names()
        found = set()
        for family in FAMILIES:
            for message in self._ipr.get_routes(family=_AF[family], proto=PROTOCOL):
                if message["proto"] != PROTOCOL or message["dst_len"]:
                    continue
                unicast = message["type"] == _RTN_UNICAST
                index, gateway = next(_nexthops(message), (0, None))
                found.add(
                    Route(
                        family=family,
                        table=message.get_attr("RTA_TABLE") or message["table"],
                        metric=message.get_attr("RTA_PRIORITY") or 0,
                        kind="unicast" if unicast else "unreachable",
                        interface=names.get(index, f"#{index}") if unicast else "",
                        gateway=(gateway or "") if unicast else "",
                        source=(message.get_attr("RTA_PREFSRC") or "") if unicast else "",
                    )
                )
        return frozenset(found)

    def _names(self) -> dict[int, str]:
        return {link["index"]: link.get_attr("IFLA_IFNAME") for link in self._ipr.get_links()}

    def rules(self) -> frozenset[Rule]:
        """The rules of ours that the kernel holds."""
        return frozenset(
            _rule(family, message)
            for family in FAMILIES
            for message in self._ipr.get_rules(family=_AF[family])
            if message.get_attr("FRA_PROTOCOL") == PROTOCOL
        )

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

    def add_route(self, route: Route) -> None:
        """Adds the route, or replaces the one in its place."""
        with _refusals():
            self._ipr.route("replace", **self._route_request(route))

    def delete_route(self, route: Route) -> None:
        """Deletes the route; one that is gone already is well."""
        with _refusals(gone_is_well=True):
            self._ipr.route("del", **self._route_request(route))

    def _route_request(self, route: Route) -> dict[str, Any]:
        request: dict[str, Any] = {
            "family": _AF[route.family],
            "dst": "0.0.0.0/0" if route.family == 4 else "::/0",
            "table": route.table,
            "priority": route.metric,
            "proto": PROTOCOL,
            "type": _RTN_UNICAST if route.kind == "unicast" else _RTN_UNREACHABLE,
        }
        if route.kind == "unicast":
            found = self._ipr.link_lookup(ifname=route.interface)
            if not found:
                raise KernelError(f"interface {route.interface} does not exist")
            request["oif"] = found[0]
            if route.gateway:
                request["gateway"] = route.gateway
            else:
                request["scope"] = 253
            if route.source:
                request["prefsrc"] = route.source
        return request

    def add_rule(self, rule: Rule) -> None:
        """Adds the rule; one that is there already is well."""
        with _refusals(present_is_well=True):
            self._ipr.rule("add", **_rule_request(rule))

    def delete_rule(self, rule: Rule) -> None:
        """Deletes the rule; one that is gone already is well."""
        with _refusals(gone_is_well=True):
            self._ipr.rule("del", **_rule_request(rule))

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
            return Destination(_REFUSALS.get(refusal.code, ""), "")
        for message in found:
            kind = _DESTINATIONS.get(message["type"], "")
            index = message.get_attr("RTA_OIF")
            return Destination(kind, self._names().get(index, "") if kind and index else "")
        return Destination("", "")

    def counters(self, names: frozenset[str]) -> dict[str, tuple[int, int]]:
        """Interface name -> bytes received and sent."""
        found = {}
        for message in self._ipr.get_links():
            name = message.get_attr("IFLA_IFNAME")
            stats = message.get_attr("IFLA_STATS64")
            if name in names and stats:
                found[name] = (stats["rx_bytes"], stats["tx_bytes"])
        return found


def _nexthops(message: Any) -> Iterator[tuple[int, str | None]]:
    index = message.get_attr("RTA_OIF")
    if index:
        yield index, message.get_attr("RTA_GATEWAY")
    for hop in message.get_attr("RTA_MULTIPATH") or ():
        yield hop["oif"], hop.get_attr("RTA_GATEWAY")


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


@contextmanager
def _refusals(gone_is_well: bool = False, present_is_well: bool = False) -> Iterator[None]:
    """Turns the kernel's refusals into KernelError."""
    try:
        yield
    except NetlinkError as refusal:
        if gone_is_well and refusal.code in (2, 3, 19):  # ENOENT, ESRCH, ENODEV
            return
        if present_is_well and refusal.code == 17:  # EEXIST
            return
        raise KernelError(str(refusal.args[1] if len(refusal.args) > 1 else refusal)) from refusal


class ChangeListener:
    """Says that something of the machine changed, without saying what: one looks again.

    `fileno` becomes readable; `drain` empties it and tells whether any of it matters to us.
    Changes of foreign, specific routes do not, so that a full BGP table does not keep us busy.
    """

    _GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400  # link; IPv4, IPv6: address, route, rule 4
    _RULE6_GROUP = 19
    _NFTABLES_GROUP = 7
    _NETLINK_NETFILTER = 12
    _SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
    _NEWROUTE, _DELROUTE = 24, 25

    def __init__(self) -> None:
        self._route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._route.bind((0, self._GROUPS))
        self._join(self._route, 8)  # IPv4 rules
        self._join(self._route, self._RULE6_GROUP)
        self._netfilter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._NETLINK_NETFILTER)
        self._netfilter.bind((0, 0))
        self._join(self._netfilter, self._NFTABLES_GROUP)
        for one in self.sockets:
            one.setblocking(False)

    def _join(self, one: socket.socket, group: int) -> None:
        one.setsockopt(self._SOL_NETLINK, self._ADD_MEMBERSHIP, group)

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        return self._route, self._netfilter

    def drain(self, one: socket.socket) -> bool:
        """Empties a socket. True if anything that may concern us was told, or was lost."""
        matters = False
        while True:
            try:
                data = one.recv(65536)
            except BlockingIOError:
                return matters
            except OSError:  # ENOBUFS: told faster than we read
                return True
            matters = matters or one is self._netfilter or self._concerns_us(data)

    def _concerns_us(self, data: bytes) -> bool:
        place = 0
        while place + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, place)
            if length < 16:
                return True
            if kind not in (self._NEWROUTE, self._DELROUTE):
                return True
            if place + 24 <= len(data):
                prefix_length, protocol = data[place + 17], data[place + 21]
                if prefix_length == 0 or protocol == PROTOCOL:
                    return True
            place += (length + 3) & ~3
        return False

    def close(self) -> None:
        for one in self.sockets:
            one.close()
