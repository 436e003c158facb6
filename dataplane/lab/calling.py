"""New connections as fast as one likes, and which link each of them took.

A call is a UDP datagram to a `traffic.serve` and its answer. Each datagram has a number of its own,
and the witness says by which link that very one went; so a call proves who carries a pair now. All
of it is done in the thread that asks for it.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dataplane.lab import exchange
from dataplane.lab.namespaces import LabError
from dataplane.lab.network import Lab
from dataplane.lab.topology import Address
from dataplane.lab.witness import Witness

Pair = tuple[Address, Address]

PATIENCE_S = 30.0
# Above the numbers of a load's connections.
_FIRST_NUMBER = 1 << 24
_PORTS = range(30_000, 65_000)
_ANSWER_BYTES = 16
# A new connection whose only datagram has no answer by then was lost.
_LOST_S = 0.5
_SURVEY_INTERVAL_S = 0.001


@dataclass(eq=False, slots=True)
class Flow:
    """One 5-tuple that was not there before."""

    pair: Pair
    opened: socket.socket
    sent_s: float = 0.0


@dataclass(slots=True)
class Call:
    """One datagram, and when its answer came. Times are monotonic."""

    flow: Flow
    sent_s: float
    answered_s: float | None = None


class Caller:
    """Calls from the lab's clients to the servers on `port`."""

    def __init__(self, lab: Lab, witness: Witness, port: int) -> None:
        self.lab = lab
        self.witness = witness
        self._port = port
        self._numbers = itertools.count(_FIRST_NUMBER)
        self._ports: dict[Address, Iterator[int]] = defaultdict(lambda: itertools.cycle(_PORTS))
        self._selector = selectors.DefaultSelector()
        self._calls: dict[int, Call] = {}
        # In the order of their sending.
        self._young: dict[Flow, None] = {}
        self._kept: dict[Flow, None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for flow in (*self._young, *self._kept):
            flow.opened.close()
        self._selector.close()

    def call(self, pair: Pair) -> int:
        """A new connection of that pair; gives the number of its datagram."""
        flow = self._open(pair)
        self._young[flow] = None
        return self.again(flow)

    def keep(self, pair: Pair) -> Flow:
        """A connection that stays; `again` calls on it."""
        flow = self._open(pair)
        self._kept[flow] = None
        return flow

    def drop(self, flows: Iterable[Flow]) -> None:
        """Closes connections that stayed."""
        for flow in flows:
            del self._kept[flow]
            self._close(flow)

    def again(self, flow: Flow) -> int:
        """One more datagram of a connection; gives its number."""
        number = next(self._numbers)
        flow.sent_s = time.monotonic()
        self._calls[number] = Call(flow, flow.sent_s)
        with suppress(OSError):  # no route just now, or an ICMP error of an earlier one: a loss
            flow.opened.send(exchange.request(number, _ANSWER_BYTES))
        return number

    def listen(self, seconds: float) -> list[int]:
        """Takes answers in for that long; gives the numbers of what was answered."""
        ends = time.monotonic() + seconds
        found = []
        while (left := ends - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                found += self._take(key.data)
        self._forget_lost()
        return found

    def __getitem__(self, number: int) -> Call:
        return self._calls[number]

    def link(self, number: int) -> str | None:
        """The link that the datagram took, by the providers; None if none has seen it."""
        seen = self.witness.testimony().links.get(number, ())
        return next(iter(seen), None)

    def survey(self, pairs: Sequence[Pair], limit_s: float = PATIENCE_S) -> dict[Pair, str]:
        """The link that a new connection of each pair takes now, of those that are answered.

        LabError with a pair that gets no answer at all.
        """
        ends = time.monotonic() + limit_s
        found: dict[Pair, str] = {}
        while len(found) < len(pairs):
            if time.monotonic() > ends:
                source, target = next(pair for pair in pairs if pair not in found)
                raise LabError(f"{source} got no answer from {target} in {limit_s:g} s")
            answered: list[int] = []
            for pair in pairs:
                if pair not in found:
                    self.call(pair)
                    answered += self.listen(_SURVEY_INTERVAL_S)
            answered += self.listen(_LOST_S / 5)
            for number in answered:
                link = self.link(number)
                if link is not None:
                    found.setdefault(self[number].flow.pair, link)
        return found

    def _open(self, pair: Pair) -> Flow:
        source, target = pair
        family = socket.AF_INET if source.version == 4 else socket.AF_INET6
        with self.lab.client.inside():
            opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        for port in itertools.islice(self._ports[source], len(_PORTS)):
            with suppress(OSError):  # a connection of somebody else's has it
                opened.bind((str(source), port))
                break
        opened.connect((str(target), self._port))
        flow = Flow(pair, opened)
        self._selector.register(opened, selectors.EVENT_READ, flow)
        return flow

    def _close(self, flow: Flow) -> None:
        self._selector.unregister(flow.opened)
        flow.opened.close()

    def _take(self, flow: Flow) -> list[int]:
        found = []
        with suppress(OSError):  # BlockingIOError when all is read, or an ICMP error
            while True:
                heard = flow.opened.recv(64)
                number = exchange.number_of(heard)
                call = self._calls.get(number) if number is not None else None
                if number is not None and call is not None and call.answered_s is None:
                    call.answered_s = time.monotonic()
                    found.append(number)
        if flow in self._young and found:
            del self._young[flow]
            self._close(flow)
        return found

    def _forget_lost(self) -> None:
        now = time.monotonic()
        while self._young:
            flow = next(iter(self._young))
            if now - flow.sent_s < _LOST_S:
                return
            del self._young[flow]
            self._close(flow)
