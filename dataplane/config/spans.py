"""Addresses, prefixes and ranges as text → ranges; domain names and wildcards."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from dataplane.config import units

Address = IPv4Address | IPv6Address
# The first and the last address, both included and of one family.
Span = tuple[Address, Address]

SPAN = "an address, a prefix or a range"
ENTRY = f"{SPAN}, or a domain name"
NAME = 'a domain name such as "example.org" or "*.example.org"'

_RANGE = re.compile(r"([0-9A-Fa-f.:]+) ?- ?([0-9A-Fa-f.:]+)", re.ASCII)
_PREFIX = re.compile(r"[0-9A-Fa-f.:]+/(?:0|[1-9][0-9]{0,2})", re.ASCII)


def span(expected: str, value: object, *, strict: bool = True) -> Span:
    """An address, a prefix or a range; `expected` begins the message.

    With `strict`, a prefix has no bits behind its length; else they count as zero.
    """
    found = find_span(value, strict=strict)
    if found is None:
        raise units.refuse(expected, value)
    return found


def find_span(value: object, *, strict: bool = True) -> Span | None:
    """The same; None for what is none of these. ValueError for what nearly is one."""
    if not isinstance(value, str):
        return None
    try:
        if halves := _RANGE.fullmatch(value):
            first, last = ip_address(halves[1]), ip_address(halves[2])
        elif _PREFIX.fullmatch(value):
            network = ip_network(value, strict=False)
            _judge_bits(network, value, strict)
            return network[0], network[-1]
        else:
            first = last = ip_address(value)
    except _BitsError:
        raise
    except ValueError:
        return None
    if isinstance(first, IPv6Address) and first.scope_id is not None:
        raise units.refuse("an address without a zone", value)
    if first.version != last.version:
        raise units.refuse("a range of one family", value)
    if int(first) > int(last):
        raise ValueError(f'expected the lower address first: "{last}-{first}", got "{value}"')
    return first, last


class _BitsError(ValueError):
    """A prefix with bits that its length leaves out."""


def _judge_bits(network: IPv4Network | IPv6Network, value: str, strict: bool) -> None:
    if strict and ip_address(value.partition("/")[0]) != network[0]:
        raise _BitsError(f'expected no bits after the prefix: "{network}", got "{value}"')


def domain(expected: str, value: object) -> str:
    """A name of at least two labels, or a wildcard "*." before a name; in small letters."""
    if not isinstance(value, str):
        raise units.refuse(expected, value)
    below = value.removeprefix("*.")
    try:
        name = units.host_name(expected, below)
    except ValueError:
        raise units.refuse(expected, value) from None
    if below != value:
        return f"*.{name}"
    if "." not in name:
        raise units.refuse(expected, value)
    return name
