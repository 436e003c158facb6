"""The control socket, the daemon's side. Every message is hostile; `messages` says what is said."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from dataplane.daemon.events import Feed, Follower
from dataplane.daemon.messages import (
    LONGEST_REQUEST,
    MOST_FLOWS,
    Explain,
    Follow,
    Request,
)
from dataplane.errors import DaemonError, Error, MachineError, UsageError

log = logging.getLogger("evenlink")

IDLE_TIMEOUT_S = 30.0
# Beyond this many, whoever has been silent longest has to go: descriptors are finite.
MOST_CONNECTIONS = 64
# They are silent by right, so they must leave room for those who ask.
MOST_FOLLOWERS = 16
ENDING = DaemonError("the daemon is ending")

Handler = Callable[[Request], Awaitable[Any]]


class ControlServer:
    """Listens on a Unix socket that only root, and the configured group, may open.

    `handler` answers requests; those who follow hear what `feed` is told.
    """

    def __init__(
        self, path: Path, group: str | None, handler: Handler, feed: Feed | None = None
    ) -> None:
        self._path = path
        self._group = group
        self._handler = handler
        self._feed = feed or Feed()
        self._followers = 0
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
            await self._converse(task, reader, writer)
            # Whoever has not read all of it by then does not want it.
            self._silent[task] = None
            writer.close()
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await writer.wait_closed()
        except (ValueError, TimeoutError, ConnectionError, asyncio.CancelledError):
            # Too long a line, a silent or a vanished peer: nothing is owed to it.
            writer.transport.abort()
        finally:
            self._silent.pop(task, None)
            self._connections.discard(task)

    async def _converse(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            self._silent[task] = None
            # Not wait_for: until Python 3.12 it may swallow a cancellation.
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                line = await reader.readline()
            self._silent.pop(task, None)
            if not line:
                return
            answer = await self._answer(line)
            if isinstance(answer, Follow):
                await self._follow(reader, writer)
                return
            writer.write(_line(answer))
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await writer.drain()

    async def _answer(self, line: bytes) -> dict[str, Any] | Follow:
        """The answer, or the request itself where it is to follow and may."""
        try:
            request: Request | Follow = msgspec.json.decode(line, type=Request | Follow)
            if isinstance(request, Follow):
                if self._followers >= MOST_FOLLOWERS:
                    raise DaemonError(f"{MOST_FOLLOWERS} follow already, which are the most")
                return request
            if isinstance(request, Explain) and len(request.flows) > MOST_FLOWS:
                raise DaemonError(f"expected at most {MOST_FLOWS} flows, got {len(request.flows)}")
            return {"ok": True, "answer": await self._handler(request)}
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as fault:
            return _refusal(UsageError(f"not a request: {fault}"))
        except Error as fault:
            return _refusal(fault)
        except Exception as fault:
            log.exception("a request could not be answered")
            return {"ok": False, "error": f"not answered: {fault or type(fault).__name__}"}

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tells transitions until one of both has enough. Sends last words where it is us."""
        self._followers += 1
        try:
            with self._feed.follow() as follower:
                writer.write(_line({"ok": True, "answer": {"following": True}}))
                telling = asyncio.create_task(_tell(follower, writer))
                hearing = asyncio.create_task(reader.read(1))
                try:
                    await asyncio.wait({telling, hearing}, return_when=asyncio.FIRST_COMPLETED)
                    if telling.done():
                        writer.write(_line(_refusal(telling.result())))
                    elif hearing.result():
                        words = "nothing can be asked on a connection that follows"
                        writer.write(_line(_refusal(UsageError(words))))
                except asyncio.CancelledError:
                    writer.write(_line(_refusal(ENDING)))
                    raise
                finally:
                    telling.cancel()
                    hearing.cancel()
                    await asyncio.gather(telling, hearing, return_exceptions=True)
        finally:
            self._followers -= 1


async def _tell(follower: Follower, writer: asyncio.StreamWriter) -> Error:
    """Tells what the follower hears, and gives the reason why there is no more."""
    try:
        async for transition in follower:
            writer.write(_line({"ok": True, "answer": transition.as_dict()}))
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await writer.drain()
    except TimeoutError:
        return DaemonError(f"cut off: nothing was read for {IDLE_TIMEOUT_S:g} s")
    except DaemonError as behind:
        return behind
    return ENDING


def _line(answer: dict[str, Any]) -> bytes:
    return msgspec.json.encode(answer) + b"\n"


def _refusal(fault: Error) -> dict[str, Any]:
    return {"ok": False, "error": str(fault), "exit": fault.exit_status}


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
