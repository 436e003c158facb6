"""Who marks packets on a Path3: in the kernel (kernel.py), behind a queue (queued.py), and the
daemon as a user runs it (daemon.py).

    rival = EVERY_PACKET["hmark"]
    why = rival.missing()                  # None, or why its row is left out
    with rival.serve(path) as serving:     # it decides every packet of the sender's meanwhile
        serving.processes                  # {"worker": pid}, for CPU time; empty in the kernel

`serve` may raise errors.Error, for what `missing` could not see beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from bench.path import Path3


def nothing() -> None:
    """Nothing is missing."""
    return None


def no_packets() -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Serving:
    """A rival at work. `settled`: packets so far that arrived although it did not decide them."""

    processes: Mapping[str, int] = field(default_factory=dict)
    settled: Callable[[], int] = no_packets


@dataclass(frozen=True, slots=True)
class Rival:
    """`serve` is entered for each run. `links` is how many the path must have."""

    name: str
    serve: Callable[[Path3], AbstractContextManager[Serving]]
    missing: Callable[[], str | None] = nothing
    links: int = 1
