"""What a soak looks at while it runs: the clock, the daemon's log, and how it answers."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dataplane.daemon.calling import ask
from dataplane.daemon.messages import Explain, Status
from dataplane.errors import Error
from dataplane.lab import Daemon, Lab

MINUTE_S = 60.0
BOTH = ["ipv4", "ipv6"]
Say = Callable[[str], None]
_LINK_IS = re.compile(r": link (\S+) is (up|down|drained)")


@dataclass(slots=True)
class Outcome:
    """What a soak found: `faults` are what should not be, `told` what it measured."""

    faults: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


class Minutes:
    """Says once a minute how far a soak is."""

    def __init__(self, minutes: float, say: Say) -> None:
        self.began_s = time.monotonic()
        self.ends_s = self.began_s + minutes * MINUTE_S
        self._minutes = minutes
        self._said = 0
        self._say = say

    def left_s(self) -> float:
        return self.ends_s - time.monotonic()

    def tick(self, state: Callable[[], str]) -> bool:
        """Whether there is time left. `state` is asked for what to say when a minute is over."""
        passed = int((time.monotonic() - self.began_s) // MINUTE_S)
        if passed > self._said:
            self._said = passed
            self._say(f"minute {passed} of {self._minutes:g}: {state()}")
        return self.left_s() > 0


class Transitions:
    """The daemon's log, from the moment this is made: which link became what."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        # What the lines before say: a line for a family alone is no transition.
        self._states = dict(_LINK_IS.findall(daemon.log))
        self._from = len(daemon.log)

    def lines(self) -> list[str]:
        """The log's lines that are transitions."""
        states, found = dict(self._states), []
        for line in self._daemon.log[self._from :].splitlines():
            said = _LINK_IS.search(line)
            if said and states.get(said[1]) != said[2]:
                states[said[1]] = said[2]
                found.append(line)
        return found

    def by_link(self) -> Counter[str]:
        return Counter(said[1] for said in map(_LINK_IS.search, self.lines()) if said)


def complaints(daemon: Daemon) -> list[str]:
    """Lines of the log that tell of more than a link's health."""
    return [line for line in daemon.log.splitlines() if " ERROR:" in line or "Traceback" in line]


def too_late(line: str) -> bool:
    """A step that came when its interface had just gone: the next look has it right."""
    return "does not exist" in line or "Network is unreachable" in line


class Asker:
    """Asks `status` again and again while its block runs; how long the answers took, in s."""

    def __init__(self, daemon: Daemon, pause_s: float = 0.25) -> None:
        self.took_s: list[float] = []
        self.refusals: list[str] = []
        self._socket = socket_of(daemon)
        self._pause_s = pause_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="status")

    def _ask(self) -> None:
        while not self._over.wait(self._pause_s):
            began_s = time.monotonic()
            try:
                ask(self._socket, Status())
            except Error as refusal:
                self.refusals.append(str(refusal))
            self.took_s.append(time.monotonic() - began_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()


def socket_of(daemon: Daemon) -> Path:
    return daemon.file.parent / "control.sock"


def links_of(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """What `status` says of each link."""
    return {link["name"]: link for link in ask(socket_of(daemon), Status())["links"]}


def lacking(daemon: Daemon) -> list[str]:
    """Links that do not carry both families, or whose targets do not all answer."""
    return [
        f"{name} is {link['state']}: {link['why']}"
        for name, link in links_of(daemon).items()
        if link["carries"] != BOTH or not all(one["ok"] for one in link["targets"])
    ]


def homes(lab: Lab, daemon: Daemon) -> list[tuple[str, str | None]]:
    """Every pair, and the link that its new connections take now."""
    flows = [f"{source} {target} udp 1 2" for source, target in lab.topology.pairs()]
    answers = ask(socket_of(daemon), Explain([flow.split() for flow in flows]))
    return [(flow, answer["link"]) for flow, answer in zip(flows, answers, strict=True)]


def until(condition: Callable[[], Any], limit_s: float) -> Any:
    """Asks until the answer is true or the time is over; the last answer."""
    ends_s = time.monotonic() + limit_s
    while not (answer := condition()) and time.monotonic() < ends_s:
        time.sleep(0.1)
    return answer
