"""Our one nft table, through the nft command: its text format is the stable interface."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass

from dataplane.decide.ruleset import TABLE
from dataplane.errors import KernelError, MachineError

_CHAIN = re.compile(r"^\tchain (\S+) \{$", re.MULTILINE)
_SET = re.compile(r"^\tset (\S+) \{$", re.MULTILINE)
# Their number and place change while rules stay the same.
_COUNTED = re.compile(r"packets \d+ bytes \d+")


@dataclass(frozen=True, slots=True)
class Table:
    """What the kernel holds under our name. `listing` is nft's own, without what moves."""

    listing: str
    chains: frozenset[str]
    sets: frozenset[str]


def read() -> Table | None:
    """The table as it is, or None when there is none."""
    done = _nft(["-s", "-t", "list", "table", "inet", TABLE])
    if done.returncode:
        if "No such file or directory" in done.stderr:
            return None
        raise KernelError(_words(done.stderr))
    listing = _COUNTED.sub("", done.stdout)
    return Table(listing, frozenset(_CHAIN.findall(listing)), frozenset(_SET.findall(listing)))


def read_whole() -> str:
    """The table with its elements, as text that nft takes back; empty when there is none."""
    done = _nft(["list", "table", "inet", TABLE])
    return "" if done.returncode else done.stdout


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
    """Counter name -> packets, of the table's named counters."""
    done = _nft(["-j", "list", "counters", "table", "inet", TABLE])
    if done.returncode:
        return {}
    found: dict[str, int] = {}
    for item in json.loads(done.stdout).get("nftables", ()):
        counter = item.get("counter")
        if counter:
            found[counter["name"]] = int(counter["packets"])
    return found


def _nft(arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = shutil.which("nft", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin")
    if command is None:
        raise MachineError("the nft command is missing; install the package nftables")
    return subprocess.run(
        [command, *arguments], input=text, capture_output=True, text=True, check=False
    )


def _words(stderr: str) -> str:
    return " ".join(line.strip() for line in stderr.splitlines()[:3]) or "no reason given"
