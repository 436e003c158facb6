"""Links that answer badly, seldom or by fits; who is told of it; and who is taken back to them.

client ── router ─┬─ isp-a ─┬─ server, and public resolvers
                  └─ isp-b ─┘
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from dataplane.lab import Lab, faults
from dataplane.lab import daemon as lab_daemon
from dataplane.lab.namespaces import PYTHON
from tests.lab.beyond import (
    KEY,
    QUICK,
    SERVER,
    NameServer,
    asked,
    is_,
    link,
    probed,
    states,
    takes,
    talk_over,
)
from tests.lab.talk import (
    Talk,
    eventually,
    file_with,
    link_of,
    rightful_sources,
    status,
    tracked,
)

OF_B = f"mark={2 << 24}"
RESOLVERS = ["1.1.1.1", "9.9.9.9"]


def flows_by(lab: Lab, talk: Talk, name: str) -> bool:
    """Whether question and answer get through by that link now."""
    talk.peer = None
    talk.near.settimeout(0.3)
    talk.far.settimeout(0.3)
    try:
        return link_of(lab, talk.goes_on()) == name
    except OSError:
        return False


def test_a_link_that_loses_much_is_left(two_links: Lab) -> None:
    """As a dead one is; but where nothing better is left, it serves."""
    lab = two_links
    # That many bad rounds in a row do not come by chance.
    keys = {"targets": RESOLVERS, "loss_down": 0.5, "loss_up": 0.45, "down": 30, **QUICK}
    daemon = lab.run(probed(lab, keys))
    survivors = [talk_over(lab, "isp-a"), talk_over(lab, "isp-a", "tcp")]
    datagrams, stream = talk_over(lab, "isp-b"), talk_over(lab, "isp-b", "tcp")
    with rightful_sources(lab, moving=True) as witness:
        with faults.losing(lab, "isp-b", 0.75):
            eventually(is_(daemon, "down"))
            assert states(daemon)["isp-a"] == "up"
            why = link(daemon)["why"]
            assert why.endswith("% of the answers are lost, more than 50%")
            assert 50 <= int(why.partition("%")[0]) < 95
            eventually(lambda: not tracked(lab, OF_B), "its connections are forgotten")
            eventually(lambda: flows_by(lab, datagrams, "isp-a"), "UDP moves")
            assert takes(lab) == {"isp-a"}
            for talk in survivors:
                assert link_of(lab, talk.goes_on()) == "isp-a"
            assert link(daemon)["serves"] is False
        eventually(is_(daemon, "up"))
        assert takes(lab) == {"isp-a", "isp-b"}
        for talk in (datagrams, *survivors):
            assert link_of(lab, talk.goes_on()) == "isp-a", "a connection keeps its link"
        kept = {talk.number for talk in survivors}
        assert not kept & set(witness.testimony().torn())
    for talk in (*survivors, datagrams, stream):
        talk.close()


def test_the_last_link_is_not_left_for_its_quality(two_links: Lab) -> None:
    lab = two_links
    keys = {"targets": RESOLVERS, "loss_down": 0.05, "down": 30, **QUICK}
    daemon = lab.run(probed(lab, keys))
    with faults.losing(lab, "isp-b", 0.4):
        eventually(is_(daemon, "down"))
        eventually(lambda: link(daemon)["serves"] is False)
        # It answers, though badly, and the other one does not at all.
        with faults.dropping(lab, "isp-a"):
            eventually(is_(daemon, "down", "isp-a"))
            eventually(lambda: link(daemon)["serves"] is True)
            assert link(daemon, "isp-a")["serves"] is False
            fault = next(one for one in status(daemon)["faults"] if "isp-b is down" in one)
            assert "of the answers are lost" in fault
            assert fault.endswith("it stays in use, since no other link is better")
            datagrams = talk_over_lossy(lab)
            assert tracked(lab, OF_B, f"sport={datagrams.ports[0]}")
            datagrams.close()
        eventually(is_(daemon, "up", "isp-a"))
        eventually(lambda: link(daemon)["serves"] is False)
        assert states(daemon)["isp-b"] == "down"


def talk_over_lossy(lab: Lab) -> Talk:
    """A conversation over isp-b that got through."""
    source, target = lab.topology.pairs()[0]
    talk = Talk(lab.client, source, lab.server, target)
    eventually(lambda: flows_by(lab, talk, "isp-b"), "the last link serves")
    return talk


def test_a_slow_link_is_left(two_links: Lab) -> None:
    """Each answer comes, but late."""
    lab = two_links
    keys = {"kind": "dns", "targets": [SERVER], "latency_down_ms": 200, "latency_up_ms": 190}
    with NameServer(lab) as server, rightful_sources(lab, moving=True):
        daemon = lab.run(probed(lab, {**keys, **QUICK, "timeout_ms": 1000}))
        datagrams = talk_over(lab, "isp-b")
        server.delay_s = 0.25
        eventually(is_(daemon, "down"))
        assert states(daemon)["isp-a"] == "up"
        found = re.fullmatch(r"answers take (\d+) ms, longer than 200 ms", link(daemon)["why"])
        assert found
        assert int(found[1]) >= 200
        (target,) = link(daemon)["targets"]
        assert target["ok"] is True
        assert target["loss"] == 0
        assert 250 <= target["rtt_ms"] < 1000
        eventually(lambda: flows_by(lab, datagrams, "isp-a"), "UDP moves")
        assert takes(lab) == {"isp-a"}
        server.delay_s = 0.0
        eventually(is_(daemon, "up"))
        assert takes(lab) == {"isp-a", "isp-b"}
        datagrams.close()


def test_a_metered_link_is_asked_seldom(two_links: Lab) -> None:
    """Every five seconds, the other one twice a second: nothing in the file says so."""
    lab = two_links
    with asked(lab, "isp-a") as plain, asked(lab, "isp-b") as metered:
        daemon = lab.run(file_with(lab, {"isp-b": {"metered": True}}, key=KEY))
        assert states(daemon) == {"isp-a": "up", "isp-b": "up"}
        # At the start links may be asked more often, while their addresses settle.
        before_plain, before_metered = plain(), metered()
        eventually(lambda: plain() >= before_plain + 7)
        assert metered() <= before_metered + 2
        eventually(lambda: metered() > before_metered, "but asked it is")
        assert link(daemon)["state"] == "up"


def test_a_link_that_flaps_is_held(two_links: Lab) -> None:
    """The first return is at once, the second takes five seconds, the third would take ten."""
    lab = two_links
    daemon = lab.run(probed(lab, {"targets": RESOLVERS, **QUICK}))
    eventually(is_(daemon, "up"))
    with faults.dropping(lab, "isp-b"):
        eventually(is_(daemon, "down"))
        assert link(daemon)["hold_ms"] == 0
    eventually(is_(daemon, "up"))
    with faults.dropping(lab, "isp-b"):
        eventually(is_(daemon, "down"))
        assert link(daemon)["hold_ms"] == 5000
        mended_s = time.monotonic()
    seen = []

    def is_back() -> bool:
        seen.append((one := link(daemon))["hold_ms"])
        assert (one["state"] == "up") == (one["hold_ms"] == 0 and one["carries"] != [])
        return bool(one["carries"])

    eventually(is_back)
    assert time.monotonic() - mended_s >= 5.0
    assert 5000 >= seen[0] > 0 == seen[-1]
    assert any(0 < hold_ms < 4000 for hold_ms in seen), "it is told how much is left"
    with faults.dropping(lab, "isp-b"):
        eventually(is_(daemon, "down"))
        assert link(daemon)["hold_ms"] == 10_000
    eventually(lambda: 0 < link(daemon)["hold_ms"] < 10_000)
    assert states(daemon) == {"isp-a": "up", "isp-b": "down"}


class Following:
    """`evenlink status --follow`, a process of its own."""

    def __init__(self, lab: Lab, file: Path, *options: str) -> None:
        name = f"followed{len(options)}"
        self._said, self._complained = lab.directory / f"{name}.out", lab.directory / f"{name}.err"
        command = (*lab_daemon.COMMAND, "status", "--follow", *options, "--config", str(file))
        with self._said.open("w") as said, self._complained.open("w") as complained:
            self._process = lab.router.start(*command, stdout=said, stderr=complained)

    @property
    def said(self) -> list[str]:
        return self._said.read_text().splitlines()

    def ended(self) -> tuple[int, str]:
        """With which status, and the last words."""
        return self._process.wait(10), self._complained.read_text()


def test_followers_and_the_hook_hear_the_same(two_links: Lab) -> None:
    """Each of a transition once; and when the daemon ends, so do they."""
    lab = two_links
    program, told = lab.directory / "hook", lab.directory / "told"
    program.write_text(
        "#!/bin/sh\necho $EVENLINK_AT $EVENLINK_LINK $EVENLINK_BEFORE $EVENLINK_STATE "
        f'"$EVENLINK_WHY" >> {told}\n'
    )
    program.chmod(0o755)
    file = probed(lab, {"targets": RESOLVERS, **QUICK}, on_change=[str(program)])
    daemon = lab.run(file)
    plain, machine = Following(lab, file), Following(lab, file, "--json")
    eventually(lambda: any("queue:" in line for line in plain.said) and machine.said)
    shown = len(plain.said)
    with faults.dropping(lab, "isp-b"):
        eventually(is_(daemon, "down"))
        eventually(lambda: len(machine.said) == 2, "it is told at once")
    eventually(is_(daemon, "up"))
    eventually(lambda: told.exists() and len(told.read_text().splitlines()) == 2)
    assert daemon.stop() == 0
    for follower in (plain, machine):
        ended, words = follower.ended()
        assert ended == 3
        assert words.startswith("evenlink: ")
    transitions: list[dict[str, Any]] = [json.loads(line) for line in machine.said[1:]]
    why = "no answer from 1.1.1.1 and 9.9.9.9"
    assert [(one["link"], one["before"], one["state"], one["why"]) for one in transitions] == [
        ("isp-b", "up", "down", why),
        ("isp-b", "down", "up", ""),
    ]
    assert [one["carries"] for one in transitions] == [[], ["ipv4", "ipv6"]]
    assert told.read_text().splitlines() == [
        " ".join(one[key] for key in ("at", "link", "before", "state", "why"))
        for one in transitions
    ]
    # Date and time come first; the times of day are local there.
    assert [line.split(maxsplit=2)[2] for line in plain.said[shown:]] == [
        f"isp-b  down  {why}",
        "isp-b  up",
    ]


def test_the_daemon_drains_what_went_elsewhere(
    two_links: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is idle goes home, and what speaks stays. Idle is four seconds here, not a minute."""
    lab = two_links
    script = (
        "import functools, sys\n"
        "from dataplane.daemon import connections\n"
        "from dataplane.tools.cli import main\n"
        "connections.Failback = functools.partial(connections.Failback, idle_s=4.0)\n"
        "sys.exit(main())\n"
    )
    file = file_with(
        lab, {"isp-b": {"failback": "drain"}}, sections={"[link.isp-b.probe]": QUICK}, key=KEY
    )
    with monkeypatch.context() as patched:
        patched.setattr(lab_daemon, "COMMAND", (PYTHON, "-c", script))
        daemon = lab.run(file)
    homes = talk_over(lab, "isp-b"), talk_over(lab, "isp-a")
    with rightful_sources(lab, moving=True) as witness:
        with faults.no_carrier(lab, "isp-b"):
            eventually(is_(daemon, "down"))
            eventually(lambda: flows_by(lab, homes[0], "isp-a"))
            elsewhere = {
                (kind, protocol): again(lab, homes[0], protocol)
                for kind in ("busy", "idle")
                for protocol in ("udp", "tcp")
            }
            for talk in elsewhere.values():
                assert link_of(lab, talk.goes_on()) == "isp-a"
        eventually(is_(daemon, "up"))
        idle = [talk for (kind, _), talk in elsewhere.items() if kind == "idle"]
        speaking = [elsewhere["busy", "udp"], elsewhere["busy", "tcp"], homes[1]]

        def all_idle_are_gone() -> bool:
            for talk in speaking:
                assert link_of(lab, talk.goes_on()) == "isp-a"
            return not any(tracked(lab, f"sport={talk.ports[0]}") for talk in idle)

        began_s = time.monotonic()
        eventually(all_idle_are_gone, timeout_s=30)
        assert time.monotonic() - began_s >= 2.0, "not at once"
        for talk in speaking:
            assert link_of(lab, talk.goes_on()) == "isp-a"
        assert flows_by(lab, elsewhere["idle", "udp"], "isp-b")
        torn = set(witness.testimony().torn())
        assert not torn & {talk.number for talk in speaking}
    for talk in (*homes, *elsewhere.values()):
        talk.close()


def again(lab: Lab, talk: Talk, protocol: str) -> Talk:
    """Another conversation of the same pair."""
    source, target = talk.near.getsockname()[0], talk.near.getpeername()[0]
    return Talk(lab.client, source, lab.server, target, protocol=protocol)
