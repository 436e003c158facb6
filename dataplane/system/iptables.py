"""The NFQUEUE rule in iptables' spelling, for kernels whose nft has no queue statement."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection
from typing import Literal

from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.plan import QueueRule
from dataplane.errors import KernelError, MachineError

COMMENT = "evenlink"
PATH = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin"
_COMMANDS: dict[Family, tuple[str, str]] = {
    4: ("iptables-nft", "iptables"),
    6: ("ip6tables-nft", "ip6tables"),
}
_TABLES: dict[Family, tuple[str, str]] = {4: ("ip", "mangle"), 6: ("ip6", "mangle")}
_BUILT_IN = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_CHAIN = re.compile(r"^\tchain (\S+) \{$", re.MULTILINE)
_OURS = re.compile(
    r"-A (?P<chain>PREROUTING|OUTPUT) -m mark --mark (?P<mark>0x[0-9a-f]+)/(?P<mask>0x[0-9a-f]+) "
    rf'-m comment --comment "?{COMMENT}"? -j NFQUEUE --queue-'
    r"(?:num (?P<number>\d+)|balance (?P<first>\d+):(?P<last>\d+))"
)


def rules() -> frozenset[QueueRule]:
    """The queue rules of ours that the kernel holds."""
    found = set()
    for family in FAMILIES:
        for line in _listed(family):
            match = _OURS.match(line)
            if match:
                chain: Literal["PREROUTING", "OUTPUT"] = (
                    "OUTPUT" if match["chain"] == "OUTPUT" else "PREROUTING"
                )
                first = int(match["number"] or match["first"])
                last = int(match["number"] or match["last"])
                found.add(
                    QueueRule(
                        family, chain, int(match["mark"], 16), int(match["mask"], 16), first, last
                    )
                )
    return frozenset(found)


def add(rule: QueueRule) -> None:
    """Appends the rule to its mangle chain."""
    _change("-A", rule)


def delete(rule: QueueRule) -> None:
    """Deletes the rule from its mangle chain."""
    _change("-D", rule)


def arguments(rule: QueueRule) -> list[str]:
    """What stands behind the chain on the command line."""
    if rule.first_queue == rule.last_queue:
        queue = ["--queue-num", str(rule.first_queue)]
    else:
        queue = ["--queue-balance", f"{rule.first_queue}:{rule.last_queue}"]
    mark = f"{rule.mark:#x}/{rule.mask:#x}"
    return [
        *("-m", "mark", "--mark", mark),
        *("-m", "comment", "--comment", COMMENT),
        *("-j", "NFQUEUE", *queue, "--queue-bypass"),
    ]


def mangle_chains() -> frozenset[str]:
    """What exists of the mangle tables in nf_tables: "4" for IPv4's, "4 OUTPUT" for a chain."""
    found = set()
    for family in FAMILIES:
        listed = _nft("list", "table", *_TABLES[family])
        if listed is not None:
            found |= {f"{family}", *(f"{family} {name}" for name in _CHAIN.findall(listed))}
    return frozenset(found)


def tidy(before: Collection[str]) -> None:
    """Removes iptables' own chains and tables that are empty now and were not there before."""
    there = mangle_chains()
    for family in FAMILIES:
        used = {line.split()[1] for line in _listed(family) if line.startswith("-A")}
        chains = {one.split()[1] for one in there if one.startswith(f"{family} ")}
        for name in chains & _BUILT_IN - used:
            policy = f"-P {name} ACCEPT"
            if f"{family} {name}" not in before and policy in _listed(family):
                _nft("delete", "chain", *_TABLES[family], name)
                chains.remove(name)
        if f"{family}" in there and not chains and f"{family}" not in before:
            _nft("delete", "table", *_TABLES[family])


def _listed(family: Family) -> list[str]:
    return _run(family, ["-S"]).stdout.splitlines() if _available(family) else []


def _nft(*arguments: str) -> str | None:
    """What nft says, or None when it refuses or is not there."""
    nft = shutil.which("nft", path=PATH)
    if nft is None:
        return None
    done = _finish([nft, *arguments])
    return None if done.returncode else done.stdout


def _change(verb: str, rule: QueueRule) -> None:
    done = _run(rule.family, [verb, rule.chain, *arguments(rule)])
    if done.returncode:
        words = " ".join(done.stderr.split())
        raise KernelError(f"{_name(rule.family)} refused the queue rule: {words}")


def _available(family: Family) -> bool:
    return any(shutil.which(name, path=PATH) for name in _COMMANDS[family])


def _name(family: Family) -> str:
    for name in _COMMANDS[family]:
        if shutil.which(name, path=PATH):
            return name
    raise MachineError("the iptables command is missing; install the package iptables")


def _run(family: Family, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return _finish([_name(family), "-w", "5", "-t", "mangle", *arguments])


def _finish(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except OSError as refusal:
        raise MachineError(f"{command[0]}: {refusal.strerror or refusal}") from refusal
