"""Protocols, ports and DSCP by name and by number."""

from __future__ import annotations

import re

from dataplane.config import units
from dataplane.config.model import Ports

# As IANA has them; several names may have one number, and the first is the one that is shown.
PROTOCOLS = {
    "icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "ipv6": 41, "gre": 47, "esp": 50,
    "ah": 51, "icmpv6": 58, "ipv6-icmp": 58, "ospf": 89, "pim": 103, "vrrp": 112, "l2tp": 115,
    "sctp": 132, "udplite": 136, "dccp": 33,
}  # fmt: skip
WITH_PORTS = frozenset(PROTOCOLS[name] for name in ("tcp", "udp", "sctp", "udplite", "dccp"))

DSCP = {
    **{f"cs{level}": 8 * level for level in range(8)},
    **{f"af{level}{drop}": 8 * level + 2 * drop for level in range(1, 5) for drop in range(1, 4)},
    "le": 1,
    "va": 44,
    "ef": 46,
}

_PROTOCOL = 'a protocol such as "udp", or its number from 0 to 255'
_PORTS = 'a port from 1 to 65535, or a range such as "10000-20000"'
_DSCP = 'a DSCP from 0 to 63, or a name such as "ef", "cs1" or "af31"'

_NUMBER = re.compile(r"[0-9]{1,5}", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,5})(?: ?- ?([0-9]{1,5}))?", re.ASCII)


def protocol(value: object) -> int:
    """A protocol by name or by number, 0 to 255, which may be a string too."""
    return _named(_PROTOCOL, PROTOCOLS, 255, value)


def dscp(value: object) -> int:
    """The six bits of a DSCP by name or by number, 0 to 63, which may be a string too."""
    return _named(_DSCP, DSCP, 63, value)


def ports(value: object) -> Ports:
    """5060, "5060" or "10000-20000"."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not (found := _RANGE.fullmatch(text)):
        raise units.refuse(_PORTS, value)
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= 65535 or not 1 <= last <= 65535:
        raise units.refuse(_PORTS, value)
    if first > last:
        raise ValueError(
            f'expected the lower port first: "{last}-{first}", got {units.show(value)}'
        )
    return Ports(first, last)


def _named(expected: str, names: dict[str, int], most: int, value: object) -> int:
    number = None
    if isinstance(value, str):
        number = names.get(value.lower())
        if number is None and _NUMBER.fullmatch(value):
            number = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None or not 0 <= number <= most:
        raise units.refuse(expected, value)
    return number
