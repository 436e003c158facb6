"""A link that is full is left by what is new, and taken again when it has room.

clients ── router ─┬─ isp-a, 10 Mbit/s ─┬─ servers      [isp-a, isp-b] in this order
                   └─ isp-b, 20 Mbit/s ─┘
"""

from __future__ import annotations

from pathlib import Path

from dataplane.lab import Lab, faults
from dataplane.lab.traffic import serve
from tests.lab.beyond import KEY, is_
from tests.lab.conftest import MakeLab
from tests.lab.links import is_quiet
from tests.lab.loading import (
    FIRST_NUMBER,
    PORT,
    TOPOLOGY,
    closed,
    filled,
    goes_by,
    goes_over,
    links_of,
    opens,
    told,
)
from tests.lab.talk import eventually, file_with, rightful_sources


def overflowing(lab: Lab, *order: str, **keys: object) -> Path:
    """The topology's file with that method."""
    links = list(order or ("isp-a", "isp-b"))
    balance = {"method": "overflow", "links": links, **keys}
    made: Path = file_with(lab, sections={"balance": balance}, key=KEY)
    return made


def test_a_third_clients_connections_leave_a_full_link(make_lab: MakeLab) -> None:
    """They return when it is empty, and none ever changes its link."""
    lab = make_lab(TOPOLOGY)
    serve(lab, PORT)
    daemon = lab.run(overflowing(lab))
    eventually(is_(daemon, "up"))
    assert goes_by(lab) == told(lab, daemon) == {"isp-a"}
    with rightful_sources(lab) as witness:
        early = opens(lab)
        with filled(lab, 1, 2):
            goes_over(lab, "isp-b")
            assert told(lab, daemon) == {"isp-b"}
            late = opens(lab)
            assert links_of(lab, late) == {"isp-b"}
            assert links_of(lab, early) == {"isp-a"}
        goes_over(lab, "isp-a")
        assert told(lab, daemon) == {"isp-a"}
        assert links_of(lab, early) == {"isp-a"}
        assert links_of(lab, late) == {"isp-b"}
        used = witness.testimony().links
        heavy = [links for number, links in used.items() if number >= FIRST_NUMBER]
        assert heavy == [{"isp-a"}] * 16
    closed(early, late)
    is_quiet(daemon)


def test_a_full_link_is_better_than_none(make_lab: MakeLab) -> None:
    """The other one dies: what is new goes by the full one, until that is back."""
    lab = make_lab(TOPOLOGY)
    serve(lab, PORT)
    daemon = lab.run(overflowing(lab))
    eventually(is_(daemon, "up"))
    with filled(lab, 1, 2):
        goes_over(lab, "isp-b")
        with faults.no_carrier(lab, "isp-b"):
            eventually(is_(daemon, "down"))
            goes_over(lab, "isp-a")
        eventually(is_(daemon, "up"))
        goes_over(lab, "isp-b")
    is_quiet(daemon)


def test_another_file_has_another_order(make_lab: MakeLab) -> None:
    """And another idea of what is full: a link that is half used, or as a rule none at all."""
    lab = make_lab(TOPOLOGY)
    serve(lab, PORT)
    daemon = lab.run(overflowing(lab, "isp-b", "isp-a"))
    eventually(is_(daemon, "up"))
    assert goes_by(lab) == {"isp-b"}
    with rightful_sources(lab), filled(lab, 1, 2):
        goes_over(lab, "isp-a")
        overflowing(lab)
        daemon.reload()
        eventually(lambda: "reloaded" in daemon.log)
        assert goes_by(lab) == {"isp-a"}
    file_with(lab, key=KEY)
    daemon.reload()
    eventually(lambda: goes_by(lab) == {"isp-a", "isp-b"}, "as nothing is measured any more")
    is_quiet(daemon)
