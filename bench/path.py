"""Three namespaces in a row, what passes them, and where packets were lost.

    sender ──left── router ──right1── sink            the router's names; the sink has left1, left2
                           └─right2──

    with Path3(links=2) as path, path.by_mark({"1": 1, "2": 2}):
        ...                                     # serve, send (bench.sender), and read:
        path.arrived()                          # packets at the sink, by interface counters
        path.drops()                            # since it was made: queue, interfaces, undecided

IPv4 only; IPv6 is switched off, so that nothing but the benchmark's packets is counted. The sink
throws away UDP to port 9, which the sender sends, and answers all else at `SERVER`: pings, TCP. The
main table of the router has a default route by the first link. Frames need no ARP.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from dataplane.hotpath import kernel_queues
from dataplane.lab import namespaces
from dataplane.lab.namespaces import LabError, Namespace

SENDER = "192.168.90.1"
LAN = "192.168.90.2"  # the router's, towards the sender
SOURCES = "10.0.0.0/8"  # the sender's, beside its own
DESTINATIONS = "198.19.0.0"  # to 198.19.3.255: of RFC 2544's range for benchmarks
ADDRESSES = 1024
SERVER = "198.19.255.1"  # the sink's own
QUEUE = 7477

# Locally administered; every wire has its own two ends, so they may be the same everywhere.
MAC_NEAR, MAC_FAR = "02:00:00:00:00:01", "02:00:00:00:00:02"
_FIRST_TABLE = 100
_numbers = itertools.count(90)

# Nobody may count a packet that left without a decision.
_ROUTER = """
table inet bench {
    counter undecided { }
    chain forwarded { type filter hook forward priority 0; }
}
"""
_DEMAND = """
flush chain inet bench forwarded
add rule inet bench forwarded iifname "left" meta mark 0 counter name undecided drop
"""
# In the sink what is sent, in the sender what answers it: neither has a socket for it.
_SWALLOW = """
table inet bench {
    chain arriving {
        type filter hook prerouting priority -300;
        udp dport 9 drop
        udp sport 9 drop
    }
}
"""


def missing(*tools: str) -> str | None:
    """Why no path can be made here, or which of some more tools is not there; None if all is."""
    if os.geteuid() != 0:
        return "no root: makes network namespaces"
    search = namespaces.environment()["PATH"]
    for tool in ("ip", "nft", *tools):
        if shutil.which(tool, path=search) is None:
            return f"no {tool}"
    return None


class Path3:
    """The three namespaces. Made by the constructor, removed by `remove` or at the block's end."""

    def __init__(self, links: int = 1) -> None:
        number = next(_numbers)
        self.links = links
        self._names = [namespaces.name(number, role) for role in ("sender", "router", "sink")]
        self.directory = Path(tempfile.gettempdir(), namespaces.name(number, "bench"))
        self._spaces: list[Namespace] = []
        namespaces.sweep()
        try:
            self.directory.mkdir(mode=0o700)
            for name in self._names:
                self._spaces.append(Namespace(name))
            self.sender, self.router, self.sink = self._spaces
            self._lay_out()
        except BaseException:
            self.remove()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Removes everything, whatever state it is in. Again does nothing."""
        for space in reversed(self._spaces):
            space.remove()
        for name in self._names:
            if Path("/run/netns", name).exists():  # a signal came while it was made
                subprocess.run(["ip", "netns", "delete", name], env=namespaces.environment())
        shutil.rmtree(self.directory, ignore_errors=True)

    def router_address(self, link: int) -> str:
        """The router's own on that link; links count from 1."""
        return f"198.18.{link}.2"

    def gateway(self, link: int) -> str:
        """The sink's on that link."""
        return f"198.18.{link}.1"

    def _lay_out(self) -> None:
        for space in self._spaces:
            space.set({f"net/ipv6/conf/{which}/disable_ipv6": 1 for which in ("all", "default")})
            # The machine's own may be strict, and is inherited.
            space.set({f"net/ipv4/conf/{which}/rp_filter": 0 for which in ("all", "default")})
        self._wire(self.sender, "right", SENDER, self.router, "left", LAN)
        for link in range(1, self.links + 1):
            near, far = self.router_address(link), self.gateway(link)
            self._wire(self.router, f"right{link}", near, self.sink, f"left{link}", far)
        self._batch(self.sender, f"route add default via {LAN}")
        self._batch(
            self.router,
            f"route add {SOURCES} via {SENDER}",
            f"route add default via {self.gateway(1)} dev right1",
        )
        self._batch(
            self.sink,
            "link set lo up",
            f"address add {SERVER}/32 dev lo",
            f"route add local {DESTINATIONS}/22 dev lo",
            f"route add default via {self.router_address(1)} dev left1",
        )
        self.router.set({"net/ipv4/ip_forward": 1})
        self.router.run("nft", "-f", "-", stdin=_ROUTER)
        self.sender.run("nft", "-f", "-", stdin=_SWALLOW)
        self.sink.run("nft", "-f", "-", stdin=_SWALLOW)

    def _wire(
        self, near: Namespace, end: str, address: str, far: Namespace, other: str, its: str
    ) -> None:
        self._batch(
            near,
            f"link add {end} address {MAC_NEAR} type veth "
            f"peer name {other} address {MAC_FAR} netns {far.name}",
        )
        for space, name, own, mac, peer in (
            (near, end, address, MAC_FAR, its),
            (far, other, its, MAC_NEAR, address),
        ):
            self._batch(
                space,
                f"address add {own}/24 dev {name}",
                f"link set {name} up",
                f"neigh replace {peer} lladdr {mac} dev {name} nud permanent",
            )

    def _batch(self, space: Namespace, *lines: str) -> None:
        space.run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")

    @contextmanager
    def by_mark(self, links: Mapping[str, int]) -> Iterator[None]:
        """Route by mark meanwhile: {"0x1/0xff": 1} sends what carries that value by link 1."""
        lines = [
            f"rule add fwmark {mark} lookup {_FIRST_TABLE + link} priority {1000 + place}"
            for place, (mark, link) in enumerate(links.items())
        ]
        for link in set(links.values()):
            via = f"default via {self.gateway(link)} dev right{link}"
            lines.append(f"route replace {via} table {_FIRST_TABLE + link}")
        self._batch(self.router, *lines)
        try:
            yield
        finally:
            rules = (f"rule del priority {1000 + place}" for place in range(len(links)))
            self._batch(self.router, *rules)

    @contextmanager
    def demand_mark(self) -> Iterator[None]:
        """Drop and count meanwhile what the sender sends and the router leaves unmarked."""
        self.router.run("nft", "-f", "-", stdin=_DEMAND)
        try:
            yield
        finally:
            self.router.run("nft", "flush", "chain", "inet", "bench", "forwarded")

    @contextmanager
    def iptables(self, *rules: str) -> Iterator[None]:
        """Rules for the router's iptables meanwhile: "-t mangle -A PREROUTING …"."""
        done: list[str] = []
        try:
            for rule in rules:
                self.router.run("iptables", *rule.split())
                done.append(rule)
            yield
        finally:
            for rule in reversed(done):
                self.router.run("iptables", *rule.replace(" -A ", " -D ", 1).split())

    @contextmanager
    def answering(self) -> Iterator[None]:
        """The sink takes in meanwhile what it throws away else."""
        self.sink.run("nft", "flush", "chain", "inet", "bench", "arriving")
        try:
            yield
        finally:
            self.sink.run("nft", "-f", "-", stdin=_SWALLOW)

    def queued(self) -> list[str]:
        """The rule, for `iptables`, that queues every packet of the sender's."""
        return [f"-t mangle -A PREROUTING -i left -j NFQUEUE --queue-num {QUEUE} --queue-bypass"]

    def arrived(self) -> int:
        """Packets that have come to the sink."""
        return sum(columns[1] for name, columns in _interfaces(self.sink).items() if name != "lo")

    def arrived_by_link(self) -> dict[int, int]:
        """The same, by link."""
        found = _interfaces(self.sink)
        return {link: found[f"left{link}"][1] for link in range(1, self.links + 1)}

    def waiting(self) -> int:
        """Packets that are in a queue of the router's now."""
        with self.router.inside():
            return sum(queue["waiting"] for queue in kernel_queues().values())

    def drops(self) -> dict[str, int]:
        """Packets lost, by where. The queue's are those since it was bound.

        `queue`: it was full, or its socket was; `interfaces`: the next namespace had no room, as a
        veth counts at the end that sends; `undecided`: dropped by `demand_mark`.
        """
        with self.router.inside():
            queues = kernel_queues().values()
        interfaces = [*_interfaces(self.sender).values(), *_interfaces(self.router).values()]
        return {
            "queue": sum(queue["dropped"] + queue["user_dropped"] for queue in queues),
            "interfaces": sum(columns[11] for columns in interfaces),
            "undecided": self.counter("bench", "undecided"),
        }

    def counter(self, table: str, name: str) -> int:
        """Packets of a named counter of the router's nft table of that name."""
        # Asked for one counter, nft would fetch the elements of the table's sets.
        said = json.loads(self.router.run("nft", "-j", "-t", "list", "ruleset", "inet").stdout)
        counters = [item["counter"] for item in said["nftables"] if "counter" in item]
        return int(next(c["packets"] for c in counters if (c["table"], c["name"]) == (table, name)))

    def forget_connections(self) -> None:
        """Empties the router's conntrack table."""
        self.router.run("conntrack", "-F")


def _interfaces(space: Namespace) -> dict[str, list[int]]:
    """The columns of /proc/net/dev, by interface: 8 of what was received, 8 of what was sent."""
    with space.inside():
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    found = {}
    for line in lines:
        name, _, columns = line.partition(":")
        found[name.strip()] = [int(column) for column in columns.split()]
    if not found:
        raise LabError(f"{space.name} has no interfaces")
    return found
