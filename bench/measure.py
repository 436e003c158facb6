"""Rivals in turn, A B A B, in one run; medians, spread, and the machine it was on."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

OURS = "evenlink"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: `value` in the row's unit; CPU time of all who worked for it, if known."""

    value: float
    cpu_us_per_packet: float | None = None


@dataclass(slots=True)
class Row:
    """All runs of one rival."""

    name: str
    unit: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(sample.value for sample in self.samples)

    @property
    def cpu_us_per_packet(self) -> float | None:
        known = [s.cpu_us_per_packet for s in self.samples if s.cpu_us_per_packet is not None]
        return statistics.median(known) if known else None

    def as_json(self) -> dict[str, Any]:
        values = [sample.value for sample in self.samples]
        cpu = self.cpu_us_per_packet
        return {
            "name": self.name,
            "unit": self.unit,
            "median": round(self.median, 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
            "runs": len(values),
            "cpu_us_per_packet": None if cpu is None else round(cpu, 4),
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark found; ratios are of medians, ours to each rival's."""

    rows: list[Row]

    @property
    def ratios(self) -> dict[str, float]:
        ours = next(row for row in self.rows if row.name == OURS)
        return {
            f"{OURS}/{row.name}": round(ours.median / row.median, 3)
            for row in self.rows
            if row is not ours and row.median
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": [row.as_json() for row in self.rows],
            "ratios": self.ratios,
            "machine": machine(),
        }


def in_turn(rivals: Mapping[str, Callable[[], Sample]], unit: str, runs: int) -> Result:
    """Every rival once, then every rival again: what else the machine does hits all alike."""
    rows = {name: Row(name, unit) for name in rivals}
    for _ in range(runs):
        for name, run in rivals.items():
            rows[name].samples.append(run())
    return Result(list(rows.values()))


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
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
    }


def table(result: Result) -> str:
    """The rows and ratios for people."""
    lines = [f"{'':24}{'median':>14}{'min':>14}{'max':>14}  unit        CPU us a packet"]
    for row in result.rows:
        found = row.as_json()
        cpu = "" if row.cpu_us_per_packet is None else f"{row.cpu_us_per_packet:.3f}"
        numbers = "".join(f"{found[key]:>14,.1f}" for key in ("median", "min", "max"))
        lines.append(f"{row.name:24}{numbers}  {row.unit:12}{cpu}")
    lines += ["", *(f"{name:40}{ratio:.2f}" for name, ratio in result.ratios.items())]
    return "\n".join(lines)
