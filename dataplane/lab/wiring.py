"""Topology -> the ip, tc, ethtool and sysctl steps that lay it out. Pure.

              ┌── isp-a ──┐
    client ── router      ├── server           one namespace each, veth pairs between them
              └── isp-b ──┘

Roles are the namespaces: "router", "server", every LAN's and every link's name, and
"switch-<interface>" where links share an interface of the router. In a provider's namespace, `link`
is the wire to the router and `core` the one to the servers.

Both directions are shaped in the provider's namespace: download where it leaves by `link`, upload
where it leaves by `core`, which carries this link's traffic and no other. So no queueing
discipline is set on the router, which is under test, and no IFB is needed. The witness, on
`link`, sees what the router sent before any of it is lost in the shaper.

A provider knows its link, the servers and a delegated prefix, and nothing else: a packet with a
LAN source is seen, goes on to the server, and gets no answer. The public resolvers are addresses of
the server's namespace, which answers pings there and serves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from dataplane.lab.topology import Interface, Lan, Link, Topology, core

# A timer that a busy machine serves later than this costs rate; the long-term rate stays exact.
_BURST_MS = 20

Tool = Literal["ip", "tc", "ethtool", "sysctl"]


@dataclass(frozen=True, slots=True)
class Step:
    """One line for `tool` in the namespace of `role`."""

    role: str
    tool: Tool
    line: str


def roles(topology: Topology) -> tuple[str, ...]:
    """Every namespace of the topology."""
    lans = tuple(lan.name for lan in topology.lans)
    links = tuple(link.name for link in topology.links)
    switches = tuple(f"switch-{interface}" for interface in topology.shared)
    return ("router", *lans, *links, *switches, "server")


def steps(topology: Topology, name: Callable[[str], str]) -> tuple[Step, ...]:
    """All steps in order; `name` gives a role's namespace name.

    First the settings that interfaces are born with, then the wires, which each touch two
    namespaces, then the rest, a namespace at a time so that few commands do it.
    """
    rest = (
        *_lans(topology, name),
        *_links(topology, name),
        *_cores(topology, name),
        *_servers(topology),
        *_shaping(topology),
    )
    wires = [step for step in rest if " type veth " in step.line]
    others = [step for step in rest if " type veth " not in step.line]
    by_role = [step for role in roles(topology) for step in others if step.role == role]
    born = sorted(_quiet(topology), key=lambda step: step.tool != "sysctl")
    return (*born, *sorted(wires, key=lambda step: step.role), *by_role)


def rewired(topology: Topology, link: Link, name: Callable[[str], str]) -> tuple[Step, ...]:
    """The steps that make the wire of one link anew, after an end of it was deleted.

    ValueError if the link shares its interface with another.
    """
    if link.interface in topology.shared:
        raise ValueError(f"{link.interface} is not the wire of {link.name} alone")
    number = topology.links.index(link) + 1
    shaping = (step for step in _shaped(topology, link, number) if " dev link " in step.line)
    wire = _wire("router", link.interface, link.name, "link", name)
    return (*wire, *_link_addresses(link), *shaping)


def restored(link: Link, role: str) -> tuple[Step, ...]:
    """The steps that give the end of a link in `role` what it lost by being down."""
    return tuple(
        replace(step, line=step.line.replace(" add ", " replace ", 1))
        for step in _link_addresses(link)
        if step.role == role
    )


def _quiet(topology: Topology) -> Iterator[Step]:
    """No waiting for duplicate address detection, no surprises from the machine's defaults."""
    everywhere = {
        "net/ipv6/conf/default/accept_dad": 0,
        "net/ipv6/conf/all/accept_dad": 0,
        "net/ipv6/conf/default/disable_ipv6": 0,
        "net/ipv6/conf/all/disable_ipv6": 0,
        "net/ipv4/conf/all/rp_filter": 0,
        "net/ipv4/conf/default/rp_filter": 0,
    }
    hosts = {"net/ipv6/conf/default/accept_ra": 0}
    forwarding = {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1}
    serving = {"net/ipv4/tcp_slow_start_after_idle": 0, "net/core/somaxconn": 4096}
    providers = {link.name for link in topology.links}
    for role in roles(topology):
        wanted = dict(everywhere)
        if role != "router":
            wanted |= hosts
        if role in providers:
            wanted |= forwarding
        if role == "server":
            wanted |= serving
        for key, value in wanted.items():
            yield Step(role, "sysctl", f"{key}={value}")
        yield Step(role, "ip", "link set dev lo up")


def _lans(topology: Topology, name: Callable[[str], str]) -> Iterator[Step]:
    for lan in topology.lans:
        yield from _wire("router", lan.port, lan.name, "eth0", name)
        host = "eth0"
        if lan.attachment == "bridge":
            yield Step("router", "ip", f"link add name {lan.interface} type bridge")
            yield Step("router", "ip", f"link set dev {lan.port} master {lan.interface}")
            yield _up("router", lan.interface)
        elif lan.attachment == "vlan":
            host = "eth0.10"
            for role, below, above in (
                ("router", lan.port, lan.interface),
                (lan.name, "eth0", host),
            ):
                yield Step(role, "ip", f"link add link {below} name {above} type vlan id 10")
                yield _up(role, above)
        yield from _lan_addresses(lan, host)


def _lan_addresses(lan: Lan, host: str) -> Iterator[Step]:
    for address in lan.addresses:
        yield _address("router", lan.interface, address)
        for client in lan.clients(6 if address.version == 6 else 4):
            yield _address(lan.name, host, f"{client}/{address.network.prefixlen}")
    for prefix in lan.delegated:
        yield _address("router", lan.interface, f"{prefix.network_address + 1}/64")
        for client in lan.delegated_clients(prefix):
            yield _address(lan.name, host, f"{client}/64")
    for address in lan.addresses:
        yield _route(lan.name, "::/0" if address.version == 6 else "0.0.0.0/0", f"via {address.ip}")


def _links(topology: Topology, name: Callable[[str], str]) -> Iterator[Step]:
    for interface in topology.shared:
        switch = f"switch-{interface}"
        yield Step(switch, "ip", "link add name segment type bridge")
        yield _up(switch, "segment")
        yield from _wire("router", interface, switch, "router", name)
        yield Step(switch, "ip", "link set dev router master segment")
    for number, link in enumerate(topology.links, 1):
        if link.interface in topology.shared:
            switch = f"switch-{link.interface}"
            yield from _wire(switch, f"port{number}", link.name, "link", name)
            yield Step(switch, "ip", f"link set port{number} master segment")
        else:
            yield from _wire("router", link.interface, link.name, "link", name)
        yield from _link_addresses(link)


def _link_addresses(link: Link) -> Iterator[Step]:
    if link.mtu != 1500:
        yield Step("router", "ip", f"link set dev {link.interface} mtu {link.mtu}")
        yield Step(link.name, "ip", f"link set dev link mtu {link.mtu}")
    for address in link.addresses:
        gateway = link.gateway(6 if address.version == 6 else 4)
        yield _address("router", link.interface, address)
        yield _address(link.name, "link", f"{gateway}/{address.network.prefixlen}")
    if link.delegated:
        yield _route(link.name, str(link.delegated), f"via {link.address(6)}")
    if link.point_to_point:
        yield Step(link.name, "sysctl", "net/ipv4/conf/link/proxy_arp=1")


def _cores(topology: Topology, name: Callable[[str], str]) -> Iterator[Step]:
    for number, link in enumerate(topology.links, 1):
        yield from _wire(link.name, "core", "server", f"core{number}", name)
        for family in link.families:
            provider, server = core(number, family)
            yield _address(link.name, "core", provider)
            yield _address("server", f"core{number}", server)
            for address in topology.answering:
                if address.version == family:
                    yield _route(link.name, str(address), f"via {server.ip}")
            if not topology.translates(link):
                yield _route("server", str(link.address(family)), f"via {provider.ip}")
            if family == 6 and link.delegated:
                yield _route("server", str(link.delegated), f"via {provider.ip}")


def _servers(topology: Topology) -> Iterator[Step]:
    for address in topology.answering:
        yield _address("server", "lo", f"{address}/{address.max_prefixlen}")


def _shaping(topology: Topology) -> Iterator[Step]:
    """TBF counts whole frames. Frames as the wire has them: no segmentation is put off."""
    for number, link in enumerate(topology.links, 1):
        yield from _shaped(topology, link, number)
    if any(link.shaped for link in topology.links):
        for lan in topology.lans:
            yield Step(lan.name, "ethtool", "-K eth0 tso off gso off")


def _shaped(topology: Topology, link: Link, number: int) -> Iterator[Step]:
    if not link.shaped:
        return
    down, up = link.capacity_bps, link.upload_bps or link.capacity_bps
    for interface, rate_bps in (("link", down), ("core", up)):
        burst = max(6000, rate_bps // 8 * _BURST_MS // 1000)
        queue = max(64_000, rate_bps // 8 * topology.queue_ms // 1000)
        line = f"rate {rate_bps}bit burst {burst} limit {burst + queue}"
        yield Step(link.name, "tc", f"qdisc add dev {interface} root tbf {line}")
    yield Step("server", "ethtool", f"-K core{number} tso off gso off")


def _wire(
    role: str, interface: str, other: str, there: str, name: Callable[[str], str]
) -> Iterator[Step]:
    line = f"link add name {interface} type veth peer name {there} netns {name(other)}"
    yield Step(role, "ip", line)
    yield _up(role, interface)
    yield _up(other, there)


def _up(role: str, interface: str) -> Step:
    return Step(role, "ip", f"link set dev {interface} up")


def _address(role: str, interface: str, address: Interface | str) -> Step:
    nodad = " nodad" if ":" in str(address) else ""
    return Step(role, "ip", f"address add {address} dev {interface}{nodad}")


def _route(role: str, prefix: str, rest: str) -> Step:
    return Step(role, "ip", f"route add {prefix} {rest}")
