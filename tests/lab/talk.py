"""Conversations between the lab's hosts, socket by socket, and what the test asks of the router.

Sockets are made inside the namespaces and used by the test itself, so it decides what is sent
when, and no server runs beside it. A server tells by the peer's address which link was taken.
"""

from __future__ import annotations

import itertools
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from itertools import product
from pathlib import Path
from typing import Any, Self

from dataplane.daemon.calling import ask
from dataplane.daemon.messages import Status
from dataplane.lab import Daemon, Lab, Namespace, packetfilter
from dataplane.lab.daemon import toml
from dataplane.lab.topology import Address, core
from dataplane.lab.witness import Witness

PATIENCE_S = 5.0
_numbers = itertools.count(1)


class Talk:
    """One connection, TCP or UDP. `number` is in every payload, so the witness knows it too.

    The near side opens it from `source` to `target`; the far side listens at `at`, which differs
    from `target` where somebody translates. `says` and `answers` raise TimeoutError when nothing
    arrives, and AssertionError when the far side sees another peer than before: a jump.
    """

    def __init__(
        self,
        near: Namespace,
        source: Address | str | None,
        far: Namespace,
        target: Address | str,
        *,
        protocol: str = "udp",
        at: Address | str | None = None,
        port: int = 0,
        device: str = "",
        mark: int = 0,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.number = next(_numbers)
        self.peer: tuple[str, int] | None = None
        self._stack = ExitStack()
        self._tcp = protocol == "tcp"
        version = ip_address(str(target)).version
        try:
            self._listener = self._socket(far, version, patience_s)
            self._listener.bind((str(at or target), port))
            self.near = self._socket(near, version, patience_s)
            if device:
                self.near.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            if mark:
                self.near.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if source is not None:
                self.near.bind((str(source), 0))
            if self._tcp:
                self._listener.listen()
            self.near.connect((str(target), self._listener.getsockname()[1]))
            self.far = self._accepted() if self._tcp else self._listener
        except BaseException:
            self.close()
            raise

    def _socket(self, namespace: Namespace, version: int, patience_s: float) -> socket.socket:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if self._tcp else socket.SOCK_DGRAM
        with namespace.inside():
            made = self._stack.enter_context(socket.socket(family, kind))
        made.settimeout(patience_s)
        if self._tcp:
            # Not for UDP: there the kernel would give two sockets the same free port.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return made

    def _accepted(self) -> socket.socket:
        accepted, peer = self._listener.accept()
        self._stack.enter_context(accepted)
        accepted.settimeout(self.near.gettimeout())
        self.peer = peer[:2]
        return accepted

    @property
    def payload(self) -> bytes:
        return struct.pack("!II", packetfilter.MAGIC, self.number)

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port as the near side has them."""
        return self.near.getsockname()[1], self.near.getpeername()[1]

    def says(self) -> Address:
        """The near side speaks; gives the source that the far side sees."""
        self.near.send(self.payload)
        if self._tcp:
            assert self.far.recv(8) == self.payload
        else:
            heard, peer = self.far.recvfrom(64)
            assert heard == self.payload
            assert self.peer in (None, peer[:2]), f"jumped from {self.peer} to {peer[:2]}"
            self.peer = peer[:2]
        assert self.peer is not None
        return ip_address(self.peer[0])

    def answers(self) -> None:
        """The far side answers, and the near side hears it."""
        assert self.peer is not None
        if self._tcp:
            self.far.send(self.payload)
        else:
            self.far.sendto(self.payload, self.peer)
        assert self.near.recv(64) == self.payload

    def goes_on(self) -> Address:
        """There and back again; gives the source that the far side sees."""
        source = self.says()
        self.answers()
        return source

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def link_of(lab: Lab, source: Address) -> str:
    """The link whose address that is, as the server sees it; "none" if it is nobody's."""
    for number, link in enumerate(lab.topology.links, 1):
        if lab.topology.translates(link):
            # The provider has the same network as another and translates once more.
            if source == core(number, 6 if source.version == 6 else 4)[0].ip:
                return link.name
        elif any(source.version == own.version and source in own for own in link.rightful):
            return link.name
    return "none"


def call(lab: Lab, target: Address, protocol: str = "udp", **more: Any) -> Talk:
    """A conversation of the LAN's first host with a server."""
    source = (
        more.pop("source", None) or lab.topology.lans[0].clients(6 if target.version == 6 else 4)[0]
    )
    return Talk(lab.client, source, lab.server, target, protocol=protocol, **more)


def talks(lab: Lab, protocol: str) -> dict[str, list[Talk]]:
    """One conversation a pair, of both families, by its link, isp-a or isp-b."""
    found: dict[str, list[Talk]] = {"isp-a": [], "isp-b": []}
    for family in (4, 6):
        pairs = product(lab.topology.lans[0].clients(family), lab.topology.serving(family))
        for source, target in pairs:
            talk = call(lab, target, protocol, source=source)
            found[link_of(lab, talk.goes_on())].append(talk)
    return found


def flows_again(talk: Talk) -> bool:
    """Whether question and answer get through now, from whatever source."""
    talk.peer = None
    try:
        talk.near.settimeout(0.3)
        talk.far.settimeout(0.3)
        talk.goes_on()
    except OSError:
        return False
    return True


def status(daemon: Daemon) -> dict[str, Any]:
    """What `evenlink status --json` says, without starting an interpreter."""
    answer: dict[str, Any] = ask(daemon.file.parent / "control.sock", Status())
    return answer


def queued(daemon: Daemon) -> int:
    """Packets that the queue has decided since the daemon's start."""
    return int(status(daemon)["queue"]["packets"])


@contextmanager
def held(daemon: Daemon) -> Iterator[None]:
    """The daemon stands still, every thread of it; what is queued waits."""
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        tasks = Path(f"/proc/{daemon.process.pid}/task")
        eventually(
            lambda: all(
                (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
                for task in tasks.iterdir()
            )
        )
        yield
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def eventually(condition: Callable[[], Any], why: str = "", timeout_s: float = 20.0) -> Any:
    """Asks until the answer is true, and gives it."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, why or "it never came true"
        time.sleep(0.03)
    return answer


def counted(lab: Lab, name: str) -> int:
    """The packets of one of the table's counters."""
    listed = lab.router.run("nft", "list", "counter", "inet", "evenlink", name).stdout
    found = re.search(r"packets (\d+)", listed)
    assert found, listed
    return int(found[1])


def tracked(lab: Lab, *words: str) -> list[str]:
    """The router's connections that have all of these words, as conntrack lists them."""
    lines = []
    for family in ("ipv4", "ipv6"):
        lines += lab.router.run("conntrack", "-L", "-f", family).stdout.splitlines()
    return [line for line in lines if all(word in line.split() for word in words)]


def file_with(
    lab: Lab,
    links: Mapping[str, Mapping[str, object]] | None = None,
    sections: Mapping[str, Mapping[str, object]] | None = None,
    **top: object,
) -> Any:
    """The topology's file with more keys: of links by name, in sections such as "queue"."""
    text = toml(lab.topology, lab.directory, **top)
    for name, keys in (links or {}).items():
        head = f"[link.{name}]\n"
        lines = text.split(head)[1].split("\n\n")[0]
        kept = [line for line in lines.splitlines() if line.split(" =")[0] not in keys]
        text = text.replace(head + lines, head + "\n".join([*kept, *_lines(keys)]) + "\n")
    for name, keys in (sections or {}).items():
        text += "\n" + "\n".join([f"[{name}]", *_lines(keys)]) + "\n"
    return lab.file(text=text)


def _lines(keys: Mapping[str, object]) -> list[str]:
    spelt = {True: "true", False: "false"}
    lines = []
    for key, value in keys.items():
        if isinstance(value, bool):
            lines.append(f"{key} = {spelt[value]}")
        elif isinstance(value, list):
            lines.append(f"{key} = [{', '.join(repr(str(item)) for item in value)}]")
        else:
            lines.append(f"{key} = {value!r}" if isinstance(value, str) else f"{key} = {value}")
    return lines


@contextmanager
def rightful_sources(lab: Lab, moving: bool = False) -> Iterator[Witness]:
    """On no link is a packet seen whose source is not the link's.

    Nor is a connection seen on two links, unless some are `moving`.
    """
    with Witness(lab) as witness:
        yield witness
        seen = witness.testimony()
        assert not seen.wrong_source_packets, "\n".join(seen.examples)
        assert moving or not seen.torn(), f"connections torn between links: {seen.torn()}"
