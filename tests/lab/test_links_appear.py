"""Interfaces that come late, vanish and come back; all links dead; a daemon that starts again.

client ── router ─┬─ isp-a ─┬─ server, and public resolvers
                  └─ isp-b ─┘
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from dataplane.lab import Lab, faults, wiring
from tests.lab.links import (
    FAST,
    KEY,
    becomes,
    check_pairs,
    check_settings,
    descriptors,
    goes_on_by,
    homes,
    is_down_for,
    is_well,
    link,
    undone,
    watched,
)
from tests.lab.talk import (
    Talk,
    call,
    counted,
    eventually,
    file_with,
    link_of,
    rightful_sources,
    status,
    tracked,
)


def _file(lab: Lab, **probe: object) -> Path:
    found: Path = file_with(lab, sections={"probe": {**FAST, **probe}}, key=KEY)
    return found


def _lay_lan(lab: Lab) -> None:
    """Makes the wire between the router and the LAN anew."""
    one = lab.topology.lans[0]
    peer = f"peer name eth0 netns {lab.client.name}"
    lines = [f"link add name {one.interface} type veth {peer}", f"link set {one.interface} up"]
    hosts = ["link set eth0 up"]
    for address in one.addresses:
        nodad = " nodad" if address.version == 6 else ""
        lines.append(f"address add {address} dev {one.interface}{nodad}")
        for client in one.clients(6 if address.version == 6 else 4):
            hosts.append(f"address add {client}/{address.network.prefixlen} dev eth0{nodad}")
        hosts.append(f"-{address.version} route add default via {address.ip}")
    for namespace, steps in ((lab.router, lines), (lab.client, hosts)):
        for step in steps:
            namespace.run("ip", *step.split())


def test_started_before_any_interface_exists(two_links: Lab) -> None:
    """Then they come one by one, the LAN's between them, and each link is up without a restart."""
    lab = two_links
    with undone(lab):
        with watched(lab) as attend:
            for interface in ("wan1", "wan2", "lan0"):
                lab.router.run("ip", "link", "delete", "dev", interface)
            daemon = lab.run(_file(lab))
            assert "ready: 0 of 2 links up" in daemon.log
            for place, interface in (
                ("lan", "lan0"),
                ("link.isp-a", "wan1"),
                ("link.isp-b", "wan2"),
            ):
                said = [line for line in daemon.log.splitlines() if interface in line]
                assert any(f"WARNING: {place}" in line for line in said), daemon.log
            is_down_for(daemon, "isp-a", "interface wan1 does not exist")
            is_down_for(daemon, "isp-b", "interface wan2 does not exist")
            assert any("wan1 does not exist" in fault for fault in status(daemon)["faults"])

            lab.rewire("isp-a")
            attend("isp-a")
            becomes(daemon, "isp-a", 4, 6)
            check_settings(lab, "wan1")
            _lay_lan(lab)
            check_pairs(lab, daemon, ["isp-a"])

            steps = wiring.rewired(
                lab.topology, lab.topology.link("isp-b"), lambda role: lab[role].name
            )
            addresses = next(n for n, step in enumerate(steps) if "address add" in step.line)
            lab.take(steps[:1])
            attend("isp-b")
            is_down_for(daemon, "isp-b", "interface wan2 is not enabled")
            lab.take(steps[1:addresses])
            is_down_for(daemon, "isp-b", "interface wan2 has no IPv4 address")
            lab.take(steps[addresses:])
            becomes(daemon, "isp-b", 4, 6)
            check_settings(lab, "wan2")
            check_pairs(lab, daemon, ["isp-a", "isp-b"])
            lab.router.run("ip", "link", "delete", "dev", "lan0")
            _lay_lan(lab)
            check_pairs(lab, daemon, ["isp-a", "isp-b"])
            is_well(daemon)
        assert daemon.stop(signal.SIGINT) == 0


def test_nothing_goes_back_by_a_link_when_the_lan_is_gone(two_links: Lab) -> None:
    """Answers that come for hosts which are not there any more leave by no link again."""
    lab = two_links
    daemon = lab.run(_file(lab))
    told = homes(lab, daemon)
    talks = [call(lab, target, source=source) for source, target in lab.topology.pairs()]
    for talk, name in zip(talks, told, strict=True):
        assert link_of(lab, talk.goes_on()) == name
    assert set(told) == {"isp-a", "isp-b"}
    with rightful_sources(lab):
        lab.router.run("ip", "link", "delete", "dev", "lan0")
        for talk in talks:
            assert talk.peer is not None
            talk.far.sendto(talk.payload, talk.peer)
        eventually(lambda: counted(lab, "wrong_source") >= len(talks), "the guard stops them")
        _lay_lan(lab)
        check_pairs(lab, daemon, ["isp-a", "isp-b"])
    for talk in talks:
        talk.close()


def test_an_interface_vanishes_and_comes_back(two_links: Lab) -> None:
    """Thrice, each time with another index: the others are untouched, the slots the same after."""
    lab = two_links
    with undone(lab):
        daemon = lab.run(_file(lab))
        before = homes(lab, daemon)
        assert set(before) == {"isp-a", "isp-b"}
        pairs = dict(zip(lab.topology.pairs(), before, strict=True))
        talks = {
            protocol: [
                (call(lab, target, protocol, source=source), name)
                for (source, target), name in pairs.items()
            ]
            for protocol in ("udp", "tcp")
        }
        for talk, name in (*talks["udp"], *talks["tcp"]):
            assert link_of(lab, talk.goes_on()) == name
        staying = [talk for one in talks.values() for talk, name in one if name == "isp-a"]
        moving = [talk for talk, name in talks["udp"] if name == "isp-b"]
        eventually(lambda: all(one["ok"] for one in link(daemon)["targets"]))
        opened = descriptors(daemon)
        indices = {_index(lab)}
        with watched(lab) as attend:
            for _ in range(3):
                with faults.unplugged(lab, "isp-b"):
                    is_down_for(daemon, "isp-b", "interface wan2 does not exist")
                    assert link(daemon, "isp-a")["carries"] == ["ipv4", "ipv6"]
                    assert set(homes(lab, daemon)) == {"isp-a"}
                    for talk in staying:
                        assert link_of(lab, talk.goes_on()) == "isp-a"
                    for talk in moving:
                        goes_on_by(lab, talk, "isp-a")
                    eventually(lambda: not tracked(lab, f"mark={2 << 24}"))
                attend("isp-b")
                becomes(daemon, "isp-b", 4, 6)
                indices.add(_index(lab))
                assert homes(lab, daemon) == before, "exactly its slots"
                check_settings(lab, "wan2")
                check_pairs(lab, daemon, ["isp-a", "isp-b"])
                eventually(lambda: all(one["ok"] for one in link(daemon)["targets"]))
                for talk in [*staying, *moving]:
                    assert link_of(lab, talk.goes_on()) == "isp-a", "a connection keeps its link"
                with faults.dropping(lab, "isp-b"):
                    is_down_for(daemon, "isp-b", "no answer from", "the gateway answers")
                becomes(daemon, "isp-b", 4, 6)
        assert len(indices) == 4
        eventually(lambda: descriptors(daemon) <= opened, f"more than {opened} descriptors")
        is_well(daemon)
        for talk, _ in (*talks["udp"], *talks["tcp"]):
            talk.close()
        assert daemon.stop(signal.SIGINT) == 0


def _index(lab: Lab) -> int:
    return int(lab.router.run("cat", "/sys/class/net/wan2/ifindex").stdout)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faults.no_carrier, "interface wan{} has no carrier"),
        (faults.dropping, "no answer from"),
        (faults.interface_down, "interface wan{} is not enabled"),
    ],
    ids=["carrier", "path", "interface"],
)
def test_all_links_die_and_return(two_links: Lab, fault: faults.Fault, words: str) -> None:
    """B first, then A, which is where all stays meanwhile; then B is back first."""
    lab = two_links
    daemon = lab.run(_file(lab))
    before = homes(lab, daemon)
    source, target = lab.topology.pairs()[before.index("isp-a")]
    with watched(lab), Talk(lab.client, source, lab.server, target) as talk, ExitStack() as broken:
        talk.goes_on()
        first, last = ExitStack(), ExitStack()
        broken.push(first)
        broken.push(last)
        first.enter_context(fault(lab, "isp-b"))
        is_down_for(daemon, "isp-b", words.format(2))
        last.enter_context(fault(lab, "isp-a"))
        is_down_for(daemon, "isp-a", words.format(1))
        assert link(daemon, "isp-b")["state"] == "down"
        if fault is not faults.interface_down:
            shares = {name: link(daemon, name)["share_slots"] for name in ("isp-a", "isp-b")}
            assert shares == {"isp-a": 1.0, "isp-b": 0.0}, "the last link stays"
            assert set(homes(lab, daemon)) == {"isp-a"}
            assert any("isp-a is down" in one and "stays in use" in one
                       for one in status(daemon)["faults"])  # fmt: skip
        first.close()
        becomes(daemon, "isp-b", 4, 6)
        assert set(homes(lab, daemon)) == {"isp-b"}
        goes_on_by(lab, talk, "isp-b")
        last.close()
        becomes(daemon, "isp-a", 4, 6)
        assert homes(lab, daemon) == before
        check_pairs(lab, daemon, ["isp-a", "isp-b"])
    is_well(daemon)


@pytest.mark.parametrize("fault", [faults.no_carrier, faults.dropping], ids=["carrier", "path"])
def test_started_while_all_links_are_dead(two_links: Lab, fault: faults.Fault) -> None:
    lab = two_links
    with undone(lab):
        with watched(lab):
            with fault(lab, "isp-b"):
                with fault(lab, "isp-a"):
                    daemon = lab.run(_file(lab))
                    why = "no carrier" if fault is faults.no_carrier else "no answer from"
                    is_down_for(daemon, "isp-a", why)
                    is_down_for(daemon, "isp-b", why)
                becomes(daemon, "isp-a", 4, 6)
                check_pairs(lab, daemon, ["isp-a"])
            becomes(daemon, "isp-b", 4, 6)
            check_pairs(lab, daemon, ["isp-a", "isp-b"])
            is_well(daemon)
        assert daemon.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_what_was_silent_has_to_prove_itself_after_a_restart(
    two_links: Lab, end: signal.Signals
) -> None:
    """Although it answers again by then: nothing is sent there before enough good rounds."""
    lab = two_links
    file = _file(lab, interval_ms=300)
    daemon = lab.run(file)
    before = homes(lab, daemon)
    with watched(lab):
        with faults.dropping(lab, "isp-b"):
            is_down_for(daemon, "isp-b", "no answer from")
            for _ in range(2):
                daemon.stop(end)
                daemon = lab.run(file)
                assert "ready: 1 of 2 links up" in daemon.log
                assert link(daemon)["state"] == "down"
                check_pairs(lab, daemon, ["isp-a"])
            daemon.stop(end)
        daemon = lab.run(file)
        started = time.monotonic()
        assert "link isp-b is down: did not answer before the daemon's restart" in daemon.log
        becomes(daemon, "isp-b", 4, 6)
        assert time.monotonic() - started > 0.6, "five rounds of 300 ms"
        assert homes(lab, daemon) == before
        check_pairs(lab, daemon, ["isp-a", "isp-b"])
        is_well(daemon)
    assert daemon.log.count("link isp-b is") == 2, "down, then up"


def test_after_a_restart_status_says_who_is_silent(two_links: Lab) -> None:
    """Not that somebody was before: by then the targets have been asked again."""
    lab = two_links
    daemon = lab.run(_file(lab))
    with faults.dropping(lab, "isp-b"):
        is_down_for(daemon, "isp-b", "no answer from", "the gateway answers")
        daemon.stop()
        daemon = lab.run(_file(lab))
        is_down_for(daemon, "isp-b", "no answer from", "the gateway answers")
