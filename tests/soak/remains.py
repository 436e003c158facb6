"""What a process and a router hold, so that before and after can be compared."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.footprint import Memory
from dataplane.lab import Lab

MASK, PROBE = 0x7F000000, 124 << 24
_NETS = ("icmp", "icmp6", "netlink", "packet", "raw", "raw6", "tcp", "tcp6", "udp", "udp6", "unix")
_COUNTED = re.compile(r"packets \d+ bytes \d+")
# What the kernel remembers of pairs by itself, and forgets after a while.
_REMEMBERED = re.compile(r"\n\s*elements = \{[^}]*expires[^}]*\}")
_MARK = re.compile(r"\bmark=(\d+)")
_SETTINGS = ("net/ipv4/conf", "net/ipv6/conf")
_SINGLE = ("net/ipv4/ip_forward", "net/ipv4/fwmark_reflect", "net/ipv6/fwmark_reflect")


def descriptors(process: int) -> Counter[str]:
    """Open descriptors by kind: which protocol's socket, which anonymous inode, which file."""
    kinds = {
        inode: net
        for net in _NETS
        for line in _lines(Path("/proc", str(process), "net", net))
        for inode in line.split()
        if len(inode) > 3 and inode.isdigit()
    }
    found: Counter[str] = Counter()
    for entry in Path("/proc", str(process), "fd").iterdir():
        with suppress(OSError):
            target = os.readlink(entry)
            inode = target.removeprefix("socket:[").removesuffix("]")
            found[kinds.get(inode, "socket") if inode != target else target] += 1
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


@dataclass(frozen=True, slots=True)
class Held:
    """What the process holds, in MiB and counts. `heap_mib` is glibc's main heap (brk)."""

    resident_mib: float
    proportional_mib: float
    anonymous_mib: float
    heap_mib: float
    threads: int

    @classmethod
    def by(cls, process: int) -> Held:
        memory = Memory.of(process)
        status = (Path("/proc") / str(process) / "status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return cls(
            memory.resident_mib,
            memory.proportional_mib,
            int(fields["RssAnon"].split()[0]) / 1024,
            _heap_mib(process),
            int(fields["Threads"]),
        )

    def __str__(self) -> str:
        return (
            f"RSS {self.resident_mib:.2f}, PSS {self.proportional_mib:.2f}, anonymous "
            f"{self.anonymous_mib:.2f}, of it heap {self.heap_mib:.2f} MiB, {self.threads} threads"
        )


def _heap_mib(process: int) -> float:
    inside = False
    for line in _lines(Path("/proc", str(process), "smaps")):
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith("[heap]")
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_s(process: int) -> dict[str, float]:
    """Seconds of CPU until now, by thread: the event loop, and all others together."""
    found = {"loop": 0.0, "others": 0.0}
    for task in Path("/proc", str(process), "task").iterdir():
        with suppress(OSError):
            spent = int((task / "schedstat").read_text().split()[0]) / 1e9
            found["loop" if task.name == str(process) else "others"] += spent
    return found


def kernel(lab: Lab) -> dict[str, list[str]]:
    """What the router's kernel holds: our routes, rules, the tables of nft, and settings."""
    found = {}
    for family in ("-4", "-6"):
        routes = ("route", "show", "table", "all", "proto", "201")
        found[f"ip {family} route"] = sorted(
            lab.router.run("ip", family, *routes).stdout.split("\n")
        )
        found[f"ip {family} rule"] = lab.router.run("ip", family, "rule").stdout.split("\n")
    listed = lab.router.run("nft", "list", "ruleset").stdout
    listed = _COUNTED.sub("packets - bytes -", _REMEMBERED.sub("", listed))
    found["nft list ruleset"] = listed.split("\n")
    found["sysctl"] = _settings(lab)
    return found


def _settings(lab: Lab) -> list[str]:
    found = []
    with lab.router.inside():
        files = [Path("/proc/sys", name) for name in _SINGLE]
        for directory in _SETTINGS:
            files += sorted(Path("/proc/sys", directory).glob("*/*"))
        for file in files:
            with suppress(OSError):  # a secret that is not set, a file that can only be written
                found.append(f"{file.relative_to('/proc/sys')} = {file.read_text().strip()}")
    return found


def differences(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> list[str]:
    """Lines that came or went, by what they are of."""
    found = []
    for what, lines in before.items():
        was, now = Counter(lines), Counter(after[what])
        found += [f"{what}: lacks {line.strip()}" for line in was - now]
        found += [f"{what}: has got {line.strip()}" for line in now - was]
    return found


def marks(lab: Lab) -> Counter[int]:
    """How many connections the router tracks, by the mark in our bits."""
    found: Counter[int] = Counter()
    for family in ("ipv4", "ipv6"):
        for line in lab.router.run("conntrack", "-L", "-f", family).stdout.splitlines():
            mark = _MARK.search(line)
            found[int(mark[1]) & MASK if mark else 0] += 1
    return found
