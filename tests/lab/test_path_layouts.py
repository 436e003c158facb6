"""Other layouts than the everyday one, each with connections of every pair, both ways.

client ── router ─┬─ a ─┬─ server        drawn above each test where it differs
                  └─ b ─┘
"""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Network, IPv6Network
from itertools import product

import pytest

from dataplane.lab import Daemon, Lab, Topology, lan, link, servers, uplinks
from dataplane.lab.topology import MBIT
from tests.lab.conftest import MakeLab
from tests.lab.talk import (
    Talk,
    call,
    counted,
    file_with,
    link_of,
    rightful_sources,
    status,
    tracked,
)

KEY = "0123456789abcdef"
OVERLAPPING = {"network4": IPv4Network("192.0.2.0/24"), "network6": IPv6Network("2001:db8:1::/64")}


def number(lab: Lab, name: str) -> int:
    return [found.name for found in lab.topology.links].index(name) + 1


def check(lab: Lab, daemon: Daemon) -> Counter[str]:
    """Every pair goes where `explain` says, both protocols; gives the pairs that each link got."""
    got: Counter[str] = Counter()
    saved = []
    pairs = lab.topology.pairs()
    foretold = daemon.explain([f"{source} {target} tcp 1 2" for source, target in pairs])
    for (source, target), answer in zip(pairs, foretold, strict=True):
        for protocol in ("udp", "tcp"):
            with call(lab, target, protocol, source=source) as talk:
                for _ in range(2):
                    assert link_of(lab, talk.goes_on()) == answer["link"], answer
                saved.append((f"mark={number(lab, answer['link']) << 24}", talk.ports))
        got[answer["link"]] += 1
    lines = [set(line.split()) for line in tracked(lab)]
    for mark, (sport, dport) in saved:
        assert any({mark, f"sport={sport}", f"dport={dport}"} <= line for line in lines)
    assert counted(lab, "fallback") == counted(lab, "wrong_source") == 0
    return got


def reach_router(lab: Lab) -> None:
    """The router is reached from outside on each link, and its own bound sockets leave by it."""
    for way in lab.topology.links:
        for family in way.families:
            target = lab.topology.serving(family)[0]
            for protocol in ("udp", "tcp"):
                if not lab.topology.translates(way):
                    with Talk(
                        lab.server, target, lab.router, way.address(family), protocol=protocol
                    ) as talk:
                        assert {talk.goes_on() for _ in range(2)} == {target}
                if way.interface not in lab.topology.shared:
                    with Talk(
                        lab.router, None, lab.server, target, protocol=protocol,
                        device=way.interface,
                    ) as talk:  # fmt: skip
                        assert link_of(lab, talk.goes_on()) == way.name


def test_three_links(make_lab: MakeLab) -> None:
    lab = make_lab(uplinks(10 * MBIT, 20 * MBIT, 50 * MBIT, shaped=False, hosts=6))
    daemon = lab.run(lab.file(key=KEY))
    shares = [found["share_slots"] for found in status(daemon)["links"]]
    assert shares == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=1 / 65536)
    with rightful_sources(lab):
        assert set(check(lab, daemon)) == {"isp-a", "isp-b", "isp-c"}
        reach_router(lab)


def test_five_odd_links(make_lab: MakeLab) -> None:
    """Rates without a common divisor, links of one family, a small MTU, a delegated prefix."""
    links = (
        link("a", 1, 3 * MBIT, shaped=False),
        link("b", 2, 5 * MBIT, families=(4,), shaped=False),
        link("c", 3, 7 * MBIT, families=(6,), shaped=False),
        link("d", 4, 11 * MBIT, mtu=1400, shaped=False),
        link("e", 5, 13 * MBIT, delegated=True, shaped=False),
    )
    delegated = links[4].delegated
    assert delegated is not None
    lab = make_lab(Topology(links, (lan(hosts=8, delegated=[delegated]),), servers(5)))
    daemon = lab.run(lab.file(key=KEY))
    told = {found["name"]: found for found in status(daemon)["links"]}
    four = {name: told[name]["share_slots"] for name in "abde"}
    assert four == pytest.approx({"a": 3 / 32, "b": 5 / 32, "d": 11 / 32, "e": 13 / 32}, abs=1e-4)
    six = {name: told[name]["share_slots_ipv6"] for name in "acde"}
    assert six == pytest.approx({"a": 3 / 34, "c": 7 / 34, "d": 11 / 34, "e": 13 / 34}, abs=1e-4)
    with rightful_sources(lab):
        assert set(check(lab, daemon)) == set("abcde")
        reach_router(lab)


def test_overlapping_networks(make_lab: MakeLab) -> None:
    """
    client ── router ─┬─ a (192.0.2.0/24, we are .2, it is .1) ─┬─ server
                      └─ b (the same network and addresses)  ───┘
    """
    links = tuple(link(name, n, n * 10 * MBIT, shaped=False, **OVERLAPPING)  # type: ignore[arg-type]
                  for n, name in enumerate(("a", "b"), 1))  # fmt: skip
    lab = make_lab(Topology(links, (lan(),), servers(4)))
    daemon = lab.run(lab.file(key=KEY))
    with rightful_sources(lab):
        assert set(check(lab, daemon)) == {"a", "b"}
        reach_router(lab)


@pytest.mark.parametrize("network", [OVERLAPPING, {}], ids=["one network", "two networks"])
def test_two_links_on_one_interface(make_lab: MakeLab, network: dict[str, object]) -> None:
    """
    client ── router ── one Ethernet segment ─┬─ a ─┬─ server     each provider with its own
                                              └─ b ─┘             gateway and address for us
    """
    links = tuple(
        link(name, n, n * 10 * MBIT, interface="wan", shaped=False, host=n, **network)  # type: ignore[arg-type]
        for n, name in enumerate(("a", "b"), 1)
    )
    lab = make_lab(Topology(links, (lan(),), servers(4)))
    told: dict[str, object] = {}
    if network:
        # The gateways are in one network: only the file can say which address is whose.
        told = {way.name: {"nat": "snat", "address": [str(way.address(f)) for f in (4, 6)]}
                for way in links}  # fmt: skip
    daemon = lab.run(file_with(lab, told, key=KEY))  # type: ignore[arg-type]
    with rightful_sources(lab):
        assert set(check(lab, daemon)) == {"a", "b"}
        reach_router(lab)
        for way, family in product(links, (4, 6)):
            for target in lab.topology.serving(family):  # type: ignore[arg-type]
                with Talk(lab.router, way.address(family), lab.server, target) as talk:  # type: ignore[arg-type]
                    assert link_of(lab, talk.goes_on()) == way.name


@pytest.mark.parametrize("attachment", ["bridge", "vlan"])
def test_lan_behind(make_lab: MakeLab, attachment: str) -> None:
    """
    client ── bridge, or VLAN 10 ── router ─┬─ a ─┬─ server
                                            └─ b ─┘
    """
    links = (link("a", 1, 10 * MBIT, shaped=False), link("b", 2, 20 * MBIT, shaped=False))
    lab = make_lab(Topology(links, (lan(attachment=attachment),), servers(4)))  # type: ignore[arg-type]
    daemon = lab.run(lab.file(key=KEY))
    with rightful_sources(lab):
        assert set(check(lab, daemon)) == {"a", "b"}
        reach_router(lab)


def test_another_mask(make_lab: MakeLab) -> None:
    """Eight bits in the middle, as where the high ones are somebody else's."""
    lab = make_lab(uplinks(10 * MBIT, 20 * MBIT, shaped=False))
    daemon = lab.run(lab.file(key=KEY, mark_mask=0x00FF0000))
    used = set()
    with rightful_sources(lab):
        for source, target in lab.topology.pairs():
            with call(lab, target, source=source) as talk:
                name = link_of(lab, talk.goes_on())
                used.add(name)
                assert tracked(lab, f"mark={number(lab, name) << 16}", f"sport={talk.ports[0]}")
    assert used == {"isp-a", "isp-b"}
    assert counted(lab, "fallback") == 0
    assert status(daemon)["faults"] == []
