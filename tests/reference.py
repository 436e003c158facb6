"""The oracle: what a packet's decision is, in plain Python, slowly and from the documents alone.

It shares no code with cext and none with the compiler in dataplane/decide/program.py: packets are
read by slicing, hashes come from the `xxhash` package, lists are searched one range at a time.
`scapy_flow` is a third opinion on packets that are well formed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import xxhash
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import NoPayload, Packet

from dataplane.config.marks import Marks
from dataplane.config.model import Fields
from dataplane.decide.program import AddressRange, ProgramRule

PORTS = {6, 17, 33, 132, 136}
EXTENSIONS = {0, 43, 44, 51, 60, 135}
MOST_EXTENSIONS = 12


class Undecided(Exception):  # noqa: N818 - it is an outcome, not an error
    """There is no decision; the argument is the named reason."""


@dataclass(frozen=True)
class Flow:
    """Addresses of 4 or 16 bytes; ports are 0 where they are not to be hashed."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int = 0
    destination_port: int = 0
    fragment: bool = False


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
    return Flow(
        flow.source, flow.destination, flow.protocol, _number(payload[:2]), _number(payload[2:4])
    )


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
    flow = Flow(packet[12:16], packet[16:20], packet[9], fragment=bool(more or offset))
    return _with_ports(flow, packet[words * 4 : total])


def _read6(packet: bytes) -> Flow:
    if len(packet) < 40:
        raise Undecided("short-header")
    length = _number(packet[4:6])
    rest = packet[40 : 40 + length] if length else packet[40:]
    source, destination, kind = packet[8:24], packet[24:40], packet[6]
    walked = 0
    while kind in EXTENSIONS:
        if walked == MOST_EXTENSIONS:
            raise Undecided("many-extensions")
        if len(rest) < 8:
            raise Undecided("short-extension")
        if kind == 44:
            word = _number(rest[2:4])
            if word >> 3 or word & 1:
                return Flow(source, destination, rest[0], fragment=True)
            size = 8
        elif kind == 51:
            size = 4 * (rest[1] + 2)
        else:
            size = 8 * (rest[1] + 1)
        if len(rest) < size:
            raise Undecided("short-extension")
        kind, rest = rest[0], rest[size:]
        walked += 1
    return _with_ports(Flow(source, destination, kind), rest)


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


@dataclass(frozen=True)
class Policy:
    """What `compile_program` was given."""

    marks: Marks
    key: int
    rules: Sequence[ProgramRule]
    lists: Mapping[str, Sequence[AddressRange]]

    def outcome(self, packet: bytes, mark: int = 0) -> Outcome:
        """The decision for the packet."""
        try:
            flow = read(packet)
        except Undecided as why:
            return Outcome(why.args[0], 0, mark, -1, 0, 0, None)
        return self.flow_outcome(flow, mark)

    def flow_outcome(self, flow: Flow, mark: int = 0) -> Outcome:
        """The decision for any packet of the flow."""
        for number, rule in enumerate(self.rules):
            if rule.source and not self._listed(rule.source, flow.source):
                continue
            if rule.destination and not self._listed(rule.destination, flow.destination):
                continue
            if rule.decision is not None:
                return self._decided(rule.decision, mark, number, 0, 0, flow)
            table = rule.tables.get(4 if len(flow.source) == 4 else 6)
            if table is None:
                return Outcome("no-links", 0, mark, number, 0, 0, flow)
            digest = xxhash.xxh3_64_intdigest(
                hashed_bytes(flow, rule.fields, rule.symmetric), self.key
            )
            slot = digest // 2**48
            return self._decided(table[slot], mark, number, digest, slot, flow)
        return Outcome("no-rule", 0, mark, -1, 0, 0, flow)

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
        )


def scapy_flow(packet: bytes) -> Flow:
    """How scapy reads a well-formed packet."""
    layer: Packet = IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)
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
        return Flow(source, destination, protocol, fragment=fragment)
    return Flow(source, destination, protocol, layer.sport, layer.dport)
