"""Real connections between the lab's clients and servers.

    serve(lab, 5001)
    wanted = connections(lab.topology.pairs(), 5001)
    load = Load(lab, wanted, load_s=10)
    for event in load.events(): …
    load.failures

Clients and servers are processes in their namespaces (`asking`, `answering`); here is what they
are told, and what is heard from them. Clients choose their source ports, so a connection's whole
5-tuple is known before it exists, and `explain` can be asked beforehand.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dataplane.lab.namespaces import PYTHON, LabError, Namespace
from dataplane.lab.network import Lab
from dataplane.lab.topology import Address

FIRST_SOURCE_PORT = 20_000


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
                    source_port=FIRST_SOURCE_PORT + number,
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


class Load:
    """Clients at work. `failures` tells why, by connection number, once `events` has ended."""

    def __init__(
        self,
        lab: Lab,
        wanted: Sequence[Connection],
        *,
        load_s: float,
        light_bytes: int = 1200,
        chunk_bytes: int = 32 << 10,
        receive_buffer: int = 8 << 10,
        light_interval_s: float = 3.0,
        namespace: Namespace | None = None,
    ) -> None:
        self.failures: dict[int, str] = {}
        order = {
            "connections": [_plain(connection) for connection in wanted],
            "load_s": load_s,
            "light_bytes": light_bytes,
            "chunk_bytes": chunk_bytes,
            "receive_buffer": receive_buffer,
            "light_interval_s": light_interval_s,
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
        json.dump(order, self._process.stdin)
        self._process.stdin.close()

    def events(self) -> Iterator[Event]:
        """The events as they come, the last one "done". LabError if the clients die before."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said: dict[str, Any] = json.loads(line)
            kind = said.pop("event")
            for number, why in said.pop("failures", {}).items():
                self.failures[int(number)] = why
            yield Event(kind, **said)
            if kind == "done":
                self._process.wait()
                return
        raise LabError(f"the lab's clients ended with status {self._process.wait()}")


def _plain(connection: Connection) -> dict[str, object]:
    return {
        **asdict(connection),
        "source": str(connection.source),
        "target": str(connection.target),
    }
