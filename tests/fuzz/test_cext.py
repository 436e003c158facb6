"""Hostile packets, netlink messages and program blocks, and the queue worker's threads, under the
sanitizers. FUZZ_ROUNDS says for how long the hostile bytes come."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dataplane.config.marks import Marks
from dataplane.config.model import Fields
from dataplane.decide.program import AddressRange, Family, ProgramRule, compile_program
from tests.policies import table

HERE = Path(__file__).parent
CEXT = HERE.parents[1] / "cext"
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "60000"))
MARKS = Marks()


def built(name: str, sanitizers: str, directory: Path) -> Path:
    """The C program of that name; a skip where the compiler, or the machine, has no sanitizers."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = directory / name
    flags = ["-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-fno-sanitize-recover=all", "-pthread"]
    command = [compiler, *flags, f"-fsanitize={sanitizers}", f"-I{CEXT}", "-o", str(made)]
    probe = subprocess.run(
        [*command, "-x", "c", "-"],
        input="int main(void) { return 0; }",
        capture_output=True,
        text=True,
    )
    if probe.returncode or subprocess.run([made], capture_output=True).returncode:
        pytest.skip(f"no program with -fsanitize={sanitizers} runs here")
    subprocess.run([*command, str(HERE / f"{name}.c")], check=True)
    return made


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("harness", "address,undefined", tmp_path_factory.mktemp("fuzz"))


def blocks() -> dict[str, bytes]:
    slots: dict[Family, bytes] = {4: table(1, MARKS), 6: table(2, MARKS)}
    lists = {
        "a": [AddressRange(4, 0, 1 << 30), AddressRange(6, 1 << 120, 1 << 126)],
        "b": [AddressRange(4, n << 20, (n << 20) + 77) for n in range(0, 4096, 3)],
    }
    all_fields = [
        ProgramRule(f, f, symmetric=n % 2 == 0, tables=slots, source=("a", "b")[: n % 3])
        for n, f in enumerate(Fields)
    ]
    return {
        "one rule": compile_program(marks=MARKS, key=1, rules=[ProgramRule("r", tables=slots)]),
        "rules and lists": compile_program(
            marks=MARKS, key=2**64 - 1, rules=all_fields[::-1], lists=lists
        ),
    }


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", ["one rule", "rules and lists"])
def test_hostile_bytes(harness: Path, tmp_path: Path, kind: str, seed: int) -> None:
    block = tmp_path / "block"
    block.write_bytes(blocks()[kind])
    done = subprocess.run(
        [harness, str(ROUNDS), str(seed), block], capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_passed_is_said_at_a_boundary_and_not_before(sanitizers: str, tmp_path: Path) -> None:
    program = built("boundary", sanitizers, tmp_path)
    names = []
    for decision in (1, 2):
        rule = ProgramRule("r", decision=decision)
        names.append(tmp_path / f"decides {decision}")
        names[-1].write_bytes(compile_program(marks=MARKS, key=1, rules=[rule]))
    done = subprocess.run([program, *names], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
