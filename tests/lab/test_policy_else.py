"""What a rule does while its links are dead, family by family, and when they are back.

client ─┐          ┌─ isp-a ─┐
        ├─ router ─┼─ isp-b ─┼─ server
dmz ────┘          └─ isp-c ─┘
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from dataplane.daemon.calling import ask
from dataplane.daemon.messages import Drain, Restore
from dataplane.lab import Daemon, Lab, UnavailableError, faults
from dataplane.lab.topology import Family
from tests.lab.links import becomes
from tests.lab.sent import (
    DEFAULT,
    NAMES,
    SILENT_S,
    THERE,
    TOPOLOGY,
    Sent,
    Take,
    leaving,
    serving,
    taking,
)
from tests.lab.talk import Talk, eventually, flows_again, link_of, tracked

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        with Lab(TOPOLOGY) as built:
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with serving(lab) as daemon:
        yield daemon


@pytest.fixture
def take(lab: Lab, daemon: Daemon) -> Iterator[Take]:
    with taking(lab) as take:
        yield take


# By the destination port: a rule for isp-b, and what it does without it.
PORTS = {"default": 1001, "next": 1002, "reject": 1003, "group": 1004, "dead group": 1005,
         "a group": 1006, "words": 1007}  # fmt: skip
WITHOUT = f"""{DEFAULT}
[group.spare]
links = ["isp-c"]
[group.same]
links = ["isp-b"]
method = "random"
[group.two]
links = ["isp-b", "isp-c"]
method = "failover"
[[rule]]
destination_port = 1001
use = "isp-b"
[[rule]]
destination_port = 1002
use = "isp-b"
else = "next"
[[rule]]
destination_port = 1003
use = "isp-b"
else = "reject"
[[rule]]
destination_port = 1004
use = "same"
else = "spare"
[[rule]]
destination_port = 1005
use = "isp-b"
else = "same"
[[rule]]
destination_port = 1006
use = "two"
else = "reject"
[[rule]]
destination_port = 1007
use = "isp-b"
else = "default"
[[rule]]
destination_port = 1002
use = "spare"
"""
ALL_WELL = dict.fromkeys(PORTS, "isp-b")
WITHOUT_B = {"default": "isp-a", "next": "isp-c", "reject": "none", "group": "isp-c",
             "dead group": "isp-a", "a group": "isp-c", "words": "isp-a"}  # fmt: skip
WITHOUT_B_AND_C = {"default": "isp-a", "next": "isp-a", "reject": "none", "group": "isp-a",
                   "dead group": "isp-a", "a group": "none", "words": "isp-a"}  # fmt: skip
WITHOUT_A_AND_B = {**WITHOUT_B, "default": "none", "dead group": "none", "words": "none"}


def outcomes(lab: Lab, family: Family) -> dict[str, str]:
    """By what a rule's `else` is, the link that a new connection takes; "none" if it is refused."""
    target = str(lab.topology.serving(family)[0])
    source = str(lab.topology.lans[0].clients(family)[0])
    found = {}
    for name, port in PORTS.items():
        try:
            found[name] = Sent(source, target, "tcp", port).by(lab, SILENT_S)
        except OSError:
            found[name] = "none"
    return found


def test_else_while_links_die_and_return(lab: Lab, daemon: Daemon, take: Take) -> None:
    take(WITHOUT)
    assert [outcomes(lab, family) for family in (4, 6)] == [ALL_WELL] * 2
    with faults.no_carrier(lab, "isp-b"):
        becomes(daemon, "isp-b")
        assert [outcomes(lab, family) for family in (4, 6)] == [WITHOUT_B] * 2
        with faults.no_carrier(lab, "isp-c"):
            becomes(daemon, "isp-c")
            assert [outcomes(lab, family) for family in (4, 6)] == [WITHOUT_B_AND_C] * 2
        becomes(daemon, "isp-c", 4, 6)
        with faults.no_carrier(lab, "isp-a"):
            becomes(daemon, "isp-a")
            assert [outcomes(lab, family) for family in (4, 6)] == [WITHOUT_A_AND_B] * 2
        becomes(daemon, "isp-a", 4, 6)
    becomes(daemon, "isp-b", 4, 6)
    assert [outcomes(lab, family) for family in (4, 6)] == [ALL_WELL] * 2


@contextmanager
def without_family(lab: Lab, name: str, family: Family) -> Iterator[None]:
    """The provider forwards nothing of that family."""
    table = f"{'ip' if family == 4 else 'ip6'} halved"
    chain = "chain out {\ntype filter hook forward priority 0\ndrop\n}"
    lab[name].run("nft", "-f", "-", stdin=f"table {table} {{\n{chain}\n}}\n")
    try:
        yield
    finally:
        lab[name].run("nft", "delete", "table", *table.split())


@FAMILIES
def test_else_of_the_family_that_is_dead(
    lab: Lab, daemon: Daemon, take: Take, family: Family
) -> None:
    other: Family = 6 if family == 4 else 4
    take(WITHOUT)
    with without_family(lab, "isp-b", family):
        becomes(daemon, "isp-b", other)
        assert outcomes(lab, family) == WITHOUT_B
        assert outcomes(lab, other) == ALL_WELL
    becomes(daemon, "isp-b", 4, 6)
    assert outcomes(lab, family) == ALL_WELL


def test_where_nothing_lives_a_rule_keeps_its_links(lab: Lab, daemon: Daemon, take: Take) -> None:
    """All providers are silent, so what a rule leads to is as good as any other."""
    take(WITHOUT)
    ports = {"default": 1001, "dead group": 1005, "words": 1007}
    with ExitStack() as broken:
        for name in NAMES:
            broken.enter_context(faults.dropping(lab, name))
        for name in NAMES:
            becomes(daemon, name)
        for port in ports.values():
            with lab.client.inside():
                sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sender, leaving(lab, port) as seen:
                sender.sendto(b"datagram", (THERE, port))
                eventually(lambda seen=seen: seen() == 1)  # type: ignore[misc]
            assert tracked(lab, f"dport={port}", f"mark={2 << 24}")
    for name in NAMES:
        becomes(daemon, name, 4, 6)


def test_a_drained_link_takes_nothing_of_a_rule(lab: Lab, daemon: Daemon, take: Take) -> None:
    take(WITHOUT)
    ask(daemon.file.parent / "control.sock", Drain("isp-b"))
    becomes(daemon, "isp-b")
    assert [outcomes(lab, family) for family in (4, 6)] == [WITHOUT_B] * 2
    ask(daemon.file.parent / "control.sock", Restore("isp-b"))
    becomes(daemon, "isp-b", 4, 6)
    assert [outcomes(lab, family) for family in (4, 6)] == [ALL_WELL] * 2


RETURNING = f"""{DEFAULT}
[group.back]
links = ["isp-b"]
failback = "kill"
[[rule]]
in = "lan1"
use = "back"
[[rule]]
source = "10.10.1.1"
use = "back"
[[rule]]
source = "10.10.1.2"
use = "isp-b"
"""


def test_failback_follows_the_rules(lab: Lab, daemon: Daemon) -> None:
    """Those of the group that says so return, also by the interface; others stay where they are."""
    hosts = {
        "dmz": (lab["dmz"], "10.11.1.0"),
        "rule": (lab.client, "10.10.1.1"),
        "link": (lab.client, "10.10.1.2"),
        "default": (lab.client, "10.10.1.3"),
        "own": (lab.router, None),
    }
    with taking(lab, moving=True) as take, ExitStack() as stack:
        take(RETURNING)
        with faults.no_carrier(lab, "isp-b"):
            becomes(daemon, "isp-b")
            talks = {
                name: stack.enter_context(Talk(near, source, lab.server, THERE))
                for name, (near, source) in hosts.items()
            }
            assert {link_of(lab, talk.goes_on()) for talk in talks.values()} == {"isp-a"}
        becomes(daemon, "isp-b", 4, 6)
        for name in ("dmz", "rule"):
            eventually(lambda name=name: returned(lab, talks[name]), name)  # type: ignore[misc]
        for name in ("link", "default", "own"):
            assert link_of(lab, talks[name].goes_on()) == "isp-a", name


def returned(lab: Lab, talk: Talk) -> bool:
    return flows_again(talk) and link_of(lab, talk.says()) == "isp-b"
