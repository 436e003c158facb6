"""A queue worker whose socket fails: the kernel settles meanwhile, and the daemon starts another.

    client ── lan0 router wan1/wan2 ── providers ── servers

The router runs inside the test's process here, as its descriptors have to be reached.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from dataplane.config.load import read_file
from dataplane.daemon.answers import Answers
from dataplane.daemon.router import Router
from dataplane.lab import Lab


@pytest.fixture
def router(two_links: Lab) -> Iterator[Router]:
    """A started router in the lab's namespace; all of it is undone."""
    with two_links.router.inside():
        made = Router(read_file(two_links.file(name="death.toml")), lambda transition: None)
        made.claim()
        try:
            made.start(made.look(), {})
            yield made
        finally:
            made.stop(undo=True)


def ping(lab: Lab) -> bool:
    source, target = lab.topology.lans[0].clients(4)[0], lab.topology.serving(4)[0]
    command = ("ping", "-c1", "-W2", "-I", str(source), str(target))
    return lab.client.run(*command, check=False).returncode == 0


def test_a_dead_worker_is_replaced(two_links: Lab, router: Router) -> None:
    answers, engine = Answers(router), router.engine
    descriptor = engine._workers[0].fileno()  # type: ignore[attr-defined]
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor)
    os.close(nothing)
    engine._workers[0].stop()  # wakes it: its next read meets the wrong descriptor
    deadline = time.monotonic() + 5
    while engine.alive():
        assert time.monotonic() < deadline, "the worker lives without its socket"
        time.sleep(0.01)
    assert any("worker" in fault for fault in answers.status({}, {}, ())["faults"])
    assert ping(two_links)
    assert answers.status({}, {}, ())["queue"]["fallback"] == 1

    router.refresh(router.look(), {})

    assert answers.status({}, {}, ())["faults"] == []
    two_links.router.run("conntrack", "-F")
    assert ping(two_links)
    assert answers.status({}, {}, ())["queue"]["packets"] == 1
    assert answers.status({}, {}, ())["queue"]["fallback"] == 1
