"""The benchmarks whose rivals stand ready together: who was asked, and what is compared with what.

How fast they are is not asserted.
"""

from __future__ import annotations

import pytest

from bench import latency, native, path, tcp
from bench.measure import Options, Result
from dataplane.lab.namespaces import LabError


def known(result: Result) -> dict[str, float]:
    """The medians by row; a skip where nothing can run here."""
    if not result.rows:
        pytest.skip("; ".join(sorted(set(result.left_out.values()))))
    return {row.name: row.median for row in result.rows}


def test_tcp() -> None:
    only = frozenset({"forward", "evenlink", "evenlink-first", "forward+conntrack"})
    result = tcp.measure(Options(runs=1, seconds=0.05, quick=True, only=only))
    rates = known(result)
    assert rates.keys() == only
    assert all(rate > 0 for rate in rates.values())
    assert result.ratios.keys() == {"evenlink/forward", "evenlink-first/forward+conntrack"}
    assert all(row.extra["sent_again"] >= 0 for row in result.rows)


def test_latency() -> None:
    only = frozenset({"evenlink", "evenlink-spin", "netfilterqueue-python", "evenlink-first"})
    result = latency.measure(Options(runs=1, seconds=0.05, only=only))
    assert known(result).keys() == only
    found = result.as_json()
    assert found["ratios"].keys() == {
        "evenlink/netfilterqueue-python",
        "evenlink-spin/netfilterqueue-python",
    }
    for row in found["rows"]:
        assert row["unit"] == "us added"
        assert 0 < row["round_trip_us"] <= row["p99_us"]
    # It never sleeps: a ping is sent at most once in two pauses.
    spin = next(row for row in found["rows"] if row["name"] == "evenlink-spin")
    assert spin["worker_us"] > latency.PAUSE_US


def test_every_ping_was_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival that lets pings pass would be quick: the router drops what has no mark."""
    why = path.missing("iptables") or native.missing("echo.c")
    if why:
        pytest.skip(why)
    monkeypatch.setattr(path.Path3, "queued", lambda _: [])
    monkeypatch.setattr(latency, "_FEWEST", 2)
    with pytest.raises(LabError, match=r"evenlink: of 2 pings 0 got an answer"):
        latency.measure(Options(runs=1, seconds=0.001, only=frozenset({"evenlink"})))
