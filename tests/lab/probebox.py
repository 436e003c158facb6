"""A router with two links, two providers with the same target behind them, and a witness on each.

            up-a ──── link   a    192.0.2.1      203.0.113.1, .9 and 2001:db8:53::1, ::9
    router                                       in both of them
            up-b ──── link   b    198.51.100.1

The main table knows no way to the target: only a link's mark does. The router's filter counts what
leaves as a probe of that link should, and whatever else leaves.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest

from dataplane.config.model import ProbeKind, Target
from dataplane.lab import Namespace, namespaces
from dataplane.system.probe import Asker, Exit, make_asker

Address = IPv4Address | IPv6Address

HOST4, OTHER4, SILENT4 = map(IPv4Address, ("203.0.113.1", "203.0.113.9", "203.0.113.77"))
HOST6, OTHER6 = IPv6Address("2001:db8:53::1"), IPv6Address("2001:db8:53::9")
HOSTS = pytest.mark.parametrize("host", [HOST4, HOST6], ids=["ipv4", "ipv6"])
OTHER: dict[Address, Address] = {HOST4: OTHER4, HOST6: OTHER6}
LINKS = {"a": (1, "192.0.2"), "b": (2, "198.51.100")}
PATIENCE_S = 10.0

_numbers = itertools.count(1)
_RULES = """
table inet seen {
    counter a {}
    counter b {}
    counter strange {}
    chain leaving {
        type filter hook postrouting priority 300;
        oifname up-a meta mark 0x01000000 meta priority 6576:6c00 counter name a return
        oifname up-b meta mark 0x02000000 meta priority 6576:6c00 counter name b return
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit,
            mld-listener-query, mld-listener-report, mld2-listener-report } return
        counter name strange
    }
}
"""


def exit_of(link: str) -> Exit:
    """The link's interface and mark."""
    return Exit(f"up-{link}", LINKS[link][0] << 24)


class Box:
    """Namespaces `router`, `a` and `b`; `frames(link)` gives what its provider heard meanwhile."""

    def __init__(self, stack: ExitStack) -> None:
        number = next(_numbers)
        self._stack = stack
        self._space: dict[str, Namespace] = {}
        self._heard: dict[str, socket.socket] = {}
        for role in ("router", *LINKS):
            made = Namespace(namespaces.name(number, f"probe-{role}"))
            stack.callback(made.remove)
            self._space[role] = made
            quiet = {f"net/ipv6/conf/{which}/accept_dad": 0 for which in ("all", "default")}
            made.set({**quiet, "net/ipv4/conf/all/rp_filter": 0})
        for link in LINKS:
            self._wire(link)
        self.router.run("nft", "-f", "-", stdin=_RULES)
        for link in LINKS:
            # All, and 0x0003 is ETH_P_ALL.
            with self[link].inside():
                heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            self._heard[link] = stack.enter_context(heard)
            heard.bind(("link", 3))

    def _wire(self, link: str) -> None:
        number, prefix = LINKS[link]
        there = self[link].name
        self.router.run(
            *("ip", "link", "add", f"up-{link}", "type", "veth"),
            *("peer", "name", "link", "netns", there),
        )
        lines = [
            f"link set up-{link} up",
            f"address add {prefix}.2/24 dev up-{link}",
            f"address add 2001:db8:{number}::2/64 dev up-{link} nodad",
        ]
        for family, gateway in (("-4", f"{prefix}.1"), ("-6", f"2001:db8:{number}::1")):
            table = 100 + number
            lines.append(f"{family} route add default via {gateway} dev up-{link} table {table}")
            lines.append(f"{family} rule add fwmark {number << 24:#x} lookup {table}")
        self._ip("router", lines)
        hosts = [HOST4, OTHER4, HOST6, OTHER6]
        self._ip(
            link,
            [
                "link set lo up",
                "link set dev link up",
                f"address add {prefix}.1/24 dev link",
                f"address add 2001:db8:{number}::1/64 dev link nodad",
                *(f"address add {host} dev lo" for host in hosts),
            ],
        )

    def _ip(self, role: str, lines: list[str]) -> None:
        self[role].run("bash", "-ec", "\n".join(f"ip {line}" for line in lines))

    def rewire(self, link: str) -> None:
        """The link's interface, deleted by the test, comes back with another index."""
        hosts = [f"ip address delete {host} dev lo" for host in (HOST4, OTHER4, HOST6, OTHER6)]
        self[link].run("bash", "-ec", "\n".join(hosts))
        number = LINKS[link][0]
        self._ip("router", [f"{f} rule delete lookup {100 + number}" for f in ("-4", "-6")])
        self._wire(link)

    def __getitem__(self, role: str) -> Namespace:
        return self._space[role]

    @property
    def router(self) -> Namespace:
        return self["router"]

    def socket(self, link: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of that provider's, closed with the box."""
        with self[link].inside():
            made = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        return self._stack.enter_context(made)

    def bound(self, link: str, kind: int, host: Address, port: int = 0) -> socket.socket:
        """One that is bound to an address; listens if it can."""
        made = self.socket(link, _family(host), kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((str(host), port))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    def deaf(self, link: str) -> None:
        """That provider's kernel answers no pings."""
        self[link].set({"net/ipv4/icmp_echo_ignore_all": 1, "net/ipv6/icmp/echo_ignore_all": 1})

    def frames(self, link: str) -> list[bytes]:
        """Ethernet frames that came to the provider by its link since the last time."""
        found = []
        while True:
            try:
                frame, place = self._heard[link].recvfrom(2048)
            except BlockingIOError:
                return found
            if place[2] != socket.PACKET_OUTGOING:
                found.append(frame)

    def packets_to(self, link: str, host: Address) -> int:
        """How many of them were IP packets to that address."""
        kind = b"\x08\x00" if host.version == 4 else b"\x86\xdd"
        at = slice(30, 34) if host.version == 4 else slice(38, 54)
        return sum(f[12:14] == kind and f[at] == host.packed for f in self.frames(link))

    def counted(self) -> dict[str, int]:
        """What left: probes of `a` and of `b` with mark and priority, and what is `strange`."""
        listed = self.router.run("nft", "list", "counters", "table", "inet", "seen").stdout
        found = re.findall(r"counter (\w+) \{\s+packets (\d+)", listed)
        return {name: int(packets) for name, packets in found}


def _family(host: Address) -> socket.AddressFamily:
    return socket.AF_INET if host.version == 4 else socket.AF_INET6


@contextmanager
def probe_box() -> Iterator[Box]:
    namespaces.sweep()
    with ExitStack() as stack:
        yield Box(stack)


@pytest.fixture
def box() -> Iterator[Box]:
    with probe_box() as made:
        yield made


def target(text: str = "host", port: int | None = None) -> Target:
    return Target(text, port=port)


class Told:
    """Collects what an asker tells. `answer` waits for one token's."""

    def __init__(self) -> None:
        self.all: dict[int, tuple[float | None, str]] = {}
        self._changed = asyncio.Event()

    def __call__(self, token: int, ms: float | None, words: str) -> None:
        assert token not in self.all, "told twice"
        self.all[token] = (ms, words)
        self._changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def answer(self, token: int) -> tuple[float | None, str]:
        await self.until(lambda: token in self.all)
        return self.all[token]


@asynccontextmanager
async def asker(
    kind: ProbeKind | Callable[[Exit, Any], Asker], link: str = "a"
) -> AsyncIterator[tuple[Asker, Told]]:
    """An asker of that kind by that link, and what it tells; closed at the end."""
    told = Told()
    by = exit_of(link)
    made = make_asker(kind, by, told) if isinstance(kind, ProbeKind) else kind(by, told)
    try:
        yield made, told
    finally:
        made.close()


def inside(box: Box, work: Callable[[], Awaitable[None]]) -> None:
    """Runs an event loop in the router's namespace; nothing of it may be left over."""

    async def watched() -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
        await work()
        async with asyncio.timeout(PATIENCE_S):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0)
        assert not faults, faults

    with box.router.inside():
        asyncio.run(watched())


async def eventually(condition: Callable[[], Any]) -> Any:
    """Lets the loop go on until it is true, and gives it."""
    async with asyncio.timeout(PATIENCE_S):
        while not (answer := condition()):
            await asyncio.sleep(0.01)
    return answer


def sender_of(place: tuple[Any, ...]) -> Address:
    return ip_address(place[0])
