"""Packets by rule: the places in the program move, and workers come and go."""

from __future__ import annotations

from dataplane.config.load import read
from dataplane.daemon.tally import Tally
from dataplane.decide.balance import all_alive, without
from dataplane.decide.facts import Facts
from dataplane.decide.liveness import LinkState
from dataplane.decide.wish import Before, Wish, make_wish

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
RULES = """
[[rule]]
protocol = "udp"
use = "a"
[[rule]]
protocol = "tcp"
use = "b"
"""


def wish(rules: str = RULES, no_ipv6: str = "") -> Wish:
    config = read(FILE + rules, "file")
    states = all_alive(config)
    if no_ipv6:
        dead = without(states, [no_ipv6])[no_ipv6]
        states[no_ipv6] = LinkState(no_ipv6, (states[no_ipv6].way(4), dead.way(6)))
    return make_wish(config, Facts((), False), 1, Before(), states=states)


def test_places_are_rules() -> None:
    tally = Tally()
    tally.follow(wish(), {})
    assert tally.totals({0: 1, 1: 2, 2: 3}) == {"rule 1": 1, "rule 2": 2, "default": 3}


def test_a_rule_that_has_two_places_is_one() -> None:
    tally = Tally()
    tally.follow(wish(), {})
    tally.follow(wish(no_ipv6="a"), {0: 1, 1: 2, 2: 3})
    assert tally.totals({0: 1, 1: 2, 2: 3}) == {"rule 1": 1, "rule 2": 2, "default": 3}
    counted = {0: 11, 1: 102, 2: 1003, 3: 10000}
    assert tally.totals(counted) == {"rule 1": 111, "rule 2": 1002, "default": 10003}


def test_new_workers_count_from_nothing() -> None:
    tally = Tally()
    tally.follow(wish(), {})
    tally.begin_anew({0: 5})
    assert tally.totals({0: 2}) == {"rule 1": 7}


def test_other_rules_begin_anew() -> None:
    tally = Tally()
    tally.follow(wish(), {})
    tally.follow(wish(rules=""), {0: 5, 2: 7})
    assert tally.totals({0: 6, 2: 7}) == {"default": 1}
