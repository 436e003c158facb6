"""Changes of the kernel as values: what an administrator would type, and the doing of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dataplane.decide.facts import FAMILIES
from dataplane.decide.multipath import Nexthop
from dataplane.decide.plan import MAIN_TABLE, PROTOCOL, QueueRule, Route, Rule
from dataplane.decide.ruleset import TABLE
from dataplane.system import iptables, nft, sysctl
from dataplane.system.netlink import Netlink


class Change(Protocol):
    """One change of the kernel: what an administrator would type, and the doing of it."""

    @property
    def tool(self) -> str: ...

    @property
    def line(self) -> str: ...

    def perform(self, netlink: Netlink) -> None: ...


@dataclass(frozen=True, slots=True)
class SetSysctl:
    """`then` are settings that the kernel changes along with this one, and their values after."""

    key: str
    value: str
    then: tuple[tuple[str, str], ...] = ()
    tool: str = "sysctl"

    @property
    def line(self) -> str:
        # A dot may be part of an interface's name, so slashes are what sysctl takes safely.
        return " ".join(["sysctl -w", *(f"{key}={value}" for key, value in self._all)])

    @property
    def _all(self) -> tuple[tuple[str, str], ...]:
        return (self.key, self.value), *self.then

    def perform(self, netlink: Netlink) -> None:
        for key, value in self._all:
            sysctl.write(key, value)


@dataclass(frozen=True, slots=True)
class PutRoute:
    route: Route
    tool: str = "ip"

    @property
    def line(self) -> str:
        return f"ip -{self.route.family} route replace {_route_words(self.route)}"

    def perform(self, netlink: Netlink) -> None:
        netlink.add_route(self.route)


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    route: Route
    tool: str = "ip"

    @property
    def line(self) -> str:
        # A multipath route is the only one in its place.
        words = _place_words(self.route) if self.route.nexthops else _route_words(self.route)
        return f"ip -{self.route.family} route del {words}"

    def perform(self, netlink: Netlink) -> None:
        netlink.delete_route(self.route)


@dataclass(frozen=True, slots=True)
class AddRule:
    rule: Rule
    tool: str = "ip"

    @property
    def line(self) -> str:
        return f"ip -{self.rule.family} rule add {_rule_words(self.rule)}"

    def perform(self, netlink: Netlink) -> None:
        netlink.add_rule(self.rule)


@dataclass(frozen=True, slots=True)
class DeleteRule:
    rule: Rule
    tool: str = "ip"

    @property
    def line(self) -> str:
        return f"ip -{self.rule.family} rule del {_rule_words(self.rule)}"

    def perform(self, netlink: Netlink) -> None:
        netlink.delete_rule(self.rule)


@dataclass(frozen=True, slots=True)
class AddQueueRule:
    rule: QueueRule
    tool: str = "iptables"

    @property
    def line(self) -> str:
        return _queue_line("-A", self.rule)

    def perform(self, netlink: Netlink) -> None:
        iptables.add(self.rule)


@dataclass(frozen=True, slots=True)
class DeleteQueueRule:
    rule: QueueRule
    tool: str = "iptables"

    @property
    def line(self) -> str:
        return _queue_line("-D", self.rule)

    def perform(self, netlink: Netlink) -> None:
        iptables.delete(self.rule)


@dataclass(frozen=True, slots=True)
class LoadTable:
    text: str
    tool: str = "nft"

    @property
    def line(self) -> str:
        return f"nft -f - <<'END'\n{self.text}END"

    def perform(self, netlink: Netlink) -> None:
        nft.load(self.text)


@dataclass(frozen=True, slots=True)
class DeleteTable:
    tool: str = "nft"

    @property
    def line(self) -> str:
        return f"nft delete table inet {TABLE}"

    def perform(self, netlink: Netlink) -> None:
        nft.delete()


@dataclass(frozen=True, slots=True)
class Step:
    """A change, and what takes it back."""

    change: Change
    undo: Change

    @property
    def tool(self) -> str:
        return self.change.tool

    @property
    def line(self) -> str:
        return self.change.line

    @property
    def summary(self) -> str:
        """The line, without the text that it may bring along."""
        return summary_of(self.change)


def summary_of(change: Change) -> str:
    if isinstance(change, LoadTable):
        return f"nft -f - (table inet {TABLE})"
    return change.line


def _route_words(route: Route) -> str:
    if route.kind == "unreachable":
        return f"unreachable {_place_words(route)}"
    source = f"src {route.source} " if route.source else ""
    if route.nexthops:
        hops = "".join(
            f" nexthop {_way_words(hop)} weight {hop.weight}{' onlink' if hop.onlink else ''}"
            for hop in route.nexthops
        )
        return f"default {source}{_place_words(route).removeprefix('default ')}{hops}"
    onlink = "onlink " if route.onlink else ""
    place = _place_words(route).removeprefix("default ")
    return f"default {_way_words(route)} {onlink}{source}{place}"


def _place_words(route: Route) -> str:
    return f"default table {route.table} metric {route.metric} proto {PROTOCOL}"


def _way_words(way: Route | Nexthop) -> str:
    return f"via {way.gateway} dev {way.interface}" if way.gateway else f"dev {way.interface}"


def _rule_words(rule: Rule) -> str:
    words = [f"priority {rule.priority}"]
    if rule.source:
        words.append(f"from {rule.source}")
    if rule.mask:
        words.append(f"fwmark {rule.mark:#x}/{rule.mask:#x}")
    if rule.own_only:
        words.append("iif lo")
    if rule.bound_interface:
        words.append(f"oif {rule.bound_interface}")
    if rule.table:
        words.append(f"lookup {'main' if rule.table == MAIN_TABLE else rule.table}")
    else:
        words.append("type unreachable")
    if rule.specific_only:
        words.append("suppress_prefixlength 0")
    words.append(f"protocol {PROTOCOL}")
    return " ".join(words)


def _queue_line(verb: str, rule: QueueRule) -> str:
    command = "iptables" if rule.family == FAMILIES[0] else "ip6tables"
    return f"{command} -t mangle {verb} {rule.chain} {' '.join(iptables.arguments(rule))}"
