"""Start, change and end under traffic: at no moment does a wrong source leave.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from dataplane.lab import Lab, Namespace
from dataplane.lab.topology import Address
from tests.lab.talk import eventually, file_with, rightful_sources, status

KEY = "0123456789abcdef"


class Sender:
    """Sends datagrams of ever new sockets to all servers until it is closed."""

    def __init__(self, namespace: Namespace, sources: list[Address | None], lab: Lab) -> None:
        self.sent = 0
        self._over = threading.Event()
        self._orders = [
            (source, target)
            for source in sources
            for target in lab.topology.servers
            if source is None or source.version == target.version
        ]
        self._namespace = namespace
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._namespace.inside():
            while not self._over.is_set():
                source, target = self._orders[self.sent % len(self._orders)]
                family = socket.AF_INET if target.version == 4 else socket.AF_INET6
                with socket.socket(family, socket.SOCK_DGRAM) as one, suppress(OSError):
                    if source is not None:
                        one.bind((str(source), 0))
                    one.sendto(b"datagram", (str(target), 9))
                self.sent += 1

    def more(self, count: int = 100) -> None:
        """Waits until that many more were sent."""
        goal = self.sent + count
        eventually(lambda: self.sent >= goal)

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def traffic(lab: Lab) -> Iterator[list[Sender]]:
    """The LAN's hosts and the router itself, all the time."""
    hosts: list[Address | None] = [
        *lab.topology.lans[0].clients(4),
        *lab.topology.lans[0].clients(6),
    ]
    senders = [Sender(lab.client, hosts, lab), Sender(lab.router, [None], lab)]
    try:
        yield senders
    finally:
        for sender in senders:
            sender.close()


@pytest.mark.parametrize("default", [False, True], ids=["no default in main", "default in main"])
def test_start_and_end(two_links: Lab, default: bool) -> None:
    lab = two_links
    if default:
        for family, way in ((4, "192.0.2.1"), (6, "2001:db8:1::1")):
            lab.router.run("ip", f"-{family}", "route", "add", "default", "via", way)
    with rightful_sources(lab), traffic(lab) as senders:
        for _ in range(2):
            daemon = lab.run(lab.file(key=KEY))
            for sender in senders:
                sender.more()
            assert daemon.stop(signal.SIGINT) == 0
            for sender in senders:
                sender.more()


def test_changes(two_links: Lab) -> None:
    """Shares turned round, a link taken out and put back, another queue: by reload."""
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    files: list[Callable[[], object]] = [
        lambda: file_with(lab, {"isp-a": {"capacity": "90Mbit"}}, key=KEY),
        lambda: lab.file(key=KEY, links=["isp-a"]),
        lambda: lab.file(key=KEY),
        lambda: file_with(lab, sections={"queue": {"number": 7500, "workers": 2}}, key=KEY),
        lambda: lab.file(key=KEY, own_traffic="main"),
        lambda: file_with(lab, sections={"balance": {"fields": "both-ports"}}, key=KEY),
    ]
    with rightful_sources(lab), traffic(lab) as senders:
        for number, write in enumerate(files, 1):
            write()
            daemon.reload()
            eventually(lambda number=number: daemon.log.count("reloaded") == number)  # type: ignore[misc]
            for sender in senders:
                sender.more()
    told = status(daemon)
    assert told["queue"]["errors"] == 0
    assert told["faults"] == []
