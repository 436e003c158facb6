"""The end of it: Ctrl-C undoes, SIGTERM keeps and a restart adopts, `down` needs no memory.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘

The router is somebody's: it has rules, filters and settings that are not ours.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from dataplane.lab import Daemon, Lab
from tests.lab.machine import check_refusal, held, live_in, put_settings_back, under

PATIENCE_S = 20


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    live_in(lab)
    return lab


@pytest.fixture
def before(lab: Lab) -> Iterator[str]:
    """What the router held before anything of ours came."""
    found = held(lab)
    yield found
    if held(lab) != found:
        lab.evenlink("down", "--config", str(lab.file()), check=False)


def steps(lab: Lab, daemon_file: str) -> list[dict[str, str]]:
    """What `run` would do now."""
    found: list[dict[str, str]] = json.loads(lab.evenlink("plan", "--json", daemon_file).stdout)[
        "steps"
    ]
    return found


def carries(lab: Lab) -> bool:
    """Whether the client reaches a server."""
    source, target = lab.topology.lans[0].clients(4)[0], lab.topology.serving(4)[0]
    done = lab.client.run("ping", "-c1", "-W2", "-I", str(source), str(target), check=False)
    return done.returncode == 0


def test_interrupt_undoes_everything(lab: Lab, before: str) -> None:
    daemon = lab.run()
    assert carries(lab)
    assert daemon.stop(signal.SIGINT) == 0
    assert held(lab) == before
    assert "all undone" in daemon.log
    assert not (lab.directory / "control.sock").exists()


def test_termination_keeps_and_a_restart_does_nothing(lab: Lab, before: str) -> None:
    text = lab.file().read_text() + '\n[log]\nlevel = "debug"\n'
    file = lab.file(name="debug.toml", text=text)
    daemon = lab.run(file)
    serving = held(lab)
    assert "sysctl -w" in daemon.log, "each step is told"
    assert steps(lab, str(file)) == []
    assert daemon.stop(signal.SIGTERM) == 0
    assert held(lab) == serving
    assert carries(lab)
    assert steps(lab, str(file)) == []
    again = lab.run(file)
    # Every step is told at this level, and there is none.
    assert "DEBUG: " not in again.log
    assert again.stop(signal.SIGINT) == 0
    assert held(lab) == before


def test_on_stop_undo(lab: Lab, before: str) -> None:
    daemon = lab.run(lab.file(on_stop="undo"))
    assert daemon.stop(signal.SIGTERM) == 0
    assert held(lab) == before


def by_its_daemon(lab: Lab, daemon: Daemon) -> None:
    """The daemon lives."""


def stopped(lab: Lab, daemon: Daemon) -> None:
    daemon.stop(signal.SIGTERM)


def killed(lab: Lab, daemon: Daemon) -> None:
    daemon.kill()


@pytest.mark.parametrize("end", [by_its_daemon, stopped, killed])
def test_down(lab: Lab, before: str, end: Callable[[Lab, Daemon], None]) -> None:
    daemon = lab.run()
    end(lab, daemon)
    done = lab.evenlink("down", "--config", str(daemon.file))
    assert held(lab) == before
    assert done.stdout
    assert done.stderr == ""
    if end is by_its_daemon:
        assert daemon.process.wait(PATIENCE_S) == 0
    again = lab.evenlink("down", "--config", str(daemon.file))
    assert again.stdout == "there was nothing of ours\n"
    assert held(lab) == before


def test_down_without_any_memory(lab: Lab, before: str) -> None:
    """Only settings cannot be known then: those of ours stay."""
    daemon = lab.run()
    daemon.kill()
    shutil.rmtree(lab.directory / "state")
    lab.evenlink("down", "--config", str(daemon.file))
    settings = [line for line in before.splitlines() if not line.startswith("net/")]
    routes = "anycast"  # Those of forwarding interfaces, made by the kernel.
    after = [line for line in held(lab).splitlines() if not line.startswith("net/")]
    assert [x for x in after if routes not in x] == [x for x in settings if routes not in x]
    # Back to what the other tests begin with.
    put_settings_back(lab, before)
    assert held(lab) == before


def test_down_when_the_daemon_does_not_answer(lab: Lab, before: str) -> None:
    daemon = lab.run()
    serving = held(lab)
    (lab.directory / "control.sock").unlink()
    done = under(lab, "", "down", "--config", str(daemon.file))
    check_refusal(done, 3, f"process {daemon.process.pid}", "end it first")
    assert held(lab) == serving
    daemon.stop(signal.SIGINT)
    assert held(lab) == before


def test_garbage_in_the_state_does_not_hinder_removal(lab: Lab, before: str) -> None:
    daemon = lab.run()
    daemon.stop(signal.SIGTERM)
    state = lab.directory / "state" / "state.json"
    kept = state.read_bytes()
    state.write_bytes(b"garbage")
    done = lab.evenlink("down", "--config", str(daemon.file))
    assert "settings stay as they are" in done.stdout
    assert "evenlink" not in lab.router.run("nft", "list", "tables").stdout
    state.write_bytes(kept)
    lab.evenlink("down", "--config", str(daemon.file))
    assert held(lab) == before


def at_once(lab: Lab) -> bool:
    return True


def at_the_lock(lab: Lab) -> bool:
    return (lab.directory / "state" / "lock").exists()


def at_the_socket(lab: Lab) -> bool:
    return (lab.directory / "control.sock").exists()


def at_the_first_rule(lab: Lab) -> bool:
    return "30000:" in lab.router.run("ip", "rule").stdout


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [at_once, at_the_lock, at_the_first_rule])
def test_interrupted_start(
    lab: Lab, before: str, moment: Callable[[Lab], bool], sent: signal.Signals
) -> None:
    """Nothing, or everything that was asked for; never a half."""
    shutil.rmtree(lab.directory / "state", ignore_errors=True)
    key = "00112233445566ff"
    file = lab.file(key=key)
    daemon = lab.run(file, wait=False)
    deadline = time.monotonic() + PATIENCE_S
    while not moment(lab) and daemon.process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    daemon.stop(sent)
    assert "Error" not in daemon.log
    assert "Traceback" not in daemon.log
    if sent is signal.SIGTERM and held(lab) != before:
        assert steps(lab, str(file)) == []
        lab.evenlink("down", "--config", str(file))
    assert held(lab) == before


@pytest.mark.parametrize("moment", [at_the_socket, at_the_first_rule])
def test_killed_start(lab: Lab, before: str, moment: Callable[[Lab], bool]) -> None:
    """A half that kill -9 left is completed by the next start, and removed by `down`."""
    file = lab.file()
    daemon = lab.run(file, wait=False)
    deadline = time.monotonic() + PATIENCE_S
    while not moment(lab) and daemon.process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    daemon.kill()
    lab.run(file).kill()
    assert steps(lab, str(file)) == []
    lab.evenlink("down", "--config", str(file))
    assert held(lab) == before


def test_plan_by_hand_is_what_run_does(lab: Lab, before: str) -> None:
    file = lab.file(key="00112233445566ff")
    planned = lab.evenlink("plan", str(file))
    assert planned.stderr == ""
    assert held(lab) == before, "plan changes nothing"
    lab.router.run("bash", "-e", "-s", stdin=planned.stdout)
    by_hand = held(lab)
    lab.evenlink("down", "--config", str(file))
    put_settings_back(lab, before)
    assert held(lab) == before
    daemon = lab.run(file)
    assert held(lab) == by_hand
    daemon.stop(signal.SIGINT)
    assert held(lab) == before
