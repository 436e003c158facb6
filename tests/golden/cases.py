"""Files, and machines that they are for: what golden texts and unit tests of the plan share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface

from dataplane.config.load import read
from dataplane.config.model import Fields
from dataplane.decide.facts import Facts, InterfaceFacts
from dataplane.decide.plan import Plan
from dataplane.decide.wish import Before, make_wish

KEY = 0x0123456789ABCDEF

TWO = """
lan = ["lan0"]

[link.isp-a]
interface = "wan1"
gateway = "192.0.2.1"
capacity = "10Mbit"
{a}
[link.isp-b]
interface = "{b_interface}"
gateway = "198.51.100.1"
capacity = "20Mbit"
{b}
"""


def two(a: str = "", b: str = "", b_interface: str = "wan2", top: str = "", end: str = "") -> str:
    """The everyday file, with more lines for its links, on top and at the end."""
    return top + "\n" + TWO.format(a=a, b=b, b_interface=b_interface) + end


def interface(
    name: str, index: int, four: str = "", six: str = "", mtu: int = 1500
) -> InterfaceFacts:
    """An interface that is up, with addresses separated by blanks."""
    return InterfaceFacts(
        name=name,
        index=index,
        enabled=True,
        carrier=True,
        point_to_point=False,
        mtu=mtu,
        addresses4=tuple(IPv4Interface(one) for one in four.split()),
        addresses6=tuple(IPv6Interface(one) for one in six.split()),
        learned_gateway6=IPv6Address(f"fe80::{index}") if name.startswith("wan") else None,
    )


MACHINE = Facts(
    interfaces=(
        interface("lan0", 1, "10.10.0.1/16", "fd00:db8::1/64"),
        interface("wan1", 2, "192.0.2.2/24", "2001:db8:1::2/64"),
        interface("wan2", 3, "198.51.100.2/24", "2001:db8:2::2/64"),
    ),
    native_queue=False,
)


def with_interface(changed: InterfaceFacts) -> Facts:
    """The machine with another interface in the place of the one of that name, or one more."""
    others = tuple(one for one in MACHINE.interfaces if one.name != changed.name)
    return replace(MACHINE, interfaces=(*others, changed))


@dataclass(frozen=True)
class Case:
    """A file and the machine that it is for."""

    text: str
    facts: Facts = MACHINE


THIRD = """
[link.lte]
interface = "wwan0"
gateway = "198.18.3.1"
capacity = "50Mbit"
metered = true
"""
SHARED = replace(
    with_interface(interface("wan1", 2, "192.0.2.2/24 198.51.100.2/24", "2001:db8:1::2/64")),
    gateway_macs=(("192.0.2.1", "02:00:00:00:00:01"), ("198.51.100.1", "02:00:00:00:00:02")),
)
THREE = with_interface(interface("wwan0", 4, "198.18.3.2/24", mtu=1428))
DOWN = with_interface(replace(interface("wan2", 3, "198.51.100.2/24"), carrier=False))

TUN = with_interface(
    replace(
        interface("wan2", 3, "198.51.100.2/32", "2001:db8:2::2/64", mtu=1420),
        point_to_point=True,
        learned_gateway6=None,
    )
)

ECMP = '[balance]\nmethod = "ecmp"\n'
ECMP_GROUPS = """
[group.voice]
links = ["isp-a", "lte"]
method = "ecmp"

[group.bulk]
links = ["isp-a", "isp-b", "lte"]
method = "ecmp"

[[rule]]
protocol = "udp"
use = "voice"

[[rule]]
protocol = "tcp"
use = "bulk"
"""

A_ASKS = 'resolvers = ["203.0.113.53", "203.0.113.54", "2001:db8:53::53"]'
B_ASKS = 'resolvers = ["198.51.100.53"]'
NAMES = """
[list.shops]
names = ["*.example.org", "shop.example.com"]

[[rule]]
destination = ["@shops"]
use = "isp-a"
"""
APPLICATIONS = """
[[rule]]
application = ["bittorrent"]
use = "isp-b"
"""

CASES: Mapping[str, Case] = {
    "two-links": Case(two()),
    "three-links": Case(two(end=THIRD), THREE),
    "ipv6-off": Case(two(top="ipv6 = false")),
    "own-traffic-main": Case(two(top='own_traffic = "main"')),
    "mode-every": Case(two(end='[queue]\nmode = "every"\nworkers = 2\n')),
    "snat": Case(two(a='nat = "snat"\naddress = ["192.0.2.77", "2001:db8:1::77"]')),
    "nat-none": Case(two(a='nat = "none"')),
    "prefix": Case(two(a='nat = "prefix"\naddress = "2001:db8:d001::/56"')),
    "delegated": Case(two(a='address = "2001:db8:d001::/56"')),
    "mss": Case(two(a="mss = 1300")),
    "shared-interface": Case(two(b_interface="wan1", b='gateway6 = "2001:db8:1::9"'), SHARED),
    "resolvers": Case(two(a=A_ASKS, b=B_ASKS)),
    "resolvers-own-traffic-main": Case(
        two(a=A_ASKS, b=B_ASKS + '\nnat = "none"', top='own_traffic = "main"')
    ),
    "resolvers-of-a-dead-link": Case(two(a=A_ASKS, b=B_ASKS), DOWN),
    "ecmp": Case(two(end=ECMP)),
    "ecmp-groups": Case(two(end=THIRD + ECMP_GROUPS), THREE),
    "ecmp-shared-interface": Case(
        two(b_interface="wan1", b='gateway6 = "2001:db8:1::9"', end=ECMP), SHARED
    ),
    "ecmp-point-to-point": Case(two(end=ECMP).replace('gateway = "198.51.100.1"', ""), TUN),
    "native-queue": Case(two(), replace(MACHINE, native_queue=True)),
    "native-queue-workers": Case(
        two(end="[queue]\nworkers = 4\n"), replace(MACHINE, native_queue=True)
    ),
    "one-link-down": Case(two(), DOWN),
    "another-mask": Case(two(top="mark_mask = 0x00ff0000\nexempt_marks = [0xca6c, 0x42]")),
    "learning-names": Case(two(end=NAMES)),
    "learning-all": Case(two(top="ipv6 = false", end=NAMES + APPLICATIONS)),
    **{f"fields-{one}": Case(two(end=f'[balance]\nfields = "{one}"\n')) for one in Fields},
}  # fmt: skip


def plan_of(text: str, facts: Facts = MACHINE) -> Plan:
    """The plan of a first start."""
    return make_wish(read(text, "evenlink.toml"), facts, KEY, Before()).plan()
