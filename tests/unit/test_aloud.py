"""The policy, aloud: each rule up to the deciding one, and why it does or does not match."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from dataplane.config.load import read
from dataplane.decide.aloud import listed
from dataplane.decide.balance import all_alive
from dataplane.decide.explain import Situation, explain
from dataplane.decide.facts import Destination, Facts
from dataplane.decide.flow import parse_flow
from dataplane.decide.learned import Kind, Learned, address_key, endpoint_key
from dataplane.decide.wish import Before, make_wish

FILE = """
lan = ["lan0", "lan1"]
[link.a]
interface = "wan1"
gateway = "192.0.2.1"
capacity = "10Mbit"
[link.b]
interface = "wan2"
gateway = "198.51.100.1"
capacity = "20Mbit"
[group.voice]
links = ["b", "a"]
method = "failover"
[group.turn]
links = ["a", "b"]
method = "nth"
sticky = "source"
[group.chance]
links = ["a", "b"]
method = "random"
[group.many]
links = ["a", "b"]
method = "ecmp"
[list.domestic]
entries = ["203.0.113.0/24", "2001:db8:5::/48"]
names = ["www.example.org"]
"""


def situation(rules: str, dead: tuple[str, ...] = (), learned: Learned | None = None) -> Situation:
    config = read(FILE + rules, "file")
    wish = make_wish(config, Facts((), False), 1, Before(), states=all_alive(config))
    return Situation.of(wish.without(dead), learned.snapshot() if learned else None)


def answer(where: Situation, words: str) -> dict[str, Any]:
    return explain(where, parse_flow(words.split()), Destination("", "")).as_dict()


def rule_steps(found: dict[str, Any]) -> list[str]:
    return [step for step in found["steps"] if step.startswith("rule ") and " (line " in step]


@pytest.mark.parametrize(
    ("condition", "flow", "said"),
    [
        ('in = "lan1"', "10.0.0.1 9.9.9.9 tcp 1 2 lan1", "matches: in lan1: yes"),
        ('in = "lan1"', "10.0.0.1 9.9.9.9 tcp 1 2 lan0", "it comes in by lan0, not by lan1"),
        ('in = "lan1"', "10.0.0.1 9.9.9.9", "which of lan0 and lan1 it comes in by is not said"),
        (
            'source = "10.0.0.0/8"',
            "10.0.0.1 9.9.9.9",
            "matches: source 10.0.0.1 in 10.0.0.0/8: yes",
        ),
        ('source = "10.0.0.7"', "10.0.0.1 9.9.9.9", "source 10.0.0.1 is not in 10.0.0.7"),
        (
            'destination = ["@domestic", "192.0.2.1-192.0.2.9"]',
            "10.0.0.1 9.9.9.9",
            "destination 9.9.9.9 is in none of @domestic, 192.0.2.1-192.0.2.9",
        ),
        (
            'destination = "@domestic"',
            "fd00::1 2001:db8:5::1",
            "matches: destination 2001:db8:5::1 in @domestic: yes",
        ),
        ('protocol = "udp"', "10.0.0.1 9.9.9.9", "protocol tcp is not udp"),
        ('protocol = ["udp", "gre"]', "10.0.0.1 9.9.9.9", "protocol tcp is none of udp, gre"),
        ("source_port = 7", "10.0.0.1 9.9.9.9 udp 7 9", "matches: source port 7: yes"),
        (
            'destination_port = ["443", "8000-8080"]',
            "10.0.0.1 9.9.9.9 tcp 1 80",
            "destination port 80 is none of 443, 8000-8080",
        ),
        ("destination_port = 443", "10.0.0.1 9.9.9.9 gre", "protocol gre has no destination port"),
        ('dscp = "ef"', "10.0.0.1 9.9.9.9 tcp 1 2 - ef", "matches: DSCP 46: yes"),
        ('dscp = "ef"', "10.0.0.1 9.9.9.9", "DSCP 0 is not 46"),
        (
            'application = "tls"',
            "10.0.0.1 9.9.9.9 tcp 1 443",
            "9.9.9.9 tcp port 443 was not learned as application tls",
        ),
    ],
)
def test_each_condition_has_words(condition: str, flow: str, said: str) -> None:
    found = answer(situation(f'[[rule]]\n{condition}\nuse = "a"\n'), flow)
    (step,) = rule_steps(found)
    assert said in step
    assert found["rule"] == ("rule 1" if "matches: " in said else "default")
    assert step.startswith("rule 1 (line ")


def test_what_fails_comes_first_and_the_rest_is_told() -> None:
    rules = '[[rule]]\nprotocol = "tcp"\ndestination = "@domestic"\nuse = "a"\n'
    (step,) = rule_steps(answer(situation(rules), "10.0.0.1 192.0.2.7"))
    said = "destination 192.0.2.7 is not in @domestic; protocol tcp: yes"
    assert step.endswith(f"does not match: {said}")


def test_only_the_rules_up_to_the_deciding_one() -> None:
    rules = "".join(f'[[rule]]\ndestination_port = {port}\nuse = "a"\n' for port in (1, 2, 3))
    found = answer(situation(rules), "10.0.0.1 9.9.9.9 tcp 5 2")
    assert [step.split(" (")[0] for step in rule_steps(found)] == ["rule 1", "rule 2"]
    assert (found["rule"], found["link"], found["group"]) == ("rule 2", "a", None)


SERVER = ip_address("198.51.100.7")


def taught() -> Learned:
    learned = Learned()
    key = endpoint_key(Kind.SERVER, SERVER, 6, 443)
    learned.teach(key, ["application:tls", "host:*.example.org"], 10, 0)
    learned.teach(address_key(SERVER), ["domestic"], 10, 0)
    return learned


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (
            'application = { host = ["*.example.org"] }',
            "198.51.100.7 tcp port 443 was learned as host *.example.org: yes",
        ),
        ('application = "tls"', "198.51.100.7 tcp port 443 was learned as application tls: yes"),
        (
            'destination = "@domestic"',
            "destination 198.51.100.7 in @domestic, as a name's address: yes",
        ),
    ],
)
def test_what_was_learned_is_named(condition: str, said: str) -> None:
    where = situation(f'[[rule]]\n{condition}\nuse = "a"\n', learned=taught())
    found = answer(where, f"10.0.0.1 {SERVER} tcp 1 443")
    assert rule_steps(found)[0].endswith(f"matches: {said}")
    assert found["link"] == "a"


@pytest.mark.parametrize(
    ("use", "link", "group", "method"),
    [("a", "a", None, None), ("voice", "b", "voice", "failover"), ("default", None, None, None)],
)
def test_where_a_rule_leads(use: str, link: str | None, group: str | None, method: str) -> None:
    found = answer(situation(f'[[rule]]\nprotocol = "tcp"\nuse = "{use}"\n'), "10.0.0.1 9.9.9.9")
    assert found["rule"] == "rule 1"
    if use == "default":
        assert (found["group"], found["method"]) == ("default", "pcc")
        assert found["slot"] == int(found["hash"], 16) >> 48
    else:
        assert (found["link"], found["group"], found["method"]) == (link, group, method)
        assert found["hash"] is None


def test_main_and_reject() -> None:
    for use, mark, table in (("main", "0x7e000000", "main"), ("reject", "0x7f000000", None)):
        found = answer(situation(f'[[rule]]\nprotocol = 6\nuse = "{use}"\n'), "10.0.0.1 9.9.9.9")
        assert (found["link"], found["mark"], found["table"]) == (None, mark, table)
        assert found["reason"] == f"rule 1 says {use}"


@pytest.mark.parametrize(
    ("use", "method"), [("turn", "nth"), ("chance", "random"), ("many", "ecmp")]
)
def test_what_nobody_can_foretell_has_candidates(use: str, method: str) -> None:
    rules = f'[[rule]]\nprotocol = "tcp"\nuse = "{use}"\n'
    found = answer(situation(rules), "10.0.0.1 9.9.9.9")
    assert (found["link"], found["method"]) == (None, method)
    shares = {one["name"]: one["share"] for one in found["candidates"]}
    assert shares == {"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3)}
    assert any(step.startswith("sticky: ") for step in found["steps"]) == (use == "turn")
    alone = answer(situation(rules, dead=("b",)), "10.0.0.1 9.9.9.9")
    assert (alone["link"], alone["candidates"]) == ("a", [])


@pytest.mark.parametrize(
    ("otherwise", "rule", "link", "said"),
    [
        ("next", "rule 2", "b", "and else is next"),
        ("default", "rule 1", "b", "else, group default"),
        ("voice", "rule 1", "b", "else, group voice"),
        ("reject", "rule 1", None, "else, reject"),
    ],
)
def test_else(otherwise: str, rule: str, link: str | None, said: str) -> None:
    rules = (
        f'[[rule]]\nprotocol = "tcp"\nuse = "a"\nelse = "{otherwise}"\n'
        '[[rule]]\nprotocol = ["tcp", "udp"]\nuse = "b"\n'
    )
    found = answer(situation(rules, dead=("a",)), "10.0.0.1 9.9.9.9")
    assert (found["rule"], found["link"]) == (rule, link)
    dead = "link a takes no IPv4 now (assumed to be dead)"
    assert [step for step in found["steps"] if dead in step and said in step]


def test_the_rules_own_fields() -> None:
    rules = '[[rule]]\nprotocol = "tcp"\nuse = "default"\nfields = "src-address"\n'
    where = situation(rules)
    first, second = (answer(where, f"10.0.0.1 9.9.9.{n}") for n in (9, 10))
    assert first["fields"] == "src-address"
    assert first["slot"] == second["slot"]
    assert any("the rule's own fields" in step for step in first["steps"])


def test_words_in_a_row() -> None:
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"], "or")] == [
        "a", "a and b", "a, b or c",
    ]  # fmt: skip
