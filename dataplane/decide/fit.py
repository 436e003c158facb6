"""Does this file fit this machine? What does not is said in words before anything is touched."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from dataplane.config.marks import MOST_LINKS
from dataplane.config.model import Config, Link
from dataplane.decide.facts import Facts, InterfaceFacts
from dataplane.decide.plan import LAST_TABLE, table_of

_WHOLE = 0xFFFFFFFF


def misfits(config: Config, facts: Facts) -> list[str]:
    """Everything on the machine that stands against the file; empty when it fits."""
    found = []
    for name in config.lan:
        if facts.interface(name) is None:
            found.append(f"lan: interface {name} does not exist on this machine")
    for link in config.links:
        interface = facts.interface(link.interface)
        if interface is None:
            found.append(
                f"link.{link.name}.interface: {link.interface} does not exist on this machine"
            )
        else:
            found += _gateways(link, interface)
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
        if not isinstance(gateway, IPv4Address | IPv6Address) or gateway.is_link_local:
            continue
        networks = [
            address.network for address in interface.addresses if address.version == gateway.version
        ]
        if not networks or interface.point_to_point:
            continue
        if not any(gateway in network for network in networks):
            known = ", ".join(str(network) for network in networks)
            found.append(
                f"link.{link.name}.{key}: {gateway} is not in a network of {interface.name} "
                f"({known})"
            )
    return found
