"""Real connections between the lab's clients and servers.

    serve(lab, 5001)
    wanted = connections(lab.topology.pairs(), 5001)
    load = Load(lab, wanted, load_s=10)
    for event in load.events(): …
    load.failures

    load = Load(lab, wanted, load_s=None)       # until it is told to end
    load.until("open"); …; load.end()

Clients and servers are processes in their namespaces (`asking`, `answering`); here is what they
are told, and what is heard from them. Clients choose their source ports, so a connection's whole
5-tuple is known before it exists, and `explain` can be asked beforehand.
"""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dataplane.lab.namespaces import PYTHON, LabError, Namespace
from dataplane.lab.network import Lab
from dataplane.lab.topology import Address

FIRST_SOURCE_PORT = 20_000
_SOURCE_PORTS = 45_000


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection. `heavy` ones download all the time, `late` ones open during the load."""

    number: int
    protocol: Literal["tcp", "udp"]
    source: Address
    source_port: int
    target: Address
    target_port: int
    heavy: bool = False
    late: bool = False

    @property
    def pair(self) -> tuple[Address, Address]:
        """The address pair, which is hashed by default."""
        return (self.source, self.target)

    @property
    def flow(self) -> str:
        """The connection as `explain --stdin` takes it."""
        ports = f"{self.source_port} {self.target_port}"
        return f"{self.source} {self.target} {self.protocol} {ports}"


def connections(
    pairs: Sequence[tuple[Address, Address]],
    port: int,
    *,
    each: int = 2,
    heavy: int = 64,
    first_number: int = 1,
) -> tuple[Connection, ...]:
    """`each` connections a pair; of every second pair the last one is UDP.

    `heavy` of the TCP ones, spread over the pairs, download all the time; every fifth of the
    others comes late. They are numbered on from `first_number`, as are their source ports.
    """
    made = []
    every = max(1, len(pairs) // heavy) if heavy else len(pairs) + 1
    for index, (source, target) in enumerate(pairs):
        for turn in range(each):
            number = first_number + index * each + turn
            udp = turn == each - 1 and index % 2 == 1 and each > 1
            carries = turn == 0 and index % every == 0 and index // every < heavy
            made.append(
                Connection(
                    number=number,
                    protocol="udp" if udp else "tcp",
                    source=source,
                    source_port=FIRST_SOURCE_PORT + number % _SOURCE_PORTS,
                    target=target,
                    target_port=port,
                    heavy=carries,
                    late=not carries and number % 5 == 0,
                )
            )
    return tuple(made)


def serve(lab: Lab, port: int) -> subprocess.Popen[str]:
    """Starts the server on all server addresses; it listens when this returns."""
    addresses = [str(address) for address in lab.topology.servers]
    command = (PYTHON, "-m", "dataplane.lab.answering", str(port), *addresses)
    server = lab.server.start(*command, stdout=subprocess.PIPE, stderr=None)
    assert server.stdout is not None
    if server.stdout.readline().strip() != "ready":
        raise LabError(f"the lab's server on port {port} did not start")
    return server


@dataclass(frozen=True, slots=True)
class Event:
    """What the clients said. `kind` is progress, open, closing or done; `at_s` monotonic.

    `received` counts the answers' bytes, headers of ours included, of TCP and UDP.
    """

    kind: str
    at_s: float
    open: int
    failed: int
    received: int


@dataclass(frozen=True, slots=True)
class Slow:
    """An exchange of connection `number` that took longer than it should; times are monotonic."""

    number: int
    began_s: float
    took_s: float


class Load:
    """Clients at work. `failures` tells why, by connection number, once `events` has ended.

    So do `failed_at_s`, when, and `slow`, the light exchanges that took longer than `slow_s`.
    Without `load_s` the load lasts until `end` is called, and then one
    `light_interval_s` more. An unanswered datagram is repeated every
    `udp_wait_s`; who waits longer than `patience_s` has failed.
    """

    def __init__(
        self,
        lab: Lab,
        wanted: Sequence[Connection],
        *,
        load_s: float | None,
        light_bytes: int = 1200,
        chunk_bytes: int = 32 << 10,
        receive_buffer: int = 8 << 10,
        light_interval_s: float = 3.0,
        patience_s: float = 30.0,
        udp_wait_s: float = 1.5,
        slow_s: float = 1.0,
        namespace: Namespace | None = None,
    ) -> None:
        self.failures: dict[int, str] = {}
        self.failed_at_s: dict[int, float] = {}
        self.slow: list[Slow] = []
        order = {
            "connections": [_plain(connection) for connection in wanted],
            "load_s": load_s,
            "light_bytes": light_bytes,
            "chunk_bytes": chunk_bytes,
            "receive_buffer": receive_buffer,
            "light_interval_s": light_interval_s,
            "patience_s": patience_s,
            "udp_wait_s": udp_wait_s,
            "slow_s": slow_s,
        }
        self._process = (namespace or lab.client).start(
            PYTHON,
            "-m",
            "dataplane.lab.asking",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        if load_s is not None:
            self._process.stdin.close()
        # Read at once: clients that nobody listens to would stand still when the pipe is full.
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="load", daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError):  # it was closed, with the lab
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def events(self) -> Iterator[Event]:
        """The events as they come, the last one "done". LabError if the clients die before."""
        while line := self._lines.get():
            said: dict[str, Any] = json.loads(line)
            kind = said.pop("event")
            for number, why in said.pop("failures", {}).items():
                self.failures[int(number)] = why
            for number, at_s in said.pop("failed_at_s", {}).items():
                self.failed_at_s[int(number)] = at_s
            self.slow += [Slow(*one) for one in said.pop("slow", ())]
            yield Event(kind, **said)
            if kind == "done":
                self._process.wait()
                return
        raise LabError(f"the lab's clients ended with status {self._process.wait()}")

    def until(self, kind: str) -> Event:
        """Waits for the next event of that kind. LabError if the clients end before."""
        for event in self.events():
            if event.kind == kind:
                return event
        raise LabError(f"the lab's clients ended without having said {kind}")

    def end(self) -> Event:
        """Ends a load that has no length of its own; gives the last event."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.until("done")


def _plain(connection: Connection) -> dict[str, object]:
    return {
        **asdict(connection),
        "source": str(connection.source),
        "target": str(connection.target),
    }
