"""What all askers have in common: their exit, how they answer, their sockets, their words."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Protocol

from dataplane.config.marks import PROBE_PRIORITY
from dataplane.config.model import Target
from dataplane.errors import KernelError

Address = IPv4Address | IPv6Address
Told = Callable[[int, float | None, str], None]

_WORDS = {
    errno.EACCES: "the route prohibits it",
    errno.EADDRNOTAVAIL: "no address to ask from",
    errno.EAGAIN: "the interface's queue is full",
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "the connection was reset",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETDOWN: "the interface is down",
    errno.ENETUNREACH: "network unreachable",
    errno.ENOBUFS: "the interface's queue is full",
    errno.ENODEV: "the interface is gone",
    errno.ENXIO: "the interface is gone",
    errno.EPERM: "a packet filter of this machine drops it",
    errno.ETIMEDOUT: "no answer",
}


@dataclass(frozen=True, slots=True)
class Exit:
    """By which link a probe leaves. `mark` is the whole value for SO_MARK."""

    interface: str
    mark: int


class Asker(Protocol):
    """Asks targets by one link, both families, on the event loop that it was made on.

    `remarks` says by a target's text what was odd about the last answer that did not count:
    another sender, a wrong identifier. An answer that counts takes the remark away.
    """

    remarks: dict[str, str]

    def ask(self, token: int, target: Target, address: Address, limit_s: float) -> None:
        """Asks once; never blocks, never raises.

        `told(token, round trip in ms or None, words)` is called at most once, maybe before this
        returns. Words are empty when all is well. Of a target that stays silent for `limit_s`
        ping and arp say nothing; the others say so.
        """
        ...

    def close(self) -> None:
        """Nothing is told afterwards. Again does nothing."""
        ...


def open_socket(by: Exit, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket whose first packet already leaves by that link. OSError if the kernel refuses."""
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        interface = by.interface.encode()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, by.mark)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, PROBE_PRIORITY)
    except BaseException:
        made.close()
        raise
    return made


def family_of(address: Address) -> socket.AddressFamily:
    """The socket family of an address."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def place(address: Address, port: int) -> tuple[str, int]:
    """Where sockets send to. The socket's interface is a link-local address's scope."""
    return str(address).partition("%")[0], port


def is_from(host: str, address: Address) -> bool:
    """Is what recvfrom says, with its scope if link-local, that address?"""
    return ip_address(host.partition("%")[0]).packed == address.packed


def words(refusal: OSError) -> str:
    """What the kernel said, in a few words."""
    number = refusal.errno
    if number is None:
        return str(refusal) or type(refusal).__name__
    return _WORDS.get(number) or os.strerror(number).lower()


def refused(by: Exit, kind: str, refusal: OSError) -> KernelError:
    """An asker's socket cannot be made."""
    return KernelError(f"{kind} on {by.interface}: {words(refusal)}")
