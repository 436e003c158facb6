"""The NFQUEUE rule in iptables' spelling, for kernels whose nft has no queue statement."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Literal

from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.plan import QueueRule
from dataplane.errors import KernelError, MachineError

COMMENT = "evenlink"
_COMMANDS: dict[Family, tuple[str, str]] = {
    4: ("iptables-nft", "iptables"),
    6: ("ip6tables-nft", "ip6tables"),
}
_OURS = re.compile(
    r"-A (?P<chain>PREROUTING|OUTPUT) -m mark --mark (?P<mark>0x[0-9a-f]+)/(?P<mask>0x[0-9a-f]+) "
    rf'-m comment --comment "?{COMMENT}"? -j NFQUEUE --queue-'
    r"(?:num (?P<number>\d+)|balance (?P<first>\d+):(?P<last>\d+))"
)


def rules() -> frozenset[QueueRule]:
    """The queue rules of ours that the kernel holds."""
    found = set()
    for family in FAMILIES:
        if not _available(family):
            continue
        listed = _run(family, ["-S"]).stdout
        for line in listed.splitlines():
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


def mangle_tables() -> frozenset[Family]:
    """The families whose mangle table exists in nf_tables."""
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if nft is None:
        return frozenset()
    listed = subprocess.run([nft, "list", "tables"], capture_output=True, text=True, check=False)
    names = {4: "table ip mangle", 6: "table ip6 mangle"}
    lines = set(listed.stdout.splitlines())
    return frozenset(family for family in FAMILIES if names[family] in lines)


def delete_empty_mangle(family: Family) -> None:
    """Removes the family's mangle table if nothing but iptables' own empty chains is in it."""
    if family not in mangle_tables():
        return
    listed = _run(family, ["-S"]).stdout.splitlines()
    if any(not re.fullmatch(r"-P \S+ ACCEPT", line) for line in listed):
        return
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert nft is not None, "mangle_tables found it"
    name = "ip" if family == 4 else "ip6"
    subprocess.run([nft, "delete", "table", name, "mangle"], capture_output=True, check=False)


def _change(verb: str, rule: QueueRule) -> None:
    done = _run(rule.family, [verb, rule.chain, *arguments(rule)])
    if done.returncode:
        words = " ".join(done.stderr.split())
        raise KernelError(f"{_name(rule.family)} refused the queue rule: {words}")


def _available(family: Family) -> bool:
    return any(shutil.which(name, path="/usr/sbin:/sbin") for name in _COMMANDS[family])


def _name(family: Family) -> str:
    for name in _COMMANDS[family]:
        if shutil.which(name, path="/usr/sbin:/sbin"):
            return name
    raise MachineError("the iptables command is missing; install the package iptables")


def _run(family: Family, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_name(family), "-w", "5", "-t", "mangle", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin", "LC_ALL": "C"},
    )
