"""[[rule]]: real packets that match a rule and that do not.

client ─┐          ┌─ isp-a ─┐
        ├─ router ─┼─ isp-b ─┼─ server
dmz ────┘          └─ isp-c ─┘

What no rule takes leaves by isp-a, so the link tells which rule it was.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from dataplane.lab import Daemon, Lab, Namespace, UnavailableError, faults
from dataplane.lab.topology import Address, Family
from tests.lab.links import becomes
from tests.lab.sent import (
    DEFAULT,
    EXPERIMENT,
    HERE,
    HERE6,
    NAMES,
    SILENT_S,
    THERE,
    THERE6,
    TOPOLOGY,
    Sent,
    Take,
    leaving,
    rule,
    serving,
    taking,
)
from tests.lab.talk import Talk, call, eventually, link_of, status, tracked

FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["tcp", "udp"])
# IP_RECVERR of linux/in.h, IPV6_RECVERR of linux/in6.h.
_TELL_ERRORS = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        with Lab(TOPOLOGY) as built:
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with serving(lab) as daemon:
        yield daemon


@pytest.fixture
def take(lab: Lab, daemon: Daemon) -> Iterator[Take]:
    with taking(lab) as take:
        yield take


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
        is_refused(lab.router, None, target, protocol, patience_s=SILENT_S)
        assert seen() == 0
        assert not tracked(lab, "dport=7")
        assert Sent(str(source), str(target), protocol, 8).by(lab) == "isp-a"


def is_refused(
    near: Namespace,
    source: Address | None,
    target: Address,
    protocol: str,
    port: int = 7,
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
            asking.connect((str(target), port))
            asking.send(b"datagram")
            asking.recv(64)
    return told.value


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
    """Neither for the router nor for a host behind a port forward."""
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
    """One for each connection of a rule, not for each of its packets; anew for other rules."""
    three = rule("destination_port = 7") + rule("destination_port = 8", "reject")
    three += rule('destination = ["203.0.113.7", "2001:db8:53::7"]\nprotocol = "udp"')
    for _ in range(2):
        take(DEFAULT + three)
        rest = counts(daemon)["default"]
        for _ in range(3):
            Sent(port=7).by(lab)
        with call(lab, lab.topology.servers[6]) as talk:
            for _ in range(5):
                talk.goes_on()
        Sent(HERE6, "2001:db8:53::7").by(lab)
        is_refused(lab.client, ip_address(HERE), ip_address(THERE), "tcp", 8)
        Sent(port=9).by(lab)
        found = counts(daemon)
        assert found.pop("default") == rest + 1
        assert found == {"rule 1": 3, "rule 2": 1, "rule 3": 2}
        take(DEFAULT + rule("dscp = 5"))
        assert counts(daemon)["rule 1"] == 0
        with faults.no_carrier(lab, "isp-b"):
            becomes(daemon, "isp-b")
            assert Sent(dscp=5).by(lab) == "isp-a"
        becomes(daemon, "isp-b", 4, 6)
        for _ in range(2):
            assert Sent(dscp=5).by(lab) == "isp-b"
        assert counts(daemon)["rule 1"] == 3, "the same rule, whatever it leads to"


def counts(daemon: Daemon) -> dict[str, int]:
    return {one["name"]: one["packets"] for one in status(daemon)["rules"]}


@pytest.mark.parametrize("queue", ['engine = "callback"', 'mode = "every"', "workers = 2"])
def test_other_queues(lab: Lab, take: Take, queue: str) -> None:
    """The interface, DSCP and ports are known to them, too."""
    voice = 'in = "lan1"\nprotocol = "udp"\ndestination_port = "7-9"\ndscp = [46, 47]'
    take(f"[queue]\nnumber = 99\n{queue}\n{DEFAULT}" + rule(voice))
    for target in ("203.0.113.1", "203.0.113.2", "203.0.113.3"):
        sent = Sent("10.11.1.0", target, port=8, dscp=46, lan="dmz")
        assert sent.by(lab) == "isp-b"
        others = (
            replace(sent, lan="client", source="10.10.1.0"),
            replace(sent, dscp=1),
            replace(sent, port=6),
            replace(sent, protocol="tcp"),
        )
        assert {other.by(lab) for other in others} == {"isp-a"}


def test_an_interface_that_is_made_anew(lab: Lab, daemon: Daemon, take: Take) -> None:
    """It has another number in the kernel; here it becomes a bridge, and then what it was."""
    take(DEFAULT + rule('in = "lan1"'))
    sent = Sent("10.11.1.0", lan="dmz")
    assert sent.by(lab) == "isp-b"
    bridged = """
        ip link set lan1 down
        ip link set lan1 name port1
        ip link add lan1 type bridge
        ip link set port1 master lan1
        ip link set port1 up
        ip address add 10.11.0.1/16 dev lan1
        ip link set lan1 up
    """
    plain = """
        ip link delete lan1
        ip link set port1 down
        ip link set port1 name lan1
        ip address replace 10.11.0.1/16 dev lan1
        ip address replace fd00:db8:1::1/64 dev lan1 nodad
        ip link set lan1 up
    """
    for script in (bridged, plain):
        lab.router.run("bash", "-e", "-c", script)
        eventually(lambda: by_or_none(lab, sent) == "isp-b")
        assert Sent().by(lab) == "isp-a"


def by_or_none(lab: Lab, sent: Sent) -> str:
    try:
        return sent.by(lab, SILENT_S)
    except TimeoutError:
        return "none"
