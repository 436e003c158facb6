"""The policy, foretold and counted: what `explain` says of a packet is what the server then sees.

client ─┐          ┌─ isp-a ─┐
        ├─ router ─┼─ isp-b ─┼─ server
dmz ────┘          └─ isp-c ─┘
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane.lab import Daemon, Lab, UnavailableError
from tests.lab.sent import DEFAULT, THERE, TOPOLOGY, Sent, Take, serving, taking

POLICY = f"""
{DEFAULT}
[group.turn]
links = ["isp-b", "isp-c"]
method = "nth"
[group.best]
links = ["isp-c", "isp-b"]
method = "failover"
[list.office]
entries = ["{THERE}", "2001:db8:53::/64"]
[[rule]]
in = "lan1"
use = "isp-c"
[[rule]]
destination = "@office"
protocol = "udp"
destination_port = ["7-9", 5060]
use = "isp-b"
[[rule]]
dscp = 46
use = "best"
[[rule]]
protocol = "tcp"
destination_port = 1000
use = "turn"
"""
SENT = {
    "by rule 1": Sent(lan="dmz", source=None, target="203.0.113.2", port=7),
    "by rule 2": Sent(port=8),
    "by rule 3": Sent(target="203.0.113.3", port=8, dscp=46),
    "by rule 4": Sent(target="203.0.113.4", port=1000, protocol="tcp"),
    "by the default": Sent(target="203.0.113.5", port=8),
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        with Lab(TOPOLOGY) as built:
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with serving(lab) as daemon:
        yield daemon


@pytest.fixture
def take(lab: Lab, daemon: Daemon) -> Iterator[Take]:
    with taking(lab) as take:
        yield take


def ask(lab: Lab, daemon: Daemon, sent: Sent) -> dict[str, Any]:
    """By its words on the command line."""
    interface = "lan1" if sent.lan == "dmz" else "lan0"
    words = [sent.source or "10.11.0.11", sent.target, "--protocol", sent.protocol]
    words += ["--dport", str(sent.port), "--dscp", str(sent.dscp), "--in", interface]
    done = lab.evenlink("explain", "--json", *words, "--config", str(daemon.file))
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def test_each_rule_is_foretold_and_counted(lab: Lab, daemon: Daemon, take: Take) -> None:
    take(POLICY)
    for number, (what, sent) in enumerate(SENT.items(), 1):
        foretold = ask(lab, daemon, sent)
        rule = f"rule {number}" if number < len(SENT) else "default"
        assert foretold["rule"] == rule, what
        link = sent.by(lab)
        legal = [one["name"] for one in foretold["candidates"]] or [foretold["link"]]
        assert link in legal, what
        counted = {one["name"]: one["packets"] for one in daemon.status()["rules"]}
        assert counted[rule] == 1, what
    names = [one["name"] for one in daemon.status()["rules"]]
    assert names == ["rule 1", "rule 2", "rule 3", "rule 4", "default"]


def test_every_rule_up_to_the_deciding_one_is_told(lab: Lab, daemon: Daemon, take: Take) -> None:
    take(POLICY)
    steps = ask(lab, daemon, SENT["by rule 4"])["steps"]
    told = [step.split(": ", 1)[1] for step in steps if " (line " in step]
    assert told == [
        "it comes in by lan0, not by lan1",
        "destination 203.0.113.4 is not in @office; protocol tcp is not udp; "
        "destination port 1000 is none of 7-9, 5060",
        "DSCP 0 is not 46",
        "protocol tcp: yes; destination port 1000: yes",
    ]
    assert "the next in turn decides: isp-b 40.00%, isp-c 60.00%" in steps


def test_groups_and_rules_are_shown_where_there_are_some(
    lab: Lab, daemon: Daemon, take: Take
) -> None:
    take(POLICY)
    groups = {one["name"]: one for one in daemon.status()["groups"]}
    assert groups["best"]["preferred"] == {"ipv4": "isp-c", "ipv6": "isp-c"}
    assert groups["turn"]["preferred"] == {"ipv4": None, "ipv6": None}
    shown = lab.evenlink("status", "--config", str(daemon.file)).stdout
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "best failover isp-c, isp-b isp-c" in lines
    assert any(line.startswith("rule 2 ") and " isp-b " in line for line in lines)
    assert "list office: 2 ranges, 0 names, 0 learned" in lines
    take("")
    shown = lab.evenlink("status", "--config", str(daemon.file)).stdout
    assert "rule" not in shown
    assert "group" not in shown


def test_thousands_of_flows_with_many_rules(lab: Lab, daemon: Daemon, take: Take) -> None:
    """More than fits into one answer."""
    take("".join(f"[[rule]]\ndestination_port = {n}\nuse = 'isp-a'\n" for n in range(1, 257)))
    flows = [f"10.10.{n >> 8}.{n & 255} {THERE} tcp 5 256" for n in range(1100)]
    answers = daemon.explain(flows)
    assert len(answers) == len(flows)
    assert {one["rule"] for one in answers} == {"rule 256"}
