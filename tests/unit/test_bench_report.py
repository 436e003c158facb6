"""The page of results says what the JSON says, for people."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.measure import Options, Result, Row, Sample, in_turn, machine, table
from bench.report import SECTIONS, write
from dataplane.errors import KernelError


def queue_result() -> dict[str, Any]:
    """Two runs of three rivals, one of which fails; and a row of ours beside `evenlink`."""

    def fails() -> Sample:
        raise KernelError("no such target")

    result = in_turn(
        {
            "evenlink": lambda: Sample(
                300_000, 6.0, {"sender": 3.0, "worker": 3.0, "softirq": 2}, 1
            ),
            "hmark": lambda: Sample(320_000, 3.0, {"sender": 3.0}, 0),
            "netfilterqueue-scapy": lambda: Sample(14_000, 150.0, {"worker": 150.0}, 90_000),
            "evenlink-first": lambda: Sample(200_000),
            "hmark+connmark": lambda: Sample(250_000),
            "numgen": fails,
        },
        "packets/s",
        Options(runs=2),
        against={"evenlink-first": None, "hmark+connmark": "evenlink-first"},
        left_out={"fnfqueue": "pip cannot install it"},
    )
    result.extra["dropped_at_80_percent"] = 0
    result.extra["at_80_percent"] = {"rate": 240_000, "sent": 480_123, "drops": {}}
    return result.as_json()


def hotpath_result() -> dict[str, Any]:
    result = Result([Row("evenlink", "ns/packet", [Sample(5.1)]), Row("floor", "ns/packet")])
    result.rows[1].samples.append(Sample(3.0))
    series = {"evenlink": [[1, 5.0], [1000, 6.0]], "floor": [[1, 3.0], [1000, 4.0]]}
    result.extra["notes"] = ["Less is better."]
    result.extra["curves"] = {"working_set": series, "links": series}
    return result.as_json()


def test_ratios_and_what_is_left_out() -> None:
    found = queue_result()
    assert found["ratios"] == {
        "evenlink/hmark": 0.9375,
        "evenlink/netfilterqueue-scapy": 21.43,
        "evenlink-first/hmark+connmark": 0.8,
    }
    assert found["left_out"] == {
        "fnfqueue": "pip cannot install it",
        "numgen": "no such target",
    }
    assert [row["name"] for row in found["rows"]] == [
        "evenlink",
        "hmark",
        "netfilterqueue-scapy",
        "evenlink-first",
        "hmark+connmark",
    ]


def test_only_the_rows_that_are_wanted_run() -> None:
    ran: list[str] = []

    def run(name: str) -> Sample:
        ran.append(name)
        return Sample(1.0)

    runs = {name: lambda name=name: run(name) for name in ("evenlink", "a", "b")}
    result = in_turn(runs, "x", Options(runs=2, only=frozenset({"evenlink", "b"})))
    assert ran == ["evenlink", "b"] * 2
    assert "evenlink/b" in table(result)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    results, docs = tmp_path / "results", tmp_path / "docs"
    results.mkdir()
    docs.mkdir()
    (results / "queue.json").write_text(json.dumps(queue_result()))
    (results / "hotpath.json").write_text(json.dumps(hotpath_result()))
    assert {path.name for path in write(results, docs)} == {
        "benchmarks.md",
        "bench-queue.svg",
        "bench-hotpath.svg",
    }
    return docs


def test_page(written: Path) -> None:
    page = (written / "benchmarks.md").read_text()
    here = machine()
    assert f"Linux {here['kernel'].split('-')[0]}, " in page
    assert here["date"][:10] in page
    assert "`python -m bench" in page
    assert "| `hmark` | 320,000 | 320,000 | 320,000 | packets/s | 0.94 | 3 | 3 |  |  | 0 |" in page
    assert "| 0.80 (evenlink-first) |" in page
    assert "lost 0 of 480,123 packets" in page
    assert "\nLess is better.\n" in page
    assert "- Left out: `numgen`: no such target" in page
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert headings == [SECTIONS["hotpath"][0], SECTIONS["queue"][0]]
    # Every row of a table has as many cells as its head.
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_pictures(written: Path) -> None:
    bars = (written / "bench-queue.svg").read_text()
    for words in ("evenlink", "hmark", "netfilterqueue-scapy", "320,000", "packets/s"):
        assert words in bars
    curves = (written / "bench-hotpath.svg").read_text()
    for words in ("floor", "working set", "links"):
        assert words in curves


def test_no_results(tmp_path: Path) -> None:
    assert [path.name for path in write(tmp_path, tmp_path)] == ["benchmarks.md"]
    assert "## " not in (tmp_path / "benchmarks.md").read_text()
