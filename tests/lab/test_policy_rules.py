"""[[rule]]: real packets that match a rule and that do not, and what a rule does without its links.

client ─┐          ┌─ isp-a ─┐
        ├─ router ─┼─ isp-b ─┼─ server
dmz ────┘          └─ isp-c ─┘

What no rule takes leaves by isp-a, so the link tells which rule it was.
"""

from __future__ import annotations

import signal
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address

import pytest

from dataplane.daemon.calling import ask
from dataplane.daemon.messages import Reload
from dataplane.lab import (
    Daemon,
    Lab,
    Namespace,
    Topology,
    UnavailableError,
    faults,
    lan,
    link,
    servers,
)
from dataplane.lab.topology import MBIT, Address, Family
from tests.lab.links import FAST, KEY, becomes, is_quiet
from tests.lab.machine import held
from tests.lab.talk import (
    Talk,
    counted,
    eventually,
    link_of,
    rightful_sources,
    status,
    tracked,
)

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
NAMES = ("isp-a", "isp-b", "isp-c")
DEFAULT = '[balance]\nlinks = ["isp-a"]\n'
# RFC 3692 keeps this protocol for experiments.
EXPERIMENT = 253
SILENT_S = 0.3
# IP_RECVERR of linux/in.h, IPV6_RECVERR of linux/in6.h.
_TELL_ERRORS = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
HERE, THERE = "10.10.1.0", "203.0.113.1"
HERE6, THERE6 = "fd00:db8::100", "2001:db8:53::1"


@dataclass(frozen=True)
class Sent:
    """The first packet of a connection."""

    source: str | None = HERE
    target: str = THERE
    protocol: str = "udp"
    port: int = 9
    source_port: int = 0
    dscp: int = 0
    lan: str = "client"

    def by(self, lab: Lab, patience_s: float = 5.0) -> str:
        """The link by which it leaves, as the server sees it."""
        far = socket_of(lab, "server", self)
        near = socket_of(lab, self.lan, self)
        with far, near:
            if self.source is not None:
                near.bind((self.source, self.source_port))
            far.bind((self.target, self.port if self.protocol in ("tcp", "udp") else 0))
            for one in (near, far):
                one.settimeout(patience_s)
            if self.protocol == "tcp":
                far.listen()
            near.connect((self.target, self.port))
            if self.protocol == "tcp":
                accepted, peer = far.accept()
                accepted.close()
            else:
                near.send(payload(self.protocol))
                _, peer = far.recvfrom(1500)
        return link_of(lab, ip_address(peer[0]))


def payload(protocol: str) -> bytes:
    """An echo request, or anything."""
    if protocol == "icmp":
        return struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - 7 - 1, 7, 1)
    # The kernel fills in ICMPv6's checksum.
    return struct.pack("!BBHHH", 128, 0, 0, 7, 1) if protocol == "icmpv6" else b"datagram"


def socket_of(lab: Lab, role: str, sent: Sent) -> socket.socket:
    six = ":" in sent.target
    family = socket.AF_INET6 if six else socket.AF_INET
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    protocols = {"icmp": socket.IPPROTO_ICMP, "icmpv6": socket.IPPROTO_ICMPV6}
    raw = protocols.get(sent.protocol, EXPERIMENT)
    with lab[role].inside():
        if sent.protocol in kinds:
            made = socket.socket(family, kinds[sent.protocol])
        else:
            made = socket.socket(family, socket.SOCK_RAW, raw)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    level, option = (
        (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if six else (socket.IPPROTO_IP, socket.IP_TOS)
    )
    made.setsockopt(level, option, sent.dscp << 2)
    return made


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    links = tuple(link(name, n, n * 10 * MBIT, shaped=False) for n, name in enumerate(NAMES, 1))
    try:
        with Lab(Topology(links, (lan(), lan("dmz", 1)), servers(8))) as built:
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    before = held(lab)
    started = lab.run(lab.file(key=KEY, probe=FAST))
    yield started
    is_quiet(started)
    assert started.stop(signal.SIGINT) == 0
    assert held(lab) == before


Take = Callable[[str], None]


@pytest.fixture
def take(lab: Lab, daemon: Daemon) -> Iterator[Take]:
    """Has the daemon take the topology's file with these lines added."""

    def take(lines: str) -> None:
        path = lab.file(key=KEY, probe=FAST)
        path.write_text(f"{path.read_text()}\n{lines}")
        ask(path.parent / "control.sock", Reload())
        # What has no ports would go on with a connection of the test before.
        lab.router.run("conntrack", "-F")

    with rightful_sources(lab):
        yield take
    assert counted(lab, "wrong_source") == 0


def rule(conditions: str, use: str = "isp-b") -> str:
    return f'\n[[rule]]\n{conditions}\nuse = "{use}"\n'


four, six = Sent(), Sent(HERE6, THERE6)
OFFICE = '[list.office]\nentries = ["203.0.113.2", "203.0.113.4-203.0.113.5", "2001:db8:53::2"]\n'
OTHER = '[list.other]\nentries = ["203.0.113.0/29"]\n'

# What stands in a rule, the packets that it takes, and those that it leaves.
CONDITIONS: Mapping[str, tuple[str, Sequence[Sent], Sequence[Sent]]] = {
    "in": (
        'in = "lan1"',
        [Sent("10.11.1.0", lan="dmz"), Sent("fd00:db8:1::100", THERE6, lan="dmz")],
        [four, six, replace(four, source=None, lan="router")],
    ),
    "in, any of two": (
        'in = ["lan1", "lan0"]',
        [Sent("10.11.1.0", lan="dmz"), four, six],
        [replace(four, source=None, lan="router"), replace(six, source=None, lan="router")],
    ),
    "source, an address": (
        'source = "10.10.1.0"',
        [four],
        [replace(four, source="10.10.1.1"), six],
    ),
    "source, a prefix": (
        'source = ["10.10.1.2/31", "fd00:db8::100/127"]',
        [Sent("10.10.1.2"), Sent("10.10.1.3", protocol="tcp"), six, Sent("fd00:db8::101", THERE6)],
        [four, Sent("10.10.1.1"), Sent("fd00:db8::102", THERE6)],
    ),
    "source, a range": (
        'source = ["10.10.1.1-10.10.1.2", "fd00:db8::101-fd00:db8::102"]',
        [Sent("10.10.1.1"), Sent("10.10.1.2"), *(Sent(f"fd00:db8::10{n}", THERE6) for n in (1, 2))],
        [four, Sent("10.10.1.3"), six, Sent("fd00:db8::103", THERE6)],
    ),
    "destination": (
        'destination = ["203.0.113.2-203.0.113.3", "2001:db8:53::3"]',
        [Sent(target="203.0.113.2"), Sent(target="203.0.113.3"), Sent(HERE6, "2001:db8:53::3")],
        [four, Sent(target="203.0.113.4"), six, Sent(HERE6, "2001:db8:53::2")],
    ),
    "destination, everything of a family": (
        'destination = "::/0"',
        [six, Sent(HERE6, "2001:db8:53::8", "tcp"), Sent(HERE6, THERE6, "icmpv6")],
        [four, Sent(protocol="tcp")],
    ),
    "a list": (
        'destination = "@office"',
        [Sent(target=f"203.0.113.{n}") for n in (2, 4, 5)] + [Sent(HERE6, "2001:db8:53::2")],
        [Sent(target=f"203.0.113.{n}") for n in (1, 3, 6)] + [six],
    ),
    "a list of a list and more": (
        'destination = ["@office", "203.0.113.1"]',
        [four, Sent(target="203.0.113.2"), Sent(HERE6, "2001:db8:53::2")],
        [Sent(target="203.0.113.3"), six],
    ),
    "protocol tcp": (
        'protocol = "tcp"',
        [Sent(protocol="tcp"), Sent(HERE6, THERE6, "tcp")],
        [four, six, Sent(protocol="icmp"), Sent(protocol="experiment")],
    ),
    "protocols by number": (
        f'protocol = ["icmp", "icmpv6", {EXPERIMENT}]',
        [
            Sent(protocol="icmp"),
            Sent(HERE6, THERE6, "icmpv6"),
            Sent(protocol="experiment"),
            Sent(HERE6, THERE6, "experiment"),
        ],
        [four, six, Sent(protocol="tcp")],
    ),
    "destination_port": (
        'destination_port = [5060, "10000-10002"]',
        [
            *(Sent(port=port) for port in (5060, 10000, 10001, 10002)),
            Sent(protocol="tcp", port=5060),
            Sent(HERE6, THERE6, port=10002),
        ],
        [
            *(Sent(port=port) for port in (5059, 5061, 9999, 10003)),
            Sent(port=9, source_port=5060),
            Sent(protocol="icmp"),
            Sent(HERE6, THERE6, "icmpv6"),
            Sent(protocol="experiment"),
        ],
    ),
    "every port": (
        'destination_port = "1-65535"',
        [four, six, Sent(protocol="tcp"), Sent(port=65535)],
        [Sent(protocol="icmp"), Sent(HERE6, THERE6, "icmpv6"), Sent(protocol="experiment")],
    ),
    "source_port": (
        'source_port = "7000-7001"',
        [
            Sent(source_port=7000),
            Sent(protocol="tcp", source_port=7001),
            Sent(HERE6, THERE6, source_port=7001),
        ],
        [Sent(source_port=6999), Sent(source_port=7002), Sent(source_port=9, port=7000)],
    ),
    "dscp": (
        'dscp = ["ef", 10]',
        [Sent(dscp=46), Sent(protocol="tcp", dscp=10), Sent(HERE6, THERE6, dscp=46)],
        [four, Sent(dscp=47), Sent(HERE6, THERE6, dscp=45), six],
    ),
    "dscp 0": ("dscp = 0", [four, six], [Sent(dscp=1), Sent(HERE6, THERE6, dscp=1)]),
    "all of them": (
        'in = "lan0"\nsource = "10.10.1.0/31"\ndestination = "@office"\nprotocol = "udp"\n'
        'source_port = "7000-7999"\ndestination_port = 53\ndscp = "cs1"',
        [Sent("10.10.1.1", "203.0.113.4", "udp", 53, 7000, 8)],
        [
            Sent("10.10.1.2", "203.0.113.4", "udp", 53, 7000, 8),
            Sent("10.10.1.1", "203.0.113.3", "udp", 53, 7000, 8),
            Sent("10.10.1.1", "203.0.113.4", "tcp", 53, 7000, 8),
            Sent("10.10.1.1", "203.0.113.4", "udp", 53, 8000, 8),
            Sent("10.10.1.1", "203.0.113.4", "udp", 54, 7000, 8),
            Sent("10.10.1.1", "203.0.113.4", "udp", 53, 7001, 9),
            Sent("10.11.1.0", "203.0.113.4", "udp", 53, 7000, 8, "dmz"),
        ],
    ),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_a_condition_takes_and_leaves(lab: Lab, take: Take, name: str) -> None:
    conditions, taken, left = CONDITIONS[name]
    take(DEFAULT + (OFFICE if "@office" in conditions else "") + rule(conditions))
    for sent in taken:
        assert sent.by(lab) == "isp-b", sent
    for sent in left:
        assert sent.by(lab) == "isp-a", sent


def test_the_first_rule_that_matches_decides(lab: Lab, take: Take) -> None:
    exception, most = 'destination = "203.0.113.2"', 'destination = "203.0.113.0/30"'
    sent = {number: Sent(target=f"203.0.113.{number}") for number in (1, 2, 3, 4)}
    take(DEFAULT + rule(exception, "isp-c") + rule(most))
    links = {number: one.by(lab) for number, one in sent.items()}
    assert links == {1: "isp-b", 2: "isp-c", 3: "isp-b", 4: "isp-a"}
    # The other way round the exception is hidden, unless the list's words are not compared.
    take(f"{DEFAULT}{OFFICE}{OTHER}" + rule('destination = "@office"') + rule(most, "isp-c"))
    links = {number: one.by(lab) for number, one in sent.items()}
    assert links == {1: "isp-c", 2: "isp-b", 3: "isp-c", 4: "isp-b"}


def test_a_thousand_rules(lab: Lab, take: Take) -> None:
    """The last is found as the first is."""
    ports = range(20_000, 20_999)
    many = "".join(rule(f"destination_port = {port}", NAMES[port % 3]) for port in ports)
    take(DEFAULT + many + rule('protocol = "icmp"', "isp-c"))
    for port in (20_000, 20_001, 20_500, 20_998):
        assert Sent(port=port).by(lab) == NAMES[port % 3]
    assert Sent(port=20_999).by(lab) == "isp-a"
    assert Sent(protocol="icmp").by(lab) == "isp-c"


@FAMILIES
@PROTOCOLS
def test_main(lab: Lab, take: Take, family: Family, protocol: str) -> None:
    """The rule's connections go by main's default route, and stay there."""
    take(DEFAULT + rule("destination_port = 7", "main"))
    target = str(lab.topology.serving(family)[0])
    source = str(lab.topology.lans[0].clients(family)[0])
    sent = Sent(source, target, protocol)
    way = lab.topology.link("isp-c")
    words = ("default", "via", str(way.gateway(family)), "dev", way.interface)
    lab.router.run("ip", f"-{family}", "route", "add", *words)
    try:
        assert sent.by(lab) == "isp-a"
        assert replace(sent, port=7).by(lab) == "isp-c"
        assert replace(sent, port=7, source=None, lan="router").by(lab) == "isp-c"
    finally:
        lab.router.run("ip", f"-{family}", "route", "del", *words)
    # Behind main stands a last table with the links, as for all that finds no route.
    assert replace(sent, port=7).by(lab) in NAMES


@contextmanager
def leaving(lab: Lab, port: int) -> Iterator[Callable[[], int]]:
    """Counts packets to that port that any provider receives."""
    table = (
        "table inet seen {{\ncounter seen {{}}\nchain in {{\ntype filter hook prerouting priority -300\n"
        'iifname "link" th dport {port} counter name seen\n}}\n}}\n'
    )
    for name in NAMES:
        lab[name].run("nft", "-f", "-", stdin=table.format(port=port))
    try:
        yield lambda: sum(
            int(
                lab[name]
                .run("nft", "list", "counter", "inet", "seen", "seen")
                .stdout.split("packets")[1]
                .split()[0]
            )
            for name in NAMES
        )
    finally:
        for name in NAMES:
            lab[name].run("nft", "delete", "table", "inet", "seen")


@FAMILIES
@PROTOCOLS
def test_reject(lab: Lab, take: Take, family: Family, protocol: str) -> None:
    """The client is told at once, and nothing leaves by any link; nor does the router's own.

    That is dropped behind the queue, where the kernel has nobody to tell.
    """
    take(DEFAULT + rule("destination_port = 7", "reject"))
    target = lab.topology.serving(family)[0]
    source = lab.topology.lans[0].clients(family)[0]
    with leaving(lab, 7) as seen:
        told = is_refused(lab.client, source, target, protocol)
        assert not isinstance(told, TimeoutError)
        is_refused(lab.router, None, target, protocol, SILENT_S)
        assert seen() == 0
        assert not tracked(lab, "dport=7")
        assert Sent(str(source), str(target), protocol, 8).by(lab) == "isp-a"


def is_refused(
    near: Namespace,
    source: Address | None,
    target: Address,
    protocol: str,
    patience_s: float = 5.0,
) -> OSError:
    """Gives the error."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    with near.inside():
        asking = socket.socket(family, kind)
    with asking:
        asking.settimeout(patience_s)
        if protocol == "udp":
            # Else only those errors are told of that no other way could mend.
            level, option = _TELL_ERRORS[target.version]
            asking.setsockopt(level, option, 1)
        if source is not None:
            asking.bind((str(source), 0))
        with pytest.raises(OSError) as told:  # noqa: PT011, PT012 - which one, the kernel decides
            asking.connect((str(target), 7))
            asking.send(b"datagram")
            asking.recv(64)
    return told.value


# By the destination port: a rule for isp-b, and what it does without it.
PORTS = {"default": 1001, "next": 1002, "reject": 1003, "group": 1004, "dead group": 1005,
         "a group": 1006, "words": 1007}  # fmt: skip
WITHOUT = f"""{DEFAULT}
[group.spare]
links = ["isp-c"]
[group.same]
links = ["isp-b"]
method = "random"
[group.two]
links = ["isp-b", "isp-c"]
method = "failover"
[[rule]]
destination_port = 1001
use = "isp-b"
[[rule]]
destination_port = 1002
use = "isp-b"
else = "next"
[[rule]]
destination_port = 1003
use = "isp-b"
else = "reject"
[[rule]]
destination_port = 1004
use = "same"
else = "spare"
[[rule]]
destination_port = 1005
use = "isp-b"
else = "same"
[[rule]]
destination_port = 1006
use = "two"
else = "reject"
[[rule]]
destination_port = 1007
use = "isp-b"
else = "default"
[[rule]]
destination_port = 1002
use = "spare"
"""
ALL_WELL = dict.fromkeys(PORTS, "isp-b")
WITHOUT_B = {"default": "isp-a", "next": "isp-c", "reject": "none", "group": "isp-c",
             "dead group": "isp-a", "a group": "isp-c", "words": "isp-a"}  # fmt: skip
WITHOUT_B_AND_C = {"default": "isp-a", "next": "isp-a", "reject": "none", "group": "isp-a",
                   "dead group": "isp-a", "a group": "none", "words": "isp-a"}  # fmt: skip
WITHOUT_A_AND_B = {**WITHOUT_B, "default": "none", "dead group": "none", "words": "none"}


def outcomes(lab: Lab, family: Family) -> dict[str, str]:
    """By what a rule's `else` is, the link that a new connection takes; "none" if it is refused."""
    target = str(lab.topology.serving(family)[0])
    source = str(lab.topology.lans[0].clients(family)[0])
    found = {}
    for name, port in PORTS.items():
        try:
            found[name] = Sent(source, target, "tcp", port).by(lab, SILENT_S)
        except OSError:
            found[name] = "none"
    return found


def test_else_while_links_die_and_return(lab: Lab, daemon: Daemon, take: Take) -> None:
    take(WITHOUT)
    assert [outcomes(lab, family) for family in (4, 6)] == [ALL_WELL] * 2
    with faults.no_carrier(lab, "isp-b"):
        becomes(daemon, "isp-b")
        assert [outcomes(lab, family) for family in (4, 6)] == [WITHOUT_B] * 2
        with faults.no_carrier(lab, "isp-c"):
            becomes(daemon, "isp-c")
            assert [outcomes(lab, family) for family in (4, 6)] == [WITHOUT_B_AND_C] * 2
        becomes(daemon, "isp-c", 4, 6)
        with faults.no_carrier(lab, "isp-a"):
            becomes(daemon, "isp-a")
            assert [outcomes(lab, family) for family in (4, 6)] == [WITHOUT_A_AND_B] * 2
        becomes(daemon, "isp-a", 4, 6)
    becomes(daemon, "isp-b", 4, 6)
    assert [outcomes(lab, family) for family in (4, 6)] == [ALL_WELL] * 2


@contextmanager
def without_family(lab: Lab, name: str, family: Family) -> Iterator[None]:
    """The provider forwards nothing of that family."""
    table = f"{'ip' if family == 4 else 'ip6'} halved"
    lab[name].run(
        "nft",
        "-f",
        "-",
        stdin=f"table {table} {{\nchain out {{\ntype filter hook forward priority 0\ndrop\n}}\n}}\n",
    )
    try:
        yield
    finally:
        lab[name].run("nft", "delete", "table", *table.split())


@FAMILIES
def test_else_of_the_family_that_is_dead(
    lab: Lab, daemon: Daemon, take: Take, family: Family
) -> None:
    other: Family = 6 if family == 4 else 4
    take(WITHOUT)
    with without_family(lab, "isp-b", family):
        becomes(daemon, "isp-b", other)
        assert outcomes(lab, family) == WITHOUT_B
        assert outcomes(lab, other) == ALL_WELL
    becomes(daemon, "isp-b", 4, 6)
    assert outcomes(lab, family) == ALL_WELL


def test_where_nothing_lives_a_rule_keeps_its_links(lab: Lab, daemon: Daemon, take: Take) -> None:
    """All providers are silent, so what a rule leads to is as good as any other."""
    take(WITHOUT)
    ports = {"default": 1001, "dead group": 1005, "words": 1007}
    with ExitStack() as broken:
        for name in NAMES:
            broken.enter_context(faults.dropping(lab, name))
        for name in NAMES:
            becomes(daemon, name)
        for port in ports.values():
            with lab.client.inside():
                sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sender, leaving(lab, port) as seen:
                sender.sendto(b"datagram", (THERE, port))
                eventually(lambda seen=seen: seen() == 1)  # type: ignore[misc]
            assert tracked(lab, f"dport={port}", f"mark={2 << 24}")
    for name in NAMES:
        becomes(daemon, name, 4, 6)


@FAMILIES
@PROTOCOLS
def test_the_routers_own(lab: Lab, take: Take, family: Family, protocol: str) -> None:
    """Rules hold for it, but for those that ask for an interface."""
    take(DEFAULT + rule('in = ["lan0", "lan1"]', "isp-c") + rule("destination_port = 7"))
    target = str(lab.topology.serving(family)[0])
    own = Sent(None, target, protocol, lan="router")
    assert own.by(lab) == "isp-a"
    assert replace(own, port=7).by(lab) == "isp-b"
    for way in lab.topology.links:
        bound = replace(own, port=7, source=str(way.address(family)))
        assert bound.by(lab) == way.name, "who is bound to a link's address leaves by it"


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("use", ["isp-b", "reject", "main"])
def test_what_comes_from_outside_knows_no_rules(
    lab: Lab, take: Take, family: Family, protocol: str, use: str
) -> None:
    """Neither for the router nor for a host behind a port forward; refused is what begins inside."""
    take(DEFAULT + rule('protocol = ["tcp", "udp"]', use))
    asker = lab.topology.serving(family)[0]
    host = lab.topology.lans[1].clients(family)[0]
    shown = f"[{host}]" if family == 6 else str(host)
    address = "ip" if family == 4 else "ip6"
    table = (
        f"table inet forwards {{\nchain before {{\ntype nat hook prerouting priority dstnat\n"
        f'iifname "wan*" meta l4proto {protocol} th dport 4242 dnat {address} to {shown}\n}}\n}}\n'
    )
    lab.router.run("nft", "-f", "-", stdin=table)
    try:
        for way in lab.topology.links:
            to = way.address(family)
            with Talk(lab.server, asker, lab.router, to, protocol=protocol) as talk:
                assert {talk.goes_on() for _ in range(3)} == {asker}
            with Talk(
                lab.server, asker, lab["dmz"], to, protocol=protocol, at=host, port=4242
            ) as talk:
                assert {talk.goes_on() for _ in range(3)} == {asker}
    finally:
        lab.router.run("nft", "delete", "table", "inet", "forwards")


@FAMILIES
@PROTOCOLS
@pytest.mark.parametrize("use", ["isp-b", "reject"])
def test_connected_networks_know_no_rules(
    lab: Lab, take: Take, family: Family, protocol: str, use: str
) -> None:
    """Another LAN, a provider's network, the router itself; and a specific route of main's."""
    take(DEFAULT + rule('protocol = ["tcp", "udp"]', use))
    source = lab.topology.lans[0].clients(family)[0]
    here = partial(Talk, lab.client, source, protocol=protocol)
    with here(lab["dmz"], lab.topology.lans[1].clients(family)[0]) as talk:
        assert talk.goes_on() == source
    with here(lab.router, lab.topology.lans[0].router(family)) as talk:
        assert talk.goes_on() == source
    way = lab.topology.link("isp-c")
    with here(lab["isp-c"], way.gateway(family)) as talk:
        assert talk.goes_on() == way.address(family)
    target = lab.topology.serving(family)[7]
    words = (str(target), "via", str(way.gateway(family)), "dev", way.interface)
    lab.router.run("ip", f"-{family}", "route", "add", *words)
    try:
        with here(lab.server, target) as talk:
            assert link_of(lab, talk.goes_on()) == "isp-c"
    finally:
        lab.router.run("ip", f"-{family}", "route", "del", *words)


def test_rules_are_counted(lab: Lab, daemon: Daemon, take: Take) -> None:
    """One for each connection of a rule, not for each of its packets."""
    if "rules" not in status(daemon):
        pytest.skip("status does not tell of rules")
    take(DEFAULT + rule("destination_port = 7") + rule("destination_port = 8", "reject"))
    before = status(daemon)["rules"]
    for _ in range(3):
        Sent(port=7).by(lab)
    assert status(daemon)["rules"] != before
