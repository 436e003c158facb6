"""What a link was and what it became: when that is told, and in which words."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from dataplane.config.model import Config, Group, Link
from dataplane.daemon.events import Transition
from dataplane.daemon.history import LinkHistory, followed, in_words, state_name, why
from dataplane.decide.facts import FAMILIES, Facts
from dataplane.decide.liveness import Condition, LinkState, Way
from dataplane.decide.wish import Before, Wish, make_wish

WELL = Way(Condition.LIVING, "", IPv4Address("192.0.2.1"))
SILENT = Way(Condition.SILENT, "no answer from host")
DRAINED = Way(Condition.DRAINED, "drained by hand")
CUT = Way(Condition.CUT, "interface up-a has no carrier")
ABSENT = Way(Condition.ABSENT, "no IPv6 gateway is known")
GONE = Way(Condition.ABSENT, "interface up-a does not exist")


def wish(*served: str, **ways: tuple[Way, Way]) -> Wish:
    """What is wished with the links like that; `served` did so before."""
    links = tuple(Link(name, f"up-{name}", download_bps=1) for name in ways)
    config = Config(("lan0",), links, Group("default", tuple(ways)))
    states = {name: LinkState(name, both) for name, both in ways.items()}
    before = Before(served={"default": dict.fromkeys(FAMILIES, frozenset(served))})
    return make_wish(config, Facts((), False), 1, before, states=states)


def test_what_is_first_seen_up_is_told_too() -> None:
    """Nothing is known of it, so it is believed to have been up; what it carries is news."""
    history, transitions = followed({}, wish(a=(WELL, ABSENT)), 100.0)
    assert history == {"a": LinkHistory("up", ("ipv4",), 100.0)}
    assert transitions == [Transition("a", "up", "up", "", ("ipv4",), 100.0)]


def test_what_stays_is_not_told() -> None:
    """Nor when only the reason is another one."""
    history, _ = followed({}, wish(a=(SILENT, ABSENT)), 100.0)
    for ways in ((SILENT, ABSENT), (CUT, ABSENT), (GONE, GONE)):
        assert followed(history, wish(a=ways), 200.0) == (history, [])


@pytest.mark.parametrize(
    ("ways", "state", "words"),
    [
        ((SILENT, ABSENT), "down", SILENT.why),
        ((CUT, CUT), "down", CUT.why),
        ((GONE, GONE), "down", GONE.why),
        ((CUT, SILENT), "down", SILENT.why),
        ((DRAINED, ABSENT), "drained", DRAINED.why),
        ((SILENT, DRAINED), "drained", DRAINED.why),
        ((DRAINED, DRAINED), "drained", DRAINED.why),
    ],
)
def test_a_link_that_was_up(ways: tuple[Way, Way], state: Any, words: str) -> None:
    before, _ = followed({}, wish(a=(WELL, ABSENT), b=(WELL, WELL)), 100.0)
    after, transitions = followed(before, wish(a=ways, b=(WELL, WELL)), 200.0)
    assert after == {"a": LinkHistory(state, (), 200.0), "b": before["b"]}
    assert transitions == [Transition("a", "up", state, words, (), 200.0)]
    again, back = followed(after, wish(a=(WELL, ABSENT), b=(WELL, WELL)), 300.0)
    assert again["a"] == LinkHistory("up", ("ipv4",), 300.0)
    assert back == [Transition("a", state, "up", "", ("ipv4",), 300.0)]


def test_drained_then_down_then_restored() -> None:
    history: dict[str, LinkHistory] = {}
    told = []
    for at, ways in enumerate([(WELL, WELL), (DRAINED, DRAINED), (SILENT, SILENT), (WELL, WELL)]):
        history, transitions = followed(history, wish(a=ways), float(at))
        told += [(one.before, one.state) for one in transitions]
    assert told[1:] == [("up", "drained"), ("drained", "down"), ("down", "up")]
    assert history["a"].since == 3.0


def test_a_family_that_goes_is_told_and_the_link_is_up_since_then_as_before() -> None:
    before, _ = followed({}, wish(a=(WELL, WELL)), 100.0)
    after, transitions = followed(before, wish(a=(WELL, SILENT)), 200.0)
    words = "no IPv6: no answer from host"
    assert transitions == [Transition("a", "up", "up", words, ("ipv4",), 200.0)]
    assert after == {"a": LinkHistory("up", ("ipv4",), 100.0)}
    back, transitions = followed(after, wish(a=(WELL, WELL)), 300.0)
    assert transitions == [Transition("a", "up", "up", "", ("ipv4", "ipv6"), 300.0)]
    assert back == before


def test_links_of_another_file() -> None:
    """Those that went are forgotten; one that comes again is new."""
    history, _ = followed({}, wish(a=(SILENT, SILENT), b=(WELL, WELL)), 100.0)
    history, transitions = followed(history, wish(b=(WELL, WELL)), 200.0)
    assert set(history) == {"b"}
    assert transitions == []
    _, transitions = followed(history, wish(a=(SILENT, SILENT), b=(WELL, WELL)), 300.0)
    assert [(one.link, one.before, one.state) for one in transitions] == [("a", "up", "down")]


def test_several_at_once_are_told_in_the_order_of_the_file() -> None:
    history, _ = followed({}, wish(c=(WELL, WELL), a=(WELL, WELL), b=(WELL, WELL)), 100.0)
    gone = wish(c=(CUT, CUT), a=(WELL, WELL), b=(CUT, CUT))
    _, transitions = followed(history, gone, 200.0)
    assert [one.link for one in transitions] == ["c", "b"]


@pytest.mark.parametrize(
    ("ways", "name", "words"),
    [
        ((WELL, WELL), "up", ""),
        ((WELL, ABSENT), "up", ""),
        ((WELL, DRAINED), "up", "no IPv6: drained by hand"),
        ((SILENT, WELL), "up", "no IPv4: no answer from host"),
        ((SILENT, SILENT), "down", "no answer from host"),
        ((DRAINED, CUT), "drained", "drained by hand"),
    ],
)
def test_the_words(ways: tuple[Way, Way], name: str, words: str) -> None:
    """A family that it is not set up for is not missed."""
    state = LinkState("a", ways)
    assert state_name(state) == name
    assert why(state) == words
    said = in_words(wish(a=ways, b=(WELL, WELL)), "a")
    assert said == (f"{name}: {words}" if words else name)


@pytest.mark.parametrize("way", [SILENT, DRAINED, CUT])
def test_the_last_link_stays_and_says_so(way: Way) -> None:
    """Of those that are no better, the one that served before."""
    last = wish("a", a=(way, ABSENT), b=(way, ABSENT))
    stays = "it stays in use, since no other link is better"
    name = "drained" if way is DRAINED else "down"
    assert in_words(last, "a") == f"{name}: {way.why}; {stays}"
    assert in_words(last, "b") == f"{name}: {way.why}"
