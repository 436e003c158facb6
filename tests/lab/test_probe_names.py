"""Names of targets, asked of a name server that says all kinds of things; and what is loaded when.

The resolver runs in a process of its own on the router, where /etc/resolv.conf is another.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from dataplane.lab.namespaces import PYTHON
from tests.lab.probebox import HOST4, Box, probe_box

_ASK = """
import asyncio, json, sys, threading
from dataplane.errors import MachineError
from dataplane.system import resolver
assert not [name for name in sys.modules if name.split(".")[0] == "dns"], "loaded too soon"

async def main():
    turns = 0
    async def goes_on():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1
    beside = asyncio.create_task(goes_on())
    for name, family, limit_s in json.loads(sys.argv[1]):
        turns = 0
        try:
            found, kept_s = await resolver.addresses(name, family, limit_s)
            said = [[str(one) for one in found], kept_s]
        except MachineError as fault:
            said = str(fault)
        print(json.dumps([said, turns]))
    beside.cancel()

asyncio.run(main())
"""


def answer_to(question: dns.message.Message) -> bytes | None:
    """By the first word of the name; None: silence."""
    asked = question.question[0]
    made = dns.message.make_response(question)

    def says(ttl: int, kind: str, *texts: str, owner: object = asked.name) -> None:
        made.answer.append(dns.rrset.from_text(str(owner), ttl, "IN", kind, *texts))

    match asked.name.labels[0].decode():
        case "well" if asked.rdtype == dns.rdatatype.A:
            says(120, "A", "203.0.113.5", "203.0.113.6")
        case "well":
            says(120, "AAAA", "2001:db8::5")
        case "long":
            says(86400, "A", "203.0.113.5")
        case "short":
            says(0, "A", "203.0.113.5")
        case "alias":
            says(3000, "CNAME", "real.example.")
            says(30, "A", "203.0.113.7", owner="real.example.")
        case "many":
            says(120, "A", *(f"203.0.113.{n}" for n in range(1, 101)))
        case "none":
            made.set_rcode(dns.rcode.NXDOMAIN)
        case "refused":
            made.set_rcode(dns.rcode.REFUSED)
        case "garbage":
            return os.urandom(100)
        case "stranger":
            made.id ^= 1
            says(120, "A", "203.0.113.5")
        case "silent":
            return None
    return made.to_wire()


@pytest.fixture(scope="module")
def router() -> Iterator[Box]:
    """Its way to the name server is in the main table: names are the router's own traffic."""
    with probe_box() as box:
        box.router.run("ip", "route", "add", str(HOST4), "via", "192.0.2.1")
        server = box.bound("a", socket.SOCK_DGRAM, HOST4, 53)
        server.settimeout(0.1)
        ending = threading.Event()

        def serve() -> None:
            while not ending.is_set():
                try:
                    heard, sender = server.recvfrom(4096)
                except TimeoutError:
                    continue
                said = answer_to(dns.message.from_wire(heard))
                if said is not None:
                    server.sendto(said, sender)

        serving = threading.Thread(target=serve)
        serving.start()
        try:
            yield box
        finally:
            ending.set()
            serving.join()


def resolved(
    box: Box, directory: Path, *asked: tuple[str, int, float], configured: str = ""
) -> list[tuple[object, int]]:
    """What is said of each name, and how many turns the loop had meanwhile."""
    file = directory / "resolv.conf"
    file.write_text(configured or f"nameserver {HOST4}\n")
    script = 'mount --bind "$1" "$(realpath /etc/resolv.conf)" && shift && exec "$@"'
    asking = (PYTHON, "-c", _ASK, json.dumps(asked))
    done = box.router.run("bash", "-c", script, "bash", str(file), *asking)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_addresses_and_how_long_they_are_kept(router: Box, tmp_path: Path) -> None:
    """From five seconds to an hour; of an alias, the shortest of the chain."""
    said = resolved(
        router,
        tmp_path,
        *(("well.example", 4, 5), ("well.example", 6, 5), ("long.example", 4, 5)),
        *(("short.example", 4, 5), ("alias.example", 4, 5)),
    )
    # A resolver gives them in any order.
    assert [[sorted(found), keep] for (found, keep), _ in said] == [
        [["203.0.113.5", "203.0.113.6"], 120.0],
        [["2001:db8::5"], 120.0],
        [["203.0.113.5"], 3600.0],
        [["203.0.113.5"], 5.0],
        [["203.0.113.7"], 30.0],
    ]


def test_an_answer_with_very_many_addresses(router: Box, tmp_path: Path) -> None:
    ((found, _),) = resolved(router, tmp_path, ("many.example", 4, 5))
    assert isinstance(found, list)
    assert len(found[0]) == 16


@pytest.mark.parametrize(
    ("name", "family", "words"),
    [
        ("none.example", 4, "does not resolve: NXDOMAIN"),
        ("long.example", 6, "does not resolve: it has no IPv6 address"),
        ("refused.example", 4, "does not resolve: no name server has an answer"),
        ("stranger.example", 4, "does not resolve: no answer within 1 s"),
        ("silent.example", 4, "does not resolve: no answer within 1 s"),
        ("x" * 64 + ".example", 4, "does not resolve: A DNS label is > 63 octets long."),
    ],
)
def test_why_a_name_does_not_resolve(
    router: Box, tmp_path: Path, name: str, family: int, words: str
) -> None:
    ((said, _),) = resolved(router, tmp_path, (name, family, 1))
    assert said == words


def test_garbage_is_no_answer(router: Box, tmp_path: Path) -> None:
    ((said, _),) = resolved(router, tmp_path, ("garbage.example", 4, 1))
    assert str(said).startswith("does not resolve: no ")


def test_no_name_server(router: Box, tmp_path: Path) -> None:
    """A file without one means this very host, where nobody listens."""
    ((said, _),) = resolved(router, tmp_path, ("well.example", 4, 1), configured="# empty\n")
    assert str(said).startswith("does not resolve: ")


def test_the_loop_goes_on_meanwhile(router: Box, tmp_path: Path) -> None:
    ((_, turns),) = resolved(router, tmp_path, ("silent.example", 4, 1))
    assert turns > 1000


def loaded(script: str) -> set[str]:
    """The packages that a fresh interpreter has after the script."""
    told = "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script + told], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_libraries_are_loaded_when_they_are_needed() -> None:
    """dns and http need some; ping, arp and tcp none."""
    heavy = {"dns", "httpx", "httpcore", "anyio"}
    made = """
import asyncio
from dataplane.config.model import ProbeKind
from dataplane.system import probe, resolver

async def main(*kinds):
    for kind in kinds:
        probe.make_asker(ProbeKind(kind), probe.Exit("lo", 1), print).close()

"""
    light = loaded(made + "asyncio.run(main('ping', 'arp', 'tcp'))")
    assert not light & heavy
    assert loaded(made + "asyncio.run(main('dns'))") & heavy >= {"dns"}
    assert loaded(made + "asyncio.run(main('http'))") & heavy >= {"httpx", "httpcore"}
