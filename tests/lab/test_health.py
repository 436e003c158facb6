"""Paths that die beyond the gateway: noticed, moved, put back; and what is no reason to move.

client ── router ─┬─ isp-a ─┬─ server, and public resolvers
                  └─ isp-b ─┘
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import pytest

from dataplane.config.model import PUBLIC_RESOLVERS
from dataplane.lab import Daemon, Lab, faults
from tests.lab.beyond import asked
from tests.lab.conftest import TWO_LINKS, MakeLab
from tests.lab.talk import (
    Talk,
    eventually,
    file_with,
    flows_again,
    link_of,
    rightful_sources,
    status,
    talks,
    tracked,
)

KEY = "0123456789abcdef"
QUAD9 = ip_address("9.9.9.9")
OF_B = f"mark={2 << 24}"


def link(daemon: Daemon, name: str) -> dict[str, Any]:
    found = next(one for one in status(daemon)["links"] if one["name"] == name)
    assert isinstance(found, dict)
    return found


def state(daemon: Daemon) -> dict[str, str]:
    return {one["name"]: one["state"] for one in status(daemon)["links"]}


def carries(daemon: Daemon, name: str) -> list[str]:
    return list(link(daemon, name)["carries"])


def is_down(daemon: Daemon, name: str = "isp-b") -> Callable[[], bool]:
    return lambda: state(daemon)[name] == "down"


def is_up(daemon: Daemon, name: str = "isp-b") -> Callable[[], bool]:
    return lambda: carries(daemon, name) == ["ipv4", "ipv6"]


def questions(lab: Lab) -> list[str]:
    return [f"{source} {target} udp 1 2" for source, target in lab.topology.pairs()]


@pytest.mark.parametrize("nat", ["masquerade", "snat"])
@pytest.mark.parametrize(
    "break_it", [faults.dropping, faults.dead_gateway], ids=["beyond the gateway", "the gateway"]
)
def test_a_silent_path_is_left_and_taken_back(
    two_links: Lab, nat: str, break_it: faults.Fault
) -> None:
    lab = two_links
    keys = {
        one.name: {"nat": nat, "address": [str(a.ip) for a in one.addresses]}
        for one in lab.topology.links
    }
    daemon = lab.run(file_with(lab, keys if nat == "snat" else None, key=KEY))
    asked = questions(lab)
    homes = [one["link"] for one in daemon.explain(asked)]
    datagrams, streams = talks(lab, "udp"), talks(lab, "tcp")
    assert datagrams["isp-b"]
    survivors = datagrams["isp-a"] + streams["isp-a"]
    with rightful_sources(lab, moving=True) as witness:
        with break_it(lab, "isp-b"):
            eventually(is_down(daemon))
            assert state(daemon)["isp-a"] == "up"
            said = link(daemon, "isp-b")["why"]
            assert said.startswith("no answer from 1.1.1.1 and 9.9.9.9")
            beyond = break_it is faults.dropping
            assert said.endswith("; the gateway answers" if beyond else ", nor the gateway")
            assert {one["link"] for one in daemon.explain(asked)} == {"isp-a"}
            eventually(lambda: not tracked(lab, OF_B))
            for talk in datagrams["isp-b"]:
                eventually(lambda talk=talk: flows_again(talk), "UDP moves")  # type: ignore[misc]
                assert link_of(lab, talk.goes_on()) == "isp-a"
            for talk in survivors:
                assert link_of(lab, talk.goes_on()) == "isp-a"
            assert not tracked(lab, OF_B), "and probes are not counted among them"
        eventually(is_up(daemon))
        assert [one["link"] for one in daemon.explain(asked)] == homes, "exactly as before"
        for talk in [*survivors, *datagrams["isp-b"]]:
            assert link_of(lab, talk.goes_on()) == "isp-a", "a connection keeps its link"
        for line, home in zip(asked, homes, strict=True):
            source, target, *_ = line.split()
            with Talk(lab.client, source, lab.server, target) as talk:
                assert link_of(lab, talk.goes_on()) == home
        assert not {talk.number for talk in survivors} & set(witness.testimony().torn())
    assert "link isp-b is down: no answer" in daemon.log
    assert daemon.log.count("link isp-b is") == 3, "once a transition: up, down, up"


def test_one_silent_target_is_no_reason(two_links: Lab) -> None:
    """Nor is a gateway that answers no pings; both are told."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    with faults.silent_target(lab, QUAD9), faults.shy_gateway(lab, "isp-a"):

        def heard() -> dict[str, dict[str, Any]]:
            targets = link(daemon, "isp-a")["targets"]
            return {one["target"]: one for one in targets if one["family"] == 4}

        # Twenty rounds, of which three in a row would have been enough.
        eventually(lambda: (heard()["9.9.9.9"]["loss"] or 0) > 0.8)
        found = heard()
        assert found["9.9.9.9"]["ok"] is False
        assert found["9.9.9.9"]["said"] == "no answer within 500 ms"
        assert found["gateway"]["ok"] is False
        assert found["1.1.1.1"]["ok"] is True
        assert found["1.1.1.1"]["rtt_ms"] < 500
        assert state(daemon) == {"isp-a": "up", "isp-b": "up"}
    eventually(lambda: heard()["9.9.9.9"]["ok"] and heard()["gateway"]["ok"])
    assert daemon.log.count("link isp") == 2, "nothing was a transition"


def test_a_family_dies_alone(two_links: Lab) -> None:
    """IPv6 is dead beyond the gateway; IPv4 goes on, and only IPv6 moves."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    found = talks(lab, "udp")
    with rightful_sources(lab, moving=True), ExitStack() as broken:
        for target in lab.topology.serving(6):
            broken.enter_context(faults.silent_target(lab, target, "isp-b"))
        for resolver in ("2606:4700:4700::1111", "2620:fe::9"):
            broken.enter_context(faults.silent_target(lab, ip_address(resolver), "isp-b"))
        eventually(lambda: carries(daemon, "isp-b") == ["ipv4"])
        assert state(daemon)["isp-b"] == "up"
        assert "no IPv6: no answer from" in link(daemon, "isp-b")["why"]
        for talk in found["isp-b"]:
            four = not str(talk.near.getsockname()[0]).count(":")
            eventually(lambda talk=talk: flows_again(talk))  # type: ignore[misc]
            assert link_of(lab, talk.goes_on()) == ("isp-b" if four else "isp-a")
    eventually(is_up(daemon))


def test_the_last_link_stays(two_links: Lab) -> None:
    """Where no link is better nothing moves, nothing is forgotten, and connections survive."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    found = talks(lab, "tcp")
    with rightful_sources(lab, moving=True):
        with faults.dropping(lab, "isp-b"):
            eventually(is_down(daemon))
            with faults.dropping(lab, "isp-a"):
                eventually(is_down(daemon, "isp-a"))
                eventually(lambda: "isp-a is down" in " ".join(status(daemon)["faults"]))
                assert any(
                    "it stays in use, since no other link is better" in fault
                    for fault in status(daemon)["faults"]
                )
                assert {one["link"] for one in daemon.explain(questions(lab))} == {"isp-a"}
                for talk in found["isp-a"]:
                    talk.near.send(talk.payload)
            # A TCP connection outlives the outage: retransmission brings it.
            for talk in found["isp-a"]:
                talk.far.settimeout(20)
                assert talk.far.recv(8) == talk.payload
                assert link_of(lab, talk.goes_on()) == "isp-a"
            eventually(is_up(daemon, "isp-a"))
            assert state(daemon)["isp-b"] == "down"
        eventually(is_up(daemon))


def test_dead_targets_are_not_dead_links(two_links: Lab) -> None:
    """All links fall silent within a moment: nothing moves, and no connection is forgotten."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    asked = questions(lab)
    homes = [one["link"] for one in daemon.explain(asked)]
    found = talks(lab, "tcp")
    with rightful_sources(lab):
        with ExitStack() as broken:
            for resolver in PUBLIC_RESOLVERS:
                broken.enter_context(faults.silent_target(lab, resolver))
            for name in found:
                eventually(is_down(daemon, name))
            assert [one["link"] for one in daemon.explain(asked)] == homes
            for name, each in found.items():
                for talk in each:
                    assert link_of(lab, talk.goes_on()) == name
        for name in found:
            eventually(is_up(daemon, name))
        assert [one["link"] for one in daemon.explain(asked)] == homes
        for name, each in found.items():
            for talk in each:
                assert link_of(lab, talk.goes_on()) == name


def test_a_restart_remembers_who_was_silent(two_links: Lab) -> None:
    """Else a restart would send a share of all connections into a path that is known to be dead."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    with faults.dropping(lab, "isp-b"):
        eventually(is_down(daemon))
        assert daemon.stop() == 0
        again = lab.run(lab.file(key=KEY))
        assert "link isp-b is up" not in again.log
        assert state(again)["isp-b"] == "down"
        assert {one["link"] for one in again.explain(questions(lab))} == {"isp-a"}
    eventually(is_up(again))


def test_drained_by_hand(two_links: Lab) -> None:
    """New connections go elsewhere, present ones stay; a restart does not forget it."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    asked = questions(lab)
    homes = [one["link"] for one in daemon.explain(asked)]
    found = talks(lab, "tcp")
    file = str(daemon.file)
    with rightful_sources(lab):
        lab.evenlink("drain", "isp-b", "--config", file)
        eventually(lambda: state(daemon)["isp-b"] == "drained")
        assert {one["link"] for one in daemon.explain(asked)} == {"isp-a"}
        for name, each in found.items():
            for talk in each:
                assert link_of(lab, talk.goes_on()) == name, "present connections stay"
        refused = lab.evenlink("drain", "isp-a", "--config", file, check=False)
        assert refused.returncode == 3
        assert "isp-a is the last link that lives" in refused.stderr
        assert daemon.stop() == 0
        daemon = lab.run(lab.file(key=KEY))
        assert state(daemon)["isp-b"] == "drained"
        for talk in found["isp-b"]:
            assert link_of(lab, talk.goes_on()) == "isp-b"
        lab.evenlink("restore", "isp-b", "--config", file)
        eventually(is_up(daemon))
        assert [one["link"] for one in daemon.explain(asked)] == homes
    unknown = lab.evenlink("drain", "isp-x", "--config", file, check=False)
    assert unknown.returncode == 2
    assert "isp-x" in unknown.stderr


def test_a_target_without_an_address_is_named_and_harms_nothing(make_lab: MakeLab) -> None:
    """No resolver answers in the lab: the name leads nowhere, the address decides."""
    lab = make_lab(TWO_LINKS)
    keys = {"kind": "ping", "targets": ["no.such.name.invalid", "1.1.1.1"]}
    daemon = lab.run(file_with(lab, sections={"probe": keys}, key=KEY))
    eventually(lambda: any("no.such.name.invalid" in one for one in status(daemon)["faults"]))
    assert state(daemon) == {"isp-a": "up", "isp-b": "up"}
    with faults.dropping(lab, "isp-b"):
        eventually(is_down(daemon))
        assert link(daemon, "isp-b")["why"].startswith("no answer from 1.1.1.1")
    eventually(lambda: state(daemon)["isp-b"] == "up")


def test_without_probes_a_silent_path_is_not_noticed(make_lab: MakeLab) -> None:
    """And nothing is sent: the operator said so. The other link's probes are the clock."""
    lab = make_lab(TWO_LINKS)
    with asked(lab, "isp-a") as rounds, asked(lab, "isp-b") as never:
        daemon = lab.run(file_with(lab, {"isp-b": {"probes": False}}, key=KEY))
        assert link(daemon, "isp-b")["targets"] == []
        pairs = questions(lab)
        homes = [one["link"] for one in daemon.explain(pairs)]
        with faults.dropping(lab, "isp-b"):
            before = rounds()
            # Three would have been enough.
            eventually(lambda: rounds() >= before + 8)
            assert state(daemon) == {"isp-a": "up", "isp-b": "up"}
            assert [one["link"] for one in daemon.explain(pairs)] == homes
        with faults.no_carrier(lab, "isp-b"):
            eventually(is_down(daemon))
        eventually(is_up(daemon))
        assert daemon.log.count("link isp-b is") == 3, "up, and its carrier went and came"
        assert never() == 0
