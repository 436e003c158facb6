"""The conditions of a rule, aloud: which of them hold for a flow, and which do not, and why.

Whether they hold is said by the classifier; here are only the words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, summarize_address_range

from dataplane.config.model import Addresses, Ports, Rule, Selection
from dataplane.config.protocols import WITH_PORTS
from dataplane.decide.flow import Flow, protocol_name
from dataplane.decide.learned import Kind, Known, address_key, endpoint_key
from dataplane.decide.policy import labels

Address = IPv4Address | IPv6Address

# So many ranges are named; the others are counted.
_MOST_NAMED = 4


class Labels:
    """What was learned, to be looked up by address and endpoint."""

    def __init__(self, known: Known | None = None) -> None:
        self._known = known
        self._labels: dict[bytes, tuple[str, ...]] = {}

    def of(self, key: bytes) -> tuple[str, ...]:
        """The labels of what `address_key` or `endpoint_key` names."""
        if self._known is not None:
            # Only now: most flows need none of it.
            self._labels, self._known = dict(self._known.labelled()), None
        return self._labels.get(key, ())


@dataclass(frozen=True, slots=True)
class Entrance:
    """The interface by which a flow comes in; where `interface` is empty, `why` there is none."""

    interface: str
    why: str = ""


def conditions(
    rule: Rule, failing: Collection[str], flow: Flow, entrance: Entrance, known: Labels
) -> list[str]:
    """The rule's conditions for this flow in words, those that fail first.

    `failing` are those that do not hold, by their names in `hotpath.CONDITIONS`.
    """
    asked = {
        "in": rule.interfaces,
        "source": rule.source,
        "destination": rule.destination,
        "protocol": rule.protocols,
        "source_port": rule.source_ports,
        "destination_port": rule.destination_ports,
        "dscp": rule.dscp,
        "application": labels(rule),
    }
    named = [name for name, wanted in asked.items() if wanted]
    said = [
        _condition(name, rule, flow, entrance, known, False) for name in named if name in failing
    ]
    for name in named:
        if name not in failing:
            said.append(f"{_condition(name, rule, flow, entrance, known, True)}: yes")
    return said


def place(rule: Rule) -> str:
    """The rule's name, and where it stands."""
    return f"{rule.name} (line {rule.line})" if rule.line else rule.name


def listed(words: Sequence[str], last: str = "and") -> str:
    """Such as "a, b and c"."""
    return f" {last} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _condition(
    name: str, rule: Rule, flow: Flow, entrance: Entrance, known: Labels, holds: bool
) -> str:
    match name:
        case "in":
            return _interface(rule.interfaces, entrance, holds)
        case "source":
            return _address("source", flow.source, rule.source, known, holds)
        case "destination":
            return _address("destination", flow.destination, rule.destination, known, holds)
        case "protocol":
            names = [protocol_name(number) for number in rule.protocols]
            return _value("protocol", protocol_name(flow.protocol), names, holds)
        case "source_port":
            return _port("source port", flow.protocol, flow.source_port, rule.source_ports, holds)
        case "destination_port":
            ports = rule.destination_ports
            return _port("destination port", flow.protocol, flow.destination_port, ports, holds)
        case "dscp":
            return _value("DSCP", str(flow.dscp), [str(number) for number in rule.dscp], holds)
        case _:
            return _application(rule, flow, known, holds)


def _value(what: str, is_: str, wanted: Sequence[str], holds: bool) -> str:
    """A condition by plain values."""
    if holds:
        return f"{what} {is_}"
    return f"{what} {is_} is {'not' if len(wanted) == 1 else 'none of'} {', '.join(wanted)}"


def _interface(wanted: Sequence[str], entrance: Entrance, holds: bool) -> str:
    if holds:
        return f"in {entrance.interface}"
    if entrance.interface:
        return f"it comes in by {entrance.interface}, not by {listed(wanted, 'or')}"
    return f"{entrance.why}, so not by {listed(wanted, 'or')}"


def _port(what: str, protocol: int, port: int, wanted: Sequence[Ports], holds: bool) -> str:
    if protocol not in WITH_PORTS:
        return f"protocol {protocol_name(protocol)} has no {what}"
    return _value(what, str(port), [_span(one.first, one.last) for one in wanted], holds)


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _address(what: str, address: Address, wanted: Selection, known: Labels, holds: bool) -> str:
    if not holds:
        names = _names(wanted)
        none = "not in" if len(names) == 1 else "in none of"
        return f"{what} {address} is {none} {', '.join(names)}"
    own = _holding(wanted.addresses, address)
    if own:
        return f"{what} {address} in {own}"
    for name in known.of(address_key(address)):
        if name in wanted.lists:
            return f"{what} {address} in @{name}, as a name's address"
    return f"{what} {address} in {listed([f'@{name}' for name in wanted.lists], 'or')}"


@lru_cache(maxsize=1024)
def _names(wanted: Selection) -> tuple[str, ...]:
    """The selection in words: its lists, and its own ranges, of which the last are only counted."""
    spans = list(_spans(wanted.addresses))
    names = [f"@{name}" for name in wanted.lists]
    names += [_range(*span) for span in spans[:_MOST_NAMED]]
    if len(spans) > _MOST_NAMED:
        names.append(f"{len(spans) - _MOST_NAMED} more")
    return tuple(names)


def _spans(addresses: Addresses) -> Iterable[tuple[Address, Address]]:
    for first, last in addresses.spans4():
        yield IPv4Address(first), IPv4Address(last)
    for first, last in addresses.spans6():
        yield IPv6Address(first), IPv6Address(last)


def _range(first: Address, last: Address) -> str:
    """A prefix where it is one, an address alone where it is one."""
    if first == last:
        return str(first)
    prefixes = list(summarize_address_range(first, last))
    return str(prefixes[0]) if len(prefixes) == 1 else f"{first}-{last}"


def _holding(addresses: Addresses, address: Address) -> str:
    """The first of the ranges that holds the address; empty if none does."""
    spans = addresses.spans4() if address.version == 4 else addresses.spans6()
    kind = type(address)
    for first, last in spans:
        if first <= int(address) <= last:
            return _range(kind(first), kind(last))
    return ""


def _application(rule: Rule, flow: Flow, known: Labels, holds: bool) -> str:
    wanted = labels(rule)
    name = protocol_name(flow.protocol)
    ends = [
        (Kind.SERVER, flow.destination, flow.destination_port),
        (Kind.CLIENT, flow.source, flow.source_port),
    ]
    if not holds:
        words = listed([_label(one) for one in wanted], "or")
        return f"{flow.destination} {name} port {flow.destination_port} was not learned as {words}"
    for kind, address, port in ends:
        found = known.of(endpoint_key(kind, address, flow.protocol, port))
        if both := [_label(one) for one in found if one in wanted]:
            return f"{address} {name} port {port} was learned as {listed(both)}"
    found = known.of(address_key(flow.destination))
    words = listed([_label(one) for one in found if one in wanted] or ["what it asks for"])
    return f"{flow.destination} was learned as {words}"


def _label(label: str) -> str:
    """ "application:tls" as "application tls"."""
    return label.replace(":", " ", 1)
