"""Clients that fill links, and by which link another client's new connections go meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dataplane.lab import Daemon, Lab, uplinks
from dataplane.lab.topology import BOTH, MBIT, Address
from dataplane.lab.traffic import Load, connections
from tests.lab.talk import Talk, call, eventually, link_of

TOPOLOGY = uplinks(10 * MBIT, 20 * MBIT)
PORT = 5001
# Talks are numbered from 1.
FIRST_NUMBER = 10_000


def pairs_of(lab: Lab, number: int) -> list[tuple[Address, Address]]:
    """One of the LAN's hosts with every server, by both families; the first host is number 1."""
    return [
        (lab.topology.lans[0].clients(family)[number - 1], target)
        for family in BOTH
        for target in lab.topology.serving(family)
    ]


def load(lab: Lab, *numbers: int, receive_buffer: int = 8 << 10) -> Load:
    """These clients download from every server, all that the link gives that is chosen now."""
    pairs = [pair for number in numbers for pair in pairs_of(lab, number)]
    made = Load(
        lab,
        connections(pairs, PORT, each=1, first_number=FIRST_NUMBER),
        load_s=None,
        receive_buffer=receive_buffer,
    )
    made.until("open")
    return made


@contextmanager
def filled(lab: Lab, *numbers: int) -> Iterator[None]:
    """They do so while the block runs, and all of them get what they ask for."""
    downloads = load(lab, *numbers)
    yield
    downloads.end()
    assert not downloads.failures


def opens(lab: Lab, number: int = 3) -> list[Talk]:
    """New connections of one client, by TCP and UDP, to every server; all have spoken."""
    talks = [
        call(lab, target, protocol, source=source)
        for source, target in pairs_of(lab, number)
        for protocol in ("tcp", "udp")
    ]
    for talk in talks:
        talk.goes_on()
    return talks


def links_of(lab: Lab, talks: list[Talk]) -> set[str]:
    return {link_of(lab, talk.goes_on()) for talk in talks}


def goes_by(lab: Lab, number: int = 3) -> set[str]:
    """The links that a client's new connections take now."""
    talks = opens(lab, number)
    found = links_of(lab, talks)
    closed(talks)
    return found


def closed(*all_talks: list[Talk]) -> None:
    for talks in all_talks:
        for talk in talks:
            talk.close()


def goes_over(lab: Lab, name: str) -> None:
    """Waits until all that a third client begins takes that link."""
    eventually(lambda: goes_by(lab) == {name}, f"what is new goes by {name}")


def told(lab: Lab, daemon: Daemon, number: int = 3) -> set[str]:
    """What `explain` says of that client."""
    flows = [f"{source} {target} udp 1 2" for source, target in pairs_of(lab, number)]
    return {answer["link"] for answer in daemon.explain(flows)}
