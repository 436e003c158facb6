"""The bytes of a list's file → addresses and names, and what is wrong in it.

A million lines are common, and a file may be 100 MB: it is read in portions, addresses are packed
at once, and no object is kept for a line.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from operator import and_, or_
from struct import unpack

from dataplane.config import routeros_list, spans, units
from dataplane.config.model import Addresses

MOST_FAULTS = 20
MOST_LINE_BYTES = 4096

_PORTION_BYTES = 1 << 17
_MOST_PORTION_BYTES = _PORTION_BYTES + MOST_LINE_BYTES + 1
_LOW_HALF = (1 << 64) - 1
_TOO_LONG = f"expected lines of at most {MOST_LINE_BYTES} bytes"

# What some editors put at the beginning of UTF-8.
_MARK = b"\xef\xbb\xbf"
# The parts of an IPv4 prefix as they are written, and what they stand for: numbers with zeros in
# front are in neither, since some read them as octal.
_OCTETS = {str(number).encode(): number for number in range(256)}
_HOST_BITS = {str(length).encode(): (1 << (32 - length)) - 1 for length in range(33)}
_HOST_BITS6 = {str(length).encode(): (1 << (128 - length)) - 1 for length in range(129)}
_MASKS = {host: host ^ 0xFFFFFFFF for host in _HOST_BITS.values()}
_BLANKS = bytes.maketrans(b"./\n", b"   ")
_DIGITS = b"0123456789"
_SHAPE = b".../\n"
_COMMENT = re.compile(rb"(?<![ \t])[ \t]*+[#;][^\n]*")
_ZEROS = (b"0",) * 8
_HALF_BITS = {str(length).encode(): (1 << (64 - length)) - 1 for length in range(65)}
_SHORT6 = re.compile(
    rb"^([0-9a-fA-F]{1,4})" + 3 * rb"(?::([0-9a-fA-F]{1,4}))?+" + rb"::/([0-9]+)$", re.MULTILINE
)
_HEX = re.compile(rb"[0-9a-fA-F:]+")
# What is left of a simple command; no command of a script is of these characters alone.
_BARE = re.compile(rb"(?!add$)[0-9a-fA-F.:/]+")


@dataclass(slots=True)
class Contents:
    """What a file says. `faults` are lines, counted from 1, and messages; `more` were left out."""

    addresses: Addresses
    names: tuple[str, ...]
    faults: list[tuple[int, str]]
    more: int


def parse(data: bytes) -> Contents:
    """Read a list: one prefix, range, address or name a line, or a RouterOS script."""
    reader = _Reader(data)
    for first, portion in _portions(data):
        reader.take(first, portion)
    return reader.contents()


def _portions(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Whole lines, each with a newline behind it, and the number of the first of them."""
    start = len(_MARK) if data.startswith(_MARK) else 0
    line = 1
    while start < len(data):
        end = data.find(b"\n", min(start + _PORTION_BYTES, len(data) - 1)) + 1
        # Of a line that is too long, no more is taken than shows it: it may be the whole file.
        portion = data[start : min(end or len(data), start + _MOST_PORTION_BYTES)]
        if not portion.endswith(b"\n"):
            portion += b"\n"
        if b"\r" in portion:
            portion = portion.replace(b"\r\n", b"\n")
        yield line, portion
        line += portion.count(b"\n")
        start = end or len(data)


class _Reader:
    """What was found so far in one file."""

    def __init__(self, data: bytes) -> None:
        self._pairs = array("I")
        self._quads = array("Q")
        self._names: dict[str, None] = {}
        self._faults: list[tuple[int, str]] = []
        self._more = 0
        is_script = routeros_list.is_script(data.removeprefix(_MARK)[:_PORTION_BYTES])
        self._script = routeros_list.Script() if is_script else None
        # Where a line began that goes on in the next one, and what it says up to there.
        self._begun: tuple[int, bytes] | None = None

    def contents(self) -> Contents:
        if self._begun is not None:
            self._take_command(*self._begun)
        addresses = Addresses(self._pairs.tobytes(), self._quads.tobytes())
        return Contents(addresses, tuple(self._names), self._faults, self._more)

    def take(self, first: int, portion: bytes) -> None:
        """Lines, of which the first has the number `first`."""
        whole = self._begun is None
        if self._script is not None and whole:
            portion = routeros_list.simplify(portion)
        elif self._script is None and (b"#" in portion or b";" in portion):
            portion = _COMMENT.sub(b"", portion)
        at_once = whole and (self._take_prefixes(portion) or self._take_prefixes6(portion))
        if not at_once:
            for number, line in enumerate(portion.split(b"\n")[:-1], first):
                self._take_line(number, line)

    def _take_prefixes(self, lines: bytes) -> bool:
        """Take lines that are all IPv4 prefixes, all at once; False if some are anything else."""
        count = lines.count(b"\n")
        if lines.translate(None, _DIGITS) != _SHAPE * count:
            return False
        parts = lines.translate(_BLANKS).split()
        if len(parts) != 5 * count:
            return False
        octets = bytearray(4 * count)
        try:
            for place in range(4):
                octets[place::4] = bytes(map(_OCTETS.__getitem__, parts[place::5]))
            hosts = array("I", map(_HOST_BITS.__getitem__, parts[4::5]))
        except KeyError:
            return False
        numbers = unpack(f">{count}I", octets)
        firsts = array("I", map(and_, numbers, map(_MASKS.__getitem__, hosts)))
        pairs = array("I", bytes(8 * count))
        pairs[0::2] = firsts
        pairs[1::2] = array("I", map(or_, firsts, hosts))
        self._pairs += pairs
        return True

    def _take_prefixes6(self, lines: bytes) -> bool:
        """The same for IPv6 prefixes up to /64 whose lower half is left out."""
        found = _SHORT6.findall(lines)
        count = len(found)
        if count != lines.count(b"\n"):
            return False
        try:
            hosts = [_HALF_BITS[length] for _, _, _, _, length in found]
        except KeyError:
            return False
        halves = [
            int(a, 16) << 48
            | int(b or b"0", 16) << 32
            | int(c or b"0", 16) << 16
            | int(d or b"0", 16)
            for a, b, c, d, _ in found
        ]
        quads = array("Q", bytes(32 * count))
        quads[0::4] = array("Q", [half & ~host for half, host in zip(halves, hosts, strict=True)])
        quads[2::4] = array("Q", map(or_, halves, hosts))
        quads[3::4] = array("Q", [_LOW_HALF]) * count
        self._quads += quads
        return True

    def _take_line(self, number: int, line: bytes) -> None:
        if len(line) > MOST_LINE_BYTES:
            self._begun = None
            self._fault(number, _TOO_LONG)
        elif self._begun is None and (self._take_prefix(line) or self._take_prefix6(line)):
            return
        elif self._script is not None and (self._begun or not _BARE.fullmatch(line)):
            self._take_script_line(number, line)
        elif text := line.strip():
            self._take_entry(number, _text(text), wildcards=True)

    def _take_prefix(self, line: bytes) -> bool:
        """Take an IPv4 address or prefix."""
        text, slash, length = line.partition(b"/")
        try:
            a, b, c, d = text.split(b".")
            host = _HOST_BITS[length] if slash else 0
            whole = _OCTETS[a] << 24 | _OCTETS[b] << 16 | _OCTETS[c] << 8 | _OCTETS[d]
        except (ValueError, KeyError):
            return False
        self._pairs.append(whole & ~host)
        self._pairs.append(whole | host)
        return True

    def _take_prefix6(self, line: bytes) -> bool:
        """Take an IPv6 address or prefix, in hexadecimal throughout."""
        text, slash, length = line.partition(b"/")
        if not _HEX.fullmatch(text) or (slash and length not in _HOST_BITS6):
            return False
        head, gap, tail = text.partition(b"::")
        left, right = head.split(b":") if head else [], tail.split(b":") if tail else []
        missing = 8 - len(left) - len(right)
        if missing < 1 if gap else missing:
            return False
        groups = (*left, *_ZEROS[:missing], *right)
        if max(map(len, groups)) > 4 or not all(groups):
            return False
        whole = int((b"%4b" * 8 % groups).replace(b" ", b"0"), 16)
        last = whole | (_HOST_BITS6[length] if slash else 0)
        first = last ^ _HOST_BITS6[length] if slash else last
        self._quads.extend((first >> 64, first & _LOW_HALF, last >> 64, last & _LOW_HALF))
        return True

    def _take_script_line(self, number: int, line: bytes) -> None:
        """Take a line of a script, or keep it until the rest of it is there."""
        begin, before = self._begun or (number, b"")
        self._begun = None
        whole = before + (line.lstrip() if before else line)
        if len(whole) > MOST_LINE_BYTES:
            self._fault(begin, _TOO_LONG)
        elif line.endswith(b"\\") and not whole.lstrip().startswith(b"#"):
            self._begun = begin, whole[:-1]
        else:
            self._take_command(begin, whole)

    def _take_command(self, number: int, line: bytes) -> None:
        assert self._script is not None
        text = _text(line)
        try:
            found = self._script.added(text)
        except ValueError as error:
            self._fault(number, f"{error}, got {units.show(text.strip())}")
            return
        for address in found:
            self._take_entry(number, address, wildcards=False)

    def _take_entry(self, number: int, text: str, *, wildcards: bool) -> None:
        """Take anything that is legal as one entry."""
        try:
            span = spans.find_span(text, strict=False)
            if span is None:
                name = spans.domain(spans.ENTRY, text)
                if not wildcards and name.startswith("*"):
                    raise units.refuse(spans.ENTRY, text)
                self._names[name] = None
                return
        except ValueError as error:
            self._fault(number, str(error))
            return
        found = Addresses.of([span])
        self._pairs.frombytes(found.ranges4)
        self._quads.frombytes(found.ranges6)

    def _fault(self, number: int, message: str) -> None:
        if len(self._faults) < MOST_FAULTS:
            self._faults.append((number, units.printable(message)))
        else:
            self._more += 1


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")
