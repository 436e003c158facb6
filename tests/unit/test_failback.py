"""Which connections go home to a link that returned, and when; entries of conntrack as bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.load import read
from dataplane.config.marks import Marks
from dataplane.config.model import Failback as Mode
from dataplane.daemon import failback as daemon
from dataplane.daemon.connections import home_by
from dataplane.decide.explain import Situation, explain
from dataplane.decide.facts import Destination, Facts, Family
from dataplane.decide.failback import STAYS, Connection, Homeward, Policy, home_of
from dataplane.decide.flow import Flow
from dataplane.decide.wish import Before, Wish, make_wish
from dataplane.errors import KernelError
from dataplane.system import conntrack
from tests.golden.cases import DOWN, KEY, MACHINE, two

Address = IPv4Address | IPv6Address
RESOLVERS = 'resolvers = ["203.0.113.53", "2001:db8:53::53"]\naddress = "2001:db8:d001::/56"\n'
NOWHERE = Destination("", "")


def wish_of(text: str = "", facts: Facts = MACHINE, top: str = "") -> Wish:
    return make_wish(read(two(a=RESOLVERS + text, b=text, top=top), "file"), facts, KEY, Before())


def connection(
    source: str, destination: str, on: int = 1, timeout_s: int | None = 100, number: int = 1
) -> Connection:
    family: Family = 4 if ip_address(source).version == 4 else 6
    return Connection(
        family=family,
        source=ip_address(source).packed,
        destination=ip_address(destination).packed,
        protocol=17,
        source_port=40000,
        destination_port=5000,
        icmp=(0, 0, 0),
        answered_at=b"",
        mark=Marks().mark(on),
        status=0,
        timeout_s=timeout_s,
        id=number,
        original=b"",
        zone=0,
    )


# What main says of addresses on this machine.
MAIN = {
    "10.10.": Destination("specific", "lan0"),
    "10.99.": Destination("specific", "docker0"),
    "fd00:db8:": Destination("specific", "lan0"),
    "2001:db8:d001:": Destination("specific", "lan0"),
    "203.0.113.128": Destination("specific", "wan1"),
    "192.0.2.2": Destination("local", "lo"),
    "198.51.100.2": Destination("local", "lo"),
    "192.0.2.": Destination("specific", "wan1"),
    "224.": Destination("multicast", ""),
}


def main_says(address: Address) -> Destination:
    if str(address) in ("10.10.0.1", "fd00:db8::1"):
        return Destination("local", "lo")
    found = [say for start, say in MAIN.items() if str(address).startswith(start)]
    return found[0] if found else NOWHERE


@pytest.mark.parametrize(
    ("source", "destination", "top", "moves"),
    [
        ("10.10.1.0", "203.0.113.1", "", True),
        ("fd00:db8::100", "2001:db8:99::1", "", True),
        # The router's own, not bound to an address of a link.
        ("10.10.0.1", "203.0.113.1", "", True),
        ("fd00:db8::1", "2001:db8:99::1", "", True),
        ("10.10.0.1", "203.0.113.1", 'own_traffic = "main"', False),
        # Bound to an address of a link, whichever.
        ("192.0.2.2", "203.0.113.1", "", False),
        ("198.51.100.2", "203.0.113.1", "", False),
        ("2001:db8:1::2", "2001:db8:99::1", "", False),
        # Pinned by prefix, and to resolvers.
        ("2001:db8:d001::77", "2001:db8:99::1", "", False),
        ("10.10.1.0", "203.0.113.53", "", False),
        ("fd00:db8::100", "2001:db8:53::53", "", False),
        # From outside: to the router, to a host behind it, to one behind a port forward.
        ("203.0.113.1", "192.0.2.2", "", False),
        ("203.0.113.1", "10.10.1.0", "", False),
        ("2001:db8:99::1", "2001:db8:d001::77", "", False),
        # By a specific route of main, whose link was saved where it left.
        ("10.10.1.0", "203.0.113.128", "", False),
        ("10.10.1.0", "192.0.2.9", "", False),
        ("10.10.1.0", "224.0.0.251", "", False),
        # From beside the LAN: never balanced, and from nowhere that main knows.
        ("10.99.0.5", "203.0.113.1", "", False),
        ("172.16.3.4", "203.0.113.1", "", False),
    ],
)
def test_what_belongs_home(source: str, destination: str, top: str, moves: bool) -> None:
    """It is on link 1, and the program in force says link 2, which has returned."""
    wish = wish_of(top=top)
    policy = Policy.of(wish.config, wish.facts, wish.states)
    found = home_of(
        connection(source, destination), 1, {2}, policy, lambda *_: Homeward(2), main_says
    )
    assert found.number == (2 if moves else 0)


@pytest.mark.parametrize("says", [1, 3, 0, 126, 127], ids=str)
def test_others_stay(says: int) -> None:
    """At home already, at home on a link that did not return, and what is no link at all."""
    wish = wish_of()
    policy = Policy.of(wish.config, wish.facts, wish.states)
    one = connection("10.10.1.0", "203.0.113.1")
    assert home_of(one, 1, {2, 1}, policy, lambda *_: Homeward(says), main_says) == STAYS


ADDRESSES = st.sampled_from(
    ["10.10.1.0", "10.10.0.1", "10.10.7.7", "192.0.2.2", "198.51.100.2", "192.0.2.9",
     "203.0.113.1", "203.0.113.2", "203.0.113.53", "203.0.113.128", "224.0.0.251"]
)  # fmt: skip


@given(ADDRESSES, ADDRESSES, st.sampled_from([1, 2]))
def test_what_goes_home_is_what_explain_calls_balanced(source: str, to: str, back: int) -> None:
    policy = Policy.of(WISH.config, WISH.facts, WISH.states)
    one = connection(source, to, on=3 - back)
    found = home_of(one, 3 - back, {back}, policy, home_by(WISH, None), main_says)
    flow = Flow(ip_address(source), ip_address(to), 17, 40000, 5000)
    answer = explain(Situation.of(WISH), flow, main_says(flow.destination))
    lan = source.startswith("10.10.")
    balanced = lan and answer.group is not None and WISH.ids[str(answer.link)] == back
    assert bool(found.number) == balanced


WISH = wish_of()


@dataclass
class Table:
    """The kernel's connections, by link number, and what was forgotten of them."""

    held: dict[int, list[Connection]] = field(default_factory=dict)
    forgotten: list[int] = field(default_factory=list)
    listed: list[int] = field(default_factory=list)

    def connections(self, mark: int, mask: int, family: Family) -> Iterator[Connection]:
        number = Marks(mask).decision(mark)
        self.listed.append(number)
        yield from [one for one in self.held.get(number, []) if one.family == family]

    def forget_one(self, gone: Connection) -> None:
        self.forgotten.append(gone.id)
        for number, its in self.held.items():
            self.held[number] = [one for one in its if one.id != gone.id]

    def silent_for(self, number: int, seconds: int) -> None:
        """Connection `number` gets no packet meanwhile; the others' timeouts start again."""
        for link, its in self.held.items():
            self.held[link] = [
                one._replace(timeout_s=(one.timeout_s or 0) - seconds) if one.id == number else one
                for one in its
            ]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table()
    monkeypatch.setattr(conntrack, "connections", made.connections)
    monkeypatch.setattr(conntrack, "forget_one", made.forget_one)
    return made


def failback(says: int = 2) -> daemon.Failback:
    return daemon.Failback(
        lambda wish: lambda *_: Homeward(says), lambda address, mark: main_says(ip_address(address))
    )


def stranger(number: int, on: int = 1) -> Connection:
    return connection("10.10.1.0", "203.0.113.1", on=on, number=number)


def test_keep_looks_at_nothing(table: Table) -> None:
    table.held[1] = [stranger(1)]
    wish = wish_of('failback = "keep"')
    back = failback()
    back.returned("isp-b", 4, wish)
    assert not back.step(wish, 0)
    assert (table.forgotten, table.listed) == ([], [])


def test_kill_forgets_twice_and_ends(table: Table) -> None:
    """What comes up between the two passes was on its way."""
    pinned = connection("192.0.2.2", "203.0.113.1", number=3)
    table.held = {1: [stranger(1), pinned], 2: [stranger(9, on=2)]}
    wish = wish_of('failback = "kill"')
    back = failback()
    back.returned("isp-b", 4, wish)
    assert back.step(wish, 0)
    assert table.forgotten == [1]
    table.held[1].append(stranger(2))
    assert not back.step(wish, 1)
    assert table.forgotten == [1, 2]
    table.held[1].append(stranger(4))
    assert not back.step(wish, 100)
    assert table.forgotten == [1, 2]


def test_only_the_family_that_returned(table: Table) -> None:
    six = connection("fd00:db8::100", "2001:db8:99::1", number=6)
    table.held = {1: [stranger(4), six]}
    wish = wish_of('failback = "kill"')
    back = failback()
    back.returned("isp-b", 6, wish)
    back.step(wish, 0)
    assert table.forgotten == [6]


def test_drain_waits_for_silence(table: Table) -> None:
    table.held = {1: [stranger(1), stranger(2)], 2: [stranger(3, on=2)]}
    wish = wish_of('failback = "drain"')
    back = failback()
    back.returned("isp-b", 4, wish)
    for now_s in range(0, 60, 10):
        assert back.step(wish, now_s)
        assert table.forgotten == []
        table.silent_for(1, 10)
    assert back.step(wish, 60)
    assert table.forgotten == [1], "2 speaks all the time"
    for now_s in range(70, 130, 10):
        table.silent_for(2, 10)
        assert back.step(wish, now_s)
    assert table.forgotten == [1, 2]
    assert not back.step(wish, 130), "none is left"


def test_drain_begins_again_with_each_packet(table: Table) -> None:
    table.held = {1: [stranger(1)]}
    wish = wish_of('failback = "drain"')
    back = failback()
    back.returned("isp-b", 4, wish)
    for now_s in range(0, 1000, 10):
        back.step(wish, now_s)
        if now_s % 50:
            table.silent_for(1, 10)
    assert table.forgotten == []


def test_between_two_checks_nothing_is_asked(table: Table) -> None:
    table.held = {1: [stranger(1)]}
    wish = wish_of('failback = "drain"')
    back = failback()
    back.returned("isp-b", 4, wish)
    for tenth in range(100):
        assert back.step(wish, tenth / 10)
    assert table.listed == [1, 2]
    # Another wish, since something changed on the machine, is no reason to ask either.
    assert back.step(replace(wish, key=wish.key), 9.95)
    assert table.listed == [1, 2]


def test_it_ends_when_the_link_is_gone_again(table: Table) -> None:
    table.held = {1: [stranger(1)]}
    wish = wish_of('failback = "drain"')
    back = failback()
    back.returned("isp-b", 4, wish)
    assert back.step(wish, 0)
    back.gone("isp-b", 4)
    assert not back.step(wish, 10)
    back.returned("isp-b", 4, wish)
    assert back.step(wish, 20)
    dead = wish_of('failback = "drain"', DOWN)
    assert not back.step(dead, 30), "seen in the wish, too"
    back.returned("isp-b", 4, wish)
    alone = two().partition("[link.isp-b]")[0]
    left = make_wish(read(alone, "file"), MACHINE, KEY, Before())
    assert not back.step(left, 40), "it left the file"
    assert table.forgotten == []


def test_a_drained_links_connections_stay(table: Table) -> None:
    """By hand it was taken out for new ones only; the program says another link for them."""
    table.held = {1: [stranger(1)]}
    wish = wish_of('failback = "kill"').without(["isp-a"])
    back = failback()
    back.returned("isp-b", 4, wish)
    back.step(wish, 0)
    back.step(wish, 1)
    assert table.forgotten == []


def test_a_refusal_is_tried_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table.held = {1: [stranger(1)]}
    wish = wish_of('failback = "kill"')
    back = failback()
    back.returned("isp-b", 4, wish)

    def refuse(*_: object) -> Iterator[Connection]:
        raise KernelError("conntrack: no")

    with monkeypatch.context() as refusing:
        refusing.setattr(conntrack, "connections", refuse)
        assert back.step(wish, 0)
    assert back.step(wish, 10)
    assert table.forgotten == [1]


def test_a_large_table_takes_several_steps(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table.held = {1: [stranger(number) for number in range(5)]}
    monkeypatch.setattr(daemon, "_SLICE_S", 0.0)
    wish = wish_of('failback = "kill"')
    back = failback()
    back.returned("isp-b", 4, wish)
    for steps in range(1, 6):
        assert back.step(wish, 0)
        assert len(table.forgotten) == steps


def test_modes_are_those_of_the_file() -> None:
    for mode in Mode:
        assert wish_of(f'failback = "{mode}"').config.link("isp-a").failback is mode


def entry(**changed: bytes) -> bytes:
    """A UDP connection over IPv4, as the kernel dumps it."""
    make = conntrack._attribute
    ip = make(1, bytes([10, 0, 0, 1])) + make(2, bytes([203, 0, 113, 1]))
    proto = make(1, b"\x11") + make(2, b"\x9c\x40") + make(3, b"\x13\x88")
    back = make(1, bytes([203, 0, 113, 1])) + make(2, bytes([192, 0, 2, 2]))
    parts = {
        "original": make(0x8001, make(0x8001, ip) + make(0x8002, proto)),
        "reply": make(0x8002, make(0x8001, back) + make(0x8002, proto)),
        "status": make(3, struct.pack("!I", 0x1E)),
        "timeout": make(7, struct.pack("!I", 119)),
        "mark": make(8, struct.pack("!I", 0x01000000)),
        "id": make(12, struct.pack("!I", 77)),
    }
    return b"".join({**parts, **changed}.values())


def test_an_entry_is_read() -> None:
    read_ = conntrack.parse(entry(), 4)
    assert read_ is not None
    assert (read_.source, read_.destination) == (bytes([10, 0, 0, 1]), bytes([203, 0, 113, 1]))
    assert (read_.protocol, read_.source_port, read_.destination_port) == (17, 40000, 5000)
    assert read_.answered_at == bytes([192, 0, 2, 2])
    assert (read_.mark, read_.status, read_.timeout_s, read_.id) == (0x01000000, 0x1E, 119, 77)
    assert read_.zone == 0
    offloaded = conntrack.parse(entry(timeout=b""), 4)
    assert offloaded is not None
    assert offloaded.timeout_s is None
    assert conntrack.parse(entry(id=b""), 4) is None, "it could not be forgotten"
    assert conntrack.parse(entry(), 6) is None


@given(st.binary(max_size=200), st.sampled_from([4, 6]))
def test_any_bytes_are_an_entry_or_none(data: bytes, family: Family) -> None:
    conntrack.parse(data, family)


@given(st.integers(0, len(entry()) - 1), st.integers(0, 255), st.sampled_from([4, 6]))
def test_wrong_lengths_are_tolerated(place: int, value: int, family: Family) -> None:
    data = bytearray(entry())
    data[place] = value
    found = conntrack.parse(bytes(data), family)
    if found is not None:
        assert len(found.source) == len(found.destination) == (4 if family == 4 else 16)
        assert max(found.source_port, found.destination_port) < 65536
    assert conntrack.parse(bytes(data[:place]), family) is None, "its end was cut off"
