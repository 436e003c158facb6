"""The chains that copy packets: only where something is to be learned, and only what teaches it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dataplane.config.load import read
from dataplane.config.model import AddressList, Config, Queue, Rule, Selection
from dataplane.decide.chains import all_chains
from dataplane.decide.copies import answers_group, copy_chains, packets_group
from dataplane.decide.plan import Plan, Sysctl
from dataplane.decide.ruleset import render
from dataplane.decide.wish import Before, make_wish
from tests.golden.cases import KEY, MACHINE, two

COUNTED = Sysctl("net/netfilter/nf_conntrack_acct", "1")
APPLICATION = Rule(1, "isp-a", applications=("bittorrent",))
HOST = Rule(1, "isp-a", hosts=("*.example.org",))
NAME = Rule(1, "isp-a", destination=Selection(lists=("shops",)))


def plan_with(*rules: Rule, text: str = "") -> Plan:
    """The plan of the everyday file, with these rules and a list of names."""
    file = read(two(top=text), "evenlink.toml")
    shops = AddressList("shops", names=("*.example.org",))
    config: Config = replace(file, rules=rules, lists=(shops,))
    return make_wish(config, MACHINE, KEY, Before()).plan()


def copied(plan: Plan) -> set[tuple[str, str]]:
    """(chain, prefix) of all that is copied."""
    chains = dict(copy_chains(plan))
    found = set()
    for name, rules in chains.items():
        if name in ("copy_question", "copy_answer"):
            continue
        for rule in rules:
            jump = re.search(r"jump (copy_\w+)", rule)
            said = "\n".join(chains[jump[1]]) if jump else rule
            found |= {(name, prefix) for prefix in re.findall(r'log prefix "([^"]*)"', said)}
    return found


def test_nothing_to_learn_nothing_copied() -> None:
    plan = plan_with()
    assert copy_chains(plan) == []
    assert COUNTED not in plan.sysctls


def test_applications() -> None:
    """First packets of both directions, and nothing of DNS. Packets have to be counted."""
    plan = plan_with(APPLICATION)
    assert copied(plan) == {("copy_lan", "lan original"), ("copy_wan", "wan reply")}
    assert COUNTED in plan.sysctls


def test_names() -> None:
    """Questions and answers, the router's own too. Nothing has to be counted."""
    plan = plan_with(NAME)
    assert copied(plan) == {
        ("copy_out", "question"),
        ("copy_back", "answer"),
        ("copy_output", "question"),
        ("copy_input", "answer"),
    }
    assert COUNTED not in plan.sysctls


def test_hosts_need_both() -> None:
    assert copied(plan_with(HOST)) == copied(plan_with(NAME)) | copied(plan_with(APPLICATION))


@pytest.mark.parametrize("rules", [(APPLICATION,), (NAME,), (APPLICATION, NAME)])
def test_a_chain_comes_before_those_that_lead_to_it(rules: tuple[Rule, ...]) -> None:
    known: set[str] = set()
    for name, lines in all_chains(plan_with(*rules)):
        for line in lines:
            for target in re.findall(r"(?:goto|jump) (copy_\w+)", line):
                assert target in known
        known.add(name)


def test_a_flood_is_not_copied_but_counted() -> None:
    """The limit stands before the copy, and behind what is never copied.

    Beyond the limit of DNS, a packet goes on to where packets are copied for applications.
    """
    limits = {}
    for name, rules in copy_chains(plan_with(APPLICATION, NAME)):
        copies = [at for at, rule in enumerate(rules) if "log prefix" in rule]
        if copies:
            found = re.fullmatch(
                r"limit rate over (\d+)/second burst \d+ packets counter name not_copied (\w+)",
                rules[copies[0] - 1],
            )
            assert found, name
            limits[name] = int(found[1]), found[2]
    assert limits == {
        "copy_lan": (10_000, "accept"),
        "copy_wan": (10_000, "accept"),
        "copy_question": (2_000, "return"),
        "copy_answer": (2_000, "return"),
    }
    for rule in (APPLICATION, NAME):
        assert "counter not_copied" in render(plan_with(rule))
    assert "not_copied" not in render(plan_with())


def test_answers_come_by_a_link_to_whoever_asked() -> None:
    """What a host of the LAN sends is never an answer."""
    chains = dict(copy_chains(plan_with(NAME)))
    back = 'iifname { "wan1", "wan2" } oifname "lan0" ct direction reply goto copy_back'
    assert chains["copy_forward"][-1] == back
    assert chains["copy_input"][-1].startswith('iifname { "wan1", "wan2" } udp sport 53')
    assert not any("copy_back" in line for line in chains["copy_forward"][:-1])


def test_without_ipv6_none_of_it_is_copied() -> None:
    for _, lines in copy_chains(plan_with(APPLICATION, NAME, text="ipv6 = false")):
        assert not any("nfproto ipv6" in line and "accept" not in line for line in lines)
        if lines[0].startswith("type"):
            assert lines[1] == "meta nfproto ipv6 accept"


@pytest.mark.parametrize("number", [0, 7477, 65535])
def test_two_groups(number: int) -> None:
    queue = Queue(number=number)
    groups = packets_group(queue), answers_group(queue)
    assert len(set(groups)) == 2
    assert all(0 <= group <= 65535 for group in groups)
