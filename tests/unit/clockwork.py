"""An event loop that never waits, askers that ask nobody, and paths to decide what they hear.

The clock stands still while something is to be done, and jumps to the next timer otherwise: a
minute passes in a moment, and everything happens at the very same millisecond each time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from dataplane.config.model import ProbeKind, Target
from dataplane.errors import Error, KernelError
from dataplane.system.probe import Exit, Told

Address = IPv4Address | IPv6Address
# A round trip in ms; None for silence; words for a failure that is known at once.
Heard = float | str | None

BEGAN_S = 1000.0


class _Selector(selectors.DefaultSelector):
    """Instead of waiting it moves the clock."""

    now_s = BEGAN_S

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing will ever happen"
        # A little goes by each time: what compares times may be off by a rounding.
        self.now_s += max(timeout, 0) + 1e-9
        return super().select(0)


class Clockwork(asyncio.SelectorEventLoop):
    """The loop. `faults` is what nobody caught."""

    def __init__(self) -> None:
        self._jumping = _Selector()
        self._made: list[asyncio.TimerHandle] = []
        self.faults: list[dict[str, Any]] = []
        super().__init__(self._jumping)
        self.set_exception_handler(lambda _, what: self.faults.append(what))

    def time(self) -> float:
        return self._jumping.now_s

    def call_at(  # type: ignore[override]
        self, when: float, *args: Any, **kwargs: Any
    ) -> asyncio.TimerHandle:
        made = super().call_at(when, *args, **kwargs)
        self._made.append(made)
        return made

    def timers(self) -> int:
        """How many are still to come."""
        return sum(not one.cancelled() and one.when() > self.time() for one in self._made)


def now_ms() -> int:
    """Milliseconds since the loop began."""
    return round((asyncio.get_running_loop().time() - BEGAN_S) * 1000)


async def until_ms(when: float) -> None:
    """Lets the loop go on until everything that is due at that time has happened."""
    await asyncio.sleep(BEGAN_S + (when + 0.1) / 1000 - asyncio.get_running_loop().time())


def clocked(work: Callable[[], Awaitable[None]], *, faults: int = 0) -> None:
    """Runs it; at its end no timer and no task may be left, and not more than `faults` uncaught."""
    loop = Clockwork()

    async def watched() -> None:
        await work()
        # What was cancelled ends now.
        for _ in range(10):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert loop.timers() == 0

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(watched())
    assert len(loop.faults) == faults, loop.faults


class World:
    """What all askers hear. `path` is asked with the interface, the address and the time in ms.

    `asked` is what was asked: time, interface, address. `refusals` askers cannot be made.
    """

    def __init__(self) -> None:
        self.path: Callable[[str, Address, int], Heard] = lambda *_: 20.0
        self.asked: list[tuple[int, str, Address]] = []
        self.made: list[_Asker] = []
        self.refusals = 0

    def make(self, kind: ProbeKind, by: Exit, told: Told) -> _Asker:
        if self.refusals:
            self.refusals -= 1
            raise KernelError(f"{kind.value} on {by.interface}: the interface is gone")
        made = _Asker(self, by, told)
        self.made.append(made)
        return made

    def open(self) -> int:
        """How many askers are not closed."""
        return sum(not one.closed for one in self.made)

    def rounds(self, interface: str = "up-a") -> list[int]:
        """When the interface's targets were asked."""
        return list(dict.fromkeys(at for at, by, _ in self.asked if by == interface))


class _Asker:
    """Hears what the world says."""

    def __init__(self, world: World, by: Exit, told: Told) -> None:
        self.remarks: dict[str, str] = {}
        self.closed = False
        self.by = by
        self._world = world
        self._told = told
        self._answers: list[asyncio.TimerHandle] = []

    def ask(self, token: int, target: Target, address: Address, limit_s: float) -> None:
        assert not self.closed
        self._world.asked.append((now_ms(), self.by.interface, address))
        heard = self._world.path(self.by.interface, address, now_ms())
        if isinstance(heard, str):
            self._told(token, None, heard)
        elif heard is not None and heard <= limit_s * 1000:
            loop = asyncio.get_running_loop()
            self._answers.append(loop.call_later(heard / 1000, self._told, token, heard, ""))

    def close(self) -> None:
        self.closed = True
        for answer in self._answers:
            answer.cancel()


class Names:
    """What names lead to: addresses, or words for why not. `after_s` is how long that takes.

    `asked` is who was asked for, and when.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[str, int], list[Address] | Error] = {}
        self.after_s = 0.0
        self.keep_s = 60.0
        self.asked: list[tuple[int, str, int]] = []

    async def addresses(self, name: str, family: int, _: float) -> tuple[list[Address], float]:
        self.asked.append((now_ms(), name, family))
        await asyncio.sleep(self.after_s)
        found = self.known[name, family]
        if isinstance(found, Error):
            raise found
        return found, self.keep_s


@contextmanager
def false_world() -> Iterator[tuple[World, Names]]:
    """The daemon's probes ask this world, and its names lead where this says."""
    world, names = World(), Names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataplane.daemon.asking.make_asker", world.make)
        patch.setattr("dataplane.daemon.naming.addresses", names.addresses)
        yield world, names
