"""The timing of mwan3 in a process: `python -m bench.rivals.tracking INTERVAL TIMEOUT LINK…`.

Each LINK is NAME,GATEWAY,WEIGHT. As mwan3track does, each is pinged by its interface, once, and
then the tracker sleeps for the interval; after five pings without an answer the link is down, after
five with one it is up. The default route goes over the links that are up. It says "ready" when it
has set the route.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

TARGET = "1.1.1.1"
INTERVAL_S, TIMEOUT_S = 10.0, 4.0
_DOWN, _UP = 5, 5


@dataclass(slots=True)
class Tracked:
    """A link. `count` of pings in a row that were unlike its state."""

    interface: str
    gateway: str
    weight: int
    up: bool = True
    count: int = 0

    def heard(self, answered: bool) -> bool:
        """Takes a ping's outcome; whether the state changed."""
        if answered == self.up:
            self.count = 0
            return False
        self.count += 1
        if self.count < (_DOWN if self.up else _UP):
            return False
        self.up, self.count = answered, 0
        return True


def route(links: Sequence[Tracked]) -> list[str]:
    """The words for `ip` that make the default route go over the links that are up."""
    hops: list[str] = []
    for link in links:
        if link.up:
            via = ("via", link.gateway, "dev", link.interface)
            hops += ["nexthop", *via, "weight", str(link.weight)]
    return ["route", "replace", "default", *hops] if hops else []


def _switch(links: Sequence[Tracked]) -> None:
    words = route(links)
    if words:
        subprocess.run(["ip", *words], check=True)


def _track(link: Tracked, links: Sequence[Tracked], interval_s: float, timeout_s: float) -> None:
    ping = ("ping", "-n", "-c", "1", "-W", f"{timeout_s:g}", "-I", link.interface, TARGET)
    while True:
        answered = subprocess.run(ping, stdout=subprocess.DEVNULL).returncode == 0
        if link.heard(answered):
            _switch(links)
        time.sleep(interval_s)


def main() -> None:
    interval_s, timeout_s = float(sys.argv[1]), float(sys.argv[2])
    links = []
    for word in sys.argv[3:]:
        interface, gateway, weight = word.split(",")
        links.append(Tracked(interface, gateway, int(weight)))
    _switch(links)
    print("ready", flush=True)
    for link in links:
        threading.Thread(target=_track, args=(link, links, interval_s, timeout_s)).start()


if __name__ == "__main__":
    main()
