"""The lab itself, with a plain router in the place of the one under test.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from dataplane.lab import Lab, LabError, Topology, lan, link, namespaces, servers, sweep, uplinks
from dataplane.lab.topology import MBIT, Family

MakeLab = Callable[[Topology], Lab]

OVERLAPPING = IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8:1::/64")


def five_odd() -> Topology:
    """Rates that share no divisor, one link of each family alone, one with a small MTU."""
    links = (
        link("a", 1, 3 * MBIT),
        link("b", 2, 5 * MBIT, families=(4,)),
        link("c", 3, 7 * MBIT, families=(6,)),
        link("d", 4, 11 * MBIT, mtu=1400),
        link("e", 5, 13 * MBIT, upload_bps=MBIT, delegated=True),
    )
    lans = (lan(hosts=8, delegated=[p for x in links if (p := x.delegated)]),)
    return Topology(links, lans, servers(3))


def overlapping() -> Topology:
    """Two modems that both hand out one network, and even one address."""
    net4, net6 = OVERLAPPING
    links = tuple(
        link(name, number, 10 * MBIT, network4=net4, network6=net6)
        for number, name in enumerate(("a", "b"), 1)
    )
    return Topology(links, (lan(),), servers(2))


def shared_interface() -> Topology:
    """Two gateways in one Ethernet segment and one network, each with an address for us."""
    net4, net6 = OVERLAPPING
    links = tuple(
        link(name, n, 10 * MBIT, interface="wan", network4=net4, network6=net6, host=n)
        for n, name in enumerate(("a", "b"), 1)
    )
    return Topology(links, (lan(),), servers(2))


def bridge_and_dmz() -> Topology:
    """The LAN behind a bridge, and a second network."""
    lans = (lan(attachment="bridge"), lan("dmz", 1, hosts=2))
    return Topology((link("a", 1, 10 * MBIT),), lans, servers(1))


def vlan() -> Topology:
    return Topology((link("a", 1, 10 * MBIT),), (lan(attachment="vlan"),), servers(1))


def ping(lab: Lab, family: Family, host: str = "client") -> bool:
    """Whether the last host of a LAN hears the last server."""
    lans = {found.name: found for found in lab.topology.lans}
    source = str(lans[host].clients(family)[-1])
    target = str(lab.topology.serving(family)[-1])
    done = lab[host].run("ping", "-n", "-c1", "-W2", "-I", source, target, check=False)
    return done.returncode == 0


@pytest.mark.parametrize(
    "layout",
    [
        lambda: uplinks(10 * MBIT, 20 * MBIT),
        lambda: uplinks(10 * MBIT, 20 * MBIT, families=(6,)),
        five_odd,
        overlapping,
        shared_interface,
        bridge_and_dmz,
        vlan,
    ],
    ids=["plain", "ipv6 only", "five odd", "overlapping", "shared", "bridge and dmz", "vlan"],
)
def test_every_layout_passes_traffic_over_each_link(make_lab: MakeLab, layout) -> None:  # type: ignore[no-untyped-def]
    lab = make_lab(layout())
    for chosen in lab.topology.links:
        lab.plain(chosen.name)
        for family in chosen.families:
            for network in lab.topology.lans:
                assert ping(lab, family, network.name), (chosen.name, family, network.name)


def test_a_shell_without_sbin_will_do(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a plain `su`: what the lab is built with is found nonetheless."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    lab = make_lab(uplinks(10_000_000, shaped=True))
    for tool in ("ethtool", "nft", "tc"):
        assert lab.router.run(tool, "--version" if tool != "tc" else "-V").stdout


def test_fresh_router_forwards_nothing(two_links: Lab) -> None:
    assert not ping(two_links, 4)
    assert two_links.router.run("ip", "route", "show", "default").stdout == ""
    assert two_links.router.run("nft", "list", "tables").stdout == ""


def test_provider_answers_no_private_source(two_links: Lab) -> None:
    two_links.plain("isp-a")
    assert ping(two_links, 4)
    two_links.router.run("nft", "flush", "ruleset")
    assert not ping(two_links, 4)


def test_delegated_prefix_needs_no_translation(make_lab: MakeLab) -> None:
    lab = make_lab(five_odd())
    lab.plain("e")
    lab.router.run("nft", "flush", "ruleset")
    prefix = lab.topology.link("e").delegated
    assert prefix is not None
    source = str(lab.topology.lans[0].delegated_clients(prefix)[0])
    target = str(lab.topology.serving(6)[0])
    lab.client.run("ping", "-n", "-c1", "-W2", "-I", source, target)


def test_no_trace_is_left(two_links: Lab) -> None:
    names = [two_links[role].name for role in two_links.roles]
    sleeper = two_links.client.start("sleep", "1000")
    two_links.file()
    two_links.close()
    assert sleeper.returncode is not None
    assert not set(names) & set(os.listdir("/run/netns"))
    assert not two_links.directory.exists()
    two_links.close()


def test_removed_after_an_exception() -> None:
    lab = Lab(uplinks(MBIT))
    names: list[str] = []

    def fail() -> None:
        with lab:
            names.extend(lab[role].name for role in lab.roles)
            assert set(names) <= set(os.listdir("/run/netns"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names
    assert not set(names) & set(os.listdir("/run/netns"))


def test_half_a_lab_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/run/netns"))
    broken = link("a", 1, MBIT, interface="a name that no interface can have")
    with pytest.raises(LabError, match="a name that"), Lab(Topology((broken,), (lan(),), ())):
        pytest.fail("it was built")
    ours = {name for name in os.listdir("/run/netns") if name.startswith(f"evl-{os.getpid()}-")}
    assert ours <= before


MAKER = """
import sys, time
from dataplane.lab import Lab, uplinks
with Lab(uplinks(1_000_000)) as lab:
    lab.client.start("sleep", "1000")
    print(lab.client.name, lab.directory, flush=True)
    time.sleep(1000)
"""


def maker() -> tuple[subprocess.Popen[str], str, Path]:
    """Another process with a lab, the name of a namespace of it, and its directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER],
        stdout=subprocess.PIPE,
        text=True,
        env=namespaces.environment(),
    )
    assert process.stdout is not None
    name, directory = process.stdout.readline().split()
    return process, name, Path(directory)


def test_leftovers_of_a_killed_maker_are_swept() -> None:
    process, name, directory = maker()
    assert name not in sweep(), "its maker lives"
    process.kill()
    process.communicate()
    assert Path("/run/netns", name).exists()
    sweep()
    assert not Path("/run/netns", name).exists()
    assert not directory.exists()


def test_interrupted_maker_leaves_nothing() -> None:
    process, name, directory = maker()
    try:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert not Path("/run/netns", name).exists()
    assert not directory.exists()
