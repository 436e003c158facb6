"""The demo's verdict and its JSON, and what its options accept."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import pytest

from dataplane.errors import UsageError
from dataplane.tools import cli
from dataplane.tools.demo_options import capacities
from dataplane.tools.demo_result import SLOT, DemoResult, FailoverResult, LinkResult

GOOD = DemoResult(
    links=(
        LinkResult("isp-a", 10_000_000, 1 / 3, (21845 / 65536,), 0.34, 0.33, 9.9e6),
        LinkResult("isp-b", 20_000_000, 2 / 3, (43691 / 65536,), 0.66, 0.67, 19.8e6),
    ),
    connections=600,
    pairs=300,
    pairs_split=0,
    connections_opened=1200,
    connections_failed=0,
    carried_bps=29.7e6,
    carried_one_link_bps=19.9e6,
    one_link="isp-b",
    goodput_bps=28.1e6,
    wrong_source_packets=0,
    mispredicted=0,
    failover=FailoverResult(
        killed="isp-b",
        detected_ms=1512.4,
        carrier_ms=21.2,
        udp_back_ms=1530.0,
        survivors=204,
        survivor_connections_broken=0,
        pairs_moved=200 / 300,
        pairs_moved_bound=200 / 300,
        returned_exactly=True,
    ),
    seconds=38.24,
)


def test_json_has_what_programs_rely_on() -> None:
    found = GOOD.as_json()
    assert {
        "links",
        "connections",
        "pairs",
        "pairs_split",
        "connections_opened",
        "connections_failed",
        "carried_bps",
        "carried_one_link_bps",
        "goodput_bps",
        "capacity_sum_bps",
        "wrong_source_packets",
        "mispredicted",
        "failover",
        "seconds",
    } <= set(found)
    assert found["capacity_sum_bps"] == 30_000_000
    assert found["failover"] == {
        "killed": "isp-b",
        "detected_ms": 1512,
        "carrier_ms": 21,
        "survivor_connections_broken": 0,
        "pairs_moved": 0.666667,
        "pairs_moved_bound": 0.666667,
        "returned_exactly": True,
    }
    assert found["links"][0] == {
        "name": "isp-a",
        "capacity_bps": 10_000_000,
        "share_wanted": 0.333333,
        "share_slots": 0.333328,
        "share_connections": 0.34,
        "share_bytes": 0.33,
        "carried_bps": 9_900_000,
    }


def test_good_result_misses_nothing() -> None:
    assert GOOD.missed() == []


@pytest.mark.parametrize(
    ("worse", "says"),
    [
        ({"carried_bps": 29.0e6}, "carried 29.0 of 30 Mbit/s"),
        ({"carried_one_link_bps": 20.6e6}, "1.44 times the 20.6 Mbit/s of isp-b alone (1.45)"),
        ({"pairs_split": 1}, "1 of 300 address pairs were split"),
        ({"connections_failed": 2}, "2 of 1200 connections failed"),
        ({"mispredicted": 3}, "3 of 600 took a link that explain had not said"),
        ({"wrong_source_packets": 4}, "4 packets reached a provider with a wrong source"),
    ],
)
def test_each_miss_is_named(worse: dict[str, float], says: str) -> None:
    missed = replace(GOOD, **worse).missed()  # type: ignore[arg-type]
    assert len(missed) == 1
    assert says in missed[0]


@pytest.mark.parametrize(
    ("worse", "says"),
    [
        (
            {"survivor_connections_broken": 1},
            "1 of 204 connections of other links broke when isp-b died",
        ),
        (
            {"pairs_moved": 0.7},
            "70.00% of the pairs moved, 66.67% were at home on isp-b",
        ),
        ({"returned_exactly": False}, "some pair did not return to its home link"),
    ],
)
def test_each_miss_of_the_failover_is_named(worse: dict[str, float], says: str) -> None:
    worse_failover = replace(GOOD.failover, **worse)  # type: ignore[arg-type]
    missed = replace(GOOD, failover=worse_failover).missed()
    assert len(missed) == 1
    assert says in missed[0]


def test_a_late_failover_is_shown_and_is_no_miss() -> None:
    late = replace(GOOD.failover, detected_ms=2000.0)
    assert replace(GOOD, failover=late).missed() == []
    assert [met for met, _ in late.times()] == [False, True, True]
    assert [met for met, _ in GOOD.failover.times()] == [True, True, True]


def test_slots_may_be_off_by_one_in_each_family() -> None:
    first, second = GOOD.links
    off = replace(first, share_slots=(first.share_slots[0], 1 / 3 - 1.5 * SLOT))
    assert len(replace(GOOD, links=(off, second)).missed()) == 1


def test_capacities() -> None:
    assert capacities("1:2.5") == [1_000_000, 2_500_000]


@pytest.mark.parametrize(
    "text", ["", "10", "10:", "a:b", "0.1:1", "1:nan", "1:inf", "1:" * 9 + "1"]
)
def test_capacities_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected 2 to 8 rates in Mbit/s"):
        capacities(text)


def test_demo_refuses_before_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--picture", "demo.bmp"]) == UsageError.exit_status
    assert "expected a name in .png or .svg" in capsys.readouterr().err


def test_demo_without_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert cli.main(["demo", "--json"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "evenlink: demo: needs root, since it makes network namespaces; try sudo\n"
    )


def test_missed_reach_is_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    worse = replace(GOOD, pairs_split=1)
    monkeypatch.setattr("dataplane.tools.demo.experiment", lambda *_: worse)
    assert cli.main(["demo", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["pairs_split"] == 1
    assert "missed: 1 of 300 address pairs were split" in captured.err
