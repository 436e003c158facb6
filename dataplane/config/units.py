"""One TOML value → one value of ours: rates, addresses, prefixes, marks, names, paths.

Each function takes whatever the file holds and returns the value, or raises ValueError with a
message that says what is legal and what was found: `expected a rate such as "20Mbit", got "20"`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from ipaddress import AddressValueError, IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import TypeVar

LEAST_RATE_BPS = 1_000
MOST_RATE_BPS = 100 * 10**12
LEAST_SHARE = Decimal("0.000001")
MOST_SHARE = Decimal(10**12)

# The kernel's IFNAMSIZ and sun_path, less the zero at the end.
INTERFACE_BYTES = 15
SOCKET_PATH_BYTES = 107

# A name that DNS can ask for, less the dot at its end.
HOST_NAME_CHARACTERS = 253
# The kernel takes more in one argument of a program; nobody needs it.
ARGUMENT_BYTES = 4096

PREFIX = 'an IPv6 prefix such as "2001:db8:a00::/56"'

_RATE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([kmgt]?)bit", re.ASCII | re.IGNORECASE)
_TIME = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s)?", re.ASCII)
_POWERS = {"": 0, "k": 3, "m": 6, "g": 9, "t": 12}
_LINK = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}", re.ASCII)
_GROUP = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,31}", re.ASCII)
_HEX_KEY = re.compile(r"[0-9A-Fa-f]{16}", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", re.ASCII)
# Resolvers read a name that ends in a number as an IPv4 address, in many a notation.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_HEX_MARK = re.compile(r"0[xX][0-9A-Fa-f]{1,16}", re.ASCII)

# A rule's `use` and `else` say these words; a link of that name could not be told from them.
RESERVED_NAMES = ("default", "main", "next", "reject")

Choice = TypeVar("Choice", bound=str)
Chosen = TypeVar("Chosen", bound=StrEnum)


def show(value: object) -> str:
    """A value as the file would say it, cut to a length that fits a message."""
    match value:
        case str():
            text = printable(json.dumps(value, ensure_ascii=False))
        case bool():
            text = str(value).lower()
        case int() if abs(value) >= 10**30:
            text = "a number of more than 30 digits"
        case int() | Decimal():
            text = str(value)
        case dict():
            return "a table"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return f"the date or time {value}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def printable(text: str) -> str:
    """Text with its control characters written out, since they may mean something to a terminal."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def refuse(expected: str, value: object) -> ValueError:
    """The error for a value that is not what is legal; to be raised."""
    return ValueError(f"expected {expected}, got {show(value)}")


def flag(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise refuse("true or false", value)
    return value


def integer(low: int, high: int) -> Callable[[object], int]:
    """A reader of whole numbers from `low` to `high`, both included."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise refuse(f"a whole number from {low} to {high}", value)
        return value

    return read


def word(*legal: Choice) -> Callable[[object], Choice]:
    """A reader of one of a few words."""

    def read(value: object) -> Choice:
        for choice in legal:
            if value == choice:
                return choice
        raise refuse(either([show(choice) for choice in legal]), value)

    return read


def member(legal: type[Chosen]) -> Callable[[object], Chosen]:
    """A reader of the members of an enumeration."""

    def read(value: object) -> Chosen:
        for choice in legal:
            if value == choice.value:
                return choice
        raise refuse(either([show(choice.value) for choice in legal]), value)

    return read


def rate(value: object) -> int:
    """ "1.5Gbit" → 1500000000, in bits per second; 1kbit to 100Tbit."""
    expected = 'a rate such as "20Mbit"'
    if not isinstance(value, str) or not (found := _RATE.fullmatch(value)):
        raise refuse(expected, value)
    bps = Decimal(found[1]).scaleb(_POWERS[found[2].lower()])
    if not LEAST_RATE_BPS <= bps <= MOST_RATE_BPS:
        raise refuse(f"{expected}, from 1kbit to 100Tbit", value)
    if bps != bps.to_integral_value():
        raise refuse(f"{expected}, a whole number of bits per second", value)
    return int(bps)


def share(value: object) -> Fraction:
    """A plain number above zero, exactly as it is written."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise refuse("a plain number such as 2 or 0.5", value)
    number = Decimal(value)
    if not number.is_finite() or not LEAST_SHARE <= number <= MOST_SHARE:
        raise refuse(f"a number from {LEAST_SHARE:f} to {MOST_SHARE:f}", value)
    return Fraction(number)


def number(low: Decimal, high: Decimal) -> Callable[[object], float]:
    """A reader of plain numbers from `low` to `high`, both included."""

    def read(value: object) -> float:
        expected = f"a number from {low:f} to {high:f}"
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise refuse(expected, value)
        if not Decimal(value).is_finite() or not low <= value <= high:
            raise refuse(expected, value)
        return float(value)

    return read


def duration(least_s: int, most_s: int) -> Callable[[object], int]:
    """A reader of times such as "30s", "10m" or "1h30m", in milliseconds."""

    def read(value: object) -> int:
        expected = 'a time such as "30s", "10m" or "1h30m"'
        if not isinstance(value, str) or not value or not (found := _TIME.fullmatch(value)):
            raise refuse(expected, value)
        hours, minutes, seconds = (int(part or 0) for part in found.groups())
        total_s = hours * 3600 + minutes * 60 + seconds
        if not least_s <= total_s <= most_s:
            raise refuse(f"{expected}, from {least_s} s to {most_s // 3600} h", value)
        return total_s * 1000

    return read


def mark(value: object) -> int:
    """A 32-bit number above zero, or the same as a string in hexadecimal."""
    expected = 'a 32-bit number above zero such as 0xca6c or "0xca6c"'
    if isinstance(value, str) and _HEX_MARK.fullmatch(value):
        number = int(value, 16)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise refuse(expected, value)
    if not 0 < number < 1 << 32:
        raise refuse(expected, value)
    return number


def mark_mask(value: object) -> int:
    """A mark that is one run of at least 4 set bits."""
    mask = mark(value)
    run = mask // (mask & -mask)
    if run & run + 1 or run < 0xF:
        raise ValueError(
            f"expected one run of at least 4 set bits such as 0x7f000000, got {mask:#x}"
        )
    return mask


def hash_key(value: object) -> int | Path:
    """16 hexadecimal digits → a 64-bit number; an absolute path stays one."""
    expected = "16 hexadecimal digits in quotes or the absolute path of a file"
    if isinstance(value, str) and _HEX_KEY.fullmatch(value):
        return int(value, 16)
    if isinstance(value, str) and value.startswith("/"):
        return absolute_path(value)
    raise refuse(expected, value)


def absolute_path(value: object) -> Path:
    """A path that starts at the root and names something below it."""
    if not isinstance(value, str) or not value.startswith("/") or not value.strip("/"):
        raise refuse("an absolute path", value)
    if not value.isprintable():
        raise refuse("an absolute path without control characters", value)
    return Path(value)


def program(value: object) -> str:
    """The absolute path of a program."""
    if not isinstance(value, str) or not value.startswith("/") or value.endswith("/"):
        raise refuse("the absolute path of a program", value)
    return str(absolute_path(value))


def argument(value: object) -> str:
    """What may be handed to a program: any string without a zero byte."""
    if not isinstance(value, str) or "\0" in value:
        raise refuse("a string without a zero byte", value)
    if (length := len(value.encode())) > ARGUMENT_BYTES:
        raise ValueError(f"expected at most {ARGUMENT_BYTES} bytes, got {length}")
    return value


def socket_path(value: object) -> Path:
    """An absolute path that fits the address of a UNIX socket."""
    path = absolute_path(value)
    if (length := len(bytes(path))) > SOCKET_PATH_BYTES:
        raise ValueError(f"expected a path of at most {SOCKET_PATH_BYTES} bytes, got {length}")
    return path


def interface(value: object) -> str:
    """A network interface's name, as the kernel allows it and nft can say it.

    In nft's strings `*` is a wildcard, in iptables' a `+` at the end is one.
    """
    expected = f"an interface name of 1 to {INTERFACE_BYTES} bytes"
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= INTERFACE_BYTES:
        raise refuse(expected, value)
    if not value.isprintable() or any(character.isspace() for character in value):
        raise refuse(f"{expected} without white space and control characters", value)
    if set(value) & set("/:\"'\\*`") or value.endswith("+") or value in (".", ".."):
        raise refuse(f"{expected} without any of / : \" ' \\ * ` and no + at its end", value)
    if value == "lo":
        raise ValueError('expected an interface that leads to other machines, got "lo"')
    return value


def link_name(value: str) -> str:
    """A link's name: a letter, then up to 30 letters, digits, - and _."""
    if not _LINK.fullmatch(value):
        raise refuse("a name of a letter and up to 30 letters, digits, - or _", value)
    if value.lower() in RESERVED_NAMES:
        raise ValueError(f"expected a name other than {either(RESERVED_NAMES)}, got {show(value)}")
    return value


def group_name(value: object) -> str:
    """A group of the machine's users."""
    if not isinstance(value, str) or not _GROUP.fullmatch(value):
        raise refuse("the name of a group of users", value)
    return value


def text(value: object) -> str:
    """Any string."""
    if not isinstance(value, str):
        raise refuse("a string", value)
    return value


def ipv4(expected: str, value: object) -> IPv4Address:
    """An address that one machine can have; `expected` begins the message."""
    if not isinstance(value, str):
        raise refuse(expected, value)
    try:
        address = IPv4Address(value)
    except AddressValueError:
        raise refuse(expected, value) from None
    _usable(address, address in _BROADCAST or address.packed[0] == 0, expected, value)
    return address


def ipv6(expected: str, value: object) -> IPv6Address:
    """An address that one machine can have; `expected` begins the message."""
    if not isinstance(value, str):
        raise refuse(expected, value)
    try:
        address = IPv6Address(value)
    except AddressValueError:
        raise refuse(expected, value) from None
    if address.scope_id is not None:
        raise refuse(f"{expected} without a zone", value)
    _usable(address, address.ipv4_mapped is not None, expected, value)
    return address


def address(expected: str, value: object) -> IPv4Address | IPv6Address:
    """An address of either family that one machine can have; `expected` begins the message."""
    if isinstance(value, str) and ":" in value:
        return ipv6(expected, value)
    return ipv4(expected, value)


def host_name(expected: str, value: object) -> str:
    """A name of another machine, in small letters and without a dot at its end."""
    if not isinstance(value, str) or not value.isascii():
        raise refuse(expected, value)
    name = value.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > HOST_NAME_CHARACTERS or not all(_LABEL.fullmatch(one) for one in labels):
        raise refuse(expected, value)
    if _NUMBER.fullmatch(labels[-1]):
        raise refuse(expected, value)
    if labels[-1] == "localhost":
        raise refuse(f"{expected} of another machine", value)
    return name


def provider_prefix(value: str) -> IPv6Network:
    """A provider's IPv6 prefix, /16 to /64, such as 2001:db8:a00::/56."""
    try:
        prefix = IPv6Network(value, strict=False)
    except ValueError:
        raise refuse(PREFIX, value) from None
    if not 16 <= prefix.prefixlen <= 64:
        raise refuse(f"{PREFIX}, from /16 to /64", value)
    if value.partition("/")[0] != "" and IPv6Address(value.partition("/")[0]) != prefix[0]:
        raise ValueError(f'expected no bits after the prefix: "{prefix}", got {show(value)}')
    if prefix.is_multicast or prefix.is_link_local or prefix.is_loopback or prefix.is_unspecified:
        raise refuse(f"{PREFIX} that hosts can have", value)
    return prefix


_BROADCAST = (IPv4Address("255.255.255.255"),)


def _usable(
    address: IPv4Address | IPv6Address, other_reason: bool, expected: str, value: object
) -> None:
    if address.is_multicast or address.is_loopback or address.is_unspecified or other_reason:
        raise refuse(f"{expected} that one machine can have", value)


def either(words: Sequence[str]) -> str:
    """("a", "b", "c") → a, b or c."""
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} or {words[-1]}"
