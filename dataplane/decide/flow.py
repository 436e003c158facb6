"""A flow in words: what `explain` is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from dataplane.config.protocols import PROTOCOLS, dscp
from dataplane.decide.facts import Family

WORDS = "SRC DST [PROTOCOL [SPORT [DPORT [INTERFACE [DSCP]]]]]"
# In the place of an interface: none is named.
NO_INTERFACE = "-"
_MOST_WORDS = 7


@dataclass(frozen=True, slots=True)
class Flow:
    """The first packet of a connection. `interface` empty: some interface of the LAN side."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int = 6
    source_port: int = 0
    destination_port: int = 0
    interface: str = ""
    dscp: int = 0

    @property
    def family(self) -> Family:
        return 4 if self.source.version == 4 else 6


def parse_flow(words: list[str]) -> Flow:
    """SRC DST [PROTOCOL [SPORT [DPORT [INTERFACE [DSCP]]]]] as a flow; INTERFACE "-" is none.

    ValueError says what is legal.
    """
    if not 2 <= len(words) <= _MOST_WORDS:
        raise ValueError(f"expected {WORDS}")
    source, destination = ip_address(words[0]), ip_address(words[1])
    if source.version != destination.version:
        raise ValueError(f"{source} and {destination} are not of the same family")
    protocol = protocol_number(words[2]) if len(words) > 2 else 6
    ports = [_port(word) for word in words[3:5]] + [0, 0]
    interface = words[5] if len(words) > 5 and words[5] != NO_INTERFACE else ""
    priority = dscp(words[6]) if len(words) > 6 else 0
    return Flow(source, destination, protocol, ports[0], ports[1], interface, priority)


def _port(word: str) -> int:
    number = _number(word)
    if number is None or number > 65535:
        raise ValueError(f"expected a port from 0 to 65535, got {word[:40]!r}")
    return number


def _number(word: str) -> int | None:
    """A short run of plain digits as a number."""
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 10 else None


def protocol_number(word: str) -> int:
    """A protocol by name or by number, 0 to 255. ValueError says what is legal."""
    number = PROTOCOLS.get(word.lower(), _number(word))
    if number is None or number > 255:
        raise ValueError(f"expected one of {', '.join(PROTOCOLS)} or 0 to 255, got {word[:40]!r}")
    return number


def protocol_name(number: int) -> str:
    """The name of a protocol, or its number."""
    return next((name for name, one in PROTOCOLS.items() if one == number), str(number))
