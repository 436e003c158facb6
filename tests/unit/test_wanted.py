"""What a file wants to be learned, and what findings, answers and names teach for it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane.config.load import read
from dataplane.config.model import AddressList, Config, Rule, Selection
from dataplane.decide.dns import Answer
from dataplane.decide.learned import Kind, address_key, endpoint_key
from dataplane.decide.lessons import (
    APPLICATION_S,
    GRACE_S,
    Finding,
    Lesson,
    of_answer,
    of_finding,
    of_name,
)
from dataplane.decide.wanted import Patterns, Wanted, learns_answers, learns_packets
from tests.golden.cases import two

PLAIN = read(two(), "evenlink.toml")
SERVER, CLIENT = ip_address("203.0.113.7"), ip_address("10.10.1.0")


def file_with(*rules: Rule, **lists: tuple[str, ...]) -> Config:
    """The everyday file with these rules, and lists of these names."""
    return replace(
        PLAIN,
        rules=rules,
        lists=tuple(AddressList(name, names=names) for name, names in lists.items()),
    )


def asks_for(*lists: str) -> Rule:
    return Rule(1, "isp-a", destination=Selection(lists=lists))


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("www.example.org", ("wild",)),
        ("a.b.c.example.org", ("wild", "deep")),
        ("WWW.Example.ORG.", ("wild",)),
        ("example.org", ("plain",)),
        ("xexample.org", ()),
        ("b.example.org", ("wild",)),
        ("org", ()),
        ("", ()),
    ],
)
def test_names_and_wildcards(name: str, labels: tuple[str, ...]) -> None:
    """A wildcard is every name below, however deep, and not the name itself."""
    patterns = Patterns.of(
        [("*.example.org", "wild"), ("Example.org.", "plain"), ("*.b.c.example.org", "deep")]
    )
    assert set(patterns.labels(name)) == set(labels)


def test_one_name_in_several_lists() -> None:
    patterns = Patterns.of([("www.test", "a"), ("*.test", "b"), ("www.test", "c"), ("*.test", "b")])
    assert patterns.labels("www.test") == ("a", "c", "b")


def test_nothing_is_learned_for_nothing() -> None:
    """A list that no rule asks for, too, is nothing."""
    for config in (PLAIN, file_with(asks_for("other"), unused=("*.example.org",), other=())):
        assert not learns_answers(config)
        assert not learns_packets(config)
        wanted = Wanted.of(config)
        assert not wanted.names
        assert not wanted.labels


def test_names_of_lists_need_answers_only() -> None:
    source = Rule(1, "isp-a", source=Selection(lists=("shops",)))
    for rule in (asks_for("shops"), source):
        config = file_with(rule, shops=("*.example.org", "www.example.com"))
        assert learns_answers(config)
        assert not learns_packets(config)
        assert Wanted.of(config).to_resolve == {"www.example.com": ("shops",)}
        assert Wanted.of(config).labels == {"shops"}


def test_applications_need_packets_only_and_hosts_both() -> None:
    application = file_with(Rule(1, "isp-a", applications=("bittorrent",)))
    assert learns_packets(application)
    assert not learns_answers(application)
    host = file_with(Rule(1, "isp-a", hosts=("*.example.org",)))
    assert learns_packets(host)
    assert learns_answers(host)
    assert Wanted.of(host).labels == {"host:*.example.org"}
    assert Wanted.of(host).labels_of_question("www.example.org") == ("host:*.example.org",)
    assert not Wanted.of(host).to_resolve


WANTED = Wanted.of(
    file_with(
        Rule(1, "isp-a", applications=("bittorrent", "tls")),
        Rule(2, "isp-b", hosts=("*.example.org",)),
        asks_for("shops"),
        shops=("shop.example.org",),
    )
)


def finding(*applications: str, host: str = "", protocol: int = 6) -> Finding:
    return Finding(protocol, (SERVER, 443), (CLIENT, 6881), applications, host)


def test_a_server_of_an_application() -> None:
    """Those that no rule names are left out."""
    assert list(of_finding(finding("tls", "youtube"), WANTED)) == [
        Lesson(endpoint_key(Kind.SERVER, SERVER, 6, 443), ("application:tls",), APPLICATION_S)
    ]
    assert not list(of_finding(finding("youtube"), WANTED))


def test_a_server_of_a_host() -> None:
    """That is the endpoint's name, not the address's: a list's name asks DNS."""
    server = endpoint_key(Kind.SERVER, SERVER, 17, 443)
    (found,) = of_finding(finding("quic", host="Shop.example.org", protocol=17), WANTED)
    assert found == Lesson(server, ("host:*.example.org",), APPLICATION_S)
    (found,) = of_finding(finding("tls", host="www.example.org"), WANTED)
    assert found.labels == ("application:tls", "host:*.example.org")
    assert not list(of_finding(finding(host="www.example.com"), WANTED))


def test_bittorrent_is_both_ends() -> None:
    """The client's own port: where it sends from, it listens."""
    server, client = of_finding(finding("bittorrent"), WANTED)
    assert server.key == endpoint_key(Kind.SERVER, SERVER, 6, 443)
    assert client.key == endpoint_key(Kind.CLIENT, CLIENT, 6, 6881)
    assert client.labels == ("application:bittorrent",)


@pytest.mark.parametrize(
    ("ttl_s", "kept_s"), [(0, 60), (60, 60), (300, 300), (86_400, 86_400), (10**9, 86_400)]
)
def test_how_long_an_address_is_kept(ttl_s: int, kept_s: float) -> None:
    """As DNS says, from a minute to a day; and some time more, for hosts that ask no sooner."""
    (found,) = of_answer(Answer(("shops",), (SERVER,), ttl_s))
    assert found == Lesson(address_key(SERVER), ("shops",), kept_s + GRACE_S)


def test_names_that_the_router_resolves() -> None:
    """Any host, of ours too; but nobody is nobody."""
    said = [ip_address(one) for one in ("203.0.113.7", "10.10.1.1", "0.0.0.0", "127.0.0.1", "::1")]
    found = list(of_name("shop.example.org", said, 300, WANTED))
    assert [one.key for one in found] == [address_key(one) for one in said[:2]]
    assert set(found[0].labels) == {"shops", "host:*.example.org"}
