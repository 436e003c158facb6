"""[[rule]]: what it gives, and every fault with its line and key."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from dataplane.config import load, protocols, rules
from dataplane.config.model import Addresses, Config, Fields, Ports, Rule, Selection
from tests.files import said

ABOVE_TEXT = """\
lan = ["br-lan", "wlan0"]
[link.fibre]
interface = "eth1"
gateway = "192.0.2.1"
capacity = "200Mbit"
[link.lte]
interface = "wwan0"
gateway = "auto"
capacity = "50Mbit"
[group.voice]
links = ["fibre", "lte"]
method = "failover"
[group.spread]
links = ["fibre", "lte"]
[list.office]
entries = ["198.51.100.0/24", "2001:db8::/32"]
[list.four]
entries = ["203.0.113.0/24"]
[list.six]
entries = ["2001:db8:1::/48"]
[list.site]
names = ["example.org"]
"""
ABOVE = len(ABOVE_TEXT.splitlines())


def read(lines: str) -> Config:
    return load.read(ABOVE_TEXT + lines, "evenlink.toml")


def rule(lines: str) -> Rule:
    """What a [[rule]] of these lines is, without its place."""
    (one,) = read(f"[[rule]]\n{lines}").rules
    assert (one.number, one.line) == (1, ABOVE + 1)
    return one


def net(text: str) -> Addresses:
    return Addresses.of([(ip_network(text)[0], ip_network(text)[-1])])


def test_every_key() -> None:
    config = read(
        """\
[[rule]]
in = ["br-lan", "wlan0"]
source = ["10.0.0.0/8", "@office", "2001:db8::7"]
destination = ["@four", "@office"]
protocol = ["udp", 6, "132"]
source_port = ["1024-65535"]
destination_port = [5060, "5061", "10000 - 20000"]
dscp = ["EF", 10, "cs1", "0"]
application = { name = ["BitTorrent"], host = ["*.Example.org", "example.org."] }
use = "spread"
fields = "src-address"
else = "voice"

[[rule]]
use = "main"
"""
    )
    assert config.rules == (
        Rule(
            number=1,
            use="spread",
            otherwise="voice",
            line=ABOVE + 1,
            interfaces=("br-lan", "wlan0"),
            source=Selection(
                Addresses(
                    net("10.0.0.0/8").ranges4,
                    Addresses.of([(ip_address("2001:db8::7"),) * 2]).ranges6,
                ),
                ("office",),
            ),
            destination=Selection(lists=("four", "office")),
            protocols=(17, 6, 132),
            source_ports=(Ports(1024, 65535),),
            destination_ports=(Ports(5060, 5060), Ports(5061, 5061), Ports(10000, 20000)),
            dscp=(46, 10, 8, 0),
            applications=("bittorrent",),
            hosts=("*.example.org", "example.org"),
            fields=Fields.SRC_ADDRESS,
        ),
        Rule(number=2, use="main", line=ABOVE + 14),
    )


def test_one_element_stands_without_a_list() -> None:
    assert rule('source = "10.0.0.0/8"\nuse = "lte"').source == Selection(net("10.0.0.0/8"))
    assert rule('destination = "@office"\nuse = "lte"').destination.lists == ("office",)
    assert rule('in = "wlan0"\nuse = "lte"').interfaces == ("wlan0",)
    assert rule('protocol = "esp"\nuse = "lte"').protocols == (50,)
    assert rule('protocol = 0\nuse = "lte"').protocols == (0,)
    assert rule('source_port = 53\nuse = "lte"').source_ports == (Ports(53, 53),)
    assert rule('dscp = 46\nuse = "lte"').dscp == (46,)
    assert rule('application = "Zoom"\nuse = "lte"').applications == ("zoom",)
    assert rule('application = ["a", "b"]\nuse = "lte"').applications == ("a", "b")
    assert rule('application.host = "example.org"\nuse = "lte"').hosts == ("example.org",)


@pytest.mark.parametrize("use", ["fibre", "lte", "voice", "spread", "default", "main", "reject"])
def test_what_a_rule_may_use(use: str) -> None:
    assert rule(f'use = "{use}"').use == use


@pytest.mark.parametrize("otherwise", ["next", "default", "reject", "voice"])
def test_what_else_may_be(otherwise: str) -> None:
    assert rule(f'use = "lte"\nelse = "{otherwise}"').otherwise == otherwise


def test_dscp_by_name() -> None:
    """RFC 2474, 2597, 3246, 5865 and 8622."""
    names = {"cs0": 0, "cs7": 56, "af11": 10, "af23": 22, "af43": 38, "ef": 46, "va": 44, "le": 1}
    for name, number in names.items():
        assert protocols.dscp(name) == number
    assert len(protocols.DSCP) == 8 + 12 + 3


PROTOCOL = 'expected a protocol such as "udp", or its number from 0 to 255, got'
PORT = 'expected a port from 1 to 65535, or a range such as "10000-20000", got'
DSCP = 'expected a DSCP from 0 to 63, or a name such as "ef", "cs1" or "af31", got'
ELEMENT = 'expected an address, a prefix or a range, or "@" and the name of a list, got'
NAME = 'expected the name of an application such as "bittorrent"'


@pytest.mark.parametrize(
    ("lines", "line", "key", "message"),
    [
        # What it uses.
        ("in = 'wlan0'", 1, "use", 'missing: expected a link, a group, "main" or "reject"'),
        ("use = 3", 2, "use", "expected a string, got 3"),
        ("use = 'lta'", 2, "use", 'there is no link or group "lta"; the nearest one is "lte"'),
        ("use = 'zz'", 2, "use",
         'there is no link or group "zz"; expected fibre, lte, voice, spread, default, main or '
         "reject"),
        ("use = 'lte'\nelse = 'voise'", 3, "else",
         'there is no group "voise"; the nearest one is "voice"'),
        ("use = 'lte'\nelse = 'fibre'", 3, "else",
         'expected "next", "default", "reject" or a group, got link fibre: make a group of it'),
        ("use = 'lte'\nelse = 'main'", 3, "else",
         'there is no group "main"; expected next, default, reject, voice or spread'),
        ("use = 'main'\nelse = 'next'", 3, "else",
         'expected no else beside use = "main", which never dies, got "next"'),
        ("use = 'voice'\nelse = 'voice'", 3, "else",
         'expected another group than use says, got "voice"'),
        # What is hashed.
        ("use = 'lte'\nfields = 'src-port'", 3, "fields",
         'expected a group with method = "pcc" to use, got "lte", which hashes nothing'),
        ("use = 'voice'\nfields = 'src-port'", 3, "fields",
         'expected a group with method = "pcc" to use, got voice, whose method is "failover"'),
        # Conditions.
        ("use = 'lte'\nin = 'eth1'", 3, "in",
         'expected an interface of lan, which is br-lan or wlan0, got "eth1": this never matches'),
        ("use = 'lte'\nsource = ['10.0.0.1',\n'10.0.0.1/8']", 4, "source[1]",
         'expected no bits after the prefix: "10.0.0.0/8", got "10.0.0.1/8"'),
        ("use = 'lte'\nsource = 'example.org'", 3, "source", f'{ELEMENT} "example.org"'),
        ("use = 'lte'\nsource = []", 3, "source",
         "expected a list of addresses, prefixes, ranges or lists, got an empty list"),
        ("use = 'lte'\ndestination = '@ofice'", 3, "destination",
         'there is no list "ofice"; the nearest one is "office"'),
        ("use = 'lte'\nprotocol = 'quic'", 3, "protocol", f'{PROTOCOL} "quic"'),
        ("use = 'lte'\nprotocol = 256", 3, "protocol", f"{PROTOCOL} 256"),
        ("use = 'lte'\nprotocol = true", 3, "protocol",
         "expected a list of protocols, got true"),
        ("use = 'lte'\ndestination_port = [80,\n0]", 4, "destination_port[1]", f"{PORT} 0"),
        ("use = 'lte'\nsource_port = '65536'", 3, "source_port", f'{PORT} "65536"'),
        ("use = 'lte'\nsource_port = -5", 3, "source_port", f"{PORT} -5"),
        ("use = 'lte'\nsource_port = '20-10'", 3, "source_port",
         'expected the lower port first: "10-20", got "20-10"'),
        ("use = 'lte'\nsource_port = 'http'", 3, "source_port", f'{PORT} "http"'),
        ("use = 'lte'\ndscp = 64", 3, "dscp", f"{DSCP} 64"),
        ("use = 'lte'\ndscp = 'af44'", 3, "dscp", f'{DSCP} "af44"'),
        ("use = 'lte'\napplication = '*.example.org'", 3, "application",
         f'{NAME}; host names go in {{ host = [...] }}, got "*.example.org"'),
        ("use = 'lte'\napplication = ''", 3, "application", f'{NAME}, got ""'),
        ("use = 'lte'\napplication = {}", 3, "application",
         "expected name or host in it, got neither"),
        ("use = 'lte'\napplication = { hosts = ['a.b'], name = 'x' }", 3, "application.hosts",
         'unknown key; the nearest known one is "host"'),
        ("use = 'lte'\napplication = { host = ['a_b'] }", 3, "application.host[0]",
         'expected a domain name such as "example.org" or "*.example.org", got "a_b"'),
        ("use = 'lte'\ncolour = 3", 3, "colour",
         "unknown key; known here: in, source, destination, protocol, source_port, "
         "destination_port, dscp, application, use, fields, else"),
        ("uze = 'lte'", 2, "uze", 'unknown key; the nearest known one is "use"'),
        # What no packet can be.
        ("use = 'lte'\nprotocol = ['icmp', 'esp']\nsource_port = 53", 4, "source_port",
         "expected a protocol that has ports, which are tcp, udp, sctp, udplite or dccp: rule 1 "
         "can never match"),
        ("use = 'lte'\nsource = '10.0.0.0/8'\ndestination = '2001:db8::/32'", 4, "destination",
         "expected an IPv4 address or list, as the source is, got only IPv6: rule 1 can never "
         "match"),
        ("use = 'lte'\nsource = '@six'\ndestination = '@four'", 4, "destination",
         "expected an IPv6 address or list, as the source is, got only IPv4: rule 1 can never "
         "match"),
    ],
)  # fmt: skip
def test_one_fault(lines: str, line: int, key: str, message: str) -> None:
    assert said(f"{ABOVE_TEXT}[[rule]]\n{lines}") == [(ABOVE + line, f"rule[0].{key}", message)]


@pytest.mark.parametrize("addresses", ["'@six'", "['2001:db8::1', '@six']"])
def test_ipv6_that_is_switched_off(addresses: str) -> None:
    message = (
        "expected an IPv4 address or list among them, since ipv6 = false: rule 1 can never match"
    )
    lines = f"[[rule]]\nuse = 'lte'\nsource = {addresses}"
    assert said(ABOVE_TEXT + lines) == []
    assert said(f"ipv6 = false\n{ABOVE_TEXT}{lines}") == [(ABOVE + 4, "rule[0].source", message)]
    assert said(f"ipv6 = false\n{ABOVE_TEXT}{lines.replace('@six', '@office')}") == []


@pytest.mark.parametrize(
    "lines",
    [
        "source_port = 53",
        "protocol = ['icmp', 'udp']\nsource_port = 53",
        "source = '10.0.0.0/8'\ndestination = '@office'",
        "source = '@six'\ndestination = '@site'",
        "source = ['@six', '10.0.0.1']\ndestination = '@four'",
    ],
)
def test_what_some_packet_can_be(lines: str) -> None:
    rule(f"use = 'lte'\n{lines}")


def test_a_rule_in_single_brackets() -> None:
    assert said(f"{ABOVE_TEXT}[rule]\nuse = 'lte'") == [
        (ABOVE + 1, "rule", "expected an array of tables [[rule]], got a table")
    ]


def test_a_list_with_nothing_in_it() -> None:
    text = f"{ABOVE_TEXT}[list.x]\nfiles = 'x'\n{{}}[[rule]]\nuse = 'lte'\nsource = '@x'"
    found = []

    def nothing(path: Path) -> bytes:
        found.append(path)
        return b"# later\n"

    with pytest.raises(Exception, match=r"nothing is in @x: rule 1 can never match$"):
        load.read(text.format(""), "evenlink.toml", nothing)
    assert found == [Path("x")]
    load.read(text.format("watch = true\n"), "evenlink.toml", nothing)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ABOVE_TEXT + "".join(f"[[rule]]\nuse = 'lte'\nsource = '10.0.0.{n}'\n" for n in range(3))
    monkeypatch.setattr(rules, "MOST_RULES", 2)
    assert said(text) == [(ABOVE + 7, "rule[2]", "expected at most 2 rules, got 3")]
    monkeypatch.setattr(rules, "MOST_ELEMENTS", 2)
    assert said(f"{ABOVE_TEXT}[[rule]]\nuse = 'lte'\nprotocol = [1, 2, 3]") == [
        (ABOVE + 3, "rule[0].protocol", "expected at most 2, got 3")
    ]
    assert said(f"{ABOVE_TEXT}[[rule]]\nuse = 'lte'\nsource = ['::1', '::2', '::3']") == [
        (ABOVE + 3, "rule[0].source", "expected at most 2; more go in a list; got 3")
    ]
