"""A link died and is back: what becomes of the connections that were opened elsewhere meanwhile.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘          isp-b dies and returns

But for the last test the daemon keeps them where they are; the test does what is asked of
`Failback` beside it, in the router's namespace, so that the idle time can be short.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import pytest

from dataplane.config.load import read_file
from dataplane.config.model import Failback as Mode
from dataplane.daemon.connections import home_by
from dataplane.daemon.failback import Failback
from dataplane.daemon.look import Machine
from dataplane.decide.wish import Before, Wish, make_wish
from dataplane.lab import Daemon, Lab
from dataplane.lab.topology import BOTH, Address
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

KEY = "0123456789abcdef"
# Timeouts are counted in seconds.
IDLE_S = 6.0
MODES = pytest.mark.parametrize("mode", list(Mode))


def carrier(lab: Lab, state: str) -> None:
    """The provider's side gets its IPv6 address back, which the kernel takes away."""
    lab["isp-b"].run("ip", "link", "set", "dev", "link", state)
    if state == "up":
        gateway = f"{lab.topology.link('isp-b').gateway(6)}/64"
        lab["isp-b"].run("ip", "address", "replace", gateway, "dev", "link", "nodad")


def carries(daemon: Daemon) -> list[str]:
    found: list[str] = status(daemon)["links"][1]["carries"]
    return found


def wish_of(lab: Lab, daemon: Daemon, mode: Mode) -> Wish:
    """The daemon's, as if its file said that mode."""
    config = read_file(daemon.file)
    config = replace(config, links=tuple(replace(one, failback=mode) for one in config.links))
    with lab.router.inside():
        machine = Machine()
        try:
            facts = machine.look(config)
        finally:
            machine.close()
    ids = {link.name: number for number, link in enumerate(lab.topology.links, 1)}
    return make_wish(config, facts, int(KEY, 16), Before(ids))


class Taking:
    """Failback in the router's namespace."""

    def __init__(self, lab: Lab, wish: Wish) -> None:
        self._lab, self._wish = lab, wish
        with lab.router.inside():
            self._machine = Machine()
        self._failback = Failback(
            lambda wish: home_by(wish, None), self._machine.netlink.destination, IDLE_S
        )
        for family in BOTH:
            self._failback.returned("isp-b", family, wish)

    def step(self) -> bool:
        with self._lab.router.inside():
            return self._failback.step(self._wish, time.monotonic())

    def gone(self) -> None:
        for family in BOTH:
            self._failback.gone("isp-b", family)

    def close(self) -> None:
        self._machine.close()


@contextmanager
def taking(lab: Lab, wish: Wish) -> Iterator[Taking]:
    made = Taking(lab, wish)
    try:
        yield made
    finally:
        made.close()


@dataclass
class Talks:
    """What runs when the link is back, by where it belongs; everything is on isp-a.

    `datagrams` and `streams` are of pairs whose home is isp-b, the router's own among them;
    `survivors` are of isp-a's own pairs. `fixed` were not balanced, though their pairs' home is
    isp-b.
    """

    datagrams: list[Talk]
    streams: list[Talk]
    survivors: list[Talk]
    fixed: list[Talk]

    def close(self) -> None:
        for talk in (*self.datagrams, *self.streams, *self.survivors, *self.fixed):
            talk.close()


def opened(lab: Lab, homes: dict[tuple[Address, Address], str]) -> Talks:
    """One conversation for each pair and protocol, while isp-b is dead."""
    made = Talks([], [], [], [])
    routers = {lab.topology.lans[0].router(family) for family in BOTH}
    for protocol, moving in (("udp", made.datagrams), ("tcp", made.streams)):
        for (source, target), name in homes.items():
            if source in routers:
                talk = Talk(lab.router, None, lab.server, target, protocol=protocol)
            else:
                talk = call(lab, target, protocol, source=source)
            assert link_of(lab, talk.goes_on()) == "isp-a"
            (moving if name == "isp-b" else made.survivors).append(talk)
    way = lab.topology.link("isp-a")
    for family in BOTH:
        servers = lab.topology.serving(family)
        for protocol in ("udp", "tcp"):
            address = way.address(family)
            for server in servers:
                # From outside, and the router's own that is bound to the link's address.
                made.fixed.append(Talk(lab.server, server, lab.router, address, protocol=protocol))
                made.fixed.append(Talk(lab.router, address, lab.server, server, protocol=protocol))
            for source in lab.topology.lans[0].clients(family):
                # To a resolver of isp-a, and by a specific route of main.
                for server in (servers[0], servers[1]):
                    made.fixed.append(call(lab, server, protocol, source=source))
    for talk in made.fixed:
        talk.goes_on()
    return made


def ends(lab: Lab, daemon: Daemon) -> dict[tuple[Address, Address], str]:
    """The pairs that are balanced, the router's own among them, and their homes."""
    pairs = []
    for family in BOTH:
        lan = lab.topology.lans[0]
        sources = (*lan.clients(family), lan.router(family))
        pairs += list(product(sources, lab.topology.serving(family)[2:]))
    answers = daemon.explain([f"{source} {target} udp 1 2" for source, target in pairs])
    return {pair: str(answer["link"]) for pair, answer in zip(pairs, answers, strict=True)}


def started(lab: Lab, mode: Mode = Mode.KEEP) -> Daemon:
    """The first server is isp-a's resolver, to the second main has a route by isp-a."""
    way = lab.topology.link("isp-a")
    servers = {family: lab.topology.serving(family) for family in BOTH}
    for family in BOTH:
        route = (str(servers[family][1]), "via", str(way.gateway(family)), "dev", way.interface)
        lab.router.run("ip", f"-{family}", "route", "add", *route)
    resolvers = [servers[family][0] for family in BOTH]
    told: dict[str, dict[str, object]] = {
        "isp-a": {"resolvers": resolvers},
        "isp-b": {"failback": str(mode)},
    }
    return lab.run(file_with(lab, told, key=KEY))


def is_broken(talk: Talk) -> bool:
    """The near side of a TCP connection has been told that it is over."""
    talk.near.settimeout(0.3)
    try:
        talk.near.send(talk.payload)
        return talk.near.recv(64) == b""
    except (ConnectionResetError, BrokenPipeError):
        return True
    except OSError:
        return False


def is_on(lab: Lab, talk: Talk, name: str) -> bool:
    """Datagrams leave by that link now, from whatever peer."""
    talk.peer = None
    return link_of(lab, talk.goes_on()) == name


def entries(lab: Lab) -> set[tuple[int, int]]:
    """Source and destination port of what conntrack holds, as the one who began has them."""
    found = (re.search(r"sport=(\d+) dport=(\d+)", line) for line in tracked(lab))
    return {(int(one[1]), int(one[2])) for one in found if one}


def stays(lab: Lab, talks: list[Talk]) -> None:
    """Talk says so itself where a peer is another than before."""
    for talk in talks:
        talk.goes_on()


@MODES
def test_a_link_returns(two_links: Lab, mode: Mode) -> None:
    lab = two_links
    daemon = started(lab)
    homes = ends(lab, daemon)
    assert set(homes.values()) == {"isp-a", "isp-b"}
    carrier(lab, "down")
    eventually(lambda: carries(daemon) == [])
    eventually(lambda: not tracked(lab, f"mark={2 << 24}"))
    talks = opened(lab, homes)
    carrier(lab, "up")
    eventually(lambda: len(carries(daemon)) == 2)
    wish = wish_of(lab, daemon, mode)
    with rightful_sources(lab, moving=True) as witness, taking(lab, wish) as back:
        stays(lab, talks.datagrams + talks.streams)
        if mode is Mode.KEEP:
            assert not back.step()
            stays(lab, talks.datagrams + talks.streams)
            assert not tracked(lab, f"mark={2 << 24}")
        elif mode is Mode.KILL:
            moving = {talk.ports for talk in talks.datagrams + talks.streams}

            def forgotten() -> bool:
                """A step does a slice of the work: a busy machine needs more than one."""
                back.step()
                return not entries(lab) & moving

            eventually(forgotten)
            # Forgotten ones of these would come back by the same link, so traffic does not tell.
            assert entries(lab) >= {talk.ports for talk in talks.survivors + talks.fixed}
            eventually(lambda: not back.step())
            assert all(is_on(lab, talk, "isp-b") for talk in talks.datagrams)
            assert all(is_broken(talk) for talk in talks.streams)
        else:
            drain(lab, back, talks)
        stays(lab, talks.survivors + talks.fixed)
        kept = {talk.number for talk in talks.survivors + talks.fixed}
        assert not kept & set(witness.testimony().torn())
    assert counted(lab, "fallback") == 0
    talks.close()


def drain(lab: Lab, back: Taking, talks: Talks) -> None:
    """The first half speaks all the time, the other half has said what it had to say."""
    busy = talks.datagrams[::2] + talks.streams[::2]
    idle = talks.datagrams[1::2] + talks.streams[1::2]
    ports = {talk.ports for talk in idle}

    def all_idle_are_gone() -> bool:
        stays(lab, busy)
        assert back.step(), "the busy ones are left"
        return not ports & entries(lab)

    eventually(all_idle_are_gone, timeout_s=60)
    assert entries(lab) >= {talk.ports for talk in talks.survivors + talks.fixed}
    for _ in range(3):
        stays(lab, busy)
    assert all(is_on(lab, talk, "isp-b") for talk in talks.datagrams[1::2])
    assert all(is_broken(talk) for talk in talks.streams[1::2])
    # Now the others are silent, too.
    eventually(lambda: not back.step(), timeout_s=60)
    assert all(is_on(lab, talk, "isp-b") for talk in talks.datagrams[::2])
    assert all(is_broken(talk) for talk in talks.streams[::2])


def test_it_dies_again_while_draining(two_links: Lab) -> None:
    lab = two_links
    daemon = started(lab)
    homes = {pair: home for pair, home in ends(lab, daemon).items() if home == "isp-b"}
    carrier(lab, "down")
    eventually(lambda: carries(daemon) == [])
    talks = opened(lab, dict(list(homes.items())[:4]))
    carrier(lab, "up")
    eventually(lambda: len(carries(daemon)) == 2)
    with taking(lab, wish_of(lab, daemon, Mode.DRAIN)) as back:
        assert back.step()
        carrier(lab, "down")
        eventually(lambda: carries(daemon) == [])
        back.gone()
        assert not back.step()
        stays(lab, talks.datagrams + talks.streams + talks.fixed)
    talks.close()


def test_the_daemon_does_so(two_links: Lab) -> None:
    lab = two_links
    daemon = started(lab, Mode.KILL)
    homes = ends(lab, daemon)
    carrier(lab, "down")
    eventually(lambda: carries(daemon) == [])
    eventually(lambda: not tracked(lab, f"mark={2 << 24}"))
    talks = opened(lab, homes)
    with rightful_sources(lab, moving=True) as witness:
        carrier(lab, "up")
        eventually(lambda: len(carries(daemon)) == 2)
        moving = {talk.ports for talk in talks.datagrams + talks.streams}
        eventually(lambda: not moving & entries(lab))
        assert entries(lab) >= {talk.ports for talk in talks.survivors + talks.fixed}
        assert all(is_on(lab, talk, "isp-b") for talk in talks.datagrams)
        assert all(is_broken(talk) for talk in talks.streams)
        stays(lab, talks.survivors + talks.fixed)
        kept = {talk.number for talk in talks.survivors + talks.fixed}
        assert not kept & set(witness.testimony().torn())
    talks.close()
