"""A constant load that one link cannot take: the choice of the other one stays.

clients ── router ─┬─ isp-a, 10 Mbit/s ─┬─ server      method overflow, in this order
                   └─ isp-b, 20 Mbit/s ─┘

Either two clients download all the time and fill the first link, while a third one begins small
downloads; or all of the load is small downloads, and so follows the choice at once. Meanwhile a
datagram five times a second, each a new connection, shows the choice.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from dataplane.lab import Lab, exchange, uplinks
from dataplane.lab.calling import Caller, Pair
from dataplane.lab.meter import Meter
from dataplane.lab.topology import BOTH, MBIT
from dataplane.lab.traffic import Load, connections, serve
from dataplane.lab.witness import Witness
from tests.soak.watching import Minutes, Outcome, Say, complaints, lacking, until

TOPOLOGY = uplinks(10 * MBIT, 20 * MBIT)
FIRST, SECOND = (link.name for link in TOPOLOGY.links)
FULL = 0.9
# Each of the two loads: in small downloads beside the lasting ones, and in these alone.
BESIDE_BPS, ALONE_BPS = 4 * MBIT, 14 * MBIT
LEFT_WITHIN_S = 3.0
_RETURNED_WITHIN_S = 60.0
_PORT = 5001
_CALL_EVERY_S = 0.2
_SMALL_BYTES = 64 << 10
_FIRST_LASTING, _FIRST_SMALL = 10_000, 1 << 25
_PATIENCE_S = 30.0
_TOLD = 10


class SmallDownloads:
    """New connections at a steady pace while its block runs, each with one small download."""

    def __init__(self, lab: Lab, pairs: list[Pair], bps: int) -> None:
        self.begun = 0
        self.failures: list[str] = []
        self._lab = lab
        self._pairs = itertools.cycle(pairs)
        self._pause_s = _SMALL_BYTES * 8 / bps
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="small downloads")

    def _run(self) -> None:
        # Sockets are of the namespace that their thread is in.
        with self._lab.client.inside():
            asyncio.run(self._begin())

    async def _begin(self) -> None:
        due_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            while not self._over.is_set():
                tasks.create_task(self._download(next(self._pairs), _FIRST_SMALL + self.begun))
                self.begun += 1
                due_s += self._pause_s
                await asyncio.sleep(max(due_s - time.monotonic(), 0))

    async def _download(self, pair: Pair, number: int) -> None:
        source, target = map(str, pair)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_connection(
                    target, _PORT, local_addr=(source, 0)
                )
                try:
                    writer.write(exchange.request(number, _SMALL_BYTES))
                    await reader.readexactly(_SMALL_BYTES)
                finally:
                    writer.close()
        except (OSError, EOFError) as failure:
            self.failures.append(f"{source} > {target}: {failure or 'nothing came in time'}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()


class Choices:
    """What new connections show of the choice: when each of them went, and by which link."""

    def __init__(self, caller: Caller, pair: Pair) -> None:
        self.seen: list[tuple[float, str]] = []
        self._caller = caller
        self._pair = pair

    def look(self) -> str | None:
        """The link of another new connection."""
        number = self._caller.call(self._pair)
        self._caller.listen(_CALL_EVERY_S)
        link = self._caller.link(number)
        if link is not None:
            self.seen.append((self._caller[number].sent_s, link))
        return link

    @property
    def changes(self) -> list[tuple[float, str]]:
        """The first connection by each other link than the one before."""
        pairs = itertools.pairwise(self.seen)
        return [later for earlier, later in pairs if later[1] != earlier[1]]


def _pairs(lab: Lab, *clients: int) -> list[Pair]:
    """These clients, the first is 0, with every server."""
    return [
        (lab.topology.lans[0].clients(family)[client], target)
        for client in clients
        for family in BOTH
        for target in lab.topology.serving(family)
    ]


@contextmanager
def _loaded(lab: Lab, lasting: bool, found: Outcome) -> Iterator[SmallDownloads]:
    """A constant load while the block runs; its failures are faults."""
    if not lasting:
        with SmallDownloads(lab, _pairs(lab, 0, 1, 2), ALONE_BPS) as small:
            yield small
    else:
        wanted = connections(_pairs(lab, 0, 1), _PORT, each=1, first_number=_FIRST_LASTING)
        load = Load(lab, wanted, load_s=None)
        load.until("open")
        with SmallDownloads(lab, _pairs(lab, 2), BESIDE_BPS) as small:
            yield small
        load.end()
        found.faults += [f"download {number}: {why}" for number, why in load.failures.items()]
    found.faults += small.failures[:_TOLD]


def run(
    lab: Lab,
    minutes: float,
    say: Say,
    *,
    lasting: bool = True,
    left_within_s: float = LEFT_WITHIN_S,
) -> Outcome:
    """Loads the links for that long. `lab` has TOPOLOGY."""
    found = Outcome()
    balance = {"method": "overflow", "links": [FIRST, SECOND], "full": FULL}
    daemon = lab.run(lab.file(balance=balance))
    serve(lab, _PORT)
    if not until(lambda: not lacking(daemon), _PATIENCE_S):
        found.faults += lacking(daemon)
    with Witness(lab) as witness, Caller(lab, witness, _PORT) as caller, Meter(lab) as meter:
        choices = Choices(caller, _pairs(lab, 2)[0])
        if choices.look() != FIRST:
            found.faults.append(f"without a load, {choices.seen} and not {FIRST}")
        with _loaded(lab, lasting, found) as small:
            clock = Minutes(minutes, say)
            while clock.tick(lambda: f"{len(choices.changes)} changes, {small.begun} downloads"):
                choices.look()
            changes = choices.changes
        ended_s = time.monotonic()
        returned = until(lambda: choices.look() == FIRST, _RETURNED_WITHIN_S)
        took_s = time.monotonic() - ended_s
        torn = witness.testimony().torn()
    left_s = _left_s(changes, meter)
    found.faults += _faults(changes, clock.began_s)
    if left_s > left_within_s:
        found.faults.append(f"{FIRST} was left {left_s:.1f} s after it was full")
    if not returned:
        found.faults.append(f"still not by {FIRST}, {took_s:.0f} s after the load had ended")
    if torn:
        found.faults.append(f"{len(torn)} connections changed their link")
    found.faults += complaints(daemon)
    found.told += [
        f"{len(changes)} changes of the choice in {minutes:g} minutes"
        + "".join(f"; {name} after {at_s - clock.began_s:.1f} s" for at_s, name in changes),
        f"{small.begun} small downloads, {len(small.failures)} failed; {len(choices.seen)} "
        "connections to see the choice by",
        f"the first link was left {left_s:.1f} s after it was full, and taken "
        f"again {took_s:.1f} s after the load had ended",
    ]
    return found


def _faults(changes: list[tuple[float, str]], began_s: float) -> list[str]:
    again = [f"changed again, to {name} after {at_s - began_s:.1f} s" for at_s, name in changes[1:]]
    return again if changes else [f"{FIRST} was never left"]


def _left_s(changes: list[tuple[float, str]], meter: Meter) -> float:
    """Seconds from the first moment at which the link was full to the first change."""
    full_bps = FULL * TOPOLOGY.link(FIRST).capacity_bps
    full_s = next((at_s for at_s, bps in meter.rates()[FIRST] if bps >= full_bps), None)
    return changes[0][0] - full_s if changes and full_s is not None else float("inf")
