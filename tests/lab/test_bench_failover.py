"""The failover benchmark's rivals do what its rows say; how fast is not asserted.

client ── router ─┬─ isp-a ─┬─ server, 1.1.1.1
                  └─ isp-b ─┘          isp-b dies
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest

from bench import failover
from bench.failover import DYING, SUBJECTS, Subject, stand
from bench.measure import Options
from bench.rivals.tracking import Tracked, route
from dataplane.lab import faults
from dataplane.lab.failover import NeverError

PATIENCE_S = 30.0
ROWS = {name for subject in SUBJECTS for name in subject.rows}
NEXTHOP = next(subject for subject in SUBJECTS if "nexthop-carrier" in subject.rows)
MWAN3 = next(subject for subject in SUBJECTS if "mwan3-timing" in subject.rows)


def test_rows_are_compared_with_ours_of_the_same_death() -> None:
    against = {row: ours for subject in SUBJECTS for row, ours in subject.against.items()}
    assert against == {
        "nexthop-carrier": "evenlink-carrier",
        "nexthop-carrier-return": "evenlink-carrier-return",
        "mwan3-timing": "evenlink",
    }
    assert set(against.values()) <= ROWS


@pytest.mark.parametrize(("runs", "many", "few"), [(1, 1, 1), (5, 5, 1), (20, 20, 2)])
def test_the_slow_one_has_fewer_trials(runs: int, many: int, few: int) -> None:
    trials = {name: subject.trials(runs) for subject in SUBJECTS for name in subject.rows}
    assert trials["evenlink"] == trials["nexthop-carrier"] == many
    assert trials["mwan3-timing"] == few


@pytest.mark.parametrize("subject", SUBJECTS[:2], ids=["path", "carrier"])
def test_ours_leaves_the_link_and_returns(subject: Subject) -> None:
    with ExitStack() as stack:
        standing = stand(stack, subject)
        for _ in range(2):
            seen = standing.trial(PATIENCE_S)
            assert set(seen.homes.values()) == {"isp-a", DYING}
            assert all(figure(seen) > 0 for figure in subject.rows.values())


def test_carrier_alone_notices_carrier_alone() -> None:
    with ExitStack() as stack:
        standing = stand(stack, NEXTHOP)
        seen = standing.trial(PATIENCE_S)
        assert set(seen.homes.values()) == {"isp-a", DYING}
        assert seen.detected_ms > 0
        assert seen.udp_back_ms == 0, "not asked for"
        with pytest.raises(NeverError):
            standing.trial(1.0, faults.dropping)
        assert standing.trial(PATIENCE_S).detected_ms > 0


def test_the_tracker_leaves_a_dead_path_after_its_five_pings() -> None:
    serve = partial(failover._mwan3, interval_s=0.2, timeout_s=0.3)
    quicker = replace(MWAN3, serve=serve, within_s=0.2)
    with ExitStack() as stack:
        standing = stand(stack, quicker)
        for _ in range(2):
            # Four pauses and five patiences at least, less the one that had begun.
            assert standing.trial(PATIENCE_S).detected_ms > 1000


def test_the_tracker_counts_both_ways() -> None:
    one, other = Tracked("wan1", "192.0.2.1", 1), Tracked("wan2", "198.51.100.1", 2)
    both = ["nexthop", "via", "192.0.2.1", "dev", "wan1", "weight", "1"]
    both += ["nexthop", "via", "198.51.100.1", "dev", "wan2", "weight", "2"]
    assert route([one, other]) == ["route", "replace", "default", *both]
    assert [other.heard(answered) for answered in [False] * 4 + [True] + [False] * 5] == [
        *([False] * 9),
        True,
    ]
    assert not other.up
    assert route([one, other]) == ["route", "replace", "default", *both[:7]]
    assert [other.heard(True) for _ in range(5)] == [False] * 4 + [True]
    one.up = other.up = False
    assert route([one, other]) == []


def test_a_quick_run_leaves_the_tracker_out() -> None:
    found = failover.measure(Options(runs=1, quick=True, only=frozenset({"mwan3-timing"})))
    assert found.rows == []
    assert found.left_out == {"mwan3-timing": "a trial takes a minute; not in a quick run"}


def test_without_root_every_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = failover.measure(Options(runs=1))
    assert found.rows == []
    assert found.left_out == dict.fromkeys(ROWS, "no root: makes network namespaces")
