"""The whole text of what is done to the kernel, for a file on a machine, beside golden texts.

CASE.steps has the ip, iptables and sysctl lines in their order, CASE.nft the table. After a wanted
change, write them anew and read the diff as closely as code:

    pytest tests/golden --write-golden
    git diff tests/golden
"""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest

from dataplane.daemon.apply import Observed, difference
from dataplane.daemon.steps import LoadTable
from tests.golden.cases import CASES, Case, plan_of, two

HERE = Path(__file__).parent


def texts(case: Case) -> dict[str, str]:
    """Suffix -> text, of what a first start would do."""
    plan = plan_of(case.text, case.facts)
    settings = {one.key: "1" if one.only_from else "0" for one in plan.sysctls}
    nothing = Observed(frozenset(), frozenset(), frozenset(), None, settings)
    steps = difference(nothing, plan)
    tables = [step.change.text for step in steps if isinstance(step.change, LoadTable)]
    others = [step.line for step in steps if not isinstance(step.change, LoadTable)]
    return {".steps": "\n".join(others) + "\n", ".nft": "".join(tables)}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    for suffix, text in texts(CASES[name]).items():
        path = HERE / f"{name}{suffix}"
        if request.config.getoption("--write-golden"):
            path.write_text(text)
        assert text == path.read_text(), f"{path.name} differs; --write-golden writes it anew"


def test_no_golden_text_is_left_over() -> None:
    expected = {f"{name}{suffix}" for name in CASES for suffix in (".steps", ".nft")}
    found = {path.name for path in HERE.iterdir() if path.suffix in (".steps", ".nft")}
    assert found == expected


@pytest.mark.parametrize("name", CASES)
def test_nft_takes_the_text(name: str) -> None:
    """`nft --check` in a namespace of its own, where the kernel's queue statement allows."""
    if shutil.which("nft") is None:
        pytest.skip("no nft command")
    command = ["unshare", "--net", "nft", "--check", "--file", "-"]
    probe = subprocess.run(command, input="add table inet probe\n", capture_output=True, text=True)
    if probe.returncode:
        pytest.skip("no root: nft checks in a network namespace of its own")
    if CASES[name].facts.native_queue:
        queue = "table inet probe {\nchain probe {\nqueue flags bypass to 0\n}\n}\n"
        probe = subprocess.run(command, input=queue, capture_output=True, text=True)
        if probe.returncode:
            pytest.skip("the kernel has no nft queue statement (CONFIG_NFT_QUEUE)")
    done = subprocess.run(command, input=texts(CASES[name])[".nft"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shares_are_those_of_the_golden_texts() -> None:
    """What the maps of jhash spread is what the file asks for."""
    plan = plan_of(two())
    for family in (4, 6):
        held = [Fraction(link.slots_of(family), 65536) for link in plan.links]
        assert abs(held[0] - Fraction(1, 3)) < Fraction(1, 65536)
        assert sum(held) == 1
