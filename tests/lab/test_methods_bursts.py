"""Whatever the method, a connection has one link: in bursts, when it is asked again, and for good.

client ── router ─┬─ isp-a ─┐
                  ├─ isp-b ─┼─ server
                  └─ isp-c ─┘

A worker that stands still finds many packets of a connection in its queue, none of them decided.
"""

from __future__ import annotations

import itertools
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path

import pytest

from dataplane.config.model import Method
from dataplane.daemon.calling import ask
from dataplane.daemon.messages import Drain, Reload, Restore
from dataplane.lab import Daemon, Lab, UnavailableError, faults, uplinks
from dataplane.lab.topology import MBIT, Address, Family
from tests.lab.links import FAST, KEY, becomes, is_quiet
from tests.lab.machine import held as holds
from tests.lab.talk import (
    Talk,
    call,
    counted,
    eventually,
    held,
    link_of,
    rightful_sources,
)

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
# Of a hash all packets of a connection make the same, and ecmp has a file of its own.
METHODS = [method for method in Method if method not in (Method.PCC, Method.ECMP)]
BURST = 20
REBUILT = 10
NAMES = ("isp-a", "isp-b", "isp-c")
QUEUE = {"length": 4096}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    rates = (10 * MBIT, 20 * MBIT, 30 * MBIT)
    try:
        with Lab(uplinks(*rates, hosts=8, server_count=8, shaped=False)) as built:
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    before = holds(lab)
    started = lab.run(lab.file(key=KEY, probe=FAST, queue=QUEUE))
    yield started
    is_quiet(started)
    assert started.stop(signal.SIGINT) == 0
    assert holds(lab) == before


@pytest.fixture(autouse=True)
def _watched(lab: Lab, daemon: Daemon) -> Iterator[None]:
    fallback = counted(lab, "fallback")
    with rightful_sources(lab):
        yield
    assert counted(lab, "wrong_source") == 0
    assert counted(lab, "fallback") == fallback


def file_of(lab: Lab, method: Method, more: str = "", **balance: object) -> Path:
    """The topology's file with that method for what no rule of `more` takes."""
    balance = {"method": method.value, **balance}
    path = lab.file(key=KEY, probe=FAST, queue=QUEUE, balance=balance)
    path.write_text(path.read_text() + more)
    return path


def take(lab: Lab, method: Method, more: str = "") -> None:
    """Has the daemon take that file."""
    path = file_of(lab, method, more)
    ask(path.parent / "control.sock", Reload())


def by(lab: Lab, source: Address, target: Address, protocol: str = "udp") -> str:
    """The link of a new connection."""
    with call(lab, target, protocol, source=source) as talk:
        return link_of(lab, talk.goes_on())


@pytest.mark.parametrize("method", METHODS)
def test_a_burst_is_not_torn(lab: Lab, daemon: Daemon, method: Method) -> None:
    """Nor is any packet of it lost."""
    take(lab, method)
    with rightful_sources(lab) as witness, ExitStack() as stack:
        opened = [
            stack.enter_context(call(lab, target, source=source))
            for source, target in lab.topology.pairs()[:32]
        ]
        with held(daemon):
            for _ in range(BURST):
                for talk in opened:
                    talk.near.send(talk.payload)
        for talk in opened:
            assert len({talk.far.recvfrom(64)[1] for _ in range(BURST)}) == 1
        used = witness.testimony().links
        assert {len(links) for links in used.values()} == {1}
        if method is Method.NTH:
            assert {name for links in used.values() for name in links} == set(NAMES)


def test_a_burst_that_a_rule_sends_to_a_group(lab: Lab, daemon: Daemon) -> None:
    """The rule's group remembers for itself what it decided shortly before."""
    group = '[group.voice]\nlinks = ["isp-a", "isp-b"]\nmethod = "random"\n'
    rule = '[[rule]]\ndestination_port = "1-65535"\nuse = "voice"\n'
    take(lab, Method.NTH, "\n" + group + rule)
    with rightful_sources(lab) as witness, ExitStack() as stack:
        # Chance sends all of them by one link less than once in a million times.
        pairs = lab.topology.pairs()[:64]
        opened = [stack.enter_context(call(lab, target, source=source)) for source, target in pairs]
        with held(daemon):
            for talk in opened * BURST:
                talk.near.send(talk.payload)
        for talk in opened:
            for _ in range(BURST):
                talk.far.recv(64)
        used = witness.testimony().links
        assert {name for links in used.values() for name in links} == {"isp-a", "isp-b"}


@contextmanager
def knocking(lab: Lab, family: Family) -> Iterator[Callable[[], dict[int, set[str]]]]:
    """Gives, by the port of a server, the links by which SYNs came for it."""
    table = (
        "table inet knocks {\nset ports {\ntype inet_service\n}\nchain before {\n"
        'type filter hook prerouting priority -300\niifname "link" '
        f"meta nfproto ipv{family} tcp flags syn / syn,ack add @ports {{ tcp dport }}\n}}\n}}\n"
    )

    def seen() -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for name in NAMES:
            listed = lab[name].run("nft", "list", "set", "inet", "knocks", "ports").stdout
            _, _, elements = listed.partition("elements")
            for port in re.findall(r"\d+", elements):
                found.setdefault(int(port), set()).add(name)
        return found

    for name in NAMES:
        lab[name].run("nft", "-f", "-", stdin=table)
    try:
        yield seen
    finally:
        for name in NAMES:
            lab[name].run("nft", "delete", "table", "inet", "knocks")


@FAMILIES
def test_a_syn_that_is_sent_again(lab: Lab, daemon: Daemon, family: Family) -> None:
    """The second comes while the first still waits, and follows it. nth tears what can be torn."""
    take(lab, Method.NTH)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with ExitStack() as stack, knocking(lab, family) as seen:
        listeners, near = [], []
        for target in lab.topology.serving(family):
            with lab.server.inside():
                listener = stack.enter_context(socket.socket(kind, socket.SOCK_STREAM))
            listener.bind((str(target), 0))
            listener.listen()
            listener.settimeout(5)
            listeners.append(listener)
        before = handed_over(lab)
        with held(daemon):
            for listener in listeners:
                with lab.client.inside():
                    opening = stack.enter_context(socket.socket(kind, socket.SOCK_STREAM))
                opening.setblocking(False)
                opening.connect_ex(listener.getsockname()[:2])
                near.append(opening)
            eventually(lambda: handed_over(lab) - before >= 2 * len(listeners))
        for listener in listeners:
            stack.enter_context(listener.accept()[0])
        links = [seen()[listener.getsockname()[1]] for listener in listeners]
        assert {len(used) for used in links} == {1}
        assert set.union(*links) == set(NAMES)


def handed_over(lab: Lab) -> int:
    """Packets that wait in the queue, or have been taken from it."""
    with lab.router.inside(), open("/proc/thread-self/net/netfilter/nfnetlink_queue") as listed:
        line = listed.read().split()
    # peer, length, mode, bytes, dropped, dropped by the socket, packets so far
    return int(line[2])


_queues = itertools.count(100)
EQUAL = {"links": ["isp-a", "isp-b"]}


def equal(lab: Lab, **balance: object) -> None:
    """nth among two links by turns, with that memory; a new queue's worker remembers nobody."""
    queue = {**QUEUE, "number": next(_queues)}
    path = lab.file(key=KEY, probe=FAST, queue=queue, balance={"method": "nth", **EQUAL, **balance})
    text = re.sub(r'capacity = "\d+Mbit"', "share = 1", path.read_text())
    path.write_text(text)
    ask(path.parent / "control.sock", Reload())


@FAMILIES
def test_a_pair_that_is_remembered(lab: Lab, daemon: Daemon, family: Family) -> None:
    equal(lab, sticky="pair", sticky_time="1m")
    clients, servers = lab.topology.lans[0].clients(family), lab.topology.serving(family)
    pairs = list(product(clients[:4], servers[:4]))
    links = [by(lab, *pair) for pair in pairs]
    assert links == [links[0], *({"isp-a", "isp-b"} - {links[0]}), *links[:2]] * 4, "by turns"
    for protocol in ("tcp", "udp"):
        assert [by(lab, *pair, protocol) for pair in pairs] == links


@FAMILIES
def test_a_source_that_is_remembered(lab: Lab, daemon: Daemon, family: Family) -> None:
    equal(lab, sticky="source", sticky_time="1m")
    clients, servers = lab.topology.lans[0].clients(family), lab.topology.serving(family)
    links = {client: by(lab, client, servers[0]) for client in clients}
    assert sorted(links.values()) == ["isp-a"] * 4 + ["isp-b"] * 4
    for server, protocol in product(servers, ("tcp", "udp")):
        assert {client: by(lab, client, server, protocol) for client in clients} == links


def test_memory_expires_and_each_connection_renews_it(lab: Lab, daemon: Daemon) -> None:
    equal(lab, sticky="pair", sticky_time="1s")
    client = lab.topology.lans[0].clients(4)[0]
    first, second, third = lab.topology.serving(4)[:3]
    used = by(lab, client, first)
    begun = time.monotonic()
    while time.monotonic() < begun + 1.5:
        assert by(lab, client, first) == used
    # Two more turns, so that the next one is not of the same link.
    other = by(lab, client, second)
    assert by(lab, client, third) == used != other
    quiet_from = time.monotonic()
    eventually(lambda: time.monotonic() > quiet_from + 1.1)
    assert by(lab, client, first) == other


@pytest.mark.parametrize(
    ("how", "method", "sticky"),
    [
        ("dies", "nth", "pair"),
        ("dies", "random", "source"),
        ("is drained", "nth", "source"),
        ("is drained", "random", "pair"),
    ],
)
def test_a_remembered_link_that_does_not_serve_is_left(
    lab: Lab, daemon: Daemon, how: str, method: str, sticky: str
) -> None:
    """Who had to leave is remembered anew, and stays where they are when the link returns."""
    equal(lab, method=method, sticky=sticky, sticky_time="1m")
    pairs = [pair for pair in lab.topology.pairs() if pair[1] in lab.topology.serving(4)[:3]]
    before = {pair: by(lab, *pair) for pair in pairs}
    # By chance alone nobody may be there, once in some hundred times.
    assert method == "random" or set(before.values()) == {"isp-a", "isp-b"}
    with ExitStack() as stack:
        if how == "dies":
            stack.enter_context(faults.no_carrier(lab, "isp-b"))
        else:
            ask(daemon.file.parent / "control.sock", Drain("isp-b"))
        becomes(daemon, "isp-b")
        assert {by(lab, *pair) for pair in pairs} == {"isp-a"}
    if how != "dies":
        ask(daemon.file.parent / "control.sock", Restore("isp-b"))
    becomes(daemon, "isp-b", 4, 6)
    assert {by(lab, *pair) for pair in pairs} == {"isp-a"}


@pytest.mark.parametrize("method", list(Method))
def test_no_connection_moves_when_shares_change(lab: Lab, daemon: Daemon, method: Method) -> None:
    """Ten files, of other shares, orders and rules."""
    needs_capacity = method in (Method.OVERFLOW, Method.LEAST_USED)
    take(lab, method)
    with rightful_sources(lab), ExitStack() as stack:
        opened: list[Talk] = [
            stack.enter_context(call(lab, target, protocol, source=source))
            for source, target in lab.topology.pairs()[:12]
            for protocol in ("tcp", "udp")
        ]
        used = [link_of(lab, talk.goes_on()) for talk in opened]
        for turn in range(REBUILT):
            more = f'\n[[rule]]\ndestination_port = "1-65535"\nuse = "{NAMES[turn % 3]}"\n'
            order = [NAMES[(turn + number) % 3] for number in range(3 - turn % 4 // 2)]
            path = file_of(lab, method, more if turn % 2 else "", links=order)
            text = path.read_text()
            for number, rate in enumerate((10, 20, 30)):
                other = (turn * 7 + number) % 9 + 1
                changed = f'capacity = "{other}Mbit"' if needs_capacity else f"share = {other}"
                text = text.replace(f'capacity = "{rate}Mbit"', changed)
            path.write_text(text)
            ask(path.parent / "control.sock", Reload())
            assert [link_of(lab, talk.goes_on()) for talk in opened] == used
            for source, target in lab.topology.pairs()[-2:]:
                assert by(lab, source, target) in NAMES
