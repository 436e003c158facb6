"""What the recogniser's process says: one JSON object a line, told apart by "say".

Nothing of it is believed unread: that process looks at strangers' bytes with a large library, and
may have been taken over by one of them.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from dataplane.errors import Error

# A hello has all names of nDPI, some three hundred.
LONGEST_LINE = 32768

Port = Annotated[int, Meta(ge=0, le=65535)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, Meta(pattern=r"\A[!-@\[-~]{1,40}\Z")]
Host = Annotated[str, Meta(pattern=r"\A[a-z0-9._-]{0,253}\Z")]
Address = Annotated[str, Meta(min_length=2, max_length=45, pattern=r"\A[0-9a-f.:]+\Z")]


class NonsenseError(Error):
    """The recogniser's process said what it never says."""


class Finding(msgspec.Struct, tag="finding", tag_field="say", forbid_unknown_fields=True):
    """What one connection carries. Addresses are in their usual spelling, both of one family.

    `applications` are nDPI's names in lower case, what carries and what is carried, as
    ["tls", "youtube"]. `host` is the name that the client asked the server for, or "". `side` is
    where the client is, seen from the router: "" if it is not known.
    """

    protocol: Literal[6, 17]
    server: tuple[Address, Port]
    client: tuple[Address, Port]
    applications: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=2)]
    host: Host = ""
    side: Literal["lan", "wan", ""] = ""


class Hello(msgspec.Struct, tag="hello", tag_field="say", forbid_unknown_fields=True):
    """It is ready. `unconfined` says what the machine could not take from it, "" if all was."""

    version: Annotated[str, Meta(pattern=r"\A[ -~]{0,80}\Z")]
    applications: Annotated[tuple[Name, ...], Meta(max_length=1000)]
    unconfined: Annotated[str, Meta(pattern=r"\A[ -~]{0,80}\Z")] = ""


class Counted(msgspec.Struct, tag="counted", tag_field="say", forbid_unknown_fields=True):
    """Counters since its start, and a sign of life."""

    copies: Count
    lost: Count
    overflows: Count
    unreadable: Count
    ignored: Count
    findings: Count
    repeated: Count
    talks: Count
    pushed_out: Count


Said = Finding | Hello | Counted

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)
_NAME_LETTER = re.compile(r"[^!-@\[-~]")


def line(said: Said) -> bytes:
    """As it is sent, end of line included."""
    return _encoder.encode(said) + b"\n"


def read(text: bytes) -> Said:
    """One line without its end. NonsenseError if it is not what the process ever says."""
    try:
        said = _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as fault:
        raise NonsenseError(f"the recogniser said nonsense: {fault}") from fault
    if isinstance(said, Finding):
        _check(said)
    return said


def _check(finding: Finding) -> None:
    try:
        server, client = ip_address(finding.server[0]), ip_address(finding.client[0])
    except ValueError as fault:
        raise NonsenseError(f"the recogniser said nonsense: {fault}") from fault
    if server.version != client.version:
        raise NonsenseError("the recogniser said nonsense: addresses of two families")
    for address, text in ((server, finding.server[0]), (client, finding.client[0])):
        if str(address) != text and not _is_mapped(address):
            raise NonsenseError(f"the recogniser said nonsense: address {text}")


def _is_mapped(address: IPv4Address | IPv6Address) -> bool:
    """Such addresses have more than one usual spelling."""
    return isinstance(address, IPv6Address) and int(address) >> 48 == 0


def finding(
    protocol: int,
    server: tuple[bytes, int],
    client: tuple[bytes, int],
    applications: tuple[str, ...],
    host: str,
    side: str,
) -> Finding:
    """From what the extension gives: packed addresses, names of whatever letters."""
    return Finding(
        6 if protocol == 6 else 17,
        (_spelled(server[0]), server[1]),
        (_spelled(client[0]), client[1]),
        tuple(name(one) for one in applications),
        host,
        "lan" if side == "lan" else "wan" if side == "wan" else "",
    )


def name(text: str) -> str:
    """An application's name with letters that a name may have."""
    return _NAME_LETTER.sub("-", text.lower())[:40] or "-"


def _spelled(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
