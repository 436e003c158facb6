"""The compiled extension: packets to decisions, and the queue's loop. Sources in cext/."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

from netfilterqueue import NetfilterQueue, Packet
from typing_extensions import Buffer

REASONS: tuple[str, ...]
"""Every named reason, "decided" first; the others say why there was no decision."""

MOST_COPY_BYTES: int
"""NetfilterQueue copies no more of a packet than this."""

CONDITIONS: tuple[str, ...]
"""What a rule can ask for: bit n of `Classifier.matching` is the n-th name. "family", "in",
"source", "destination", "protocol", "source_port", "destination_port", "dscp", "application"."""

class Decision(NamedTuple):
    """What was read from a packet, and what follows from it.

    `reason` is "decided" or why not; `decision` 0 and `mark` unchanged then. "drawn": the rule
    draws by nth or at random, and nothing was to be drawn. `rule` counts from 0, -1 is none. `hash`
    and `slot` are 0 where no slot was looked up: a fixed decision, a drawn or a remembered one.
    Addresses are 4 or 16 bytes in network order, empty where the packet could not be read.
    """

    reason: str
    decision: int
    mark: int
    rule: int
    hash: int
    slot: int
    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int
    fragment: bool
    dscp: int

class Lists:
    """The ranges of all lists, immutable; made once for any number of programs.

    `ranges4` and `ranges6` as `model.Addresses` packs them, one of each a list. ValueError: a
    length that is no whole number of ranges, a range whose last address comes before its first.
    """

    def __init__(self, ranges4: Sequence[Buffer], ranges6: Sequence[Buffer]) -> None: ...
    @property
    def count(self) -> int:
        """How many lists."""
    @property
    def size(self) -> int:
        """Bytes of memory."""

class Learned:
    """What was learned of single addresses and endpoints, immutable.

    `entries`: 28 bytes each, `struct learned_entry` of cext/learned.h. An entry's set n, from 1 on,
    is `sets[n - 1]`: the numbers of the members that hold it, lists first, then applications.
    """

    def __init__(self, entries: Buffer, sets: Sequence[Sequence[int]]) -> None: ...
    @property
    def count(self) -> int:
        """How many entries."""
    @property
    def size(self) -> int:
        """Bytes of memory."""

class Program:
    """A compiled policy, immutable; keeps its lists and what was learned. ValueError says what is
    wrong with the block, or that the three do not belong together."""

    def __init__(
        self, block: Buffer, lists: Lists | None = None, learned: Learned | None = None
    ) -> None: ...
    @property
    def lists(self) -> Lists | None: ...
    @property
    def learned(self) -> Learned | None: ...
    @property
    def serial(self) -> int:
        """Unique in this process; later programs have higher ones."""
    @property
    def size(self) -> int:
        """Bytes of the block."""
    @property
    def rules(self) -> int:
        """How many rules it has."""

class Classifier:
    """Decides packets by one program, without I/O. Remembers and draws as a queue worker does.

    `now_ms` is its clock, which its owner sets: milliseconds that never go back. `seed` is what
    random draws begin with. `interface` is the kernel's index of the LAN interface that a packet
    came by, 0 for none.
    """

    now_ms: int

    def __init__(self, program: Program, seed: int = 0) -> None: ...
    @property
    def program(self) -> Program: ...
    def swap(self, program: Program) -> None:
        """Decide by another program from the next call on. What is remembered stays."""
    def classify(self, packet: Buffer, mark: int = 0, interface: int = 0) -> Decision:
        """Decide the IPv4 or IPv6 packet that begins with the buffer's first byte."""
    def classify_flow(
        self,
        source: Buffer,
        destination: Buffer,
        protocol: int,
        source_port: int = 0,
        destination_port: int = 0,
        mark: int = 0,
        *,
        dscp: int = 0,
        interface: int = 0,
        peek: bool = False,
    ) -> Decision:
        """Decide what a packet of that flow would get. Addresses: 4 or 16 bytes both, ValueError
        else. Ports of protocols that have none are ignored.

        With `peek` nothing is remembered, recalled, drawn or counted: where the rule draws, the
        reason is "drawn".
        """
    def matching(
        self,
        source: Buffer,
        destination: Buffer,
        protocol: int,
        source_port: int = 0,
        destination_port: int = 0,
        *,
        dscp: int = 0,
        interface: int = 0,
    ) -> tuple[int, ...]:
        """For each rule, which of CONDITIONS do not hold, as bits; 0: the rule matches."""
    def mark(self, packet: Buffer, mark: int, interface: int = 0) -> int:
        """Only the new mark; the old one where there is no decision."""
    def classify_batch(
        self, buffer: Buffer, offsets: Buffer, marks: Buffer, interface: int = 0
    ) -> int:
        """Decide n packets that lie one behind the other, without the GIL.

        `offsets`: n + 1 unsigned 32-bit or 64-bit numbers, packet i is [offsets[i], offsets[i+1]).
        `marks`: n unsigned 32-bit numbers, replaced in place. Returns how many were decided;
        ValueError, and nothing done, where offsets fall or leave the buffer. No other thread may
        change the three arrays meanwhile.
        """
    def reasons(self) -> dict[str, int]:
        """How often each reason was found since the classifier was made."""
    def counters(self) -> DecisionCounters:
        """The same with decisions and rules; exact while one thread classifies at a time."""

class Granted(TypedDict):
    """What the kernel gave. `length` in packets; `flags`: "fail-open", "gso" or fewer;
    `socket_buffer_bytes` as the kernel counts it, which is twice what was asked for."""

    length: int
    copy_bytes: int
    socket_buffer_bytes: int
    flags: tuple[str, ...]

class DecisionCounters(TypedDict):
    """By reason, by decision value, by rule from 0; the last two hold only what occurred."""

    reasons: dict[str, int]
    decisions: dict[int, int]
    rules: dict[int, int]

class Counters(DecisionCounters):
    """Counts since the queue was bound.

    `verdict_errors` are verdicts that the kernel answered with an error: neighbours with equal
    marks share one, and it is an error only if all of them are gone. `enobufs` counts the times
    that the socket said it had overflowed, `refused` the messages it had no room for.
    """

    packets: int
    batches: int
    verdict_errors: int
    verdict_errors_by_errno: dict[str, int]
    enobufs: int
    refused: int
    recv_errors: int
    send_retries: int
    unknown_messages: int

class QueueWorker:
    """One NFQUEUE, served by one thread in batches without the GIL.

    Binds in the constructor; OSError EBUSY: the queue is another's, EPERM: no CAP_NET_ADMIN. Until
    `run` and after `stop` packets pass without a decision where the kernel granted fail-open.
    """

    def __init__(
        self,
        number: int,
        program: Program,
        *,
        length: int = 1024,
        copy_bytes: int = 128,
        socket_buffer_bytes: int = ...,
        spin_us: int = 0,
        seed: int | None = None,
    ) -> None:
        """`seed` as for Classifier; None: a random one."""
    @property
    def number(self) -> int: ...
    def granted(self) -> Granted: ...
    def fileno(self) -> int:
        """The netlink socket's descriptor; ValueError after `close`."""
    def run(self) -> None:
        """Serve until `stop`; OSError if the socket fails."""
    def serving(self) -> bool:
        """`run` has opened the queue and has not yet ended."""
    def stop(self) -> None:
        """From any thread: `run` answers what waits and returns. Before `run`: it returns at
        once."""
    def close(self) -> None:
        """Unbind; packets that still wait are dropped by the kernel. RuntimeError while served."""
    def swap(self, program: Program) -> None:
        """Decide by another program from the next batch on. The old one is kept until passed."""
    def passed(self, serial: int) -> bool:
        """No verdict older than the swap of that program is still to come. True also when idle
        or stopped. ValueError: it was never swapped in."""
    def counters(self) -> Counters: ...

def bind_queue(
    number: int,
    callback: Callable[[Packet], None],
    *,
    length: int,
    copy_bytes: int,
    socket_buffer_bytes: int,
) -> tuple[NetfilterQueue, Granted]:
    """Open and bind a queue with NetfilterQueue and ask for its flags; OSError as QueueWorker."""

def set_queue_length(fd: int, number: int, length: int) -> None:
    """How many packets may wait; 0 with fail-open lets all pass. OSError."""

def socket_refused(fd: int) -> int:
    """How many messages the socket had no room for."""

class KernelQueue(TypedDict):
    """A line of the kernel's list: who has bound the queue (netlink port), how many packets wait,
    how many found the queue (`dropped`) or the socket (`user_dropped`) full, the last id."""

    owner: int
    waiting: int
    dropped: int
    user_dropped: int
    sequence: int

def kernel_queues() -> dict[int, KernelQueue]:
    """The bound queues of this thread's network namespace, by number."""
