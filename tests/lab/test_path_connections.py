"""A connection is one: bursts, fragments, silence, changes around it; it never leaves its link.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import signal
import socket
from functools import partial
from itertools import chain, product
from typing import Any

import pytest

from dataplane.lab import Daemon, Lab, uplinks
from dataplane.lab.topology import Family
from tests.lab.conftest import MakeLab
from tests.lab.talk import (
    Talk,
    call,
    counted,
    eventually,
    file_with,
    held,
    link_of,
    queued,
    rightful_sources,
    status,
    tracked,
)

KEY = "0123456789abcdef"
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
ENGINES: list[dict[str, object]] = [
    {"engine": "batch", "mode": "first"},
    {"engine": "callback", "mode": "first"},
    {"engine": "batch", "mode": "every"},
    {"engine": "batch", "mode": "first", "workers": 2},
]
EACH_ENGINE = pytest.mark.parametrize(
    "queue", ENGINES, ids=["batch", "callback", "every", "workers"]
)


def talks_over_both(lab: Lab, family: Family, protocol: str = "udp") -> dict[str, list[Talk]]:
    """One open conversation for every pair, by the link that it took."""
    found: dict[str, list[Talk]] = {}
    pairs = product(lab.topology.lans[0].clients(family), lab.topology.serving(family))
    for source, target in pairs:
        talk = call(lab, target, protocol, source=source)
        found.setdefault(link_of(lab, talk.goes_on()), []).append(talk)
    assert found.keys() == {link.name for link in lab.topology.links}
    return found


def go_on(lab: Lab, talks: dict[str, list[Talk]], turns: int = 2) -> None:
    """Every conversation goes on, over the link that it took."""
    for name, its in talks.items():
        for talk in its:
            for _ in range(turns):
                assert link_of(lab, talk.goes_on()) == name


def burst(lab: Lab, daemon: Daemon, family: Family, count: int) -> set[tuple[Any, ...]]:
    """Datagrams of one new socket that all wait in the queue at once; the peers that are seen."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    source = str(lab.topology.lans[0].clients(family)[0])
    target = str(lab.topology.serving(family)[0])
    with lab.server.inside():
        far = socket.socket(kind, socket.SOCK_DGRAM)
    with lab.client.inside():
        near = socket.socket(kind, socket.SOCK_DGRAM)
    with far, near:
        far.settimeout(5)
        far.bind((target, 0))
        near.bind((source, 0))
        near.connect(far.getsockname()[:2])
        with held(daemon):
            for number in range(count):
                near.send(bytes([number]))
        heard = [far.recvfrom(8) for _ in range(count)]
    assert [data[0] for data, _ in heard] == list(range(count)), "lost or out of order"
    return {peer for _, peer in heard}


@EACH_ENGINE
def test_connections_keep_their_link(two_links: Lab, queue: dict[str, object]) -> None:
    lab = two_links
    daemon = lab.run(file_with(lab, sections={"queue": queue}, key=KEY))
    with rightful_sources(lab):
        for family in (4, 6):
            for protocol in ("udp", "tcp"):
                talks = talks_over_both(lab, family, protocol)
                go_on(lab, talks)
                for talk in chain.from_iterable(talks.values()):
                    talk.close()
        told = status(daemon)["queue"]
        assert (told["errors"], told["dropped"], told["fallback"]) == (0, 0, 0)


@EACH_ENGINE
@FAMILIES
def test_a_burst_is_one_connection(
    two_links: Lab, queue: dict[str, object], family: Family
) -> None:
    lab = two_links
    daemon = lab.run(file_with(lab, sections={"queue": queue}, key=KEY))
    with rightful_sources(lab):
        for count in (5, 20):
            assert len(burst(lab, daemon, family, count)) == 1


@FAMILIES
def test_fragments_are_one_packet(two_links: Lab, family: Family) -> None:
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    with rightful_sources(lab):
        for target in lab.topology.serving(family):
            with call(lab, target) as talk:
                before = queued(daemon)
                talk.near.send(bytes(5000))
                heard, peer = talk.far.recvfrom(6000)
                assert len(heard) == 5000
                talk.peer = peer[:2]
                talk.far.sendto(bytes(5000), peer)
                assert len(talk.near.recv(6000)) == 5000
                assert queued(daemon) == before + 1
                talk.goes_on()
        assert status(daemon)["queue"]["fallback"] == 0


@EACH_ENGINE
@FAMILIES
def test_older_connections_are_adopted(
    make_lab: MakeLab, queue: dict[str, object], family: Family
) -> None:
    """Before `run`, a plain router sends everything by isp-a; half of it would be isp-b's."""
    lab = make_lab(uplinks(10_000_000, 20_000_000, shaped=False))
    lab.plain("isp-a")
    older = []
    for protocol in ("udp", "tcp"):
        for target in lab.topology.serving(family):
            older.append(call(lab, target, protocol))
            assert link_of(lab, older[-1].goes_on()) == "isp-a"
    way = lab.topology.link("isp-a")
    inbound = Talk(lab.server, lab.topology.serving(family)[0], lab.router, way.address(family))
    inbound.goes_on()
    with rightful_sources(lab):
        daemon = lab.run(file_with(lab, sections={"queue": queue}, key=KEY))
        for _ in range(3):
            for talk in older:
                assert link_of(lab, talk.goes_on()) == "isp-a"
            inbound.goes_on()
        assert len(tracked(lab, f"mark={1 << 24}")) >= len(older) + 1
        # New ones of the same pairs are balanced at once.
        pairs = product(lab.topology.lans[0].clients(family), lab.topology.serving(family))
        used = set()
        for source, target in pairs:
            with call(lab, target, source=source) as talk:
                used.add(link_of(lab, talk.goes_on()))
        assert used == {"isp-a", "isp-b"}
        if queue["mode"] == "first":
            assert status(daemon)["queue"]["fallback"] == 0


def test_a_full_queue_lets_packets_pass_and_the_kernel_settles(two_links: Lab) -> None:
    lab = two_links
    daemon = lab.run(file_with(lab, sections={"queue": {"length": 16}}, key=KEY))
    length = next(iter(status(daemon)["queue"]["granted"].values()))["length"]
    assert length == 16
    talks = []
    with rightful_sources(lab):
        with held(daemon):
            for _ in range(4):
                for source in lab.topology.lans[0].clients(4):
                    for target in lab.topology.serving(4):
                        talks.append(call(lab, target, source=source))
                        talks[-1].near.send(talks[-1].payload)
            eventually(lambda: counted(lab, "fallback") == len(talks) - length)
        used = set()
        for talk in talks:
            heard, talk.peer = talk.far.recvfrom(64)
            assert heard == talk.payload
            used.add(link_of(lab, talk.goes_on()))
        assert used == {"isp-a", "isp-b"}
    assert status(daemon)["queue"]["fallback"] == len(talks) - length


def has_shares(daemon: Daemon, shares: list[float]) -> bool:
    return [round(one["share_slots"], 3) for one in status(daemon)["links"]] == shares


def test_reload_moves_no_connection(two_links: Lab) -> None:
    """Shares turned round: what runs stays, and in mode "every", too, where all is asked again."""
    lab = two_links
    for queue in ({"mode": "first"}, {"mode": "every"}):
        daemon = lab.run(file_with(lab, sections={"queue": queue}, key=KEY))
        with rightful_sources(lab):
            talks = talks_over_both(lab, 4) | {}
            streams = talks_over_both(lab, 6, "tcp")
            turned = {"isp-a": {"capacity": "90Mbit"}, "isp-b": {"capacity": "10Mbit"}}
            file_with(lab, turned, sections={"queue": queue}, key=KEY)
            daemon.reload()
            eventually(partial(has_shares, daemon, [0.9, 0.1]))
            go_on(lab, talks)
            go_on(lab, streams)
        assert daemon.stop(signal.SIGINT) == 0
