"""The store of what was learned: its bounds, its ends, and the bytes that the workers get."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dataplane.decide.learned import Kind, Known, Learned, address_key, endpoint_key

ENTRY = struct.Struct("=BBBBHHI16s")
FIRST, SECOND, THIRD = (address_key(IPv4Address(f"203.0.113.{n}")) for n in (1, 2, 3))


def said(known: Known | None) -> dict[bytes, tuple[str, ...]]:
    """Key -> labels, as a worker would read it."""
    assert known is not None
    found = {}
    for kind, family, protocol, _, port, _, number, address in ENTRY.iter_unpack(known.entries):
        found[ENTRY.pack(kind, family, protocol, 0, port, 0, 0, address)] = known.sets[number - 1]
    assert len(found) * ENTRY.size == len(known.entries), "a key is there twice"
    return found


def test_an_address_in_bytes() -> None:
    """The first four bytes are an IPv4 address; neither protocol nor port is told."""
    learned = Learned()
    learned.teach(address_key(IPv4Address("203.0.113.7")), ["shops"], 10, 0)
    learned.teach(address_key(IPv6Address("2001:db8::7")), ["shops"], 10, 0)
    known = learned.snapshot()
    assert known is not None
    assert list(ENTRY.iter_unpack(known.entries)) == [
        (0, 4, 0, 0, 0, 0, 1, bytes((203, 0, 113, 7)).ljust(16, b"\0")),
        (0, 6, 0, 0, 0, 0, 1, IPv6Address("2001:db8::7").packed),
    ]
    assert known.sets == (("shops",),)


def test_endpoints_in_bytes() -> None:
    """The port is a number of the machine."""
    learned = Learned()
    server = endpoint_key(Kind.SERVER, ip_address("203.0.113.7"), 6, 443)
    client = endpoint_key(Kind.CLIENT, ip_address("10.10.1.0"), 17, 6881)
    learned.teach(server, ["application:tls", "host:*.example.org"], 10, 0)
    learned.teach(client, ["application:bittorrent"], 10, 0)
    known = learned.snapshot()
    assert known is not None
    first, second = ENTRY.iter_unpack(known.entries)
    assert first[:7] == (1, 4, 6, 0, 443, 0, 1)
    assert second[:7] == (2, 4, 17, 0, 6881, 0, 2)
    assert known.sets == (("application:tls", "host:*.example.org"), ("application:bittorrent",))


def test_nothing_new_is_no_snapshot() -> None:
    learned = Learned()
    assert learned.snapshot() is None
    learned.teach(FIRST, ["shops"], 10, 0)
    assert learned.snapshot() is not None
    assert learned.snapshot() is None
    learned.teach(FIRST, ["shops"], 20, 5)
    assert learned.snapshot() is None, "that it counts for longer is no news to a worker"
    learned.teach(FIRST, ["banks"], 20, 5)
    assert said(learned.snapshot()) == {FIRST: ("banks", "shops")}


def test_each_label_has_its_own_end() -> None:
    learned = Learned()
    learned.teach(FIRST, ["shops"], 10, 0)
    learned.teach(FIRST, ["banks"], 20, 0)
    learned.age(10)
    assert said(learned.snapshot()) == {FIRST: ("banks",)}
    learned.age(20)
    assert said(learned.snapshot()) == {}
    assert len(learned) == 0


def test_seen_again_it_stays() -> None:
    """And a shorter time takes nothing away from a longer one."""
    learned = Learned()
    learned.teach(FIRST, ["shops"], 10, 0)
    learned.teach(FIRST, ["shops"], 30, 5)
    learned.teach(FIRST, ["shops"], 15, 6)
    learned.age(29)
    assert said(learned.snapshot()) == {FIRST: ("shops",)}


def test_the_oldest_goes_out_first() -> None:
    """What is seen again is young again."""
    learned = Learned(most=2)
    learned.teach(FIRST, ["shops"], 100, 0)
    learned.teach(SECOND, ["shops"], 100, 1)
    learned.teach(FIRST, ["shops"], 100, 2)
    learned.teach(THIRD, ["shops"], 100, 3)
    assert set(said(learned.snapshot())) == {FIRST, THIRD}
    assert learned.oldest_out == 1


def test_what_is_held_is_not_put_out() -> None:
    """A flood of other things changes nothing for the names that the router resolves itself."""
    learned = Learned(most=3, most_held=1)
    learned.teach(FIRST, ["shops"], 100, 0, held=True)
    learned.teach(SECOND, ["shops"], 100, 0, held=True)
    for last in range(10, 30):
        learned.teach(address_key(IPv4Address(f"203.0.113.{last}")), ["flood"], 100, 1)
    kept = said(learned.snapshot())
    assert FIRST in kept
    assert SECOND not in kept, "only so many are held"
    assert len(kept) == 3


def test_what_was_held_goes_like_all_others_once_it_is_over() -> None:
    learned = Learned(most=1)
    learned.teach(FIRST, ["shops"], 100, 0, held=True)
    learned.teach(SECOND, ["flood"], 300, 100)
    assert set(said(learned.snapshot())) == {SECOND}


def test_a_full_store_of_what_is_held_takes_what_is_new() -> None:
    learned = Learned(most=4, most_held=2)
    for last in range(1, 100):
        key = address_key(IPv4Address(f"203.0.113.{last}"))
        learned.teach(key, ["shops"], 1000, last, held=True)
        assert key in said(learned.snapshot())
        assert len(learned) <= 4


def test_labels_of_another_file_are_forgotten() -> None:
    learned = Learned()
    learned.teach(FIRST, ["shops", "banks"], 100, 0)
    learned.teach(SECOND, ["banks"], 100, 0)
    learned.keep({"shops"})
    assert said(learned.snapshot()) == {FIRST: ("shops",)}
    assert learned.counts() == {"shops": 1}


def test_no_label_teaches_nothing() -> None:
    learned = Learned()
    learned.teach(FIRST, [], 100, 0)
    assert len(learned) == 0
    assert learned.snapshot() is None


def test_it_is_as_large_as_it_may_become_and_no_larger() -> None:
    """65,536 entries of 28 bytes."""
    learned = Learned()
    for number in range(70_000):
        learned.teach(address_key(IPv4Address(0xC6120000 + number)), ["shops"], 100, 0)
    known = learned.snapshot()
    assert known is not None
    assert len(learned) == 65_536
    assert len(known.entries) == 65_536 * 28
    assert learned.oldest_out == 70_000 - 65_536
    learned.age(100)
    assert said(learned.snapshot()) == {}


KEYS = st.sampled_from([address_key(IPv4Address(0xCB007100 + n)) for n in range(12)])
LABELS = st.lists(st.sampled_from("abcd"), max_size=3)


class Beside(RuleBasedStateMachine):
    """The store beside one that looks at everything each time."""

    MOST, MOST_HELD = 6, 3

    def __init__(self) -> None:
        super().__init__()
        self.learned = Learned(self.MOST, self.MOST_HELD)
        # In the order in which they were taught last.
        self.model: dict[bytes, dict[str, int]] = {}
        self.held: dict[bytes, int] = {}
        self.now = 0
        self.told: dict[bytes, tuple[str, ...]] = {}

    @rule(key=KEYS, labels=LABELS, keep=st.integers(1, 20), held=st.booleans())
    def teach(self, key: bytes, labels: list[str], keep: int, held: bool) -> None:
        until = self.now + keep
        self.learned.teach(key, labels, until, self.now, held=held)
        if not labels:
            return
        if key not in self.model and len(self.model) == self.MOST:
            mortal = [one for one in self.model if self.held.get(one, 0) <= self.now]
            # Those that are held stand behind all others from now on.
            for one in self.model.copy():
                if one == mortal[0]:
                    break
                self.model[one] = self.model.pop(one)
            del self.model[mortal[0]]
            self.held.pop(mortal[0], None)
        known = self.model.pop(key, {})
        for label in labels:
            known[label] = max(until, known.get(label, 0))
        self.model[key] = known
        if held and (key in self.held or len(self.held) < self.MOST_HELD):
            self.held[key] = max(until, self.held.get(key, 0))

    @rule(time=st.integers(0, 10))
    def age(self, time: int) -> None:
        self.now += time
        self.learned.age(self.now)
        self._keep(lambda _, until: until > self.now)

    @rule(time=st.integers(0, 10), most=st.integers(1, 4))
    def age_by_parts(self, time: int, most: int) -> None:
        """What takes the place of one that goes may be passed over, but not again and again."""
        self.now += time
        for _ in range(self.MOST * (self.MOST + 1)):
            self.learned.age(self.now, most)
        self._keep(lambda _, until: until > self.now)

    @rule(labels=st.sets(st.sampled_from("abcd")))
    def keep(self, labels: set[str]) -> None:
        self.learned.keep(labels)
        self._keep(lambda label, _: label in labels)

    def _keep(self, stays) -> None:  # type: ignore[no-untyped-def]
        for key, known in list(self.model.items()):
            kept = {label: until for label, until in known.items() if stays(label, until)}
            if kept:
                self.model[key] = kept
            else:
                del self.model[key]
                self.held.pop(key, None)

    @invariant()
    def same(self) -> None:
        expected = {key: tuple(sorted(known)) for key, known in self.model.items()}
        known = self.learned.snapshot()
        if known is not None:
            self.told = said(known)
        assert self.told == expected
        assert len(self.learned) == len(expected)


TestBeside = Beside.TestCase
TestBeside.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
