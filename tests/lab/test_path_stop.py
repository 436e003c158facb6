"""The daemon ends, one way or another: what goes on serving, what is taken away, who adopts.

client ── router ─┬─ isp-a (1/3) ─┬─ server
                  └─ isp-b (2/3) ─┘
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from itertools import product

import pytest

from dataplane.lab import Daemon, Lab, uplinks
from dataplane.lab.topology import BOTH, Address, Family
from tests.lab.conftest import MakeLab
from tests.lab.talk import Talk, call, counted, eventually, link_of, queued, rightful_sources

KEY = "0123456789abcdef"
FAMILIES = pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
Ending = Callable[[Daemon], object]
ENDINGS: list[Ending] = [lambda daemon: daemon.stop(), lambda daemon: daemon.kill()]
EACH_ENDING = pytest.mark.parametrize("end", ENDINGS, ids=["SIGTERM", "SIGKILL"])

STATE = """
nft list tables; ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all
iptables-save; ip6tables-save; cd /proc/sys/net
for key in ipv4/ip_forward ipv6/conf/all/forwarding ipv4/conf/*/rp_filter \
    ipv4/conf/*/src_valid_mark ipv6/conf/*/accept_ra; do echo $key $(cat $key); done
"""


def machine(lab: Lab) -> list[str]:
    """Everything of the router that we touch. What iptables-save remarks is left out."""
    said = lab.router.run("sh", "-c", STATE).stdout
    return [line for line in said.splitlines() if not line.startswith("#")]


def pairs(lab: Lab, family: Family) -> list[tuple[Address, Address]]:
    return list(product(lab.topology.lans[0].clients(family), lab.topology.serving(family)))


@EACH_ENDING
def test_connections_and_known_pairs_outlive_the_daemon(two_links: Lab, end: Ending) -> None:
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    with rightful_sources(lab), ExitStack() as stack:
        known: list[tuple[Talk, Address, Address, str]] = []
        for family, protocol in product(BOTH, ("udp", "tcp")):
            for source, target in pairs(lab, family):
                talk = stack.enter_context(call(lab, target, protocol, source=source))
                known.append((talk, source, target, link_of(lab, talk.goes_on())))
        end(daemon)
        for talk, source, target, name in known:
            assert link_of(lab, talk.goes_on()) == name, "what runs goes on"
            with call(lab, target, source=source) as new:
                assert link_of(lab, new.goes_on()) == name, "a remembered pair keeps its link"
        assert counted(lab, "fallback") == len(known)

        daemon = lab.run(daemon.file)
        before = queued(daemon)
        for talk, source, target, name in known:
            assert link_of(lab, talk.goes_on()) == name, "a restart adopts"
            with call(lab, target, source=source) as new:
                assert link_of(lab, new.goes_on()) == name
        assert queued(daemon) == before + len(known)
        assert counted(lab, "fallback") == len(known)


@FAMILIES
def test_unknown_pairs_are_settled_with_the_same_shares(make_lab: MakeLab, family: Family) -> None:
    """jhash over 480 pairs: 160 are isp-a's, give or take four standard deviations."""
    lab = make_lab(uplinks(10_000_000, 20_000_000, shaped=False, hosts=24, server_count=20))
    daemon = lab.run(lab.file(key=KEY))
    daemon.kill()
    with rightful_sources(lab):
        used = []
        for source, target in pairs(lab, family):
            with call(lab, target, source=source) as talk:
                used.append(link_of(lab, talk.goes_on()))
        assert set(used) == {"isp-a", "isp-b"}
        assert 118 <= used.count("isp-a") <= 202, used.count("isp-a")
        for (source, target), name in zip(pairs(lab, family)[:40], used, strict=False):
            with call(lab, target, "tcp", source=source) as talk:
                assert link_of(lab, talk.goes_on()) == name, "the pair stays"
        assert counted(lab, "fallback") == len(used) + 40


@FAMILIES
def test_without_a_daemon_own_and_inbound_go_on(two_links: Lab, family: Family) -> None:
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    daemon.kill()
    with rightful_sources(lab):
        for target in lab.topology.serving(family):
            with Talk(lab.router, None, lab.server, target, protocol="tcp") as talk:
                assert link_of(lab, talk.goes_on()) in ("isp-a", "isp-b")
            for way in lab.topology.links:
                with Talk(lab.router, None, lab.server, target, device=way.interface) as talk:
                    assert link_of(lab, talk.goes_on()) == way.name
                with Talk(lab.server, target, lab.router, way.address(family)) as talk:
                    assert talk.goes_on() == target


def test_terminated_it_leaves_everything_in_place(two_links: Lab) -> None:
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    before = machine(lab)
    assert daemon.stop() == 0
    assert machine(lab) == before
    again = lab.run(daemon.file)
    assert machine(lab) == before, "applied twice changes nothing"
    assert "mended" not in again.log


@pytest.mark.parametrize(
    "end",
    [
        lambda lab, daemon: daemon.stop(signal.SIGINT),
        lambda lab, daemon: lab.evenlink("down", "--config", str(daemon.file)),
        lambda lab, daemon: (
            daemon.kill(), lab.evenlink("down", "--config", str(daemon.file)),
        ),
    ],
    ids=["SIGINT", "down", "SIGKILL and down"],
)  # fmt: skip
@pytest.mark.parametrize("sysctls", [{}, {"rp_filter": "1", "accept_ra": "0"}], ids=["", "set"])
def test_taken_away_the_machine_is_as_it_was(
    two_links: Lab, end: Callable[[Lab, Daemon], object], sysctls: dict[str, str]
) -> None:
    lab = two_links
    for name, value in sysctls.items():
        family = "ipv4" if name == "rp_filter" else "ipv6"
        lab.router.set({f"net/{family}/conf/{wan}/{name}": value for wan in ("wan1", "wan2")})
    before = machine(lab)
    daemon = lab.run(lab.file(key=KEY))
    changed = machine(lab)
    assert changed != before
    assert "ipv4/ip_forward 1" in changed
    assert "ipv6/conf/all/forwarding 1" in changed
    for wan in ("wan1", "wan2"):
        assert f"ipv4/conf/{wan}/rp_filter 2" in changed
        assert f"ipv4/conf/{wan}/src_valid_mark 1" in changed
        # 0 means that somebody else reads the advertisements.
        assert f"ipv6/conf/{wan}/accept_ra {sysctls.get('accept_ra', '2')}" in changed
    end(lab, daemon)
    assert machine(lab) == before


def test_down_works_without_any_state(two_links: Lab) -> None:
    """All but the settings, whose old values are known to nobody then."""
    lab = two_links
    before = [line for line in machine(lab) if not line.startswith(("ipv4/", "ipv6/"))]
    daemon = lab.run(lab.file(key=KEY))
    daemon.kill()
    for name in os.listdir(lab.directory / "state"):
        (lab.directory / "state" / name).unlink()
    lab.evenlink("down", "--config", str(daemon.file))
    after = [line for line in machine(lab) if not line.startswith(("ipv4/", "ipv6/"))]
    ours = [line for line in after if line not in before and "mangle" not in line]
    assert not [line for line in ours if line.startswith("-A") or "evenlink" in line]
    assert [line for line in before if line not in after] == []
    again = lab.evenlink("down", "--config", str(daemon.file))
    assert "nothing" in again.stdout


def test_on_stop_undo(two_links: Lab) -> None:
    lab = two_links
    before = machine(lab)
    daemon = lab.run(lab.file(key=KEY, on_stop="undo"))
    assert daemon.stop() == 0
    assert machine(lab) == before


def test_reload_by_signal_keeps_the_machine(two_links: Lab) -> None:
    lab = two_links
    daemon = lab.run(lab.file(key=KEY))
    before = machine(lab)
    daemon.reload()
    eventually(lambda: "reloaded" in daemon.log)
    assert machine(lab) == before
