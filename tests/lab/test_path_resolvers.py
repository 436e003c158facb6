"""A provider's resolvers are asked by its own link, while that is up.

client ── router ─┬─ isp-a ─┬─ server      resolvers 203.0.113.1, 2001:db8:53::1
                  └─ isp-b ─┘              resolvers 203.0.113.2, 2001:db8:53::2
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dataplane.lab import Daemon, Lab, Topology, lan, link, servers, uplinks
from dataplane.lab.topology import BOTH, MBIT, Address, Family
from tests.lab.conftest import MakeLab
from tests.lab.talk import (
    Talk,
    call,
    counted,
    eventually,
    file_with,
    link_of,
    rightful_sources,
    status,
)

KEY = "0123456789abcdef"
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["udp", "tcp"])
EVERY = {"queue": {"mode": "every"}}


def resolvers(lab: Lab) -> dict[str, list[Address]]:
    """The first server is the first link's resolver, and so on."""
    return {
        way.name: [lab.topology.serving(family)[n] for family in BOTH]
        for n, way in enumerate(lab.topology.links)
    }


def run(lab: Lab, **more: Any) -> Daemon:
    told = {name: {"resolvers": its} for name, its in resolvers(lab).items()}
    return lab.run(file_with(lab, told, key=KEY, **more))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(uplinks(10 * MBIT, 20 * MBIT, shaped=False, hosts=6)) as built:
        yield built


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return run(lab)


def asked_from_the_lan(lab: Lab, target: Address, protocol: str = "udp") -> set[str]:
    """The links by which the LAN's hosts ask it."""
    used = set()
    for source in lab.topology.lans[0].clients(6 if target.version == 6 else 4):
        with call(lab, target, protocol, source=source, port=53) as talk:
            used |= {link_of(lab, talk.goes_on()) for _ in range(2)}
    return used


def asked_by_the_router(lab: Lab, target: Address, protocol: str, **bound: Any) -> str:
    """The link by which the router itself asks it, with an unbound socket unless told otherwise."""
    more = {"source": None, "protocol": protocol, "port": 53, **bound}
    with Talk(lab.router, far=lab.server, target=target, **more) as talk:
        used = link_of(lab, talk.goes_on())
        assert link_of(lab, talk.goes_on()) == used
    return used


def check_pinned(lab: Lab, family: Family, protocol: str) -> None:
    for name, its in resolvers(lab).items():
        for target in its:
            if target.version == family:
                assert asked_from_the_lan(lab, target, protocol) == {name}
                assert asked_by_the_router(lab, target, protocol) == name


@FAMILIES
@PROTOCOLS
def test_each_by_its_own_link(lab: Lab, daemon: Daemon, family: Family, protocol: str) -> None:
    with rightful_sources(lab):
        check_pinned(lab, family, protocol)
        others = lab.topology.serving(family)[2:]
        used = {name for target in others for name in asked_from_the_lan(lab, target, protocol)}
        assert used == {"isp-a", "isp-b"}, "others are balanced"
    assert counted(lab, "fallback") == counted(lab, "wrong_source") == 0


@FAMILIES
@PROTOCOLS
def test_bound_sockets_keep_their_link(
    lab: Lab, daemon: Daemon, family: Family, protocol: str
) -> None:
    """To an address or to an interface; whoever binds has chosen."""
    with rightful_sources(lab):
        for way in lab.topology.links:
            for its in resolvers(lab).values():
                target = next(one for one in its if one.version == family)
                for bound in ({"source": str(way.address(family))}, {"device": way.interface}):
                    assert asked_by_the_router(lab, target, protocol, **bound) == way.name


@FAMILIES
def test_explain_says_so(lab: Lab, daemon: Daemon, family: Family) -> None:
    sources = (lab.topology.lans[0].clients(family)[0], lab.topology.lans[0].router(family))
    for name, its in resolvers(lab).items():
        target = next(one for one in its if one.version == family)
        for answer in daemon.explain([f"{source} {target} udp 5000 53" for source in sources]):
            assert answer["link"] == name
            assert answer["reason"] == f"{target} is a resolver of link {name}"
            assert answer["hash"] is None


@FAMILIES
def test_explain_of_a_dead_link_says_so(lab: Lab, daemon: Daemon, family: Family) -> None:
    source = lab.topology.lans[0].clients(family)[0]
    target = next(one for one in resolvers(lab)["isp-b"] if one.version == family)
    words = (str(source), str(target), "--dead", "isp-b", "--config", str(daemon.file))
    said = lab.evenlink("explain", *words).stdout
    assert "is a resolver of link isp-b, which takes no IPv" in said
    assert "slot" in said


@contextmanager
def without_carrier(lab: Lab, daemon: Daemon, name: str) -> Iterator[None]:
    """The link is down in the block, and up behind it."""
    provider = lab[name]
    provider.run("ip", "link", "set", "dev", "link", "down")
    try:
        eventually(lambda: carries(daemon, name) == [])
        yield
    finally:
        provider.run("ip", "link", "set", "dev", "link", "up")
        address = f"{lab.topology.link(name).gateway(6)}/64"
        provider.run("ip", "address", "replace", address, "dev", "link", "nodad")
    eventually(lambda: carries(daemon, name) == ["ipv4", "ipv6"])


def carries(daemon: Daemon, name: str) -> list[str]:
    found: list[str] = next(one for one in status(daemon)["links"] if one["name"] == name)[
        "carries"
    ]
    return found


@pytest.mark.parametrize("dead", ["isp-a", "isp-b"])
def test_down_and_back(lab: Lab, daemon: Daemon, dead: str) -> None:
    """While its link is down, a resolver is asked by another, like any server."""
    other = {"isp-a": "isp-b", "isp-b": "isp-a"}[dead]
    with rightful_sources(lab, moving=True):
        with without_carrier(lab, daemon, dead):
            for target in resolvers(lab)[dead]:
                for protocol in ("udp", "tcp"):
                    assert asked_from_the_lan(lab, target, protocol) == {other}
                    assert asked_by_the_router(lab, target, protocol) == other
        for family in BOTH:
            check_pinned(lab, family, "udp")


@FAMILIES
def test_a_specific_route_of_main_wins(lab: Lab, daemon: Daemon, family: Family) -> None:
    """Both for a route of the administrator's and for a network that another link is in."""
    way = lab.topology.link("isp-a")
    target = next(one for one in resolvers(lab)["isp-b"] if one.version == family)
    source = lab.topology.lans[0].clients(family)[0]
    route = (f"{target}/{target.max_prefixlen}", "via", str(way.gateway(family)))
    lab.router.run("ip", f"-{family}", "route", "add", *route, "dev", way.interface)
    try:
        with rightful_sources(lab):
            assert asked_from_the_lan(lab, target) == {"isp-a"}
            assert asked_by_the_router(lab, target, "udp") == "isp-a"
        answer = daemon.explain([f"{source} {target} udp 5000 53"])[0]
        assert answer["link"] is None
        assert "specific route" in answer["reason"]
    finally:
        lab.router.run("ip", f"-{family}", "route", "del", *route, "dev", way.interface)
    assert asked_from_the_lan(lab, target) == {"isp-b"}


@FAMILIES
@PROTOCOLS
def test_in_the_network_of_another_link(make_lab: MakeLab, family: Family, protocol: str) -> None:
    """isp-b's resolver is said to be isp-a's gateway: it is asked where it is."""
    lab = make_lab(uplinks(10 * MBIT, 20 * MBIT, shaped=False))
    way = lab.topology.link("isp-a")
    there = [str(gateway) for gateway in way.gateways]
    daemon = lab.run(file_with(lab, {"isp-b": {"resolvers": there}}, key=KEY))
    target, source = way.gateway(family), lab.topology.lans[0].clients(family)[0]
    with rightful_sources(lab):
        for near, address in ((lab.client, source), (lab.router, None)):
            with Talk(near, address, lab["isp-a"], target, protocol=protocol, port=53) as talk:
                assert talk.goes_on() == way.address(family)
    assert daemon.explain([f"{source} {target} udp 1 53"])[0]["table"] == "main"


@pytest.mark.parametrize("default", ["isp-a", "isp-b", None])
def test_where_main_decides_for_the_router(make_lab: MakeLab, default: str | None) -> None:
    """An unbound socket has the address of main's default link as its source."""
    lab = make_lab(uplinks(10 * MBIT, 20 * MBIT, shaped=False))
    if default:
        way = lab.topology.link(default)
        for family in BOTH:
            prefix = {4: "0.0.0.0/0", 6: "::/0"}[family]
            hop = ("via", str(way.gateway(family)), "dev", way.interface)
            lab.router.run("ip", f"-{family}", "route", "add", prefix, *hop)
    daemon = run(lab, own_traffic="main")
    with rightful_sources(lab):
        for family in BOTH:
            for protocol in ("udp", "tcp"):
                check_pinned(lab, family, protocol)
            if default:
                third = lab.topology.serving(family)[2]
                assert asked_by_the_router(lab, third, "udp") == default
    assert status(daemon)["queue"]["packets"] == 0
    for way in lab.topology.links:
        target = resolvers(lab)["isp-b"][0]
        answer = daemon.explain([f"{way.address(4)} {target} udp 5000 53"])[0]
        assert answer["link"] == "isp-b"


def test_a_link_that_does_not_translate(make_lab: MakeLab) -> None:
    """Where main decides, and the source is another link's, the source wins: nobody mends it."""
    lab = make_lab(uplinks(10 * MBIT, 20 * MBIT, families=(4,), shaped=False))
    way = lab.topology.link("isp-a")
    lab.router.run("ip", "route", "add", "default", "via", str(way.gateway(4)))
    told: dict[str, dict[str, object]] = {
        "isp-a": {"resolvers": [lab.topology.serving(4)[0]]},
        "isp-b": {"nat": "none", "resolvers": [lab.topology.serving(4)[1]]},
    }
    daemon = lab.run(file_with(lab, told, key=KEY, own_traffic="main"))
    with rightful_sources(lab):
        for target in lab.topology.serving(4)[:2]:
            assert asked_by_the_router(lab, target, "udp") == "isp-a"
    asked = f"{way.address(4)} {lab.topology.serving(4)[1]} udp 5000 53"
    assert daemon.explain([asked])[0]["link"] == "isp-a"


def test_without_the_daemon(make_lab: MakeLab) -> None:
    lab = make_lab(uplinks(10 * MBIT, 20 * MBIT, shaped=False))
    run(lab).kill()
    with rightful_sources(lab):
        for family in BOTH:
            for protocol in ("udp", "tcp"):
                check_pinned(lab, family, protocol)


def test_where_every_packet_is_queued(make_lab: MakeLab) -> None:
    """A connection to a resolver that began elsewhere stays there when the link is back."""
    lab = make_lab(uplinks(10 * MBIT, 20 * MBIT, shaped=False))
    daemon = run(lab, sections=EVERY)
    target = resolvers(lab)["isp-b"][0]
    with rightful_sources(lab):
        check_pinned(lab, 4, "udp")
        with without_carrier(lab, daemon, "isp-b"):
            talk = call(lab, target, port=53)
            assert link_of(lab, talk.goes_on()) == "isp-a"
        for _ in range(3):
            assert link_of(lab, talk.goes_on()) == "isp-a"
        talk.close()
        check_pinned(lab, 4, "udp")


def test_links_that_share_an_interface(make_lab: MakeLab) -> None:
    """
    client ── router ── one Ethernet segment ─┬─ isp-a ─┬─ server
                                              └─ isp-b ─┘
    """
    links = tuple(
        link(name, n, n * 10 * MBIT, interface="wan", shaped=False, host=n)
        for n, name in enumerate(("isp-a", "isp-b"), 1)
    )
    lab = make_lab(Topology(links, (lan(),), servers(4)))
    run(lab)
    with rightful_sources(lab):
        for family in BOTH:
            for protocol in ("udp", "tcp"):
                check_pinned(lab, family, protocol)


def test_a_delegated_prefix_comes_first(make_lab: MakeLab) -> None:
    """It is the provider's own: no other would take it untranslated."""
    links = (
        link("isp-a", 1, 10 * MBIT, delegated=True, shaped=False),
        link("isp-b", 2, 20 * MBIT, shaped=False),
    )
    prefix = links[0].delegated
    assert prefix is not None
    lab = make_lab(Topology(links, (lan(delegated=[prefix]),), servers(4)))
    daemon = run(lab)
    source = lab.topology.lans[0].delegated_clients(prefix)[0]
    target = resolvers(lab)["isp-b"][1]
    with rightful_sources(lab), call(lab, target, source=source, port=53) as talk:
        assert talk.goes_on() == source
    answer = daemon.explain([f"{source} {target} udp 5000 53"])[0]
    assert answer["link"] == "isp-a"
