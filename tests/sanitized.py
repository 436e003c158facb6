"""C programs of the tests, built with the sanitizers and run: one byte too far is a fault."""

from __future__ import annotations

import shutil
import subprocess
from array import array
from collections.abc import Iterable
from pathlib import Path

import pytest

CEXT = Path(__file__).parents[1] / "cext"
FLAGS = ["-O1", "-g", "-std=gnu11", "-Wall", "-Wextra", "-fno-sanitize-recover=all", "-pthread"]


def built(source: Path, directory: Path, sanitizers: str = "address,undefined") -> Path:
    """The program in `directory`; a skip where the compiler, or the machine, has no sanitizers."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = directory / source.stem
    command = [compiler, *FLAGS, f"-fsanitize={sanitizers}", f"-I{CEXT}", "-o", str(made)]
    probe = subprocess.run(
        [*command, "-x", "c", "-"],
        input="int main(void) { return 0; }",
        capture_output=True,
        text=True,
    )
    if probe.returncode or subprocess.run([made], capture_output=True).returncode:
        pytest.skip(f"no program with -fsanitize={sanitizers} runs here")
    subprocess.run([*command, str(source)], check=True)
    return made


def answers(program: Path, numbers: Iterable[int]) -> list[str]:
    """The lines that it prints when it is given these 64-bit numbers."""
    done = subprocess.run(
        [program], input=array("Q", numbers).tobytes(), capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()
