"""20,000 connections, one small datagram each, by each method: the providers count what they got.

200 hosts ── router ─┬─ isp-a ─┬─ 100 servers
                     ├─ isp-b ─┤
                     └─ isp-c ─┘

What a hash with a known key decides is the same each time, so it is held to what chance exceeds in
one case of a hundred; what is drawn at random to one in a million, so that the suite is not red by
mere chance. The distance is printed either way. ecmp has a file of its own.
"""

from __future__ import annotations

import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import pairwise, product
from math import ceil, floor

import pytest

from dataplane.config.model import Method
from dataplane.daemon.calling import ask
from dataplane.daemon.messages import Reload
from dataplane.lab import Daemon, Lab, UnavailableError, exchange, uplinks
from dataplane.lab.topology import MBIT, Address, Family
from dataplane.lab.witness import Witness
from tests.lab.links import KEY, is_quiet
from tests.lab.machine import held
from tests.lab.talk import counted, eventually, rightful_sources, status

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
CAPACITIES = {"isp-a": 10, "isp-b": 20, "isp-c": 50}
TOTAL = sum(CAPACITIES.values())
COUNT = 20_000
# Two degrees of freedom: what chance exceeds in one case of a hundred, and of a million.
ONE_IN_A_HUNDRED, ONE_IN_A_MILLION = 9.210, 27.631
# No packet is settled by the kernel, since the queue holds all of them.
QUEUE = {"length": 65536}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    rates = [rate * MBIT for rate in CAPACITIES.values()]
    try:
        with Lab(uplinks(*rates, hosts=200, server_count=100, shaped=False)) as built:
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    before = held(lab)
    started = lab.run(lab.file(key=KEY, own_traffic="main", queue=QUEUE))
    yield started
    is_quiet(started)
    assert started.stop(signal.SIGINT) == 0
    assert held(lab) == before


def takes(lab: Lab, method: Method, more: str = "", **keys: object) -> None:
    """Has the daemon take a file with that method for what no rule of `more` takes."""
    path = lab.file(
        key=KEY, own_traffic="main", queue=QUEUE, balance={"method": method.value, **keys}
    )
    path.write_text(path.read_text() + more)
    ask(path.parent / "control.sock", Reload())
    lab.router.run("conntrack", "-F")


class Senders:
    """A socket for each host, for each of `each` connections of a pair."""

    def __init__(self, lab: Lab, family: Family, each: int = 1) -> None:
        self._kind = socket.AF_INET if family == 4 else socket.AF_INET6
        self._stack = ExitStack()
        with lab.server.inside():
            sink = self._opened()
        if family == 6:
            sink.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sink.bind(("", 9))  # who has a listener sends no ICMP errors
        self._senders: dict[tuple[Address, int], socket.socket] = {}
        for source, turn in product(lab.topology.lans[0].clients(family), range(each)):
            with lab.client.inside():
                self._senders[source, turn] = self._opened()
            self._senders[source, turn].bind((str(source), 0))

    def _opened(self) -> socket.socket:
        return self._stack.enter_context(socket.socket(self._kind, socket.SOCK_DGRAM))

    def send(self, number: int, source: Address, target: Address, turn: int = 0) -> None:
        self._senders[source, turn].sendto(exchange.request(number, 8), (str(target), 9))

    def __enter__(self) -> Senders:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def split(lab: Lab, daemon: Daemon, family: Family) -> list[str]:
    """The link of each of 20,000 pairs' connections, in the order in which they began."""
    pairs = list(product(lab.topology.lans[0].clients(family), lab.topology.serving(family)))
    assert len(pairs) == COUNT
    before, fallback = status(daemon)["queue"]["packets"], counted(lab, "fallback")
    with rightful_sources(lab) as witness, Senders(lab, family) as senders:
        for number, (source, target) in enumerate(pairs, 1):
            senders.send(number, source, target)
        used = all_of(witness, COUNT)
    assert status(daemon)["queue"]["packets"] - before == COUNT
    assert counted(lab, "fallback") == fallback
    return [used[number] for number in range(1, COUNT + 1)]


def all_of(witness: Witness, count: int) -> dict[int, str]:
    """By number, the one link of each connection, once so many have been seen."""
    eventually(lambda: len(witness.testimony().links) == count)
    return {number: next(iter(used)) for number, used in witness.testimony().links.items()}


def distance(links: list[str]) -> float:
    """Pearson's chi-square of what was seen from what the capacities say."""
    seen = Counter(links)
    wanted = {name: len(links) * rate / TOTAL for name, rate in CAPACITIES.items()}
    return sum((seen[name] - want) ** 2 / want for name, want in wanted.items())


Say = Callable[[str], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    def say(words: str) -> None:
        with capsys.disabled():
            print(f"\n{words}")

    return say


@FAMILIES
def test_pcc(lab: Lab, daemon: Daemon, say: Say, family: Family) -> None:
    takes(lab, Method.PCC)
    links = split(lab, daemon, family)
    say(f"pcc, ipv{family}: {Counter(links)}, chi-square {distance(links):.2f}")
    assert distance(links) < ONE_IN_A_HUNDRED
    asked = list(product(lab.topology.lans[0].clients(family), lab.topology.serving(family)))[:200]
    told = [one["link"] for one in daemon.explain([f"{a} {b} udp 1 9" for a, b in asked])]
    assert told == links[:200]


@FAMILIES
def test_pcc_splits_no_pair(lab: Lab, daemon: Daemon, family: Family) -> None:
    """Ten connections of each of 2,000 pairs."""
    takes(lab, Method.PCC)
    each = 10
    pairs = list(product(lab.topology.lans[0].clients(family), lab.topology.serving(family)[:10]))
    with rightful_sources(lab) as witness, Senders(lab, family, each) as senders:
        pair_of: dict[int, object] = {}
        for turn, (source, target) in product(range(each), pairs):
            pair_of[len(pair_of) + 1] = (source, target)
            senders.send(len(pair_of), source, target, turn)
        assert len(pair_of) == COUNT
        assert set(all_of(witness, COUNT).values()) == set(CAPACITIES)
        assert witness.testimony().split(pair_of) == 0


def test_pcc_by_ports_splits_pairs(lab: Lab, daemon: Daemon, say: Say) -> None:
    """One pair has ever new ports, which are hashed as well."""
    takes(lab, Method.PCC, fields="both-addresses-and-ports")
    pairs = list(product(lab.topology.lans[0].clients(4), lab.topology.serving(4)[:10]))
    with rightful_sources(lab) as witness, Senders(lab, 4, 10) as senders:
        pair_of: dict[int, object] = {}
        for turn, (source, target) in product(range(10), pairs):
            pair_of[len(pair_of) + 1] = (source, target)
            senders.send(len(pair_of), source, target, turn)
        links = list(all_of(witness, COUNT).values())
        # A pair of which all ten go one way: the links' shares to the tenth, 9 of 1,000.
        assert witness.testimony().split(pair_of) > len(pairs) * 0.95
    say(f"pcc by ports: {Counter(links)}, chi-square {distance(links):.2f}")
    # The ports are the kernel's choice.
    assert distance(links) < ONE_IN_A_MILLION


def test_nth_is_exact_after_each_connection(lab: Lab, daemon: Daemon, say: Say) -> None:
    takes(lab, Method.NTH)
    links = split(lab, daemon, 4)
    say(f"nth: {Counter(links)}")
    is_exact(links)
    assert Counter(links) == {name: COUNT * rate // TOTAL for name, rate in CAPACITIES.items()}


def is_exact(links: Sequence[str], weights: Mapping[str, int] = CAPACITIES) -> None:
    """After any number of connections each link has its share, rounded up or down."""
    seen = dict.fromkeys(weights, 0)
    total = sum(weights.values())
    for number, name in enumerate(links, 1):
        seen[name] += 1
        for link, weight in weights.items():
            share = Fraction(number * weight, total)
            assert floor(share) <= seen[link] <= ceil(share), f"after {number}: {seen}"


GROUPS = """
[group.voice]
links = ["isp-a", "isp-b"]
method = "nth"

[[rule]]
source = ["10.10.1.0/27", "fd00:db8::100/123"]
use = "voice"

[[rule]]
source = ["10.10.1.32/27", "fd00:db8::120/123"]
use = "voice"
"""


def test_groups_by_nth_count_each_for_itself(lab: Lab, daemon: Daemon, say: Say) -> None:
    """Some of the hosts by a group of their own, which two rules share; each family for itself."""
    takes(lab, Method.NTH, more=GROUPS)
    clients = [lab.topology.lans[0].clients(family)[:128] for family in (4, 6)]
    order = [
        (source, lab.topology.serving(4 if source.version == 4 else 6)[turn])
        for turn in range(20)
        for both in zip(*clients, strict=True)
        for source in both
    ]
    with (
        rightful_sources(lab) as witness,
        Senders(lab, 4) as senders4,
        Senders(lab, 6) as senders6,
    ):
        for number, (source, target) in enumerate(order, 1):
            (senders4 if source.version == 4 else senders6).send(number, source, target)
        used = all_of(witness, len(order))
    voice = set(clients[0][:64]) | set(clients[1][:64])
    found: dict[tuple[int, bool], list[str]] = {}
    for number, (source, _) in enumerate(order, 1):
        found.setdefault((source.version, source in voice), []).append(used[number])
    say("; ".join(f"{key}: {Counter(links)}" for key, links in found.items()))
    for (_, by_rule), links in found.items():
        is_exact(links, {"isp-a": 10, "isp-b": 20} if by_rule else CAPACITIES)


@FAMILIES
def test_random(lab: Lab, daemon: Daemon, say: Say, family: Family) -> None:
    takes(lab, Method.RANDOM)
    links = split(lab, daemon, family)
    say(f"random, ipv{family}: {Counter(links)}, chi-square {distance(links):.2f}")
    assert distance(links) < ONE_IN_A_MILLION
    # Neither by turns nor in runs: what follows isp-c is isp-c as often as anything is.
    after = [later for one, later in pairwise(links) if one == "isp-c"]
    say(f"random, ipv{family}, what follows isp-c: chi-square {distance(after):.2f}")
    assert distance(after) < ONE_IN_A_MILLION
