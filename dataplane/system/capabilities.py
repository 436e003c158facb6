"""What this process may do."""

from __future__ import annotations

from pathlib import Path

_NEEDED = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}


def missing() -> list[str]:
    """The capabilities that the daemon needs and does not have."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return [name for bit, name in _NEEDED.items() if not effective >> bit & 1]
    return list(_NEEDED.values())
