"""What is wrong or odd in rules, groups and lists together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dataplane.config import ranges, units
from dataplane.config.model import AddressList, Config, Rule, Selection
from dataplane.config.protocols import PROTOCOLS, WITH_PORTS
from dataplane.config.ranges import Range
from dataplane.config.reach import Hosts, Reach, Reaches, covers
from dataplane.config.tables import Table

MOST_OVERLAPS = 20
# Ranges that are looked at for overlaps, a second's work or two.
MOST_COMPARED = 5_000_000

_WITH_PORTS = units.either([name for name, number in PROTOCOLS.items() if number in WITH_PORTS])


@dataclass(frozen=True, slots=True)
class Read:
    """A rule, its table, and whether all that the table says is in the rule."""

    rule: Rule
    table: Table
    sound: bool


def judge_rules(
    readings: Sequence[Read], lists: Sequence[AddressList], *, lists_known: bool, ipv6: bool
) -> None:
    """Report the rules that can never match, by themselves or behind an earlier one.

    `ipv6`: whether the file says that there is any.
    """
    names = {one.name for one in lists}
    reaches = Reaches(lists, all_opaque=not lists_known)
    stopping: list[tuple[Rule, Reach]] = []
    for reading in readings:
        rule, table = reading.rule, reading.table
        lists_there = names.issuperset((*rule.source.lists, *rule.destination.lists))
        if not reading.sound or not lists_there or not table.demanding:
            continue
        if _never_matches(rule, table, reaches, ipv6):
            continue
        reach = reaches.of(rule)
        families = reach.families if ipv6 else reach.families - {6}
        hiding = next((one for one, other in stopping if covers(other, reach, families)), None)
        if hiding is not None:
            table.fault_here(
                f"{rule.name} can never match: {hiding.name} (line {hiding.line}) takes all that "
                "it would"
            )
        elif rule.otherwise != "next":
            stopping.append((rule, reach))


def _never_matches(rule: Rule, table: Table, reaches: Reaches, ipv6: bool) -> bool:
    """Report what no packet can be; whether there is anything."""
    before = table.fault_count
    for key, ports in (
        ("source_port", rule.source_ports),
        ("destination_port", rule.destination_ports),
    ):
        if ports and rule.protocols and not WITH_PORTS & set(rule.protocols):
            legal = f"expected a protocol that has ports, which are {_WITH_PORTS}"
            table.fault(key, f"{legal}: {rule.name} can never match")
    families = {}
    for key, selection in (("source", rule.source), ("destination", rule.destination)):
        families[key] = reaches.hosts(selection).families
        if not families[key]:
            empty = units.either([f"@{name}" for name in selection.lists])
            table.fault(key, f"nothing is in {empty}: {rule.name} can never match")
        elif families[key] == {6} and not ipv6:
            message = "expected an IPv4 address or list among them, since ipv6 = false"
            table.fault(key, f"{message}: {rule.name} can never match")
    source, destination = families["source"], families["destination"]
    if source and destination and not source & destination:
        message = f"expected an IPv{min(source)} address or list, as the source is, got only"
        table.fault("destination", f"{message} IPv{min(destination)}: {rule.name} can never match")
    return table.fault_count > before


def remarks(config: Config) -> list[str]:
    """What is legal and may still not be meant, in words; empty for most files."""
    return [*_unused(config), *_empty(config), *_overlaps(config)]


def _unused(config: Config) -> Iterator[str]:
    named = {name for rule in config.rules for name in (rule.use, rule.otherwise)}
    for group in config.groups:
        if group.name not in named:
            yield f"group {group.name} is not used by any rule"
    listed = {
        name for rule in config.rules for name in (*rule.source.lists, *rule.destination.lists)
    }
    for one in config.lists:
        if one.name not in listed:
            yield f"list {one.name} is not used by any rule"


def _empty(config: Config) -> Iterator[str]:
    for one in config.lists:
        if not one.addresses and not one.names:
            yield f"list {one.name} is empty"


def _overlaps(config: Config) -> Iterator[str]:
    """Lists that send the same addresses to different places, by rules that ask nothing else."""
    reaches = Reaches(config.lists, as_now=True)
    found = left_out = compared = 0
    for direction in ("source", "destination"):
        plain = [
            (rule, reaches.hosts(Selection(lists=getattr(rule, direction).lists)))
            for rule in config.rules
            if _asks_only(rule, direction)
        ]
        for place, (later, those) in enumerate(plain):
            for earlier, these in plain[:place]:
                if earlier.use == later.use or earlier.otherwise == "next":
                    continue
                compared += _length(these) + _length(those)
                if compared > MOST_COMPARED or these.too_many or those.too_many:
                    left_out += 1
                    continue
                words = _common(these.known, those.known)
                if not words:
                    continue
                found += 1
                if found <= MOST_OVERLAPS:
                    yield (
                        f"{_call(earlier, direction)} and {_call(later, direction)} have {words} "
                        f"in common: {earlier.name} wins"
                    )
    if found > MOST_OVERLAPS:
        yield f"and {found - MOST_OVERLAPS} more pairs of rules whose lists overlap"
    if left_out:
        pairs = "1 pair" if left_out == 1 else f"{left_out} pairs"
        was = "was" if left_out == 1 else "were"
        yield f"{pairs} of rules with long lists {was} not compared"


def _asks_only(rule: Rule, direction: str) -> bool:
    """Whether lists of one direction are the only condition of a rule."""
    selection: Selection = getattr(rule, direction)
    other = rule.destination if direction == "source" else rule.source
    conditions = (
        rule.interfaces, rule.protocols, rule.source_ports, rule.destination_ports, rule.dscp,
        rule.applications, rule.hosts,
    )  # fmt: skip
    return bool(selection.lists) and not other and not any(conditions)


def _length(hosts: Hosts) -> int:
    return sum(map(len, hosts.known.values()))


def _common(these: Mapping[int, Sequence[Range]], those: Mapping[int, Sequence[Range]]) -> str:
    """How many addresses two selections share, and the first range of them; empty for none."""
    words = []
    for family, address in ((4, IPv4Address), (6, IPv6Address)):
        common = ranges.intersection(these[family], those[family])
        if not common:
            continue
        count = sum(last - first + 1 for first, last in common)
        first, last = address(common[0][0]), address(common[0][1])
        span = f"{first}" if first == last else f"{first} to {last}"
        what = f"{count} IPv{first.version} address{'es' if count > 1 else ''}"
        words.append(f"{what} ({'first ' if len(common) > 1 else ''}{span})")
    return " and ".join(words)


def _call(rule: Rule, direction: str) -> str:
    lists = ", ".join(f"@{name}" for name in getattr(rule, direction).lists)
    return f"{rule.name} (line {rule.line}, {direction} {lists} to {rule.use})"
