"""Following transitions by the control socket, without a router behind it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dataplane.daemon import calling, control
from dataplane.daemon.control import MOST_FOLLOWERS
from dataplane.daemon.messages import Status
from dataplane.errors import DaemonError
from tests.unit.served import PATIENCE_S, Served

FOLLOW = b'{"ask": "follow"}\n'
FOLLOWING = {"ok": True, "answer": {"following": True}}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "sock")
    try:
        yield made
    finally:
        made.end()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@contextmanager
def connected(path: Path, said: bytes = FOLLOW) -> Iterator[Any]:
    """A connection on which this was said, and the lines that are heard."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.settimeout(PATIENCE_S)
        opened.connect(str(path))
        opened.sendall(said)
        with opened.makefile("rb") as stream:
            yield opened, (msgspec.json.decode(line) for line in stream)


def last_words(heard: Iterator[dict[str, Any]]) -> str:
    lines = []
    with suppress(ConnectionResetError):
        lines.extend(heard)
    assert lines
    assert lines[-1]["ok"] is False
    return str(lines[-1]["error"])


def test_what_a_follower_hears(served: Served) -> None:
    with connected(served.path) as (_, heard):
        assert next(heard) == FOLLOWING
        served.tell(1, why="cut\n")
        assert next(heard)["answer"] == {
            "link": "l1",
            "before": "up",
            "state": "down",
            "why": "cut\n",
            "carries": ["ipv4"],
            "at": "1970-01-01T00:00:00.000+00:00",
        }
        assert calling.ask(served.path, Status()) == "Status()", "others ask meanwhile"
        served.tell(2, 3)
        assert [next(heard)["answer"]["link"] for _ in range(2)] == ["l2", "l3"]


def test_the_callers_side(served: Served) -> None:
    with calling.follow(served.path) as transitions:
        served.tell(*range(100))
        assert [next(transitions)["link"] for _ in range(100)] == [f"l{n}" for n in range(100)]
        served.end()
        with pytest.raises(DaemonError, match="the daemon is ending") as ended:
            next(transitions)
        assert ended.value.exit_status == 3
    until(lambda: served.connections == 0)


def test_the_feed_ends_before_the_server(served: Served) -> None:
    with connected(served.path) as (_, heard):
        assert next(heard) == FOLLOWING
        served.tell(1)
        served.call(served.feed.close)
        assert next(heard)["answer"]["link"] == "l1"
        assert last_words(heard) == "the daemon is ending"
    assert calling.ask(served.path, Status()) == "Status()"
    with connected(served.path) as (_, heard):
        assert next(heard) == FOLLOWING
        assert last_words(heard) == "the daemon is ending"


def test_silence_is_a_followers_right(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit is for those who owe a request; nobody else makes it go, either."""
    monkeypatch.setattr(control, "IDLE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(control, "MOST_CONNECTIONS", 4)
    with connected(served.path) as (_, heard), ExitStack() as stack:
        assert next(heard) == FOLLOWING
        for _ in range(12):
            stack.enter_context(connected(served.path, b""))
        with connected(served.path, b"") as (_, silent):
            assert list(silent) == [], "hung up on"
        assert calling.ask(served.path, Status()) == "Status()"
        served.tell(1)
        assert next(heard)["answer"]["link"] == "l1"


def test_who_hangs_up_is_noticed(served: Served) -> None:
    """Without any transition; also a program that is killed, and one that says no more."""
    for shut in (True, False):
        with connected(served.path) as (opened, heard):
            assert next(heard) == FOLLOWING
            assert served.connections == 1
            if shut:
                opened.shutdown(socket.SHUT_WR)
                assert list(heard) == []
        until(lambda: served.connections == 0)
    script = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])"
    script += f"; s.sendall({FOLLOW!r}); s.recv(1); print(flush=True); time.sleep(1000)"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(served.path)], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert served.connections == 1
        other.kill()
    until(lambda: served.connections == 0)
    served.tell(1)


def test_nothing_else_may_be_said(served: Served) -> None:
    for more in (b'{"ask": "status"}\n', b"x", FOLLOW, b"x" * 3_000_000):
        with connected(served.path) as (opened, heard):
            assert next(heard) == FOLLOWING
            with suppress(ConnectionError):
                opened.sendall(more)
            with suppress(ConnectionError):
                assert "nothing can be asked" in last_words(heard)
        until(lambda: served.connections == 0)
    with connected(served.path, FOLLOW + FOLLOW) as (_, heard):
        assert next(heard) == FOLLOWING
        assert "nothing can be asked" in last_words(heard)


def test_one_who_does_not_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is hung up on; the others hear everything."""
    monkeypatch.setattr(control, "IDLE_TIMEOUT_S", 1)
    with connected(served.path) as (_, idle), connected(served.path) as (_, busy):
        assert next(idle) == FOLLOWING
        assert next(busy) == FOLLOWING
        for _ in range(10):
            served.tell(*range(100), why="x" * 3000)
            assert [next(busy)["answer"]["link"] for _ in range(100)] == names(100)
        until(lambda: served.connections == 1)
        served.tell(1)
        assert next(busy)["answer"]["link"] == "l1"
        with suppress(ConnectionResetError, msgspec.DecodeError):
            assert len(list(idle)) < 1000, "what was written before"
    assert calling.ask(served.path, Status()) == "Status()"


def test_one_who_was_asleep_hears_that_it_was_cut_off(served: Served) -> None:
    with connected(served.path) as (_, heard):
        assert next(heard) == FOLLOWING
        served.tell(*range(300))
        assert "cut off: more than 256 transitions" in last_words(heard)
    until(lambda: served.connections == 0)


def test_not_too_many(served: Served) -> None:
    """One more is told so, and may ask other things; a place that is left is free."""
    with ExitStack() as stack:
        for _ in range(MOST_FOLLOWERS):
            _, heard = stack.enter_context(connected(served.path))
            assert next(heard) == FOLLOWING
        said = FOLLOW + b'{"ask": "status"}\n'
        with connected(served.path, said) as (_, heard):
            assert next(heard) == {
                "ok": False,
                "error": "16 follow already, which are the most",
                "exit": 3,
            }
            assert next(heard) == {"ok": True, "answer": "Status()"}
        with pytest.raises(DaemonError, match="16 follow already"), calling.follow(served.path):
            pass
    until(lambda: served.connections == 0)
    with connected(served.path) as (_, heard):
        assert next(heard) == FOLLOWING


def test_answers_that_nobody_reads(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks, shuts down its side and reads nothing does not keep a connection for ever."""
    monkeypatch.setattr(control, "IDLE_TIMEOUT_S", 0.1)
    before = len(os.listdir("/proc/self/fd"))
    words = b'{"ask": "drain", "link": "%s"}\n' % (b"x" * 200_000)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.connect(str(served.path))
        until(lambda: served.connections == 1)
        opened.setblocking(False)
        with suppress(BlockingIOError, ConnectionError):
            while True:
                opened.sendall(words)
        with suppress(OSError):
            opened.shutdown(socket.SHUT_WR)
        until(lambda: served.connections == 0)
        until(lambda: len(os.listdir("/proc/self/fd")) == before + 1)


def test_somebody_else_listens(tmp_path: Path) -> None:
    """What answers need not be a daemon of ours."""
    path = tmp_path / "sock"
    agreed = msgspec.json.encode(FOLLOWING) + b"\n"
    answers = {
        b"": "hung up without an answer",
        b"hello\n": "no evenlink daemon",
        b'{"ok": true}\n': "no evenlink daemon",
        b'{"ok": false, "error": "no"}\n': "^no$",
        agreed: "the daemon hung up$",
        agreed + b'{"ok": true, "answer": 3}\n': "no evenlink daemon",
        agreed + b"\xff\n": "no evenlink daemon",
        agreed + b'{"ok": true': "the daemon hung up$",
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve(answer: bytes) -> None:
            with listening.accept()[0] as accepted:
                accepted.recv(65536)
                accepted.sendall(answer)

        for answer, words in answers.items():
            thread = threading.Thread(target=serve, args=[answer])
            thread.start()
            with (
                pytest.raises(DaemonError, match=words),
                calling.follow(path) as transitions,
            ):
                next(transitions)
            thread.join(PATIENCE_S)
        with (
            pytest.raises(DaemonError, match="timed out"),
            calling.follow(path, timeout_s=0.2),
        ):
            pass


def names(count: int) -> list[str]:
    return [f"l{n}" for n in range(count)]
