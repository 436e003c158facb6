"""Links that learn where they are: leases, router advertisements, and no gateway at all.

client ── router ─┬─ isp-a ─────────────────────┬─ server, and public resolvers
                  └─ isp-b (DHCP, RA, or tun) ──┘
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from dataplane.lab import Daemon, Lab, Topology, faults, lan, servers
from dataplane.lab import link as isp
from dataplane.lab.topology import MBIT
from tests.lab.conftest import MakeLab
from tests.lab.leases import Client, Tunnel, advertising, need, serving
from tests.lab.links import (
    FAST,
    KEY,
    becomes,
    check_pairs,
    check_settings,
    goes_on_by,
    homes,
    is_down_for,
    is_quiet,
    is_well,
    link,
    undone,
    watched,
)
from tests.lab.talk import Talk, call, eventually, file_with, link_of, status

FIRST = IPv4Interface("198.51.100.2/24")
SECOND = IPv4Interface("198.18.77.20/24")
# The lab gives both to the router, and neither is its own before it has the lease.
LEASED = (FIRST, IPv4Interface(SECOND.ip))


def _file(lab: Lab, **keys: object) -> Path:
    found: Path = file_with(lab, {"isp-b": keys}, {"probe": FAST}, key=KEY)
    return found


def _topology(**keys: object) -> Topology:
    two = replace(isp("isp-b", 2, 20 * MBIT, shaped=False), **keys)  # type: ignore[arg-type]
    return Topology((isp("isp-a", 1, 10 * MBIT, shaped=False), two), (lan(),), servers(4))


def _default_of(lab: Lab, family: int) -> str:
    """The way of isp-b in its own table."""
    told = lab.router.run("ip", f"-{family}", "route", "show", "table", "7002").stdout
    return next((line for line in told.splitlines() if line.startswith("default")), "")


def test_a_lease_comes_changes_and_goes(make_lab: MakeLab) -> None:
    """Another network with another gateway: routes, translation and connections follow."""
    need("dnsmasq", "udhcpc")
    plain = isp("isp-b", 2, 20 * MBIT).addresses
    lab = make_lab(_topology(addresses=(*LEASED, plain[1])))
    provider, gateway = lab["isp-b"], SECOND.network.network_address + 1
    provider.run("ip", "address", "add", f"{gateway}/24", "dev", "link")
    lab.server.run("ip", "route", "add", f"{SECOND.ip}/32", "via", "198.19.2.1")
    lab.router.run("ip", "-4", "address", "flush", "dev", "wan2")
    with undone(lab), Client(lab, "wan2") as client:
        daemon = lab.run(_file(lab, gateway="auto"))
        with watched(lab):
            becomes(daemon, "isp-b", 6)
            assert link(daemon)["state"] == "up", "there is IPv6"
            with serving(lab, "isp-b", FIRST, "198.51.100.1"):
                becomes(daemon, "isp-b", 4, 6)
            assert _default_of(lab, 4) == (
                f"default via 198.51.100.1 dev wan2 proto 201 src {FIRST.ip} metric 100 "
            )
            before = homes(lab, daemon)
            check_pairs(lab, daemon, ["isp-a", "isp-b"])
            place = next(
                n
                for n, (source, _) in enumerate(lab.topology.pairs())
                if before[n] == "isp-b" and source.version == 4
            )
            source, target = lab.topology.pairs()[place]
            with Talk(lab.client, source, lab.server, target) as talk:
                assert talk.goes_on() == FIRST.ip
                with serving(lab, "isp-b", SECOND, gateway):
                    client.signal(signal.SIGUSR1)
                    eventually(lambda: f"bound {SECOND} {gateway}" in client.said, "renewed")
                new = f"default via {gateway} dev wan2 proto 201 src {SECOND.ip} metric 100 "
                eventually(lambda: _default_of(lab, 4) == new)
                becomes(daemon, "isp-b", 4, 6)
                with _unseen(lab, FIRST):
                    assert homes(lab, daemon) == before
                    check_pairs(lab, daemon, ["isp-a", "isp-b"])
                    # It may have gone by A meanwhile, where it stays.
                    talk.peer = None
                    assert talk.goes_on() != FIRST.ip
                    with call(lab, target, source=source) as other:
                        assert other.goes_on() == SECOND.ip
                client.signal(signal.SIGUSR2)
                eventually(lambda: client.said[-1].startswith("deconfig"))
                becomes(daemon, "isp-b", 6)
                goes_on_by(lab, talk, "isp-a")
            is_well(daemon)
        client.close()
        _put_back(lab)
        assert daemon.stop(signal.SIGINT) == 0


def test_a_leased_interface_is_bounced(make_lab: MakeLab) -> None:
    """IPv4 alone. Down and up again: the lease's route went, and comes with the next lease."""
    need("dnsmasq", "udhcpc")
    lab = make_lab(
        Topology(
            (
                isp("isp-a", 1, 10 * MBIT, shaped=False, families=(4,)),
                isp("isp-b", 2, 20 * MBIT, shaped=False, families=(4,)),
            ),
            (lan(families=(4,)),),
            servers(4, (4,)),
        )
    )
    lab.router.run("ip", "address", "flush", "dev", "wan2")
    with undone(lab), Client(lab, "wan2") as client, serving(lab, "isp-b", FIRST, "198.51.100.1"):
        eventually(lambda: any(one.startswith("bound") for one in client.said))
        daemon = lab.run(_file(lab, gateway="auto"))
        becomes(daemon, "isp-b", 4)
        before = homes(lab, daemon)
        with watched(lab):
            lab.router.run("ip", "link", "set", "dev", "wan2", "down")
            is_down_for(daemon, "isp-b", "interface wan2 is not enabled")
            lab.router.run("ip", "link", "set", "dev", "wan2", "up")
            is_down_for(daemon, "isp-b", "no IPv4 gateway is known")
            assert set(homes(lab, daemon)) == {"isp-a"}
            client.signal(signal.SIGUSR1)
            becomes(daemon, "isp-b", 4)
            assert homes(lab, daemon) == before
            check_pairs(lab, daemon, ["isp-a", "isp-b"])
            lab.router.run("ip", "address", "flush", "dev", "wan2")
            is_down_for(daemon, "isp-b", "interface wan2 has no IPv4 address")
            check_pairs(lab, daemon, ["isp-a"])
            is_quiet(daemon)
        client.close()
        _put_back(lab)
        assert daemon.stop(signal.SIGINT) == 0


@contextmanager
def _unseen(lab: Lab, source: IPv4Interface) -> Iterator[None]:
    """The provider of isp-b sees nothing of that source meanwhile."""
    chain = f'type filter hook ingress device "link" priority 0;\nip saddr {source.ip} counter'
    text = f"table netdev unseen {{\nchain seen {{\n{chain}\n}}\n}}\n"
    lab["isp-b"].run("nft", "-f", "-", stdin=text)
    yield
    listed = lab["isp-b"].run("nft", "list", "table", "netdev", "unseen").stdout
    assert "counter packets 0 " in listed, listed
    lab["isp-b"].run("nft", "delete", "table", "netdev", "unseen")


def _put_back(lab: Lab) -> None:
    """As the client found it: an interface without IPv4."""
    lab.router.run("ip", "-4", "route", "flush", "dev", "wan2", "table", "main", "proto", "dhcp")
    lab.router.run("ip", "-4", "address", "flush", "dev", "wan2")


@pytest.mark.parametrize("end", ["withdrawn", "run out"])
def test_ipv6_follows_the_router_advertisements(make_lab: MakeLab, end: str) -> None:
    """The interface gives itself the address that the lab would have."""
    need("dnsmasq")
    lab = make_lab(_topology())
    six = lab.topology.link("isp-b").addresses[1]
    lab.router.run("ip", "address", "del", str(six), "dev", "wan2")
    lab.router.run("ip", "token", "set", "::2", "dev", "wan2")
    prefix = six.network.network_address
    daemon = lab.run(_file(lab, gateway6="auto"))
    with watched(lab):
        becomes(daemon, "isp-b", 4)
        check_settings(lab, "wan2")
        check_pairs4(lab, ["isp-a", "isp-b"])
        with advertising(lab, "isp-b", prefix, 1800 if end == "withdrawn" else 5):
            becomes(daemon, "isp-b", 4, 6)
            assert _default_of(lab, 6).startswith("default via fe80::")
            before = homes(lab, daemon)
            check_pairs(lab, daemon, ["isp-a", "isp-b"])
            gateways = [one for one in link(daemon)["targets"] if one["target"] == "gateway"]
            eventually(lambda: all(one["ok"] for one in link(daemon)["targets"]))
            assert {one["family"] for one in gateways} == {4, 6}
        if end == "withdrawn":
            with advertising(lab, "isp-b", prefix, 0):
                becomes(daemon, "isp-b", 4)
        else:
            becomes(daemon, "isp-b", 4)
        pairs = zip(homes(lab, daemon), lab.topology.pairs(), strict=True)
        assert {name for name, (source, _) in pairs if source.version == 6} == {"isp-a"}
        check_pairs4(lab, ["isp-a", "isp-b"])
        with advertising(lab, "isp-b", prefix, 1800):
            becomes(daemon, "isp-b", 4, 6)
            assert homes(lab, daemon) == before
            lab.router.run("ip", "link", "set", "dev", "wan2", "down")
            is_down_for(daemon, "isp-b", "interface wan2 is not enabled")
            lab.router.run("ip", "link", "set", "dev", "wan2", "up")
            becomes(daemon, "isp-b", 4, 6)
            assert homes(lab, daemon) == before
            is_well(daemon)


def check_pairs4(lab: Lab, names: list[str]) -> None:
    """New IPv4 connections take each of the links."""
    used = set()
    for source, target in lab.topology.pairs():
        if source.version == 4:
            with Talk(lab.client, source, lab.server, target) as talk:
                used.add(link_of(lab, talk.goes_on()))
    assert used == set(names)


def test_a_link_without_a_gateway(make_lab: MakeLab) -> None:
    """A tun interface, as modems and tunnels make it: routes and probes need no gateway."""
    need("/dev/net/tun")
    lab = make_lab(_topology(point_to_point=True))
    tunnel = Tunnel(lab, "isp-b")
    with tunnel:
        daemon = lab.run(_file(lab))
        becomes(daemon, "isp-b", 4, 6)
        assert _default_of(lab, 4).startswith("default dev wan2 proto 201 scope link src")
        assert _default_of(lab, 6).startswith("default dev wan2 proto 201")
        before = homes(lab, daemon)
        with watched(lab) as attend:
            check_pairs(lab, daemon, ["isp-a", "isp-b"])
            eventually(lambda: set(_answers(daemon, beyond=True)) == {True})
            assert set(_answers(daemon, beyond=False)) <= {None}, "there is nobody to ask"
            is_well(daemon)
            with faults.dropping(lab, "isp-b"):
                is_down_for(daemon, "isp-b", "no answer from")
                assert "gateway" not in link(daemon)["why"]
                check_pairs(lab, daemon, ["isp-a"])
            becomes(daemon, "isp-b", 4, 6)
            assert homes(lab, daemon) == before
            tunnel.close()
            is_down_for(daemon, "isp-b", "interface wan2 does not exist")
            check_pairs(lab, daemon, ["isp-a"])
            with Tunnel(lab, "isp-b"):
                attend("isp-b")
                becomes(daemon, "isp-b", 4, 6)
                assert homes(lab, daemon) == before
                check_pairs(lab, daemon, ["isp-a", "isp-b"])
                is_well(daemon)


def _answers(daemon: Daemon, *, beyond: bool) -> list[bool | None]:
    """Whether isp-b's targets answered last."""
    told = link(daemon)["targets"]
    return [one["ok"] for one in told if (one["target"] != "gateway") is beyond]


def test_a_gateway_that_is_not_in_the_interfaces_network(two_links: Lab) -> None:
    """The network was changed, the file was not: down with the words, and no such file is taken."""
    lab = two_links
    file = _file(lab)
    daemon = lab.run(file)
    before = homes(lab, daemon)
    addresses = [str(address) for address in lab.topology.link("isp-b").addresses]
    with watched(lab):
        for address in addresses:
            lab.router.run("ip", "address", "del", address, "dev", "wan2")
        # Until then a probe may leave with the next address, which is the link's, too.
        is_down_for(daemon, "isp-b", "interface wan2 has no IPv4 address")
        lab.router.run("ip", "address", "add", "10.77.0.2/24", "dev", "wan2")
        is_down_for(daemon, "isp-b", "gateway 198.51.100.1 is in no network of wan2")
        assert any("198.51.100.1" in fault for fault in status(daemon)["faults"])
        check_pairs(lab, daemon, ["isp-a"])
        daemon.reload()
        words = "link.isp-b.gateway: 198.51.100.1 is not in a network of wan2 (10.77.0.0/24)"
        eventually(lambda: words in daemon.log)
        assert "reload refused" in daemon.log
        check_pairs(lab, daemon, ["isp-a"])
        # The same at a start is a warning: a lease may yet come.
        daemon.stop()
        daemon = lab.run(file)
        assert words in daemon.log
        is_down_for(daemon, "isp-b", "gateway 198.51.100.1 is in no network of wan2")
        check_pairs(lab, daemon, ["isp-a"])
        lab.router.run("ip", "address", "del", "10.77.0.2/24", "dev", "wan2")
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            lab.router.run("ip", "address", "add", address, "dev", "wan2", *nodad)
        becomes(daemon, "isp-b", 4, 6)
        assert homes(lab, daemon) == before
        check_pairs(lab, daemon, ["isp-a", "isp-b"])
        is_well(daemon)


@pytest.mark.parametrize("told", ["auto", "static"])
def test_an_address_alone_in_its_network(make_lab: MakeLab, told: str) -> None:
    """As some providers lease them: the gateway is in no network, and on the wire all the same."""
    lab = make_lab(_topology())
    two = lab.topology.link("isp-b")
    lab.router.run("ip", "address", "flush", "dev", "wan2", "scope", "global")
    for family, length in ((4, 32), (6, 128)):
        address, gateway = two.address(family), two.gateway(family)  # type: ignore[arg-type]
        lab.router.run("ip", "address", "add", f"{address}/{length}", "dev", "wan2")
        if told == "auto":
            line = f"-{family} route add default via {gateway} dev wan2 onlink"
            lab.router.run("ip", *line.split())
    keys = {"gateway": "auto", "gateway6": "auto"} if told == "auto" else {}
    with undone(lab):
        daemon = lab.run(_file(lab, **keys))
        with watched(lab):
            becomes(daemon, "isp-b", 4, 6)
            check_pairs(lab, daemon, ["isp-a", "isp-b"])
            with faults.dropping(lab, "isp-b"):
                is_down_for(daemon, "isp-b", "no answer from", "the gateway answers")
            becomes(daemon, "isp-b", 4, 6)
            is_well(daemon)
            assert status(daemon)["mended"] == 0
        assert daemon.stop(signal.SIGINT) == 0
