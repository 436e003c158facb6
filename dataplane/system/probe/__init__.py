"""Asks targets by one link, in five ways: ping, arp, tcp, dns, http."""

from __future__ import annotations

from dataplane.config.model import ProbeKind
from dataplane.system.probe.asker import Asker, Exit, Told

__all__ = ["Asker", "Exit", "Told", "make_asker"]


def make_asker(kind: ProbeKind, by: Exit, told: Told) -> Asker:
    """The asker of that kind on the running event loop; KernelError if it gets no sockets.

    dns and http load their libraries when the first of them is made, not before.
    """
    match kind:
        case ProbeKind.PING:
            from dataplane.system.probe.ping import PingAsker

            return PingAsker(by, told)
        case ProbeKind.ARP:
            from dataplane.system.probe.arp import ArpAsker

            return ArpAsker(by, told)
        case ProbeKind.TCP:
            from dataplane.system.probe.tcp import TcpAsker

            return TcpAsker(by, told)
        case ProbeKind.DNS:
            from dataplane.system.probe.dns import DnsAsker

            return DnsAsker(by, told)
        case ProbeKind.HTTP:
            from dataplane.system.probe.http import HttpAsker

            return HttpAsker(by, told)
