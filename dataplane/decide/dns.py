"""DNS as it passes by: which answers may be believed, and what they say of the name asked for.

An answer counts only if its question was seen, if it comes from the server that was asked to the
port that asked, and if identifier and question are the same; each question counts once. What
strangers send is read here with bounds for everything, since the name of each record may lead
through all the others.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

MOST_QUESTIONS = 4096
QUESTION_S = 10.0

Address = IPv4Address | IPv6Address
Labels = Callable[[str], tuple[str, ...]]

_PORT = 53
_UDP = 17
_HEADER = struct.Struct("!HHHHHH")
_QUESTION = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_IS_ANSWER, _OPCODE, _CUT_OFF, _CODE = 0x8000, 0x7800, 0x0200, 0x000F
_A, _CNAME, _AAAA = 1, 5, 28
_INTERNET = 1
_POINTER = 0xC0
_MOST_NAME = 255
# Of one answer: more records, aliases and labels than any honest one has.
_MOST_RECORDS = 128
_MOST_ALIASES = 16
_MOST_STEPS = 512
# More addresses of one name are of no use to anybody.
_MOST_ADDRESSES = 16

# Where an answer from the Internet leads: not to hosts of ours, whatever a name's owner claims.
_NOT_PUBLIC = tuple(
    IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"),
    )
)
_PUBLIC6 = (IPv6Network("2000::/3"), IPv6Network("64:ff9b::/96"))


class Datagram(NamedTuple):
    """A UDP datagram: packed addresses, ports and payload."""

    source: bytes
    source_port: int
    target: bytes
    target_port: int
    payload: bytes


class Answer(NamedTuple):
    """What an answer teaches: these addresses are what the labels say, for so long."""

    labels: tuple[str, ...]
    addresses: tuple[Address, ...]
    ttl_s: int


class _Asked(NamedTuple):
    """Who asked whom for what. The question is in lower case, whose bytes no length can have."""

    client: bytes
    client_port: int
    server: bytes
    number: int
    question: bytes


class Questions:
    """The questions that are not answered yet, as far as their names are of interest."""

    def __init__(self, labels: Labels, most: int = MOST_QUESTIONS) -> None:
        """`labels` says of a name what its addresses are known as: nothing, if nobody asks."""
        self._labels = labels
        self._most = most
        self._open: OrderedDict[_Asked, float] = OrderedDict()
        self.asked = 0
        self.answered = 0
        self.ignored = 0
        """Answers for names of interest that taught nothing."""

    def __len__(self) -> int:
        return len(self._open)

    def take(self, labels: Labels) -> None:
        """Other names are of interest now. No question that was seen before counts."""
        self._labels = labels
        self._open.clear()

    def question(self, packet: bytes, now_s: float) -> None:
        """A packet, from its IP header on, that was sent to a name server."""
        datagram = read_datagram(packet)
        if datagram is None or datagram.target_port != _PORT:
            return
        said = _read_question(datagram.payload)
        if said is None or said.flags & _IS_ANSWER or not self._labels(said.name):
            return
        asked = _Asked(
            datagram.source, datagram.source_port, datagram.target, said.number, said.question
        )
        self._open[asked] = now_s + QUESTION_S
        self._open.move_to_end(asked)
        self.asked += 1
        while self._open and (
            len(self._open) > self._most or next(iter(self._open.values())) <= now_s
        ):
            self._open.popitem(last=False)

    def answer(self, packet: bytes, now_s: float) -> Answer | None:
        """A packet, from its IP header on, that a name server may have sent."""
        datagram = read_datagram(packet)
        if datagram is None or datagram.source_port != _PORT:
            return None
        said = _read_question(datagram.payload)
        if said is None or not said.flags & _IS_ANSWER:
            return None
        labels = self._labels(said.name)
        if not labels:
            return None
        asked = _Asked(
            datagram.target, datagram.target_port, datagram.source, said.number, said.question
        )
        if self._open.pop(asked, 0.0) <= now_s:
            self.ignored += 1
            return None
        found = _addresses(datagram.payload, said)
        if found is None:
            self.ignored += 1
            return None
        self.answered += 1
        return Answer(labels, *found)


def read_datagram(packet: bytes) -> Datagram | None:
    """The UDP datagram of a packet; None if it has none, or not all of it."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        at = (packet[0] & 0xF) * 4
        if len(packet) < 20 or at < 20 or packet[9] != _UDP:
            return None
        if int.from_bytes(packet[6:8], "big") & 0x3FFF:  # a fragment
            return None
        source, target = packet[12:16], packet[16:20]
    elif version == 6:
        at = 40
        # DNS with extension headers is nobody's.
        if len(packet) < 40 or packet[6] != _UDP:
            return None
        source, target = packet[8:24], packet[24:40]
    else:
        return None
    if len(packet) < at + 8:
        return None
    source_port, target_port, length = struct.unpack_from("!HHH", packet, at)
    if length < 8 or at + length > len(packet):
        return None
    return Datagram(source, source_port, target, target_port, packet[at + 8 : at + length])


def public(address: Address) -> bool:
    """Whether a host of the Internet may have the address."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC)
    return any(address in network for network in _PUBLIC6)


class _Question(NamedTuple):
    """A message up to the end of its only question, which is for addresses."""

    number: int
    flags: int
    answers: int
    name: str
    owner: bytes
    kind: int
    question: bytes
    end: int


def _read_question(message: bytes) -> _Question | None:
    """None for whatever is not one question for the addresses of one name."""
    if len(message) < _HEADER.size:
        return None
    number, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if questions != 1 or flags & _OPCODE:
        return None
    try:
        owner, end = _Names(message).read(_HEADER.size)
        kind, scope = _QUESTION.unpack_from(message, end)
        name = _text(owner)
    except (ValueError, struct.error):
        return None
    if kind not in (_A, _AAAA) or scope != _INTERNET:
        return None
    question = owner + message[end : end + _QUESTION.size]
    return _Question(number, flags, answers, name, owner, kind, question, end + _QUESTION.size)


def _addresses(message: bytes, asked: _Question) -> tuple[tuple[Address, ...], int] | None:
    """Where the asked name leads, through its aliases, and for how long. None: nowhere."""
    if asked.flags & (_CUT_OFF | _CODE):
        return None
    aliases: dict[bytes, tuple[bytes, int]] = {}
    found: dict[bytes, list[tuple[Address, int]]] = {}
    names = _Names(message)
    at = asked.end
    try:
        for _ in range(min(asked.answers, _MOST_RECORDS)):
            owner, at = names.read(at)
            kind, scope, ttl_s, length = _RECORD.unpack_from(message, at)
            at += _RECORD.size
            data = message[at : at + length]
            if len(data) < length:
                return None
            if scope != _INTERNET:
                pass
            elif kind == _CNAME:
                target, end = names.read(at)
                if end != at + length:
                    return None
                aliases[owner] = target, ttl_s
            elif kind == asked.kind:
                address = IPv4Address(data) if kind == _A else IPv6Address(data)
                found.setdefault(owner, []).append((address, ttl_s))
            at += length
    except (ValueError, struct.error):
        return None
    owner, times = asked.owner, list[int]()
    while owner in aliases and len(times) < _MOST_ALIASES:
        owner, ttl_s = aliases[owner]
        times.append(ttl_s)
    last = {address: ttl_s for address, ttl_s in found.get(owner, ()) if public(address)}
    if not last:
        return None
    return tuple(last)[:_MOST_ADDRESSES], min([*times, *last.values()])


class _Names:
    """Reads the names of one message, with a bound for all of them. ValueError: there is none."""

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._steps = _MOST_STEPS

    def read(self, at: int) -> tuple[bytes, int]:
        """The name in lower case, as labels behind their lengths, and where it ends."""
        message, labels, length, end = self._message, [], 1, 0
        while True:
            self._steps -= 1
            if self._steps < 0 or at >= len(message):
                raise ValueError("too long, or cut off")
            size = message[at]
            if size >= _POINTER:
                if at + 1 >= len(message):
                    raise ValueError("cut off")
                end = end or at + 2
                # Only back: so it comes to an end.
                target = (size & ~_POINTER) << 8 | message[at + 1]
                if target >= at:
                    raise ValueError("leads nowhere")
                at = target
            elif size > 63 or at + 1 + size > len(message):
                raise ValueError("no label")
            else:
                labels.append(message[at : at + 1 + size])
                length += 1 + size
                at += 1 + size
                if not size:
                    return b"".join(labels).lower(), end or at
                if length > _MOST_NAME:
                    raise ValueError("too long")


def _text(name: bytes) -> str:
    """A name as people write it. ValueError where the text would be another name's."""
    labels, at = [], 0
    while name[at]:
        label = name[at + 1 : at + 1 + name[at]]
        if b"." in label:
            raise ValueError("a dot within a label")
        labels.append(label.decode("ascii"))
        at += 1 + name[at]
    return ".".join(labels)
