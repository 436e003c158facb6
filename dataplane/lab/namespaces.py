"""Network namespaces with names of our own: make, enter, run in, and always remove.

A name is evl-<pid of the maker>-<number>-<role>. Whoever finds a name whose maker is dead may
remove it, and `sweep` does: that is how kill -9 of a maker is survived.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dataplane.errors import Error, MachineError

_DIRECTORY = Path("/run/netns")
_NAME = re.compile(r"evl-(\d+)-\d+-.+")
_CLONE_NEWNET = 0x40000000
# Where a root shell that was opened by a plain `su` does not look.
_ROOTS_TOOLS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_libc = ctypes.CDLL(None, use_errno=True)

PYTHON = sys.executable
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


class LabError(Error):
    """The lab could not be built, or something in it did not do what the lab needs."""


class UnavailableError(LabError):
    """This kernel lacks what the topology asks for; the message names it."""


def environment() -> dict[str, str]:
    """The environment of commands in the lab: ours, with this very package found first, and
    root's tools found in any case."""
    packages = [_PACKAGE_PARENT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    tools = [*os.environ.get("PATH", os.defpath).split(os.pathsep), *_ROOTS_TOOLS]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(packages)),
        "PATH": os.pathsep.join(dict.fromkeys(tools)),
    }


class Namespace:
    """One network namespace. Makes itself when created; `remove` kills what runs in it."""

    def __init__(self, name: str) -> None:
        if os.geteuid() != 0:
            raise MachineError("the lab makes network namespaces, which needs root")
        made = subprocess.run(
            ["ip", "netns", "add", name], capture_output=True, text=True, env=environment()
        )
        if made.returncode:
            raise MachineError(f"network namespace {name}: {made.stderr.strip()}")
        self.name = name
        self._started: list[subprocess.Popen[str]] = []

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in here."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(
        self,
        *command: str,
        stdin: str | None = None,
        check: bool = True,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs to the end and gives status and output; with `check`, LabError if it failed."""
        done = subprocess.run(
            self.command(command),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**environment(), **(env or {})},
            start_new_session=True,
        )
        if check and done.returncode:
            raise LabError(
                f"{self.name}: {' '.join(command)}: exit status {done.returncode}: "
                f"{done.stderr.strip() or done.stdout.strip()}"
            )
        return done

    def start(
        self,
        *command: str,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[str] | None = subprocess.DEVNULL,
        stderr: int | IO[str] | None = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Starts in a session of its own (a Ctrl-C is not for it); killed with the namespace."""
        process = subprocess.Popen(
            self.command(command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env={**environment(), **(env or {})},
            start_new_session=True,
        )
        self._started.append(process)
        return process

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and only it, is in the namespace meanwhile: for sockets, /proc/sys."""
        with open("/proc/thread-self/ns/net") as before, (_DIRECTORY / self.name).open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def set(self, settings: Mapping[str, str | int]) -> None:
        """Sets sysctls, named with slashes: {"net/ipv4/ip_forward": 1}."""
        with self.inside():
            for key, value in settings.items():
                Path("/proc/sys", key).write_text(f"{value}\n")

    def remove(self) -> None:
        """Kills every process in here, and removes the name. Again does nothing."""
        _remove(self.name)
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        self._started.clear()


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise MachineError(f"setns: {os.strerror(number)}")


def _remove(name: str) -> None:
    deadline = time.monotonic() + 10
    while pids := _processes(name):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise LabError(f"{name}: processes {pids} outlive SIGKILL")
        time.sleep(0.01)
    if (_DIRECTORY / name).exists():
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, env=environment())


def _processes(name: str) -> list[int]:
    """Living processes, but for this one, whose network namespace is the one of that name."""
    try:
        there = (_DIRECTORY / name).stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                its = os.stat(f"/proc/{entry}/ns/net")
                if (its.st_ino, its.st_dev) == (there.st_ino, there.st_dev):
                    found.append(int(entry))
    return found


def name(number: int, role: str) -> str:
    """The name of this process's `number`-th lab's namespace, or directory, for that role."""
    return f"evl-{os.getpid()}-{number}-{role}"


def leftovers() -> list[str]:
    """Names of namespaces whose maker is dead."""
    return [found for found in sorted(_listed(_DIRECTORY)) if _orphan(found)]


def sweep() -> list[str]:
    """Removes the namespaces and directories of dead makers; gives the namespaces' names."""
    swept = leftovers()
    for found in swept:
        _remove(found)
    temporary = Path(tempfile.gettempdir())
    for found in _listed(temporary):
        if _orphan(found):
            shutil.rmtree(temporary / found, ignore_errors=True)
    return swept


def _listed(directory: Path) -> list[str]:
    try:
        return [entry for entry in os.listdir(directory) if _NAME.fullmatch(entry)]
    except FileNotFoundError:
        return []


def _orphan(found: str) -> bool:
    matched = _NAME.fullmatch(found)
    return matched is not None and not Path("/proc", matched[1]).exists()
