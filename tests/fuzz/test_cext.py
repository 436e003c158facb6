"""Hostile packets, netlink messages and program blocks, and the queue worker's threads, under the
sanitizers. FUZZ_ROUNDS says for how long the hostile bytes come."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from dataplane.config.marks import Marks
from dataplane.config.model import Fields, Ports, Sticky
from dataplane.decide.program import Draw, ProgramRule, Slots, compile_program, everywhere
from tests.policies import table
from tests.sanitized import built

HERE = Path(__file__).parent
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "60000"))
MARKS = Marks()


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(HERE / "harness.c", tmp_path_factory.mktemp("fuzz"))


def blocks() -> dict[str, bytes]:
    """harness.c makes lists, and learns of members, as many as a block speaks of."""
    slots = {
        fields: everywhere(Slots(table(1, MARKS), fields, symmetric=True)) for fields in Fields
    }
    all_fields = [
        ProgramRule(fields, actions, source=("a", "b")[: n % 3])
        for n, (fields, actions) in enumerate(slots.items())
    ]
    remembered = {"remember": True, "sticky": Sticky.PAIR, "sticky_ms": 5000}
    conditions = [
        ProgramRule("list", everywhere(1), destination=("b",), interfaces=(1, 2)),
        ProgramRule(
            "protocol", everywhere(Draw("nth", {1: 1, 2: 9})), protocols=(6,), **remembered
        ),
        ProgramRule("ports", {4: Draw("random", {3: 4, 4: 1})}, source_ports=(Ports(1, 9),)),
        ProgramRule("idle", {}),
        ProgramRule("both", everywhere(2), source=("a",), destination_ports=(Ports(0, 300),)),
        ProgramRule("learned", everywhere(3), applications=("video", "games")),
        ProgramRule("dscp", slots[Fields.SRC_PORT], dscp=(0, 63), **remembered),
        ProgramRule("rest", everywhere(5)),
    ]
    apart = [ProgramRule("idle", {})] * 63
    return {
        "one rule": compile_program(
            marks=MARKS, key=1, rules=[ProgramRule("r", slots[Fields.BOTH_PORTS])]
        ),
        "the pair": compile_program(
            marks=MARKS, key=1, rules=[ProgramRule("r", everywhere(Slots(table(2, MARKS))))]
        ),
        "all fields": compile_program(
            marks=MARKS, key=2**64 - 1, rules=all_fields[::-1], lists=["a", "b"]
        ),
        "all conditions": compile_program(
            marks=MARKS,
            key=2,
            rules=[*conditions[:3], *apart, *conditions],
            lists=["a", "b"],
            applications=["video", "games"],
        ),
    }


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["one rule", "the pair", "all fields", "all conditions"])
def test_hostile_bytes(harness: Path, tmp_path: Path, kind: str, seed: int) -> None:
    block = tmp_path / "block"
    block.write_bytes(blocks()[kind])
    done = subprocess.run(
        [harness, str(ROUNDS), str(seed), block], capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_passed_is_said_at_a_boundary_and_not_before(sanitizers: str, tmp_path: Path) -> None:
    program = built(HERE / "boundary.c", tmp_path, sanitizers)
    names = []
    for decision in (1, 2):
        rule = ProgramRule("r", everywhere(decision))
        names.append(tmp_path / f"decides {decision}")
        names[-1].write_bytes(compile_program(marks=MARKS, key=1, rules=[rule]))
    done = subprocess.run([program, *names], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
