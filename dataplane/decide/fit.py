"""Does this file fit this machine? What does not is said in words before anything is touched."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from itertools import combinations

from dataplane.config.model import Config, Link, Nat
from dataplane.decide.facts import FAMILIES, Facts, InterfaceFacts
from dataplane.decide.liveness import link_states, source_towards


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
    found += _same_source(config, facts)
    for priority, mark, mask in facts.foreign_marks:
        if mask & config.mark_mask and mask != 0xFFFFFFFF:
            found.append(
                f"mark_mask: {config.mark_mask:#010x} overlaps the mark {mark:#x}/{mask:#x} of "
                f"another program's rule (ip rule priority {priority}); choose other bits"
            )
    return found


def _same_source(config: Config, facts: Facts) -> list[str]:
    """Two links of one interface that would masquerade as one address: nobody could tell them."""
    found = []
    states = link_states(config, facts)
    for one, other in combinations(config.links, 2):
        if one.interface != other.interface or not one.nat is other.nat is Nat.MASQUERADE:
            continue
        interface = facts.interface(one.interface)
        for family in FAMILIES:
            ways = states[one.name].way(family), states[other.name].way(family)
            sources = [source_towards(way, interface) for way in ways if way.usable]
            if len(sources) == 2 and sources[0] == sources[1]:
                found.append(
                    f"link.{other.name}: leaves {one.interface} with {sources[0]}, as {one.name} "
                    'does; give one of them nat = "snat" and an address of its own'
                )
    return found


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
