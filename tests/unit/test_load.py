"""The operator's file: what it gives, and every fault with its line and key."""

from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from dataplane.config import load
from dataplane.config.model import (
    Config,
    Engine,
    Failback,
    Fields,
    Group,
    Link,
    Nat,
    Probe,
    Queue,
    QueueMode,
)
from tests.files import MINIMAL, faults_of, said


def test_the_twelve_line_file() -> None:
    config = load.read(MINIMAL, "evenlink.toml")
    assert config == Config(
        lan=("br-lan",),
        links=(
            Link(
                name="fibre",
                interface="eth1",
                gateway=IPv4Address("192.0.2.1"),
                gateway6="auto",
                download_bps=200_000_000,
                upload_bps=200_000_000,
            ),
            Link(
                name="lte",
                interface="wwan0",
                gateway="auto",
                gateway6="auto",
                download_bps=50_000_000,
                upload_bps=50_000_000,
                metered=True,
                probes=(Probe(interval_ms=5000),),
            ),
        ),
        balance=Group("default", ("fibre", "lte")),
    )
    assert [link.weight for link in config.links] == [200_000_000, 50_000_000]


def test_every_key() -> None:
    config = load.read(
        """\
lan = ["br-lan", "wlan0"]
key = "0123456789abcdef"
mark_mask = "0x00ff0000"
exempt_marks = [0xca6c, "0x1"]
ipv6 = false
own_traffic = "main"
on_stop = "undo"
state_dir = "/srv/evenlink"
control_socket = "/run/e.sock"
control_group = "netadmin"
on_change = ["/usr/local/bin/tell", "-v", ""]

[queue]
number = 65532
workers = 4
engine = "callback"
mode = "every"
length = 1024
copy_bytes = 256
spin_us = 50

[link.a]
interface = "eth1"
gateway = "192.0.2.1"
gateway6 = "fe80::1"
download = "100Mbit"
upload = "10Mbit"
share = 0.1
nat = "snat"
address = ["192.0.2.7", "2001:db8::7", "2001:db8:a::/56"]
mss = 1452
resolvers = ["192.0.2.53", "2001:db8::53"]
probes = false
failback = "drain"

[link.b]
interface = "eth1"
gateway = "192.0.2.2"
gateway6 = "fe80::2"
share = 2
nat = "prefix"
address = "2001:db8:b::/48"

[link.c]
interface = "ppp0"
share = 1
nat = "none"

[probe]
down = 2
hold_ms = 0

[balance]
method = "pcc"
fields = "src-address"
symmetric = true
links = ["b", "a"]

[log]
level = "debug"
""",
        "evenlink.toml",
    )
    assert config == Config(
        lan=("br-lan", "wlan0"),
        links=(
            Link(
                name="a",
                interface="eth1",
                gateway=IPv4Address("192.0.2.1"),
                gateway6=IPv6Address("fe80::1"),
                download_bps=100_000_000,
                upload_bps=10_000_000,
                share=Fraction(1, 10),
                nat=Nat.SNAT,
                snat_address=IPv4Address("192.0.2.7"),
                snat_address6=IPv6Address("2001:db8::7"),
                prefix6=IPv6Network("2001:db8:a::/56"),
                mss=1452,
                resolvers=(IPv4Address("192.0.2.53"), IPv6Address("2001:db8::53")),
                probes=(),
                failback=Failback.DRAIN,
            ),
            Link(
                name="b",
                interface="eth1",
                gateway=IPv4Address("192.0.2.2"),
                gateway6=IPv6Address("fe80::2"),
                share=Fraction(2),
                nat=Nat.PREFIX,
                prefix6=IPv6Network("2001:db8:b::/48"),
                probes=(Probe(down=2),),
            ),
            Link(
                name="c",
                interface="ppp0",
                share=Fraction(1),
                nat=Nat.NONE,
                probes=(Probe(down=2),),
            ),
        ),
        balance=Group("default", ("b", "a"), fields=Fields.SRC_ADDRESS, symmetric=True),
        key=0x0123456789ABCDEF,
        mark_mask=0x00FF0000,
        exempt_marks=(0xCA6C, 1),
        ipv6=False,
        own_traffic="main",
        on_stop="undo",
        state_dir=Path("/srv/evenlink"),
        control_socket=Path("/run/e.sock"),
        control_group="netadmin",
        on_change=("/usr/local/bin/tell", "-v", ""),
        hold_ms=0,
        queue=Queue(65532, 4, Engine.CALLBACK, QueueMode.EVERY, 1024, 256, 50),
        log_level="debug",
    )


def test_ten_faults_are_ten_faults() -> None:
    text = """\
lan = ["br-lan", "eth1"]
colour = "blue"
mark_mask = 0x05000000
[queue]
number = 70000
engine = "fast"
[link.fibre]
interfce = "eth0"
gateway = "2001:db8::1"
capacity = "20"
[link.lte]
interface = "eth1"
capacity = "50Mbit"
upload = "10Mbit"
[balance]
links = ["fibre",
         "lta"]
"""
    assert [str(fault) for fault in faults_of(text)] == [
        "evenlink.toml:2: colour: unknown key; known here: lan, key, mark_mask, exempt_marks, "
        "ipv6, own_traffic, on_stop, state_dir, control_socket, control_group, on_change, queue, "
        "link, probe, balance, group, list, rule, log",
        "evenlink.toml:3: mark_mask: expected one run of at least 4 set bits such as 0x7f000000, "
        "got 0x5000000",
        "evenlink.toml:5: queue.number: expected a whole number from 0 to 65535, got 70000",
        'evenlink.toml:6: queue.engine: expected "batch" or "callback", got "fast"',
        'evenlink.toml:8: link.fibre.interfce: unknown key; the nearest known one is "interface"',
        'evenlink.toml:9: link.fibre.gateway: expected an IPv4 address or "auto", got '
        '"2001:db8::1"',
        'evenlink.toml:10: link.fibre.capacity: expected a rate such as "20Mbit", got "20"',
        "evenlink.toml:12: link.lte.interface: expected an interface that is not in lan, got "
        '"eth1"',
        "evenlink.toml:14: link.lte.upload: expected capacity or upload, got both",
        'evenlink.toml:17: balance.links[1]: there is no link "lta"; the nearest one is "lte"',
    ]


# What stands above each of these is MINIMAL; the line counts from the first of its own lines.
ABOVE = len(MINIMAL.splitlines())


@pytest.mark.parametrize(
    ("lines", "line", "key", "message"),
    [
        # Keys that are not known, or stand in the wrong table.
        ("[ospf]", 1, "ospf", "not known in this version of Evenlink"),
        ("[link.lte.bgp]", 1, "link.lte.bgp", "not known in this version of Evenlink"),
        ("[log]\nformat = 'x'", 2, "log.format", "not known in this version of Evenlink"),
        ("ipv6 = true", 1, "link.lte.ipv6",
         "unknown key here; it belongs at the top of the file, before the first table"),
        ("number = 3", 1, "link.lte.number", "unknown key here; it belongs in [queue]"),
        ("[qeue]", 1, "qeue", 'unknown key; the nearest known one is "queue"'),
        ('"a b" = 3', 1, 'link.lte."a b"',
         "unknown key; known here: interface, gateway, gateway6, capacity, download, upload, "
         "share, metered, nat, address, mss, resolvers, probes, failback, probe"),
        # Types.
        ("[queue]\nnumber = '1'", 2, "queue.number",
         'expected a whole number from 0 to 65535, got "1"'),
        ("queue = 3", 1, "link.lte.queue",
         "unknown key here; it belongs at the top of the file, before the first table"),
        ("mss = 1e3", 1, "link.lte.mss", "expected a whole number from 536 to 65495, got 1E+3"),
        ("[balance]\nlinks = 'lte'", 2, "balance.links",
         'expected a list of names of links, got "lte"'),
        ("[balance]\nlinks = []", 2, "balance.links",
         "expected a list of names of links, got an empty list"),
        ("[balance]\nlinks = ['lte', 3]", 2, "balance.links[1]", "expected a string, got 3"),
        ("[balance]\nsymmetric = 1", 2, "balance.symmetric", "expected true or false, got 1"),
        ("[balance]\nfields = 2020-01-01", 2, "balance.fields",
         'expected "both-addresses", "both-ports", "both-addresses-and-ports", "src-address", '
         '"src-port", "src-address-and-port", "dst-address", "dst-port" or '
         '"dst-address-and-port", got the date or time 2020-01-01'),
        ("[link]\nx = 3", 2, "link.x", "expected a table [link.x], got 3"),
        # Ranges.
        ("[queue]\nworkers = 65", 2, "queue.workers",
         "expected a whole number from 1 to 64, got 65"),
        ("[queue]\nnumber = 65535\nworkers = 2", 3, "queue.workers",
         "expected queues up to number 65535, got 2 workers from number 65535 on"),
        ("[queue]\ncopy_bytes = 63", 2, "queue.copy_bytes",
         "expected a whole number from 64 to 65531, got 63"),
        ("[queue]\nmode = 'all'", 2, "queue.mode", 'expected "first" or "every", got "all"'),
        ("mss = 535", 1, "link.lte.mss", "expected a whole number from 536 to 65495, got 535"),
        # Links by themselves.
        ("[link.x]\ncapacity = '1Mbit'", 1, "link.x.interface",
         "missing: expected the interface of this uplink"),
        ("[link.x]\ninterface = 'x'", 1, "link.x.capacity",
         "missing: expected capacity, or download, or share"),
        ("[link.x]\ninterface = 'x'\nupload = '1Mbit'", 1, "link.x.capacity",
         "missing: expected capacity, or download, or share"),
        ("[link.x]\ninterface = 'x'\ncapacity = '1Mbit'\ndownload = '1Mbit'", 4,
         "link.x.download", "expected capacity or download, got both"),
        ("[link.x]\ninterface = 'br-lan'\ncapacity = '1Mbit'", 2, "link.x.interface",
         'expected an interface that is not in lan, got "br-lan"'),
        ("[link.x]\ninterface = 'eth*'\ncapacity = '1Mbit'", 2, "link.x.interface",
         "expected an interface name of 1 to 15 bytes without any of / : \" ' \\ * ` and no + at "
         'its end, got "eth*"'),
        ("[link.9]\ninterface = 'x'\ncapacity = '1Mbit'", 1, "link.9",
         'expected a name of a letter and up to 30 letters, digits, - or _, got "9"'),
        ("[link.main]\ninterface = 'x'\ncapacity = '1Mbit'", 1, "link.main",
         'expected a name other than default, main, next or reject, got "main"'),
        ("gateway6 = 'ff02::1'", 1, "link.lte.gateway6",
         'expected an IPv6 address or "auto" that one machine can have, got "ff02::1"'),
        # Translation.
        ("nat = 'snat'\naddress = '2001:db8::/56'", 2, "link.lte.address",
         'missing: nat = "snat" needs an IPv4 or IPv6 address'),
        ("address = '192.0.2.7'", 1, "link.lte.address",
         'expected nat = "snat" beside it, else 192.0.2.7 has no use'),
        ("nat = 'snat'\naddress = ['192.0.2.7',\n '192.0.2.8']", 3, "link.lte.address[1]",
         "expected one of each kind, got 192.0.2.8 too"),
        ("address = ['2001:db8::/65']", 1, "link.lte.address[0]",
         'expected an IPv6 prefix such as "2001:db8:a00::/56", from /16 to /64, got '
         '"2001:db8::/65"'),
        # Resolvers, and what becomes of connections that moved.
        ("resolvers = '192.0.2.53'", 1, "link.lte.resolvers",
         'expected a list of addresses of resolvers, got "192.0.2.53"'),
        ("resolvers = []", 1, "link.lte.resolvers",
         "expected a list of addresses of resolvers, got an empty list"),
        ("resolvers = ['192.0.2.53',\n 'ns.example.net']", 2, "link.lte.resolvers[1]",
         'expected an IPv4 or IPv6 address, got "ns.example.net"'),
        ("resolvers = ['127.0.0.53']", 1, "link.lte.resolvers[0]",
         'expected an IPv4 or IPv6 address that one machine can have, got "127.0.0.53"'),
        ("resolvers = ['fe80::1']", 1, "link.lte.resolvers[0]",
         'expected an IPv4 or IPv6 address that is routed, not a link-local one, got "fe80::1"'),
        ("resolvers = ['2001:db8::53',\n '2001:DB8:0::53']", 2, "link.lte.resolvers[1]",
         "expected each address once, got 2001:db8::53 again"),
        (f"resolvers = {[f'192.0.2.{n}' for n in range(1, 18)]}", 1, "link.lte.resolvers",
         "expected at most 16, got 17"),
        ("failback = 'stay'", 1, "link.lte.failback",
         'expected "keep", "drain" or "kill", got "stay"'),
        # Links together.
        ("resolvers = ['192.0.2.53']\n[link.x]\ninterface = 'x'\ncapacity = '1Mbit'\n"
         "resolvers = ['198.51.100.53', '192.0.2.53']", 5, "link.x.resolvers[1]",
         "expected another address than one of link lte's, got 192.0.2.53"),
        ("[link.LTE]\ninterface = 'x'\ncapacity = '1Mbit'", 1, "link.LTE",
         "expected more than a difference in case to link lte"),
        ("[balance]\nlinks = ['wimax']", 2, "balance.links[0]",
         'there is no link "wimax"; expected fibre or lte'),
        ("[balance]\nlinks = ['lte', 'lte']", 2, "balance.links[1]",
         'expected each name once, got "lte" again'),
        ("[link.x]\ninterface = 'eth1'\ngateway = '192.0.2.1'\ncapacity = '1Mbit'", 3,
         "link.x.gateway",
         "expected another gateway than that of link fibre, which is on eth1 too, got 192.0.2.1"),
        ("[link.x]\ninterface = 'eth1'\ncapacity = '1Mbit'", 2, "link.x.interface",
         "expected the address of a gateway, since link fibre is on eth1 too"),
        ("[link.x]\ninterface = 'eth1'\ngateway = 'auto'\ncapacity = '1Mbit'", 3,
         "link.x.gateway", "expected the address of a gateway, since link fibre is on eth1 too"),
        ("[link.x]\ninterface = 'x'\ncapacity = '1Mbit'\naddress = '2001:db8::/48'\n"
         "[link.y]\ninterface = 'y'\ncapacity = '1Mbit'\naddress = '2001:db8:0:1::/64'", 8,
         "link.y.address", "expected a prefix apart from link x's, got 2001:db8:0:1::/64"),
    ],
)  # fmt: skip
def test_one_fault(lines: str, line: int, key: str, message: str) -> None:
    assert said(MINIMAL + lines) == [(ABOVE + line, key, message)]


@pytest.mark.parametrize(
    ("lines", "line", "key", "message"),
    [
        ('exempt_marks = ["0x100",\n  0x7f]\nmark_mask = 0xf0', 2, "exempt_marks[1]",
         "expected none of the bits of mark_mask 0xf0, which are ours to set: a packet with 0x7f "
         "would look decided"),
        ("mark_mask = 0x3f00", 1, "mark_mask",
         "expected none of the bits of 0xca6c, the mark that is exempt unless exempt_marks says "
         "otherwise, got 0x3f00"),
        ("exempt_marks = 3", 1, "exempt_marks", "expected a list of marks, got 3"),
        (f"exempt_marks = {[1, *range(1, 92)]}", 1, "exempt_marks",
         "expected at most 90 marks, got 91"),
        ("key = 12", 1, "key",
         "expected 16 hexadecimal digits in quotes or the absolute path of a file, got 12"),
        ("state_dir = 'x'", 1, "state_dir", 'expected an absolute path, got "x"'),
        ("control_group = 'a b'", 1, "control_group",
         'expected the name of a group of users, got "a b"'),
        ("on_change = '/bin/true'", 1, "on_change",
         'expected a list of a program and its arguments, got "/bin/true"'),
        ("on_change = []", 1, "on_change",
         "expected a list of a program and its arguments, got an empty list"),
        ("on_change = ['tell.sh', 'x']", 1, "on_change[0]",
         'expected the absolute path of a program, got "tell.sh"'),
        ("on_change = ['/usr/bin/']", 1, "on_change[0]",
         'expected the absolute path of a program, got "/usr/bin/"'),
        ("on_change = ['/bin/tell',\n 3]", 2, "on_change[1]",
         "expected a string without a zero byte, got 3"),
        ("on_change = ['/bin/tell',\n \"a\\u0000\"]", 2, "on_change[1]",
         'expected a string without a zero byte, got "a\\u0000"'),
        (f'on_change = ["/bin/tell", """{"x" * 3000}\n{"x" * 3000}"""]', 1, "on_change[1]",
         "expected at most 4096 bytes, got 6001"),
        (f"on_change = {['/bin/tell'] * 65}", 1, "on_change",
         "expected at most 64 strings, got 65"),
        ("own_traffic = 'wan'", 1, "own_traffic", 'expected "balance" or "main", got "wan"'),
        ("on_stop = true", 1, "on_stop", 'expected "keep" or "undo", got true'),
        ("log = 'debug'", 1, "log", 'expected a table [log], got "debug"'),
        ("link.x = 3", 1, "link.x", "expected a table [link.x], got 3"),
    ],
)  # fmt: skip
def test_one_fault_at_the_top(lines: str, line: int, key: str, message: str) -> None:
    assert said(f"{lines}\n{MINIMAL}") == [(line, key, message)]


LTE = MINIMAL.splitlines().index("[link.lte]") + 1


@pytest.mark.parametrize(
    ("nat", "needs"),
    [
        ("snat", "an IPv4 or IPv6 address"),
        ("prefix", 'an IPv6 prefix such as "2001:db8:a00::/56"'),
    ],
)
def test_a_missing_key_has_the_line_of_its_table(nat: str, needs: str) -> None:
    missing = f'missing: nat = "{nat}" needs {needs}'
    assert said(f'{MINIMAL}nat = "{nat}"') == [(LTE, "link.lte.address", missing)]


@pytest.mark.parametrize("text", ["", "\n\n", "[link]", "# nothing"])
def test_an_empty_file(text: str) -> None:
    assert {(key, message) for _, key, message in said(text)} == {
        ("lan", 'missing: expected a list of interface names such as ["br-lan"]'),
        ("link", "missing: expected at least one [link.NAME] with interface and capacity"),
    }


def test_all_links_have_a_share_or_none() -> None:
    links = (("a", "share = 1"), ("b", 'capacity = "1Mbit"'), ("c", ""), ("d", "share = 2"))
    text = 'lan = ["l"]\n' + "".join(
        f'[link.{name}]\ninterface = "{name}"\n{weight}\n' for name, weight in links
    )
    assert said(text) == [
        (5, "link.b.share", "missing: expected a share, since link a has one"),
        (8, "link.c.share", "missing: expected a share, since link a has one"),
    ]


@pytest.mark.parametrize(("mask", "most"), [("0xf0", 8), ("0x1f0", 24), ("0x7f000000", 120)])
def test_links_that_the_mask_cannot_tell(mask: str, most: int) -> None:
    def text(count: int) -> str:
        links = (f'[link.l{n}]\ninterface = "i{n}"\nshare = 1\n' for n in range(count))
        return f'lan = ["l"]\nexempt_marks = []\nmark_mask = {mask}\n{"".join(links)}'

    assert said(text(most)) == []
    message = f"expected at most {most} links, as mark_mask can tell, got {most + 2}"
    assert said(text(most + 2)) == [(4 + 3 * most, f"link.l{most}", message)]


def test_a_wrong_mask_is_not_judged_against_other_keys() -> None:
    text = f"mark_mask = 7\nexempt_marks = [0x01000000]\n{MINIMAL}"
    assert [key for _, key, _ in said(text)] == ["mark_mask"]
