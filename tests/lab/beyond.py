"""What is beyond the links, for tests of health: who answers there, and how often he was asked."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dns.message

from dataplane.lab import Daemon, Lab
from tests.lab.talk import Talk, call, file_with, link_of, status

KEY = "0123456789abcdef"
SERVER = "203.0.113.1"
# Ten rounds a second, where the pace is not what is tested.
QUICK: Mapping[str, object] = {"interval_ms": 100, "timeout_ms": 200, "up": 3}


def probed(lab: Lab, keys: Mapping[str, object], **top: Any) -> Path:
    """A file in which isp-b is probed by this alone."""
    made: Path = file_with(lab, sections={"[link.isp-b.probe]": keys}, key=KEY, **top)
    return made


def link(daemon: Daemon, name: str = "isp-b") -> dict[str, Any]:
    """What `status` says of one link."""
    found = next(one for one in status(daemon)["links"] if one["name"] == name)
    assert isinstance(found, dict)
    return found


def states(daemon: Daemon) -> dict[str, str]:
    return {one["name"]: one["state"] for one in status(daemon)["links"]}


def is_(daemon: Daemon, state: str, name: str = "isp-b") -> Callable[[], bool]:
    """Whether a link is in that state; with all that it can carry, if that is up."""
    whole = ["ipv4", "ipv6"] if state == "up" else []

    def found() -> bool:
        one = link(daemon, name)
        return (one["state"], one["carries"]) == (state, whole)

    return found


def talk_over(lab: Lab, name: str, protocol: str = "udp") -> Talk:
    """A conversation that goes over that link."""
    for source, target in lab.topology.pairs():
        talk = call(lab, target, protocol, source=source)
        if link_of(lab, talk.goes_on()) == name:
            return talk
        talk.close()
    raise AssertionError(f"no pair goes over {name}")


def takes(lab: Lab) -> set[str]:
    """The links that new connections of all pairs take."""
    used = set()
    for source, target in lab.topology.pairs():
        with call(lab, target, source=source) as talk:
            used.add(link_of(lab, talk.goes_on()))
    return used


@contextmanager
def asked(lab: Lab, name: str, host: str = "1.1.1.1") -> Iterator[Callable[[], int]]:
    """Counts the pings to a host that arrive at a link's provider, whatever becomes of them."""
    table = "inet asked"
    provider = lab[name]
    provider.run(
        *("nft", "-f", "-"),
        stdin=f"table {table} {{\ncounter pings {{ }}\nchain hears {{\n"
        "type filter hook prerouting priority -310;\n"
        f'iifname "link" ip daddr {host} icmp type echo-request counter name "pings"\n}}\n}}\n',
    )

    def count() -> int:
        listed = provider.run("nft", "list", "counter", *table.split(), "pings").stdout
        found = re.search(r"packets (\d+)", listed)
        assert found, listed
        return int(found[1])

    yield count
    provider.run("nft", "delete", "table", *table.split())


class NameServer:
    """Answers every question with an empty answer, after `delay_s`; None: never."""

    def __init__(self, lab: Lab, port: int = 53) -> None:
        self.delay_s: float | None = 0.0
        self.heard = 0
        with lab.server.inside():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((SERVER, port))
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                heard, asker = self._socket.recvfrom(4096)
                self.heard += 1
                if self.delay_s is not None:
                    answer = dns.message.make_response(dns.message.from_wire(heard)).to_wire()
                    threading.Timer(self.delay_s, self._say, (answer, asker)).start()

    def _say(self, answer: bytes, asker: tuple[str, int]) -> None:
        with suppress(OSError):
            self._socket.sendto(answer, asker)

    def __enter__(self) -> NameServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


@contextmanager
def listening(lab: Lab, port: int) -> Iterator[None]:
    """A TCP port of the server takes connections; the kernel does so by itself."""
    with lab.server.inside():
        listener = socket.create_server((SERVER, port), backlog=1024)
    listener.settimeout(0.1)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with suppress(TimeoutError, ConnectionError):
                listener.accept()[0].close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        listener.close()
