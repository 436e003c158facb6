"""Another file for a running daemon: nothing is lost, no connection jumps, or all stays as it was.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dataplane.lab import Daemon, Lab, UnavailableError, uplinks
from dataplane.lab.topology import MBIT
from dataplane.lab.traffic import Load, connections, serve
from dataplane.lab.witness import Witness
from tests.lab.machine import check_refusal, held, under

PATIENCE_S = 20
PORT = 5001
FLOWS = [f"10.10.{x}.{y} 203.0.113.{z}" for x in (1, 2) for y in range(1, 33) for z in range(1, 9)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        with Lab(uplinks(10 * MBIT, 20 * MBIT, shaped=False)) as built:
            serve(built, PORT)
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture
def start(lab: Lab) -> Iterator[Callable[..., Daemon]]:
    """Starts the daemon; afterwards it is gone, and the machine is what it was."""
    before = held(lab)
    started: list[Daemon] = []

    def run(**top: Any) -> Daemon:
        started.append(lab.run(lab.file(**top)))
        return started[-1]

    yield run
    for daemon in started:
        daemon.stop(signal.SIGINT)
    assert held(lab) == before


def wait_for(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def reload(lab: Lab, daemon: Daemon, *, by_signal: bool = False) -> None:
    """The file as it is now, by either way."""
    if by_signal:
        seen = daemon.log.count("reloaded")
        daemon.reload()
        wait_for(lambda: daemon.log.count("reloaded") > seen, daemon.log)
    else:
        lab.evenlink("reload", "--config", str(daemon.file))


def change(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def queue(file: Path, **keys: object) -> None:
    """Puts a [queue] table, and no other, at the end of the file."""
    text = file.read_text().split("\n[queue]")[0].rstrip()
    lines = [
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        for key, value in keys.items()
    ]
    file.write_text("\n".join([text, "\n[queue]", *lines, ""]))


def choices(daemon: Daemon) -> dict[str, str]:
    """flow -> link, as `explain` says."""
    return dict(zip(FLOWS, (one["link"] for one in daemon.explain(FLOWS)), strict=True))


def shares(daemon: Daemon) -> dict[str, float]:
    return {link["name"]: link["share_slots"] for link in daemon.status()["links"]}


def test_connections_survive_every_change(lab: Lab, start: Callable[..., Daemon]) -> None:
    """Capacities, queue number, workers, engine, key: under traffic, and nobody notices."""
    daemon = start()
    wanted = connections(lab.topology.pairs(), PORT, each=3, heavy=2)
    before = {
        one.number: answer["link"]
        for one, answer in zip(wanted, daemon.explain([one.flow for one in wanted]), strict=True)
    }
    with Witness(lab) as witness:
        load = Load(lab, [one for one in wanted if not one.late], load_s=6, light_interval_s=0.1)
        for event in load.events():
            if event.kind != "open":
                continue
            change(daemon.file, ('capacity = "10Mbit"', 'capacity = "60Mbit"'))
            reload(lab, daemon, by_signal=True)
            assert shares(daemon)["isp-a"] == pytest.approx(0.75, abs=1 / 65536)
            for keys in (
                {"number": 99, "workers": 2},
                {"number": 100},
                {"number": 100, "engine": "callback"},
                {"number": 100, "engine": "batch", "mode": "every"},
                {"number": 7477},
            ):
                queue(daemon.file, **keys)
                reload(lab, daemon)
                status = daemon.status()
                assert status["faults"] == []
                assert str(keys["number"]) in status["queue"]["granted"]
            change(daemon.file, ("lan = ", 'key = "00112233445566ff"\nlan = '))
            reload(lab, daemon, by_signal=True)
            break
        for _ in load.events():
            pass
        seen = witness.testimony()
    assert load.failures == {}
    assert seen.torn() == []
    assert not seen.wrong_source_packets, seen.examples
    assert {n: {before[n]} for n in seen.links} == seen.links
    assert lab.evenlink("plan", str(daemon.file)).stdout == ""


def test_pairs_move_as_little_as_capacities_demand(start: Callable[..., Daemon], lab: Lab) -> None:
    daemon = start()
    before, old = choices(daemon), shares(daemon)
    change(daemon.file, ('capacity = "10Mbit"', 'capacity = "20Mbit"'))
    reload(lab, daemon)
    after, new = choices(daemon), shares(daemon)
    assert old["isp-a"] == pytest.approx(1 / 3, abs=1 / 65536)
    assert new["isp-a"] == pytest.approx(1 / 2, abs=1 / 65536)
    moved = {flow: (before[flow], after[flow]) for flow in FLOWS if before[flow] != after[flow]}
    assert set(moved.values()) == {("isp-b", "isp-a")}
    assert len(moved) / len(FLOWS) == pytest.approx(1 / 6, abs=0.06)
    # A restart keeps the running table: what has moved once does not move again.
    daemon.stop(signal.SIGTERM)
    again = start()
    change(again.file, ('capacity = "10Mbit"', 'capacity = "20Mbit"'))
    reload(lab, again)
    assert len([1 for flow, link in choices(again).items() if link != after[flow]]) == 0


def marked(lab: Lab, mark: int) -> int:
    """How many connections of the client carry the mark."""
    listed = lab.router.run("conntrack", "-L", "-m", f"{mark:#x}/0x7f000000").stdout
    return len([line for line in listed.splitlines() if "src=10.10." in line])


def test_link_removed_and_back(lab: Lab, start: Callable[..., Daemon]) -> None:
    daemon = start()
    before = choices(daemon)
    sources = [str(host) for host in lab.topology.lans[0].clients(4)]
    for source in sources:
        for target in lab.topology.serving(4):
            lab.client.run("ping", "-c1", "-W2", "-I", source, str(target))
    kept = marked(lab, 0x01000000)
    assert marked(lab, 0x02000000) > 0
    lab.file(links=["isp-a"])
    reload(lab, daemon)
    assert marked(lab, 0x02000000) == 0, "its connections are forgotten"
    assert marked(lab, 0x01000000) >= kept, "the others are not"
    assert set(choices(daemon).values()) == {"isp-a"}
    assert [link["name"] for link in daemon.status()["links"]] == ["isp-a"]
    assert "wan2" not in lab.router.run("nft", "list", "table", "inet", "evenlink").stdout
    assert lab.evenlink("plan", str(daemon.file)).stdout == ""
    lab.file()
    reload(lab, daemon, by_signal=True)
    assert shares(daemon)["isp-b"] == pytest.approx(2 / 3, abs=1 / 65536)
    after = choices(daemon)
    assert {link for flow, link in after.items() if before[flow] == "isp-a"} <= {"isp-a", "isp-b"}
    assert marked(lab, 0x01000000) >= kept


def test_numbers_of_links_stay_their_own(lab: Lab, start: Callable[..., Daemon]) -> None:
    """A link that went and another that came must not share a mark when the first is back."""
    daemon = start()
    text = daemon.file.read_text()
    change(daemon.file, ("[link.isp-b]", "[link.other]"))
    reload(lab, daemon)
    daemon.stop(signal.SIGTERM)
    daemon.file.write_text(text)
    again = start()
    again.file.write_text(
        text.replace("[link.isp-b]", "[link.other]")
        + '\n[link.isp-b]\ninterface = "wan2"\ngateway = "198.51.100.9"\ncapacity = "20Mbit"\n'
    )
    done = under(lab, "", "reload", "--config", str(again.file))
    assert done.returncode == 0, done.stderr
    listed = lab.router.run("ip", "rule").stdout
    marks = [line.split()[4] for line in listed.splitlines() if line.startswith("303")]
    assert len(marks) == len(set(marks)) == 3


@pytest.mark.parametrize("by_signal", [True, False])
def test_refused_file_leaves_the_old_one_in_force(
    lab: Lab, start: Callable[..., Daemon], by_signal: bool
) -> None:
    daemon = start()
    text, serving, before = daemon.file.read_text(), held(lab), choices(daemon)
    mask = "mark_mask = 0xff0000\nlan = "
    refusals = (
        (text.replace('"10Mbit"', '"10"') + "\n[nothing]\n", 2, "link.isp-a.capacity: expected"),
        (text.replace('"192.0.2.1"', '"203.0.113.77"'), 3, "is not in a network of wan1"),
        (text.replace("state_dir", "state_dir  ").replace("/state", "/other"), 3, "restart"),
        (text.replace("lan = ", 'control_group = "root"\nlan = '), 3, "restart"),
        (text.replace("lan = ", mask), 3, "mark_mask: cannot change while running"),
        (text.replace("lan = ", 'key = "/nowhere/key"\nlan = '), 3, "/nowhere/key does not exist"),
        ("", 2, "missing"),
    )
    for number, (refused, status, said) in enumerate(refusals, 1):
        daemon.file.write_text(refused)
        if by_signal:
            daemon.reload()
            wait_for(partial(refused_times, daemon, number), daemon.log)
            assert said in daemon.log
        else:
            check_refusal(under(lab, "", "reload", "--config", copy(lab, text)), status, said)
        assert held(lab) == serving
    daemon.file.write_text(text)
    assert choices(daemon) == before
    assert daemon.status()["faults"] == []


def refused_times(daemon: Daemon, times: int) -> bool:
    return daemon.log.count("reload refused") == times


def copy(lab: Lab, text: str) -> str:
    """The first file under another name: it still names the daemon's socket."""
    return str(lab.file(name="first.toml", text=text))


def test_queue_that_is_taken(lab: Lab, start: Callable[..., Daemon]) -> None:
    """The daemon goes back to its own queue."""
    daemon = start()
    text, serving = daemon.file.read_text(), held(lab)
    script = (
        "import netfilterqueue, sys\n"
        "queue = netfilterqueue.NetfilterQueue()\n"
        "queue.bind(1234, lambda packet: None)\n"
        "print('bound', flush=True)\n"
        "sys.stdin.read()\n"
    )
    other = lab.router.start(
        sys.executable, "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "bound\n"
    queue(daemon.file, number=1234)
    done = under(lab, "", "reload", "--config", copy(lab, text))
    check_refusal(done, 3, "queue 1234 is bound by another process")
    assert held(lab) == serving
    status = daemon.status()
    assert status["faults"] == []
    assert "7477" in status["queue"]["granted"]
    other.kill()
    reload(lab, daemon)
    assert "1234" in daemon.status()["queue"]["granted"]


def test_mask_of_an_earlier_run(lab: Lab, start: Callable[..., Daemon]) -> None:
    """Connections carry marks of the old mask: what they mean under another is anybody's guess."""
    daemon = start()
    daemon.stop(signal.SIGTERM)
    serving = held(lab)
    other = lab.file(name="mask.toml", mark_mask=0xFF0000)
    for command in ("run", "plan"):
        done = under(lab, "", command, str(other))
        check_refusal(done, 3, "mark_mask: 0x7f000000", "evenlink down")
        assert held(lab) == serving
    start()


def test_what_may_not_be_meant_is_said_once_a_load(lab: Lab, start: Callable[..., Daemon]) -> None:
    text = lab.file().read_text()
    daemon = start(text=text + '\n[group.spare]\nlinks = ["isp-a"]\n')
    said = "WARNING: group spare is not used by any rule"
    wait_for(lambda: said in daemon.log, daemon.log)
    for loads in (2, 3):
        reload(lab, daemon, by_signal=loads == 3)
        wait_for(lambda loads=loads: daemon.log.count(said) >= loads, daemon.log)  # type: ignore[misc]
        assert daemon.log.count(said) == loads
