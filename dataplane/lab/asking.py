"""The lab's clients: `python -m dataplane.lab.asking`, many connections in one process.

The order is a line of JSON on standard input, see `traffic.Load`; without `load_s` in it the load
lasts until standard input ends. On standard output go lines of JSON, one an event:

    {"event": "progress", "at_s": …, "open": 12, "failed": 0, "received": bytes so far}
    {"event": "open"}      all early connections have exchanged data; the load begins
    {"event": "closing"}   the load ends; each connection exchanges once more and is closed
    {"event": "done", "failures": {"17": "why"}, "failed_at_s": {"17": …}, "received": …,
     "slow": [[number, when it began, seconds that it took], …]}

A heavy connection always has two requests on the way. The others ask now and then, and stay
open from their first exchange to the last: one that breaks in between has failed. Exchanges that
took longer than `slow_s` are told in the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from dataplane.lab import exchange

_RAMP_A_SECOND = 500
_PROGRESS_S = 0.25
_TURNS = 97


class FailedError(Exception):
    """Why a connection did not do what it should."""


@dataclass(slots=True)
class _Run:
    """What all connections share."""

    light_bytes: int
    chunk_bytes: int
    receive_buffer: int
    light_interval_s: float
    load_s: float | None
    patience_s: float
    udp_wait_s: float
    slow_s: float
    began: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    received: int = 0
    open: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    failed_at_s: dict[int, float] = field(default_factory=dict)
    slow: list[tuple[int, float, float]] = field(default_factory=list)

    async def pause(self, seconds: float) -> None:
        """Waits that long, or less if the load ends."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)


class _Stream(asyncio.Protocol):
    """A TCP connection: requests answered in order, each answer's length and number checked."""

    def __init__(self, run: _Run, number: int) -> None:
        self._run = run
        self._number = number
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._head = b""
        self._left = 0
        self._broken: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._run.received += len(data)
        while data:
            if self._left == 0:
                need = exchange.ANSWER_HEADER_BYTES - len(self._head)
                self._head, data = self._head + data[:need], data[need:]
                if len(self._head) < exchange.ANSWER_HEADER_BYTES:
                    return
                if not self._waiting or not exchange.answers(self._head, self._number):
                    self._break("the answer is another connection's")
                    return
                self._head = b""
                self._left = self._waiting[0][0] - exchange.ANSWER_HEADER_BYTES
            used = min(self._left, len(data))
            self._left -= used
            data = data[used:]
            if self._left == 0:
                answered = self._waiting.popleft()[1]
                if not answered.done():
                    answered.set_result(None)

    def _break(self, why: str) -> None:
        self._broken = why
        self._transport.abort()
        for _, waiting in self._waiting:
            if not waiting.done():
                waiting.set_exception(FailedError(why))
                waiting.exception()  # whoever waits for an earlier one is told, and no one else

    def connection_lost(self, exc: Exception | None) -> None:
        self._break(self._broken or str(exc or "closed by the server"))

    def ask(self, length: int) -> asyncio.Future[None]:
        """Sends a request; the future is done when the whole answer is here."""
        if self._broken is not None:
            raise FailedError(self._broken)
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((length, answered))
        self._transport.write(exchange.request(self._number, length))
        return answered

    async def exchange(self, length: int) -> None:
        await asyncio.wait_for(self.ask(length), self._run.patience_s)

    def close(self) -> None:
        self._broken = self._broken or "closed"
        self._transport.close()


class _Datagrams(asyncio.DatagramProtocol):
    """A UDP connection: a request is repeated until its answer comes."""

    def __init__(self, run: _Run, number: int) -> None:
        self._run = run
        self._number = number
        self._answered = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if exchange.answers(data, self._number):
            self._run.received += len(data)
            self._answered.set()

    def error_received(self, exc: Exception) -> None:
        """An ICMP error is a loss; the request is repeated."""

    async def exchange(self, length: int) -> None:
        length = min(length, exchange.DATAGRAM_BYTES)
        asked = exchange.request(self._number, length).ljust(exchange.DATAGRAM_BYTES, b"\0")
        self._answered.clear()
        ends, tries = time.monotonic() + self._run.patience_s, 0
        while time.monotonic() < ends:
            self._transport.sendto(asked)
            tries += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._answered.wait(), self._run.udp_wait_s)
                return
        raise FailedError(f"no answer to {tries} datagrams")

    def close(self) -> None:
        self._transport.close()


async def _open(run: _Run, wanted: dict[str, Any]) -> _Stream | _Datagrams:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in wanted["source"] else socket.AF_INET
    stream = wanted["protocol"] == "tcp"
    opened = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    try:
        opened.setblocking(False)
        if stream:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, run.receive_buffer)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.bind((wanted["source"], wanted["source_port"]))
        target = (wanted["target"], wanted["target_port"])
        await asyncio.wait_for(loop.sock_connect(opened, target), run.patience_s)
        number = wanted["number"]
        if stream:
            return (await loop.create_connection(lambda: _Stream(run, number), sock=opened))[1]
        made = await loop.create_datagram_endpoint(lambda: _Datagrams(run, number), sock=opened)
        return made[1]
    except BaseException:
        opened.close()
        raise


async def _download(run: _Run, stream: _Stream) -> None:
    """Two requests on the way, so that the link never waits for the next one."""
    ahead = stream.ask(run.chunk_bytes)
    while not run.ended.is_set():
        following = stream.ask(run.chunk_bytes)
        await asyncio.wait_for(ahead, run.patience_s)
        ahead = following
    await asyncio.wait_for(ahead, run.patience_s)


async def _timed(run: _Run, number: int, opened: _Stream | _Datagrams) -> None:
    """A light exchange, remembered if it was slow."""
    began = time.monotonic()
    await opened.exchange(run.light_bytes)
    took = time.monotonic() - began
    if took > run.slow_s:
        run.slow.append((number, began, took))


async def _live(run: _Run, wanted: dict[str, Any], first: asyncio.Event) -> None:
    """One connection, from its opening to its end; `first` is set after its first exchange."""
    opened, number = None, wanted["number"]
    try:
        opened = await _open(run, wanted)
        await opened.exchange(run.light_bytes)
        run.open += 1
        first.set()
        await run.began.wait()
        if wanted["heavy"] and isinstance(opened, _Stream):
            await _download(run, opened)
        # Not all in one moment, which would fill a small link's queue.
        turn_s = run.light_interval_s * (number % _TURNS) / _TURNS
        await run.pause(turn_s)
        while not run.ended.is_set():
            await _timed(run, number, opened)
            await run.pause(run.light_interval_s)
        if run.load_s is None:
            await asyncio.sleep(turn_s)
        await _timed(run, number, opened)
    except (TimeoutError, FailedError, OSError) as failure:
        run.failures[number] = _why(failure, run)
        run.failed_at_s[number] = time.monotonic()
    finally:
        first.set()
        if opened is not None:
            opened.close()


def _why(failure: Exception, run: _Run) -> str:
    if isinstance(failure, OSError) and failure.errno:
        return os.strerror(failure.errno)
    return str(failure) or f"nothing came within {run.patience_s:.0f} s"


def _say(event: str, run: _Run, **more: object) -> None:
    said = {
        "event": event,
        "at_s": time.monotonic(),
        "open": run.open,
        "failed": len(run.failures),
        "received": run.received,
        **more,
    }
    print(json.dumps(said), flush=True)


async def _progress(run: _Run) -> None:
    while True:
        _say("progress", run)
        await asyncio.sleep(_PROGRESS_S)


async def _main(order: dict[str, Any]) -> None:
    connections = order.pop("connections")
    run = _Run(**order)
    early = [wanted for wanted in connections if not wanted["late"]]
    late = [wanted for wanted in connections if wanted["late"]]
    progress = asyncio.create_task(_progress(run))
    living: list[asyncio.Task[None]] = []

    async def start(chosen: list[dict[str, Any]], gap_s: float) -> list[asyncio.Event]:
        firsts = []
        for wanted in chosen:
            first = asyncio.Event()
            firsts.append(first)
            living.append(asyncio.create_task(_live(run, wanted, first)))
            await asyncio.sleep(gap_s)
        return firsts

    for first in await start(early, 1 / _RAMP_A_SECOND):
        await first.wait()
    _say("open", run)
    run.began.set()
    if run.load_s is None:
        firsts = await start(late, 1 / _RAMP_A_SECOND)
        await asyncio.to_thread(sys.stdin.read)
    else:
        ends = time.monotonic() + run.load_s
        firsts = await start(late, run.load_s / 2 / max(len(late), 1))
        await asyncio.sleep(max(0.0, ends - time.monotonic()))
    _say("closing", run)
    for first in firsts:
        await first.wait()
    run.ended.set()
    await asyncio.gather(*living)
    progress.cancel()
    _say("done", run, failures=run.failures, failed_at_s=run.failed_at_s, slow=run.slow)


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.stdin.readline())))
