"""Labs for tests. What the machine lacks makes a skip that names it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from dataplane.lab import Lab, Topology, UnavailableError, uplinks

MakeLab = Callable[[Topology], Lab]
TWO_LINKS = uplinks(10_000_000, 20_000_000, shaped=False)


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("no root: the lab makes network namespaces")


@pytest.fixture
def make_lab() -> Iterator[MakeLab]:
    """Builds labs that are removed when the test ends."""
    with ExitStack() as stack:

        def make(topology: Topology) -> Lab:
            try:
                return stack.enter_context(Lab(topology))
            except UnavailableError as lacking:
                pytest.skip(str(lacking))

        yield make


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The lab of `two_links`, one for a whole file."""
    try:
        with Lab(TWO_LINKS) as built:
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture
def two_links(make_lab: MakeLab) -> Lab:
    """isp-a and isp-b, 10 and 20 Mbit in the file, not shaped; IPv4 and IPv6."""
    return make_lab(TWO_LINKS)
