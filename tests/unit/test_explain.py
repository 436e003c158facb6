"""One packet -> the decision, without a machine: every way out, and what may be asked."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.load import read
from dataplane.config.model import Config
from dataplane.decide.balance import all_alive, without
from dataplane.decide.explain import Situation, explain
from dataplane.decide.facts import Destination, Facts
from dataplane.decide.flow import Flow, parse_flow, protocol_number
from dataplane.decide.liveness import LinkState
from dataplane.decide.wish import Before, make_wish

BALANCED = Destination("", "")
FILE = """
lan = ["lan0"]
[link.a]
interface = "wan1"
gateway = "192.0.2.1"
capacity = "10Mbit"
[link.b]
interface = "wan2"
gateway = "198.51.100.1"
capacity = "20Mbit"
"""


def situation(text: str = FILE, dead: tuple[str, ...] = (), key: int = 1) -> Situation:
    config: Config = read(text, "file")
    states = without(all_alive(config), dead)
    nothing = Facts((), native_queue=False)
    wish = make_wish(config, nothing, key, Before(), states=states)
    return Situation.of(wish)


def answer(
    words: str, destination: Destination = BALANCED, where: Situation | None = None
) -> dict[str, Any]:
    return explain(where or situation(), parse_flow(words.split()), destination).as_dict()


def test_keys_are_those_of_the_contract() -> None:
    for found in (answer("10.0.0.1 203.0.113.1"), answer("10.0.0.1 224.0.0.1")):
        assert list(found) == [
            "link", "group", "method", "rule", "fields", "hash", "slot", "mark", "table",
            "source_address", "candidates", "reason", "steps",
        ]  # fmt: skip


def test_balanced() -> None:
    found = answer("10.0.0.1 203.0.113.1 udp 5 6 lan0")
    assert found["link"] in ("a", "b")
    assert found["slot"] == int(found["hash"], 16) >> 48
    assert found["mark"] == {"a": "0x01000000", "b": "0x02000000"}[found["link"]]
    assert found["table"] == {"a": 7001, "b": 7002}[found["link"]]
    assert (found["group"], found["method"], found["rule"]) == ("default", "pcc", "default")


@pytest.mark.parametrize(
    ("words", "destination", "reason"),
    [
        ("10.0.0.1 10.0.0.2", Destination("specific", "lan0"), "to 10.0.0.2 by lan0"),
        ("10.0.0.1 10.0.0.9", Destination("local", "lo"), "an address of this router"),
        ("10.0.0.1 10.0.0.255", Destination("broadcast", "lan0"), "not a unicast address"),
        ("fd00::1 fd00::", Destination("anycast", "lan0"), "not a unicast address"),
        ("10.0.0.1 239.1.1.1", BALANCED, "not a unicast address"),
        ("fd00::1 ff05::2", BALANCED, "not a unicast address"),
        ("10.0.0.1 255.255.255.255", BALANCED, "not a unicast address"),
        ("10.0.0.1 0.0.0.0", BALANCED, "not a unicast address"),
        ("0.0.0.0 203.0.113.1", BALANCED, "link-local"),
        (":: 2001:db8::1", BALANCED, "link-local"),
        ("169.254.9.9 203.0.113.1", BALANCED, "link-local"),
        ("fe80::1%lan0 fe80::2", BALANCED, "link-local"),
        ("10.0.0.1 203.0.113.1 udp 68 67", BALANCED, "DHCP"),
        ("fd00::1 2001:db8::1 udp 546 547", BALANCED, "DHCP"),
        ("10.0.0.1 203.0.113.1 tcp 1 2 wan1", BALANCED, "wan1, which is not of the LAN side"),
        ("10.0.0.1 203.0.113.1", Destination("blackhole", ""), "that refuses it"),
        ("10.0.0.1 203.0.113.1", Destination("prohibit", ""), "that refuses it"),
    ],
)
def test_left_to_main(words: str, destination: Destination, reason: str) -> None:
    found = answer(words, destination)
    assert reason in found["reason"]
    assert found["link"] is None
    assert (found["mark"], found["table"]) == ("0x7e000000", "main")
    assert found["hash"] is None


def test_dhcp_is_udp_alone() -> None:
    assert answer("10.0.0.1 203.0.113.1 tcp 1 67")["link"]


def test_ipv6_switched_off() -> None:
    where = situation("ipv6 = false\n" + FILE)
    assert answer("fd00::1 2001:db8::1", where=where)["reason"].startswith("IPv6 is switched off")
    assert answer("10.0.0.1 203.0.113.1", where=where)["link"]


def test_dead_links_are_left_out_and_survivors_untouched() -> None:
    flows = [f"10.0.0.1 203.0.{x}.{y}" for x in range(4) for y in range(64)]
    alive, dead = situation(), situation(dead=("a",))
    before = [answer(flow, where=alive)["link"] for flow in flows]
    assert set(before) == {"a", "b"}
    assert {answer(flow, where=dead)["link"] for flow in flows} == {"b"}
    none = situation(dead=("a", "b"))
    assert [answer(flow, where=none)["link"] for flow in flows] == before
    assert "unreachable until it is back" in answer(flows[0], where=none)["steps"][-1]


def test_delegated_prefix_is_pinned() -> None:
    where = situation(FILE + 'address = ["2001:db8:b::/56"]\n')
    found = answer("2001:db8:b:7::5 2001:db8::1", where=where)
    assert found["link"] == "b"
    assert found["source_address"] == "2001:db8:b:7::5"
    assert found["hash"] is None
    assert "delegated prefix 2001:db8:b::/56" in found["reason"]
    outside = IPv6Network("2001:db8:b::/56").network_address - 1
    assert "delegated" not in answer(f"{outside} 2001:db8::1", where=where)["reason"]


ASKS = FILE + 'resolvers = ["203.0.113.53", "2001:db8::53"]\naddress = ["2001:db8:b::/56"]\n'


def test_resolvers_are_pinned() -> None:
    for words in ("10.0.0.1 203.0.113.53 udp 5 53", "fd00::1 2001:db8::53 tcp 5 853"):
        found = answer(words, where=situation(ASKS))
        assert found["link"] == "b"
        assert found["reason"] == f"{words.split()[1]} is a resolver of link b"
        assert f"{found['reason']}: pinned to it" in found["steps"]
        assert (found["mark"], found["table"], found["hash"]) == ("0x02000000", 7002, None)
    specific = answer("10.0.0.1 203.0.113.53", Destination("specific", "wan1"), situation(ASKS))
    assert specific["table"] == "main", "specific routes win"


def test_resolvers_of_a_dead_link_are_balanced() -> None:
    found = answer("10.0.0.1 203.0.113.53 udp 5 53", where=situation(ASKS, dead=("b",)))
    assert (found["link"], found["group"]) == ("a", "default")
    assert "203.0.113.53 is a resolver of link b, which takes no IPv4 now" in found["steps"][1]
    assert found["steps"][1].endswith("balanced like any other")


def test_a_delegated_source_comes_before_a_resolver() -> None:
    text = ASKS.replace("203.0.113.53", "2001:db8::54")
    elsewhere = text.replace(
        'interface = "wan1"', 'interface = "wan1"\nresolvers = ["2001:db8::9"]'
    )
    found = answer("2001:db8:b::7 2001:db8::9", where=situation(elsewhere))
    assert found["link"] == "b"
    assert "delegated prefix" in found["reason"]


def test_own_sources_and_resolvers() -> None:
    """Bound sockets keep their link, but where main decides they cannot be told from unbound."""
    for traffic, nat, link in (
        ("balance", "masquerade", "a"), ("main", "masquerade", "b"), ("main", "none", "a"),
    ):  # fmt: skip
        text = f'own_traffic = "{traffic}"\n' + FILE
        text += f'resolvers = ["203.0.113.53"]\nnat = "{nat}"\n'
        where = situation(text)
        way = replace(where.wish.states["a"].way(4), addresses=(ip_address("192.0.2.2"),))
        states = {**where.wish.states, "a": LinkState("a", (way, way))}
        where = replace(where, wish=replace(where.wish, states=states))
        found = answer("192.0.2.2 203.0.113.53 udp 1 53", where=where)
        assert found["link"] == link, (traffic, nat)


def test_symmetric_answers_both_ways() -> None:
    text = FILE + "[balance]\nsymmetric = true\n"
    where = situation(text)
    for n in range(1, 40):
        there = answer(f"10.0.0.1 203.0.113.{n}", where=where)
        back = answer(f"203.0.113.{n} 10.0.0.1", where=where)
        assert there["slot"] == back["slot"]
        assert "ordered" in there["steps"][2]


@given(st.integers(0, 65535), st.integers(0, 65535), st.sampled_from([1, 6, 17, 47, 132]))
def test_ports_do_not_matter_to_addresses(sport: int, dport: int, protocol: int) -> None:
    if protocol == 17 and dport in (67, 68, 546, 547):
        return
    flow = f"10.0.0.1 203.0.113.1 {protocol} {sport} {dport}"
    assert answer(flow, where=WHERE)["slot"] == answer("10.0.0.1 203.0.113.1", where=WHERE)["slot"]


WHERE = situation()


def test_flows_in_words() -> None:
    source, destination = ip_address("10.0.0.1"), ip_address("1.1.1.1")
    assert parse_flow(["10.0.0.1", "1.1.1.1"]) == Flow(source, destination)
    whole = parse_flow(["10.0.0.1", "1.1.1.1", "UDP", "5", "0", "br-lan"])
    assert whole == Flow(source, destination, 17, 5, 0, "br-lan")
    marked = parse_flow(["10.0.0.1", "1.1.1.1", "tcp", "5", "0", "-", "ef"])
    assert marked == Flow(source, destination, 6, 5, dscp=46)
    assert parse_flow(["::1", "::2", "0"]).protocol == 0
    assert isinstance(source, IPv4Address)
    assert isinstance(parse_flow(["::1", "::2"]).source, IPv6Address)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected SRC DST"),
        (["10.0.0.1"], "expected SRC DST"),
        (["10.0.0.1", "1.1.1.1", "tcp", "1", "2", "lan0", "0", "x"], "expected SRC DST"),
        (["10.0.0.1", "1.1.1.1", "tcp", "1", "2", "lan0", "64"], "a DSCP from 0 to 63"),
        (["10.0.0.1", "1.1.1"], "1.1.1"),
        (["010.0.0.1", "1.1.1.1"], "010.0.0.1"),
        (["10.0.0.1/32", "1.1.1.1"], "10.0.0.1/32"),
        (["1", "2"], "'1'"),
        (["10.0.0.1", "::1"], "same family"),
        (["10.0.0.1", "1.1.1.1", "tpc"], "tcp"),
        (["10.0.0.1", "1.1.1.1", "-1"], "0 to 255"),
        (["10.0.0.1", "1.1.1.1", "256"], "0 to 255"),
        (["10.0.0.1", "1.1.1.1", "٣"], "0 to 255"),
        (["10.0.0.1", "1.1.1.1", "9" * 5000], "0 to 255"),
        (["10.0.0.1", "1.1.1.1", "tcp", "65536"], "port"),
        (["10.0.0.1", "1.1.1.1", "tcp", "-1"], "port"),
        (["10.0.0.1", "1.1.1.1", "tcp", "٣"], "port"),
        (["10.0.0.1", "1.1.1.1", "tcp", "1", ""], "port"),
        (["10.0.0.1", "1.1.1.1", "tcp", "1", "9" * 5000], "port"),
    ],
)
def test_what_is_no_flow(words: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_flow(words)


@given(st.lists(st.text(max_size=30), max_size=8))
def test_any_words_are_a_flow_or_a_value_error(words: list[str]) -> None:
    try:
        parse_flow(words)
    except ValueError:
        return


def test_protocols() -> None:
    assert [protocol_number(x) for x in ("tcp", "Udp", "ICMPv6", "0", "255")] == [6, 17, 58, 0, 255]
