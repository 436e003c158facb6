"""Policies of a given size as files, and what opening one costs: from its text to the program.

    python -m bench.policies SMALL FILE

opens both in a process of its own, the small one first, so that nothing is loaded any more when
FILE is measured, and prints JSON: seconds, and how much memory there is more than before, in MiB.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from bench.footprint import Memory
from dataplane.config import load
from dataplane.config.model import Config
from dataplane.decide.balance import all_alive
from dataplane.decide.compiled import program_of
from dataplane.decide.facts import Facts, Family
from dataplane.decide.wish import Before, make_wish
from dataplane.errors import MachineError
from dataplane.hotpath import Program

KEY = 0x45_76_65_6E_6C_69_6E_6B
# What the prefixes are among: all of IPv4 as /24, and global unicast as /48.
PREFIXES: dict[Family, tuple[int, int]] = {4: (0, 24), 6: (1 << 125, 48)}
_BITS: dict[Family, int] = {4: 32, 6: 128}
_LONGEST_S = 120
_NOBODY = Facts((), native_queue=False)


@dataclass(frozen=True, slots=True)
class Setup:
    """How many rules, prefixes in a list (of one family), and links.

    Rules ask for an interface, ports, DSCP or destinations; the last one for the list, if there is
    one. No packet meets the others.
    """

    rules: int = 0
    prefixes: int = 0
    links: int = 2
    family: Family = 4

    def spans(self) -> list[tuple[int, int]]:
        """First and last addresses of the list's prefixes."""
        base, length = PREFIXES[self.family]
        wide = _BITS[self.family] - length
        among = length if not base else length - 3
        chance = random.Random(self.prefixes)
        firsts = [base + (at << wide) for at in chance.sample(range(1 << among), self.prefixes)]
        return [(first, first + (1 << wide) - 1) for first in firsts]

    def write(self, directory: Path) -> Path:
        """The file, with its list beside it."""
        file = directory / "evenlink.toml"
        file.write_text("\n".join(self._lines()) + "\n")
        length = PREFIXES[self.family][1]
        address = IPv4Address if self.family == 4 else IPv6Address
        lines = (f"{address(first)}/{length}\n" for first, _ in self.spans())
        (directory / "list.txt").write_text("".join(lines))
        return file

    def _lines(self) -> Iterator[str]:
        yield 'lan = ["lan0", "lan1"]'
        for link in range(self.links):
            yield f'[link.l{link}]\ninterface = "wan{link}"\nshare = 1\nprobes = false'
        if self.prefixes:
            yield '[list.long]\nfiles = ["list.txt"]'
        for number in range(self.rules):
            yield "[[rule]]"
            yield from self._asks(number)
            yield f'use = "l{number % self.links}"'

    def _asks(self, number: int) -> Iterator[str]:
        if self.prefixes and number == self.rules - 1:
            yield 'destination = "@long"'
            return
        kind = number % 4
        if kind == 0:
            yield 'in = "lan1"'
        if kind == 3:
            yield f'destination = ["10.7.{number % 256}.0/24", "2001:db8:{number:x}::/48"]'
        elif kind == 2:
            yield f"dscp = {1 + number % 63}\nsource_port = {2000 + number}"
        else:
            yield f'protocol = "tcp"\ndestination_port = {1000 + number}'


def opened(file: Path) -> tuple[Config, Program]:
    """The file, read as the daemon reads it, and its program while every link is alive."""
    config = load.read_file(file)
    wish = make_wish(config, _NOBODY, KEY, Before(), states=all_alive(config))
    return config, program_of(wish)


@dataclass(frozen=True, slots=True)
class Opened:
    """What it took. `resident_mib` stays, `peak_mib` was there meanwhile; `lists_mib`: what the
    program's lists take of it in C."""

    seconds: float
    resident_mib: float
    peak_mib: float
    lists_mib: float


def opening(small: Path, file: Path) -> Opened:
    """Opens both in another process. MachineError if that fails."""
    command = [sys.executable, "-m", "bench.policies", str(small), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S)
    if done.returncode:
        raise MachineError(f"{file}: {done.stderr.strip()}")
    return Opened(**json.loads(done.stdout))


def _measured(small: Path, file: Path) -> Opened:
    before_all = opened(small)
    gc.collect()
    # The peak counts from here.
    Path("/proc/self/clear_refs").write_text("5")
    before = Memory.of(os.getpid())
    began = time.monotonic()
    config, program = opened(file)
    seconds = time.monotonic() - began
    gc.collect()
    after = Memory.of(os.getpid())
    del before_all, config
    return Opened(
        round(seconds, 4),
        round(after.resident_mib - before.resident_mib, 2),
        round(after.peak_mib - before.resident_mib, 2),
        round((program.lists.size if program.lists else 0) / (1 << 20), 2),
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_measured(Path(sys.argv[1]), Path(sys.argv[2])))))
