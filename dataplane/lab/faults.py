"""Links that break: each fault lasts while its `with` block runs, and leaves nothing behind.

    with faults.dropping(lab, "isp-b"):          # dead beyond its gateway, and silent about it
        ...

A `Fault` is one that needs no more than the lab and a link's name. Most are nft tables in the
provider's namespace, so they are gone with it in any case. The witness sees what a broken link was
sent, too; after `unplugged` it has to be told to look again (`Witness.attend`).
"""

from __future__ import annotations

import fcntl
import itertools
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from dataplane.lab import wiring
from dataplane.lab.namespaces import Namespace
from dataplane.lab.network import Lab
from dataplane.lab.topology import Address

Fault = Callable[[Lab, str], AbstractContextManager[None]]

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_SHARES = 1000
_numbers = itertools.count(1)


@contextmanager
def dropping(lab: Lab, link: str) -> Iterator[None]:
    """The provider silently drops all that it should forward; its gateway answers pings."""
    with _dropped(lab, link, "inet", "type filter hook forward priority -300", "drop"):
        yield


@contextmanager
def shy_gateway(lab: Lab, link: str) -> Iterator[None]:
    """The gateway answers no pings. It forwards, and its address is resolved, as before."""
    with _dropped(
        lab,
        link,
        "inet",
        "type filter hook input priority 0",
        'iifname "link" icmp type echo-request drop',
        'iifname "link" icmpv6 type echo-request drop',
    ):
        yield


@contextmanager
def dead_gateway(lab: Lab, link: str) -> Iterator[None]:
    """The gateway takes nothing in, not even ARP; the carrier stays."""
    with _dropped(lab, link, "netdev", 'type filter hook ingress device "link" priority 0', "drop"):
        yield


@contextmanager
def losing(
    lab: Lab, link: str, share: float = 0.3, target: Address | None = None
) -> Iterator[None]:
    """Of what goes up by the link, to the gateway too, that share is lost at random.

    With a `target`, only of what goes to that address.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share from 0 to 1, got {share}")
    to = "" if target is None else _to(target)
    lost = round(share * _SHARES)
    # nft takes no comparison that is always true, or never.
    chance = f"numgen random mod {_SHARES} < {lost}" if lost < _SHARES else ""
    rules = [f'iifname "link" {to} {chance} drop'] if lost else []
    with _dropped(lab, link, "inet", "type filter hook prerouting priority -300", *rules):
        yield


@contextmanager
def silent_target(lab: Lab, target: Address, link: str | None = None) -> Iterator[None]:
    """That address beyond the providers answers nothing; with a `link`, nothing by that one."""
    if link is None:
        role, hook = "server", "type filter hook input priority 0"
    else:
        role, hook = link, "type filter hook forward priority -300"
    with _dropped(lab, role, "inet", hook, f"{_to(target)} drop"):
        yield


@contextmanager
def no_carrier(lab: Lab, link: str) -> Iterator[None]:
    """The provider's end of the wire is down, so the router's has no carrier.

    Where links share an interface, the carrier is the switch's, and stays.
    """
    _set_up(lab[link], "link", up=False)
    try:
        yield
    finally:
        if link in lab.roles:
            _set_up(lab[link], "link", up=True)
            # The kernel took its IPv6 address away, and the routes through it.
            lab.take(wiring.restored(lab.topology.link(link), link))


@contextmanager
def interface_down(lab: Lab, link: str) -> Iterator[None]:
    """The router's interface is set down; when it is up again its addresses are as before."""
    interface = lab.topology.link(link).interface
    _set_up(lab.router, interface, up=False)
    try:
        yield
    finally:
        if "router" in lab.roles:
            _set_up(lab.router, interface, up=True)
            lab.take(wiring.restored(lab.topology.link(link), "router"))


@contextmanager
def unplugged(lab: Lab, link: str) -> Iterator[None]:
    """The router's interface is not there at all; afterwards it is a new one of the same name.

    It has another index. The provider's end goes and comes with it.
    """
    lab.router.run("ip", "link", "delete", "dev", lab.topology.link(link).interface)
    try:
        yield
    finally:
        if link in lab.roles:
            lab.rewire(link)


@contextmanager
def _dropped(lab: Lab, role: str, family: str, hook: str, *rules: str) -> Iterator[None]:
    table = f"{family} fault{next(_numbers)}"
    chain = "\n".join((f"{hook};", *rules))
    nft = partial(lab[role].run, "nft", "-f", "-")
    nft(stdin=f"table {table} {{\nchain broken {{\n{chain}\n}}\n}}\n")
    try:
        yield
    finally:
        if role in lab.roles:
            nft(stdin=f"delete table {table}\n")


def _to(target: Address) -> str:
    return f"{'ip' if target.version == 4 else 'ip6'} daddr {target}"


def _set_up(namespace: Namespace, interface: str, *, up: bool) -> None:
    """By ioctl: at once, where `ip` would first have to be started."""
    # struct ifreq: the name in 16 bytes, the flags in 2, and room.
    with namespace.inside():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        asked = struct.pack("16sH22x", interface.encode(), 0)
        flags = struct.unpack_from("H", fcntl.ioctl(asking, _SIOCGIFFLAGS, asked), 16)[0]
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(asking, _SIOCSIFFLAGS, struct.pack("16sH22x", interface.encode(), flags))
