"""Starts native/blast.c in the sender's namespace, on a core of its own.

    with Sender(path) as sender:      # it is ready, and sends nothing yet
        sender.go()
        ...
        sent = sender.stop()          # packets that were put on the wire

`rate` in packets a second, flat out if None. `new_connections`: every packet from another source
address and port, each of HOSTS sources to a destination of its own, so to HOSTS address pairs; with
`new_pairs` no pair comes again before HOSTS * ADDRESSES are over. Else one source and ADDRESSES
destinations, each an address pair and a connection.
`count` ends it by itself. `offload`: by a UDP socket with segmentation offload, which needs
`plain_sender` once for the path.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from bench import native
from bench.path import ADDRESSES, DESTINATIONS, MAC_FAR, MAC_NEAR, SENDER, Path3
from dataplane.lab.namespaces import LabError

# The hosts of the LAN, in new connections.
HOSTS = 4096
_FIRST_HOST = "10.1.0.0"
_LONGEST_S = 10.0


def missing() -> str | None:
    """Why nothing can be sent here."""
    return native.missing("blast.c")


def sender_core() -> int:
    """Where the sender runs, and with it what the kernel does with its packets until they wait."""
    return min(os.sched_getaffinity(0))


def worker_core() -> int:
    """Where a queue's worker runs: another core, if there are two."""
    return max(os.sched_getaffinity(0))


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What this thread starts meanwhile runs on that core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Sender:
    """One blast, from being ready to its last packet."""

    def __init__(
        self,
        path: Path3,
        *,
        rate: int | None = None,
        new_connections: bool = False,
        new_pairs: bool = False,
        count: int | None = None,
        offload: bool = False,
        core: int | None = None,
    ) -> None:
        source, sources = (_FIRST_HOST, HOSTS) if new_connections else (SENDER, 1)
        command = [str(native.build("blast.c")), "--interface", "right"]
        command += ["--core", str(sender_core() if core is None else core)]
        command += ["--from", MAC_NEAR, "--to", MAC_FAR]
        command += ["--source", source, "--sources", str(sources)]
        command += ["--destination", DESTINATIONS, "--destinations", str(ADDRESSES)]
        for option, value in (("--rate", rate), ("--count", count)):
            command += [] if value is None else [option, str(value)]
        wanted = {
            "--new-connections": new_connections,
            "--new-pairs": new_pairs,
            "--offload": offload,
        }
        command += [option for option, asked in wanted.items() if asked]
        self._process = path.sender.start(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if self._read() != "ready":
            self.kill()
            raise LabError(f"the sender did not start: {self._words()}")

    @property
    def process(self) -> int:
        """Its number, for CPU time."""
        return self._process.pid

    def go(self) -> None:
        """Send from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def stop(self) -> int:
        """Send no more, and say how many were sent."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        """Wait until `count` is reached, and say how many were sent."""
        said = self._read()
        try:
            status = self._process.wait(_LONGEST_S)
        except subprocess.TimeoutExpired:
            raise LabError("the sender does not end") from None
        if status or not said.isdigit():
            raise LabError(f"the sender failed: {self._words()}")
        return int(said)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _words(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().strip()


def plain_sender(path: Path3) -> None:
    """The sender's interface takes no large packets: the kernel cuts them up before it."""
    path.sender.run("ethtool", "-K", "right", "tx-udp-segmentation", "off", "gso", "off")
