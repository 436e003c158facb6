"""The first datagram of a QUIC connection (RFC 9000, RFC 9001): version 1, a ClientHello within.

Its key is made of what stands in the datagram itself, so everybody who sees it can read it. AES is
written out here because nothing that the tests need otherwise has it.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

_SALT = bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a")
_VERSION = 1
_LEAST_DATAGRAM = 1200
_TAG_BYTES = 16


def initial(crypto: bytes, connection: bytes, *, source: bytes = b"", number: int = 0) -> bytes:
    """One datagram whose CRYPTO frame has these bytes; `connection` is the id that it is sent to,
    eight bytes at least."""
    frames = b"\x06\x00" + _varint(len(crypto)) + crypto
    opening = struct.pack("!BI", 0xC3, _VERSION)
    opening += bytes([len(connection)]) + connection + bytes([len(source)]) + source + b"\x00"
    room = _LEAST_DATAGRAM - len(opening) - 2 - 4 - _TAG_BYTES
    frames += bytes(max(0, room - len(frames)))
    return protect(opening, frames, connection, number)


def protect(opening: bytes, frames: bytes, connection: bytes, number: int) -> bytes:
    """The long header up to its length field, and the frames behind it, as they are sent."""
    key, nonce, veil = _keys(connection)
    length = struct.pack("!H", 0x4000 | 4 + len(frames) + _TAG_BYTES)
    header = opening + length + struct.pack("!I", number)
    nonce = bytes(a ^ b for a, b in zip(nonce, number.to_bytes(12, "big"), strict=True))
    sealed = _seal(key, nonce, frames, header)
    mask = Aes(veil).encrypt(sealed[:16])
    hidden = bytes(a ^ b for a, b in zip(header[-4:], mask[1:5], strict=True))
    return bytes([header[0] ^ mask[0] & 0x0F]) + header[1:-4] + hidden + sealed


def _keys(connection: bytes) -> tuple[bytes, bytes, bytes]:
    secret = hmac.digest(_SALT, connection, "sha256")
    client = _expand(secret, b"client in", 32)
    return (
        _expand(client, b"quic key", 16),
        _expand(client, b"quic iv", 12),
        _expand(client, b"quic hp", 16),
    )


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of TLS 1.3, for what fits one hash."""
    label = b"tls13 " + label
    about = struct.pack("!H", length) + bytes([len(label)]) + label + b"\x00"
    return hmac.new(secret, about + b"\x01", hashlib.sha256).digest()[:length]


def _varint(number: int) -> bytes:
    return struct.pack("!H", 0x4000 | number)


class Aes:
    """AES with a key of 128 bits (FIPS 197), one block at a time."""

    def __init__(self, key: bytes) -> None:
        words = [list(key[at : at + 4]) for at in range(0, 16, 4)]
        factor = 1
        for at in range(4, 44):
            word = words[-1]
            if at % 4 == 0:
                word = [_SBOX[value] for value in word[1:] + word[:1]]
                word[0] ^= factor
                factor = _double(factor)
            words.append([a ^ b for a, b in zip(words[-4], word, strict=True)])
        self._rounds = [b"".join(map(bytes, words[at : at + 4])) for at in range(0, 44, 4)]

    def encrypt(self, block: bytes) -> bytes:
        """One block of 16 bytes."""
        state = [a ^ b for a, b in zip(block, self._rounds[0], strict=True)]
        for number, key in enumerate(self._rounds[1:], 1):
            state = [_SBOX[state[(at + at % 4 * 4) % 16]] for at in range(16)]
            if number < 10:
                state = [value for at in range(0, 16, 4) for value in _mixed(state[at : at + 4])]
            state = [a ^ b for a, b in zip(state, key, strict=True)]
        return bytes(state)


def _double(value: int) -> int:
    return value << 1 ^ (0x11B if value & 0x80 else 0)


def _mixed(column: list[int]) -> list[int]:
    every = column[0] ^ column[1] ^ column[2] ^ column[3]
    return [column[at] ^ every ^ _double(column[at] ^ column[(at + 1) % 4]) for at in range(4)]


def _sbox() -> list[int]:
    """Inverses in GF(2^8) by the powers of 3, each turned as FIPS 197 says."""
    powers = [1]
    while len(powers) < 255:
        powers.append(powers[-1] ^ _double(powers[-1]))
    box = [0x63] * 256
    for at, value in enumerate(powers):
        inverse = powers[-at % 255]
        turned = inverse
        for shift in range(1, 5):
            turned ^= (inverse << shift | inverse >> 8 - shift) & 0xFF
        box[value] = turned ^ 0x63
    return box


_SBOX = _sbox()


def _seal(key: bytes, nonce: bytes, plain: bytes, header: bytes) -> bytes:
    """AES-GCM (NIST SP 800-38D): the ciphertext, and its tag behind it."""
    cipher = Aes(key)
    counters = (nonce + struct.pack("!I", 2 + at) for at in range(-(-len(plain) // 16)))
    stream = b"".join(cipher.encrypt(counter) for counter in counters)
    sealed = bytes(a ^ b for a, b in zip(plain, stream, strict=False))
    factor = int.from_bytes(cipher.encrypt(bytes(16)), "big")
    lengths = struct.pack("!QQ", 8 * len(header), 8 * len(sealed))
    sum_ = 0
    for part in (header, sealed, lengths):
        for at in range(0, len(part), 16):
            block = part[at : at + 16].ljust(16, b"\0")
            sum_ = _product(sum_ ^ int.from_bytes(block, "big"), factor)
    last = int.from_bytes(cipher.encrypt(nonce + struct.pack("!I", 1)), "big")
    return sealed + (sum_ ^ last).to_bytes(16, "big")


def _product(one: int, other: int) -> int:
    """In GF(2^128), bits in GCM's order."""
    product = 0
    for bit in range(127, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (0xE1 << 120 if other & 1 else 0)
    return product
