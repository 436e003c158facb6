"""The control socket: one JSON object a line in each direction. Every message is hostile.

A request is {"ask": NAME, …}; the answer {"ok": true, "answer": …}, or {"ok": false, "error": …,
"exit": the status that the command should end with}.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from dataplane.errors import DaemonError, Error, MachineError

log = logging.getLogger("evenlink")

# A thousand flows a request, with room for the longest addresses.
LONGEST_REQUEST = 256 * 1024
MOST_FLOWS = 1024
# An answer to a thousand flows takes about a megabyte.
LONGEST_ANSWER = 16 * 1024 * 1024
IDLE_TIMEOUT_S = 30.0
# Beyond this many, whoever has been silent longest has to go: descriptors are finite.
MOST_CONNECTIONS = 64


class Status(msgspec.Struct, tag="status", tag_field="ask", forbid_unknown_fields=True):
    """Links, shares, rates, queue, faults."""


class Explain(msgspec.Struct, tag="explain", tag_field="ask", forbid_unknown_fields=True):
    """The decision for flows, each a list of words as `parse_flow` takes them."""

    flows: list[list[str]]
    dead: list[str] = []


class Reload(msgspec.Struct, tag="reload", tag_field="ask", forbid_unknown_fields=True):
    """Read the file again."""


class Stop(msgspec.Struct, tag="stop", tag_field="ask", forbid_unknown_fields=True):
    """End the daemon; with `undo`, remove all that is ours first."""

    undo: bool = False


Request = Status | Explain | Reload | Stop
Handler = Callable[[Request], Awaitable[Any]]


class ControlServer:
    """Listens on a Unix socket that only root, and the configured group, may open."""

    def __init__(self, path: Path, group: str | None, handler: Handler) -> None:
        self._path = path
        self._group = group
        self._handler = handler
        self._listening: socket.socket | None = None
        # Device and inode of our socket: another daemon may have put its own on the path since.
        self._inode: tuple[int, int] | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        # Those that owe us a request, the one that has been silent longest first.
        self._silent: dict[asyncio.Task[None], None] = {}

    def bind(self) -> None:
        """Takes the path. MachineError if it or the group cannot be used.

        The caller holds the locks of the state directory and of the network namespace, but a
        daemon of another namespace may have the path: a socket there is a dead one's only if
        nobody answers.
        """
        try:
            group_id = grp.getgrnam(self._group).gr_gid if self._group else -1
        except KeyError:
            raise MachineError(f"control_group: there is no group {self._group}") from None
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._clear()
            mask = os.umask(0o177)
            try:
                listening.bind(str(self._path))
            finally:
                os.umask(mask)
            self._listening, self._inode = listening, self._seen()
            # From now on others are told that the path is taken; they wait until `start`.
            listening.listen()
            if group_id >= 0:
                os.chown(self._path, -1, group_id)
                self._path.chmod(0o660)
        except FileExistsError:
            listening.close()
            raise MachineError(
                f"control_socket {self._path}: {self._path.parent} is no directory"
            ) from None
        except OSError as refusal:
            listening.close()
            raise MachineError(f"control_socket {self._path}: {refusal.strerror}") from refusal
        except MachineError:
            listening.close()
            raise

    def _clear(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise MachineError(f"control_socket {self._path}: is there and is no socket")
            if _answers(self._path):
                raise MachineError(
                    f"control_socket {self._path}: another daemon listens there; "
                    "stop it first, or use another control_socket"
                )
            self._path.unlink()

    def _seen(self) -> tuple[int, int]:
        now = self._path.lstat()
        return now.st_dev, now.st_ino

    async def start(self) -> None:
        """Answers from now on. Comes after `bind`."""
        self._server = await asyncio.start_unix_server(
            self._serve, sock=self._listening, limit=LONGEST_REQUEST
        )

    async def close(self) -> None:
        """Removes the socket and hangs up on everybody."""
        # Before closing: an inode's number is not given again while somebody holds the inode.
        with contextlib.suppress(OSError):
            if self._inode and self._inode == self._seen():
                self._path.unlink()
        if self._server:
            self._server.close()
        if self._listening:
            self._listening.close()
        for connection in self._connections:
            connection.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "streams call back within a task"
        if len(self._connections) >= MOST_CONNECTIONS and self._silent:
            longest = next(iter(self._silent))
            del self._silent[longest]
            longest.cancel()
        self._connections.add(task)
        try:
            while True:
                self._silent[task] = None
                line = await asyncio.wait_for(reader.readline(), IDLE_TIMEOUT_S)
                self._silent.pop(task, None)
                if not line:
                    return
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await asyncio.wait_for(writer.drain(), IDLE_TIMEOUT_S)
        except (ValueError, TimeoutError, ConnectionError, asyncio.CancelledError):
            # Too long a line, a silent or a vanished peer: nothing is owed to it.
            return
        finally:
            self._silent.pop(task, None)
            self._connections.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request: Request = msgspec.json.decode(line, type=Request)
            if isinstance(request, Explain) and len(request.flows) > MOST_FLOWS:
                raise DaemonError(f"expected at most {MOST_FLOWS} flows, got {len(request.flows)}")
            return {"ok": True, "answer": await self._handler(request)}
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as fault:
            return {"ok": False, "error": f"not a request: {fault}", "exit": 2}
        except Error as fault:
            return {"ok": False, "error": str(fault), "exit": fault.exit_status}
        except Exception as fault:
            log.exception("a request could not be answered")
            return {"ok": False, "error": f"not answered: {fault or type(fault).__name__}"}


def _answers(path: Path) -> bool:
    """Whether somebody listens on the socket. OSError if that cannot be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:
            # Somebody who is too busy to take another call.
            return True
        return True


class _Answer(msgspec.Struct):
    """`exit` is the status that the command ends with where the request is refused."""

    ok: bool
    answer: Any = None
    error: str = ""
    exit: int = DaemonError.exit_status


class NoDaemonError(DaemonError):
    """Nobody listens on the control socket."""


def ask(path: Path, request: Request, timeout_s: float = 30.0) -> Any:
    """Sends one request and returns its answer. DaemonError if it is refused or not answered."""
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
            raise DaemonError(f"{path}: {refusal.strerror or refusal}") from refusal
        try:
            connection.sendall(msgspec.json.encode(request) + b"\n")
            data = bytearray()
            while not data.endswith(b"\n"):
                piece = connection.recv(1 << 16)
                if not piece or len(data) > LONGEST_ANSWER:
                    raise DaemonError(f"{path}: the daemon hung up without an answer")
                data += piece
        except OSError as refusal:
            raise DaemonError(f"{path}: {refusal.strerror or refusal}") from refusal
    try:
        answer = msgspec.json.decode(bytes(data), type=_Answer)
    except (msgspec.DecodeError, RecursionError):
        raise DaemonError(f"{path}: whoever listens there is no evenlink daemon") from None
    if not answer.ok:
        refused = DaemonError(answer.error)
        refused.exit_status = answer.exit
        raise refused
    return answer.answer
