"""One run: a rival serves on a path, the sender sends, and what arrived with a decision is counted.

    run = one_run(path, rival, seconds)                    # the most it can do
    run = one_run(path, rival, seconds, rate=100_000)      # or what it does at a rate
    run.sample                                             # packets a second, CPU time a packet
    run.lost                                               # of the whole run, to the packet

The window begins after a warm-up. When it is over the sender stops and what waits is let through,
so that what was sent and never came is known exactly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.cpu import per_packet_us, spent_s
from bench.measure import Sample
from bench.path import Path3
from bench.rivals import Rival, Serving
from bench.sender import Sender
from dataplane.lab.namespaces import LabError

WARM_UP_S = 0.3
_DRAIN_S = 5.0
_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Run:
    """What one run did. `drops` by where, as Path3.drops; `settled`: see Serving."""

    sample: Sample
    sent: int
    arrived: int
    drops: Mapping[str, int]
    settled: int

    @property
    def lost(self) -> int:
        """Sent, and not done: it did not come, or came without the rival's decision."""
        return self.sent - self.arrived + self.settled


def _nothing(_: Path3) -> None:
    """No preparation."""


def one_run(
    path: Path3,
    rival: Rival,
    seconds: float,
    *,
    rate: int | None = None,
    new_connections: bool = False,
    new_pairs: bool = False,
    offload: bool = False,
    prepare: Callable[[Path3], None] = _nothing,
) -> Run:
    """One rival, one window of time; LabError where nothing got through.

    `prepare` is done when the rival serves already. The rest is the sender's, as it says.
    """
    with rival.serve(path) as serving:
        prepare(path)
        arrived, settled, drops = path.arrived(), serving.settled(), path.drops()
        with Sender(
            path,
            rate=rate,
            new_connections=new_connections,
            new_pairs=new_pairs,
            offload=offload,
        ) as sender:
            sender.go()
            time.sleep(WARM_UP_S)
            sample = _window(path, serving, sender, seconds)
            sent = sender.stop()
        _drain(path)
        arrived, settled = path.arrived() - arrived, serving.settled() - settled
        lost = {where: count - drops[where] for where, count in path.drops().items()}
    run = Run(sample, sent, arrived, lost, settled)
    # What was lost was sent, too: the sender's time is for a packet that it sent.
    each = dict(sample.cpu_us)
    wasted = each["sender"] * (1 - max(0, sent - run.lost) / sent) if sent else 0.0
    each["sender"] -= wasted
    total = sample.cpu_us_per_packet
    return Run(
        Sample(sample.value, None if total is None else total - wasted, each, run.lost),
        *(sent, arrived, lost, settled),
    )


def _window(path: Path3, serving: Serving, sender: Sender, seconds: float) -> Sample:
    processes = {"sender": sender.process, **serving.processes}
    # Slow to ask for, so it is asked outside of the window: what was settled beside it counts, too.
    settled = serving.settled()
    start, packets, cpu = time.monotonic(), path.arrived(), spent_s(processes)
    time.sleep(seconds)
    end, packets_then, cpu_then = time.monotonic(), path.arrived(), spent_s(processes)
    done = packets_then - packets - (serving.settled() - settled)
    if done <= 0:
        raise LabError("no packet got through in a whole run")
    total, each = per_packet_us(cpu, cpu_then, done)
    return Sample(done / (end - start), total, each)


def _drain(path: Path3) -> None:
    """Until nothing waits and nothing more arrives."""
    end = time.monotonic() + _DRAIN_S
    before = -1
    while (now := path.arrived()) != before or path.waiting():
        if time.monotonic() > end:
            raise LabError(f"packets still wait {_DRAIN_S:g} s after the last was sent")
        before = now
        time.sleep(_LOOK_S)
