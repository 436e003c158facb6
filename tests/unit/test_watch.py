"""Links that are watched: when a judgement is published, and what begins their probes anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest

from dataplane.config.model import Config, Group, Link, Probe, Target
from dataplane.daemon.watch import MOST_WAIT_S, Watch
from dataplane.decide.facts import Facts, Family, InterfaceFacts
from dataplane.decide.liveness import Condition, link_states
from tests.unit.clockwork import (
    Address,
    Heard,
    Names,
    World,
    clocked,
    false_world,
    now_ms,
    until_ms,
)

GATEWAY, HOST = IPv4Address("192.0.2.1"), IPv4Address("203.0.113.1")
PROBE = Probe(targets=(Target("host", address=HOST),))
SLOW = replace(PROBE, interval_ms=5000)
LIVING, SILENT, CUT = Condition.LIVING, Condition.SILENT, Condition.CUT


def link(name: str, *probes: Probe) -> Link:
    return Link(name, f"up-{name}", gateway=GATEWAY, download_bps=1, probes=probes)


def config(*links: Link) -> Config:
    names = tuple(one.name for one in links)
    return Config(("lan0",), links, Group("default", names), ipv6=False)


A, B = link("a", PROBE), link("b", PROBE)


class Machine:
    """The interfaces of a file's links, and who watches them.

    `published` is what was told: when, and the links' conditions by name.
    """

    def __init__(self, links: Collection[Link], before: Collection[tuple[str, Family]]) -> None:
        self.config = config(*links)
        self.interfaces = {
            name: InterfaceFacts(
                name, index, True, True, False, 1500, (IPv4Interface("192.0.2.7/24"),)
            )
            for index, name in enumerate(("up-a", "up-b"), 1)
        }
        self.published: list[tuple[int, dict[str, Condition]]] = []
        self.watch = Watch(self._changed, before)
        self.watch.take(self.config)
        self.look()

    def _changed(self) -> None:
        self.published.append((now_ms(), self.conditions))

    @property
    def conditions(self) -> dict[str, Condition]:
        found = self.watch.judgements()
        return {
            name: judgement.condition for (name, family), judgement in found.items() if family == 4
        }

    def look(self) -> None:
        facts = Facts(tuple(self.interfaces.values()), native_queue=True)
        self.watch.see(facts, link_states(self.config, facts))

    def becomes(self, interface: str, **changes: object) -> None:
        """The interface is another one now; the daemon looks at once."""
        self.interfaces[interface] = replace(self.interfaces[interface], **changes)  # type: ignore[arg-type]
        self.look()

    def take(self, *links: Link) -> None:
        """Another file."""
        self.config = config(*links)
        self.watch.take(self.config)
        self.look()
        self.serve()

    def serve(self) -> None:
        marks = {one.name: number << 24 for number, one in enumerate(self.config.links, 1)}
        self.watch.serve(marks)


@asynccontextmanager
async def watched(
    *links: Link, before: Collection[tuple[str, Family]] = ()
) -> AsyncIterator[Machine]:
    made = Machine(links, before)
    made.serve()
    # What a family without an address is told of when it is first seen.
    made.published.clear()
    try:
        yield made
    finally:
        made.watch.close()


@pytest.fixture
def false() -> Iterator[tuple[World, Names]]:
    with false_world() as made:
        yield made


@pytest.fixture
def world(false: tuple[World, Names]) -> World:
    return false[0]


def dead(**since: int) -> Callable[[str, Address, int], Heard]:
    """A path by which nobody answers from then on, by interface."""

    def path(interface: str, _: Address, at: int) -> Heard:
        return None if at >= since.get(interface.removeprefix("up-"), at + 1) else 20.0

    return path


def test_what_dies_alone_is_told_at_once(world: World) -> None:
    world.path = dead(a=500)

    async def work() -> None:
        async with watched(A, B) as machine:
            await until_ms(20_000)
            assert machine.published == [(1750, {"a": SILENT, "b": LIVING})]

    clocked(work)


def test_what_dies_together_is_told_together(world: World) -> None:
    """A moment apart: the first one waits for the second."""
    world.path = dead(a=500, b=1000)

    async def work() -> None:
        async with watched(A, B) as machine:
            await until_ms(20_000)
            assert machine.published == [(2250, {"a": SILENT, "b": SILENT})]

    clocked(work)


@pytest.mark.parametrize("answers", [False, True], ids=["never", "at-last"])
def test_anothers_doubt_delays_a_verdict_no_longer_than_that(world: World, answers: bool) -> None:
    """It is asked every five seconds, so it stays in doubt for longer."""
    silent = dead(a=1000, b=0)
    world.path = lambda by, to, at: (
        20.0 if answers and by == "up-b" and at == 2500 else silent(by, to, at)
    )

    async def work() -> None:
        async with watched(A, link("b", SLOW)) as machine:
            await until_ms(5000)
            at = 2520 if answers else 2250 + round(MOST_WAIT_S * 1000)
            assert machine.published == [(at, {"a": SILENT, "b": LIVING})]

    clocked(work)


def test_what_was_silent_before_begins_so(world: World) -> None:
    async def work() -> None:
        async with watched(A, B, before=[("a", 4)]) as machine:
            assert machine.conditions == {"a": SILENT, "b": LIVING}
            await until_ms(5000)
            assert machine.published == [(2020, {"a": LIVING, "b": LIVING})]

    clocked(work)


def test_asking_begins_when_it_is_served(world: World) -> None:
    async def work() -> None:
        machine = Machine([A], ())
        await until_ms(1000)
        assert world.asked == []
        machine.serve()
        machine.serve()
        await until_ms(2400)
        assert world.rounds() == [1000, 1500, 2000]
        assert [one.by.mark for one in world.made] == [1 << 24]
        machine.watch.close()
        machine.watch.close()

    clocked(work)


def test_addresses_that_come_and_go_do_not_restart_the_rounds(world: World) -> None:
    """A temporary address, a renewed lease: the path is the same."""

    async def work() -> None:
        async with watched(A) as machine:
            both = (IPv4Interface("192.0.2.7/24"), IPv4Interface("192.0.2.8/24"))
            for at, addresses in ((250, both), (700, both[1:]), (1100, both[:1]), (1200, both)):
                await until_ms(at)
                machine.becomes("up-a", addresses4=addresses)
            machine.look()
            await until_ms(2000)
            assert world.rounds() == [0, 500, 1000, 1500, 2000]
            assert len(world.made) == 1
            assert machine.published == []

    clocked(work)


def test_an_interface_made_anew_has_to_prove_itself(world: World) -> None:
    """Its sockets are bound to the old one."""

    async def work() -> None:
        async with watched(A) as machine:
            await until_ms(700)
            machine.becomes("up-a", index=17)
            assert machine.published == [(700, {"a": SILENT})]
            await until_ms(5000)
            assert world.rounds()[:4] == [0, 500, 700, 1200]
            assert [one.closed for one in world.made] == [True, False]
            assert machine.published[1:] == [(2720, {"a": LIVING})]

    clocked(work)


def test_an_interface_that_goes_and_comes_back(world: World) -> None:
    """With the same index or another, the old sockets are closed meanwhile."""

    async def work() -> None:
        async with watched(A) as machine:
            was = machine.interfaces.pop("up-a")
            machine.look()
            assert machine.published == [(0, {"a": CUT})]
            assert world.open() == 0
            await until_ms(5000)
            machine.interfaces["up-a"] = replace(was, index=9)
            machine.look()
            await until_ms(10_000)
            assert world.open() == 1
            assert machine.published[1:] == [(5000, {"a": SILENT}), (7020, {"a": LIVING})]

    clocked(work)


def test_the_other_family_does_not_unlearn_the_round_trip(world: World) -> None:
    """A link that is known to be slow stays up when its IPv6 gateway comes and goes."""
    world.path = lambda *_: 2000.0

    async def work() -> None:
        async with watched(A) as machine:
            machine.config = replace(machine.config, ipv6=True)
            await until_ms(60_000)
            machine.published.clear()
            addresses = (IPv6Interface("2001:db8::7/64"),)
            for at, gateway in ((60_000, IPv6Address("fe80::1")), (90_000, None)):
                await until_ms(at)
                machine.becomes("up-a", addresses6=addresses, learned_gateway6=gateway)
            await until_ms(120_000)
            assert {found["a"] for _, found in machine.published} == {LIVING}

    clocked(work)


def test_a_carrier_that_comes_back_is_not_believed(world: World) -> None:
    async def work() -> None:
        async with watched(A) as machine:
            await until_ms(1000)
            machine.becomes("up-a", carrier=False)
            await until_ms(3000)
            assert world.open() == 0
            machine.becomes("up-a", carrier=True)
            await until_ms(10_000)
            conditions = [(at, found["a"]) for at, found in machine.published]
            assert conditions == [(1000, CUT), (3000, SILENT), (5020, LIVING)]

    clocked(work)


def test_a_hold_ends_without_probes_too(world: World) -> None:
    """The second loss within a minute is held against it."""

    async def work() -> None:
        async with watched(link("a")) as machine:
            for at, carrier in ((1000, False), (2000, True), (3000, False), (4000, True)):
                await until_ms(at)
                machine.becomes("up-a", carrier=carrier)
            await until_ms(20_000)
            conditions = [(at, found["a"]) for at, found in machine.published]
            assert conditions[:3] == [(1000, CUT), (2000, LIVING), (3000, CUT)]
            assert conditions[3] == (4000, SILENT)
            at, condition = conditions[4]
            assert condition is LIVING
            assert 9000 <= at <= 9010

    clocked(work)


def test_another_file(world: World) -> None:
    """Links that stay keep their rounds and health; those that go are asked no more."""
    world.path = dead(b=0)

    async def work() -> None:
        async with watched(A, B) as machine:
            await until_ms(5200)
            assert machine.conditions == {"a": LIVING, "b": SILENT}
            machine.take(A, B)
            await until_ms(6000)
            assert len(world.made) == 2
            assert world.rounds("up-a")[-2:] == [5500, 6000]
            # Other probes begin at once, and the state stays.
            machine.take(link("a", SLOW), link("b", SLOW))
            assert len(world.made) == 4
            assert world.open() == 2
            assert machine.conditions == {"a": LIVING, "b": SILENT}
            await until_ms(6500)
            machine.take(link("b", SLOW))
            await until_ms(30_000)
            assert world.rounds("up-a")[-1] == 6000
            assert machine.conditions == {"b": SILENT}
            assert world.open() == 1
            # One that comes again is new.
            machine.take(A, link("b", SLOW))
            assert machine.conditions == {"a": LIVING, "b": SILENT}

    clocked(work)


def test_a_link_that_cannot_be_watched_does_not_keep_the_others(world: World) -> None:
    """Nor the daemon from going on; it is tried again."""

    def path(interface: str, _: Address, at: int) -> Heard:
        if interface == "up-a" and at < 1000:
            raise RuntimeError("the asker fails")
        return 20.0

    world.path = path

    async def work() -> None:
        async with watched(A, B) as machine:
            await until_ms(2000)
            machine.look()
            await until_ms(4000)
            assert world.rounds("up-b") == list(range(0, 4001, 500))
            assert world.rounds("up-a")[-1] == 4000
            assert world.open() == 2
            report = machine.watch.report()
            assert [one["ok"] for name in "ab" for one in report[name]["targets"]] == [True, True]

    clocked(work)


def test_round_trips_are_the_nearest_targets(world: World) -> None:
    """The gateway's tells nothing of the path, and who fell silent long ago tells nothing more."""
    far = IPv4Address("203.0.113.9")
    three = Probe(targets=(*PROBE.targets, Target("far", address=far), Target("g", gateway=True)))
    delays = {HOST: 20.0, far: 50.0, GATEWAY: 1.0}

    def path(interface: str, to: Address, at: int) -> Heard:
        assert isinstance(to, IPv4Address)
        return None if (interface, to) == ("up-a", HOST) and at > 10_000 else delays[to]

    world.path = path

    async def work() -> None:
        async with watched(link("a", three), link("b")) as machine:
            unasked = {("a", 6): None, ("b", 4): None, ("b", 6): None}
            assert machine.watch.round_trips() == {("a", 4): None, **unasked}
            await until_ms(10_000)
            assert machine.watch.round_trips() == {("a", 4): 20.0, **unasked}
            await until_ms(80_000)
            assert machine.watch.round_trips() == {("a", 4): 50.0, **unasked}

    clocked(work)


def test_closing_leaves_nothing(world: World) -> None:
    """While a judgement waits, a hold runs, and rounds are open."""
    world.path = dead(a=0, b=500)

    async def work() -> None:
        machine = Machine([A, B, link("c")], ())
        machine.serve()
        await until_ms(1300)
        machine.watch.close()
        assert world.open() == 0
        before = len(world.asked)
        await asyncio.sleep(20)
        assert len(world.asked) == before

    clocked(work)
