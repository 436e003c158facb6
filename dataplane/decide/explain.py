"""One packet -> the decision, step by step, in the order that the packet path takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from dataplane.config.marks import Marks
from dataplane.config.model import Config, Link, Nat
from dataplane.decide.compiled import program_of
from dataplane.decide.facts import Destination, Facts, Family
from dataplane.decide.liveness import Condition, LinkState, source_towards
from dataplane.decide.plan import table_of
from dataplane.decide.wish import Wish
from dataplane.hotpath import Classifier

_DHCP_PORTS = frozenset({67, 68, 546, 547})
_UDP = 17


@dataclass(frozen=True, slots=True)
class Flow:
    """The first packet of a connection. `interface` empty: some interface of the LAN side."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    protocol: int = 6
    source_port: int = 0
    destination_port: int = 0
    interface: str = ""

    @property
    def family(self) -> Family:
        return 4 if self.source.version == 4 else 6


@dataclass(slots=True)
class Explanation:
    """The answer; the keys of `explain --json`, in the order of the contract."""

    link: str | None = None
    group: str | None = None
    method: str | None = None
    rule: str | None = None
    fields: str | None = None
    hash: str | None = None
    slot: int | None = None
    mark: str | None = None
    table: int | str | None = None
    source_address: str | None = None
    reason: str = ""
    steps: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Situation:
    """What a decision depends on, as it is now or as it is supposed to be."""

    config: Config
    ids: Mapping[str, int]
    states: Mapping[str, LinkState]
    facts: Facts
    classifier: Classifier

    @classmethod
    def of(cls, wish: Wish) -> Situation:
        """What the wish would do."""
        classifier = Classifier(program_of(wish))
        return cls(wish.config, wish.ids, wish.states, wish.facts, classifier)

    @property
    def marks(self) -> Marks:
        return Marks(self.config.mark_mask)


def explain(situation: Situation, flow: Flow, destination: Destination) -> Explanation:
    """The decision for a new connection whose first packet is `flow`.

    `destination` is what main's connected and specific routes say of its destination.
    """
    answer = Explanation()
    exempt = _exempt(situation, flow, destination)
    if exempt:
        return _left_to_main(answer, situation, exempt)
    answer.steps.append(
        f"{flow.destination}: no connected network and no specific route of main leads there, "
        "so the connection is balanced"
    )
    pinned = _pinned(situation.config, flow)
    if pinned:
        answer.reason = f"the source lies in the delegated prefix {pinned.prefix6}"
        answer.steps.append(f"{answer.reason} of link {pinned.name}: pinned to it, no translation")
        return _by_link(answer, situation, pinned, flow)
    own = _own(situation, flow)
    asked = _asked(situation.config, flow)
    pins = asked is not None and situation.states[asked.name].way(flow.family).alive
    if own and not (asked and pins and _main_decides(situation.config, asked)):
        answer.reason = f"{flow.source} is this router's own address on link {own.name}"
        answer.steps.append(f"{answer.reason}: what has that source leaves by it")
        return _by_link(answer, situation, own, flow)
    if asked and pins:
        answer.reason = f"{flow.destination} is a resolver of link {asked.name}"
        answer.steps.append(f"{answer.reason}: pinned to it")
        return _by_link(answer, situation, asked, flow)
    if asked:
        why = situation.states[asked.name].way(flow.family).why
        answer.steps.append(
            f"{flow.destination} is a resolver of link {asked.name}, which takes no IPv"
            f"{flow.family} now ({why}): balanced like any other"
        )
    decided = situation.classifier.classify_flow(
        flow.source.packed,
        flow.destination.packed,
        flow.protocol,
        flow.source_port,
        flow.destination_port,
    )
    if decided.decision == situation.marks.main:
        family = f"IPv{flow.family}"
        return _left_to_main(answer, situation, f"no link is set up for {family}")
    balance = situation.config.balance
    answer.group, answer.method = balance.name, balance.method.value
    answer.rule, answer.fields = balance.name, balance.fields.value
    answer.hash, answer.slot = f"{decided.hash:016x}", decided.slot
    names = {number: name for name, number in situation.ids.items()}
    link = situation.config.link(names[decided.decision])
    answer.reason = f"slot {decided.slot} of group {balance.name} belongs to {link.name}"
    answer.steps += [
        f"rule {balance.name}: matches everything; group {balance.name}, method {answer.method}",
        f"hash of {answer.fields}{', ordered' if balance.symmetric else ''}: {answer.hash}",
        f"slot {decided.slot} (its top 16 bits) belongs to {link.name}",
    ]
    return _by_link(answer, situation, link, flow)


def _exempt(situation: Situation, flow: Flow, destination: Destination) -> str:
    """Why the connection is left alone; empty when it is balanced."""
    config = situation.config
    if flow.interface and flow.interface not in config.lan:
        return f"it arrives on {flow.interface}, which is not of the LAN side"
    if flow.family == 6 and not config.ipv6:
        return "IPv6 is switched off in the file"
    if _no_unicast(flow.destination) or destination.kind in ("broadcast", "anycast", "multicast"):
        return f"{flow.destination} is not a unicast address"
    if destination.kind == "local":
        return f"{flow.destination} is an address of this router"
    if flow.destination.is_link_local or flow.source.is_link_local or flow.source.is_unspecified:
        return "link-local traffic stays on its network"
    if flow.protocol == _UDP and flow.destination_port in _DHCP_PORTS:
        return "DHCP is left alone"
    if destination.kind in ("blackhole", "unreachable", "prohibit"):
        return f"main has a specific route to {flow.destination} that refuses it"
    if destination.kind == "specific":
        return (
            f"main has a connected network or a specific route to {flow.destination} "
            f"by {destination.interface}"
        )
    return ""


def _no_unicast(address: IPv4Address | IPv6Address) -> bool:
    """What the kernel calls broadcast or multicast whatever the routes say (inet_addr_type)."""
    return (
        address.is_multicast
        or address.is_unspecified
        or (address.version == 4 and address.packed[0] == 0)
        or address.packed == b"\xff\xff\xff\xff"
    )


def _left_to_main(answer: Explanation, situation: Situation, reason: str) -> Explanation:
    marks = situation.marks
    answer.reason = reason
    answer.mark = f"{marks.mark(marks.main):#010x}"
    answer.table = "main"
    answer.steps.append(f"{reason}: left to the main table")
    return answer


def _pinned(config: Config, flow: Flow) -> Link | None:
    for link in config.links:
        if link.prefix6 and link.nat is not Nat.PREFIX and flow.source in link.prefix6:
            return link
    return None


def _own(situation: Situation, flow: Flow) -> Link | None:
    """The link whose address alone is the source of the router's own traffic."""
    found = [
        name
        for name, state in situation.states.items()
        if flow.source in state.way(flow.family).addresses
    ]
    return situation.config.link(found[0]) if len(found) == 1 and not flow.interface else None


def _asked(config: Config, flow: Flow) -> Link | None:
    """The link among whose resolvers the destination is."""
    for link in config.links:
        if flow.destination in link.resolvers:
            return link
    return None


def _main_decides(config: Config, asked: Link) -> bool:
    """Whether a link's address as the source says nothing: main's default route gives it."""
    return config.own_traffic == "main" and asked.nat is not Nat.NONE


def _by_link(answer: Explanation, situation: Situation, link: Link, flow: Flow) -> Explanation:
    number = situation.ids[link.name]
    answer.link = link.name
    answer.mark = f"{situation.marks.mark(number):#010x}"
    answer.table = table_of(number)
    answer.source_address = _source(situation, link, flow)
    way = situation.states[link.name].way(flow.family)
    gateway = f" by gateway {way.gateway}" if way.gateway else ""
    answer.steps.append(
        f"mark {answer.mark} leads to table {answer.table}: {link.interface}{gateway}"
    )
    if not way.joined:
        answer.steps.append(f"link {link.name} is down ({way.why}): unreachable until it is back")
    elif way.condition is Condition.DRAINED:
        answer.steps.append(f"link {link.name} is drained, and well otherwise")
    elif not way.alive:
        answer.steps.append(f"link {link.name} is down ({way.why}), but in use all the same")
    if answer.source_address:
        answer.steps.append(f"nat {link.nat.value}: leaves with source {answer.source_address}")
    return answer


def _source(situation: Situation, link: Link, flow: Flow) -> str | None:
    """The source that the provider sees, or None when it cannot be told from here."""
    if link.nat is Nat.NONE or (link.prefix6 and flow.source in link.prefix6):
        return str(flow.source)
    if link.nat is Nat.SNAT:
        address = link.snat_address if flow.family == 4 else link.snat_address6
        if address:
            return str(address)
    interface = situation.facts.interface(link.interface)
    way = situation.states[link.name].way(flow.family)
    found = source_towards(way, interface)
    return str(found) if found else None


def parse_flow(words: list[str]) -> Flow:
    """SRC DST [PROTOCOL [SPORT [DPORT [INTERFACE]]]] as a flow. ValueError says what is legal."""
    if not 2 <= len(words) <= 6:
        raise ValueError("expected SRC DST [PROTOCOL [SPORT [DPORT [INTERFACE]]]]")
    source, destination = ip_address(words[0]), ip_address(words[1])
    if source.version != destination.version:
        raise ValueError(f"{source} and {destination} are not of the same family")
    protocol = protocol_number(words[2]) if len(words) > 2 else 6
    ports = [_port(word) for word in words[3:5]] + [0, 0]
    return Flow(source, destination, protocol, ports[0], ports[1], *words[5:])


def _port(word: str) -> int:
    number = _number(word)
    if number is None or number > 65535:
        raise ValueError(f"expected a port from 0 to 65535, got {word[:40]!r}")
    return number


def _number(word: str) -> int | None:
    """A short run of plain digits as a number."""
    return int(word) if word.isascii() and word.isdecimal() and len(word) < 10 else None


_PROTOCOLS = {
    "icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmpv6": 58, "ipv6-icmp": 58,
    "sctp": 132, "udplite": 136, "dccp": 33,
}  # fmt: skip


def protocol_number(word: str) -> int:
    """A protocol by name or by number, 0 to 255. ValueError says what is legal."""
    number = _PROTOCOLS.get(word.lower(), _number(word))
    if number is None or number > 255:
        raise ValueError(f"expected one of {', '.join(_PROTOCOLS)} or 0 to 255, got {word[:40]!r}")
    return number
