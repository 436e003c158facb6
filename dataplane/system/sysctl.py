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


# Writing these sets each interface's forwarding too, and the IPv4 one accept_redirects to the
# opposite (inet_forward_change, addrconf_fixup_forwarding), whatever the operator had there.
_SWEEPING = {
    "net/ipv4/ip_forward": "net/ipv4/conf",
    "net/ipv6/conf/all/forwarding": "net/ipv6/conf",
}


def swept_by(key: str) -> dict[str, bool]:
    """The keys that the kernel sets when this one is written -> whether to the same value."""
    directory = _SWEEPING.get(key)
    if directory is None:
        return {}
    swept = {
        f"{directory}/{one.name}/forwarding": True
        for one in sorted((_ROOT / directory).glob("*"))
        if one.name != "all"
    }
    if key == "net/ipv4/ip_forward":
        swept["net/ipv4/conf/all/accept_redirects"] = False
    return swept


def apart(key: str) -> dict[str, str]:
    """Those of `swept_by` that are not as writing this key's present value would make them."""
    now = read(key)
    found = {}
    for other, same in swept_by(key).items():
        value = read(other)
        if value is not None and (value == now) is not same:
            found[other] = value
    return found
