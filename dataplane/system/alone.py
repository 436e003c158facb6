"""One daemon a network namespace, whatever its state directory and its queues are.

The lock is a name among the abstract Unix sockets, which belong to the network namespace and end
with the process that holds them. Anybody may take such a name, so a holder who is neither root nor
the same user as we are does not count.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct

from dataplane.errors import MachineError

_NAME = "\0evenlink daemon"
_CREDENTIALS = struct.Struct("=iII")


class NamespaceLock:
    """Held from `take` until `release` or the end of the process."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def take(self) -> None:
        """MachineError if another daemon has this network namespace."""
        mine = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            mine.bind(_NAME)
            mine.listen()
        except OSError as refusal:
            mine.close()
            if refusal.errno != errno.EADDRINUSE:
                raise MachineError(f"the lock of this namespace: {refusal.strerror}") from refusal
            other = holder()
            if other is not None:
                raise MachineError(
                    f"another evenlink daemon (process {other}) serves this network namespace; "
                    "stop it first"
                ) from None
            return
        mine.setblocking(False)
        self._socket = mine

    def hang_up(self) -> None:
        """Lets go those who asked who holds the lock: a full backlog would hide the answer."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                while True:
                    self._socket.accept()[0].close()

    def release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def holder() -> int | None:
    """The process id of the daemon that serves this network namespace, if there is one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking, contextlib.suppress(OSError):
        asking.setblocking(False)
        asking.connect(_NAME)
        data = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process, user, _ = _CREDENTIALS.unpack(data)
        if user in (0, os.geteuid()):
            return int(process)
    return None
