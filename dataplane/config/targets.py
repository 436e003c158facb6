"""What a probe asks, kind by kind: "gateway", an address, a name, a port, a URL → Target."""

from __future__ import annotations

import re
from collections.abc import Callable

from dataplane.config import units
from dataplane.config.model import DEFAULT_TARGETS, PUBLIC_RESOLVERS, ProbeKind, Target

MOST_URL_CHARACTERS = 1024

GATEWAY = "gateway"

_HTTP_PORTS = {"http": 80, "https": 443}
_DNS_PORT = 53

_HOST = "an address or a host name"
_PING = '"gateway", an address or a host name'
_ARP = '"gateway" or an IPv4 address'
_TCP = '"host:port", "[IPv6 address]:port" or "gateway:port"'
_DNS = '"gateway" or the address of a resolver, with or without ":port"'
_HTTP = "an http:// or https:// URL"

_DIGITS = re.compile(r"[0-9.]+", re.ASCII)
_ENDPOINT = re.compile(r"(?:\[([^\[\]]*:[^\[\]]*)\]|([^:\[\]]+))(?::([0-9]{1,5}))?", re.ASCII)
# The characters of RFC 3986; a % begins two hexadecimal digits.
_URL_TEXT = re.compile(r"(?:[\w.~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", re.ASCII)
_URL = re.compile(r"(https?)://([^/?#]*)([/?][^#]*)?(#.*)?", re.ASCII)


def identity(target: Target) -> object:
    """What makes a target another one: not its spelling, but the path of a URL does."""
    url = _URL.fullmatch(target.text)
    path = (url[1], url[3] or "/") if url else None
    return target.address, target.name, target.gateway, target.port, path


def _ping(value: object) -> Target:
    text = _text(_PING, value)
    return _target(text, _PING, text)


def _arp(value: object) -> Target:
    text = _text(_ARP, value)
    if text == GATEWAY:
        return Target(text, gateway=True)
    return Target(text, address=units.ipv4(_ARP, text))


def _tcp(value: object) -> Target:
    text = _text(_TCP, value)
    host, port = _endpoint(_TCP, text, text)
    if port is None:
        raise units.refuse(_TCP, text)
    return _target(text, _HOST, host, port)


def _dns(value: object) -> Target:
    text = _text(_DNS, value)
    if text.count(":") > 1 and "[" not in text:
        return Target(text, address=units.ipv6(_DNS, text), port=_DNS_PORT)
    host, port = _endpoint(_DNS, text, text)
    target = _target(text, _DNS, host, port or _DNS_PORT)
    if target.name is not None:
        raise units.refuse(_DNS, text)
    return target


def _http(value: object) -> Target:
    text = _text(_HTTP, value)
    url = _URL.fullmatch(text)
    if "@" in (url[2] if url else text):
        # What was got stays out of the message, and so out of the log.
        raise ValueError(f"expected {_HTTP} without user and password, got one with them")
    if not url or not url[2]:
        raise units.refuse(_HTTP, text)
    scheme, authority, _, fragment = url.groups()
    if fragment is not None:
        raise units.refuse(f"{_HTTP} without a fragment", text)
    if not _URL_TEXT.fullmatch(text):
        raise units.refuse(f"{_HTTP} of the characters that URLs have", text)
    if len(text) > MOST_URL_CHARACTERS:
        raise units.refuse(f"{_HTTP} of at most {MOST_URL_CHARACTERS} characters", text)
    host, port = _endpoint(_HTTP, authority, text)
    if host == GATEWAY:
        raise units.refuse(f"{_HTTP} with an address or a host name", text)
    if host.endswith("."):
        # No certificate is for a name that ends so.
        raise units.refuse(f"{_HOST} without a dot at its end", host)
    return _target(text, _HOST, host, port or _HTTP_PORTS[scheme])


def _text(expected: str, value: object) -> str:
    if not isinstance(value, str):
        raise units.refuse(expected, value)
    return value


def _endpoint(expected: str, text: str, whole: str) -> tuple[str, int | None]:
    """host, host:port, [IPv6 address] or [IPv6 address]:port → host without brackets, and port."""
    found = _ENDPOINT.fullmatch(text)
    if not found:
        raise units.refuse(expected, whole)
    host = found[1] or found[2]
    if found[3] is None:
        return host, None
    port = int(found[3])
    if not 1 <= port <= 65535:
        raise units.refuse(f"{expected}, with a port from 1 to 65535", whole)
    return host, port


def _target(text: str, expected: str, host: str, port: int | None = None) -> Target:
    """Whom `text` names; `expected` begins the message if the `host` in it is none."""
    if host == GATEWAY:
        return Target(text, gateway=True, port=port)
    if ":" in host or _DIGITS.fullmatch(host):
        return Target(text, address=units.address(expected, host), port=port)
    name = units.host_name(expected, host)
    if name == GATEWAY:
        raise units.refuse(expected, host)
    return Target(text, name=name, port=port)


READERS: dict[ProbeKind, Callable[[object], Target]] = {
    ProbeKind.PING: _ping,
    ProbeKind.ARP: _arp,
    ProbeKind.TCP: _tcp,
    ProbeKind.DNS: _dns,
    ProbeKind.HTTP: _http,
}
# What each kind asks when the file does not say; the others must be told.
DEFAULTS: dict[ProbeKind, tuple[Target, ...]] = {
    ProbeKind.PING: DEFAULT_TARGETS,
    ProbeKind.ARP: (Target(GATEWAY, gateway=True),),
    ProbeKind.DNS: tuple(Target(str(one), address=one, port=_DNS_PORT) for one in PUBLIC_RESOLVERS),
}
LEGAL = {ProbeKind.TCP: _TCP, ProbeKind.HTTP: "http:// or https:// URLs"}
