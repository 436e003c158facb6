"""The daemon is small, stays small, and its workers take no memory for a packet.

    clients ── lan0 router wan1/wan2 ── providers, which throw away what comes

How fast it starts and what it holds in megabytes is for `python -m bench footprint` to say.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import footprint
from bench.connections import room_for_connections
from bench.footprint import Beginner, Memory, fill
from bench.measure import Options
from dataplane.lab import Lab
from dataplane.lab.daemon import COMMAND
from dataplane.lab.namespaces import environment
from tests.lab.conftest import MakeLab

PACKETS = 200_000
# Batches as full as they get, so that every page of the worker's buffers was used once.
WARM_UP = 50_000
# What only the lab, the tests and the commands for people need.
FOREIGN = {
    "hypothesis", "matplotlib", "numpy", "PIL", "pygments", "pytest", "rich", "scapy", "xxhash",
    "bench", "tests",
}  # fmt: skip
_IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)
_ROWS, _ROW = 256, struct.Struct("=QQ")
_PATIENCE_S = 30


@pytest.fixture
def busy(make_lab: MakeLab) -> Iterator[tuple[Lab, Beginner]]:
    """A lab whose clients can begin hundreds of thousands of connections."""
    with room_for_connections(2 * PACKETS):
        lab = make_lab(footprint.TOPOLOGY)
        footprint.throw_away(lab)
        with Beginner(lab) as beginner:
            yield lab, beginner


@dataclass(frozen=True, slots=True)
class Thread:
    """What a thread has used so far: ticks of CPU, and pages that it was the first to touch."""

    cpu: int
    faults: int


def threads(process: int) -> dict[int, Thread]:
    found = {}
    for task in Path("/proc", str(process), "task").iterdir():
        # Behind the name, which may hold anything: state is the first column (proc(5), 3).
        columns = (task / "stat").read_text().rpartition(") ")[2].split()
        found[int(task.name)] = Thread(int(columns[11]) + int(columns[12]), int(columns[7]))
    return found


def started(lab: Lab, file: Path, **environment: str) -> subprocess.Popen[str]:
    """`evenlink run` in that environment, when it is ready. What it says is in its log."""
    log = file.with_suffix(".log")
    # The environment is the daemon's alone: `ip netns exec` comes before it.
    changed = [f"{name}={value}" for name, value in environment.items()]
    with log.open("w") as stream:
        process = lab.router.start("env", *changed, *COMMAND, "run", str(file), stderr=stream)
    deadline = time.monotonic() + _PATIENCE_S
    while " ready: " not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "it is not ready"
        time.sleep(0.02)
    return process


def test_imports(two_links: Lab) -> None:
    """From its start to its end, while it is asked all that it answers."""
    file = two_links.file()
    process = started(two_links, file, PYTHONPROFILEIMPORTTIME="1")
    two_links.evenlink("status", "--json", "--config", str(file))
    two_links.evenlink("explain", "10.10.1.0", "203.0.113.1", "--config", str(file))
    two_links.evenlink("reload", "--config", str(file))
    process.send_signal(signal.SIGINT)
    assert process.wait(_PATIENCE_S) == 0
    imported = set(_IMPORTED.findall(file.with_suffix(".log").read_text()))
    assert {"dataplane.hotpath", "dataplane.daemon.main", "netfilterqueue"} <= imported
    assert not {name.split(".")[0] for name in imported} & FOREIGN
    assert not {name for name in imported if name.startswith("dataplane.lab")}


def test_memory_does_not_follow_connections(busy: tuple[Lab, Beginner]) -> None:
    lab, beginner = busy
    daemon = lab.run()
    fill(lab, beginner, 1000)
    before = Memory.of(daemon.process.pid)
    fill(lab, beginner, PACKETS)
    after = Memory.of(daemon.process.pid)
    assert daemon.status()["queue"]["packets"] >= PACKETS
    assert after.resident_mib <= 64
    assert after.resident_mib - before.resident_mib <= 1


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_loop_takes_no_memory(busy: tuple[Lab, Beginner], tmp_path: Path) -> None:
    """Not one call of malloc and its like in 200,000 packets, and no pages."""
    lab, beginner = busy
    counting, table = tmp_path / "allocations.so", tmp_path / "allocations"
    source = Path(__file__).with_name("allocations.c")
    flags = ("-O2", "-shared", "-fPIC", "-Wall", "-Wextra")
    subprocess.run(["cc", *flags, "-o", counting, source], check=True)
    table.write_bytes(bytes(_ROWS * _ROW.size))
    process = started(lab, lab.file(), LD_PRELOAD=str(counting), ALLOCATIONS=str(table))
    fill(lab, beginner, WARM_UP)
    before, calls = threads(process.pid), allocations(table)
    fill(lab, beginner, PACKETS)
    after, calls_then = threads(process.pid), allocations(table)
    worker = max(before, key=lambda thread: after[thread].cpu - before[thread].cpu)
    assert worker != process.pid
    # The main thread, where the modules were loaded, shows that calls are counted at all.
    assert calls[process.pid] > 1000
    assert calls_then.get(worker, 0) == calls.get(worker, 0)
    # Buffers that no batch had needed before are touched once.
    assert after[worker].faults - before[worker].faults < 64


def allocations(table: Path) -> dict[int, int]:
    """By thread, what allocations.c has counted so far."""
    return {thread: calls for thread, calls in _ROW.iter_unpack(table.read_bytes()) if thread}


def test_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark runs, with fewer connections; how fast is not asserted."""
    monkeypatch.setattr(footprint, "CONNECTIONS", 20_000)
    monkeypatch.setattr(footprint, "PROBING_S", 2.0)
    found = footprint.measure(Options(runs=1)).as_json()
    assert "left_out" not in found
    rows = {row["name"]: row for row in found["rows"]}
    assert rows.keys() == {"start", "restart", "idle", "connections", "probing"}
    probed = rows.pop("probing")
    assert probed["with_pct"] > 0
    assert all(row["median"] > 0 for row in rows.values())
    assert found["decided"] >= 20_000


# Freed once, a block makes glibc take others of its size from the heap from then on.
_LARGE = """
import ctypes
from dataplane.daemon.main import return_large_blocks

class Used(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost",
    )]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Used
return_large_blocks()
bytes(1 << 20)
before = library.mallinfo2().hblks
block = bytes(1 << 20)
print("mapped:", library.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="no glibc 2.33 or newer")
def test_large_blocks_leave_no_holes() -> None:
    command = (sys.executable, "-c", _LARGE)
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.stdout == "mapped: 1\n", done.stderr
