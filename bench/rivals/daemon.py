"""Only each connection's first packet is asked, conntrack remembers: the daemon as a user runs it,
and the same done by others, with the same address translation.

Each takes a path of two links. Their every-packet parts are in the kernel.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bench.path import Path3, missing
from bench.rivals import Rival, Serving
from bench.rivals.kernel import HMARK, routed
from bench.rivals.queued import worker
from bench.sender import on_core, worker_core
from dataplane.lab.daemon import Daemon
from dataplane.lab.namespaces import PYTHON

_RESTORE = (
    "-t mangle -A PREROUTING -i left -j CONNMARK --restore-mark",
    "-t mangle -A PREROUTING -i left -m mark ! --mark 0 -j ACCEPT",
)
_SAVE = "-t mangle -A PREROUTING -i left -j CONNMARK --save-mark"
_SAVE_LATER = "-t mangle -A POSTROUTING -m connmark --mark 0 -j CONNMARK --save-mark"


def needs_conntrack() -> str | None:
    return missing("iptables", "conntrack")


def _masquerade(path: Path3) -> list[str]:
    return [
        f"-t nat -A POSTROUTING -o right{link} -j MASQUERADE" for link in range(1, path.links + 1)
    ]


@contextmanager
def evenlink(path: Path3, *keys: str) -> Iterator[Serving]:
    """`evenlink run` with a file of two links, 1 to 2; `keys` are more lines at its top."""
    file = path.directory / "evenlink.toml"
    file.write_text("\n".join(_file(path, keys)) + "\n")
    with on_core(worker_core()):
        daemon = Daemon(path.router, file)
    try:
        daemon.wait_ready()
        with path.demand_mark():
            yield Serving(
                {"worker": daemon.process.pid}, lambda: path.counter("evenlink", "fallback")
            )
    finally:
        if daemon.process.poll() is None:
            daemon.stop(signal.SIGINT)  # which undoes what it applied


def _file(path: Path3, keys: Iterable[str]) -> Iterator[str]:
    yield 'lan = ["left"]'
    yield "ipv6 = false"
    yield f'state_dir = "{path.directory}/state"'
    yield f'control_socket = "{path.directory}/control.sock"'
    yield from keys
    for link in range(1, path.links + 1):
        yield f"[link.link{link}]"
        yield f'interface = "right{link}"'
        yield f'gateway = "{path.gateway(link)}"'
        yield f'capacity = "{link}Gbit"'
        yield "probes = false"  # the path has none of the public resolvers


@contextmanager
def hmark(path: Path3) -> Iterator[Serving]:
    """In-kernel HMARK, remembered by CONNMARK."""
    rules = (*_RESTORE, HMARK, _SAVE, *_masquerade(path))
    with routed(path), path.iptables(*rules):
        yield Serving()


@contextmanager
def smallest_callback(path: Path3) -> Iterator[Serving]:
    """NetfilterQueue with the smallest callback, remembered by CONNMARK."""
    rules = (*_RESTORE, *path.queued(), _SAVE_LATER, *_masquerade(path))
    command = (PYTHON, "-m", "bench.rivals.serving", "netfilterqueue-python")
    with routed(path), worker(path, *command) as serving, path.iptables(*rules):
        yield serving


@contextmanager
def untouched(path: Path3) -> Iterator[Serving]:
    """Connections are tracked and translated, and nothing is marked."""
    with path.iptables(*_masquerade(path)):
        yield Serving()


RIVALS = (
    Rival("evenlink", evenlink, needs_conntrack, links=2),
    Rival("hmark+connmark", hmark, needs_conntrack, links=2),
    Rival("netfilterqueue-python", smallest_callback, needs_conntrack, links=2),
    Rival("forward", untouched, needs_conntrack, links=2),
)
