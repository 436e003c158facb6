"""[probe] and [[link.NAME.probe]]: what they give, and every fault with its line and key."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config import keys, load
from dataplane.config.model import (
    DEFAULT_TARGETS,
    PUBLIC_RESOLVERS,
    Config,
    Probe,
    ProbeKind,
    Target,
)
from dataplane.config.targets import READERS
from tests.files import MINIMAL, said

ABOVE = len(MINIMAL.splitlines())
ONE = IPv4Address("192.0.2.1")
SIX = IPv6Address("2001:db8::1")


def read(lines: str, above: str = MINIMAL) -> Config:
    return load.read(above + lines, "evenlink.toml")


def probe(lines: str) -> Probe:
    """What a [[link.fibre.probe]] of these lines is."""
    (one,) = read(f"[[link.fibre.probe]]\n{lines}").link("fibre").probes
    return one


def targets(kind: str, *texts: str) -> tuple[Target, ...]:
    return probe(f'kind = "{kind}"\ntargets = {list(texts)}').targets


def test_a_file_that_says_nothing() -> None:
    config = read("")
    assert config.link("fibre").probes == (Probe(),)
    assert config.link("lte").probes == (Probe(interval_ms=5000),)
    assert config.hold_ms == 300_000
    assert read("[probe]\n") == config


def test_the_default_probe_is_that_of_all_links() -> None:
    config = read(
        """\
[probe]
kind = "tcp"
targets = ["gateway:80", "example.org:443"]
need = 1
interval_ms = 250
timeout_ms = 700
down = 4
up = 10
loss_down = 0.5
loss_up = 0.2
latency_down_ms = 400
latency_up_ms = 100
hold_ms = 60000
"""
    )
    expected = Probe(
        kind=ProbeKind.TCP,
        targets=(
            Target("gateway:80", gateway=True, port=80),
            Target("example.org:443", name="example.org", port=443),
        ),
        need=1,
        interval_ms=250,
        timeout_ms=700,
        down=4,
        up=10,
        loss_down=0.5,
        loss_up=0.2,
        latency_down_ms=400,
        latency_up_ms=100,
    )
    assert [link.probes for link in config.links] == [(expected,), (expected,)]
    assert config.hold_ms == 60_000


def test_a_link_s_own_probes_replace_the_default_one() -> None:
    config = read(
        """\
[probe]
down = 9
[[link.fibre.probe]]
need = 2
[[link.fibre.probe]]
kind = "arp"
"""
    )
    arp = Probe(kind=ProbeKind.ARP, targets=(Target("gateway", gateway=True),))
    assert config.link("fibre").probes == (Probe(need=2), arp)
    assert config.link("lte").probes == (Probe(down=9, interval_ms=5000),)


def test_a_link_without_probes() -> None:
    assert read("probes = false").link("lte").probes == ()
    assert read("probes = true").link("lte").probes == (Probe(interval_ms=5000),)


def test_how_often_is_asked() -> None:
    """Sparingly where each byte costs, and where a question is a connection of TLS."""
    http = 'kind = "http"\ntargets = ["http://example.org/"]\n'
    assert probe(http).interval_ms == 5000
    assert probe(f"{http}interval_ms = 1000").interval_ms == 1000
    lte = read("[[link.lte.probe]]\n[[link.lte.probe]]\ninterval_ms = 500").link("lte")
    assert [one.interval_ms for one in lte.probes] == [5000, 500]
    both = read(f"[probe]\n{http}")
    assert [one.interval_ms for link in both.links for one in link.probes] == [5000, 5000]
    both = read("[probe]\ninterval_ms = 500")
    assert [one.interval_ms for link in both.links for one in link.probes] == [500, 500]


def test_what_is_asked_when_the_file_does_not_say() -> None:
    assert probe("").targets == DEFAULT_TARGETS
    assert probe('kind = "arp"').targets == (Target("gateway", gateway=True),)
    assert [(one.address, one.port) for one in probe('kind = "dns"').targets] == [
        (address, 53) for address in PUBLIC_RESOLVERS
    ]


def test_thresholds_that_are_given_by_halves() -> None:
    one = probe("loss_down = 0.3\nlatency_down_ms = 200")
    assert (one.loss_up, one.latency_up_ms) == (0.15, 150)
    one = probe("loss_down = 1\nloss_up = 0\nlatency_down_ms = 1")
    assert (one.loss_down, one.loss_up, one.latency_up_ms) == (1.0, 0.0, 1)
    assert probe("latency_down_ms = 9\nlatency_up_ms = 9").latency_up_ms == 9
    assert (probe("").loss_down, probe("").latency_up_ms) == (None, None)


def test_ping_targets() -> None:
    assert targets("ping", "gateway", "192.0.2.1", "2001:DB8::1", "NS.Example.net.", "fe80::1") == (
        Target("gateway", gateway=True),
        Target("192.0.2.1", address=ONE),
        Target("2001:DB8::1", address=SIX),
        Target("NS.Example.net.", name="ns.example.net"),
        Target("fe80::1", address=IPv6Address("fe80::1")),
    )


def test_arp_targets() -> None:
    expected = (Target("gateway", gateway=True), Target("192.0.2.1", address=ONE))
    assert targets("arp", "gateway", "192.0.2.1") == expected


def test_tcp_targets() -> None:
    texts = ("192.0.2.1:443", "[2001:db8::1]:443", "example.org:443", "gateway:53")
    assert targets("tcp", *texts) == (
        Target(texts[0], address=ONE, port=443),
        Target(texts[1], address=SIX, port=443),
        Target(texts[2], name="example.org", port=443),
        Target(texts[3], gateway=True, port=53),
    )


def test_dns_targets() -> None:
    texts = ("192.0.2.1", "192.0.2.1:5353", "2001:db8::1", "[2001:db8::1]:54", "[2001:db8::2]",
             "gateway", "gateway:54")  # fmt: skip
    assert targets("dns", *texts) == (
        Target(texts[0], address=ONE, port=53),
        Target(texts[1], address=ONE, port=5353),
        Target(texts[2], address=SIX, port=53),
        Target(texts[3], address=SIX, port=54),
        Target(texts[4], address=IPv6Address("2001:db8::2"), port=53),
        Target(texts[5], gateway=True, port=53),
        Target(texts[6], gateway=True, port=54),
    )


def test_http_targets() -> None:
    texts = ("http://example.org", "https://Example.org:8443/a%20b?c=d", "https://[2001:db8::1]/",
             "http://192.0.2.1?x")  # fmt: skip
    assert targets("http", *texts) == (
        Target(texts[0], name="example.org", port=80),
        Target(texts[1], name="example.org", port=8443),
        Target(texts[2], address=SIX, port=443),
        Target(texts[3], address=ONE, port=80),
    )


PING = 'expected "gateway", an address or a host name'
TCP = 'expected "host:port", "[IPv6 address]:port" or "gateway:port"'
DNS = 'expected "gateway" or the address of a resolver, with or without ":port"'
HTTP = "expected an http:// or https:// URL"
HOST = "expected an address or a host name"
USABLE = "that one machine can have"


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        *(("ping", text, PING) for text in (
            "", " ", "Gateway", "192.0.2", "192.0.2.256", "192.0.2.1/32", "127.1", "0x7f000001",
            "example.org:80", "192.0.2.1:80", "[2001:db8::1]", "[2001:db8::1", "2001:db8::g",
            "http://example.org/", "a_b.example", "-a.example", "müller.example", "a b",
            "example.org\n", "a" * 64, "a..b", "*.example.org")),
        *(("ping", text, f"{PING} {USABLE}") for text in (
            "224.0.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255", "::", "::1", "ff02::1",
            "::ffff:192.0.2.1")),
        ("ping", "fe80::1%eth1", f"{PING} without a zone"),
        ("ping", "localhost", f"{PING} of another machine"),
        *(("arp", text, 'expected "gateway" or an IPv4 address') for text in (
            "2001:db8::1", "example.org", "192.0.2.1:80", "")),
        ("arp", "224.0.0.1", f'expected "gateway" or an IPv4 address {USABLE}'),
        *(("tcp", text, TCP) for text in (
            "", ":443", "192.0.2.1", "gateway", "2001:db8::1:443", "[2001:db8::1]",
            "[192.0.2.1]:443", "[gateway]:443", "example.org:", "example.org:https",
            "example.org:+443", "example.org:443:443", "example.org:443/", "[2001:db8::1]443",
            "example.org:٤٤٣", "example.org:000443")),
        *(("tcp", text, f"{TCP}, with a port from 1 to 65535") for text in (
            "example.org:0", "example.org:65536", "[2001:db8::1]:99999")),
        *(("dns", text, DNS) for text in (
            "ns.example.net", "ns.example.net:53", "192.0.2", "192.0.2.1:", ":53", "[192.0.2.1]",
            "[gateway]:53", "Gateway", "1.1")),
        ("dns", "192.0.2.1:0", f"{DNS}, with a port from 1 to 65535"),
        ("dns", "[::1]:53", f"{DNS} {USABLE}"),
        *(("http", text, HTTP) for text in (
            "", "gateway", "example.org", "//example.org", "ftp://example.org/", "http:/x", "http://",
            "http:///x", "HTTP://example.org/", "javascript:alert(1)", " http://example.org/",
            "file:///etc/passwd")),
        *(("http", text, f"{HTTP} of the characters that URLs have") for text in (
            "http://example.org\t/", "http://example.org/\n", "http://example.org/a b",
            "http://example.org/\x00", "http://müller.example/", "http://example.org\\x/",
            "http://example.org/%", "http://example.org/%4", "http://example.org/%zz",
            'http://example.org/"', "http://example.org/<x>")),
        ("http", "http://example.org/#top", f"{HTTP} without a fragment"),
        ("http", "http://example.org#", f"{HTTP} without a fragment"),
        ("http", "http://gateway/", f"{HTTP} with an address or a host name"),
        *(("http", text, HTTP) for text in (
            "http://example.org:/", "http://example.org:http/", "http://:80/",
            "http://2001:db8::1/", "http://[192.0.2.1]/", "http://[2001:db8::1/",
            "http://[2001:db8::1]x/")),
        ("http", "http://example.org:0/", f"{HTTP}, with a port from 1 to 65535"),
        ("http", "https://example.org:65536/", f"{HTTP}, with a port from 1 to 65535"),
        ("http", f"http://example.org/{'x' * 1024}", f"{HTTP} of at most 1024 characters"),
    ],
)  # fmt: skip
def test_no_target(kind: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^expected ") as caught:
        READERS[ProbeKind(kind)](text)
    assert str(caught.value).startswith(f"{message}, got ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("tcp", "127.0.0.1:80", f'{HOST} {USABLE}, got "127.0.0.1"'),
        ("tcp", "[ff02::1]:80", f'{HOST} {USABLE}, got "ff02::1"'),
        ("tcp", "192.0.2:80", f'{HOST}, got "192.0.2"'),
        ("tcp", "GATEWAY:80", f'{HOST}, got "GATEWAY"'),
        ("http", "http://localhost/", f'{HOST} of another machine, got "localhost"'),
        ("http", "http://2130706433/", f'{HOST}, got "2130706433"'),
        ("http", "http://[fe80::1%251]/", f'{HOST} without a zone, got "fe80::1%251"'),
        ("http", "http://a_b.example/", f'{HOST}, got "a_b.example"'),
        ("http", "https://example.org./",
         f'{HOST} without a dot at its end, got "example.org."'),
        ("http", "http://me:secret@example.org/",
         f"{HTTP} without user and password, got one with them"),
        ("http", "http://me@example.org:80",
         f"{HTTP} without user and password, got one with them"),
        ("http", "ftp://me:secret@example.org/",
         f"{HTTP} without user and password, got one with them"),
    ],
)  # fmt: skip
def test_no_host_in_a_target(kind: str, text: str, message: str) -> None:
    lines = f'[[link.fibre.probe]]\nkind = "{kind}"\ntargets = [\n"gateway:1",\n"{text}"]'
    expected = (ABOVE + 5, "link.fibre.probe[0].targets[1]", message)
    assert expected in said(MINIMAL + lines)


@settings(deadline=None)
@given(
    st.sampled_from(list(ProbeKind)),
    st.one_of(
        st.text(max_size=30),
        st.integers(),
        st.just(["192.0.2.1"]),
        st.text("[]:./@#?%0129abcfxht-_ \n", max_size=30),
        st.builds("{}{}{}".format, st.sampled_from(["http://", "https://", ""]),
                  st.sampled_from(["gateway", "192.0.2.1", "[2001:db8::1]", "example.org", "::"]),
                  st.text(":0123456789/?#@.[]% ", max_size=8)),
    ),
)  # fmt: skip
def test_a_target_says_whom_to_ask_or_is_refused(kind: ProbeKind, value: object) -> None:
    message = "expected nothing else"
    try:
        target = READERS[kind](value)
    except ValueError as error:
        target = None
        message = str(error)
    assert message.startswith("expected ")
    assert message.isprintable()
    if target is None:
        return
    assert target.text == value
    assert target.text.isascii()
    assert target.text.isprintable()
    assert (target.address is not None) + (target.name is not None) + target.gateway == 1
    with_port = kind in (ProbeKind.TCP, ProbeKind.DNS, ProbeKind.HTTP)
    assert (target.port is not None) == with_port
    assert target.port is None or 1 <= target.port <= 65535
    if kind is ProbeKind.HTTP:
        url = httpx.URL(target.text)
        host = url.raw_host.decode()
        assert host == target.name or ip_address(host) == target.address
        assert (url.port or {"http": 80, "https": 443}[url.scheme]) == target.port
    if target.address is not None:
        assert not target.address.is_loopback
        assert not target.address.is_multicast
        assert not target.address.is_unspecified


# Each of these comes after MINIMAL; the line counts from the first of its own lines.
P = "[[link.lte.probe]]\n"


@pytest.mark.parametrize(
    ("lines", "line", "key", "message"),
    [
        # Tables that are none.
        ("[link.lte.probe]\nkind = 'ping'", 1, "link.lte.probe",
         "expected an array of tables [[link.lte.probe]], got a table"),
        ("probe = 'ping'", 1, "link.lte.probe",
         'expected an array of tables [[link.lte.probe]], got "ping"'),
        ("probe = []", 1, "link.lte.probe",
         "expected an array of tables [[link.lte.probe]], got an empty list"),
        ("probe = [{},\n 3]", 2, "link.lte.probe[1]",
         "expected a table [[link.lte.probe]], got 3"),
        ("[[probe]]", 1, "probe", "expected a table [probe], got a list"),
        ("[[link.lte.probes]]", 1, "link.lte.probes",
         "expected true or false, with what is asked in [[link.NAME.probe]], got a list"),
        ("probes = 0", 1, "link.lte.probes", "expected true or false, got 0"),
        ("probes = false\n[[link.lte.probe]]", 1, "link.lte.probes",
         "expected true, since probes of this link are in the file, got false"),
        (P * 9, 9, "link.lte.probe[8]", "expected at most 8, got 9"),
        # Keys that are not known, or stand in the wrong table.
        (P + P + "hold_ms = 3", 3, "link.lte.probe[1].hold_ms",
         "unknown key here; it belongs in [probe]"),
        (P + "target = ['gateway']", 2, "link.lte.probe[0].target",
         'unknown key; the nearest known one is "targets"'),
        (P + "colour = 1", 2, "link.lte.probe[0].colour",
         "unknown key; known here: kind, targets, need, interval_ms, timeout_ms, down, up, "
         "loss_down, loss_up, latency_down_ms, latency_up_ms"),
        ("[probe]\nholdms = 1", 2, "probe.holdms",
         'unknown key; the nearest known one is "hold_ms"'),
        (P + "metered = true", 2, "link.lte.probe[0].metered",
         "unknown key here; it belongs in [link.NAME]"),
        ("targets = ['gateway']", 1, "link.lte.targets",
         "unknown key here; it belongs in [probe] or [[link.NAME.probe]]"),
        # Types and ranges.
        (P + "kind = 'icmp'", 2, "link.lte.probe[0].kind",
         'expected "ping", "arp", "tcp", "dns" or "http", got "icmp"'),
        (P + "targets = 'gateway'", 2, "link.lte.probe[0].targets",
         'expected a list of targets, got "gateway"'),
        (P + "targets = []", 2, "link.lte.probe[0].targets",
         "expected a list of targets, got an empty list"),
        (P + "targets = ['gateway',\n 3]", 3, "link.lte.probe[0].targets[1]", f"{PING}, got 3"),
        *((f"[probe]\n{key} = {value}", 2, f"probe.{key}",
           f"expected a whole number from {low} to {high}, got {value}")
          for key, low, high in (("interval_ms", 100, 3_600_000), ("timeout_ms", 10, 60_000),
                                 ("down", 1, 100), ("up", 1, 100), ("hold_ms", 0, 86_400_000),
                                 ("latency_down_ms", 1, 60_000), ("need", 1, 16))
          for value in (low - 1, high + 1, "true")),
        *((f"[probe]\nloss_down = {value}", 2, "probe.loss_down",
           f"expected a number from 0.001 to 1, got {said_as}")
          for value, said_as in (("0", "0"), ("30", "30"), ("-0.1", "-0.1"), ("nan", "NaN"),
                                 ("inf", "Infinity"), ("'30%'", '"30%"'), ("true", "true"))),
        # Targets together.
        (P + "targets = ['192.0.2.1', 'gateway', '192.0.2.1']", 2, "link.lte.probe[0].targets[2]",
         'expected each target once, got "192.0.2.1" again'),
        (P + "targets = ['2001:db8::1', '2001:DB8:0::1']", 2, "link.lte.probe[0].targets[1]",
         'expected each target once, got "2001:DB8:0::1" again'),
        (P + "targets = ['example.org', 'EXAMPLE.org.']", 2, "link.lte.probe[0].targets[1]",
         'expected each target once, got "EXAMPLE.org." again'),
        (P + "kind = 'dns'\ntargets = ['192.0.2.1', '192.0.2.1:53']", 3,
         "link.lte.probe[0].targets[1]", 'expected each target once, got "192.0.2.1:53" again'),
        (P + "kind = 'http'\ntargets = ['http://a.example', 'http://A.example:80/']", 3,
         "link.lte.probe[0].targets[1]",
         'expected each target once, got "http://A.example:80/" again'),
        (P + f"targets = {[f'192.0.2.{n}' for n in range(1, 18)]}", 2, "link.lte.probe[0].targets",
         "expected at most 16, got 17"),
        (P + "kind = 'tcp'", 1, "link.lte.probe[0].targets",
         'missing: expected a list of "host:port", "[IPv6 address]:port" or "gateway:port"'),
        ("[probe]\nkind = 'http'", 1, "probe.targets",
         "missing: expected a list of http:// or https:// URLs"),
        # need
        (P + "need = 3", 2, "link.lte.probe[0].need",
         "expected at most 2, the targets of one family, got 3"),
        (P + "targets = ['gateway', '192.0.2.1', 'a.example', '2001:db8::1']\nneed = 3", 3,
         "link.lte.probe[0].need", "expected at most 2, the targets of one family, got 3"),
        (P + "targets = ['gateway']\nneed = 2", 3, "link.lte.probe[0].need",
         "expected at most 1, the targets of one family, got 2"),
        # Thresholds.
        (P + "loss_up = 0.1", 1, "link.lte.probe[0].loss_down",
         "missing: expected what takes the link out, since loss_up is given"),
        (P + "latency_up_ms = 10", 1, "link.lte.probe[0].latency_down_ms",
         "missing: expected what takes the link out, since latency_up_ms is given"),
        (P + "loss_down = 0.1\nloss_up = 0.25", 3, "link.lte.probe[0].loss_up",
         "expected at most loss_down, which is 0.1, got 0.25"),
        (P + "latency_up_ms = 101\nlatency_down_ms = 100", 2, "link.lte.probe[0].latency_up_ms",
         "expected at most latency_down_ms, which is 100, got 101"),
        (P + "timeout_ms = 500\nlatency_down_ms = 501", 3, "link.lte.probe[0].latency_down_ms",
         "expected at most timeout_ms, which is 500: a later answer is none; got 501"),
        # The link around.
        ("[link.x]\ninterface = 'x'\ncapacity = '1Mbit'\n[[link.x.probe]]\nkind = 'arp'", 4,
         "link.x.probe[0]",
         'expected the link to have a gateway, which kind = "arp" asks, or an address'),
    ],
)  # fmt: skip
def test_one_fault(lines: str, line: int, key: str, message: str) -> None:
    assert said(MINIMAL + lines) == [(ABOVE + line, key, message)]


def test_a_plain_table_is_read_all_the_same() -> None:
    found = said(f"{MINIMAL}[link.lte.probe]\nkind = 'ping'\nneed = 0\ntargets = ['::1']")
    assert [(line - ABOVE, key) for line, key, _ in found] == [
        (1, "link.lte.probe"),
        (3, "link.lte.probe.need"),
        (4, "link.lte.probe.targets[0]"),
    ]


def test_all_faults_of_several_probes() -> None:
    lines = """\
[[link.fibre.probe]]
targets = ["gateway", "8.8.8"]
need = 7
[[link.lte.probe]]
up = 0
[[link.fibre.probe]]
kind = "ping"
targets = [
  "a.example",
  "a_b.example",
]
"""
    assert [(line - ABOVE, key) for line, key, _ in said(MINIMAL + lines)] == [
        (2, "link.fibre.probe[0].targets[1]"),
        (5, "link.lte.probe[0].up"),
        (10, "link.fibre.probe[1].targets[1]"),
    ]


def test_targets_that_are_not_asked_without_ipv6() -> None:
    off = f"ipv6 = false\n{MINIMAL}"
    message = (
        "expected an IPv4 address or a host name among them, since ipv6 = false, "
        "got IPv6 addresses alone"
    )
    lines = f'{P}targets = ["gateway", "2001:db8::1"]'
    assert said(off + lines) == [(ABOVE + 3, "link.lte.probe[0].targets", message)]
    assert said(MINIMAL + lines) == []
    for well in ('["2001:db8::1", "192.0.2.1"]', '["2001:db8::1", "a.example"]', '["gateway"]'):
        assert said(f"{off}{P}targets = {well}") == []
    assert said(f"{off}{P}") == []


def test_what_was_not_read_is_not_called_missing() -> None:
    """On a line that is not TOML, anything may have stood."""
    lines = "[[link.lte.probe]]\nkind = tcp\ntargets = ['a.example:80']\nloss_up = 0.1\nneed = 2"
    assert [(line - ABOVE, key) for line, key, _ in said(MINIMAL + lines)] == [(2, "")]
    lines = "[[link.lte.probe]]\nkind = 'tpc'\ntargets = ['a.example:80']"
    assert [(line - ABOVE, key) for line, key, _ in said(MINIMAL + lines)] == [
        (2, "link.lte.probe[0].kind")
    ]


def test_a_misspelt_key_is_one_fault() -> None:
    found = said(f"{MINIMAL}{P}los_down = 0.3\nloss_up = 0.1\nkind = 'tcp'\ntarget = ['a:1']")
    assert [(line - ABOVE, key) for line, key, _ in found] == [
        (2, "link.lte.probe[0].los_down"),
        (5, "link.lte.probe[0].target"),
    ]


def test_tables_may_stand_in_one_line() -> None:
    short = read('probe = [{need = 2}, {kind = "dns"}]')
    assert short == read(f"{P}need = 2\n{P}kind = 'dns'")


VALUES = st.sampled_from(
    ["1", "0", "-1", "500", "0.5", "nan", "true", "false", '"tcp"', '"http"', '"arp"', '"dns"',
     '"gateway"', "[]", '["gateway"]', '["192.0.2.1:80", "2001:db8::1"]', '["http://a.example"]',
     "{}", "[{}]", "[1]", '[{kind = "arp"}]', "x"]
)  # fmt: skip
TABLES = st.sampled_from(
    ["[probe]", "[[probe]]", "[link.lte.probe]", "[[link.lte.probe]]", "[[link.fibre.probe]]",
     '[[link."\\u0007".probe]]', "[link.lte]", "[[link.lte.probe.targets]]"]
)  # fmt: skip
KEYS = st.sampled_from([*keys.DEFAULT_PROBE, "probe", "probes", "kind.x", "resolvers"])


@settings(deadline=None)
@given(st.lists(st.one_of(TABLES, st.builds("{} = {}".format, KEYS, VALUES)), max_size=12))
def test_whatever_is_written_is_read_or_refused(lines: list[str]) -> None:
    text = "\n".join([MINIMAL, *lines])
    found = said(text)
    assert [line for line, _, _ in found] == sorted(line for line, _, _ in found)
    for line, key, message in found:
        assert 0 <= line <= text.count("\n") + 1
        assert message.isprintable()
        assert key.isprintable()
    if found:
        return
    for link in load.read(text, "evenlink.toml").links:
        for one in link.probes:
            assert one.targets
            assert 1 <= one.need <= len(one.targets)
            assert (one.loss_down is None) == (one.loss_up is None)
            assert (one.latency_down_ms is None) == (one.latency_up_ms is None)
