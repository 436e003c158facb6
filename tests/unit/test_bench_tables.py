"""The benchmark of rules, lists and links measures what its rows say; how fast is not asserted."""

from __future__ import annotations

from array import array
from functools import partial
from pathlib import Path

import pytest

from bench import native, tables
from bench.measure import Options
from bench.policies import Setup, opened, opening
from dataplane.config import load
from dataplane.decide.facts import Family
from dataplane.errors import MachineError
from dataplane.hotpath import Classifier

SHORT = partial(Options, runs=1, seconds=0.001, quick=True)
POLICIES = [Setup(), Setup(1), Setup(300, links=64), Setup(2, 50), Setup(16, 1000, family=6)]


@pytest.fixture(autouse=True)
def _few_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PACKETS", 512)
    monkeypatch.setattr(tables, "ADDRESSES", 512)


@pytest.mark.parametrize("setup", POLICIES)
def test_a_policy_has_what_it_is_asked_for(setup: Setup, tmp_path: Path) -> None:
    config = load.read_file(setup.write(tmp_path))
    assert (len(config.rules), len(config.links)) == (setup.rules, setup.links)
    ranges = [len([*one.addresses.spans4(), *one.addresses.spans6()]) for one in config.lists]
    assert ranges == [setup.prefixes] * bool(setup.prefixes)
    assert len(set(config.rules)) == setup.rules


@pytest.mark.parametrize("family", [4, 6])
def test_every_other_packet_meets_the_list_and_no_other_rule(
    family: Family, tmp_path: Path
) -> None:
    setup = Setup(16, 1000, family=family)
    classifier = Classifier(opened(setup.write(tmp_path))[1])
    packets = tables._to(setup)
    marks = array("I", bytes(4 * packets.count))
    assert classifier.classify_batch(packets.buffer, packets.offsets, marks) == packets.count
    met = {rule: count for rule, count in classifier.counters()["rules"].items() if count}
    assert met == {15: packets.count // 2, 16: packets.count // 2}


def test_opening_takes_time_and_memory(tmp_path: Path) -> None:
    for name, setup in {"small": Setup(), "large": Setup(16, 100_000)}.items():
        (tmp_path / name).mkdir()
        setup.write(tmp_path / name)
    small, large = (tmp_path / name / "evenlink.toml" for name in ("small", "large"))
    found = opening(small, large)
    assert found.seconds > 0
    assert 0 < found.lists_mib < found.resident_mib <= found.peak_mib
    with pytest.raises(MachineError, match="unreadable"):
        opening(small, tmp_path / "unreadable")


def test_rows_and_curves() -> None:
    if why := native.missing("lookup.c"):
        pytest.skip(why)
    found = tables.measure(SHORT()).as_json()
    units = {row["name"]: row["unit"] for row in found["rows"]}
    assert units["256-rules-ipv6"] == units["64-links"] == "ns/packet"
    assert units["look-up-1k-ipv6"] == units["look-up-1k-waiting"] == "ns/look-up"
    assert units["1k-prefixes-ipv6-load"] == "ms"
    assert units["0-rules-memory"] == "MiB"
    assert "16-rules-ipv6-load" not in units, "a policy without a list is of both families"
    # A million prefixes are not looked at quickly.
    assert len(found["left_out"]) == 2 + 4 + 4
    assert all("1M" in name for name in found["left_out"])
    places = {name: [x for x, _ in next(iter(s.values()))] for name, s in found["curves"].items()}
    assert places == {
        f"{what}_by_{along}": places
        for what in ("cost", "load", "memory")
        for along, places in {
            "rules": [0, 1, 16, 256],
            "prefixes": [0, 1000],
            "links": [2, 8, 64],
        }.items()
    }


def test_only_what_is_wanted() -> None:
    found = tables.measure(SHORT(only=frozenset({"1-rule", "8-links-memory"}))).as_json()
    assert [row["name"] for row in found["rows"]] == ["1-rule", "8-links-memory"]
    assert "curves" not in found
