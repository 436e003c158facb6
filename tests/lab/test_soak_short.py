"""The soaks of `make soak`, for some seconds each and with fewer links.

client ── router ─┬─ isp-1 ─┬─ server      links that lose, flap and die, in tests/soak
                  └─ … ─────┘
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.lab.conftest import MakeLab
from tests.soak import flapping, load, overflow, remains, still
from tests.soak.__main__ import main
from tests.soak.flapping import schedule
from tests.soak.watching import Outcome

SEED = 4


def well(found: Outcome) -> None:
    assert not found.faults, "\n".join([*found.faults, *found.told])


def test_small_losses_move_nobody(make_lab: MakeLab) -> None:
    well(still.run(make_lab(still.TOPOLOGY), 0.2, print))


def test_flapping_leaves_nothing(make_lab: MakeLab) -> None:
    well(flapping.run(make_lab(flapping.topology(6)), 0.15, SEED, print, at_once=2))


def test_nobody_notices_under_load(make_lab: MakeLab) -> None:
    well(load.run(make_lab(load.TOPOLOGY), 0.02, SEED, print))


def test_a_constant_load_changes_the_choice_once(make_lab: MakeLab) -> None:
    lab = make_lab(overflow.TOPOLOGY)
    well(overflow.run(lab, 0.2, print, lasting=False, left_within_s=10.0))


def test_schedule() -> None:
    """The same seed gives the same breaks; no link is broken twice at once, nor too many."""
    names = [link.name for link in flapping.topology(10).links]
    breaks = schedule(names, 100, 3, random.Random(SEED))
    assert breaks == schedule(names, 100, 3, random.Random(SEED))
    assert {one.fault for one in breaks} == set(flapping.FAULTS)
    for one in breaks:
        assert 0 <= one.from_s < one.to_s <= 100
        meanwhile = [two for two in breaks if two.from_s <= one.from_s < two.to_s]
        assert len(meanwhile) <= 3
        assert Counter(two.link for two in meanwhile)[one.link] == 1


def test_differences() -> None:
    before = {"ip rule": ["a", "b", "b"], "sysctl": ["c"]}
    after = {"ip rule": ["b", "d"], "sysctl": ["c"]}
    assert remains.differences(before, after) == [
        "ip rule: lacks a",
        "ip rule: lacks b",
        "ip rule: has got d",
    ]


@pytest.mark.parametrize("wrong", [["nothing"], ["--minutes", "0"]])
def test_wrong_arguments(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
