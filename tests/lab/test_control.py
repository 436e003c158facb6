"""The control socket: whatever is sent to it, the daemon stays well and answers others.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import grp
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dataplane.lab import Daemon, Lab
from tests.lab.machine import check_refusal, under

PATIENCE_S = 20
GROUP = grp.getgrgid(65534).gr_name

NOT_REQUESTS = [
    b"\n",
    b"\x00\xff\xfe\x80\n",
    b"\xff" * 1000 + b"\n",
    b"status\n",
    b"{}\n",
    b"[]\n",
    b"null\n",
    b'{"ask": "nothing"}\n',
    b'{"ask": "status", "more": 1}\n',
    b'{"ask": 7}\n',
    b'{"ask": "explain"}\n',
    b'{"ask": "explain", "flows": [["10.10.1.1", 3]]}\n',
    b'{"ask": "stop", "undo": "yes"}\n',
    b'{"ask": "drain"}\n',
    b'{"ask": "drain", "link": 3}\n',
    b'{"ask": "drain", "link": ""}\n',
    b'{"ask": "restore", "link": "\\ud800"}\n',
    b'{"ask": "follow", "link": "isp-a"}\n',
    b"[" * 100_000 + b"\n",
    b'{"ask":' * 30_000 + b"\n",
    b'{"ask": "explain", "flows": ' + b"[" * 50_000 + b"\n",
    b'{"ask": "explain", "flows": [' + b",".join([b"[]"] * 1025) + b"]}\n",
]
NOT_FLOWS = [
    [],
    ["10.10.1.1"],
    ["10.10.1.1", "nowhere"],
    ["10.10.1.1", "203.0.113.1", "nosuch"],
    ["10.10.1.1", "203.0.113.1", "tcp", "99999"],
    ["10.10.1.1", "203.0.113.1", "tcp", "1" * 5000],
    ["10.10.1.1", "203.0.113.1", "tcp", "1", "2", "lan0", "more"],
    ["10.10.1.1", "2001:db8::1"],
    ["1" * 5000, "203.0.113.1"],
    ["\u0661\u0660.1.1.1", "203.0.113.1"],
]


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return lab.run(lab.file(control_group=GROUP))


@pytest.fixture
def path(lab: Lab, daemon: Daemon) -> Iterator[Path]:
    """The socket. Afterwards the daemon still answers, and is as well as before."""
    yield lab.directory / "control.sock"
    assert daemon.process.poll() is None
    assert daemon.status()["faults"] == []
    assert "Traceback" not in daemon.log, daemon.log


def connect(path: Path) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    opened.connect(str(path))
    opened.settimeout(PATIENCE_S)
    return opened


def say(path: Path, data: bytes) -> bytes:
    """Sends it, and reads one line, or until the daemon hangs up."""
    with connect(path) as opened:
        try:
            opened.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return b""
        return read_line(opened)


def read_line(opened: socket.socket) -> bytes:
    heard = b""
    while not heard.endswith(b"\n"):
        try:
            piece = opened.recv(65536)
        except ConnectionResetError:
            break
        if not piece:
            break
        heard += piece
    return heard


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    answer = json.loads(say(path, json.dumps(request).encode() + b"\n"))
    assert isinstance(answer, dict)
    return answer


def test_modes(lab: Lab, path: Path) -> None:
    """Open to its group, here; to root alone where none is named."""
    assert path.stat().st_mode & 0o777 == 0o660
    assert path.stat().st_gid == 65534
    member = 'exec setpriv --reuid=65533 --regid=65534 --clear-groups "$@"'
    reach = f"chmod 755 {lab.directory}"
    script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])"
    for stranger, status in ((member, 0), (member.replace("--regid=65534", "--regid=65533"), 1)):
        done = lab.router.run(
            "bash",
            "-c",
            f"{reach}; {stranger}",
            "bash",
            "/usr/bin/env",
            "python3",
            "-c",
            script,
            str(path),
            check=False,
        )
        assert done.returncode == status, done.stderr


@pytest.mark.parametrize("data", NOT_REQUESTS, ids=[repr(data[:40]) for data in NOT_REQUESTS])
def test_not_a_request(path: Path, data: bytes) -> None:
    answer = json.loads(say(path, data))
    assert answer["ok"] is False
    assert answer["error"]


def test_flows_that_are_none(path: Path) -> None:
    for words in NOT_FLOWS:
        answer = ask(path, {"ask": "explain", "flows": [["10.10.1.1", "203.0.113.1"], words]})
        assert answer["ok"] is False
        assert answer["error"].startswith("explain: ")
        assert answer["exit"] == 2
        assert len(answer["error"]) < 20_000


def test_flows_that_are_odd(path: Path) -> None:
    """Legal, if only just: each has an answer."""
    flows = [
        ["0.0.0.0", "0.0.0.0"],
        ["255.255.255.255", "255.255.255.255"],
        ["::", "::"],
        ["fe80::1%lan0", "fe80::2%lan0"],
        ["::1", "::1"],
        ["127.0.0.1", "127.0.0.1"],
        ["::ffff:10.0.0.1", "::ffff:10.0.0.2"],
        ["10.10.1.1", "240.0.0.1"],
        ["2001:db8:abc::100:cd", "ff02::1"],
        ["10.10.1.1", "203.0.113.1", "0"],
        ["10.10.1.1", "203.0.113.1", "255", "65535", "65535", "no such"],
    ]
    answer = ask(path, {"ask": "explain", "flows": flows})
    assert answer["ok"], answer
    assert len(answer["answer"]) == len(flows)


def test_links_that_are_none(path: Path) -> None:
    for request in ("drain", "restore"):
        answer = ask(path, {"ask": request, "link": "nosuch"})
        assert not answer["ok"]
        assert answer["exit"] == 2
        assert "nosuch" in answer["error"]


def test_following(lab: Lab, daemon: Daemon, path: Path) -> None:
    """A link goes and comes back; who never reads, hangs up or says more harms nobody."""
    follow = b'{"ask": "follow"}\n'
    with ExitStack() as stack:
        followers = [stack.enter_context(connect(path)) for _ in range(20)]
        for one in followers:
            one.sendall(follow)
        told = [json.loads(read_line(one)) for one in followers]
        assert [one["ok"] for one in told] == [True] * 16 + [False] * 4
        followers[1].close()
        followers[2].sendall(b"more\n")
        assert not json.loads(read_line(followers[2]))["ok"]
        lab.router.run("ip", "link", "set", "dev", "wan2", "down")
        gone = json.loads(read_line(followers[0]))["answer"]
        lab.router.run("ip", "link", "set", "dev", "wan2", "up")
        lab.router.run("bash", "-c", "ip -6 addr replace 2001:db8:2::2/64 dev wan2 nodad")
        back = json.loads(read_line(followers[0]))["answer"]
    assert (gone["link"], gone["before"], gone["state"]) == ("isp-b", "up", "down")
    assert gone["why"]
    assert (back["link"], back["before"], back["state"]) == ("isp-b", "down", "up")
    assert any(not daemon.status()["faults"] for _ in range(60))


def test_too_long_a_line(path: Path) -> None:
    assert say(path, b"x" * 3_000_000 + b"\n") == b""
    assert say(path, b"x" * 3_000_000) == b""


def test_half_a_line(daemon: Daemon, path: Path) -> None:
    """Others are answered while somebody leaves the rest of a line to be waited for."""
    with ExitStack() as stack:
        halves = [stack.enter_context(connect(path)) for _ in range(20)]
        for half in halves:
            half.sendall(b'{"ask": "sta')
        assert ask(path, {"ask": "status"})["ok"]
        halves[3].sendall(b'tus"}\n')
        assert json.loads(read_line(halves[3]))["ok"]
    assert daemon.status()["faults"] == []


def test_a_byte_at_a_time_and_many_in_one(path: Path) -> None:
    with connect(path) as opened:
        for byte in b'{"ask": "status"}\n':
            opened.sendall(bytes([byte]))
        assert json.loads(read_line(opened))["ok"]
        opened.sendall(b'{"ask": "nothing"}\n{"ask": "status"}\n')
        heard = read_line(opened)
        while heard.count(b"\n") < 2:
            heard += read_line(opened)
        first, second = heard.splitlines()
        assert not json.loads(first)["ok"]
        assert json.loads(second)["ok"]


def test_hanging_up_at_once(path: Path) -> None:
    for _ in range(200):
        connect(path).close()
    for _ in range(20):
        with connect(path) as opened:
            opened.sendall(b'{"ask": "status"}\n')


def test_a_thousand_connections(daemon: Daemon, path: Path) -> None:
    """Descriptors are finite, and status needs some: whoever is silent has to go."""
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(path))
        assert ask(path, {"ask": "status"})["ok"]
        assert daemon.status()["faults"] == []
        descriptors = list(Path(f"/proc/{daemon.process.pid}/fd").iterdir())
        assert len(descriptors) < 200


def test_many_questions_at_the_same_time(path: Path) -> None:
    flows = [["10.10.1.1", f"203.0.113.{n}"] for n in range(1, 250)]
    answers: list[bool] = []

    def question() -> None:
        answers.append(len(ask(path, {"ask": "explain", "flows": flows})["answer"]) == 249)

    threads = [threading.Thread(target=question) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert answers == [True] * 12


def test_somebody_else_listens(lab: Lab, path: Path) -> None:
    """The command's side: what answers need not be a daemon of ours."""
    other = lab.directory / "other.sock"
    answers = [b"hello\n", b"[]\n", b'{"ok": 1}\n', b"\xff\n", b"[" * 9999 + b"\n", b""]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(other))
        listening.listen()

        def serve() -> None:
            for answer in answers:
                with listening.accept()[0] as accepted:
                    accepted.recv(65536)
                    accepted.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        file = str(lab.file(name="other.toml", control_socket=str(other)))
        for _ in answers:
            check_refusal(under(lab, "", "status", "--config", file), 3, f"{other}: ")
        thread.join(PATIENCE_S)
    check_refusal(under(lab, "", "status", "--config", file), 3, "no daemon listens on")
