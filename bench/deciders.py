"""What decides packets in process, ours and its rivals: each a call without arguments.

Ours and the floor write marks, and decisions, into the last argument that is bound to them. All
decide the same packets: UDP, each of another address pair, of 64 bytes unless it is said.
"""

from __future__ import annotations

import ctypes
import mmap
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, pairwise

from bench import native
from dataplane.config.marks import Marks
from dataplane.decide.facts import Family
from dataplane.decide.program import ProgramRule, Slots, compile_program, everywhere
from dataplane.decide.slots import SLOTS
from dataplane.hotpath import Classifier, Lists, Program

PACKET_BYTES, MOST_BYTES = 64, 1514
KEY = 0x45_76_65_6E_6C_69_6E_6B
MARKS = Marks()

_ADDRESS_BYTES: dict[Family, int] = {4: 4, 6: 16}

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Packets:
    """`count` packets of one family, one behind the other; `offsets` has the end of the last."""

    family: Family
    count: int
    buffer: memoryview
    offsets: memoryview

    @classmethod
    def of_all_sizes(cls, family: Family, count: int) -> Packets:
        """From 64 to 1,514 bytes, as in a capture."""
        chance = random.Random(family)
        packets = []
        for _ in range(count):
            size = chance.randint(PACKET_BYTES, MOST_BYTES)
            head = _head(family, size)
            packets.append(head + chance.randbytes(size - len(head)))
        offsets = array("I", accumulate(map(len, packets), initial=0))
        return cls(family, count, memoryview(bytearray().join(packets)), memoryview(offsets))

    @classmethod
    def random(cls, family: Family, count: int, into: Sequence[tuple[int, int]] = ()) -> Packets:
        """Of random addresses; every other one goes to one of the ranges (first and last
        address), if there are any."""
        chance = random.Random(family)
        # Begins with a page: each packet is one line of the cache.
        buffer = mmap.mmap(-1, count * PACKET_BYTES)
        head, size = _head(family, PACKET_BYTES), _ADDRESS_BYTES[family]
        for at, octet in enumerate(head):
            buffer[at::PACKET_BYTES] = bytes([octet]) * count
        for at in range(len(head), len(head) + 2 * size):
            buffer[at::PACKET_BYTES] = chance.randbytes(count)
        for number in range(0, count if into else 0, 2):
            span, at = chance.choice(into), number * PACKET_BYTES + len(head) + size
            buffer[at : at + size] = chance.randint(*span).to_bytes(size, "big")
        offsets = array("I", range(0, count * PACKET_BYTES + 1, PACKET_BYTES))
        return cls(family, count, memoryview(buffer), memoryview(offsets))

    def first(self, count: int) -> Packets:
        size = self.offsets[count]
        return Packets(self.family, count, self.buffer[:size], self.offsets[: count + 1])

    def __iter__(self) -> Iterator[bytes]:
        for begin, end in pairwise(self.offsets):
            yield bytes(self.buffer[begin:end])


def _head(family: Family, size: int) -> bytes:
    """All that comes before the addresses."""
    if family == 4:
        return bytes([0x45, 0, *divmod(size, 256), 0, 0, 0x40, 0, 64, 17, 0, 0])
    return bytes([0x60, 0, 0, 0, *divmod(size - 40, 256), 17, 64])


def slots(links: int) -> bytes:
    """A slot table of equal links, drawn at random."""
    return bytes(random.Random(links).choices(range(1, links + 1), k=SLOTS))


def one_rule(table: bytes) -> ProgramRule:
    return ProgramRule("all", everywhere(Slots(table)))


def program(table: bytes) -> Program:
    """What a configuration without rules compiles to."""
    return Program(compile_program(marks=MARKS, key=KEY, rules=[one_rule(table)]))


def program_with_lists(
    lists: int, prefixes: int, table: bytes
) -> tuple[Program, list[tuple[int, int]]]:
    """As many rules as lists, /24s in all, and one behind them that takes every packet."""
    chance = random.Random(prefixes)
    spans = [(at << 8, (at << 8) + 255) for at in chance.sample(range(1 << 24), prefixes)]
    names = [f"list {number}" for number in range(lists)]
    packed = [
        array("I", chain.from_iterable(spans[number::lists])).tobytes() for number in range(lists)
    ]
    rules = [ProgramRule(name, everywhere(1), destination=(name,)) for name in names]
    block = compile_program(marks=MARKS, key=KEY, rules=[*rules, one_rule(table)], lists=names)
    return Program(block, Lists(packed, [b""] * lists)), spans


def _marks(packets: Packets) -> memoryview:
    """Begins with a page: where it lies beside the offsets made a difference of a tenth."""
    return memoryview(mmap.mmap(-1, 4 * packets.count)).cast("I")


def ours(packets: Packets, chosen: Program) -> partial[int]:
    return partial(
        Classifier(chosen).classify_batch, packets.buffer, packets.offsets, _marks(packets)
    )


def floor(packets: Packets, table: bytes) -> partial[object]:
    """Hash and look-up, nothing else; MachineError where there is no compiler."""
    library = ctypes.CDLL(str(native.build("floor.c", "-O3", "-shared", "-fPIC")))
    return partial(
        library.floor_ipv4 if packets.family == 4 else library.floor_ipv6,
        (ctypes.c_uint8 * len(packets.buffer)).from_buffer(packets.buffer),
        (ctypes.c_uint32 * len(packets.offsets)).from_buffer(packets.offsets),
        ctypes.c_uint64(packets.count),
        ctypes.c_uint64(KEY),
        ctypes.c_char_p(table),
        (ctypes.c_uint32 * packets.count).from_buffer(_marks(packets)),
    )


def oracle(packets: Packets, table: bytes) -> Call:
    """Plain Python; ImportError where xxhash or scapy is missing."""
    from tests import reference

    policy = reference.Policy(MARKS, KEY, [one_rule(table)])
    each = list(packets)
    return lambda: [policy.outcome(packet) for packet in each]


def scapy(packets: Packets, table: bytes) -> Call:
    """The oracle, but scapy reads the packet."""
    from tests import reference

    policy = reference.Policy(MARKS, KEY, [one_rule(table)])
    each = list(packets)
    return lambda: [policy.flow_outcome(reference.scapy_flow(packet)) for packet in each]
