"""Every file of docs/course.md runs, and what the page says of it is so.

      hosts 10.10.1.0+ ── lan0 │ router │ wan1 ── fibre, 20 Mbit ──┐
                               │        │ wan2 ── lte, 10 Mbit ────┴── servers 203.0.113.1+

A section's `toml` is added to the page's first file. Its `lab` block says line by line what is sent
and where it comes out, as the servers and the providers see it.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from ipaddress import ip_address
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from dataplane.lab import Daemon, Lab, Topology, UnavailableError
from dataplane.lab.faults import no_carrier
from dataplane.lab.topology import MBIT, lan, link, servers
from tests.lab.links import KEY, becomes
from tests.lab.talk import Talk, call, eventually, link_of, rightful_sources

PAGE = Path(__file__).parents[2] / "docs/course.md"
HOSTS, SERVERS = 30, 10
# IPv4 alone, which the page speaks of.
TOPOLOGY = Topology(
    (
        link("fibre", 1, 20 * MBIT, shaped=False, families=(4,)),
        link("lte", 2, 10 * MBIT, shaped=False, families=(4,)),
    ),
    (lan(hosts=HOSTS, families=(4,)),),
    servers(SERVERS, (4,)),
)
# As the defaults but for the time that it takes.
PROBE = "\n[probe]\ninterval_ms = 100\nhold_ms = 0\n"
PARTS = {"two thirds": Fraction(2, 3), "one third": Fraction(1, 3)}
SILENT_S = 0.5

SENT = re.compile(r"(\S+|the router) to (\S+) (tcp|udp) (\d+)(?: dscp (\d+))? (.+)")
SPREAD = re.compile(r"(\d+) connections: (.+) by (\w+), (.+) by (\w+)")
FAULT = re.compile(r"when (\w+) is (cut|back)")
INBOUND = re.compile(r"(\S+) asks the router at (\w+) and is answered by (\w+)")
LEARNED = re.compile(r"after (\S+) asked (\S+) for http (\S+)")
COUNTED = re.compile(r"the counter of table own has counted what left by (\w+)")


@dataclass(frozen=True)
class Section:
    """What a section of the page says, by the languages of its blocks."""

    title: str
    blocks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.title


def sections() -> list[Section]:
    found = []
    for part in PAGE.read_text().split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        found.append(Section(title, dict(blocks)))
    return found


SECTIONS = [section for section in sections() if "lab" in section.blocks]
BASE = SECTIONS[0].blocks["toml"]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        with Lab(TOPOLOGY) as built:
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


def test_the_page_shows_both_sides() -> None:
    """Every topic has RouterOS's commands, and every one that has a file says what it does."""
    assert len(SECTIONS) > 15
    for section in sections()[:-1]:
        if section.title != "What RouterOS has no word for":
            assert "routeros" in section.blocks, section.title
        assert "lab" in section.blocks, section.title


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_what_the_page_says(lab: Lab, section: Section) -> None:
    if "rsc" in section.blocks:
        (lab.directory / "nice.rsc").write_text(section.blocks["rsc"])
    with running(lab, section) as daemon, ExitStack() as faults:
        if "nft" in section.blocks:
            lab.router.run("nft", "-f", "-", stdin=section.blocks["nft"])
            faults.callback(lab.router.run, "nft", "delete", "table", "inet", "own")
        Reader(lab, daemon, faults).read(section.blocks["lab"])


@contextmanager
def running(lab: Lab, section: Section) -> Iterator[Daemon]:
    """The daemon with the section's file; afterwards everything is undone."""
    top = {"state_dir": lab.directory / "state", "control_socket": lab.directory / "control.sock"}
    text = "".join(f'{key} = "{path}"\n' for key, path in top.items()) + f'key = "{KEY}"\n'
    own = section.blocks.get("toml", "")
    daemon = lab.run(lab.file(text=text + BASE + (own if own != BASE else "") + PROBE))
    try:
        for name in ("fibre", "lte"):
            becomes(daemon, name, 4)
        # Whatever the page sends, no provider ever sees an address that is not its own.
        with rightful_sources(lab, moving=True):
            yield daemon
    finally:
        lab.evenlink("down", "--config", str(daemon.file), check=False)
        daemon.stop()


class Reader:
    """Does what the lines say and holds them to it."""

    def __init__(self, lab: Lab, daemon: Daemon, faults: ExitStack) -> None:
        self.lab, self.daemon = lab, daemon
        self.faults = faults
        self.cut: dict[str, ExitStack] = {}
        self.last = ""
        self.by: dict[str, int] = {"fibre": 0, "lte": 0}

    def read(self, text: str) -> None:
        for line in text.splitlines():
            if found := SENT.fullmatch(line):
                self.sent(line, *found.groups())
            elif found := SPREAD.fullmatch(line):
                self.spread(line, *found.groups())
            elif found := FAULT.fullmatch(line):
                self.fault(*found.groups())
            elif found := INBOUND.fullmatch(line):
                self.inbound(*found.groups())
            elif found := LEARNED.fullmatch(line):
                self.learned(*found.groups())
            else:
                found = COUNTED.fullmatch(line)
                assert found, f"nobody understands: {line}"
                self.counted(found[1])

    def sent(
        self, line: str, source: str, target: str, protocol: str, port: str, dscp: str, says: str
    ) -> None:
        told = self.told(source, target, protocol, port, dscp)
        if says == "is refused":
            assert told["link"] is None, line
            with pytest.raises(OSError):  # noqa: PT011 - which one, is the kernel's business
                self.carried(source, target, protocol, int(port), dscp, SILENT_S)
            return
        by = self.carried(source, target, protocol, int(port), dscp)
        self.by[by] += 1
        if says == "is left to main":
            assert told["table"] == "main", line
            return
        candidates = [one["name"] for one in told["candidates"]]
        foretold = [told["link"]] if told["link"] else candidates
        assert by in foretold, f"{line}: explain said {foretold}"
        wanted = says.removeprefix("leaves by ")
        if wanted == "the same link":
            assert by == self.last, line
        else:
            assert by in wanted.split(" or "), line
        self.last = by

    def told(self, source: str, target: str, protocol: str, port: str, dscp: str) -> dict[str, Any]:
        """What explain says of a packet like that; of the router's own, none of its interfaces."""
        own = source == "the router"
        address = self.lab.topology.lans[0].router(4) if own else source
        interface = self.lab.topology.lans[0].interface
        words = f"{address} {target} {protocol} 1 {port}"
        return self.daemon.explain([words if own else f"{words} {interface} {dscp or 0}"])[0]

    def carried(
        self,
        source: str,
        target: str,
        protocol: str,
        port: int,
        dscp: str = "",
        patience_s: float = 5.0,
    ) -> str:
        """The link by which a connection like that leaves, as its server sees it."""
        near = self.lab.router if source == "the router" else self.lab.client
        far = self.lab.server
        for one in self.lab.topology.links:
            if ip_address(target) == one.gateway(4):
                far = self.lab[one.name]
        own = None if source == "the router" else source
        with Talk(
            near, own, far, target, protocol=protocol, port=port, patience_s=patience_s
        ) as talk:
            if dscp:
                talk.near.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, int(dscp) << 2)
            return link_of(self.lab, talk.goes_on())

    def spread(
        self, line: str, number: str, first: str, name: str, second: str, other: str
    ) -> None:
        """Ever new pairs, one connection each; parts are held within five standard deviations."""
        clients = self.lab.topology.lans[0].clients(4)
        pairs = list(product(clients, self.lab.topology.serving(4)))[: int(number)]
        assert len(pairs) == int(number)
        seen = {name: 0, other: 0}
        for source, target in pairs:
            with call(self.lab, target, source=source) as talk:
                seen[link_of(self.lab, talk.goes_on())] += 1
        for one, part in ((name, first), (other, second)):
            if part in PARTS:
                share = PARTS[part]
                off = seen[one] - int(number) * share
                assert off**2 < 25 * int(number) * share * (1 - share), f"{line}: {seen}"
            else:
                assert seen[one] == int(part), f"{line}: {seen}"

    def fault(self, name: str, what: str) -> None:
        if what == "cut":
            self.cut[name] = self.faults.enter_context(ExitStack())
            self.cut[name].enter_context(no_carrier(self.lab, name))
            becomes(self.daemon, name)
        else:
            self.cut.pop(name).close()
            becomes(self.daemon, name, 4)

    def inbound(self, source: str, name: str, by: str) -> None:
        assert name == by, "who is asked answers"
        at = self.lab.topology.link(name).address(4)
        for protocol in ("udp", "tcp"):
            # A reply by the other link would be an address that is not its own there.
            with Talk(self.lab.server, source, self.lab.router, at, protocol=protocol) as talk:
                talk.goes_on()

    def learned(self, source: str, target: str, host: str) -> None:
        with Talk(
            self.lab.client, source, self.lab.server, target, protocol="tcp", port=80
        ) as talk:
            talk.near.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            talk.far.recv(4096)
            talk.far.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            talk.near.recv(4096)
        words = f"{source} {target} tcp 1 80"
        eventually(
            lambda: self.daemon.explain([words])[0]["rule"] == "rule 1", f"{host} is learned"
        )

    def counted(self, name: str) -> None:
        listed = self.lab.router.run("nft", "list", "table", "inet", "own").stdout
        found = re.search(r"packets (\d+)", listed)
        assert found, listed
        assert bool(int(found[1])) == bool(self.by[name])
