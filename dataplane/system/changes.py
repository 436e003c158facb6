"""Says that something of the machine changed, without saying what: one looks again."""

from __future__ import annotations

import socket
import struct

from pyroute2.netlink import rtnl

from dataplane.decide.plan import PROTOCOL
from dataplane.errors import KernelError

_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
# Where a route's message has them, behind the header.
_PREFIX_LENGTH_AT, _PROTOCOL_AT = 17, 21


class ChangeListener:
    """`sockets` become readable; `drain` empties one and tells whether any of it matters to us.

    Changes of foreign, specific routes do not, so that a full BGP table does not keep us busy.
    """

    _GROUPS = (
        rtnl.RTNLGRP_LINK,
        rtnl.RTNLGRP_IPV4_IFADDR,
        rtnl.RTNLGRP_IPV4_ROUTE,
        rtnl.RTNLGRP_IPV4_RULE,
        rtnl.RTNLGRP_IPV6_IFADDR,
        rtnl.RTNLGRP_IPV6_ROUTE,
        rtnl.RTNLGRP_IPV6_RULE,
    )
    _NFTABLES_GROUP = 7
    _NETLINK_NETFILTER = 12

    def __init__(self) -> None:
        """KernelError if the kernel refuses to tell."""
        try:
            self._route = self._joined(socket.NETLINK_ROUTE, *self._GROUPS)
            self._netfilter = self._joined(self._NETLINK_NETFILTER, self._NFTABLES_GROUP)
        except OSError as refusal:
            raise KernelError(f"netlink: {refusal.strerror}") from refusal

    def _joined(self, protocol: int, *groups: int) -> socket.socket:
        one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        one.setblocking(False)
        one.bind((0, 0))
        for group in groups:
            one.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        return one

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        return self._route, self._netfilter

    def drain(self, one: socket.socket) -> bool:
        """Empties a socket. True if anything that may concern us was told, or was lost."""
        matters = False
        while True:
            try:
                data = one.recv(65536)
            except BlockingIOError:
                return matters
            except OSError:  # ENOBUFS: told faster than we read
                return True
            matters = matters or one is self._netfilter or self._concerns_us(data)

    def _concerns_us(self, data: bytes) -> bool:
        place = 0
        while place + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, place)
            if length < 16:
                return True
            if kind not in (rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE):
                return True
            if place + 24 <= len(data):
                prefix_length = data[place + _PREFIX_LENGTH_AT]
                if prefix_length == 0 or data[place + _PROTOCOL_AT] == PROTOCOL:
                    return True
            place += (length + 3) & ~3
        return False

    def close(self) -> None:
        for one in self.sockets:
            one.close()
