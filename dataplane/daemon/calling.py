"""The caller's side of the control socket. Whoever listens there need not be a daemon of ours."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from dataplane.daemon.messages import LONGEST_ANSWER, Follow, Request
from dataplane.errors import DaemonError

TIMEOUT_S = 30.0


class NoDaemonError(DaemonError):
    """Nobody listens on the control socket."""


class _Answer(msgspec.Struct):
    """`exit` is the status that the command ends with where the request is refused."""

    ok: bool
    answer: Any = None
    error: str = ""
    exit: int = DaemonError.exit_status


def ask(path: Path, request: Request, timeout_s: float = TIMEOUT_S) -> Any:
    """Sends one request and returns its answer. DaemonError if it is refused or not answered."""
    with _connection(path, timeout_s) as (connection, stream):
        _send(path, connection, request)
        return _read(path, stream, "the daemon hung up without an answer")


@contextlib.contextmanager
def follow(path: Path, timeout_s: float = TIMEOUT_S) -> Iterator[Iterator[dict[str, Any]]]:
    """Every transition from now on, as `Transition.as_dict` gives it.

    There is no end of them but DaemonError, when the daemon ends or hangs up. `timeout_s` is for
    its agreeing to tell.
    """
    with _connection(path, timeout_s) as (connection, stream):
        _send(path, connection, Follow())
        if _read(path, stream, "the daemon hung up without an answer") != {"following": True}:
            raise _stranger(path)
        connection.settimeout(None)
        yield _transitions(path, stream)


def _transitions(path: Path, stream: BinaryIO) -> Iterator[dict[str, Any]]:
    while True:
        answer = _read(path, stream, "the daemon hung up")
        if not isinstance(answer, dict):
            raise _stranger(path)
        yield answer


@contextlib.contextmanager
def _connection(path: Path, timeout_s: float) -> Iterator[tuple[socket.socket, BinaryIO]]:
    """An open connection, and what is read from it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        # A busy daemon's backlog is waited for only by a connect that blocks, this long at most.
        limit = struct.pack("@ll", int(timeout_s), 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            connection.connect(str(path))
            connection.settimeout(timeout_s)
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoDaemonError(
                f"no daemon listens on {path}; start one with `evenlink run`"
            ) from None
        except OSError as refusal:
            raise _refused(path, refusal) from refusal
        with connection.makefile("rb") as stream:
            yield connection, stream


def _send(path: Path, connection: socket.socket, request: Request | Follow) -> None:
    try:
        connection.sendall(msgspec.json.encode(request) + b"\n")
    except OSError as refusal:
        raise _refused(path, refusal) from refusal


def _read(path: Path, stream: BinaryIO, at_end: str) -> Any:
    """One answer. DaemonError if it is a refusal, or none; `at_end` says what no more means."""
    try:
        line = stream.readline(LONGEST_ANSWER)
    except OSError as refusal:
        raise _refused(path, refusal) from refusal
    if not line.endswith(b"\n"):
        raise DaemonError(f"{path}: {at_end}")
    try:
        answer = msgspec.json.decode(line, type=_Answer)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise _stranger(path) from None
    if not answer.ok:
        refused = DaemonError(answer.error)
        refused.exit_status = answer.exit
        raise refused
    return answer.answer


def _refused(path: Path, refusal: OSError) -> DaemonError:
    return DaemonError(f"{path}: {refusal.strerror or refusal}")


def _stranger(path: Path) -> DaemonError:
    return DaemonError(f"{path}: whoever listens there is no evenlink daemon")
