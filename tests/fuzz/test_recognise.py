"""Copies that were made to break who reads them. FUZZ_ROUNDS says for how long they come."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dataplane.daemon.recogniser import available
from tests.sanitized import built

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "60000"))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(Path(__file__).parent / "talks.c", tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_messages_and_the_table_of_talks(talks: Path, seed: int) -> None:
    done = subprocess.run(
        [talks, str(ROUNDS), str(seed)], capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not available(), reason="built without nDPI")
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_payloads_that_were_made_to_break_the_library(seed: int) -> None:
    """In a process of its own, as in the product: nDPI is not ours to mend. This many it takes."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.spoiled", str(ROUNDS), str(seed)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > ROUNDS // 2
