"""The lab's ways to break a link, over a plain router, and what the measurement makes of them.

client ── router ─┬─ isp-a ─┬─ server, and the public resolvers
                  └─ isp-b ─┘
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import ip_address

import pytest

from dataplane.config.model import PUBLIC_RESOLVERS
from dataplane.lab import Lab, LabError, Topology, faults, lan, link, servers, uplinks
from dataplane.lab.calling import Caller
from dataplane.lab.failover import measure, outage
from dataplane.lab.topology import MBIT, Address, Family
from dataplane.lab.traffic import Connection, Load, connections, serve
from dataplane.lab.witness import Witness
from tests.lab.talk import eventually, status

MakeLab = Callable[[Topology], Lab]
FAMILIES: tuple[Family, ...] = (4, 6)
FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=["ipv4", "ipv6"])
PORT = 5001


def answers(lab: Lab, link: str, target: Address, count: int = 1) -> int:
    """How many of the router's pings by that link are answered."""
    interface = lab.topology.link(link).interface
    done = lab.router.run(
        *("ping", "-n", f"-c{count}", "-i0.01", "-W0.3", "-I", interface, str(target)), check=False
    )
    return done.stdout.count(" bytes from ")


def resolver(family: Family) -> Address:
    return next(address for address in PUBLIC_RESOLVERS if address.version == family)


def routed(lab: Lab, link: str) -> None:
    """The router reaches the targets by that link, whatever happened to its routes."""
    chosen = lab.topology.link(link)
    for family in chosen.families:
        for target in (resolver(family), lab.topology.serving(family)[0]):
            via = ("via", str(chosen.gateway(family)), "dev", chosen.interface)
            lab.router.run("ip", "route", "replace", str(target), *via)


@FAMILY
@pytest.mark.parametrize("name", ["isp-a", "isp-b"])
def test_public_resolvers_answer_by_every_link(lab: Lab, name: str, family: Family) -> None:
    for target in PUBLIC_RESOLVERS:
        if target.version == family:
            via = str(lab.topology.link(name).gateway(family))
            interface = lab.topology.link(name).interface
            lab.router.run("ip", "route", "replace", str(target), "via", via, "dev", interface)
            assert answers(lab, name, target)


def test_resolvers_are_no_servers(lab: Lab) -> None:
    assert not set(lab.topology.servers) & set(PUBLIC_RESOLVERS)
    assert not {server for _, server in lab.topology.pairs()} & set(PUBLIC_RESOLVERS)


@pytest.mark.parametrize(
    ("fault", "gateway", "beyond"),
    [
        (faults.dropping, True, False),
        (faults.shy_gateway, False, True),
        (faults.dead_gateway, False, False),
        (faults.no_carrier, False, False),
        (faults.interface_down, False, False),
        (lambda lab, link: faults.losing(lab, link, 1.0), False, False),
        (lambda lab, link: faults.silent_target(lab, resolver(4), link), True, True),
    ],
    ids=["dropping", "shy", "dead", "carrier", "down", "losing", "another target"],
)
def test_a_fault_is_what_it_says_and_is_undone(
    two_links: Lab, fault: faults.Fault, gateway: bool, beyond: bool
) -> None:
    lab = two_links
    chosen = lab.topology.link("isp-b")
    before = everything(lab)
    for family in FAMILIES:
        target = lab.topology.serving(family)[0]
        routed(lab, "isp-b")
        with fault(lab, "isp-b"):
            assert bool(answers(lab, "isp-b", chosen.gateway(family))) == gateway
            assert bool(answers(lab, "isp-b", target)) == beyond
            assert answers(lab, "isp-a", lab.topology.link("isp-a").gateway(family))
        routed(lab, "isp-b")
        eventually(lambda family=family: answers(lab, "isp-b", chosen.gateway(family)))  # type: ignore[misc]
        eventually(lambda target=target: answers(lab, "isp-b", target))  # type: ignore[misc]
    assert everything(lab) == before


def everything(lab: Lab) -> dict[str, list[str]]:
    """What the provider of isp-b holds that a fault might change."""
    provider = lab["isp-b"]
    held = {}
    for command in ("ip -4 route", "ip -6 route", "ip -br address", "nft list ruleset"):
        lines = provider.run(*command.split()).stdout.splitlines()
        held[command] = sorted(line.strip() for line in lines if "fe80::" not in line)
    held["ip -br address"] = [
        " ".join(re.sub("@.*", "", word) for word in line.split() if not word.startswith("fe80"))
        for line in provider.run("ip", "-br", "address").stdout.splitlines()
    ]
    return held


@FAMILY
def test_one_target_is_silent(two_links: Lab, family: Family) -> None:
    lab = two_links
    target = resolver(family)
    other = lab.topology.serving(family)[0]
    routed(lab, "isp-b")
    with faults.silent_target(lab, target):
        assert not answers(lab, "isp-b", target)
        assert answers(lab, "isp-b", other)
    assert answers(lab, "isp-b", target)


@FAMILY
def test_a_share_is_lost(two_links: Lab, family: Family) -> None:
    lab = two_links
    target = resolver(family)
    other = lab.topology.serving(family)[0]
    routed(lab, "isp-b")
    assert answers(lab, "isp-b", target, 20) == 20  # neighbours are known from here on
    with faults.losing(lab, "isp-b", 0.5, target):
        assert 50 < answers(lab, "isp-b", target, 200) < 150
        assert answers(lab, "isp-b", other, 20) == 20
    with faults.losing(lab, "isp-b", 0.0, target):
        assert answers(lab, "isp-b", target, 20) == 20
    with pytest.raises(ValueError, match="from 0 to 1"), faults.losing(lab, "isp-b", 1.5):
        pass


def test_an_interface_comes_back_with_another_index(make_lab: MakeLab) -> None:
    """Shaped, a small MTU, a delegated prefix: all as before, but for the index."""
    odd = link("isp-b", 2, 5 * MBIT, mtu=1400, delegated=True)
    lab = make_lab(Topology((link("isp-a", 1, 5 * MBIT), odd), (lan(),), servers(2)))
    before, index = everything(lab), index_of(lab)
    shaping = qdisc(lab)
    assert "rate 5Mbit" in shaping
    with Witness(lab) as witness, faults.unplugged(lab, "isp-b"):
        assert index_of(lab) is None
        assert witness.testimony().links == {}
    assert index_of(lab) not in (None, index)
    assert everything(lab) == before
    assert qdisc(lab) == shaping
    routed(lab, "isp-b")
    for family in FAMILIES:
        assert answers(lab, "isp-b", resolver(family))


def test_a_shared_interface_is_not_unplugged(make_lab: MakeLab) -> None:
    links = tuple(link(f"isp-{n}", n, MBIT, interface="wan") for n in (1, 2))
    lab = make_lab(Topology(links, (lan(),), servers(1)))
    with pytest.raises(ValueError, match="not the wire of isp-1 alone"):
        lab.rewire("isp-1")


def qdisc(lab: Lab) -> str:
    shown = lab["isp-b"].run("tc", "qdisc", "show", "dev", "link").stdout
    return shown.partition(" root")[2]


def index_of(lab: Lab) -> int | None:
    done = lab.router.run("cat", "/sys/class/net/wan2/ifindex", check=False)
    return int(done.stdout) if done.returncode == 0 else None


def test_faults_are_gone_with_the_lab(make_lab: MakeLab) -> None:
    lab = make_lab(uplinks(MBIT))
    for fault in (faults.dropping, faults.no_carrier, faults.interface_down):
        entered: AbstractContextManager[None] = fault(lab, "isp-a")
        entered.__enter__()
    silent = faults.silent_target(lab, ip_address("1.1.1.1"))
    silent.__enter__()
    lab.close()
    for left in (entered, silent):
        left.__exit__(None, None, None)


def test_a_load_lasts_until_it_is_told_to_end(two_links: Lab) -> None:
    """What fails meanwhile is told with its time, and what was slow with its length."""
    lab = two_links
    lab.plain("isp-a")
    serve(lab, PORT)
    wanted = connections(lab.topology.pairs()[:8], PORT, heavy=0)
    load = Load(
        lab,
        wanted,
        load_s=None,
        light_interval_s=0.1,
        patience_s=20.0,
        udp_wait_s=0.05,
        slow_s=0.3,
    )
    load.until("open")
    began_s = time.monotonic()
    with faults.dropping(lab, "isp-a"):
        eventually(lambda: time.monotonic() > began_s + 1.0)
    done = load.end()
    assert load.failures == {}
    assert done.open == len(wanted)
    assert {one.number for one in load.slow} >= {one.number for one in wanted if not one.late}
    assert all(one.began_s + one.took_s > began_s for one in load.slow)

    refused: tuple[Connection, ...] = connections(lab.topology.pairs()[:2], PORT + 1, each=1)
    load = Load(lab, refused, load_s=None)
    load.until("open")
    load.end()
    assert set(load.failed_at_s) == set(load.failures) == {1, 2}
    assert all(began_s < at_s < time.monotonic() for at_s in load.failed_at_s.values())


def test_calls_tell_which_link_was_taken(two_links: Lab) -> None:
    lab = two_links
    serve(lab, PORT)
    with Witness(lab) as witness, Caller(lab, witness, PORT) as caller:
        for name in ("isp-b", "isp-a"):
            lab.plain(name)
            pairs = lab.topology.pairs()
            assert caller.survey(pairs) == dict.fromkeys(pairs, name)
        with faults.dropping(lab, "isp-a"), pytest.raises(LabError, match="got no answer from"):
            caller.survey(pairs, limit_s=0.5)
        flow = caller.keep(pairs[0])
        first, second = caller.again(flow), caller.again(flow)
        assert sorted(caller.listen(0.2)) == [first, second]
        assert caller.link(first) == caller.link(second) == "isp-a"
        caller.drop([flow])


def test_who_never_moves_is_named(two_links: Lab) -> None:
    """A plain router stays on its only route."""
    lab = two_links
    lab.plain("isp-a")
    serve(lab, PORT)
    with Witness(lab) as witness, Caller(lab, witness, PORT) as caller:
        with (
            pytest.raises(LabError, match="no new connection of IPv4 and IPv6"),
            outage(caller, "isp-a", faults.dropping, limit_s=1.0),
        ):
            pytest.fail("it moved")
        with (
            pytest.raises(LabError, match="no pair is at home on isp-b"),
            outage(caller, "isp-b", faults.dropping),
        ):
            pytest.fail("it was killed")


@pytest.mark.parametrize("fault", [faults.no_carrier, faults.unplugged, faults.dropping])
def test_failover_under_load(two_links: Lab, fault: faults.Fault) -> None:
    """The daemon's: nobody on isp-a notices, all of isp-b move, and all come back."""
    lab = two_links
    serve(lab, PORT)
    with Witness(lab) as witness, Caller(lab, witness, PORT) as caller:
        daemon = lab.run(lab.file())
        wanted = connections(lab.topology.pairs(), PORT, heavy=0)
        found = measure(caller, "isp-b", fault, wanted)
        assert found.notes == ()
        assert found.survivor_connections_broken == found.wrong_source_packets == 0
        assert found.survivors > 0
        assert found.udp_lost == 0
        assert found.pairs == len(lab.topology.pairs())
        assert 0 < found.pairs_moved == found.pairs_moved_bound < 1
        assert found.returned_exactly
        assert found.killed == "isp-b"
        assert found.detected_ms > 0
        assert found.udp_back_ms < 20_000
        assert found.outage.returned_ms < 60_000
        assert {one["state"] for one in status(daemon)["links"]} == {"up"}
