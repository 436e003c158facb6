"""The commands against a living daemon: what they print, where, and how they end.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import json
import signal

import pytest

from dataplane import __version__
from dataplane.lab import Daemon, Lab
from tests.lab.machine import COMMAND, check_refusal, held, under


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return lab.run()


def test_version(lab: Lab) -> None:
    done = lab.evenlink("version")
    assert (done.stdout, done.stderr) == (f"evenlink {__version__}\n", "")


def test_status(lab: Lab, daemon: Daemon) -> None:
    answer = daemon.status()
    assert set(answer) >= {"links", "queue", "faults"}
    assert answer["faults"] == []
    assert set(answer["queue"]) >= {"packets", "dropped", "errors", "fallback"}
    wanted = {"isp-a": 1 / 3, "isp-b": 2 / 3}
    for link in answer["links"]:
        assert set(link) >= {
            "name", "state", "since", "why", "share_wanted", "share_slots", "connections",
            "rx_bps", "tx_bps", "targets",
        }  # fmt: skip
        assert link["state"] == "up"
        assert link["share_wanted"] == pytest.approx(wanted[link["name"]])
        assert link["share_slots"] == pytest.approx(wanted[link["name"]], abs=1 / 65536)
    shown = lab.evenlink("status", "--config", str(daemon.file))
    assert shown.stderr == ""
    assert "isp-a" in shown.stdout
    assert "66.67%" in shown.stdout
    assert "\x1b" not in shown.stdout, "colour is for terminals"


def test_the_default_file_and_bare_evenlink(lab: Lab, daemon: Daemon) -> None:
    """`evenlink` alone is `evenlink status`, by the default file; without one, by its defaults."""
    etc = f"mount -t tmpfs none /etc; mkdir /etc/evenlink; cp {daemon.file} /etc/evenlink/"
    for words in ((), ("status",)):
        done = under(lab, etc, *words)
        assert done.returncode == 0, done.stderr
        assert "isp-a" in done.stdout
    done = under(lab, "mount -t tmpfs none /etc; mount -t tmpfs none /run")
    check_refusal(done, 3, "no daemon listens on /run/evenlink/control.sock")


def test_status_of_a_dead_link(lab: Lab, daemon: Daemon) -> None:
    lab.router.run("ip", "link", "set", "dev", "wan2", "down")
    try:
        answer = next(a for _ in range(60) if (a := daemon.status())["faults"])
    finally:
        lab.router.run("ip", "link", "set", "dev", "wan2", "up")
    assert answer["faults"] == ["link isp-b is down: interface wan2 is not enabled"]
    link = answer["links"][1]
    assert (link["state"], link["why"]) == ("down", "interface wan2 is not enabled")
    assert link["share_slots"] == 0
    assert link["share_wanted"] == pytest.approx(2 / 3)
    lab.router.run("bash", "-c", "ip -6 addr replace 2001:db8:2::2/64 dev wan2 nodad")
    assert any(not daemon.status()["faults"] for _ in range(60))


def test_plan_prints_steps_as_a_shell_takes_them(lab: Lab) -> None:
    """In a namespace beside, nothing is there yet."""
    file = str(lab.file(name="plan.toml", lan=["lan7"], key="00112233445566ff"))
    fresh = """
        ip link add lan7 type veth peer name p0
        ip link add wan1 type veth peer name p1; ip link add wan2 type veth peer name p2
        ip addr add 192.0.2.2/24 dev wan1; ip addr add 198.51.100.2/24 dev wan2
        ip link set wan1 up; ip link set wan2 up; ip link set p1 up; ip link set p2 up
    """
    shell = f'{fresh}\nexec "$@"'
    beside = ("unshare", "-n", "bash", "-e", "-c", shell, "bash", *COMMAND)
    told = lab.router.run(*beside, "plan", "--json", file)
    steps = json.loads(told.stdout)["steps"]
    assert {frozenset(step) for step in steps} == {frozenset({"tool", "line"})}
    assert {step["tool"] for step in steps} <= {"ip", "nft", "iptables", "sysctl"}
    assert all(step["line"].split()[0].removeprefix("ip6") for step in steps)
    lines = lab.router.run(*beside, "plan", file)
    assert lines.stdout == "".join(step["line"] + "\n" for step in steps)
    assert told.stderr == lines.stderr == ""


def test_settings_of_a_running_router_are_left_alone(lab: Lab, daemon: Daemon) -> None:
    """Asking changes nothing."""
    before = held(lab)
    for words in (
        ("check", str(daemon.file)),
        ("plan", str(daemon.file)),
        ("status", "--config", str(daemon.file)),
        ("explain", "10.10.0.11", "203.0.113.1", "--config", str(daemon.file)),
        ("reload", "--config", str(daemon.file)),
    ):
        lab.evenlink(*words)
        assert held(lab) == before, words


def test_hang_up_on_a_terminal_is_reload(lab: Lab, daemon: Daemon) -> None:
    """Signals in a row, in any mixture, end where the last one says."""
    for _ in range(20):
        daemon.process.send_signal(signal.SIGHUP)
    assert daemon.status()["faults"] == []
    daemon.process.send_signal(signal.SIGHUP)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.stop(signal.SIGTERM) == 0
    assert "Traceback" not in daemon.log
    check_refusal(under(lab, "", "status", "--config", str(daemon.file)), 3, "no daemon listens")
    check_refusal(under(lab, "", "reload", "--config", str(daemon.file)), 3, "no daemon listens")
    lab.evenlink("down", "--config", str(daemon.file))
