"""The benchmarks run and say what each rival did; how fast is not asserted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench import native, newconn, queue
from bench.__main__ import NAMES
from bench.connections import establish
from bench.measure import Options
from bench.path import ADDRESSES, Path3
from bench.rivals import Rival, Serving, daemon, kernel
from bench.run import one_run
from bench.sender import HOSTS, Sender
from dataplane.lab.namespaces import LabError

ROOT = Path(__file__).resolve().parents[2]
TINY = Options(runs=1, seconds=0.05)
MOST_CONNECTIONS = Path("/proc/sys/net/netfilter/nf_conntrack_max")
DEADLINE_S = 10.0


# Rows that are there wherever all tools are, and else are left out by name.
ROWS = {
    "queue": {
        *("evenlink", "callback", "evenlink-first", "forward", "hmark", "hmark+connmark"),
        *("nft-jhash", "numgen", "ecmp", "nfq-c-perpacket", "netfilterqueue-python"),
        *("netfilterqueue-scapy", "fnfqueue"),
    },
    "newconn": {
        *("evenlink", "hmark+connmark", "netfilterqueue-python", "forward"),
        *("evenlink-new-pairs", "hmark+connmark-new-pairs"),
    },
}


def bench(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def left_by(process: int) -> list[str]:
    """Namespaces and directories with the name of that process."""
    places = (Path("/run/netns"), Path(tempfile.gettempdir()))
    return [str(path) for place in places for path in place.glob(f"evl-{process}-*")]


@pytest.fixture
def path() -> Iterator[Path3]:
    with Path3(links=2) as made:
        yield made


# test_footprint.py runs that one, with fewer connections than `--quick` has.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "footprint"])
def test_gives_what_the_contract_says(name: str, tmp_path: Path) -> None:
    most = MOST_CONNECTIONS.read_text()
    tiny = ("--quick", "--runs", "1", "--seconds", "0.05")
    running = bench(name, *tiny, "--json", "--out", str(tmp_path / "results"))
    said, complaints = running.communicate(timeout=120)
    assert running.returncode == 0, complaints
    result = json.loads(said)
    assert json.loads((tmp_path / f"results/{name}.json").read_text()) == result
    names = [row["name"] for row in result["rows"]]
    assert len(set(names)) == len(names)
    for row in result["rows"]:
        assert row.keys() >= {"name", "unit", "median", "min", "max", "runs", "cpu_us_per_packet"}
        assert 0 <= row["min"] <= row["median"] <= row["max"]
    assert result["rows"]
    left_out = result.get("left_out", {})
    assert ROWS.get(name, set()) <= {*names, *left_out}
    for ratio in result["ratios"]:
        ours, _, rival = ratio.partition("/")
        assert {ours, rival} <= set(names)
    assert result["machine"].keys() >= {"processor", "cores", "kernel", "date", "command"}
    for row, why in left_out.items():
        assert row not in names
        assert f"{row} is left out: {why}" in complaints
    assert left_by(running.pid) == []
    assert MOST_CONNECTIONS.read_text() == most


def test_the_other_source_has_a_table_of_its_own(tmp_path: Path) -> None:
    tiny = ("--runs", "1", "--seconds", "0.05", "--only", "hmark,forward")
    running = bench("queue", "--offload", *tiny, "--out", str(tmp_path))
    said, complaints = running.communicate(timeout=120)
    assert running.returncode == 0, complaints
    assert [file.name for file in tmp_path.iterdir()] == ["queue-offload.json"]
    assert said.startswith("queue-offload\n")
    result = json.loads((tmp_path / "queue-offload.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["forward", "hmark"]


def test_loses_nothing_unseen(path: Path3) -> None:
    """Frames are valid, whatever is sent arrives, and both links get their share of it."""
    before = path.arrived_by_link()
    rival = next(each for each in kernel.RIVALS if each.name == "hmark")
    run = one_run(path, rival, 0.05, rate=50_000)
    assert run.sent == run.arrived > 0
    assert run.lost == 0
    assert not any(run.drops.values())
    assert run.sample.cpu_us_per_packet
    assert run.sample.cpu_us["sender"] > 0
    first, second = (count - before[link] for link, count in path.arrived_by_link().items())
    assert first + second == run.sent
    assert 0.25 < first / run.sent < 0.42  # 1/3 of 1,024 address pairs


def test_counts_no_packet_without_a_decision(path: Path3) -> None:
    """A rival that marks nothing has done nothing, though the router would forward all."""

    @contextmanager
    def idle(where: Path3) -> Iterator[Serving]:
        with where.demand_mark():
            yield Serving()

    with pytest.raises(LabError, match="no packet got through"):
        one_run(path, Rival("idle", idle), 0.05)
    assert path.drops()["undecided"] > 0
    assert path.arrived() == 0


def test_new_connections_never_repeat(path: Path3) -> None:
    count = 3 * HOSTS
    with daemon.hmark(path), Sender(path, new_connections=True, count=count) as sender:
        sender.go()
        assert sender.wait() == count
        eventually(lambda: connections(path) == count, "every packet is a connection")


def test_connections_are_established_once(path: Path3) -> None:
    with daemon.hmark(path):
        establish(path)
        assert connections(path) == ADDRESSES
        seen = path.router.run("conntrack", "-L", "-p", "udp").stdout
        assert "UNREPLIED" not in seen


def test_without_root_every_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for module in (queue, newconn):
        result = module.measure(TINY)
        assert result.rows == []
        assert set(result.left_out) >= {"evenlink", "hmark+connmark", "netfilterqueue-python"}
        assert set(result.left_out.values()) == {"no root: makes network namespaces"}


def test_a_row_without_its_tool_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No compiler, and a scapy that does not import: the others are measured."""
    built = native.build("blast.c")
    monkeypatch.setattr(native, "BUILT", tmp_path / "built")
    native.BUILT.mkdir()
    shutil.copy(built, native.BUILT)
    monkeypatch.setenv("PATH", str(tmp_path))  # root's own directories are searched in any case
    (tmp_path / "scapy").mkdir()
    (tmp_path / "scapy/__init__.py").write_text("raise ImportError('of another Python')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = frozenset({"hmark", "nfq-c-perpacket", "netfilterqueue-scapy"})
    result = queue.measure(replace(TINY, only=names))
    assert [row.name for row in result.rows] == ["hmark"]
    assert result.left_out == {
        "nfq-c-perpacket": "no C compiler (cc)",
        "netfilterqueue-scapy": "it did not start: ImportError: of another Python",
    }


def test_an_interrupted_bench_leaves_nothing() -> None:
    most = int(MOST_CONNECTIONS.read_text())
    running = bench("newconn", "--seconds", "5", "--runs", "1", "--only", "forward")
    sends = ("pgrep", "-x", "blast", "-P", str(running.pid))
    eventually(lambda: subprocess.run(sends, stdout=subprocess.DEVNULL).returncode == 0, "it sends")
    assert int(MOST_CONNECTIONS.read_text()) > most
    assert left_by(running.pid)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGTERM
    assert left_by(running.pid) == []
    assert int(MOST_CONNECTIONS.read_text()) == most


def connections(path: Path3) -> int:
    return int(path.router.run("conntrack", "-C").stdout)


def eventually(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.01)
