# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Bytes and nanoseconds: classify packets, serve NFQUEUE. The work is done in the headers."""

import errno as errno_names
import itertools
import os
import warnings
from array import array
from collections import namedtuple

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from netfilterqueue._impl cimport NetfilterQueue

from netfilterqueue import COPY_PACKET


include "headers.pxi"


REASONS = tuple(reason_names[at].decode() for at in range(REASON_COUNT))

Decision = namedtuple("Decision", (
    "reason", "decision", "mark", "rule", "hash", "slot",
    "source", "destination", "protocol", "source_port", "destination_port", "fragment", "dscp",
))

# In the order of enum condition.
CONDITIONS = (
    "family", "in", "source", "destination", "protocol", "source_port", "destination_port", "dscp",
    "application",
)

# NetfilterQueue clamps its copy range to this: 4 KiB less the attributes.
MOST_COPY_BYTES = 4016

cdef object _serials = itertools.count(1)


cdef object fault_of(str what, const char *fault):
    """What to raise: `fault` has words, or is empty where there was no memory."""
    return ValueError(f"{what}: {fault.decode()}") if fault[0] else MemoryError()


cdef class Lists:
    """The ranges of all lists, immutable."""

    cdef lists *c
    cdef object __weakref__

    def __cinit__(self, ranges4 not None, ranges6 not None):
        cdef char fault[FAULT_LENGTH]
        cdef const uint8_t[::1] packed
        cdef list_input *inputs
        cdef size_t count = len(ranges4), at
        # The bytes have to lie as numbers do: what is not so already is copied, and kept here.
        cdef list kept = []
        if <size_t>len(ranges6) != count or count > LISTS_MOST:
            raise ValueError(
                f"lists of {count} IPv4 and {len(ranges6)} IPv6 parts: there must be as many of "
                f"both, and at most {LISTS_MOST}"
            )
        inputs = <list_input *>calloc(count + 1, sizeof(list_input))
        if inputs is NULL:
            raise MemoryError
        try:
            for at in range(count):
                for part, size in ((ranges4[at], 8), (ranges6[at], 32)):
                    packed = part
                    if packed.shape[0] % size:
                        raise ValueError(
                            f"list {at}: {packed.shape[0]} bytes are no ranges of {size} bytes"
                        )
                    if packed.shape[0] == 0:
                        continue
                    if <size_t>&packed[0] % sizeof(uint64_t):
                        packed = bytearray(part)
                    kept.append(packed)
                    if size == 8:
                        inputs[at].pairs4 = <const uint32_t *>&packed[0]
                        inputs[at].count4 = <uint64_t>packed.shape[0] // 8
                    else:
                        inputs[at].quads6 = <const uint64_t *>&packed[0]
                        inputs[at].count6 = <uint64_t>packed.shape[0] // 32
            with nogil:
                self.c = lists_open(inputs, <uint32_t>count, fault)
        finally:
            free(inputs)
        if self.c is NULL:
            raise fault_of("lists", fault)

    def __dealloc__(self):
        lists_close(self.c)

    @property
    def count(self):
        return self.c.list_count

    @property
    def size(self):
        return self.c.size

    def __repr__(self):
        return f"<Lists: {self.c.list_count} lists, {self.c.size} bytes>"


cdef class Learned:
    """What was learned of addresses and endpoints, immutable."""

    cdef learned *c
    cdef learned_members members
    cdef readonly object count
    cdef object _starts, _members
    cdef object __weakref__

    def __cinit__(self, const uint8_t[::1] entries not None, sets not None):
        cdef char fault[FAULT_LENGTH]
        cdef const uint32_t[::1] numbers
        cdef const uint8_t[::1] aligned
        cdef const learned_entry *first
        cdef uint64_t count, seed = int.from_bytes(os.urandom(8), "little")
        cdef uint32_t set_count
        if entries.shape[0] % sizeof(learned_entry):
            raise ValueError(f"{entries.shape[0]} bytes are no entries of {sizeof(learned_entry)}")
        # Set 0 is the empty one; behind the last there is one start more.
        self._starts = array("I", [0, 0])
        self._members = array("I")
        for members in sets:
            self._members.extend(members)
            self._starts.append(len(self._members))
        set_count = len(self._starts) - 1
        numbers = self._starts
        self.members.starts = &numbers[0]
        self.members.set_count = set_count
        if self._members:
            numbers = self._members
            self.members.members = &numbers[0]
        aligned = bytearray(entries)
        count = self.count = entries.shape[0] // sizeof(learned_entry)
        first = <const learned_entry *>&aligned[0] if count else NULL
        with nogil:
            self.c = learned_open(first, count, set_count, seed, fault)
        if self.c is NULL:
            raise fault_of("learned", fault)
        self.members.table = self.c

    def __dealloc__(self):
        learned_close(self.c)

    @property
    def size(self):
        return self.c.size

    def __repr__(self):
        return f"<Learned: {self.count} entries, {self.c.size} bytes>"


cdef class Program:
    """One compiled policy: immutable, checked whole when made."""

    cdef program *c
    cdef readonly uint64_t serial
    cdef readonly Lists lists  # kept as long as this
    cdef readonly Learned learned
    cdef object __weakref__

    def __cinit__(self, const uint8_t[::1] block not None, Lists lists=None, Learned learned=None):
        cdef char fault[FAULT_LENGTH]
        cdef const uint8_t *bytes_ = &block[0] if block.shape[0] else <const uint8_t *>fault
        self.serial = next(_serials)
        self.lists = lists
        self.learned = learned
        self.c = program_open(bytes_, <uint64_t>block.shape[0], self.serial,
                              NULL if lists is None else lists.c,
                              NULL if learned is None else &learned.members, fault)
        if self.c is NULL:
            raise fault_of("program block", fault)

    def __dealloc__(self):
        program_close(self.c)

    @property
    def size(self):
        return self.c.size

    @property
    def rules(self):
        return self.c.rule_count

    def __repr__(self):
        return f"<Program {self.serial}: {self.c.rule_count} rules, {self.c.size} bytes>"


cdef object decision_of(reason why, const decision *found, const flow *read):
    """`read` is NULL where the packet could not be parsed."""
    cdef size_t length = 0
    cdef const uint8_t *ports
    if read is NULL:
        return Decision(REASONS[<int>why], 0, found.mark, -1, 0, 0, b"", b"", 0, 0, 0, False, 0)
    length = 4 if read.family == 4 else 16
    ports = read.key + 2 * length
    return Decision(
        REASONS[<int>why],
        found.decision,
        found.mark,
        -1 if found.rule == 0xFFFFFFFF else found.rule,
        found.hash,
        found.slot,
        read.key[:length],
        read.key[length:2 * length],
        read.protocol,
        ports[0] << 8 | ports[1],
        ports[2] << 8 | ports[3],
        bool(read.fragment),
        read.dscp,
    )


cdef dict counts(const tally *counted):
    """Reasons all, decisions and rules only where they occurred."""
    return {
        "reasons": {REASONS[at]: counted.reasons[at] for at in range(REASON_COUNT)},
        "decisions": {
            at: counted.decisions[at] for at in range(PROGRAM_DECISIONS) if counted.decisions[at]
        },
        "rules": {at: counted.rules[at] for at in range(PROGRAM_MAX_RULES) if counted.rules[at]},
    }


cdef int fill_flow(flow *read, const uint8_t[::1] source, const uint8_t[::1] destination,
                   uint8_t protocol, uint16_t source_port, uint16_t destination_port,
                   uint8_t dscp, uint32_t interface) except -1:
    cdef size_t length = <size_t>source.shape[0]
    cdef uint8_t *ports
    if length not in (4, 16) or <size_t>destination.shape[0] != length:
        raise ValueError(
            f"addresses of {length} and {destination.shape[0]} bytes: both must be 4 or 16"
        )
    if dscp > 63:
        raise ValueError(f"dscp {dscp}: legal are 0 to 63")
    memset(read, 0, sizeof(flow))
    read.family = 4 if length == 4 else 6
    read.protocol = protocol
    read.dscp = dscp
    read.interface = interface
    memcpy(read.key, &source[0], length)
    memcpy(read.key + length, &destination[0], length)
    if protocol_has_ports(protocol):
        ports = read.key + 2 * length
        ports[0] = source_port >> 8
        ports[1] = source_port & 0xFF
        ports[2] = destination_port >> 8
        ports[3] = destination_port & 0xFF
    return 0


cdef class Classifier:
    """Decides packets by one program at a time; no I/O."""

    cdef readonly Program program
    cdef tally *counted
    cdef memory *memory

    def __cinit__(self, Program program not None, uint64_t seed=0):
        self.program = program
        self.counted = <tally *>calloc(1, sizeof(tally))
        self.memory = memory_open(seed)
        if self.counted is NULL or self.memory is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.counted)
        memory_close(self.memory)

    @property
    def now_ms(self):
        return self.memory.now_ms

    @now_ms.setter
    def now_ms(self, uint64_t now_ms):
        self.memory.now_ms = now_ms

    def swap(self, Program program not None):
        self.program = program

    def classify(self, const uint8_t[::1] packet not None, uint32_t mark=0,
                 uint32_t interface=0):
        cdef flow read
        cdef decision found
        cdef const uint8_t *at = &packet[0] if packet.shape[0] else <const uint8_t *>&read
        cdef reason why = packet_parse(at, at + packet.shape[0], &read)
        if <int>why != REASON_DECIDED:
            memset(&found, 0, sizeof(found))
            found.mark = mark
            tally_add(self.counted, why, &found)
            return decision_of(why, &found, NULL)
        read.interface = interface
        why = program_decide(self.program.c, &read, mark, self.memory, &found)
        tally_add(self.counted, why, &found)
        return decision_of(why, &found, &read)

    def classify_flow(self, const uint8_t[::1] source not None,
                      const uint8_t[::1] destination not None, uint8_t protocol,
                      uint16_t source_port=0, uint16_t destination_port=0, uint32_t mark=0, *,
                      uint8_t dscp=0, uint32_t interface=0, bint peek=False):
        cdef flow read
        cdef decision found
        cdef reason why
        fill_flow(&read, source, destination, protocol, source_port, destination_port, dscp,
                  interface)
        why = program_decide(self.program.c, &read, mark, NULL if peek else self.memory, &found)
        if not peek:
            tally_add(self.counted, why, &found)
        return decision_of(why, &found, &read)

    def matching(self, const uint8_t[::1] source not None,
                 const uint8_t[::1] destination not None, uint8_t protocol,
                 uint16_t source_port=0, uint16_t destination_port=0, *, uint8_t dscp=0,
                 uint32_t interface=0):
        cdef flow read
        cdef uint16_t wrong[PROGRAM_MAX_RULES]
        fill_flow(&read, source, destination, protocol, source_port, destination_port, dscp,
                  interface)
        match_explain(self.program.c, &read, wrong)
        return tuple([wrong[at] for at in range(self.program.c.rule_count)])

    def mark(self, const uint8_t[::1] packet not None, uint32_t mark, uint32_t interface=0):
        cdef decision found
        cdef const uint8_t *at = &packet[0] if packet.shape[0] else <const uint8_t *>&found
        cdef reason why = program_classify(self.program.c, at, at + packet.shape[0], mark,
                                           interface, self.memory, &found)
        tally_add(self.counted, why, &found)
        return found.mark

    def classify_batch(self, const uint8_t[::1] buffer not None, offsets,
                       uint32_t[::1] marks not None, uint32_t interface=0):
        cdef Program program = self.program  # kept while the GIL is given away
        cdef const uint32_t[::1] narrow
        cdef const uint64_t[::1] wide
        cdef batch packets
        cdef uint64_t count, decided
        packets.wide = memoryview(offsets).itemsize == 8
        if packets.wide:
            wide = offsets
            count = wide.shape[0]
            packets.offsets = &wide[0] if count else NULL
        else:
            narrow = offsets
            count = narrow.shape[0]
            packets.offsets = &narrow[0] if count else NULL
        if count == 0 or <uint64_t>marks.shape[0] != count - 1:
            raise ValueError(
                f"{count} offsets and {marks.shape[0]} marks: one offset more than marks is needed"
            )
        packets.interface = interface
        packets.memory = self.memory
        packets.count = count - 1
        packets.marks = &marks[0] if packets.count else NULL
        # Where the buffer is empty, all packets are: any address will do for them.
        packets.buffer = (&buffer[0] if buffer.shape[0]
                          else <const uint8_t *>packets.offsets)
        if not batch_is_legal(&packets, <uint64_t>buffer.shape[0]):
            raise ValueError("offsets must not fall, nor lie behind the buffer's end")
        with nogil:
            decided = batch_classify(program.c, &packets, self.counted)
        return decided

    def reasons(self):
        return {REASONS[at]: self.counted.reasons[at] for at in range(REASON_COUNT)}

    def counters(self):
        return counts(self.counted)


include "queue.pxi"
