"""Rivals that are asked in turn, many times a second, by one C program (bench/native/turns.h).

All stand ready at the same time, each on a path of its own, and those that have no turn sleep. So
what else the machine does hits all alike, which it does not where a run takes seconds.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.cpu import spent_s
from bench.path import Path3
from bench.rivals import Rival, Serving
from dataplane.errors import Error
from dataplane.lab.namespaces import LabError


@dataclass(frozen=True, slots=True)
class Standing:
    """A rival that serves on its path."""

    path: Path3
    serving: Serving

    def worker_s(self) -> float:
        """Seconds of CPU of the process that serves; 0 in the kernel."""
        return spent_s(self.serving.processes).get("worker", 0.0)


def stand(
    stack: ExitStack,
    rivals: Mapping[str, Rival],
    reasons: dict[str, str],
    prepare: Mapping[str, Callable[[Path3], None]],
) -> dict[str, Standing]:
    """Starts those without a reason to be left out, until the stack is closed; by row.

    `prepare` is done to some paths before. Adds a reason for what does not start.
    """
    standing = {}
    for name, rival in rivals.items():
        if name in reasons:
            continue
        try:
            path = stack.enter_context(Path3(links=rival.links))
            if name in prepare:
                prepare[name](path)
            standing[name] = Standing(path, stack.enter_context(rival.serve(path)))
        except Error as fault:
            reasons[name] = str(fault)
    return standing


def lines(program: Path, words: Iterable[object], timeout_s: float) -> list[list[int]]:
    """The numbers that the program prints; LabError with its words if it fails, or hangs."""
    command = [str(program), *(str(word) for word in words)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise LabError(f"{program.name} did not end in {timeout_s:g} s") from None
    if done.returncode:
        raise LabError(f"{program.name}: {done.stderr.strip()}")
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
