"""Our one nft table, through the nft command: its text format is the stable interface."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from dataplane.decide.ruleset import TABLE
from dataplane.errors import KernelError, MachineError

_CHAIN = re.compile(r"^\tchain (\S+) \{$", re.MULTILINE)
_SET = re.compile(r"^\tset (\S+) \{$", re.MULTILINE)
_COUNTER = re.compile(r"^\tcounter (\S+) \{\n\t\tpackets (\d+) ", re.MULTILINE)
_OURS = re.compile(rf"^table inet {TABLE} \{{\n.*?^\}}\n", re.MULTILINE | re.DOTALL)
PATH = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class Table:
    """What the kernel holds under our name. `listing` is nft's own, without what moves."""

    listing: str
    chains: frozenset[str]
    sets: frozenset[str]


def read() -> Table | None:
    """The table as it is, or None when there is none."""
    listing = _listing("-s")
    if not listing:
        return None
    return Table(listing, frozenset(_CHAIN.findall(listing)), frozenset(_SET.findall(listing)))


def _listing(*options: str) -> str:
    """The table without its elements; empty when there is none.

    Cut out of all inet tables: asked for one table, nft fetches the elements of its sets whatever
    the options are, which takes seconds when they are full.
    """
    done = _nft([*options, "-t", "list", "ruleset", "inet"])
    if done.returncode:
        raise KernelError(_words(done.stderr))
    ours = _OURS.search(done.stdout)
    return ours[0] if ours else ""


def load(text: str) -> None:
    """Runs nft commands in one transaction: all of them, or none."""
    done = _nft(["-f", "-"], text)
    if done.returncode:
        raise KernelError(f"nft refused the table: {_words(done.stderr)}")


def delete() -> None:
    """Removes the table; none is well."""
    done = _nft(["delete", "table", "inet", TABLE])
    if done.returncode and "No such file or directory" not in done.stderr:
        raise KernelError(_words(done.stderr))


def knows_queue() -> bool:
    """Whether kernel and nft have the queue statement: asked by a check that changes nothing."""
    text = (
        "add table inet evenlink_probe\n"
        "add chain inet evenlink_probe probe\n"
        "add rule inet evenlink_probe probe queue flags bypass to 0\n"
    )
    return _nft(["-c", "-f", "-"], text).returncode == 0


def counters() -> dict[str, int]:
    """Counter name -> packets, of the table's named counters; empty when it cannot be read."""
    try:
        return {name: int(packets) for name, packets in _COUNTER.findall(_listing())}
    except KernelError:
        return {}


def _nft(arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = shutil.which("nft", path=PATH)
    if command is None:
        raise MachineError("the nft command is missing; install the package nftables")
    try:
        return subprocess.run(
            [command, *arguments],
            input=text,
            capture_output=True,
            encoding="utf-8",
            # Others' tables are listed too, and their comments may be anything.
            errors="replace",
            check=False,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except OSError as refusal:
        raise MachineError(f"{command}: {refusal.strerror or refusal}") from refusal


def _words(stderr: str) -> str:
    return " ".join(line.strip() for line in stderr.splitlines()[:3]) or "no reason given"
