"""What was learned, from the store to the decision of a queue worker."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from dataplane.config.load import read
from dataplane.config.model import AddressList, Rule, Selection
from dataplane.decide.compiled import program_of
from dataplane.decide.dns import Answer
from dataplane.decide.learned import Learned
from dataplane.decide.lessons import Finding, of_answer, of_finding
from dataplane.decide.wanted import Wanted
from dataplane.decide.wish import Before, make_wish
from dataplane.hotpath import Classifier
from tests.golden.cases import KEY, MACHINE, two

CONFIG = replace(
    read(two(), "evenlink.toml"),
    lists=(AddressList("shops", names=("*.example.org",)), AddressList("other", names=("o.test",))),
    rules=(
        Rule(1, "isp-a", destination=Selection(lists=("shops",))),
        Rule(2, "isp-b", source=Selection(lists=("other",))),
        Rule(3, "isp-a", applications=("bittorrent",)),
        Rule(4, "isp-b", hosts=("*.example.com",)),
        Rule(5, "reject"),
    ),
)
WANTED = Wanted.of(CONFIG)
TCP, UDP = 6, 17
CLIENT, SERVER = "10.10.1.0", "203.0.113.7"


class Taught:
    """A worker that knows what was taught."""

    def __init__(self) -> None:
        self._learned = Learned()

    def answer(self, name: str, address: str) -> None:
        labels = WANTED.labels_of_question(name)
        for key, known_as, keep_s in of_answer(Answer(labels, (ip_address(address),), 300)):
            self._learned.teach(key, known_as, keep_s, 0)

    def finding(self, *applications: str, protocol: int = TCP, host: str = "") -> None:
        ends = (ip_address(SERVER), 443), (ip_address(CLIENT), 6881)
        for key, labels, keep_s in of_finding(Finding(protocol, *ends, applications, host), WANTED):
            self._learned.teach(key, labels, keep_s, 0)

    def rule(
        self,
        source: str = CLIENT,
        target: str = SERVER,
        protocol: int = TCP,
        sport: int = 40_000,
        dport: int = 443,
    ) -> int:
        """The number of the rule that takes a flow."""
        wish = make_wish(CONFIG, MACHINE, KEY, Before())
        classifier = Classifier(program_of(wish, self._learned.snapshot()))
        ends = ip_address(source).packed, ip_address(target).packed
        return classifier.classify_flow(*ends, protocol, sport, dport).rule + 1


def test_nothing_is_known() -> None:
    assert Taught().rule() == 5


@pytest.mark.parametrize("address", [SERVER, "2001:db8::7"])
def test_an_address_of_a_list(address: str) -> None:
    """With any protocol and port; a neighbour is another address."""
    taught = Taught()
    taught.answer("www.example.org", address)
    client = CLIENT if address == SERVER else "fd00:db8::100"
    assert taught.rule(client, address, UDP, dport=53) == 1
    taught = Taught()
    taught.answer("www.example.org", address)
    assert taught.rule(client, str(ip_address(address) + 1)) == 5


def test_a_list_of_sources() -> None:
    taught = Taught()
    taught.answer("o.test", CLIENT)
    assert taught.rule() == 2


def test_a_server_of_a_host() -> None:
    for flow, rule in (({}, 4), ({"dport": 80}, 5), ({"protocol": UDP}, 5)):
        taught = Taught()
        taught.finding("tls", host="www.example.com")
        assert taught.rule(**flow) == rule  # type: ignore[arg-type]


def test_a_host_that_dns_told_of() -> None:
    """It may be asked at any port."""
    taught = Taught()
    taught.answer("www.example.com", SERVER)
    assert taught.rule(dport=8443) == 4


def test_bittorrent_at_both_ends() -> None:
    for flow, rule in (
        ({}, 3),
        ({"target": "198.51.100.7", "sport": 6881}, 3),
        ({"target": "198.51.100.7"}, 5),
        ({"target": "198.51.100.7", "sport": 6881, "protocol": UDP}, 5),
    ):
        taught = Taught()
        taught.finding("bittorrent")
        assert taught.rule(**flow) == rule  # type: ignore[arg-type]


def test_what_is_known_in_several_ways() -> None:
    """The first rule that any of it holds for decides."""
    taught = Taught()
    taught.answer("www.example.com", SERVER)
    taught.finding("bittorrent", host="www.example.com")
    assert taught.rule() == 3
