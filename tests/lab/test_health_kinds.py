"""Each kind of probe decides its link, by the link's own path; and how many targets it takes.

client ── router ─┬─ isp-a ─┬─ server, and public resolvers
                  └─ isp-b ─┘
"""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

import pytest

from dataplane.config.model import PUBLIC_RESOLVERS
from dataplane.lab import Daemon, Lab, Topology, faults, lan, servers
from dataplane.lab import link as uplink
from dataplane.lab.topology import BOTH, MBIT
from tests.lab.beyond import (
    KEY,
    QUICK,
    SERVER,
    NameServer,
    asked,
    is_,
    link,
    listening,
    probed,
    states,
    takes,
)
from tests.lab.conftest import TWO_LINKS, MakeLab
from tests.lab.talk import eventually, file_with, rightful_sources

QUAD9 = ip_address("9.9.9.9")
ONE_NETWORK = {"network4": IPv4Network("192.0.2.0/24"), "network6": IPv6Network("2001:db8:1::/64")}


def target(daemon: Daemon) -> dict[str, Any]:
    """The only target of isp-b."""
    (found,) = link(daemon)["targets"]
    return dict(found)


def is_well(daemon: Daemon, kind: str, text: str) -> None:
    """isp-b is up, since that target of that kind answers."""
    eventually(is_(daemon, "up"))
    # What comes too late is told until the next answer in time.
    found = eventually(lambda: (one := target(daemon))["ok"] and not one["said"] and one)
    assert (found["kind"], found["target"]) == (kind, text)
    assert 0 < found["rtt_ms"] < 200
    assert link(daemon)["why"] == ""


def is_left(daemon: Daemon, lab: Lab, said: str, why: str) -> None:
    """isp-b, and nothing else, is down, and `status` has these words for it."""
    eventually(is_(daemon, "down"))
    assert states(daemon) == {"isp-a": "up", "isp-b": "down"}
    assert link(daemon)["why"] == why
    assert target(daemon)["ok"] is False
    assert said in target(daemon)["said"]
    assert takes(lab) == {"isp-a"}


def test_arp(make_lab: MakeLab) -> None:
    """An IPv4 link whose gateway does not even answer ARP any more."""
    links = tuple(uplink(f"isp-{name}", n, n * 10 * MBIT, families=(4,), shaped=False)
                  for n, name in enumerate("ab", 1))  # fmt: skip
    lab = make_lab(Topology(links, (lan(families=(4,)),), servers(4, (4,))))
    daemon = lab.run(probed(lab, {"kind": "arp", **QUICK}))

    def carries() -> list[str]:
        return list(link(daemon)["carries"])

    with rightful_sources(lab):
        found = eventually(lambda: (one := target(daemon))["ok"] and one)
        assert (found["kind"], found["target"], found["family"]) == ("arp", "gateway", 4)
        assert carries() == ["ipv4"]
        with faults.dead_gateway(lab, "isp-b"):
            is_left(daemon, lab, "no answer within 200 ms", "no answer from gateway")
        eventually(lambda: carries() == ["ipv4"])
        assert takes(lab) == {"isp-a", "isp-b"}
        assert target(daemon)["ok"] is True


def test_arp_of_a_link_with_both_families(two_links: Lab) -> None:
    """IPv6 has nobody to ask, so it goes with IPv4."""
    lab = two_links
    daemon = lab.run(probed(lab, {"kind": "arp", **QUICK}))
    is_well(daemon, "arp", "gateway")
    with rightful_sources(lab):
        with faults.dead_gateway(lab, "isp-b"):
            is_left(daemon, lab, "no answer within 200 ms", "no answer from gateway")
        is_well(daemon, "arp", "gateway")
        assert takes(lab) == {"isp-a", "isp-b"}


def test_tcp(two_links: Lab) -> None:
    """A port that takes connections, one that refuses them, and a path that is silent."""
    lab = two_links
    text = f"{SERVER}:8080"
    with rightful_sources(lab):
        with listening(lab, 8080):
            daemon = lab.run(probed(lab, {"kind": "tcp", "targets": [text], **QUICK}))
            is_well(daemon, "tcp", text)
            with faults.dropping(lab, "isp-b"):
                is_left(daemon, lab, "no answer within 200 ms", f"no answer from {text}")
            is_well(daemon, "tcp", text)
            assert takes(lab) == {"isp-a", "isp-b"}
        is_left(daemon, lab, "refused", f"no answer from {text}")


def test_dns(two_links: Lab) -> None:
    """A name server that hears the question and says nothing."""
    lab = two_links
    with NameServer(lab) as server, rightful_sources(lab):
        daemon = lab.run(probed(lab, {"kind": "dns", "targets": [SERVER], **QUICK}))
        is_well(daemon, "dns", SERVER)
        server.delay_s = None
        is_left(daemon, lab, "no answer within 200 ms", f"no answer from {SERVER}")
        heard = server.heard
        eventually(lambda: server.heard > heard, "it is asked while it is down, too")
        server.delay_s = 0.0
        is_well(daemon, "dns", SERVER)
        assert takes(lab) == {"isp-a", "isp-b"}


def test_two_of_two_are_needed(two_links: Lab) -> None:
    """One dead target is enough, where the file says so."""
    lab = two_links
    keys = {"targets": ["1.1.1.1", "9.9.9.9"], "need": 2, **QUICK}
    daemon = lab.run(probed(lab, keys))
    eventually(is_(daemon, "up"))
    with faults.silent_target(lab, QUAD9, "isp-b"):
        eventually(is_(daemon, "down"))
        assert states(daemon)["isp-a"] == "up"
        assert link(daemon)["why"] == "no answer from 9.9.9.9"
        assert {one["target"]: one["ok"] for one in link(daemon)["targets"]} == {
            "1.1.1.1": True,
            "9.9.9.9": False,
        }
        assert takes(lab) == {"isp-a"}
    eventually(is_(daemon, "up"))


def shared(network: dict[str, Any]) -> Topology:
    links = tuple(
        uplink(f"isp-{name}", n, n * 10 * MBIT, interface="wan", shaped=False, host=n, **network)
        for n, name in enumerate("ab", 1)
    )
    return Topology(links, (lan(),), servers(4))


@pytest.mark.parametrize(
    "topology",
    [TWO_LINKS, shared({}), shared(ONE_NETWORK)],
    ids=["two interfaces", "one interface", "one interface and network"],
)
def test_probes_leave_by_their_own_link(make_lab: MakeLab, topology: Topology) -> None:
    """Whatever the routing table says: here it has all targets behind isp-a."""
    lab = make_lab(topology)
    told: dict[str, dict[str, object]] = {}
    if topology.link("isp-a").gateway(4) in topology.link("isp-b").addresses[0].network:
        # The gateways are in one network: only the file can say which address is whose.
        told = {way.name: {"nat": "snat", "address": [str(way.address(f)) for f in BOTH]}
                for way in topology.links}  # fmt: skip
    by_a = topology.link("isp-a")
    for resolver in PUBLIC_RESOLVERS:
        via = by_a.gateway(6 if resolver.version == 6 else 4)
        route = (str(resolver), "via", str(via), "dev", by_a.interface)
        lab.router.run("ip", f"-{resolver.version}", "route", "add", *route)
    with ExitStack() as stack:
        counts = {name: stack.enter_context(asked(lab, name)) for name in ("isp-a", "isp-b")}
        daemon = lab.run(file_with(lab, told, sections={"probe": QUICK}, key=KEY))
        stack.enter_context(rightful_sources(lab))
        for name, other in (("isp-b", "isp-a"), ("isp-a", "isp-b")):
            with faults.dropping(lab, name):
                eventually(is_(daemon, "down", name))
                before = counts[name](), counts[other]()
                eventually(lambda name=name, n=before[0]: counts[name]() > n + 3)  # type: ignore[misc]
                assert counts[other]() > before[1]
                assert states(daemon) == {name: "down", other: "up"}
                assert takes(lab) == {other}
            eventually(is_(daemon, "up", name))
        # Twice as often while rounds are bad, so about the same: nobody was asked by another.
        assert counts["isp-a"]() < 3 * counts["isp-b"]() < 9 * counts["isp-a"]()
