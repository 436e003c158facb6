"""Classic BPF for the witness: which packets that a provider receives are worth a look.

Passed on are packets with a source that the provider should not see, and those whose TCP or UDP
payload begins with the magic number of the lab's connections. All else stays in the kernel, so
a reader in Python keeps up with any rate.

The offsets count from the Ethernet header. Programs are lists of instructions with symbolic jumps,
resolved by `assemble`. Instruction values are those of linux/bpf_common.h and linux/filter.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

MAGIC = 0xE7E11A4B
SNAP_BYTES = 160

_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_LOAD_WORD_X, _LOAD_BYTE_X = 0x40, 0x50
_INDEX_IP_HEADER = 0xB1
_AND, _ADD_X, _SHIFT_RIGHT, _TO_X = 0x54, 0x0C, 0x74, 0x07
_JUMP, _EQUAL, _GREATER, _ANY_BIT = 0x05, 0x15, 0x25, 0x45
_RETURN = 0x06
_PACKET_TYPE = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
_OUTGOING, _OTHER_HOST = 4, 3
_ETHERNET = 14
_TCP, _UDP = 6, 17


@dataclass(frozen=True, slots=True)
class _Instruction:
    """One instruction. `yes` and `no` are labels, empty for the next one; `label` is its own."""

    code: int
    k: int = 0
    yes: str = ""
    no: str = ""
    label: str = ""


def build(rightful: Iterable[IPv4Network | IPv6Network]) -> bytes:
    """The program, as an array of struct sock_filter, for a link with these rightful sources."""
    prefixes = list(rightful)
    four = [prefix for prefix in prefixes if isinstance(prefix, IPv4Network)]
    six = [prefix for prefix in prefixes if isinstance(prefix, IPv6Network)]
    program = [
        _Instruction(_LOAD_WORD, _PACKET_TYPE),
        _Instruction(_EQUAL, _OUTGOING, yes="drop"),
        _Instruction(_EQUAL, _OTHER_HOST, yes="drop"),
        _Instruction(_LOAD_HALF, 12),
        _Instruction(_EQUAL, 0x0800, yes="ipv4"),
        _Instruction(_EQUAL, 0x86DD, yes="ipv6", no="drop"),
        *_sources4(four),
        *_payload4(),
        *_sources6(six),
        *_payload6(),
        _Instruction(_RETURN, SNAP_BYTES, label="pass"),
        _Instruction(_RETURN, 0, label="drop"),
    ]
    return assemble(program)


def _sources4(rightful: Sequence[IPv4Network]) -> list[_Instruction]:
    program = [_Instruction(_LOAD_WORD, _ETHERNET + 12, label="ipv4")]
    # Who has no address yet says 0.0.0.0, as IGMP does when an interface comes up.
    for prefix in (*rightful, IPv4Network("0.0.0.0/32")):
        program += [
            _Instruction(_LOAD_WORD, _ETHERNET + 12),
            _Instruction(_AND, int(prefix.netmask)),
            _Instruction(_EQUAL, int(prefix.network_address), yes="payload4"),
        ]
    return [*program, _Instruction(_JUMP, 0, yes="pass")]


def _payload4() -> list[_Instruction]:
    """Only a first fragment has a transport header."""
    return [
        _Instruction(_LOAD_HALF, _ETHERNET + 6, label="payload4"),
        _Instruction(_ANY_BIT, 0x1FFF, yes="drop"),
        _Instruction(_INDEX_IP_HEADER, _ETHERNET),
        _Instruction(_LOAD_BYTE, _ETHERNET + 9),
        _Instruction(_EQUAL, _UDP, yes="udp4"),
        _Instruction(_EQUAL, _TCP, no="drop"),
        _Instruction(_LOAD_BYTE_X, _ETHERNET + 12),
        *_add_tcp_header(),
        _Instruction(_LOAD_WORD_X, _ETHERNET),
        _Instruction(_EQUAL, MAGIC, yes="pass", no="drop"),
        _Instruction(_LOAD_WORD_X, _ETHERNET + 8, label="udp4"),
        _Instruction(_EQUAL, MAGIC, yes="pass", no="drop"),
    ]


def _add_tcp_header() -> list[_Instruction]:
    """X += the TCP header's length; its data offset, in the high half of A, counts words."""
    return [
        _Instruction(_AND, 0xF0),
        _Instruction(_SHIFT_RIGHT, 2),
        _Instruction(_ADD_X),
        _Instruction(_TO_X),
    ]


def _sources6(rightful: Sequence[IPv6Network]) -> list[_Instruction]:
    """Link-local and unspecified sources are neighbour discovery's, which every link has."""
    own = [IPv6Network("fe80::/10"), IPv6Network("::/128")]
    program = [_Instruction(_LOAD_WORD, _ETHERNET + 8, label="ipv6")]
    for number, prefix in enumerate([*own, *rightful]):
        masks, values = _words(prefix.netmask.packed), _words(prefix.network_address.packed)
        hit = "drop" if number < len(own) else "payload6"
        compared = [(n, mask, values[n]) for n, mask in enumerate(masks) if mask or n == 0]
        for position, (n, mask, value) in enumerate(compared):
            last = position == len(compared) - 1
            program += [
                _Instruction(_LOAD_WORD, _ETHERNET + 8 + 4 * n, label=f"six{number}-{position}"),
                _Instruction(_AND, mask),
                _Instruction(_EQUAL, value, yes=hit if last else "", no=f"six{number + 1}-0"),
            ]
    return [*program, _Instruction(_JUMP, 0, yes="pass", label=f"six{len(rightful) + 2}-0")]


def _payload6() -> list[_Instruction]:
    """The lab's own connections have no extension headers."""
    return [
        _Instruction(_LOAD_BYTE, _ETHERNET + 6, label="payload6"),
        _Instruction(_EQUAL, _UDP, yes="udp6"),
        _Instruction(_EQUAL, _TCP, no="drop"),
        _Instruction(0x01, 40),  # X = 40
        _Instruction(_LOAD_BYTE_X, _ETHERNET + 12),
        *_add_tcp_header(),
        _Instruction(_LOAD_WORD_X, _ETHERNET),
        _Instruction(_EQUAL, MAGIC, yes="pass", no="drop"),
        _Instruction(_LOAD_WORD, _ETHERNET + 48, label="udp6"),
        _Instruction(_EQUAL, MAGIC, yes="pass", no="drop"),
    ]


def _words(packed: bytes) -> tuple[int, ...]:
    return struct.unpack("!4I", packed)


def assemble(program: Sequence[_Instruction]) -> bytes:
    """Resolves the labels. Jumps go forwards, by at most 255 instructions (ValueError if more)."""
    places = {step.label: place for place, step in enumerate(program) if step.label}
    packed = bytearray()
    for place, step in enumerate(program):
        yes = places[step.yes] - place - 1 if step.yes else 0
        no = places[step.no] - place - 1 if step.no else 0
        if step.code == _JUMP:
            packed += struct.pack("=HBBI", step.code, 0, 0, yes)
            continue
        if not (0 <= yes <= 255 and 0 <= no <= 255):
            raise ValueError("too many rightful sources for one filter")
        packed += struct.pack("=HBBI", step.code, yes, no, step.k)
    return bytes(packed)
