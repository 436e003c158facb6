"""What connections carry, told by nDPI from copies of their first packets.

Built only where nDPI's headers are. Importing it loads the library, which reads what strangers
wrote: the daemon never does so, only a process of its own that has confined itself.

A finding is (protocol, server's address, its port, client's address, its port, side, applications,
host). Addresses are 4 or 16 bytes, both of one family. `side` is where the client is, seen from
the router: "lan", "wan", or "" if no copy said so. Applications are one or two names in lower
case: what carries and what is carried, as ("tls", "youtube"). `host` is the name that the client
asked the server for, in lower case and without a port, or "".
"""

from typing import TypedDict

Finding = tuple[int, bytes, int, bytes, int, str, tuple[str, ...], str]

LONGEST_PACKET: int

class Counters(TypedDict):
    """`lost` copies found the socket's buffer full, which it said `overflows` times; `unreadable`
    ones held no whole TCP or UDP packet, `ignored` ones came when all was known. `repeated`
    findings had just been told. `pushed_out` talks were forgotten while they were looked at."""

    copies: int
    lost: int
    overflows: int
    unreadable: int
    ignored: int
    findings: int
    repeated: int
    talks: int
    pushed_out: int

def version() -> str:
    """nDPI's own, as the library that was loaded says."""

def confine() -> str:
    """Gives up everything but reading, writing and memory: user, capabilities, system calls.

    It cannot be undone. Returns words on what the machine could not do, empty if all was done;
    OSError if something was refused that must not be.
    """

class Recogniser:
    """Looks at `talks` conversations at a time, the oldest out first, and at no more than `packets`
    packets of each."""

    def __init__(self, *, talks: int = 4096, packets: int = 16) -> None: ...
    def applications(self) -> tuple[str, ...]:
        """The names of everything that can be recognised."""

    def run(self, fd: int, timeout_ms: int) -> list[Finding]:
        """Waits for copies on the socket of a log group, and reads those that are there."""

    def feed(
        self, packet: bytes | bytearray | memoryview, prefix: bytes = b"", now_ms: int = 0
    ) -> list[Finding]:
        """One packet from its IP header on; `prefix` is the log rule's."""

    def read(self, datagram: bytes | bytearray | memoryview, now_ms: int = 0) -> list[Finding]:
        """What one receive from a log group's socket gives."""

    def counters(self) -> Counters: ...
