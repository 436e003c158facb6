"""What a decision costs, without a clock: instructions a packet, counted by callgrind.

Each row decides one fixed capture with the flags that setup.py compiles with. The capture is run
once and five times, and the difference divided by its packets: the start cancels out. `pytest -rP`
shows what every row counts. If a new cost is worth it, write both numbers down here; the budget is
a tenth above what was counted.
"""

from __future__ import annotations

import ast
import platform
import re
import shutil
import subprocess
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest

from dataplane.config.marks import Marks
from dataplane.config.model import Fields, Ports
from dataplane.decide.program import ProgramRule, Slots, compile_program, everywhere

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKETS = 512
ROUNDS = (1, 5)
MARKS = Marks()
SLOTS = bytes([1, 2, 2]) * 21845 + bytes([1])
COUNTED = re.compile(r"Collected : (\d+)")


def ipv4(any_: Random) -> bytes:
    protocol = any_.choice([6, 6, 6, 17, 17, 1])
    head = b"\x45\0\0\x40" + any_.randbytes(2) + b"\x40\0\x40" + bytes([protocol, 0, 0])
    return head + any_.randbytes(8 + 44)


def ipv4_with_options(any_: Random) -> bytes:
    """A NOP four times: not plain, so it goes the general way."""
    return b"\x46" + (packet := ipv4(any_))[1:20] + b"\1" * 4 + packet[20:60]


def ipv6(any_: Random) -> bytes:
    return (
        b"\x60\0\0\0\0\x18" + bytes([any_.choice([6, 6, 6, 17, 17, 58]), 64]) + any_.randbytes(56)
    )


def no_rules() -> bytes:
    rule = ProgramRule("all", everywhere(Slots(SLOTS)))
    return compile_program(marks=MARKS, key=9, rules=[rule])


def ports_both_ways() -> bytes:
    fields = Fields.BOTH_ADDRESSES_AND_PORTS
    rule = ProgramRule("all", everywhere(Slots(SLOTS, fields, symmetric=True)))
    return compile_program(marks=MARKS, key=9, rules=[rule])


def hundred_rules() -> bytes:
    """Over lists of 100 prefixes each, which instructions.c makes; hardly a packet meets one."""
    lists = [f"list {number}" for number in range(100)]
    rules = [ProgramRule(name, everywhere(1), destination=(name,)) for name in lists]
    rules.append(ProgramRule("all", everywhere(Slots(SLOTS))))
    return compile_program(marks=MARKS, key=9, rules=rules, lists=lists)


def ports() -> bytes:
    """As a router's policy is: sixteen rules on protocols and ports, and no list."""
    rules = [
        ProgramRule(
            f"port {number}",
            everywhere(1),
            protocols=(6,),
            destination_ports=(Ports(number * 100, number * 100 + 9),),
        )
        for number in range(16)
    ]
    rules.append(ProgramRule("all", everywhere(Slots(SLOTS))))
    return compile_program(marks=MARKS, key=9, rules=rules)


@dataclass(frozen=True)
class Row:
    """`way`: what instructions.c calls it. `counted`: gcc 12, x86-64, 2026-11-24."""

    name: str
    way: str
    packet: Callable[[Random], bytes]
    block: Callable[[], bytes]
    counted: float
    budget: int


ROWS = [
    Row("batch, IPv4, no rules", "batch", ipv4, no_rules, 65.0, 72),
    Row("batch, IPv6, no rules", "batch", ipv6, no_rules, 74.1, 82),
    Row("batch, IPv4 with options, no rules", "batch", ipv4_with_options, no_rules, 215.7, 237),
    Row("batch, IPv4, ports, symmetric", "batch", ipv4, ports_both_ways, 285.1, 314),
    Row("batch, IPv4, 16 rules on ports", "batch", ipv4, ports, 382.3, 421),
    Row("batch, IPv4, 100 rules", "batch", ipv4, hundred_rules, 486.0, 535),
    Row("worker, IPv4, no rules", "worker", ipv4, no_rules, 329.8, 363),
    Row("worker, IPv6, no rules", "worker", ipv6, no_rules, 350.7, 386),
]


def flags() -> list[str]:
    """What setup.py gives the compiler."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLAGS":
            return list(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no FLAGS")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """instructions.c; a skip where it cannot be made or counted."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the budgets are for x86_64, this is {platform.machine()}")
    for needed in ("cc", "valgrind"):
        if shutil.which(needed) is None:
            pytest.skip(f"no {needed}")
    made = tmp_path_factory.mktemp("instructions") / "instructions"
    command = ["cc", *flags(), f"-I{ROOT / 'cext'}", "-o", str(made)]
    subprocess.run([*command, str(HERE / "instructions.c")], check=True)
    return made


def write_capture(file: Path, packet: Callable[[Random], bytes]) -> None:
    any_ = Random(1)
    packets = [packet(any_) for _ in range(PACKETS)]
    offsets = accumulate((len(each) for each in packets), initial=0)
    file.write_bytes(array("I", [PACKETS, *offsets]).tobytes() + b"".join(packets))


def instructions(command: list[str]) -> int:
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *command],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = COUNTED.search(done.stderr)
    assert found, done.stderr
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "nothing was decided"
    return int(found[1])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_decision_stays_within_its_budget(row: Row, program: Path, tmp_path: Path) -> None:
    block, capture = tmp_path / "block", tmp_path / "capture"
    block.write_bytes(row.block())
    write_capture(capture, row.packet)
    once, more = (
        instructions([str(program), row.way, str(rounds), str(block), str(capture)])
        for rounds in ROUNDS
    )
    each = (more - once) / (ROUNDS[1] - ROUNDS[0]) / PACKETS
    print(f"{each:.1f} instructions a packet")
    assert each <= row.budget
