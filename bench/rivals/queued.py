"""Marks from behind a queue: Evenlink's two engines, and what others write.

Each is a process of its own on the worker's core, with the same iptables rule, queue length, bytes
copied and socket buffer. The Python ones are bench/rivals/serving.py.
"""

from __future__ import annotations

import importlib.util
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

from bench import native
from bench.path import QUEUE, Path3
from bench.rivals import Rival, Serving
from bench.rivals.kernel import needs_iptables, routed
from bench.sender import on_core, worker_core
from dataplane.config.marks import Marks
from dataplane.lab.namespaces import PYTHON, LabError

LENGTH = 1024
COPY_BYTES = 128
BUFFER_BYTES = LENGTH * 1152
PACKAGES = Path(__file__).parents[2] / "build" / "bench" / "packages"
_INSTALL_S = 60.0
_START_S = 30.0
_END_S = 5.0


@contextmanager
def worker(path: Path3, *command: str) -> Iterator[Serving]:
    """The command as the worker on the router, from "ready" until it is killed."""
    with on_core(worker_core()):
        process = path.router.start(
            *command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": os.pathsep.join([*sys.path, str(PACKAGES)])},
        )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        started, _, _ = select.select([process.stdout], [], [], _START_S)
        if not started:
            raise LabError(f"it did not start within {_START_S:g} s")
        if process.stdout.readline().strip() != "ready":
            said = process.stderr.read().strip().splitlines()
            raise LabError(f"it did not start: {said[-1] if said else command[0]}")
        yield Serving({"worker": process.pid})
        if process.poll() is not None:
            raise LabError(f"it ended while it served: {process.stderr.read().strip()}")
    finally:
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        process.stdout.close()
        process.stderr.close()


@contextmanager
def python(kind: str, path: Path3) -> Iterator[Serving]:
    """One of serving.py's kinds, and every packet queued to it."""
    with (
        _marked(kind, path),
        worker(path, PYTHON, "-m", "bench.rivals.serving", kind) as serving,
        path.iptables(*path.queued()),
    ):
        yield serving


@contextmanager
def _marked(kind: str, path: Path3) -> Iterator[None]:
    """Evenlink's marks are in the place that its configuration gives them by default."""
    if kind not in ("evenlink", "callback"):
        with routed(path):
            yield
        return
    marks = Marks()
    links = {f"{marks.mark(link):#x}/{marks.mask:#x}": link for link in (1, 2)}
    with path.demand_mark():
        if path.links == 1:
            yield
            return
        with path.by_mark(links):
            yield


@contextmanager
def perpacket(path: Path3) -> Iterator[Serving]:
    """C, one recv and one send a packet."""
    program = str(native.build("perpacket.c"))
    arguments = (str(number) for number in (QUEUE, LENGTH, COPY_BYTES, BUFFER_BYTES))
    with (
        routed(path),
        worker(path, program, *arguments) as serving,
        path.iptables(*path.queued()),
    ):
        yield serving


def _no_compiler() -> str | None:
    return needs_iptables() or native.missing("perpacket.c")


def _no_scapy() -> str | None:
    absent = importlib.util.find_spec("scapy") is None
    return needs_iptables() or ("scapy is not installed" if absent else None)


@cache
def _no_fnfqueue() -> str | None:
    """It is installed into build/bench/packages the first time."""
    reason = needs_iptables()
    if reason or (PACKAGES / "fnfqueue").is_dir():
        return reason
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--retries", "1", "--timeout", "10", "--target", str(PACKAGES), "fnfqueue"],
            capture_output=True,
            text=True,
            timeout=_INSTALL_S,
        )
    except subprocess.TimeoutExpired:
        return "pip cannot install it: no answer"
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return f"pip cannot install it: {said[-1] if said else 'it does not say why'}"
    return None


RIVALS = (
    Rival("evenlink", partial(python, "evenlink"), needs_iptables),
    Rival("callback", partial(python, "callback"), needs_iptables),
    Rival("nfq-c-perpacket", perpacket, _no_compiler),
    Rival("netfilterqueue-python", partial(python, "netfilterqueue-python"), needs_iptables),
    Rival("netfilterqueue-scapy", partial(python, "netfilterqueue-scapy"), _no_scapy),
    Rival("fnfqueue", partial(python, "fnfqueue"), _no_fnfqueue),
)
