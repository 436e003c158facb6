"""A list's file that is watched: what is written there is in force soon.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

from pathlib import Path

from dataplane.lab import Lab
from tests.lab.talk import call, eventually, link_of, rightful_sources

KEY = "0123456789abcdef"
RULE = """
[list.office]
files = ["office.txt"]
watch = {watch}

[[rule]]
destination = ["@office"]
use = "isp-a"
"""


def ways(lab: Lab) -> dict[str, set[str]]:
    """By server, the links that new connections of all hosts there take."""
    found: dict[str, set[str]] = {}
    for source, target in lab.topology.pairs():
        with call(lab, target, source=source) as talk:
            found.setdefault(str(target), set()).add(link_of(lab, talk.goes_on()))
    return found


def files(lab: Lab, watch: str) -> tuple[Path, Path]:
    """The daemon's, and the list's."""
    listed = lab.directory / "office.txt"
    listed.write_text("203.0.113.2\n")
    text = lab.file(key=KEY).read_text()
    return lab.file(text=text + RULE.replace("{watch}", watch)), listed


BOTH, ONE = {"isp-a", "isp-b"}, {"isp-a"}


def test_a_watched_file_is_read_again(two_links: Lab) -> None:
    """Written in place, and put into the place of the old one."""
    lab = two_links
    file, listed = files(lab, "true")
    lab.run(file)
    with rightful_sources(lab):
        before = ways(lab)
        assert (before["203.0.113.2"], before["203.0.113.3"]) == (ONE, BOTH)
        listed.write_text("203.0.113.3\n")
        eventually(lambda: (now := ways(lab))["203.0.113.3"] == ONE and now["203.0.113.2"] == BOTH)
        fresh = lab.directory / "office.new"
        fresh.write_text("203.0.113.2\n2001:db8:53::2\n")
        fresh.replace(listed)
        eventually(lambda: (now := ways(lab))["203.0.113.2"] == ONE and now["203.0.113.3"] == BOTH)
        assert ways(lab)["2001:db8:53::2"] == ONE


def test_a_watched_file_with_a_fault_is_refused(two_links: Lab) -> None:
    """What was read before stays in force, and the log names file, line and text."""
    lab = two_links
    file, listed = files(lab, "true")
    daemon = lab.run(file)
    listed.write_text("203.0.113.3\n203.0.113.300\n")
    eventually(lambda: "office.txt:2" in daemon.log and "203.0.113.300" in daemon.log)
    assert ways(lab)["203.0.113.2"] == ONE
    listed.unlink()
    eventually(lambda: daemon.log.count("office.txt") > 1)
    assert ways(lab)["203.0.113.2"] == ONE
    listed.write_text("203.0.113.3\n")
    eventually(lambda: ways(lab)["203.0.113.3"] == ONE)


def test_another_file_is_not_read_again(two_links: Lab) -> None:
    """Until the daemon is told to."""
    lab = two_links
    file, listed = files(lab, "false")
    daemon = lab.run(file)
    listed.write_text("203.0.113.3\n")
    assert ways(lab)["203.0.113.2"] == ONE
    daemon.reload()
    eventually(lambda: ways(lab)["203.0.113.3"] == ONE)
