"""A namespace whose packets are copied to a log group, on loopback.

client ──► output: copied as "lan", or "lan original" and "lan reply" ──► lo ──► server
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from dataplane.daemon.recogniser import COMMAND, Recogniser
from dataplane.decide.lessons import Finding
from dataplane.lab import namespaces
from dataplane.system.copies import Copies

GROUP = 7478
SERVER, SERVER6 = "127.0.0.2", "::1"
DEADLINE_S = 20.0
_counter = itertools.count(1)

COPIED = f"""
table inet copies {{
    chain leaving {{
        type filter hook output priority 0;
        meta l4proto != {{ tcp, udp }} accept
        ct direction original log prefix "lan original" group {GROUP}
        ct direction reply log prefix "lan reply" group {GROUP}
    }}
}}
"""


def eventually(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.002)


async def comes(holds: Callable[[], bool], what: str) -> None:
    """The same, while the event loop runs."""
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.002)


class CopyBox:
    def __init__(self, space: namespaces.Namespace) -> None:
        self.space = space
        space.run("ip", "link", "set", "lo", "up")
        space.run("nft", "-f", "-", stdin=COPIED)
        with space.inside():
            self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.bind(("127.0.0.1", 999))

    def send(self, payload: bytes, port: int = 50000) -> None:
        """A datagram, to where nobody listens."""
        self.sender.sendto(payload, (SERVER, port))

    def talk(self, payload: bytes, port: int, server: str = SERVER) -> int:
        """A TCP connection on which the client says this. Gives the client's port."""
        with self.space.inside():
            family = socket.AF_INET6 if ":" in server else socket.AF_INET
            listening = socket.create_server((server, port), family=family)
            client = socket.create_connection((server, port))
        with listening, client:
            accepted, _ = listening.accept()
            with accepted:
                client.sendall(payload)
                accepted.recv(65536)
                return int(client.getsockname()[1])

    def copies(self, **options: int) -> Copies:
        with self.space.inside():
            return Copies(GROUP, **options)

    def groups(self) -> set[int]:
        """The log groups that somebody reads."""
        listed = self.space.run("cat", "/proc/net/netfilter/nfnetlink_log").stdout
        return {int(line.split()[0]) for line in listed.splitlines()}

    @asynccontextmanager
    async def recogniser(
        self,
        found: list[Finding],
        command: tuple[str, ...] = COMMAND,
        *,
        silence_s: float = 10.0,
        first_pause_s: float = 0.01,
    ) -> AsyncIterator[Recogniser]:
        made = Recogniser(
            GROUP,
            found.append,
            command=command,
            silence_s=silence_s,
            first_pause_s=first_pause_s,
        )
        with self.space.inside():
            made.start()
        try:
            yield made
        finally:
            await made.stop()

    def close(self) -> None:
        self.sender.close()
        self.space.remove()


@pytest.fixture
def box() -> Iterator[CopyBox]:
    made = CopyBox(namespaces.Namespace(namespaces.name(next(_counter), "copies")))
    yield made
    made.close()


def recognising() -> set[int]:
    """The processes that recognise, dead ones that nobody has asked for too."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == _own_pid():
            found.add(int(entry.name))
    return found


def _own_pid() -> int:
    return int(Path("/proc/self").resolve().name)


@contextmanager
def nothing_left(box: CopyBox) -> Iterator[None]:
    """Neither files nor processes nor a bound group, compared with before."""
    before = len(list(Path("/proc/self/fd").iterdir())), recognising()
    yield
    assert (len(list(Path("/proc/self/fd").iterdir())), recognising()) == before
    assert box.groups() == set()
