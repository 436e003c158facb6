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


cdef extern from "ranges.h" nogil:
    enum:
        FAULT_LENGTH
        LISTS_MOST

    struct list_input:
        const uint32_t *pairs4
        uint64_t count4
        const uint64_t *quads6
        uint64_t count6

    struct lists:
        uint32_t list_count
        uint64_t size

    lists *lists_open(const list_input *inputs, uint32_t count, char *fault)
    void lists_close(lists *lists)

cdef extern from "learned.h" nogil:
    struct learned_entry:
        pass

    struct learned:
        uint64_t size

    learned *learned_open(const learned_entry *entries, uint64_t count, uint32_t set_count,
                          uint64_t seed, char *fault)
    void learned_close(learned *learned)

cdef extern from "memory.h" nogil:
    struct memory:
        uint64_t now_ms

    memory *memory_open(uint64_t seed)
    void memory_close(memory *memory)

cdef extern from "nfqueue.h" nogil:
    enum:
        REASON_COUNT
        REASON_DECIDED
        FIELDS_COUNT
        PROGRAM_DECISIONS
        PROGRAM_MAX_RULES
        QUEUE_ERRNOS
        QUEUE_FLAG_FAIL_OPEN
        QUEUE_FLAG_GSO

    enum reason:
        pass
    const char *reason_names[]

    struct flow:
        uint8_t key[36]
        uint8_t family
        uint8_t protocol
        uint8_t fragment
        uint8_t dscp
        uint32_t interface

    struct learned_members:
        const learned *table
        uint32_t set_count
        const uint32_t *starts
        const uint32_t *members

    struct program:
        uint32_t rule_count
        uint64_t serial
        uint64_t size

    struct decision:
        uint64_t hash
        uint32_t mark
        uint32_t rule
        uint16_t slot
        uint8_t decision

    struct tally:
        uint64_t *reasons
        uint64_t *decisions
        uint64_t *rules

    struct queue_counters:
        uint64_t packets, batches, unknown_messages, enobufs, recv_errors, send_retries
        uint64_t *verdict_errors
        tally decided

    struct queue_worker:
        uint8_t fail_open
        uint64_t order
        queue_counters counters

    int protocol_has_ports(uint8_t protocol)
    reason packet_parse(const uint8_t *at, const uint8_t *end, flow *found)
    reason program_decide(const program *program, const flow *flow, uint32_t mark, memory *memory,
                          decision *decision)
    reason program_classify(const program *program, const uint8_t *at, const uint8_t *end,
                            uint32_t mark, uint32_t interface, memory *memory, decision *decision)
    void match_explain(const program *program, const flow *flow, uint16_t *wrong)
    void tally_add(tally *tally, reason why, const decision *decision)
    queue_worker *queue_worker_open(int fd, uint16_t number, uint32_t length, uint32_t copy_bytes,
                                    uint32_t spin_us, uint64_t seed)
    void queue_worker_close(queue_worker *worker)
    int queue_worker_run(queue_worker *worker)
    void queue_worker_stop(queue_worker *worker)
    uint64_t queue_worker_swap(queue_worker *worker, program *program)
    bint queue_worker_serving(queue_worker *worker)
    bint queue_worker_passed(queue_worker *worker, uint64_t order)
    int queue_worker_gate(queue_worker *worker, bint open)
    int queue_connect(int fd)
    int queue_set_flag(int fd, uint16_t number, uint32_t flag)
    int queue_set_length(int fd, uint16_t number, uint32_t length)
    int queue_set_buffer(int fd, int bytes)
    uint64_t queue_refused(int fd)

cdef extern from "batch.h" nogil:
    struct batch:
        const uint8_t *buffer
        const void *offsets
        bint wide
        uint64_t count
        uint32_t *marks
        uint32_t interface
        memory *memory

    bint batch_is_legal(const batch *packets, uint64_t size)
    uint64_t batch_classify(const program *program, const batch *packets, tally *tally)

cdef extern from "loader.h" nogil:
    program *program_open(const uint8_t *bytes, uint64_t size, uint64_t serial,
                          const lists *lists, const learned_members *learned, char *fault)
    void program_close(program *program)


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
        cdef uint32_t set_count = len(sets) + 1
        if entries.shape[0] % sizeof(learned_entry):
            raise ValueError(f"{entries.shape[0]} bytes are no entries of {sizeof(learned_entry)}")
        # Set 0 is the empty one; behind the last there is one start more.
        self._starts = array("I", [0, 0])
        self._members = array("I")
        for members in sets:
            self._members.extend(members)
            self._starts.append(len(self._members))
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


cdef object refused(int code, str what):
    return OSError(code, f"{what}: {os.strerror(code)}")


def kernel_queues():
    """The queues of this thread's network namespace, as the kernel lists them."""
    queues = {}
    try:
        with open("/proc/thread-self/net/netfilter/nfnetlink_queue", encoding="ascii") as table:
            for line in table:
                columns = [int(column) for column in line.split()]
                queues[columns[0]] = {
                    "owner": columns[1],
                    "waiting": columns[2],
                    "dropped": columns[5],
                    "user_dropped": columns[6],
                    "sequence": columns[7],
                }
    except FileNotFoundError:
        pass
    return queues


def bind_queue(uint16_t number, callback, *, uint32_t length, uint32_t copy_bytes,
               int socket_buffer_bytes):
    """Opens and binds the queue, sets its flags: (NetfilterQueue, what the kernel granted)."""
    cdef NetfilterQueue queue
    cdef int code
    try:
        queue = NetfilterQueue()
    except OSError as fault:
        code = errno
        raise refused(code or errno_names.EPERM, "opening an NFQUEUE socket") from fault
    try:
        with warnings.catch_warnings():
            # What the kernel made of the socket buffer is told by what is granted.
            warnings.simplefilter("ignore", RuntimeWarning)
            queue.bind(number, callback, max_len=length, mode=COPY_PACKET,
                       range=copy_bytes, sock_len=socket_buffer_bytes)
    except OSError as fault:
        code = errno
        if number in kernel_queues():
            code = errno_names.EBUSY
        raise refused(code or errno_names.EIO, f"binding queue {number}") from fault
    cdef int fd = queue.get_fd()
    code = queue_connect(fd)
    if code:
        queue.unbind()
        raise refused(code, f"connecting queue {number} to the kernel")
    flags = []
    for name, flag in (("fail-open", QUEUE_FLAG_FAIL_OPEN), ("gso", QUEUE_FLAG_GSO)):
        code = queue_set_flag(fd, number, flag)
        if code == 0:
            flags.append(name)
        elif code not in (errno_names.EOPNOTSUPP, errno_names.EINVAL):
            queue.unbind()
            raise refused(code, f"setting {name} on queue {number}")
    return queue, {
        "length": length,
        "copy_bytes": min(copy_bytes, MOST_COPY_BYTES),
        "socket_buffer_bytes": queue_set_buffer(fd, socket_buffer_bytes),
        "flags": tuple(flags),
    }


def set_queue_length(int fd, uint16_t number, uint32_t length):
    """Tells the kernel how many packets may wait; 0 with fail-open lets all pass."""
    cdef int code = queue_set_length(fd, number, length)
    if code:
        raise refused(code, f"setting the length of queue {number}")


def socket_refused(int fd):
    """How many messages the socket has had no room for."""
    return queue_refused(fd)


def _accept(packet):
    packet.accept()  # only while binding: the worker is not there yet, settle decides


cdef class QueueWorker:
    """One queue, one thread: decides packets in batches without the GIL."""

    cdef NetfilterQueue queue
    cdef queue_worker *c
    cdef readonly unsigned int number
    cdef dict _granted
    cdef list _programs  # (order, Program), the newest last; older ones until they are passed
    cdef uint64_t _highest
    cdef bint _running

    def __cinit__(self, uint16_t number, Program program not None, *, uint32_t length=1024,
                  uint32_t copy_bytes=128, int socket_buffer_bytes=4 << 20, uint32_t spin_us=0,
                  seed=None):
        if not 1 <= length <= 1 << 20:
            raise ValueError(f"length {length}: legal are 1 to {1 << 20} packets")
        if not 64 <= copy_bytes <= 65535:
            raise ValueError(f"copy_bytes {copy_bytes}: legal are 64 to 65535")
        if socket_buffer_bytes < 1:
            raise ValueError(f"socket_buffer_bytes {socket_buffer_bytes}: must be positive")
        cdef uint64_t begin = int.from_bytes(os.urandom(8), "little") if seed is None else seed
        self.number = number
        self._programs = []
        self.queue, self._granted = bind_queue(
            number, _accept, length=length, copy_bytes=copy_bytes,
            socket_buffer_bytes=socket_buffer_bytes,
        )
        self.c = queue_worker_open(self.queue.get_fd(), number, length,
                                   self._granted["copy_bytes"], spin_us, begin)
        if self.c is NULL:
            code = errno
            self.queue.unbind()
            raise refused(code, "setting up the queue worker")
        self.c.fail_open = "fail-open" in self._granted["flags"]
        queue_worker_gate(self.c, False)
        self.swap(program)

    def __dealloc__(self):
        queue_worker_close(self.c)

    def granted(self):
        return dict(self._granted)

    def fileno(self):
        if self.queue is None:
            raise ValueError(f"queue {self.number} is closed")
        return self.queue.get_fd()

    def run(self):
        cdef int code
        if self._running:
            raise RuntimeError(f"queue {self.number} is being served already")
        if self.queue is None:
            raise RuntimeError(f"queue {self.number} is closed")
        self._running = True
        try:
            while True:
                with nogil:
                    code = queue_worker_run(self.c)
                if code == 0:
                    return
                if code != errno_names.EINTR:
                    raise refused(code, f"serving queue {self.number}")
                PyErr_CheckSignals()
        finally:
            self._running = False

    def serving(self):
        return bool(queue_worker_serving(self.c))

    def stop(self):
        queue_worker_stop(self.c)

    def close(self):
        if self._running:
            raise RuntimeError(f"queue {self.number} is being served: stop it first")
        if self.queue is not None:
            self.queue.unbind()
            self.queue = None

    def swap(self, Program program not None):
        self._highest = max(self._highest, program.serial)
        self._programs.append((queue_worker_swap(self.c, program.c), program))
        self._forget()

    def passed(self, uint64_t serial):
        self._forget()
        for order, program in reversed(self._programs):
            if program.serial == serial:
                return bool(queue_worker_passed(self.c, order))
        if serial > self._highest:
            raise ValueError(f"program {serial} was never given to queue {self.number}")
        return True  # one that came after it was passed

    cdef _forget(self):
        """A program may go when one that came after it was passed."""
        while len(self._programs) > 1 and queue_worker_passed(self.c, self._programs[1][0]):
            self._programs.pop(0)

    def counters(self):
        cdef queue_counters *counted = &self.c.counters
        return {
            "packets": counted.packets,
            "batches": counted.batches,
            **counts(&counted.decided),
            "verdict_errors": sum([counted.verdict_errors[at] for at in range(QUEUE_ERRNOS)]),
            "verdict_errors_by_errno": {
                errno_names.errorcode.get(at, "unknown"): counted.verdict_errors[at]
                for at in range(QUEUE_ERRNOS) if counted.verdict_errors[at]
            },
            "enobufs": counted.enobufs,
            "refused": 0 if self.queue is None else queue_refused(self.queue.get_fd()),
            "recv_errors": counted.recv_errors,
            "send_retries": counted.send_retries,
            "unknown_messages": counted.unknown_messages,
        }
