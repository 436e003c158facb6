"""The operator's command that runs on each transition. Whatever it does, the daemon goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence

from dataplane.daemon.events import Transition
from dataplane.daemon.messages import printable

log = logging.getLogger("evenlink")

TIME_LIMIT_S = 10.0
# From TERM to KILL, and from KILL until we give up.
GRACE_S = 1.0
MOST_WAITING = 64
# Of what it prints, this much is logged and the rest is thrown away, at a pace: what prints
# without end must not have us read without end.
MOST_OUTPUT = 4096
PIECE = 1 << 16
PAUSE_S = 0.02
# One variable of the environment takes 128 KiB, name included.
LONGEST_VALUE = 4096
MOST_FAULTS = 8
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment(transition: Transition, interface: str) -> dict[bytes, bytes]:
    """All that the command finds in its environment."""
    facts = {
        "LINK": transition.link,
        "STATE": transition.state,
        "BEFORE": transition.before,
        "WHY": printable(transition.why),
        "CARRIES": " ".join(transition.carries),
        "AT": transition.as_dict()["at"],
        "INTERFACE": interface,
    }
    named = {
        "PATH": os.environ.get("PATH", PATH),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        **{f"EVENLINK_{name}": value[:LONGEST_VALUE] for name, value in facts.items()},
    }
    # Not in the daemon's own encoding, which may lack a letter.
    return {name.encode(): value.encode(errors="replace") for name, value in named.items()}


class Hooks:
    """Runs the command for one transition after the other, in their order.

    Everything happens on the event loop's thread. An empty command is none.
    """

    def __init__(self, command: Sequence[str], limit_s: float = TIME_LIMIT_S) -> None:
        self._command = tuple(command)
        self._limit_s = limit_s
        self._waiting: deque[tuple[Transition, str]] = deque()
        self._work: asyncio.Task[None] | None = None
        self._closed = False
        # Replaced whole: another thread may ask.
        self._faults: tuple[str, ...] = ()

    def faults(self) -> list[str]:
        """What went wrong since a run went well."""
        return list(self._faults)

    def replace(self, command: Sequence[str]) -> None:
        """What runs from now on; a run that has begun goes on."""
        if self._command != tuple(command):
            self._command = tuple(command)
            self._faults = ()

    def tell(self, transition: Transition, interface: str) -> None:
        """Never waits. `interface` is the link's."""
        if not self._command or self._closed:
            return
        self._waiting.append((transition, interface))
        if len(self._waiting) > MOST_WAITING:
            dropped, _ = self._waiting.popleft()
            fault = f"too slow: {MOST_WAITING} transitions wait, older ones are left out"
            self._fault(self._command, fault, f" (link {dropped.link}, {dropped.state})")
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._run_all())

    async def close(self) -> None:
        """Ends the run that is under way, if one is. Those that wait are left out."""
        self._closed = True
        self._waiting.clear()
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})

    async def _run_all(self) -> None:
        while self._waiting and self._command:
            command = self._command
            transition, interface = self._waiting.popleft()
            about = f" (link {transition.link}, {transition.state})"
            variables = environment(transition, interface)
            fault, output = await _outcome(command, variables, self._limit_s)
            if fault:
                self._fault(command, fault, about + _said(output))
                continue
            log.debug("on_change %s: well%s%s", command[0], about, _said(output))
            if command == self._command:
                self._faults = ()
        self._waiting.clear()

    def _fault(self, command: Sequence[str], words: str, more: str = "") -> None:
        """Keeps it for `status`, and logs it unless it is known. `more` is for the log."""
        fault = f"on_change {command[0]}: {words}"
        known = fault in self._faults
        log.log(logging.DEBUG if known else logging.WARNING, "%s%s", fault, more)
        if not known and command == self._command:
            self._faults = (*self._faults, fault)[-MOST_FAULTS:]


async def _outcome(
    command: Sequence[str], variables: Mapping[bytes, bytes], limit_s: float
) -> tuple[str, bytes]:
    """Runs it once: what went wrong, empty if nothing, and what it printed."""
    try:
        run = _Run(command, variables)
    except (OSError, ValueError) as refusal:
        return f"cannot be run: {getattr(refusal, 'strerror', None) or refusal}", b""
    try:
        async with asyncio.timeout(limit_s):
            await run.ended.wait()
    except TimeoutError:
        ended = await run.stop()
        words = f"ended after the time limit of {limit_s:g} s" if ended else "cannot be ended"
        return words, run.output
    except asyncio.CancelledError:
        await run.stop()
        raise
    finally:
        status = run.close()
    if status == 0:
        return "", run.output
    if status is not None and status < 0:
        return f"ended by {_name(-status)}", run.output
    return f"ended with status {status}", run.output


class _Run:
    """One run of the command, in a session of its own. OSError or ValueError if it cannot begin."""

    def __init__(self, command: Sequence[str], variables: Mapping[bytes, bytes]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self.output = b""
        self.ended = asyncio.Event()
        self._silent = asyncio.Event()
        with contextlib.ExitStack() as failed:
            self._reading, writing = os.pipe()
            failed.callback(os.close, self._reading)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=writing,
                    stderr=writing,
                    env=variables,
                    cwd="/",
                    start_new_session=True,
                )
            finally:
                os.close(writing)
            failed.callback(self._signal, signal.SIGKILL)
            # Its end is seen before it is reaped: until then its group's number is nobody else's.
            self._watching = os.pidfd_open(self._process.pid)
            failed.pop_all()
        os.set_blocking(self._reading, False)
        self._listen()
        self._loop.add_reader(self._watching, self._end)

    def _end(self) -> None:
        self._loop.remove_reader(self._watching)
        self.ended.set()

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._reading, self._hear)

    def _hear(self) -> None:
        try:
            piece = os.read(self._reading, PIECE)
        except BlockingIOError:
            return
        self.output += piece[: MOST_OUTPUT - len(self.output)]
        if not piece:
            self._loop.remove_reader(self._reading)
            self._silent.set()
        elif len(self.output) == MOST_OUTPUT:
            self._loop.remove_reader(self._reading)
            self._pause = self._loop.call_later(PAUSE_S, self._listen)

    def _signal(self, number: signal.Signals) -> None:
        # What it started may belong to others, as after sudo.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def stop(self) -> bool:
        """Ends it and all that it started, as far as that is in its session; whether it ended."""
        self._signal(signal.SIGTERM)
        try:
            # What it started is asked no less than itself, and mostly holds the pipe.
            async with asyncio.timeout(GRACE_S):
                await self.ended.wait()
                await self._silent.wait()
        except TimeoutError:
            pass
        finally:
            self._signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self.ended.wait()
        return self.ended.is_set()

    def close(self) -> int | None:
        """Takes what was printed last, and gives the exit status; None if it has not ended.

        What it left behind is not waited for, though it may hold the pipe.
        """
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._reading)
        self._loop.remove_reader(self._watching)
        with contextlib.suppress(BlockingIOError):
            self.output += os.read(self._reading, MOST_OUTPUT - len(self.output))
        os.close(self._reading)
        os.close(self._watching)
        return self._process.poll()


def _said(output: bytes) -> str:
    words = printable(output.decode(errors="replace"))
    return f"; it said: {words}" if words else ""


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
