"""CPU time by who worked: the sender, the workers, the kernel's softirq threads.

Most of the kernel's work on a packet is done by whoever was on the core when it came, as softirq:
in the sender's own system call, in the worker's. A process's time holds that, unless the kernel
was built to keep it apart (CONFIG_IRQ_TIME_ACCOUNTING); then it is added from /proc/stat.
"""

from __future__ import annotations

import gzip
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_SOFTIRQ_COLUMN = 6
_NANO = 1e-9


def spent_s(processes: Mapping[str, int]) -> dict[str, float]:
    """Seconds of CPU until now: of each of these processes by its name, all of its threads, and of
    "ksoftirqd" and "softirq" on all cores. Differences of two of these go into `per_packet_us`."""
    spent = {name: _process_s(number) for name, number in processes.items()}
    spent["ksoftirqd"] = sum(_process_s(number) for number in _softirq_threads())
    columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    spent["softirq"] = int(columns[_SOFTIRQ_COLUMN]) / os.sysconf("SC_CLK_TCK")
    return spent


def per_packet_us(
    before: Mapping[str, float], after: Mapping[str, float], packets: int
) -> tuple[float, dict[str, float]]:
    """Microseconds a packet: all together, and by who. "softirq" is part of the others' time, and
    not of the sum, where this kernel counts it so."""
    each = {who: max(0.0, after[who] - before[who]) * 1e6 / packets for who in after}
    total = sum(each.values())
    return (total if softirq_apart() else total - each["softirq"]), each


@cache
def softirq_apart() -> bool:
    """Whether this kernel keeps softirq time out of the processes'. Not if it does not say."""
    return "CONFIG_IRQ_TIME_ACCOUNTING=y" in _configuration()


def _configuration() -> str:
    try:
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        pass
    try:
        return Path(f"/boot/config-{platform.release()}").read_text()
    except OSError:
        return ""


def _process_s(number: int) -> float:
    """All threads of it: one that has ended meanwhile no longer counts."""
    total = 0
    for task in Path("/proc", str(number), "task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total * _NANO


@cache
def _softirq_threads() -> tuple[int, ...]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                name = Path("/proc", entry, "comm").read_text()
            except OSError:
                continue
            if name.startswith("ksoftirqd/"):
                found.append(int(entry))
    return tuple(found)
