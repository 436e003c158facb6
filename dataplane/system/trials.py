"""What the kernel and the tools can do, found out by trying."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.errors import KernelError

PATH = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin"
_CLONE_NEWNET = 0x40000000
_LOOPBACK = 1
# A prefix for documentation (RFC 5737): nobody's.
_PREFIX = "192.0.2.0/24"
_PATIENCE_S = 5

Found = TypeVar("Found")


def apart(work: Callable[[], Found]) -> Found:
    """Runs `work` in a network namespace of its own, which is gone afterwards.

    KernelError if there is no right to make one. What `work` raises is raised here.
    """
    outcome: list[Found] = []
    faults: list[BaseException] = []

    def enter() -> None:
        # Only this thread moves, and the namespace goes with it.
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            if libc.unshare(_CLONE_NEWNET):
                words = os.strerror(ctypes.get_errno())
                raise KernelError(f"a network namespace for trials: {words}")
            outcome.append(work())
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=enter, name="trial")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return outcome[0]


def multipath() -> None:
    """Sets a route over two ways. KernelError if the kernel refuses. To be called `apart`."""
    ways = [{"oif": _LOOPBACK, "hops": weight} for weight in (0, 2)]
    try:
        with IPRoute() as routes:
            routes.link("set", index=_LOOPBACK, state="up")
            routes.route("add", dst=_PREFIX, multipath=ways)
    except (NetlinkError, OSError) as refusal:
        raise KernelError(str(refusal.args[-1])) from refusal


def settings_writable() -> bool:
    """Whether this process may write below /proc/sys/net."""
    return os.access("/proc/sys/net/ipv4/ip_forward", os.W_OK)


def version(*names: str) -> str | None:
    """What the first of these commands that exists says of its version; None if none does."""
    for name in names:
        command = shutil.which(name, path=PATH)
        if command is None:
            continue
        try:
            done = subprocess.run(
                [command, "--version"],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                env={"PATH": PATH, "LC_ALL": "C"},
                timeout=_PATIENCE_S,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return " ".join(done.stdout.split())
    return None


def kernel() -> str:
    """The running kernel's release."""
    return Path("/proc/sys/kernel/osrelease").read_text().strip()
