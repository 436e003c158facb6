"""method = "ecmp": the kernel's own multipath route spreads new connections, and none ever moves.

client ── router ─┬─ isp-a ─┬─ server
                  ├─ isp-b ─┤
                  └─ isp-c ─┘
"""

from __future__ import annotations

import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise, product
from pathlib import Path

import pytest

from dataplane.config.model import Method
from dataplane.daemon.calling import ask
from dataplane.daemon.messages import Drain, Restore
from dataplane.lab import Daemon, Lab, Topology, exchange, faults, lan, link, servers, uplinks
from dataplane.lab.topology import MBIT, Address, Family
from dataplane.lab.traffic import Connection, Load, connections, serve
from dataplane.lab.witness import Witness
from tests.lab.conftest import MakeLab
from tests.lab.leases import Tunnel, need
from tests.lab.links import FAST, becomes, undone
from tests.lab.links import link as told_of
from tests.lab.talk import (
    Talk,
    call,
    counted,
    eventually,
    file_with,
    held,
    link_of,
    rightful_sources,
    status,
    tracked,
)

KEY = "0123456789abcdef"
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
# The first group's number is the last that a link could have.
TABLE = "7120"
MARK = 120 << 24
# By degrees of freedom: what chance exceeds in one case of a hundred, and of a hundred thousand.
CHI_SQUARE = {1: 6.635, 2: 9.210}
CHI_SQUARE_UNSEEDED = {1: 19.51, 2: 23.03}
SEED = "net/ipv4/fib_multipath_hash_seed"
REBUILT = 10
# So many pairs, or servers of each host, are enough where each pair has its sockets open.
SOME = 48
SERVERS = 3


def file(lab: Lab, method: Method = Method.ECMP, mode: str = "first") -> Path:
    """The topology's file with that method for everything."""
    return lab.file(key=KEY, balance={"method": method.value}, probe=FAST, queue={"mode": mode})


@pytest.fixture
def lab(make_lab: MakeLab) -> Lab:
    return steadied(
        make_lab(uplinks(10 * MBIT, 20 * MBIT, 30 * MBIT, shaped=False, hosts=8, server_count=8))
    )


def steadied(lab: Lab) -> Lab:
    """The kernel draws its hash's seed, and hosts draw the flow labels that IPv6 hashes: not here,
    so that a test ends as it did before.
    """
    if has_seed(lab):
        lab.router.set({SEED: 1})
    for name in (lab.client, lab.router):
        name.set({"net/ipv6/auto_flowlabels": 0})
    return lab


def has_seed(lab: Lab) -> bool:
    """Kernels before 6.11 have no such setting."""
    with lab.router.inside():
        return Path("/proc/sys", SEED).exists()


def ways(lab: Lab, family: int) -> str:
    """The group's table, as `ip` lists it."""
    return lab.router.run("ip", f"-{family}", "route", "show", "table", TABLE, check=False).stdout


def taken(lab: Lab, family: Family, protocol: str = "udp") -> Counter[str]:
    """New connections of every pair, each of which keeps its link; the links that they took."""
    found: Counter[str] = Counter()
    pairs = product(lab.topology.lans[0].clients(family), lab.topology.serving(family))
    for source, target in pairs:
        with call(lab, target, protocol, source=source) as talk:
            used = {link_of(lab, talk.goes_on()) for _ in range(3)}
            assert len(used) == 1
            found.update(used)
    return found


def change(daemon: Daemon, name: str, drained: bool) -> None:
    """Drains a link, or takes it back, and waits until that is in force."""
    order = Drain(name) if drained else Restore(name)
    ask(daemon.file.parent / "control.sock", order)
    becomes(daemon, name, *(() if drained else (4, 6)))


@FAMILIES
@pytest.mark.parametrize("capacities", [(10, 20), (10, 20, 50)], ids=str)
def test_shares_are_the_capacities(
    make_lab: MakeLab, family: Family, capacities: tuple[int, ...]
) -> None:
    """20,000 address pairs, one datagram each, counted by the providers."""
    rates = [rate * MBIT for rate in capacities]
    lab = steadied(
        make_lab(uplinks(*rates, families=(family,), hosts=200, server_count=100, shaped=False))
    )
    daemon = lab.run(file(lab))
    with rightful_sources(lab) as witness:
        count = one_datagram_a_pair(lab, family)
        eventually(lambda: len(witness.testimony().links) == count)
        links = Counter(next(iter(used)) for used in witness.testimony().links.values())
    expected = {way.name: count * way.capacity_bps / sum(rates) for way in lab.topology.links}
    distance = sum((links[name] - want) ** 2 / want for name, want in expected.items())
    exceeded = CHI_SQUARE if has_seed(lab) else CHI_SQUARE_UNSEEDED
    assert distance < exceeded[len(rates) - 1], links
    assert status(daemon)["queue"]["packets"] + counted(lab, "fallback") >= count


def one_datagram_a_pair(lab: Lab, family: Family) -> int:
    """Sends, and gives how many there are; they are numbered from 1."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    number = 0
    with ExitStack() as stack:
        with lab.server.inside():
            sink = stack.enter_context(socket.socket(kind, socket.SOCK_DGRAM))
        sink.bind(("", 9))  # who has a listener sends no ICMP errors
        for source in lab.topology.lans[0].clients(family):
            with lab.client.inside():
                sender = stack.enter_context(socket.socket(kind, socket.SOCK_DGRAM))
            sender.bind((str(source), 0))
            for target in lab.topology.serving(family):
                number += 1
                sender.sendto(exchange.request(number, 8), (str(target), 9))
    return number


def by_every_method(lab: Lab) -> Path:
    """Each of the hosts has a method of its own."""
    text = file(lab).read_text()
    for number, method in enumerate(Method):
        hosts = [str(lab.topology.lans[0].clients(family)[number]) for family in (4, 6)]
        text += (
            f'\n[group.by-{method}]\nlinks = ["isp-a", "isp-b", "isp-c"]\nmethod = "{method}"\n'
            f'\n[[rule]]\nsource = ["{hosts[0]}", "{hosts[1]}"]\nuse = "by-{method}"\n'
        )
    return lab.file(text=text)


@pytest.mark.parametrize("make", [file, by_every_method], ids=["the default group", "each method"])
def test_no_connection_moves_while_routes_are_rebuilt(
    lab: Lab, make: Callable[[Lab], Path]
) -> None:
    """Links are drained and taken back, and one that none of them uses dies and returns."""
    daemon = lab.run(make(lab))
    serve(lab, 5001)
    change(daemon, "isp-c", drained=True)
    wanted = steady(lab)
    with Witness(lab) as witness:
        load = Load(lab, wanted, load_s=None, light_interval_s=0.1)
        load.until("open")
        change(daemon, "isp-c", drained=False)
        tables = []
        for turn in range(REBUILT):
            with without_a_link(lab, daemon, turn):
                tables.append(ways(lab, 4))
            tables.append(ways(lab, 4))
        load.end()
        seen = witness.testimony()
    assert not load.failures
    assert not seen.torn()
    assert set(seen.links) >= {one.number for one in wanted}
    assert not seen.wrong_source_packets, seen.examples
    assert {way for used in seen.links.values() for way in used} <= {"isp-a", "isp-b"}
    assert all(one != other for one, other in pairwise(tables))
    assert all("nexthop" in table for table in tables), "two links at least, at any time"


def steady(lab: Lab) -> tuple[Connection, ...]:
    """TCP and UDP of some pairs of each host, one at full speed, all from the beginning."""
    known = {str(server) for family in (4, 6) for server in lab.topology.serving(family)[:SERVERS]}
    pairs = [pair for pair in lab.topology.pairs() if str(pair[1]) in known]
    wanted = connections(pairs, 5001, heavy=1)
    return tuple(replace(one, late=False) for one in wanted)


@contextmanager
def without_a_link(lab: Lab, daemon: Daemon, turn: int) -> Iterator[None]:
    """Now this one, now that one: drained, or dead."""
    name = ("isp-a", "isp-c", "isp-b")[turn % 3]
    if name == "isp-c":
        with faults.no_carrier(lab, name):
            becomes(daemon, name)
            yield
        becomes(daemon, name, 4, 6)
    else:
        change(daemon, name, drained=True)
        yield
        change(daemon, name, drained=False)


@FAMILIES
@PROTOCOLS
def test_every_link_takes_connections_and_keeps_them(
    lab: Lab, family: Family, protocol: str
) -> None:
    lab.run(file(lab))
    with rightful_sources(lab):
        assert set(taken(lab, family, protocol)) == {"isp-a", "isp-b", "isp-c"}
    assert counted(lab, "fallback") == counted(lab, "wrong_source") == 0
    for number in (1, 2, 3):
        assert tracked(lab, f"mark={number << 24}"), "a connection has its link's mark"
    assert not tracked(lab, f"mark={MARK}"), "never the group's"


def test_a_burst_is_not_torn(lab: Lab) -> None:
    """Of one connection many packets wait in the queue before any of them is decided."""
    daemon = lab.run(file(lab))
    with rightful_sources(lab) as witness, ExitStack() as stack:
        opened = [stack.enter_context(call(lab, target)) for target in lab.topology.servers]
        with held(daemon):
            for _ in range(20):
                for talk in opened:
                    talk.near.send(talk.payload)
        for talk in opened:
            for _ in range(20):
                talk.far.recv(64)
        assert {len(used) for used in witness.testimony().links.values()} == {1}


def test_a_dead_links_connections_move_and_others_stay(lab: Lab) -> None:
    daemon = lab.run(file(lab))
    with rightful_sources(lab, moving=True) as witness, ExitStack() as stack:
        opened: dict[str, list[Talk]] = {"isp-a": [], "isp-b": [], "isp-c": []}
        for source, target in lab.topology.pairs()[:SOME]:
            talk = stack.enter_context(call(lab, target, source=source))
            opened[link_of(lab, talk.goes_on())].append(talk)
        assert all(opened.values())
        with faults.no_carrier(lab, "isp-c"):
            becomes(daemon, "isp-c")
            eventually(lambda: not tracked(lab, f"mark={3 << 24}"))
            assert "wan3" not in ways(lab, 4) + ways(lab, 6)
            for talk in opened["isp-c"]:
                talk.peer = None
                assert link_of(lab, talk.goes_on()) in ("isp-a", "isp-b")
            for name in ("isp-a", "isp-b"):
                assert {link_of(lab, talk.goes_on()) for talk in opened[name]} == {name}
        becomes(daemon, "isp-c", 4, 6)
        for name in ("isp-a", "isp-b"):
            assert {link_of(lab, talk.goes_on()) for talk in opened[name]} == {name}
        stayed = {talk.number for name in ("isp-a", "isp-b") for talk in opened[name]}
        assert not stayed & set(witness.testimony().torn())
    assert set(taken(lab, 4)) == {"isp-a", "isp-b", "isp-c"}


def test_an_interface_that_vanishes_takes_no_other_along(lab: Lab) -> None:
    """The kernel deletes the whole IPv4 multipath route with it. The daemon stands still."""
    daemon = lab.run(file(lab))
    with held(daemon):
        lab.router.run("ip", "link", "delete", "dev", "wan3")
        assert "nexthop" not in ways(lab, 4)
        # The queue is not read either; what the router marks itself needs no queue.
        for target in lab.topology.serving(4):
            with Talk(lab.router, None, lab.server, target, mark=MARK) as talk:
                assert link_of(lab, talk.goes_on()) == "isp-b", "the widest that is left"
    becomes(daemon, "isp-c")
    eventually(lambda: "nexthop" in ways(lab, 4))
    with rightful_sources_of(lab, "isp-a", "isp-b"):
        assert set(taken(lab, 4)) == {"isp-a", "isp-b"}


@contextmanager
def rightful_sources_of(lab: Lab, *names: str) -> Iterator[None]:
    """The same on some of the links, the others being gone."""
    witness = Witness(lab)
    with ExitStack() as stack:
        stack.push(witness.__exit__)
        for name in names:
            witness.attend(name)
        yield
        seen = witness.testimony()
    assert not seen.wrong_source_packets, seen.examples
    assert not seen.torn()


@FAMILIES
@pytest.mark.parametrize("mode", ["first", "every"])
def test_without_a_listener_the_route_spreads_all_the_same(
    lab: Lab, family: Family, mode: str
) -> None:
    daemon = lab.run(file(lab, mode=mode))
    with rightful_sources(lab):
        before = set(taken(lab, family))
        daemon.kill()
        assert set(taken(lab, family)) == before == {"isp-a", "isp-b", "isp-c"}
    assert counted(lab, "fallback") >= len(lab.topology.pairs()) // 2
    assert counted(lab, "wrong_source") == 0


OVERLAPPING = {"network4": IPv4Network("192.0.2.0/24"), "network6": IPv6Network("2001:db8:1::/64")}


@FAMILIES
@pytest.mark.parametrize("network", [OVERLAPPING, {}], ids=["one network", "two networks"])
def test_two_links_on_one_interface(
    make_lab: MakeLab, network: dict[str, object], family: Family
) -> None:
    """The nexthop tells them apart.

    client ── router ── one Ethernet segment ─┬─ a ─┬─ server
                                              └─ b ─┘
    """
    links = tuple(
        link(name, n, n * 10 * MBIT, interface="wan", shaped=False, host=n, **network)  # type: ignore[arg-type]
        for n, name in enumerate(("a", "b"), 1)
    )
    lab = steadied(make_lab(Topology(links, (lan(hosts=8),), servers(8))))
    told: dict[str, dict[str, object]] = {}
    if network:
        told = {way.name: {"nat": "snat", "address": [str(way.address(f)) for f in (4, 6)]}
                for way in links}  # fmt: skip
    daemon = lab.run(file_with(lab, told, {"balance": {"method": "ecmp"}}, key=KEY))
    with rightful_sources(lab):
        for protocol in ("udp", "tcp"):
            assert set(taken(lab, family, protocol)) == {"a", "b"}
        for way in links:
            with Talk(
                lab.router, way.address(family), lab.server, lab.topology.serving(family)[0]
            ) as talk:
                assert link_of(lab, talk.goes_on()) == way.name
        opened = [call(lab, target) for target in lab.topology.serving(family)]
        used = [link_of(lab, talk.goes_on()) for talk in opened]
        for name in ("a", "b"):
            change(daemon, name, drained=True)
            assert [link_of(lab, talk.goes_on()) for talk in opened] == used
            change(daemon, name, drained=False)
        for talk in opened:
            talk.close()
    assert counted(lab, "wrong_source") == 0


@FAMILIES
def test_a_link_without_a_gateway(make_lab: MakeLab, family: Family) -> None:
    """client ── router ─┬─ isp-a ────────┬─ server
    └─ isp-b (a tun) ┘
    """
    need("/dev/net/tun")
    tunnelled = link("isp-b", 2, 20 * MBIT, shaped=False, point_to_point=True)
    links = (link("isp-a", 1, 10 * MBIT, shaped=False), tunnelled)
    lab = steadied(make_lab(Topology(links, (lan(hosts=8),), servers(8))))
    with Tunnel(lab, "isp-b") as tunnel:
        daemon = lab.run(file(lab))
        becomes(daemon, "isp-b", 4, 6)
        with rightful_sources(lab):
            for protocol in ("udp", "tcp"):
                assert set(taken(lab, family, protocol)) == {"isp-a", "isp-b"}
        assert "nexthop dev wan2 weight 2" in ways(lab, 4)
        assert status(daemon)["mended"] == 0, "what was put there is what is seen"
        tunnel.close()
        becomes(daemon, "isp-b")
        assert set(taken(lab, family)) == {"isp-a"}
        with Tunnel(lab, "isp-b"):
            becomes(daemon, "isp-b", 4, 6)
            with rightful_sources(lab):
                assert set(taken(lab, family)) == {"isp-a", "isp-b"}


@FAMILIES
@PROTOCOLS
def test_the_routers_own(lab: Lab, family: Family, protocol: str) -> None:
    """Unbound sockets, and such that choose the group by its mark, keep their link as well."""
    daemon = lab.run(file(lab))
    with rightful_sources(lab), ExitStack() as stack:
        opened = [
            stack.enter_context(
                Talk(lab.router, None, lab.server, target, protocol=protocol, mark=mark)
            )
            for target in lab.topology.serving(family)
            for mark in (0, MARK)
        ]
        used = [link_of(lab, talk.goes_on()) for talk in opened]
        assert "none" not in used
        for name in ("isp-a", "isp-b", "isp-c"):
            change(daemon, name, drained=True)
            assert [link_of(lab, talk.goes_on()) for talk in opened] == used
            change(daemon, name, drained=False)
        for way in lab.topology.links:
            target = lab.topology.serving(family)[0]
            for source, device in ((way.address(family), ""), (None, way.interface)):
                with Talk(
                    lab.router, source, lab.server, target, protocol=protocol, device=device
                ) as talk:
                    assert link_of(lab, talk.goes_on()) == way.name


@FAMILIES
def test_connections_from_outside_stay_where_they_came_in(lab: Lab, family: Family) -> None:
    lab.run(file(lab))
    asker: Address = lab.topology.serving(family)[0]
    with rightful_sources(lab):
        for way, protocol in product(lab.topology.links, ("udp", "tcp")):
            with Talk(
                lab.server, asker, lab.router, way.address(family), protocol=protocol
            ) as talk:
                assert {talk.goes_on() for _ in range(3)} == {asker}


GROUP = """
[group.voice]
links = ["isp-a", "isp-c"]
method = "ecmp"

[[rule]]
protocol = "udp"
use = "voice"
"""


@FAMILIES
def test_a_group_that_a_rule_names(lab: Lab, family: Family) -> None:
    """Datagrams go by the group's links while it has one, all else as ever."""
    path = lab.file(key=KEY, probe=FAST)
    path.write_text(path.read_text() + GROUP)
    daemon = lab.run(path)
    with rightful_sources(lab), ExitStack() as stack:
        assert set(taken(lab, family, "udp")) == {"isp-a", "isp-c"}
        assert "isp-b" in taken(lab, family, "tcp")
        opened = [stack.enter_context(call(lab, target)) for target in lab.topology.serving(family)]
        used = [link_of(lab, talk.goes_on()) for talk in opened]
        change(daemon, "isp-c", drained=True)
        assert set(taken(lab, family, "udp")) == {"isp-a"}
        change(daemon, "isp-a", drained=True)
        assert set(taken(lab, family, "udp")) == {"isp-b"}, "what no link of the group can take"
        assert [link_of(lab, talk.goes_on()) for talk in opened] == used
        for name in ("isp-a", "isp-c"):
            change(daemon, name, drained=False)
        assert set(taken(lab, family, "udp")) == {"isp-a", "isp-c"}
        assert [link_of(lab, talk.goes_on()) for talk in opened] == used
    assert counted(lab, "fallback") == counted(lab, "wrong_source") == 0


def test_nothing_is_left(lab: Lab) -> None:
    with undone(lab):
        daemon = lab.run(file(lab))
        assert "nexthop" in ways(lab, 4)
        taken(lab, 4)
        assert daemon.stop(signal.SIGINT) == 0
    with undone(lab):
        daemon = lab.run(file(lab))
        daemon.kill()
        lab.evenlink("down", "--config", str(daemon.file))


def test_a_restart_and_another_method_leave_connections_alone(lab: Lab) -> None:
    """Away from the multipath route and back to it, by a new file and by a new start."""
    daemon = lab.run(file(lab))
    with rightful_sources(lab), ExitStack() as stack:
        opened = [
            stack.enter_context(call(lab, target, protocol, source=source))
            for source, target in lab.topology.pairs()[:SOME]
            for protocol in ("udp", "tcp")
        ]
        used = [link_of(lab, talk.goes_on()) for talk in opened]
        assert set(used) == {"isp-a", "isp-b", "isp-c"}
        file(lab, Method.PCC)
        daemon.reload()
        eventually(lambda: not ways(lab, 4))
        assert [link_of(lab, talk.goes_on()) for talk in opened] == used
        file(lab)
        daemon.reload()
        eventually(lambda: "nexthop" in ways(lab, 4))
        assert [link_of(lab, talk.goes_on()) for talk in opened] == used
        daemon.stop()
        assert [link_of(lab, talk.goes_on()) for talk in opened] == used
        daemon = lab.run(file(lab))
        assert [link_of(lab, talk.goes_on()) for talk in opened] == used
    assert status(daemon)["mended"] == 0
    assert told_of(daemon, "isp-a")["carries"] == ["ipv4", "ipv6"]
