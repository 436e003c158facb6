"""The kernel's connections: listed by mark, and forgotten one by one.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from itertools import product

import pytest

from dataplane.decide.failback import Connection
from dataplane.lab import Daemon, Lab
from dataplane.lab.topology import Family
from dataplane.system import conntrack
from tests.lab.talk import Talk, call, eventually, link_of, rightful_sources, tracked

MASK = 0x7F000000
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return lab.run(lab.file(key="0123456789abcdef"))


@pytest.fixture(autouse=True)
def _witness(lab: Lab, daemon: Daemon) -> Iterator[None]:
    with rightful_sources(lab):
        yield


def listed(lab: Lab, number: int, family: Family) -> list[Connection]:
    with lab.router.inside():
        return list(conntrack.connections(number << 24, MASK, family))


def entry_of(lab: Lab, talk: Talk, family: Family) -> tuple[int, Connection]:
    """The number of the link that the conversation is on, and its entry."""
    found = [
        (number, one)
        for number in (1, 2)
        for one in listed(lab, number, family)
        if (one.source_port, one.destination_port) == talk.ports
    ]
    assert len(found) == 1
    return found[0]


@FAMILIES
@PROTOCOLS
def test_every_connection_is_listed_once(lab: Lab, family: Family, protocol: str) -> None:
    pairs = product(lab.topology.lans[0].clients(family), lab.topology.serving(family))
    for source, target in pairs:
        with call(lab, target, protocol, source=source) as talk:
            name = link_of(lab, talk.goes_on())
            number, one = entry_of(lab, talk, family)
            link = lab.topology.links[number - 1]
            assert link.name == name
            assert one.family == family
            assert ip_address(one.source) == source
            assert ip_address(one.destination) == target
            assert one.protocol == {"tcp": 6, "udp": 17}[protocol]
            assert ip_address(one.answered_at) == link.address(family)
            assert one.mark == number << 24
            assert one.status & 0x2, "SEEN_REPLY"
            assert one.status & 0x10, "SRC_NAT"
            assert one.timeout_s
            with lab.router.inside():
                its = list(conntrack.connections(number << 24, MASK, family))
                assert conntrack.count(number << 24, MASK) >= len(its)


@FAMILIES
def test_echoes_are_listed(lab: Lab, family: Family) -> None:
    target = lab.topology.serving(family)[0]
    source = lab.topology.lans[0].clients(family)[0]
    lab.client.run("ping", "-n", "-c1", "-W3", "-I", str(source), str(target))
    protocol, asks = (1, 8) if family == 4 else (58, 128)
    found = [
        one for number in (1, 2) for one in listed(lab, number, family) if one.protocol == protocol
    ]
    assert found
    assert {(one.source_port, one.destination_port) for one in found} == {(0, 0)}
    assert {one.icmp[1:] for one in found} == {(asks, 0)}
    for one in found:
        with lab.router.inside():
            conntrack.forget_one(one)
    left = [one for number in (1, 2) for one in listed(lab, number, family)]
    assert not [one for one in left if one.protocol == protocol]


@FAMILIES
@PROTOCOLS
def test_exactly_one_is_forgotten(lab: Lab, family: Family, protocol: str) -> None:
    source, target = lab.topology.lans[0].clients(family)[0], lab.topology.serving(family)[0]
    with call(lab, target, protocol, source=source) as one, call(lab, target, protocol) as other:
        number, _ = (one.goes_on(), entry_of(lab, one, family))[1]
        other.goes_on()
        _, entry = entry_of(lab, one, family)
        with lab.router.inside():
            conntrack.forget_one(entry)
            conntrack.forget_one(entry)
        left = listed(lab, number, family)
        assert one.ports[0] not in {it.source_port for it in left}
        assert other.ports[0] in {it.source_port for it in left}


@FAMILIES
def test_a_later_one_of_the_same_tuple_is_not_hit(lab: Lab, family: Family) -> None:
    target = lab.topology.serving(family)[0]
    with ExitStack() as others, call(lab, target) as talk:
        talk.goes_on()
        _, old = entry_of(lab, talk, family)

        def another() -> Connection | None:
            """The kernel tells entries apart by their place in memory: another takes the old."""
            with lab.router.inside():
                conntrack.forget_one(entry_of(lab, talk, family)[1])
            others.enter_context(call(lab, target)).goes_on()
            talk.peer = None
            talk.goes_on()
            found = entry_of(lab, talk, family)[1]
            return found if found.id != old.id else None

        new = eventually(another)
        assert new.original == old.original
        with lab.router.inside():
            conntrack.forget_one(old)
        assert entry_of(lab, talk, family)[1].id == new.id
        talk.goes_on()


@FAMILIES
def test_forgetting_meanwhile_misses_none(lab: Lab, family: Family) -> None:
    """A few hundred, each forgotten while the rest is still to be listed."""
    kept = []
    for _ in range(20):
        pairs = product(lab.topology.lans[0].clients(family), lab.topology.serving(family))
        for source, target in pairs:
            kept.append(call(lab, target, source=source))
            kept[-1].says()
    try:
        with lab.router.inside():
            for number in (1, 2):
                assert conntrack.count(number << 24, MASK) > 0
                for one in conntrack.connections(number << 24, MASK, family):
                    conntrack.forget_one(one)
        for number in (1, 2):
            assert listed(lab, number, family) == []
            assert not [
                line for line in tracked(lab, f"mark={number << 24}")
                if str(kept[0].ports[0]) in line
            ]  # fmt: skip
    finally:
        for talk in kept:
            talk.close()
