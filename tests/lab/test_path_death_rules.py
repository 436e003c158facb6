"""A link dies that a rule's group has to itself: what was spread over it moves all the same.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘          isp-b dies; group alone is isp-b, and nothing else
"""

from __future__ import annotations

from dataplane.lab import Lab
from tests.lab.talk import eventually, flows_again, link_of, rightful_sources, talks, tracked
from tests.lab.test_path_death import KEY, carrier_off, is_dead

ALONE = """
[group.alone]
links = ["isp-b"]
method = "failover"

[[rule]]
protocol = "tcp"
destination_port = 9
use = "alone"
"""


def test_a_group_of_one_dead_link_holds_nobody(two_links: Lab) -> None:
    """The group still has a link that would serve, but its rule leads elsewhere meanwhile."""
    lab = two_links
    daemon = lab.run(lab.file(text=lab.file(key=KEY).read_text() + ALONE))
    datagrams = talks(lab, "udp")
    with rightful_sources(lab, moving=True):
        carrier_off(lab)
        eventually(lambda: is_dead(daemon))
        eventually(lambda: not tracked(lab, f"mark={2 << 24}"), "they are forgotten")
        for talk in datagrams["isp-b"]:
            eventually(lambda talk=talk: flows_again(talk), "UDP moves")  # type: ignore[misc]
            assert link_of(lab, talk.says()) == "isp-a"
            talk.answers()
