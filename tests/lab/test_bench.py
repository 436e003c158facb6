"""The benchmarks run and say what each rival did; how fast is not asserted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane.lab.namespaces import environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    shutil.which("ethtool", path=environment()["PATH"]) is None, reason="no ethtool"
)
@pytest.mark.skipif(os.geteuid() != 0, reason="no root: makes network namespaces")
def test_queue(tmp_path: Path) -> None:
    options = ["--json", "--runs", "1", "--seconds", "0.1", "--out", str(tmp_path / "results")]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "queue", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert json.loads((tmp_path / "results/queue.json").read_text()) == result
    assert result.keys() == {"rows", "ratios", "machine"}
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() == {"evenlink", "callback", "netfilterqueue-python", "forward"}
    for row in rows.values():
        assert row["unit"] == "packets/s"
        assert row["min"] <= row["median"] <= row["max"]
        assert row["median"] > 0
        assert row["runs"] == 1
    assert result["ratios"].keys() == {f"evenlink/{name}" for name in rows if name != "evenlink"}
