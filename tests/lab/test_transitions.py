"""Between two states: what a stop, a restart, a refusal or another plan must not lose or leave.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import signal
import time

import pytest

from dataplane.lab import Daemon, Lab
from tests.lab.machine import held, under, wrapper
from tests.lab.talk import Talk, call, eventually, link_of, status, tracked

KEY = "0123456789abcdef"


def serve(lab: Lab) -> Daemon:
    return lab.run(lab.file(key=KEY))


def talk_over(lab: Lab, name: str) -> Talk:
    """A UDP conversation that went over that link."""
    for target in lab.topology.serving(4):
        for source in lab.topology.lans[0].clients(4):
            talk = call(lab, target, source=source)
            if link_of(lab, talk.goes_on()) == name:
                return talk
            talk.close()
    raise AssertionError(f"no pair goes over {name}")


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.08])
def test_a_reload_that_comes_behind_a_stop_applies_nothing(two_links: Lab, pause_s: float) -> None:
    before = held(two_links)
    daemon = serve(two_links)
    daemon.process.send_signal(signal.SIGINT)
    time.sleep(pause_s)  # not a wait: the moment is what is tested
    daemon.process.send_signal(signal.SIGHUP)
    daemon.process.wait(20)
    assert held(two_links) == before


def test_a_restart_forgets_the_connections_of_a_link_that_died_meanwhile(two_links: Lab) -> None:
    daemon = serve(two_links)
    dead, living = talk_over(two_links, "isp-b"), talk_over(two_links, "isp-a")
    daemon.stop(signal.SIGTERM)
    two_links["isp-b"].run("ip", "link", "set", "dev", "link", "down")
    assert tracked(two_links, f"sport={dead.ports[0]}")
    again = serve(two_links)
    assert {one["name"]: one["state"] for one in status(again)["links"]} == {
        "isp-a": "up",
        "isp-b": "down",
    }
    assert not tracked(two_links, f"sport={dead.ports[0]}", "mark=33554432")
    living.goes_on()
    dead.close()
    living.close()


def test_a_refused_start_leaves_what_was_remembered(two_links: Lab) -> None:
    """As after a reboot: the kernel holds nothing, the directory knows the running home table."""
    daemon = serve(two_links)
    daemon.stop(signal.SIGTERM)
    two_links.evenlink("down", "--config", str(daemon.file))
    kept = two_links.directory / "state" / "state.json"
    serve(two_links).stop(signal.SIGTERM)
    remembered = kept.read_bytes()
    other = two_links.file(name="other.toml", key=KEY)
    other.write_text(other.read_text().replace("20Mbit", "90Mbit"))
    refusing = wrapper(two_links, "nft", '"nft -f -"', "the kernel says no")
    done = under(two_links, refusing, "run", str(other))
    assert done.returncode == 3
    assert "the kernel says no" in done.stderr
    assert kept.read_bytes() == remembered


def test_down_leaves_an_empty_mangle_table_of_somebody_else(two_links: Lab) -> None:
    two_links.router.run("nft", "add", "table", "ip", "mangle")
    before = held(two_links)
    daemon = serve(two_links)
    two_links.evenlink("down", "--config", str(daemon.file))
    assert daemon.process.wait(20) == 0
    assert held(two_links) == before


def test_remembered_pairs_outlive_a_plan_that_moves_no_slot(two_links: Lab) -> None:
    daemon = serve(two_links)
    talk_over(two_links, "isp-b").close()

    def pairs() -> int:
        listed = two_links.router.run("nft", "list", "set", "inet", "evenlink", "pairs4_2").stdout
        return listed.count("expires")

    known = pairs()
    assert known > 0
    two_links.router.run("ip", "address", "add", "192.0.2.77/24", "dev", "wan1")
    eventually(
        lambda: "192.0.2.77" in two_links.router.run("ip", "rule").stdout, "the address is followed"
    )
    assert pairs() == known
    two_links.router.run("ip", "link", "set", "dev", "wan1", "down")
    eventually(
        lambda: status(daemon)["links"][0]["state"] == "down" and pairs() == 0,
        "slots moved, so pairs are forgotten",
    )


def test_whoever_asks_much_does_not_hold_up_the_links(two_links: Lab) -> None:
    """Questions are answered beside the router: a thousand flows and a dead link at once."""
    daemon = serve(two_links)
    many = [f"10.10.1.0 203.0.113.{1 + n % 6} udp {1024 + n} 53" for n in range(900)]
    two_links["isp-b"].run("ip", "link", "set", "dev", "link", "down")
    for _ in range(2):
        assert len(daemon.explain(many)) == len(many)
    eventually(lambda: status(daemon)["links"][1]["state"] == "down")
