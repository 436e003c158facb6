"""The oracle: what a packet's decision is, in plain Python, slowly and from the documents alone.

It shares no code with cext and none with the compiler in dataplane/decide/program.py: packets are
read by slicing, hashes come from the `xxhash` package, rules are tried one after the other, lists
are searched one range at a time. `scapy_flow` is a third opinion on packets that are well formed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import xxhash
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import NoPayload, Packet

from dataplane.config.marks import Marks
from dataplane.config.model import Fields, Ports, Sticky
from dataplane.decide.program import Family, ProgramRule, Slots

PORTS = {6, 17, 33, 132, 136}
EXTENSIONS = {0, 43, 44, 51, 60, 135}
MOST_EXTENSIONS = 12


class Undecided(Exception):  # noqa: N818 - it is an outcome, not an error
    """There is no decision; the argument is the named reason."""


@dataclass(frozen=True)
class Flow:
    """Addresses of 4 or 16 bytes; ports are 0 where they are not to be hashed. `interface` is not
    read from the packet."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    fragment: bool = False
    dscp: int = 0
    interface: int = 0

    @property
    def family(self) -> Family:
        return 4 if len(self.source) == 4 else 6


@dataclass(frozen=True)
class Outcome:
    """What `Classifier.classify` must say."""

    reason: str
    decision: int
    mark: int
    rule: int
    hash: int
    slot: int
    flow: Flow | None


def read(packet: bytes) -> Flow:
    """The flow of a packet; raises Undecided."""
    if not packet:
        raise Undecided("short-header")
    version = packet[0] // 16
    if version == 4:
        return _read4(packet)
    if version == 6:
        return _read6(packet)
    raise Undecided("not-ip")


def _number(octets: bytes) -> int:
    return int.from_bytes(octets, "big")


def _with_ports(flow: Flow, payload: bytes) -> Flow:
    if flow.fragment or flow.protocol not in PORTS:
        return flow
    if len(payload) < 4:
        raise Undecided("short-ports")
    return replace(flow, source_port=_number(payload[:2]), destination_port=_number(payload[2:4]))


def _read4(packet: bytes) -> Flow:
    if len(packet) < 20:
        raise Undecided("short-header")
    words = packet[0] % 16
    if words < 5:
        raise Undecided("bad-header-length")
    total = _number(packet[2:4]) or max(len(packet), 65536)  # 0: more than can be said
    if total < words * 4:
        raise Undecided("bad-total-length")
    if len(packet) < words * 4:
        raise Undecided("short-header")
    flags = _number(packet[6:8])
    more, offset = flags >> 13 & 1, flags % (1 << 13)
    flow = Flow(
        packet[12:16], packet[16:20], packet[9], fragment=bool(more or offset), dscp=packet[1] // 4
    )
    return _with_ports(flow, packet[words * 4 : total])


def _read6(packet: bytes) -> Flow:
    if len(packet) < 40:
        raise Undecided("short-header")
    length = _number(packet[4:6])
    rest = packet[40 : 40 + length] if length else packet[40:]
    source, destination, kind = packet[8:24], packet[24:40], packet[6]
    dscp = _number(packet[:4]) >> 22 & 63
    walked = 0
    while kind in EXTENSIONS:
        if walked == MOST_EXTENSIONS:
            raise Undecided("many-extensions")
        if len(rest) < 8:
            raise Undecided("short-extension")
        if kind == 44:
            word = _number(rest[2:4])
            if word >> 3 or word & 1:
                return Flow(source, destination, rest[0], fragment=True, dscp=dscp)
            size = 8
        elif kind == 51:
            size = 4 * (rest[1] + 2)
        else:
            size = 8 * (rest[1] + 1)
        if len(rest) < size:
            raise Undecided("short-extension")
        kind, rest = rest[0], rest[size:]
        walked += 1
    return _with_ports(Flow(source, destination, kind, dscp=dscp), rest)


def hashed_bytes(flow: Flow, fields: Fields, symmetric: bool) -> bytes:
    """What goes into the hash: the chosen fields in network order."""
    ends = [(flow.source, flow.source_port), (flow.destination, flow.destination_port)]
    if symmetric:
        ends.sort()
    (source, source_port), (destination, destination_port) = ends
    first = {"address": source, "port": source_port.to_bytes(2, "big")}
    second = {"address": destination, "port": destination_port.to_bytes(2, "big")}
    parts = {
        Fields.BOTH_ADDRESSES: (first["address"], second["address"]),
        Fields.BOTH_PORTS: (first["port"], second["port"]),
        Fields.BOTH_ADDRESSES_AND_PORTS: (
            first["address"],
            second["address"],
            first["port"],
            second["port"],
        ),
        Fields.SRC_ADDRESS: (first["address"],),
        Fields.SRC_PORT: (first["port"],),
        Fields.SRC_ADDRESS_AND_PORT: (first["address"], first["port"]),
        Fields.DST_ADDRESS: (second["address"],),
        Fields.DST_PORT: (second["port"],),
        Fields.DST_ADDRESS_AND_PORT: (second["address"], second["port"]),
    }
    return b"".join(parts[fields])


class Span(NamedTuple):
    """Addresses of one family, as numbers, both ends included."""

    family: Family
    first: int
    last: int


@dataclass(frozen=True)
class Taught:
    """Something learned: who is there, and the lists or applications that hold it."""

    kind: Literal["address", "server", "client"]
    address: bytes
    members: tuple[str, ...]
    protocol: int = 0
    port: int = 0


@dataclass(frozen=True)
class Policy:
    """What `compile_program` was given, with what the lists hold and what was learned."""

    marks: Marks
    key: int
    rules: Sequence[ProgramRule]
    lists: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    applications: Sequence[str] = ()
    taught: Sequence[Taught] = ()

    def outcome(self, packet: bytes, mark: int = 0, interface: int = 0) -> Outcome:
        """The decision for the packet."""
        try:
            flow = read(packet)
        except Undecided as why:
            return Outcome(why.args[0], 0, mark, -1, 0, 0, None)
        return self.flow_outcome(replace(flow, interface=interface), mark)

    def flow_outcome(self, flow: Flow, mark: int = 0) -> Outcome:
        """The decision for any packet of the flow; "drawn" where it is left to chance or turn."""
        for number, rule in enumerate(self.rules):
            if self.wrong(rule, flow):
                continue
            action = rule.actions[flow.family]
            if isinstance(action, int):
                return self._decided(action, mark, number, 0, 0, flow)
            if isinstance(action, Slots):
                digest = xxhash.xxh3_64_intdigest(
                    hashed_bytes(flow, action.fields, action.symmetric), self.key
                )
                slot = digest // 2**48
                return self._decided(action.table[slot], mark, number, digest, slot, flow)
            return Outcome("drawn", 0, mark, number, 0, 0, flow)
        return Outcome("no-rule", 0, mark, -1, 0, 0, flow)

    def wrong(self, rule: ProgramRule, flow: Flow) -> set[str]:
        """The names of the rule's conditions that do not hold."""
        held = {
            "family": flow.family in rule.actions,
            "in": not rule.interfaces
            or (flow.interface != 0 and flow.interface in rule.interfaces),
            "source": not rule.source or self._listed(rule.source, flow.source),
            "destination": not rule.destination or self._listed(rule.destination, flow.destination),
            "protocol": not rule.protocols or flow.protocol in rule.protocols,
            "source_port": _port_held(rule.source_ports, flow, flow.source_port),
            "destination_port": _port_held(rule.destination_ports, flow, flow.destination_port),
            "dscp": not rule.dscp or flow.dscp in rule.dscp,
            "application": not rule.applications or self._recognised(rule.applications, flow),
        }
        return {name for name, holds in held.items() if not holds}

    def _decided(
        self, decision: int, mark: int, rule: int, digest: int, slot: int, flow: Flow
    ) -> Outcome:
        mark = mark & self.marks.others | self.marks.mark(decision)
        return Outcome("decided", decision, mark, rule, digest, slot, flow)

    def _listed(self, names: Sequence[str], address: bytes) -> bool:
        family, number = 4 if len(address) == 4 else 6, _number(address)
        return any(
            span.family == family and span.first <= number <= span.last
            for name in names
            for span in self.lists[name]
        ) or any(
            taught.kind == "address" and taught.address == address and name in taught.members
            for name in names
            for taught in self.taught
        )

    def _recognised(self, names: Sequence[str], flow: Flow) -> bool:
        ends = {
            "server": (flow.destination, flow.protocol, flow.destination_port),
            "client": (flow.source, flow.protocol, flow.source_port),
            "address": (flow.destination, 0, 0),
        }
        return any(
            ends.get(taught.kind) == (taught.address, taught.protocol, taught.port)
            and not set(names).isdisjoint(taught.members)
            for taught in self.taught
        )


def _port_held(ranges: Sequence[Ports], flow: Flow, port: int) -> bool:
    if not ranges:
        return True
    if flow.fragment or flow.protocol not in PORTS:
        return False
    return any(ports.first <= port <= ports.last for ports in ranges)


class Remembering:
    """What a worker remembers, without bounds: for each flow the decisions that are right.

    A decision is right where the method can make it, or, and then it alone, where it is remembered
    and allowed: for two seconds for the same connection, and for the rule's own time for the same
    pair or source. Whoever asks says what came of it.
    """

    def __init__(self) -> None:
        self._recent: dict[object, tuple[int, int]] = {}
        self._sticky: dict[object, tuple[int, int]] = {}

    def right(self, policy: Policy, flow: Flow, now_ms: int) -> set[int]:
        outcome = policy.flow_outcome(flow)
        if outcome.rule < 0:
            return {0}
        rule = policy.rules[outcome.rule]
        action = rule.actions[flow.family]
        if isinstance(action, int):
            able = {action}
        elif isinstance(action, Slots):
            able = set(action.table)
        else:
            able = set(action.weights)
        allowed = rule.allowed.get(flow.family, able)
        for kept, whose, lasts_ms in (
            (self._recent, _connection(rule, flow), 2000 if rule.remember else 0),
            (self._sticky, _peers(rule, flow), rule.sticky_ms if rule.sticky else 0),
        ):
            decision, when = kept.get(whose, (0, 0))
            if decision in allowed and now_ms - when < lasts_ms:
                return {decision}
        return {outcome.decision} if outcome.decision else able

    def keep(self, policy: Policy, flow: Flow, now_ms: int, rule: int, decision: int) -> None:
        chosen = policy.rules[rule]
        if chosen.remember:
            self._recent[_connection(chosen, flow)] = decision, now_ms
        if chosen.sticky:
            self._sticky[_peers(chosen, flow)] = decision, now_ms


def _connection(rule: ProgramRule, flow: Flow) -> object:
    ports = flow.source_port, flow.destination_port
    return rule.group, flow.source, flow.destination, flow.protocol, ports


def _peers(rule: ProgramRule, flow: Flow) -> object:
    return rule.group, flow.source, flow.destination if rule.sticky is Sticky.PAIR else None


def scapy_flow(packet: bytes) -> Flow:
    """How scapy reads a well-formed packet."""
    layer: Packet = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
    dscp = (layer.tos if isinstance(layer, IP) else layer.tc) >> 2
    if isinstance(layer, IP):
        source, destination = packet[12:16], packet[16:20]
        fragment = bool(layer.flags.MF or layer.frag)
        protocol = layer.proto
        layer = layer.payload
    else:
        source, destination = packet[8:24], packet[24:40]
        fragment, protocol = False, layer.nh
        layer = layer.payload
        while "IPv6ExtHdr" in type(layer).__name__:
            protocol = layer.nh
            if isinstance(layer, IPv6ExtHdrFragment) and (layer.m or layer.offset):
                fragment = True
                break
            layer = layer.payload
    if fragment or protocol not in PORTS or isinstance(layer, NoPayload):
        return Flow(source, destination, protocol, fragment=fragment, dscp=dscp)
    return Flow(source, destination, protocol, layer.sport, layer.dport, dscp=dscp)
