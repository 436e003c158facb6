"""Shapers, traffic and the provider's witness, over a plain router.

client ── router ─┬─ isp-a  10 Mbit/s ─┬─ server
                  └─ isp-b  20 Mbit/s ─┘
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from ipaddress import IPv6Network, ip_network

import pytest

from dataplane.lab import Lab, LabError, Topology, lan, link, packetfilter, servers, uplinks
from dataplane.lab.meter import Meter, sample
from dataplane.lab.topology import MBIT, Family
from dataplane.lab.traffic import Load, connections, serve
from dataplane.lab.witness import Evidence, Witness

MakeLab = Callable[[Topology], Lab]
FAMILIES: tuple[Family, ...] = (4, 6)


def ping(lab: Lab, source: object, family: Family = 4, count: int = 1) -> bool:
    target = str(lab.topology.serving(family)[0])
    done = lab.client.run(
        "ping", "-n", f"-c{count}", "-i0.01", "-W1", "-I", str(source), target, check=False
    )
    return done.returncode == 0


def test_load_fills_the_link_and_is_witnessed(make_lab: MakeLab) -> None:
    lab = make_lab(uplinks(10 * MBIT, 20 * MBIT, hosts=6, server_count=5))
    lab.plain("isp-b")
    serve(lab, 5001)
    wanted = connections(lab.topology.pairs(), 5001, heavy=20)
    assert {one.protocol for one in wanted} == {"tcp", "udp"}
    with Witness(lab) as witness, Meter(lab) as meter:
        load = Load(lab, wanted, load_s=3)
        events = {event.kind: event for event in load.events()}
        seen = witness.testimony()
        passed, seconds = meter.carried(events["open"].at_s + 0.5, events["closing"].at_s)
    assert load.failures == {}
    assert events["done"].open == len(wanted) == 120
    assert passed["isp-b"] * 8 / seconds == pytest.approx(20 * MBIT, rel=0.05)
    assert passed["isp-a"] * 8 / seconds < 0.01 * MBIT
    assert {number: {"isp-b"} for number in seen.links} == seen.links
    assert set(seen.links) == {one.number for one in wanted}
    assert seen.wrong_source_packets.total() == 0, seen.examples


def test_upload_is_shaped_by_its_own_rate(make_lab: MakeLab) -> None:
    only = link("isp-a", 1, 20 * MBIT, upload_bps=2 * MBIT)
    lab = make_lab(Topology((only,), (lan(),), servers(1)))
    lab.plain("isp-a")
    with lab.server.inside():
        listener = socket.create_server((str(lab.topology.serving(4)[0]), 5001))
    with lab.client.inside():
        client = socket.create_connection(listener.getsockname(), timeout=30)
    taken, _ = listener.accept()
    sender = threading.Thread(target=client.sendall, args=(bytes(400_000),))
    with listener, client, taken:
        before = sample(lab)
        sender.start()
        received = 0
        while received < 400_000:
            received += len(taken.recv(1 << 16))
        after = sample(lab)
        sender.join()
    passed = after.up["isp-a"] - before.up["isp-a"]
    assert passed > 400_000
    assert passed * 8 / (after.at_s - before.at_s) < 1.1 * 2 * MBIT


def test_failures_say_why(two_links: Lab) -> None:
    two_links.plain("isp-a")
    wanted = connections(two_links.topology.pairs()[:2], 5001, each=1)
    load = Load(two_links, wanted, load_s=0)
    assert [event.kind for event in load.events()][-1] == "done"
    assert set(load.failures) == {1, 2}
    assert all("refused" in why for why in load.failures.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_strangers_are_counted_where_they_come(two_links: Lab, family: Family) -> None:
    two_links.plain("isp-a")
    source = two_links.topology.lans[0].clients(family)[0]
    with Witness(two_links) as witness:
        assert ping(two_links, source, family)
        assert witness.testimony().wrong_source_packets.total() == 0
        two_links.router.run("nft", "flush", "ruleset")
        assert not ping(two_links, source, family, count=3)
        seen = witness.testimony()
    assert seen.wrong_source_packets == {"isp-a": 3}
    assert seen.examples[0].startswith(f"isp-a: {source} > ")


def test_delegated_sources_are_no_strangers(make_lab: MakeLab) -> None:
    only = link("isp-a", 1, MBIT, delegated=True)
    assert only.delegated is not None
    inside = lan(delegated=[only.delegated])
    lab = make_lab(Topology((only,), (inside,), servers(1)))
    lab.plain("isp-a")
    lab.router.run("nft", "flush", "ruleset")
    with Witness(lab) as witness:
        assert ping(lab, inside.delegated_clients(only.delegated)[0], 6)
        assert not ping(lab, inside.clients(6)[0], 6)
        assert witness.testimony().wrong_source_packets == {"isp-a": 1}


def test_witness_that_lost_packets_says_so(two_links: Lab) -> None:
    two_links.plain("isp-a")
    two_links.router.run("nft", "flush", "ruleset")
    with Witness(two_links, buffer_bytes=4096) as witness:
        assert not ping(two_links, two_links.topology.lans[0].clients(4)[0], count=50)
        with pytest.raises(LabError, match=r"isp-a lost \d+ packets"):
            witness.testimony()


def test_torn_connections_and_split_pairs() -> None:
    seen = Evidence(links={1: {"a"}, 2: {"b"}, 3: {"a", "b"}, 4: {"b"}})
    assert seen.torn() == [3]
    assert seen.split({1: "one", 2: "one", 4: "other"}) == 1
    assert seen.split({1: "one", 2: "other", 3: "third"}) == 1


def test_meter_fails_loudly_without_samples(two_links: Lab) -> None:
    with Meter(two_links) as meter, pytest.raises(LabError, match="no two samples"):
        meter.carried(time.monotonic() + 1000, time.monotonic() + 1001)


def test_filter_refuses_more_sources_than_it_can_hold() -> None:
    many = [ip_network(f"10.{n}.0.0/16") for n in range(100)]
    with pytest.raises(ValueError, match="too many rightful sources"):
        packetfilter.build(many)
    assert len(packetfilter.build([IPv6Network("::/0")])) % 8 == 0
