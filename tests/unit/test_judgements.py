"""Rules that can never match, and what is legal but may not be meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import pairwise, product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dataplane.config import judgements, load, ranges, reach
from dataplane.config.judgements import remarks
from dataplane.config.model import Addresses, AddressList, Ports, Rule, Selection
from dataplane.config.protocols import WITH_PORTS
from dataplane.config.reach import Reaches, covers
from dataplane.errors import ConfigError

ABOVE_TEXT = """\
lan = ["br-lan", "wlan0"]
[link.fibre]
interface = "eth1"
capacity = "200Mbit"
[link.lte]
interface = "wwan0"
capacity = "50Mbit"
[group.voice]
links = ["fibre", "lte"]
[list.office]
entries = ["198.51.100.0/24", "2001:db8::/32"]
[list.part]
entries = ["198.51.100.0/25"]
[list.site]
names = ["example.org"]
[list.moving]
files = ["x"]
watch = true
"""
ABOVE = len(ABOVE_TEXT.splitlines())


def faults(*rules: str) -> list[tuple[int, str]]:
    text = ABOVE_TEXT + "".join(f"[[rule]]\n{one}\n" for one in rules)
    try:
        load.read(text, "evenlink.toml", lambda path: b"203.0.113.0/24")
    except ConfigError as error:
        return [(fault.line - ABOVE, fault.message) for fault in error.faults]
    return []


HIDDEN = f"rule 2 can never match: rule 1 (line {ABOVE + 1}) takes all that it would"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("", "source = '10.0.0.1'"),
        ("", ""),
        ("", "destination = '@site'"),
        ("source = '10.0.0.0/8'", "source = '10.1.0.0/16'\nprotocol = 'udp'"),
        ("source = ['10.0.0.0/9', '10.128.0.0/9']", "source = '10.100.0.0-10.200.0.0'"),
        ("source = '@office'", "source = '198.51.100.7'"),
        ("source = '@office'", "source = '@part'"),
        ("source = ['@office', '@site']", "source = '@site'"),
        ("source = ['@office', '@moving']", "source = ['@moving', '@part']"),
        ("destination = ['0.0.0.0/0', '::/0']", "destination = '@moving'"),
        ("destination = '0.0.0.0/0'", "source = '10.0.0.1'"),
        ("in = ['br-lan', 'wlan0']", "in = 'wlan0'"),
        ("protocol = ['tcp', 'udp']", "protocol = 'tcp'\ndestination_port = 80"),
        ("protocol = ['tcp', 'udp', 'udplite', 'sctp', 'dccp']", "destination_port = 80"),
        ("destination_port = '1-100'", "protocol = 'tcp'\ndestination_port = ['80', '90-100']"),
        ("destination_port = ['1-50', '51-100']", "destination_port = '40-60'"),
        ("dscp = [1, 2, 3]", "dscp = [3, 1]"),
        (f"dscp = {list(range(64))}", "protocol = 'udp'"),
        ("application = ['x', 'y']", "application = 'x'"),
        ("application.host = '*.example.org'", "application.host = ['a.example.org', "
         "'*.b.example.org']"),
    ],
)  # fmt: skip
def test_hidden(earlier: str, later: str) -> None:
    begin = 4 + earlier.count("\n") if earlier else 3
    assert faults(f"use = 'lte'\n{earlier}".strip(), f"use = 'fibre'\n{later}") == [(begin, HIDDEN)]
    assert faults(f"use = 'voice'\n{earlier}\nelse = 'next'", f"use = 'fibre'\n{later}") == []


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("source = '10.0.0.1'", ""),
        ("source = '10.1.0.0/16'", "source = '10.0.0.0/8'"),
        ("source = '10.0.0.0/8'", "destination = '10.0.0.0/8'"),
        ("source = '@part'", "source = '@office'"),
        ("source = '@office'", "source = '@site'"),
        ("source = '@office'", "source = ['@site', '@part']"),
        ("source = '203.0.113.0/24'", "source = '@moving'"),
        ("source = '@moving'", "source = '203.0.113.0/24'"),
        ("source = '0.0.0.0/0'", ""),
        ("source = '0.0.0.0/0'", "source = '@office'"),
        ("in = ['br-lan', 'wlan0']", "source = '10.0.0.1'"),
        ("protocol = 'tcp'", "destination_port = 80"),
        ("destination_port = '1-65535'", "protocol = 'tcp'"),
        ("destination_port = ['1-50', '52-100']", "destination_port = '40-60'"),
        ("source_port = 80", "destination_port = 80"),
        ("dscp = 1", "dscp = [1, 2]"),
        ("application = 'x'", "application = { name = 'x', host = 'x.org' }"),
        ("application.host = '*.example.org'", "application.host = 'example.org'"),
        ("application.host = '*.example.org'", "application.host = 'anexample.org'"),
        ("application.host = 'a.example.org'", "application.host = '*.example.org'"),
    ],
)
def test_not_hidden(earlier: str, later: str) -> None:
    assert faults(f"use = 'lte'\n{earlier}", f"use = 'fibre'\n{later}") == []


def test_each_hidden_rule_names_the_first_that_hides_it() -> None:
    found = faults(
        "use = 'voice'\nprotocol = 'tcp'\nelse = 'next'",
        "use = 'lte'\nprotocol = 'tcp'",
        "use = 'reject'\nprotocol = 'tcp'\ndestination_port = 25",
        "use = 'main'",
        "use = 'lte'\nprotocol = 'tcp'\ndscp = 3",
        "use = 'lte'\nprotocol = 'esp'",
    )
    assert [message for _, message in found] == [
        f"rule 3 can never match: rule 2 (line {ABOVE + 5}) takes all that it would",
        f"rule 5 can never match: rule 2 (line {ABOVE + 5}) takes all that it would",
        f"rule 6 can never match: rule 4 (line {ABOVE + 12}) takes all that it would",
    ]


def test_a_rule_with_a_fault_hides_nothing() -> None:
    found = faults("use = 'lte'\nsource = 'here'", "use = 'lte'\ndestination = '10.0.0.1'")
    assert len(found) == 1
    found = faults("use = 'lte'\nsource = '@nowhere'", "use = 'lte'\nsource = '@nowhere'")
    assert [message for _, message in found] == ["there is no list \"nowhere\"; expected office, "
                                                 "part, site or moving"] * 2  # fmt: skip


# A small world, in which every packet can be tried. The last address of each family, port 0 and
# the last of all else are in no rule: they stand for all others.

ADDRESSES = [
    ip_address(one)
    for one in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2", "fd00::3")
]
PORTS = [0, 1, 2, 3]
LISTS = (
    AddressList("low", Addresses.of([(ADDRESSES[0], ADDRESSES[1])])),
    AddressList("six", Addresses.of([(ADDRESSES[4], ADDRESSES[4])])),
)
WORLD_PROTOCOLS = sorted({1, *WITH_PORTS})


@dataclass(frozen=True, slots=True)
class Packet:
    source: int
    destination: int
    interface: str
    protocol: int
    port: int
    dscp: int


PACKETS = [
    Packet(*each)
    for each in product(
        range(len(ADDRESSES)), range(len(ADDRESSES)), ["", "a", "b"], WORLD_PROTOCOLS, PORTS, [0, 1]
    )
    if (each[0] < 4) == (each[1] < 4) and (each[3] in WITH_PORTS or each[4] == 0)
]


def selected(selection: Selection, address: int) -> bool:
    spans = [selection.addresses, *(one.addresses for one in LISTS if one.name in selection.lists)]
    wanted = ADDRESSES[address]
    numbers = [
        span for one in spans for span in (one.spans4() if wanted.version == 4 else one.spans6())
    ]
    return not selection or any(first <= int(wanted) <= last for first, last in numbers)


def matches(rule: Rule, packet: Packet) -> bool:
    ports = packet.protocol in WITH_PORTS and any(
        first <= packet.port <= last for first, last in rule.destination_ports
    )
    return (
        (not rule.interfaces or packet.interface in rule.interfaces)
        and (not rule.protocols or packet.protocol in rule.protocols)
        and (not rule.destination_ports or ports)
        and (not rule.dscp or packet.dscp in rule.dscp)
        and selected(rule.source, packet.source)
        and selected(rule.destination, packet.destination)
    )


def some(values: Sequence[object]) -> st.SearchStrategy[tuple[object, ...]]:
    """Some of them or none; the last one is left out always, so that none ever names all."""
    return st.lists(st.sampled_from(values[:-1]), unique=True, max_size=3).map(tuple)


SPANS = st.sampled_from([(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (4, 4), (4, 5)])
SELECTIONS = st.builds(
    lambda spans, lists: Selection(
        Addresses.of((ADDRESSES[first], ADDRESSES[last]) for first, last in spans), lists
    ),
    st.lists(SPANS, max_size=2),
    st.lists(st.sampled_from(["low", "six"]), unique=True).map(tuple),
)
RULES = st.builds(
    Rule,
    number=st.just(1),
    use=st.just("x"),
    interfaces=some(["a", "b", ""]),
    source=SELECTIONS,
    destination=SELECTIONS,
    protocols=some([*WORLD_PROTOCOLS, 2]),
    destination_ports=some([Ports(1, 1), Ports(1, 2), Ports(3, 3), Ports(2, 3), Ports(9, 9)]),
    dscp=some([0, 1, 2]).filter(lambda dscp: len(dscp) < 2),
)


@settings(deadline=None, max_examples=300)
@given(RULES, RULES)
@example(Rule(1, "x", protocols=tuple(WITH_PORTS)), Rule(2, "x", destination_ports=(Ports(1, 2),)))
def test_hidden_is_what_no_packet_tells_apart(earlier: Rule, later: Rule) -> None:
    reaches = Reaches(LISTS)
    taken = [packet for packet in PACKETS if matches(later, packet)]
    if not taken:
        return
    hidden = covers(reaches.of(earlier), reaches.of(later))
    assert hidden == all(matches(earlier, packet) for packet in taken)


@settings(deadline=None)
@given(RULES, st.data())
def test_a_narrower_rule_is_always_hidden(rule: Rule, data: st.DataObject) -> None:
    narrower = replace(
        rule,
        interfaces=rule.interfaces[:1],
        protocols=rule.protocols[:1],
        dscp=rule.dscp[:1],
        destination_ports=rule.destination_ports[:1],
        source_ports=(Ports(5, 6),) if data.draw(st.booleans()) else (),
    )
    reaches = Reaches(LISTS)
    assert covers(reaches.of(rule), reaches.of(narrower))


RANGES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda one: (min(one), max(one)))
)


def members(spans: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in spans for number in range(first, last + 1)}


@given(RANGES, RANGES)
def test_ranges_are_sets(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    merged, others = ranges.merge(one), ranges.merge(other)
    assert members(merged) == members(one)
    assert all(first[1] + 1 < second[0] for first, second in pairwise(merged))
    assert ranges.contains(merged, other) == (members(other) <= members(one))
    assert members(ranges.intersection(merged, others)) == members(one) & members(other)


# What is legal.


def said(lines: str) -> list[str]:
    text = ABOVE_TEXT + lines
    return remarks(load.read(text, "evenlink.toml", lambda path: b"203.0.113.0/24"))


ALL_USED = (
    "[[rule]]\nuse = 'voice'\nsource = ['@part', '@site', '@moving']\ndestination = '@office'"
)


def test_nothing_to_remark() -> None:
    assert said(ALL_USED) == []


def test_what_no_rule_uses() -> None:
    assert said("") == [
        "group voice is not used by any rule",
        *(f"list {name} is not used by any rule" for name in ("office", "part", "site", "moving")),
    ]
    assert said(
        "[[rule]]\nuse = 'lte'\nelse = 'voice'\nsource = ['@office', '@part', '@site']"
    ) == ["list moving is not used by any rule"]


def test_a_watched_list_with_nothing_in_it() -> None:
    config = load.read(ABOVE_TEXT + ALL_USED, "evenlink.toml", lambda path: b"# later")
    assert remarks(config) == ["list moving is empty"]


def test_lists_that_overlap() -> None:
    more = "[list.near]\nentries = ['198.51.100.250-198.51.101.5', '198.51.100.3', '2001:db8::/64']"
    found = said(
        f"{more}\n{ALL_USED}\n"
        "[[rule]]\nuse = 'lte'\ndestination = '@part'\n"
        "[[rule]]\nuse = 'fibre'\ndestination = '@near'\n"
        "[[rule]]\nuse = 'reject'\ndestination = ['@office', '192.0.2.1']\n"
    )
    line = ABOVE + 7
    assert found == [
        f"rule 2 (line {line}, destination @part to lte) and rule 3 (line {line + 3}, destination "
        "@near to fibre) have 1 IPv4 address (198.51.100.3) in common: rule 2 wins",
        f"rule 2 (line {line}, destination @part to lte) and rule 4 (line {line + 6}, destination "
        "@office to reject) have 128 IPv4 addresses (198.51.100.0 to 198.51.100.127) in common: "
        "rule 2 wins",
        f"rule 3 (line {line + 3}, destination @near to fibre) and rule 4 (line {line + 6}, "
        "destination @office to reject) have 7 IPv4 addresses (first 198.51.100.3) and "
        "18446744073709551616 IPv6 addresses (2001:db8:: to 2001:db8::ffff:ffff:ffff:ffff) in "
        "common: rule 3 wins",
    ]


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("use = 'lte'\ndestination = '@part'", "use = 'lte'\ndestination = '@office'"),
        ("use = 'lte'\ndestination = '@part'", "use = 'fibre'\nsource = '@office'"),
        ("use = 'lte'\nprotocol = 'udp'\ndestination = '@part'",
         "use = 'fibre'\ndestination = '@office'"),
        ("use = 'lte'\ndestination = '@part'\nelse = 'next'",
         "use = 'fibre'\ndestination = '@office'"),
        ("use = 'lte'\ndestination = '198.51.100.7'", "use = 'fibre'\ndestination = '@office'"),
        ("use = 'lte'\ndestination = '@moving'", "use = 'fibre'\ndestination = '203.0.113.0/24'"),
    ],
)  # fmt: skip
def test_overlaps_that_are_meant(earlier: str, later: str) -> None:
    assert said(f"{ALL_USED}\n[[rule]]\n{earlier}\n[[rule]]\n{later}") == []


def test_many_overlaps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgements, "MOST_OVERLAPS", 1)
    lists = "".join(f"[list.l{n}]\nentries = ['10.0.0.{n}', '10.1.0.0/16']\n" for n in range(4))
    rules = "".join(
        f"[[rule]]\nuse = '{'lte' if n % 2 else 'fibre'}'\nsource = '@l{n}'\n" for n in range(4)
    )
    found = said(f"{lists}{ALL_USED}\n{rules}")
    assert len(found) == 2
    assert found[1] == "and 3 more pairs of rules whose lists overlap"
    monkeypatch.setattr(judgements, "MOST_COMPARED", 4)
    assert said(f"{lists}{ALL_USED}\n{rules}")[1:] == [
        "3 pairs of rules with long lists were not compared"
    ]


def test_large_lists_are_compared_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "MOST_RANGES", 1)
    assert faults("use = 'lte'\nsource = ['@part', '@office']", "use = 'lte'\nsource = '@part'")
    assert not faults("use = 'lte'\nsource = '@office'", "use = 'lte'\nsource = '@part'")
    assert faults(
        "use = 'lte'\nsource = ['@office', '10.0.0.0/8']",
        "use = 'lte'\nsource = ['@office', '10.0.0.1']",
    )


def test_what_is_kept_to_compare_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule with a list and addresses of its own would keep the list's ranges once more."""
    monkeypatch.setattr(reach, "MOST_KEPT", 3)
    rules = [f"use = 'lte'\nsource = ['@office', '10.0.0.{n}']" for n in range(4)]
    assert faults(*rules, rules[3]) == [
        (13, f"rule 5 can never match: rule 4 (line {ABOVE + 10}) takes all that it would")
    ]
    reaches = Reaches(LISTS)
    selections = [
        Selection(Addresses.of([(ADDRESSES[one], ADDRESSES[one])]), ("low", "six"))
        for one in range(3)
    ]
    assert any(reaches.hosts(one).too_many for one in selections)


def test_nothing_of_ipv6_is_left_where_it_is_switched_off() -> None:
    rules = "[[rule]]\nuse = 'lte'\nsource = '0.0.0.0/0'\n[[rule]]\nuse = 'lte'\nprotocol = 'udp'\n"
    load.read(ABOVE_TEXT + rules, "evenlink.toml", lambda path: b"")
    with pytest.raises(ConfigError, match="rule 2 can never match"):
        load.read(f"ipv6 = false\n{ABOVE_TEXT}{rules}", "evenlink.toml", lambda path: b"")


def test_a_watched_list_overlaps_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = (
        f"[list.near]\nentries = ['203.0.113.7']\n{ALL_USED}\n"
        "[[rule]]\nuse = 'lte'\ndestination = '@moving'\n"
        "[[rule]]\nuse = 'fibre'\ndestination = '@near'\n"
    )
    line = ABOVE + 7
    assert said(rules) == [
        f"rule 2 (line {line}, destination @moving to lte) and rule 3 (line {line + 3}, "
        "destination @near to fibre) have 1 IPv4 address (203.0.113.7) in common: rule 2 wins"
    ]
    monkeypatch.setattr(reach, "MOST_RANGES", 0)
    assert said(rules) == ["1 pair of rules with long lists was not compared"]
