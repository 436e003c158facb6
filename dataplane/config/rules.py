"""[[rule]] → rules, each judged by itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from dataplane.config import keys, protocols, spans, units
from dataplane.config.groups import nearest
from dataplane.config.judgements import Read, judge_rules
from dataplane.config.model import (
    DEFAULT_GROUP,
    Addresses,
    AddressList,
    Fields,
    Group,
    Link,
    Method,
    Rule,
    Selection,
)
from dataplane.config.tables import Table

# Each may be two in the program, one a family, with lists of its own for both directions.
MOST_RULES = 1000
MOST_ELEMENTS = 1000

_DEATHLESS = ("main", "reject")
_ELEMENT = f'{spans.SPAN}, or "@" and the name of a list'
_NAME = 'the name of an application such as "bittorrent"'
_APPLICATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+/-]{0,63}", re.ASCII)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Around:
    """What the rest of the file says."""

    lan: Collection[str]
    links: Sequence[Link]
    groups: Sequence[Group]
    lists: Sequence[AddressList]
    ipv6: bool

    @property
    def group_names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups)

    @property
    def targets(self) -> tuple[str, ...]:
        links = tuple(link.name for link in self.links)
        return (*links, *self.group_names, DEFAULT_GROUP, *_DEATHLESS)


def read_rules(
    tables: Sequence[Table], default: Group, around: Around, *, lists_known: bool
) -> tuple[Rule, ...]:
    """All rules, in the order of the file. `lists_known`: what the lists hold was read whole."""
    readings = []
    for number, table in enumerate(tables, 1):
        before = table.fault_count
        rule = _read_rule(number, table, default, around)
        readings.append(Read(rule, table, sound=table.fault_count == before))
    if len(readings) > MOST_RULES:
        tables[MOST_RULES].fault_here(f"expected at most {MOST_RULES} rules, got {len(readings)}")
    else:
        judge_rules(readings, around.lists, lists_known=lists_known, ipv6=around.ipv6)
    return tuple(reading.rule for reading in readings)


def _read_rule(number: int, table: Table, default: Group, around: Around) -> Rule:
    table.refuse_others(keys.RULE)
    use, otherwise = _read_target(table, around)
    applications, hosts = _read_application(table)
    rule = Rule(
        number=number,
        use=use or DEFAULT_GROUP,
        otherwise=otherwise,
        line=table.line,
        interfaces=_read_interfaces(table, around.lan),
        source=_read_selection(table, "source", around.lists),
        destination=_read_selection(table, "destination", around.lists),
        protocols=_read_several(table, "protocol", "protocols", protocols.protocol),
        source_ports=_read_several(table, "source_port", "ports", protocols.ports),
        destination_ports=_read_several(table, "destination_port", "ports", protocols.ports),
        dscp=_read_several(table, "dscp", "DSCPs", protocols.dscp),
        applications=applications,
        hosts=hosts,
        fields=table.take("fields", units.member(Fields), None),
    )
    _judge_fields(table, use, default, around)
    return rule


def _read_target(table: Table, around: Around) -> tuple[str | None, str]:
    """`use`, None if it is not known, and `else`."""
    table.demand("use", 'a link, a group, "main" or "reject"')
    use = table.take("use", units.text, None)
    # Links that are missing are a fault already; those on a line that is not TOML may be there.
    known = table.demanding and bool(around.links)
    if use is not None and known and use not in around.targets:
        table.fault("use", nearest("link or group", use, around.targets))
        use = None
    otherwise = table.take("else", units.text, DEFAULT_GROUP)
    legal = ("next", DEFAULT_GROUP, "reject", *around.group_names)
    if known and otherwise not in legal:
        if otherwise in [link.name for link in around.links]:
            message = (
                f'expected "next", "default", "reject" or a group, got link {otherwise}: make a '
                "group of it"
            )
            table.fault("else", message)
        else:
            table.fault("else", nearest("group", otherwise, legal))
    elif "else" in table and use in _DEATHLESS:
        message = f'expected no else beside use = "{use}", which never dies, got'
        table.fault("else", f"{message} {units.show(otherwise)}")
    elif "else" in table and otherwise == use != DEFAULT_GROUP:
        table.fault("else", f"expected another group than use says, got {units.show(otherwise)}")
    return use, otherwise


def _read_several(
    table: Table, key: str, what: str, read: Callable[[object], Value]
) -> tuple[Value, ...]:
    """The elements of a list, or what stands alone, each once."""
    taken = table.take_all(key, what, read, alone=True)
    if (length := table.length(key)) > MOST_ELEMENTS:
        table.fault(key, f"expected at most {MOST_ELEMENTS}, got {length}")
    return tuple(dict.fromkeys(value for _, value in taken))


def _read_interfaces(table: Table, lan: Collection[str]) -> tuple[str, ...]:
    taken = table.take_all("in", "interfaces of lan", units.interface, alone=True)
    for index, interface in taken:
        if lan and interface not in lan:
            message = (
                f"expected an interface of lan, which is {units.either(tuple(lan))}, got "
                f"{units.show(interface)}: this never matches"
            )
            table.fault("in", message, index)
    return tuple(dict.fromkeys(interface for _, interface in taken))


def _read_selection(table: Table, key: str, lists: Sequence[AddressList]) -> Selection:
    taken = table.take_all(key, "addresses, prefixes, ranges or lists", _element, alone=True)
    known = tuple(one.name for one in lists)
    found: dict[spans.Span, None] = {}
    names: dict[str, None] = {}
    for index, element in taken:
        if isinstance(element, tuple):
            found[element] = None
            continue
        if table.demanding and element not in known:
            table.fault(key, nearest("list", element, known), index)
        names[element] = None
    if (length := table.length(key)) > MOST_ELEMENTS:
        table.fault(key, f"expected at most {MOST_ELEMENTS}; more go in a list; got {length}")
    return Selection(Addresses.of(found), tuple(names))


def _element(value: object) -> spans.Span | str:
    if isinstance(value, str) and value.startswith("@"):
        return value[1:]
    return spans.span(_ELEMENT, value)


def _read_application(table: Table) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of applications, and patterns of host names."""
    if not table.is_table("application"):
        return _read_several(table, "application", "names of applications", _application), ()
    inner = table.table("application")
    inner.refuse_others(keys.APPLICATION)
    names = _read_several(inner, "name", "names of applications", _application)
    hosts = _read_several(inner, "host", "host names", _host)
    if inner.demanding and not any(key in inner for key in keys.APPLICATION):
        inner.fault_here("expected name or host in it, got neither")
    return names, hosts


def _application(value: object) -> str:
    if isinstance(value, str) and value.startswith("*."):
        raise units.refuse(f"{_NAME}; host names go in {{ host = [...] }}", value)
    if not isinstance(value, str) or not _APPLICATION.fullmatch(value):
        raise units.refuse(_NAME, value)
    return value.lower()


def _host(value: object) -> str:
    return spans.domain(spans.NAME, value)


def _judge_fields(table: Table, use: str | None, default: Group, around: Around) -> None:
    """Only pcc hashes."""
    if "fields" not in table or use is None or not table.demanding:
        return
    for group in (default, *around.groups):
        if group.name == use:
            if group.method is not Method.PCC:
                message = f'expected a group with method = "pcc" to use, got {use}, whose method is'
                table.fault("fields", f"{message} {units.show(group.method.value)}")
            return
    message = 'expected a group with method = "pcc" to use, got'
    table.fault("fields", f"{message} {units.show(use)}, which hashes nothing")
