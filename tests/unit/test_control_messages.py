"""The messages of the control socket, without a router behind it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.daemon import calling, control
from dataplane.daemon.calling import NoDaemonError
from dataplane.daemon.control import ControlServer
from dataplane.daemon.messages import Drain, Explain, Reload, Request, Restore, Status, Stop
from dataplane.errors import ConfigError, DaemonError, Fault, KernelError, MachineError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def during(
    path: Path,
    handler: Callable[[Request], Awaitable[Any]],
    talk: Callable[[], Any],
    group: str | None = None,
) -> Any:
    """What `talk` gives while a server with this handler listens."""

    async def serve() -> Any:
        server = ControlServer(path, group, handler)
        server.bind()
        await server.start()
        try:
            return await asyncio.to_thread(talk)
        finally:
            await server.close()

    return asyncio.run(serve())


async def echo(request: Request) -> Any:
    return repr(request)


def answers(path: Path, data: bytes) -> list[Any]:
    """Sends it all, and gives every line of answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.connect(str(path))
        opened.sendall(data)
        opened.shutdown(socket.SHUT_WR)
        heard = b""
        while piece := opened.recv(65536):
            heard += piece
    return [msgspec.json.decode(line) for line in heard.splitlines()]


@pytest.mark.parametrize(
    "request_",
    [
        Status(),
        Reload(),
        Stop(),
        Stop(undo=True),
        Explain([["a", "b"]], ["c"]),
        Drain("a"),
        Restore("a"),
    ],
)
def test_requests_arrive_as_they_were_made(tmp_path: Path, request_: Request) -> None:
    path = tmp_path / "sock"
    assert during(path, echo, lambda: calling.ask(path, request_)) == repr(request_)
    assert not path.exists(), "closing removes the socket"


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (MachineError("no link"), 3),
        (KernelError("no nft"), 3),
        (ConfigError((Fault("file", 3, "lan", "missing"),)), 2),
        (ZeroDivisionError("oh"), 3),
        (OSError(28, "No space left on device"), 3),
    ],
)
def test_refusals_carry_their_exit_status(tmp_path: Path, fault: Exception, status: int) -> None:
    path = tmp_path / "sock"

    async def refuse(_request: Request) -> Any:
        raise fault

    with pytest.raises(DaemonError, match=str(fault).split()[-1]) as refused:
        during(path, refuse, lambda: calling.ask(path, Status()))
    assert refused.value.exit_status == status


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(max_size=200) | JSON.map(msgspec.json.encode), max_size=5))
def test_every_line_has_one_answer(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "sock"
    lines = [line.replace(b"\n", b" ") for line in lines]
    data = b"".join(line + b"\n" for line in lines)
    heard = during(path, echo, lambda: answers(path, data))
    assert len(heard) == len(lines)
    assert not any(answer["ok"] for answer in heard)


def test_what_others_put_on_the_path(tmp_path: Path) -> None:
    """A file is somebody's; a socket that nobody serves is a dead daemon's."""
    path = tmp_path / "sock"
    path.write_text("mine")
    with pytest.raises(MachineError, match="is there and is no socket"):
        ControlServer(path, None, echo).bind()
    assert path.read_text() == "mine"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(MachineError, match="is there and is no socket"):
        ControlServer(path, None, echo).bind()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert during(path, echo, lambda: calling.ask(path, Status())) == "Status()"
    with pytest.raises(MachineError, match="no group nosuchgroup"):
        ControlServer(path, "nosuchgroup", echo).bind()


def test_a_path_on_which_somebody_answers(tmp_path: Path) -> None:
    """Another namespace's daemon, say: from the moment it has bound, it is not robbed."""
    path = tmp_path / "sock"

    def rob() -> None:
        with pytest.raises(MachineError, match=f"control_socket {path}: another daemon listens"):
            ControlServer(path, None, echo).bind()

    first = ControlServer(path, None, echo)
    first.bind()
    rob()
    asyncio.run(first.close())
    assert not path.exists()

    def talk() -> Any:
        rob()
        return calling.ask(path, Status())

    assert during(path, echo, talk) == "Status()"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.connect(str(path))
            rob()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(MachineError, match="wrong type"):
            ControlServer(path, None, echo).bind()


def test_another_socket_on_the_path_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:

        def replace() -> None:
            path.unlink()
            other.bind(str(path))

        during(path, echo, replace)
        assert path.is_socket()
        path.unlink()
        during(path, echo, path.unlink)
        assert not path.exists()


def test_mode_is_never_wider_than_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sock"
    before = os.umask(0)
    try:
        mode = during(path, echo, lambda: path.stat().st_mode & 0o777)
    finally:
        os.umask(before)
    assert mode == 0o600
    assert path.parent.stat().st_mode & 0o022 == 0


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(NoDaemonError, match="no daemon listens on"):
        calling.ask(tmp_path / "none", Status())
    (tmp_path / "file").write_text("")
    with pytest.raises(DaemonError):
        calling.ask(tmp_path / "file", Status())


def test_a_daemon_that_hangs_up_or_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()
        hang_up = threading.Thread(target=lambda: listening.accept()[0].close())
        hang_up.start()
        with pytest.raises(DaemonError):
            calling.ask(path, Status())
        hang_up.join()
        with pytest.raises(DaemonError, match="timed out"):
            calling.ask(path, Status(), timeout_s=0.2)


def test_more_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was silent longest goes; whoever asks is answered."""
    monkeypatch.setattr(control, "MOST_CONNECTIONS", 4)
    path = tmp_path / "sock"

    def talk() -> list[bool]:
        held = []
        for _ in range(12):
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            opened.settimeout(5)
            opened.connect(str(path))
            assert calling.ask(path, Status()) == "Status()"
            held.append(opened)
        alive = []
        for opened in held:
            try:
                opened.sendall(b'{"ask": "status"}\n')
                alive.append(bool(opened.recv(1)))
            except OSError:
                alive.append(False)
            opened.close()
        return alive

    alive = during(path, echo, talk)
    assert alive[:8] == [False] * 8
    assert alive[-1]
