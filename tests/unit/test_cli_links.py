"""`status`, `drain` and `restore` against a control socket, without a router behind it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.daemon.messages import Drain, Request, Restore, Status
from dataplane.errors import MachineError, UsageError
from dataplane.tools import cli
from tests.unit.served import Served

GOOD = """
lan = ["lan0"]
[link.a]
interface = "wan1"
gateway = "192.0.2.1"
capacity = "10Mbit"
"""


def target(name: str, ok: bool | None, said: str = "", **more: Any) -> dict[str, Any]:
    known = {"kind": "ping", "family": 4, "rtt_ms": None, "loss": None, "said": said}
    return {"target": name, "ok": ok, **known, **more}


def link(name: str, state: str, why: str, *targets: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "state": state,
        "why": why,
        "since": "2026-11-23T20:00:00+00:00",
        "share_wanted": 0.25,
        "share_slots": 0.25,
        "connections": 3,
        "rx_bps": 0,
        "tx_bps": 0,
        "hold_ms": 2500 if state == "down" else 0,
        "targets": list(targets),
    }


STATUS = {
    "links": [
        link("a", "up", "", target("gateway", True, rtt_ms=0.44, loss=0.0)),
        link(
            "b",
            "down",
            "nobody answers",
            target("1.1.1.1", False, loss=1.0),
            target("x.example", None, "no such\x1b[31m name", kind="tcp", family=6),
        ),
        link("c", "drained", "by hand"),
        link("d", "up", ""),
    ],
    "queue": {"packets": 1, "fallback": 0, "dropped": 0, "errors": 0},
    "wrong_source": 0,
    "faults": ["link b is down: nobody\nanswers", "queue worker ended"],
}


async def handle(request: Request) -> Any:
    match request:
        case Status():
            return STATUS
        case Drain("a") | Restore("a"):
            return {}
        case Drain("b"):
            raise MachineError("drain: b is the last link alive")
        case Drain(name) | Restore(name):
            raise UsageError(f"there is no link {name!r}; a, b, c, d")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "sock", handle)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def call(served: Served, tmp_path: Path) -> Callable[..., int]:
    file = tmp_path / "file.toml"
    file.write_text(f'control_socket = "{served.path}"\n{GOOD}')
    return lambda *words: cli.main([*words, "--config", str(file)])


def test_drain_and_restore(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("drain", "restore"):
        assert call(command, "a") == 0
        assert capsys.readouterr() == ("", "")
        assert call(command, "nosuch") == 2
        assert capsys.readouterr() == ("", "evenlink: there is no link 'nosuch'; a, b, c, d\n")
    assert call("drain", "b") == 3
    assert capsys.readouterr() == ("", "evenlink: drain: b is the last link alive\n")


def test_status_of_all(call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """Targets of links that are not up, unless all are asked for."""
    assert call("status") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["a", "up"],
        ["b", "down"],
        ["c", "drained"],
        ["d", "up"],
    ]
    assert lines[5:] == [
        "b is down: nobody answers; has to answer well for another 2.5 s",
        "target kind answer round trip loss",
        "1.1.1.1 ping ipv4 silent 100%",
        "x.example tcp ipv6 no such [31m name",
        "c is drained: by hand",
        "queue: 1 decided, 0 settled by the kernel, 0 dropped, 0 errors; wrong sources stopped: 0",
        "fault: queue worker ended",
    ]
    assert call("status", "-v") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[5:8] == ["a is up", "target kind answer round trip loss",
                          "gateway ping ipv4 well 0.4 ms 0%"]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "status"),
    [(["a"], 0), (["a", "d"], 0), (["b"], 1), (["a", "b"], 1), (["c"], 1), (["a", "nosuch"], 2)],
)
def test_status_of_links(
    call: Callable[..., int], capsys: pytest.CaptureFixture[str], names: list[str], status: int
) -> None:
    assert call("status", *names) == status
    heard = capsys.readouterr()
    if status == 2:
        assert heard == ("", "evenlink: status: there is no link 'nosuch'; a, b, c, d\n")
        return
    assert [line.split()[0] for line in heard.out.splitlines()[1 : 1 + len(names)]] == names
    assert "queue" not in heard.out
    assert call("status", "--json", *names) == status
    answer = json.loads(capsys.readouterr().out)
    assert answer == STATUS | {"links": [one for one in STATUS["links"] if one["name"] in names]}


def following(served: Served, *words: str) -> subprocess.Popen[str]:
    file = served.path.with_name("file.toml")
    command = [sys.executable, "-m", "dataplane.tools.cli", "status", "--follow", *words]
    return subprocess.Popen(
        [*command, "--config", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"TZ": "UTC"},
    )


@pytest.mark.usefixtures("call")
def test_following(served: Served) -> None:
    """Each line comes at once; the end of the daemon is told."""
    with following(served) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not (line := process.stdout.readline()).startswith("fault: "):
            assert line, process.stderr.read()
        served.tell(1, why="cut\x1b\n")
        assert process.stdout.readline() == "1970-01-01 00:00:00.000  l1  down  cut\n"
        served.tell(2)
        assert process.stdout.readline() == "1970-01-01 00:00:00.000  l2  down\n"
        served.end()
        assert process.stderr.read() == "evenlink: the daemon is ending\n"
        assert process.stdout.read() == ""
    assert process.returncode == 3


@pytest.mark.usefixtures("call")
def test_following_for_programs(served: Served) -> None:
    """The state first, then one object a line, of the links that were asked for."""
    with following(served, "--json", "a", "b") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = json.loads(process.stdout.readline())
        assert [one["name"] for one in first["links"]] == ["a", "b"]
        served.tell(1)
        served.tell("b", why="\x1b")
        told = json.loads(process.stdout.readline())
        assert (told["link"], told["why"], told["at"][:10]) == ("b", "\x1b", "1970-01-01")
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
        assert process.stderr.read() == ""
    assert process.returncode == 130


@pytest.mark.usefixtures("call")
def test_following_a_link_that_is_none(served: Served) -> None:
    with following(served, "nosuch") as process:
        assert process.communicate()[1] == (
            "evenlink: status: there is no link 'nosuch'; a, b, c, d\n"
        )
    assert process.returncode == 2
