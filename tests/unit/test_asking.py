"""The rounds of one probe, to the millisecond, on a clock that never waits."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address

import pytest

from dataplane.config.model import Probe, Target
from dataplane.daemon.asking import Asking
from dataplane.daemon.naming import Naming
from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.health import Answer, Health, State
from dataplane.errors import MachineError
from dataplane.system.probe import Exit
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

HOST, OTHER, HOST6 = (
    IPv4Address("203.0.113.1"),
    IPv4Address("203.0.113.2"),
    IPv6Address("2001:db8::1"),
)
GATEWAY, GATEWAY6 = IPv4Address("192.0.2.1"), IPv6Address("fe80::1")
TO_HOST, TO_OTHER = Target("host", address=HOST), Target("other", address=OTHER)
TO_GATEWAY, TO_NAME = Target("gateway", gateway=True), Target("name", name="name.example")
PROBE = Probe(targets=(TO_HOST,))
BY_NAME = Probe(targets=(TO_NAME,))
NOWHERE = MachineError("does not resolve: NXDOMAIN")


class Recorded(Health):
    """Keeps every round that it was told: when, and the answers."""

    def __init__(self, probe: Probe, begin: State) -> None:
        super().__init__([probe], 60_000, silent=begin is State.SILENT)
        self.joined(0)
        if begin is State.RETURNING:
            self.cut("no carrier", 0)
            self.joined(0)
        assert self.state is begin
        self.rounds: list[tuple[int, list[Heard]]] = []

    def heard(self, number: int, answers: Sequence[Answer], now_ms: float) -> None:
        self.rounds.append((round(now_ms - 1_000_000), [one.rtt_ms for one in answers]))
        super().heard(number, answers, now_ms)


class Followed:
    """A probe that asks, and what its ways became: `states` are of the first one."""

    def __init__(self, probe: Probe, families: Sequence[Family], begin: State) -> None:
        self.ways = {family: Recorded(probe, begin) for family in families}
        self.way = self.ways[families[0]]
        self.states: list[tuple[int, State]] = []
        self.failing: set[int] = set()
        names = (target.name for target in probe.targets)
        self.naming = Naming({name for name in names if name is not None}, FAMILIES)
        by = Exit("up-a", 1 << 24)
        gateways: dict[Family, Address | None] = {4: GATEWAY, 6: GATEWAY6}
        self.asking = Asking(probe, 0, by, self.ways, gateways, self.naming, {}, self._judged)

    def _judged(self) -> None:
        if now_ms() in self.failing:
            raise RuntimeError("whoever is told fails")
        if not self.states or self.states[-1][1] is not self.way.state:
            self.states.append((now_ms(), self.way.state))

    @property
    def said(self) -> list[str]:
        return [one["said"] for one in self.asking.report()]


@asynccontextmanager
async def followed(
    probe: Probe = PROBE, families: Sequence[Family] = (4,), begin: State = State.UP
) -> AsyncIterator[Followed]:
    made = Followed(probe, families, begin)
    try:
        yield made
    finally:
        made.asking.close()
        made.naming.close()


@pytest.fixture
def false() -> Iterator[tuple[World, Names]]:
    with false_world() as made:
        yield made


@pytest.fixture
def world(false: tuple[World, Names]) -> World:
    return false[0]


@pytest.fixture
def names(false: tuple[World, Names]) -> Names:
    return false[1]


def test_a_path_that_dies(world: World) -> None:
    """The table of docs/design/0010: down 1750 ms after the last good round was sent."""
    world.path = lambda _, __, at: None if at else 20.0

    async def work() -> None:
        async with followed() as one:
            for at, bad in ((990, 0), (1000, 1), (1490, 1), (1500, 2), (1740, 2)):
                await until_ms(at)
                assert one.way.tallies[0].bad == bad
            await until_ms(3000)
            assert one.states == [(20, State.UP), (1750, State.SILENT)]
            # What is decided is asked at the usual pace.
            assert world.rounds() == [0, 500, 1000, 1250, 1500, 1750, 2250, 2750]
            assert one.said == ["no answer within 500 ms"]

    clocked(work)


@pytest.mark.parametrize("lives_at", [500, 1000, 1250])
def test_one_answer_within_the_three_keeps_it(world: World, lives_at: int) -> None:
    world.path = lambda _, __, at: 20.0 if at == lives_at or not 0 < at < 1500 else None

    async def work() -> None:
        async with followed() as one:
            await until_ms(10_000)
            assert one.states == [(20, State.UP)]

    clocked(work)


def test_the_interval_is_halved_only_while_in_doubt(world: World) -> None:
    """From the first bad round that is over to the next good one."""
    world.path = lambda _, __, at: None if at in (500, 1000) else 20.0

    async def work() -> None:
        async with followed() as one:
            await until_ms(3000)
            assert world.rounds() == [0, 500, 1000, 1250, 1500, 2000, 2500, 3000]
            assert one.states == [(20, State.UP)]

    clocked(work)


def test_what_returns_is_doubted_too(world: World) -> None:
    world.path = lambda *_: None

    async def work() -> None:
        async with followed(begin=State.RETURNING) as one:
            await until_ms(3000)
            assert one.states == [(500, State.RETURNING), (1250, State.SILENT)]
            assert world.rounds() == [0, 500, 750, 1000, 1250, 1750, 2250, 2750]

    clocked(work)


def test_five_good_rounds_bring_it_back(world: World) -> None:
    world.path = lambda _, __, at: 20.0 if at >= 3000 else None

    async def work() -> None:
        async with followed(begin=State.SILENT) as one:
            await until_ms(10_000)
            # The round of 3000 waits for that of 2500, which is over at the same time.
            assert one.states == [(500, State.SILENT), (5020, State.UP)]

    clocked(work)


def test_rounds_overlap_and_close_in_order(world: World) -> None:
    """The answered ones wait for the first, which nobody answers."""
    world.path = lambda _, __, at: None if at == 0 else 10.0 + at / 50

    async def work() -> None:
        async with followed(Probe(targets=(TO_HOST,), timeout_ms=2000)) as one:
            await until_ms(1990)
            assert one.way.rounds == []
            await until_ms(2000)
            together = [(2000, [rtt]) for rtt in (None, 20.0, 30.0, 40.0)]
            assert one.way.rounds == together
            await until_ms(2060)
            assert one.way.rounds == [*together, (2050, [50.0])]

    clocked(work)


def test_a_known_failure_closes_the_round_at_once(world: World) -> None:
    world.path = lambda *_: "refused"

    async def work() -> None:
        async with followed() as one:
            await until_ms(0)
            assert one.way.rounds == [(0, [None])]
            assert one.said == ["refused"]
            await until_ms(1000)
            assert one.states[-1] == (500, State.SILENT)

    clocked(work)


@pytest.mark.parametrize("rtt_ms", [510, 650, 800, 990])
def test_a_late_answer_saves_the_rounds_before_it(world: World, rtt_ms: float) -> None:
    """A round trip that steps up teaches the timeout, before three rounds are bad."""
    world.path = lambda _, __, at: rtt_ms if at > 5000 else 20.0

    async def work() -> None:
        async with followed() as one:
            await until_ms(60_000)
            assert one.states == [(20, State.UP)]
            assert one.way.tallies[0].bad == 0
            late = [at for at, answers in one.way.rounds if answers == [None]]
            assert 1 <= len(late) <= 4
            assert max(late) < 9000

    clocked(work)


def test_a_satellite_is_slow_and_not_dead(world: World) -> None:
    """Too slow for any round at first; late answers are enough to learn how slow."""
    world.path = lambda *_: 3000.0

    async def work() -> None:
        async with followed() as one:
            await until_ms(120_000)
            assert [state for _, state in one.states] == [State.UP, State.SILENT, State.UP]
            assert one.states[-1][0] < 10_000

    clocked(work)


def test_a_late_answer_says_how_late(world: World) -> None:
    world.path = lambda _, __, at: None if at else 700.0

    async def work() -> None:
        async with followed() as one:
            await until_ms(600)
            assert one.said == ["no answer within 500 ms"]
            await until_ms(700)
            assert one.said == ["answered too late, after 700 ms"]

    clocked(work)


def test_the_timeout_follows_the_round_trip(world: World) -> None:
    """And is the usual one again when nothing was heard for a minute."""
    world.path = lambda _, __, at: 800.0 if at < 60_000 else None

    async def work() -> None:
        async with followed() as one:
            await until_ms(64_000)
            waited = float(one.said[0].removeprefix("no answer within ").removesuffix(" ms"))
            assert 800 <= waited < 1000
            await until_ms(130_000)
            assert one.said == ["no answer within 500 ms"]

    clocked(work)


@pytest.mark.parametrize("rtt_ms", [600.0, 800.0, 2000.0])
def test_a_steady_round_trip_leaves_some_slack(world: World, rtt_ms: float) -> None:
    """However steady it was, the next one may be a little longer."""
    world.path = lambda _, __, at: rtt_ms + (at // 500) % 2 if at < 120_000 else rtt_ms + 20

    async def work() -> None:
        async with followed() as one:
            await until_ms(140_000)
            assert all(answers != [None] for at, answers in one.way.rounds if at > 30_000)

    clocked(work)


@pytest.mark.parametrize("begin", [State.UP, State.SILENT, State.RETURNING])
def test_a_name_that_is_not_resolved_yet_says_nothing(
    world: World, names: Names, begin: State
) -> None:
    names.known["name.example", 4] = [HOST]
    names.after_s = 20.0

    async def work() -> None:
        async with followed(BY_NAME, begin=begin) as one:
            await until_ms(19_900)
            assert one.way.state is begin
            assert one.way.tallies[0].asked is None
            assert one.said == ["not resolved yet"]
            assert world.asked == []
            assert one.naming.faults() == []
            await until_ms(30_000)
            assert one.way.state is State.UP
            assert world.rounds()[0] in (20_000, 20_500)

    names.known["name.example", 6] = NOWHERE
    clocked(work)


@pytest.mark.parametrize("begin", [State.SILENT, State.RETURNING])
def test_the_gateway_does_not_speak_for_a_name_not_resolved_yet(
    world: World, names: Names, begin: State
) -> None:
    """It answers when all behind it is dead."""
    names.known["name.example", 4] = [HOST]
    names.after_s = 20.0
    world.path = lambda _, to, __: 1.0 if to == GATEWAY else None

    async def work() -> None:
        async with followed(Probe(targets=(TO_GATEWAY, TO_NAME)), begin=begin) as one:
            await until_ms(60_000)
            assert State.UP not in [state for _, state in one.states]

    names.known["name.example", 6] = NOWHERE
    clocked(work)


@pytest.mark.parametrize("begin", [State.SILENT, State.RETURNING])
def test_a_name_resolved_within_a_round_was_not_asked_in_it(
    world: World, names: Names, begin: State
) -> None:
    """The round is kept open by the other family's target; of IPv6 it says nothing."""
    names.known = {("name.example", 4): [OTHER], ("name.example", 6): [HOST6]}
    names.after_s = 0.2
    world.path = lambda *_: None

    async def work() -> None:
        async with followed(Probe(targets=(TO_HOST, TO_NAME)), (6, 4), begin) as one:
            await until_ms(20_000)
            assert State.UP not in [state for _, state in one.states]
            assert one.way.state is State.SILENT

    clocked(work)


def test_a_name_that_leads_nowhere_counts_neither_way(world: World, names: Names) -> None:
    """Alone it leaves the way as it is; beside others, they decide."""
    names.known = {("name.example", 4): NOWHERE, ("name.example", 6): NOWHERE}
    world.path = lambda _, __, at: None if at > 10_000 else 20.0

    async def alone() -> None:
        async with followed(BY_NAME) as one:
            await until_ms(20_000)
            assert one.states == [(0, State.UP)]
            assert one.said == [str(NOWHERE)]
            assert one.naming.faults() == [f"target name.example {NOWHERE}"]
            assert world.asked == []

    async def beside() -> None:
        async with followed(Probe(targets=(TO_NAME, TO_HOST), need=2)) as one:
            await until_ms(10_000)
            assert one.states == [(20, State.UP)]
            await until_ms(20_000)
            assert one.states[-1] == (11_750, State.SILENT)
            assert one.said == [str(NOWHERE), "no answer within 500 ms"]

    clocked(alone)
    clocked(beside)


def test_an_address_stays_while_its_name_cannot_be_resolved(world: World, names: Names) -> None:
    """And the same one is asked for as long as it is among them."""
    names.known = {("name.example", 4): [HOST, OTHER], ("name.example", 6): NOWHERE}

    async def work() -> None:
        async with followed(BY_NAME) as one:
            await until_ms(30_000)
            names.known["name.example", 4] = [OTHER, HOST]
            await until_ms(90_000)
            names.known["name.example", 4] = NOWHERE
            await until_ms(150_000)
            assert {address for _, _, address in world.asked} == {HOST}
            assert one.naming.faults() == []
            names.known["name.example", 4] = [OTHER]
            await until_ms(200_000)
            assert {address for at, _, address in world.asked if at > 190_000} == {OTHER}
            assert one.states == [(520, State.UP)] or one.way.state is State.UP

    clocked(work)


@pytest.mark.parametrize("begin", [State.UP, State.SILENT, State.RETURNING])
def test_an_asker_that_cannot_be_made_says_nothing(world: World, begin: State) -> None:
    """Each round tries again."""
    world.refusals = 20

    async def work() -> None:
        async with followed(begin=begin) as one:
            await until_ms(9_900)
            refusal = "ping on up-a: the interface is gone"
            assert one.way.state is begin
            assert one.way.tallies[0].asked is None
            assert one.asking.faults() == one.said == [refusal]
            await until_ms(13_000)
            assert world.rounds()[:3] == [10_000, 10_500, 11_000]
            assert one.asking.faults() == []
            assert one.said == [""]
            assert one.way.state is State.UP

    clocked(work)


def test_what_fails_within_a_round_does_not_end_the_probing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def path(_: str, __: Address, at: int) -> Heard:
        if at == 1000:
            raise RuntimeError("the asker fails")
        return 20.0

    world.path = path

    async def work() -> None:
        async with followed() as one:
            await until_ms(3000)
            assert world.rounds() == [0, 500, 1000, 1500, 2000, 2500, 3000]
            assert one.states == [(20, State.UP)]

    with caplog.at_level(logging.ERROR, "evenlink"):
        clocked(work)
    assert [record.message for record in caplog.records] == ["a round of ping by up-a failed"]


def test_who_is_told_may_fail(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """When a round is complete, and when it is over."""
    world.path = lambda _, __, at: None if at == 1000 else 20.0

    async def work() -> None:
        async with followed() as one:
            one.failing = {520, 1500}
            await until_ms(4000)
            assert world.rounds()[:4] == [0, 500, 1000, 1500]
            assert world.rounds()[-1] >= 3500
            assert one.states == [(20, State.UP)]

    with caplog.at_level(logging.ERROR, "evenlink"):
        clocked(work, faults=1)
    assert len(caplog.records) == 1


def test_what_fails_in_the_first_round_does_not_end_the_probing(world: World) -> None:
    """Whoever makes the probe is not told."""
    world.path = lambda _, __, at: 20.0 if at else 1 / 0

    async def work() -> None:
        async with followed(Probe(targets=(TO_HOST,), interval_ms=3_600_000)) as one:
            await until_ms(3_700_000)
            assert world.rounds()[-1] == 3_600_000
            assert one.way.state is State.UP

    clocked(work)


def test_closed_is_closed(world: World) -> None:
    """With rounds open, answers under way and names being resolved."""
    world.path = lambda *_: 2000.0

    async def work() -> None:
        async with followed(Probe(targets=(TO_HOST, TO_NAME))) as one:
            await until_ms(1100)
            one.asking.close()
            one.asking.close()
            asked, heard = len(world.asked), len(one.way.rounds)
            await until_ms(20_000)
            assert len(world.asked) == asked
            assert len(one.way.rounds) == heard
            assert world.open() == 0

    with false_world() as (slow, names):
        names.after_s = 600.0
        slow.path = world.path
        clocked(work)
