"""Rivals in turn, A B A B, in one run; medians, spread, ratios, and the machine it was on.

A benchmark is a module with `measure(options: Options) -> Result`. Usually:

    def measure(options: Options) -> Result:
        runs = {"evenlink": run_ours, "floor": run_floor}     # each gives a Sample
        result = in_turn(runs, "ns/packet", options, left_out={"scapy": "scapy is not installed"})
        result.extra["curves"] = ...                          # whatever else the JSON should hold
        return result

Each row says which of ours it is compared with (`against`, OURS unless told otherwise); the ratio
is the median of ours to the row's, in the row's unit, whichever direction is better. A run that
raises errors.Error, or for which a tool is missing, leaves its row out, with the reason, and the
others go on.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from dataplane.errors import Error

OURS = "evenlink"


class Progress(Protocol):
    """Told how many runs are to come, and before each of them what is measured now."""

    def expect(self, runs: int) -> None: ...
    def step(self, what: str) -> None: ...


class Silent:
    """A Progress that shows nothing."""

    def expect(self, runs: int) -> None:
        """Nothing."""

    def step(self, what: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure. `runs` of each rival, `seconds` each; `quick` asks for fewer sizes.

    `only`: names of the rows that are wanted, all if empty. `offload`: the queue's second table.
    `pcaps`: captures for hotpath.
    """

    runs: int = 5
    seconds: float = 1.0
    quick: bool = False
    only: frozenset[str] = frozenset()
    offload: bool = False
    pcaps: tuple[Path, ...] = ()
    progress: Progress = field(default_factory=Silent)

    def wants(self, name: str) -> bool:
        return not self.only or name in self.only


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: `value` in the row's unit.

    `cpu_us_per_packet` is the CPU time of all who worked for it, `cpu_us` the same by who, and
    `dropped` the packets that were sent and not done; each None or empty where it is not known.
    """

    value: float
    cpu_us_per_packet: float | None = None
    cpu_us: Mapping[str, float] = field(default_factory=dict)
    dropped: int | None = None


@dataclass(slots=True)
class Row:
    """All runs of one rival. `against`: the row of ours it is compared with, None for ours."""

    name: str
    unit: str
    samples: list[Sample] = field(default_factory=list)
    against: str | None = OURS
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(sample.value for sample in self.samples)

    @property
    def cpu_us_per_packet(self) -> float | None:
        known = [s.cpu_us_per_packet for s in self.samples if s.cpu_us_per_packet is not None]
        return statistics.median(known) if known else None

    @property
    def cpu_us(self) -> dict[str, float]:
        """By who, the median microseconds a packet."""
        names = dict.fromkeys(who for sample in self.samples for who in sample.cpu_us)
        return {
            who: round(statistics.median(s.cpu_us.get(who, 0.0) for s in self.samples), 4)
            for who in names
        }

    @property
    def dropped(self) -> int | None:
        """The median of the runs."""
        known = [sample.dropped for sample in self.samples if sample.dropped is not None]
        return int(statistics.median(known)) if known else None

    def as_json(self) -> dict[str, Any]:
        values = [sample.value for sample in self.samples]
        cpu = self.cpu_us_per_packet
        found: dict[str, Any] = {
            "name": self.name,
            "unit": self.unit,
            "median": round(self.median, 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
            "runs": len(values),
            "cpu_us_per_packet": None if cpu is None else round(cpu, 4),
        }
        if self.cpu_us:
            found["cpu_us"] = self.cpu_us
        if self.dropped is not None:
            found["dropped"] = self.dropped
        return {**found, **self.extra}


@dataclass(slots=True)
class Result:
    """What a benchmark found. `left_out`: rows that could not be measured, and why; `extra`: more
    keys of the JSON."""

    rows: list[Row]
    left_out: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        """Ours to each rival's, of medians; absent where either of the two is."""
        medians = {row.name: row.median for row in self.rows}
        return {
            f"{row.against}/{row.name}": float(f"{medians[row.against] / row.median:.4g}")
            for row in self.rows
            if row.against in medians and row.against != row.name and row.median
        }

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def add(self, other: Result) -> None:
        """Takes over the rows and reasons of another table, with names of their own."""
        self.rows += other.rows
        self.left_out.update(other.left_out)
        self.extra.update(other.extra)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "rows": [row.as_json() for row in self.rows],
            "ratios": self.ratios,
            "machine": machine(),
        }
        if self.left_out:
            found["left_out"] = self.left_out
        return {**found, **self.extra}


def in_turn(
    rivals: Mapping[str, Callable[[], Sample]],
    unit: str,
    options: Options,
    *,
    against: Mapping[str, str | None] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Result:
    """Every rival once, then every rival again: what else the machine does hits all alike.

    `against` names for some rows which of ours they are compared with, if not OURS. `left_out` are
    the reasons that were known before. Rows that `options.only` does not name are not run.
    """
    named = {name: run for name, run in rivals.items() if options.wants(name)}
    rows = {name: Row(name, unit) for name in named}
    for name, ours in (against or {}).items():
        if name in rows:
            rows[name].against = ours
    if OURS in rows:
        rows[OURS].against = None
    reasons = {name: why for name, why in (left_out or {}).items() if options.wants(name)}
    options.progress.expect(len(named) * options.runs)
    for number in range(options.runs):
        for name, run in named.items():
            options.progress.step(f"{name}, {number + 1} of {options.runs}")
            if name in reasons:
                continue
            try:
                rows[name].samples.append(run())
            except (Error, OSError, subprocess.SubprocessError) as fault:
                reasons[name] = str(fault)
    return Result([row for row in rows.values() if row.name not in reasons], reasons)


def machine() -> dict[str, Any]:
    """Processor, cores, kernel, date and command."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
    }


def shown(ratio: float) -> str:
    """Two decimals, or two digits of what is smaller."""
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def table(result: Result) -> str:
    """The rows and ratios for people."""
    lines = []
    if result.rows:
        lines.append(f"{'':24}{'median':>14}{'min':>14}{'max':>14}  unit           CPU us a packet")
    for row in result.rows:
        found = row.as_json()
        cpu = "" if row.cpu_us_per_packet is None else f"{row.cpu_us_per_packet:.3f}"
        numbers = "".join(f"{found[key]:>14,.1f}" for key in ("median", "min", "max"))
        lines.append(f"{row.name:24}{numbers}  {row.unit:15}{cpu}".rstrip())
    if result.ratios:
        lines += ["", *(f"{name:47} {shown(ratio)}" for name, ratio in result.ratios.items())]
    return "\n".join(lines)
