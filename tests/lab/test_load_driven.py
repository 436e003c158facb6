"""least-used and lowest-latency follow what is measured of real links.

clients ── router ─┬─ isp-a, 10 Mbit/s ─┬─ servers
                   └─ isp-b, 20 Mbit/s ─┘
"""

from __future__ import annotations

from pathlib import Path

from dataplane.lab import Lab, faults
from dataplane.lab.traffic import serve
from tests.lab.beyond import KEY, is_, states
from tests.lab.conftest import MakeLab
from tests.lab.links import is_quiet
from tests.lab.loading import (
    PORT,
    TOPOLOGY,
    closed,
    goes_by,
    goes_over,
    links_of,
    load,
    opens,
)
from tests.lab.talk import eventually, file_with, rightful_sources


def measured(lab: Lab, method: str, probe: dict[str, object], **keys: object) -> Path:
    made: Path = file_with(
        lab, sections={"balance": {"method": method, **keys}, "probe": probe}, key=KEY
    )
    return made


def test_the_least_used_link(make_lab: MakeLab) -> None:
    """The wide one, until less of it is free than of the narrow one; nobody is moved."""
    lab = make_lab(TOPOLOGY)
    serve(lab, PORT)
    daemon = lab.run(measured(lab, "least-used", {}))
    eventually(is_(daemon, "up"))
    goes_over(lab, "isp-b")
    with rightful_sources(lab):
        early, downloads = opens(lab), load(lab, 1)
        goes_over(lab, "isp-a")
        late = opens(lab)
        assert links_of(lab, late) == {"isp-a"}
        assert links_of(lab, early) == {"isp-b"}
        downloads.end()
        assert not downloads.failures
        goes_over(lab, "isp-b")
        assert links_of(lab, late) == {"isp-a"}
    closed(early, late)
    is_quiet(daemon)


def test_the_link_with_the_lowest_latency(make_lab: MakeLab) -> None:
    """A long queue makes a link slow. Its connections stay, and what is new goes elsewhere."""
    lab = make_lab(TOPOLOGY)
    serve(lab, PORT)
    # Asked often, a link is known soon; and it is slow, not dead.
    probe = {"targets": ["1.1.1.1", "2606:4700:4700::1111"], "interval_ms": 100, "down": 50}
    daemon = lab.run(measured(lab, "lowest-latency", probe, margin_ms=40))
    eventually(is_(daemon, "up"))
    assert goes_by(lab) == {"isp-a"}
    with rightful_sources(lab):
        early = opens(lab)
        downloads = load(lab, 1, receive_buffer=64 << 10)
        goes_over(lab, "isp-b")
        assert links_of(lab, early) == {"isp-a"}
        late = opens(lab)
        assert states(daemon) == {"isp-a": "up", "isp-b": "up"}
        downloads.end()
        assert not downloads.failures
        assert links_of(lab, late) == {"isp-b"}, "both are fast now: nothing changes"
        with faults.no_carrier(lab, "isp-a"):
            eventually(is_(daemon, "down", "isp-a"))
            assert goes_by(lab) == {"isp-b"}
        eventually(is_(daemon, "up", "isp-a"))
        assert goes_by(lab) == {"isp-b"}
        assert links_of(lab, late) == {"isp-b"}
    closed(early, late)
    is_quiet(daemon)
