"""What tests of links that come and go ask of the daemon, and traffic while they do."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from dataplane.lab import Daemon, Lab, Namespace
from dataplane.lab.topology import BOTH, Address
from tests.lab.machine import held
from tests.lab.talk import Talk, eventually, link_of, rightful_sources, status

KEY = "0123456789abcdef"
# As the defaults but for the time that it takes.
FAST = {"interval_ms": 100, "hold_ms": 0}
PAUSE_S = 0.01


def link(daemon: Daemon, name: str = "isp-b") -> dict[str, Any]:
    """What `status` says of a link."""
    found = next(one for one in status(daemon)["links"] if one["name"] == name)
    assert isinstance(found, dict)
    return found


def becomes(daemon: Daemon, name: str, *families: int) -> None:
    """Waits until the link carries just these families."""
    wanted = [f"ipv{family}" for family in families]
    eventually(lambda: link(daemon, name)["carries"] == wanted, f"{name} carries {wanted}")


def is_down_for(daemon: Daemon, name: str, *words: str) -> None:
    """Waits until the link is down, and `status` says why."""

    def said() -> bool:
        told = link(daemon, name)
        return told["state"] == "down" and all(word in told["why"] for word in words)

    eventually(said, f"{name} is down for {words}")


def questions(lab: Lab) -> list[str]:
    """Every pair, as `explain` takes it."""
    return [f"{source} {target} udp 1 2" for source, target in lab.topology.pairs()]


def homes(lab: Lab, daemon: Daemon) -> list[str]:
    """The link of every pair, as `explain` says."""
    return [answer["link"] for answer in daemon.explain(questions(lab))]


def check_pairs(lab: Lab, daemon: Daemon, names: Sequence[str]) -> None:
    """New connections of all pairs go where `explain` says, and that is by all of `names`."""
    told = homes(lab, daemon)
    assert set(told) == set(names)
    for (source, target), name in zip(lab.topology.pairs(), told, strict=True):
        with Talk(lab.client, source, lab.server, target) as talk:
            assert link_of(lab, talk.goes_on()) == name


def goes_on_by(lab: Lab, talk: Talk, name: str) -> None:
    """Waits until question and answer get through by that link, whatever it was before."""

    def again() -> bool:
        talk.peer = None
        try:
            talk.near.settimeout(0.3)
            talk.far.settimeout(0.3)
            return link_of(lab, talk.goes_on()) == name
        except OSError:
            return False

    eventually(again, f"{talk.ports} goes on by {name}")


def is_well(daemon: Daemon) -> None:
    """Nothing is wrong, and nothing was but what links do."""
    assert status(daemon)["faults"] == []
    is_quiet(daemon)


def is_quiet(daemon: Daemon) -> None:
    """Nothing was refused, but by a machine that changed at that very moment."""
    errors = [line for line in daemon.log.splitlines() if "ERROR" in line]
    assert all("what was done before is undone" in line for line in errors), daemon.log
    assert "Traceback" not in daemon.log, daemon.log


def descriptors(daemon: Daemon) -> int:
    """How many the daemon's process has open."""
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def setting(lab: Lab, key: str) -> str:
    """One of the router's settings; empty if there is none."""
    return lab.router.run("cat", f"/proc/sys/net/{key}", check=False).stdout.strip()


def check_settings(lab: Lab, interface: str) -> None:
    """Waits until the interface is set up as links are."""
    wanted = {
        f"ipv4/conf/{interface}/rp_filter": "2",
        f"ipv4/conf/{interface}/src_valid_mark": "1",
        f"ipv6/conf/{interface}/accept_ra": "2",
    }
    for key, value in wanted.items():
        eventually(lambda key=key, value=value: setting(lab, key) == value, key)  # type: ignore[misc]


class _Sender:
    """Datagrams of ever new sockets to all servers, a hundred or two a second."""

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
            while not self._over.wait(PAUSE_S):
                source, target = self._orders[self.sent % len(self._orders)]
                family = socket.AF_INET if target.version == 4 else socket.AF_INET6
                with socket.socket(family, socket.SOCK_DGRAM) as one, suppress(OSError):
                    if source is not None:
                        one.bind((str(source), 0))
                    one.sendto(b"datagram", (str(target), 9))
                self.sent += 1

    def close(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def watched(lab: Lab) -> Iterator[Callable[[str], None]]:
    """The LAN's hosts and the router send all the time, and no provider sees a wrong source.

    Gives what is to be called after a link's interface was made anew.
    """
    hosts: list[Address | None] = []
    for family in BOTH:
        hosts += lab.topology.lans[0].clients(family)
    with rightful_sources(lab, moving=True) as witness:
        senders = [_Sender(lab.client, hosts, lab), _Sender(lab.router, [None], lab)]
        try:
            yield witness.attend
        finally:
            for sender in senders:
                sender.close()
        assert all(sender.sent for sender in senders)


@contextmanager
def undone(lab: Lab) -> Iterator[None]:
    """What the router holds is afterwards what it was, but for what hangs on MAC addresses."""
    before = _lasting(lab)
    yield
    assert _lasting(lab) == before


def _lasting(lab: Lab) -> list[str]:
    passing = ("fe80:", "ff00::", " multicast ", "anycast ", "stable_secret")
    return sorted(
        line.strip() for line in held(lab).splitlines() if not any(word in line for word in passing)
    )
