"""What the lab's clients and servers say to each other.

A request is 16 bytes: magic, the connection's number, and how long the answer shall be; in UDP
it is padded. An answer is that long and begins with the same magic and number. As every request
is a segment of its own, the witness can read the number from most of a connection's packets.
"""

from __future__ import annotations

import struct

from dataplane.lab.packetfilter import MAGIC

_REQUEST = struct.Struct("!IIQ")
_ANSWER = struct.Struct("!II")
REQUEST_BYTES = _REQUEST.size
ANSWER_HEADER_BYTES = _ANSWER.size
DATAGRAM_BYTES = 200
MOST_BYTES = 1 << 20
_FILLER = bytes(range(256)) * (MOST_BYTES // 256)


def request(number: int, answer_bytes: int) -> bytes:
    """A request for `answer_bytes`, from 8 to MOST_BYTES."""
    return _REQUEST.pack(MAGIC, number, answer_bytes)


def answer(asked: bytes) -> list[bytes | memoryview]:
    """The answer in pieces. ValueError when that was no request of ours."""
    magic, number, length = _REQUEST.unpack_from(asked)
    if magic != MAGIC or not ANSWER_HEADER_BYTES <= length <= MOST_BYTES:
        raise ValueError("not a request")
    body = memoryview(_FILLER)[: length - ANSWER_HEADER_BYTES]
    return [_ANSWER.pack(MAGIC, number), body]


def answers(header: bytes, number: int) -> bool:
    """Whether an answer that begins so is for connection `number`."""
    return header[:ANSWER_HEADER_BYTES] == _ANSWER.pack(MAGIC, number)


def number_of(header: bytes) -> int | None:
    """The connection that an answer which begins so is for; None if it is no answer of ours."""
    if len(header) < ANSWER_HEADER_BYTES:
        return None
    magic, number = _ANSWER.unpack_from(header)
    return int(number) if magic == MAGIC else None
