"""Does this file fit this machine? What does not is said in words before anything is touched."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from dataplane.config.marks import MOST_LINKS
from dataplane.config.model import Config, Link
from dataplane.decide.facts import Facts, InterfaceFacts
from dataplane.decide.liveness import reaches
from dataplane.decide.plan import LAST_TABLE, table_of

_WHOLE = 0xFFFFFFFF


def conflicts(config: Config, facts: Facts) -> list[str]:
    """What on the machine would get in our way, or we in its; empty when nothing does."""
    found = []
    for priority, mark, mask in facts.foreign_marks:
        if _meets(mark, mask, config.mark_mask):
            found.append(
                f"mark_mask: {config.mark_mask:#010x} overlaps the mark {mark:#x}/{mask:#x} of "
                f"another program's rule (ip rule priority {priority}); choose other bits"
            )
    for table, route in facts.foreign_routes:
        found.append(
            f"routing table {table}: holds another program's route {route}, but tables "
            f"{LAST_TABLE} to {table_of(MOST_LINKS)} are Evenlink's; move it elsewhere"
        )
    return found


def doubts(config: Config, facts: Facts) -> list[str]:
    """What looks like a mistake in the file, though the machine may become what it says.

    A router that boots has not all its interfaces yet, and a lease may bring another network: the
    links in question are down until it fits.
    """
    return [
        fault
        for link in config.links
        if (interface := facts.interface(link.interface)) is not None
        for fault in _gateways(link, interface)
    ]


def absences(config: Config, facts: Facts) -> list[str]:
    """The interfaces of the file that do not exist now."""
    found = [
        f"lan: interface {name} does not exist on this machine"
        for name in config.lan
        if facts.interface(name) is None
    ]
    return found + [
        f"link.{link.name}.interface: {link.interface} does not exist on this machine"
        for link in config.links
        if facts.interface(link.interface) is None
    ]


def _meets(mark: int, mask: int, ours: int) -> bool:
    """Whether a rule of another program may be about packets that carry our marks.

    One that compares the whole mark is, where the mark is nothing but our bits.
    """
    if mask == _WHOLE:
        return mark != 0 and mark & ~ours == 0
    return mask & ours != 0


def _gateways(link: Link, interface: InterfaceFacts) -> list[str]:
    found = []
    for key, gateway in (("gateway", link.gateway), ("gateway6", link.gateway6)):
        if not isinstance(gateway, IPv4Address | IPv6Address) or reaches(interface, gateway):
            continue
        known = ", ".join(
            str(address.network)
            for address in interface.addresses
            if address.version == gateway.version
        )
        found.append(
            f"link.{link.name}.{key}: {gateway} is not in a network of {interface.name} ({known})"
        )
    return found
