"""Our bits of the fwmark, in one place: which bits, which values, and who else uses marks.

The default mask is 0x7f000000. Bit 31 is left alone, since some tools read marks as signed
numbers. Others' masks: mwan3 0x3f00, Tailscale 0xff0000, Kubernetes 0xc000, Cilium 0xf00;
wg-quick compares the whole mark with 0xca6c. Calico takes any bits and must be configured.

With n values in the mask, 1 to n - 8 are links and the last values are reserved:

    n - 4   probe    only on connections: one of our own probes, which is no link's connection
    n - 3   ask      a new connection that waits for a decision: queued, or settled in the kernel
    n - 2   main     left to the main table
    n - 1   reject   refused

0 means that nothing was decided. A decision is what the value says; a mark is a decision moved
into the mask's place.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_LINKS = 120

# SO_PRIORITY of our probes' sockets: "evl" and a zero. Above 6 it needs CAP_NET_ADMIN, so that
# nobody else's connections are taken for probes.
PROBE_PRIORITY = 0x65766C00


@dataclass(frozen=True, slots=True)
class Marks:
    """The layout of our bits. `mask` is one run of at least 4 set bits of a 32-bit number."""

    mask: int = 0x7F000000

    @property
    def shift(self) -> int:
        """How far a decision is moved to the left to become a mark."""
        return (self.mask & -self.mask).bit_length() - 1

    @property
    def values(self) -> int:
        """How many values the mask holds, at most 128."""
        return min((self.mask >> self.shift) + 1, 128)

    @property
    def last_link(self) -> int:
        """The highest decision that is a link; links count from 1."""
        return min(self.values - 8, MOST_LINKS)

    @property
    def probe(self) -> int:
        return self.values - 4

    @property
    def ask(self) -> int:
        return self.values - 3

    @property
    def main(self) -> int:
        return self.values - 2

    @property
    def reject(self) -> int:
        return self.values - 1

    @property
    def others(self) -> int:
        """The bits that are not ours and never change."""
        return ~self.mask & 0xFFFFFFFF

    def mark(self, decision: int) -> int:
        """The decision in the mask's place."""
        return decision << self.shift

    def decision(self, mark: int) -> int:
        """What our bits of a packet's mark say; 0 when nothing was decided."""
        return (mark & self.mask) >> self.shift
