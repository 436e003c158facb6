"""Questions that take long: how many there may be, and what becomes of those that are too many."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest

from dataplane.config.model import Probe, ProbeKind, Target
from dataplane.daemon.asking import Asking
from dataplane.daemon.naming import Naming
from dataplane.decide.health import Health, State
from dataplane.system.probe import Exit, Told
from dataplane.system.probe.conversation import Conversations
from tests.unit.clockwork import Address, clocked, now_ms, until_ms

HOST, OTHER = IPv4Address("203.0.113.1"), IPv4Address("203.0.113.2")
TO_HOST, TO_OTHER = Target("host", address=HOST), Target("other", address=OTHER)
BY = Exit("up-a", 1 << 24)
AT_ONCE = 24


class Slow(Conversations):
    """Everyone answers after about `rtt_s`. `most` is how many conversations were at a time."""

    rtt_s = 0.6
    stubborn = False

    def __init__(self, by: Exit, told: Told) -> None:
        super().__init__(by, told)
        self.now = self.most = 0
        self._jitter = itertools.cycle((1.0, 1.02, 0.98, 1.01))

    async def _converse(self, target: Target, address: Address) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.rtt_s * next(self._jitter))
        except asyncio.CancelledError:
            if not self.stubborn:
                raise
        finally:
            self.now -= 1
        return ""


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round trips are measured by the loop's clock."""

    def monotonic_ns() -> int:
        return round(asyncio.get_running_loop().time() * 1e9)

    clock = SimpleNamespace(monotonic_ns=monotonic_ns)
    monkeypatch.setattr("dataplane.system.probe.conversation.time", clock)


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_oldest_are_given_up_and_not_told(stubborn: bool) -> None:
    """Each target has its own; one that was given up is not told even if it ends well."""
    told: dict[int, tuple[float | None, str]] = {}

    async def work() -> None:
        asker = Slow(BY, lambda token, ms, words: told.update({token: (ms, words)}))
        asker.stubborn = stubborn
        asker.rtt_s = 60.0
        for token in range(100):
            asker.ask(token, TO_HOST, HOST, 5)
            await asyncio.sleep(0)
        asker.ask(200, TO_OTHER, OTHER, 5)
        await until_ms(100)
        assert told == {}
        assert asker.now == AT_ONCE + 1
        assert len(asyncio.all_tasks()) == AT_ONCE + 2
        if not stubborn:
            await until_ms(5000)
            assert set(told) == {*range(100 - AT_ONCE, 100), 200}
            assert set(told.values()) == {(None, "no answer within 5 s")}
        asker.close()

    clocked(work)


def test_what_is_over_makes_room() -> None:
    """Nobody is given up while at most so many wait, whatever was asked before."""
    told: list[int] = []

    async def work() -> None:
        asker = Slow(BY, lambda token, ms, words: told.append(token))
        for token in range(500):
            asker.ask(token, TO_HOST, HOST, 5)
            await asyncio.sleep(0.026)
        await asyncio.sleep(1)
        assert sorted(told) == list(range(500))
        assert asker.most <= AT_ONCE
        asker.close()

    clocked(work)


@contextlib.contextmanager
def _asked_often(monkeypatch: pytest.MonkeyPatch, rtt_s: float) -> Iterator[list[Slow]]:
    made: list[Slow] = []

    def make(_: ProbeKind, by: Exit, told: Told) -> Slow:
        made.append(Slow(by, told))
        made[0].rtt_s = rtt_s
        return made[0]

    with monkeypatch.context() as patch:
        patch.setattr("dataplane.daemon.asking.make_asker", make)
        yield made


@pytest.mark.parametrize("rtt_s", [0.02, 0.6, 1.1])
def test_a_round_trip_of_many_intervals_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, rtt_s: float
) -> None:
    """tcp, every 100 ms: what is slow is well, once it is known to be slow."""
    probe = Probe(ProbeKind.TCP, (TO_HOST,), interval_ms=100)

    async def work() -> None:
        way = Health([probe], 60_000)
        way.joined(0)
        asking = Asking(probe, 0, BY, {4: way}, {4: None}, Naming((), ()), {}, lambda: None)
        await until_ms(10_000)
        assert way.state is State.UP
        await until_ms(60_000)
        assert way.state is State.UP
        assert way.tallies[0].good > 400
        asking.close()

    with _asked_often(monkeypatch, rtt_s) as made:
        clocked(work)
    assert made[0].most <= AT_ONCE


def test_a_dead_target_does_not_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounds end by their own deadline: given up or not, it is down when it should be."""
    probe = Probe(ProbeKind.TCP, (TO_HOST,), interval_ms=100)

    async def work() -> None:
        way = Health([probe], 60_000)
        way.joined(0)
        down_ms: list[int] = []

        def judged() -> None:
            if way.state is State.SILENT and not down_ms:
                down_ms.append(now_ms())

        asking = Asking(probe, 0, BY, {4: way}, {4: None}, Naming((), ()), {}, judged)
        await until_ms(60_000)
        # Sent at 0, 100, 200, with half a second each.
        assert down_ms == [700]
        asking.close()

    with _asked_often(monkeypatch, 3600) as made:
        clocked(work)
    assert made[0].most == AT_ONCE
