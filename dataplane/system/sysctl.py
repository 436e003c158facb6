"""Kernel settings below /proc/sys."""

from __future__ import annotations

from pathlib import Path

from dataplane.errors import KernelError

_ROOT = Path("/proc/sys")


def read(key: str) -> str | None:
    """The value of a key such as net/ipv4/ip_forward; None if the kernel has no such key."""
    try:
        return (_ROOT / key).read_text().strip()
    except OSError:
        return None


def write(key: str, value: str) -> None:
    """Sets a key."""
    try:
        (_ROOT / key).write_text(value)
    except OSError as refusal:
        raise KernelError(f"sysctl {key} = {value}: {refusal.strerror}") from refusal
