"""A link dies and comes back: who moves, who does not, and what never leaves by the wrong link.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘          isp-b dies
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from dataplane.lab import Daemon, Lab
from dataplane.lab.topology import Family
from tests.lab.talk import (
    Talk,
    call,
    counted,
    eventually,
    flows_again,
    link_of,
    rightful_sources,
    status,
    talks,
    tracked,
)

KEY = "0123456789abcdef"
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
Switch = Callable[[Lab], None]


def carrier_off(lab: Lab) -> None:
    lab["isp-b"].run("ip", "link", "set", "dev", "link", "down")


def carrier_on(lab: Lab) -> None:
    """The provider's side comes back with its IPv6 address, which the kernel took away."""
    lab["isp-b"].run("ip", "link", "set", "dev", "link", "up")
    gateway = str(lab.topology.link("isp-b").gateway(6))
    lab["isp-b"].run("ip", "address", "replace", f"{gateway}/64", "dev", "link", "nodad")


def set_down(lab: Lab) -> None:
    lab.router.run("ip", "link", "set", "dev", "wan2", "down")


def set_up(lab: Lab) -> None:
    lab.router.run("ip", "link", "set", "dev", "wan2", "up")
    address = str(lab.topology.link("isp-b").address(6))
    lab.router.run("ip", "address", "replace", f"{address}/64", "dev", "wan2", "nodad")


def address_off(lab: Lab) -> None:
    for address in lab.topology.link("isp-b").addresses:
        lab.router.run("ip", "address", "del", str(address), "dev", "wan2")


def address_on(lab: Lab) -> None:
    for address in lab.topology.link("isp-b").addresses:
        nodad = ["nodad"] if address.version == 6 else []
        lab.router.run("ip", "address", "add", str(address), "dev", "wan2", *nodad)


def alive(daemon: Daemon) -> dict[str, list[str]]:
    """The families that each link carries."""
    return {link["name"]: link["carries"] for link in status(daemon)["links"]}


def is_dead(daemon: Daemon) -> bool:
    return alive(daemon)["isp-b"] == []


def is_back(daemon: Daemon) -> bool:
    return alive(daemon)["isp-b"] == ["ipv4", "ipv6"]


def broken(talk: Talk) -> bool:
    """Whether the near side of a TCP connection has been told that it is over."""
    talk.near.settimeout(0.3)
    try:
        talk.near.send(talk.payload)
        return talk.near.recv(64) == b""
    except (ConnectionResetError, BrokenPipeError):
        return True
    except OSError:
        return False


@pytest.mark.parametrize(
    ("kill", "revive"),
    [(carrier_off, carrier_on), (set_down, set_up), (address_off, address_on)],
    ids=["carrier", "interface", "address"],
)
def test_a_link_dies_and_returns(two_links: Lab, kill: Switch, revive: Switch) -> None:
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    asked = questions(lab)
    homes = [one["link"] for one in daemon.explain(asked)]
    datagrams, streams = talks(lab, "udp"), talks(lab, "tcp")
    assert all(datagrams.values())
    assert all(streams.values())
    with rightful_sources(lab, moving=True) as witness:
        kill(lab)
        eventually(lambda: is_dead(daemon))
        assert {one["link"] for one in daemon.explain(asked)} == {"isp-a"}
        # Forgotten, and nothing that was on its way brought one back.
        eventually(lambda: not tracked(lab, f"mark={2 << 24}"))
        for talk in datagrams["isp-b"]:
            eventually(lambda talk=talk: flows_again(talk), "UDP moves")  # type: ignore[misc]
            assert link_of(lab, talk.says()) == "isp-a"
            talk.answers()
        for talk in streams["isp-b"]:
            eventually(lambda talk=talk: broken(talk), "TCP fails fast")  # type: ignore[misc]
        for talk in datagrams["isp-a"] + streams["isp-a"]:
            assert link_of(lab, talk.goes_on()) == "isp-a"
        assert not tracked(lab, f"mark={2 << 24}")

        revive(lab)
        eventually(lambda: is_back(daemon))
        assert [one["link"] for one in daemon.explain(asked)] == homes, "exactly as before"
        for talk in datagrams["isp-a"] + datagrams["isp-b"] + streams["isp-a"]:
            assert link_of(lab, talk.goes_on()) == "isp-a", "a connection keeps its link"
        for line, home in zip(asked, homes, strict=True):
            source, target, *_ = line.split()
            with Talk(lab.client, source, lab.server, target) as talk:
                assert link_of(lab, talk.goes_on()) == home
        survivors = {talk.number for talk in datagrams["isp-a"] + streams["isp-a"]}
        assert not survivors & set(witness.testimony().torn())
    assert counted(lab, "fallback") == 0


def questions(lab: Lab) -> list[str]:
    """Every pair, as `explain` takes it."""
    return [f"{source} {target} udp 1 2" for source, target in lab.topology.pairs()]


def test_nothing_comes_back_on_a_dead_link_under_load(two_links: Lab) -> None:
    """New connections all the time while the link dies, thrice: none is left on it."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY, probe={"hold_ms": 0}))
    over = threading.Event()
    sent = [0]

    def open_connections() -> None:
        with lab.client.inside():
            number = 0
            while not over.is_set():
                number += 1
                source, target = lab.topology.pairs()[number % len(lab.topology.pairs())]
                family = socket.AF_INET if source.version == 4 else socket.AF_INET6
                with socket.socket(family, socket.SOCK_DGRAM) as one, suppress(OSError):
                    one.bind((str(source), 0))
                    for _ in range(3):
                        one.sendto(b"datagram", (str(target), 9))
                sent[0] += 1

    opener = threading.Thread(target=open_connections)
    opener.start()
    try:
        with rightful_sources(lab):
            for _ in range(3):
                before = sent[0]
                eventually(lambda before=before: sent[0] > before + 200)  # type: ignore[misc]
                assert tracked(lab, f"mark={2 << 24}")
                carrier_off(lab)
                eventually(lambda: is_dead(daemon))
                before = sent[0]
                eventually(lambda before=before: sent[0] > before + 200)  # type: ignore[misc]
                eventually(lambda: not tracked(lab, f"mark={2 << 24}"))
                carrier_on(lab)
                eventually(lambda: is_back(daemon))
    finally:
        over.set()
        opener.join()
    assert status(daemon)["queue"]["errors"] == 0


@FAMILIES
@pytest.mark.parametrize("ending", ["fin", "rst"])
def test_the_guard_stops_what_nat_skips(two_links: Lab, family: Family, ending: str) -> None:
    """After its connection was forgotten, a FIN is INVALID and would leave untranslated."""
    lab = two_links
    lab.run(lab.file(key=KEY))
    with rightful_sources(lab):
        for stopped, target in enumerate(lab.topology.serving(family), 1):
            talk = call(lab, target, "tcp")
            # The far side does not answer: a late ACK would be tracked as a new connection.
            talk.says()
            version = "ipv4" if family == 4 else "ipv6"
            sport = str(talk.ports[0])
            lab.router.run("conntrack", "-D", "-f", version, "-p", "tcp", "--sport", sport)
            if ending == "rst":
                linger = struct.pack("ii", 1, 0)
                talk.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            talk.near.close()
            eventually(lambda stopped=stopped: counted(lab, "wrong_source") >= stopped)  # type: ignore[misc]
            talk.close()


@FAMILIES
def test_a_table_that_lost_its_route_does_not_fall_through(two_links: Lab, family: Family) -> None:
    """The daemon is stopped, so nobody mends; what belongs to B never leaves by A."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    found = talks(lab, "udp")
    daemon.kill()
    with rightful_sources(lab):
        lab.router.run("ip", f"-{family}", "route", "del", "default", "table", "7002")
        version = socket.AF_INET if family == 4 else socket.AF_INET6
        lost = [talk for talk in found["isp-b"] if talk.near.family == version]
        for talk in lost[:4]:
            assert not flows_again(talk)
        for talk in found["isp-a"]:
            assert link_of(lab, talk.goes_on()) == "isp-a"
        address = lab.topology.link("isp-b").address(family)
        target = lab.topology.serving(family)[0]
        # The router's own, bound to the link's address.
        with pytest.raises(OSError, match=r"No route to host|unreachable"):
            Talk(lab.router, address, lab.server, target)
