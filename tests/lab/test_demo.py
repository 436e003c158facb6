"""`evenlink demo`, in small: the real daemon over two links, three, and IPv6 only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from dataplane.lab.daemon import COMMAND
from dataplane.lab.namespaces import environment
from dataplane.tools.demo_run import layout

SMALL = ("demo", "--json", "--seconds", "4", "--pairs", "60")


@pytest.mark.parametrize(
    "options",
    [(), ("--links", "2.5:5:12.5", "--ipv6-only")],
    ids=["two links", "three links, ipv6 only"],
)
def test_demo_reaches_what_it_promises(options: tuple[str, ...], tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    done = subprocess.run(
        [*COMMAND, *SMALL, "--picture", str(picture), *options],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pairs"] >= 60
    assert found["connections"] == 2 * found["pairs"]
    assert found["connections_opened"] == 2 * found["connections"]
    for reach in ("pairs_split", "connections_failed", "mispredicted", "wrong_source_packets"):
        assert found[reach] == 0
    assert found["carried_bps"] >= 0.97 * found["capacity_sum_bps"]
    failover = found["failover"]
    assert failover["survivor_connections_broken"] == 0
    assert 0 < failover["pairs_moved"] == failover["pairs_moved_bound"] < 1
    assert failover["returned_exactly"] is True
    best = max(found["links"], key=lambda link: link["capacity_bps"])
    assert failover["killed"] == best["name"]
    assert 0 < failover["carrier_ms"] < 20_000
    assert 0 < failover["detected_ms"] < 20_000
    for link in found["links"]:
        assert abs(link["share_slots"] - link["share_wanted"]) <= 1 / 65536
    assert picture.read_text().startswith("<?xml")
    assert "dies and returns" in picture.read_text()
    assert str(picture) in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(sent: signal.Signals) -> None:
    demo = subprocess.Popen(
        [*COMMAND, *SMALL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )

    def traces() -> list[str]:
        names = [*os.listdir("/run/netns"), *os.listdir(tempfile.gettempdir())]
        return [name for name in names if name.startswith(f"evl-{demo.pid}-")]

    deadline = time.monotonic() + 30
    while not any(name.endswith("-files") for name in traces()):
        assert demo.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        demo.send_signal(sent)
        out, _ = demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == 130
    assert out == b""
    assert traces() == []


@pytest.mark.parametrize("ipv6_only", [False, True])
@pytest.mark.parametrize("pairs", [20, 60, 299, 300, 1000])
def test_layout_has_enough_pairs_and_not_many_more(pairs: int, ipv6_only: bool) -> None:
    made = layout([1_000_000, 2_000_000], pairs, ipv6_only).pairs()
    assert pairs <= len(made) <= 1.2 * pairs
    assert {source.version for source, _ in made} == ({6} if ipv6_only else {4, 6})
