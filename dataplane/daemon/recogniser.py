"""Learns applications: keeps a process that recognises them, and hears what it finds.

That process (recognising.py) may crash, hang, or be taken over by what it reads. It then costs
learning, nothing else: it is ended, counted, and started again after a while that doubles each
time. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TypedDict

from dataplane.daemon.findings import (
    LONGEST_LINE,
    Counted,
    Finding,
    Hello,
    NonsenseError,
    Said,
    read,
)
from dataplane.daemon.messages import printable
from dataplane.daemon.recognising import NOT_BUILT
from dataplane.decide import lessons
from dataplane.errors import Error
from dataplane.system.copies import Copies

log = logging.getLogger("evenlink")

COMMAND = (sys.executable, "-P", "-m", "dataplane.daemon.recognising")
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
# Who ran for so long has not failed at once.
WELL_AFTER_S = 60.0
# It gives a sign of life each second.
SILENCE_S = 10.0
# Read at a pace: however much it says, the loop has time for others.
PIECE = 16384
PAUSE_S = 0.02
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])


class Report(TypedDict):
    """What `status` says of it. `restarts` counts the processes that were started after another
    one ended; the others are sums over all of them: copies looked at, copies that found the
    kernel's buffer full, findings taken."""

    running: bool
    restarts: int
    copies: int
    lost: int
    findings: int


def available() -> bool:
    """Whether the extension was built. It is not loaded: that is for the process to do."""
    return importlib.util.find_spec("dataplane.recognise") is not None


class Recogniser:
    """Recognises what is copied to one log group, from `start` to `stop`.

    `on_finding` is called on the loop, for each finding that was checked. `start` never fails:
    what does is tried again, and `faults` says it meanwhile.
    """

    def __init__(
        self,
        group: int,
        on_finding: Callable[[lessons.Finding], None],
        *,
        command: Sequence[str] = COMMAND,
        silence_s: float = SILENCE_S,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._group = group
        self._on_finding = on_finding
        self._command = command
        self._silence_s = silence_s
        self._first_pause_s = first_pause_s
        self._loop = asyncio.get_running_loop()
        self._copies: Copies | None = None
        self._process: _Process | None = None
        self._again: asyncio.TimerHandle | None = None
        self._pause_s = first_pause_s
        self._started = 0.0
        self._runs = 0
        self._fault = ""
        self._before: Counter[str] = Counter()
        self._counted: dict[str, int] = {}
        self._findings = 0
        self.known: frozenset[str] = frozenset()
        """The applications that it can recognise, in lower case; empty until it has said so."""
        self.version = ""
        """Of its library; empty until it has said so."""

    def start(self) -> None:
        """Begins; again does nothing."""
        if self._process is None and self._again is None:
            self._run()

    async def stop(self) -> None:
        """Ends the process and gives the log group back. `start` begins anew."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._process is not None:
            process, self._process = self._process, None
            await process.end()
        self._sum_up()
        if self._copies is not None:
            self._copies.close()
            self._copies = None

    def report(self) -> Report:
        counted = self._before + Counter(self._counted)
        return {
            "running": self._process is not None and self._process.ready,
            "restarts": max(0, self._runs - 1),
            "copies": counted["copies"],
            "lost": counted["lost"],
            "findings": self._findings,
        }

    def faults(self) -> list[str]:
        """Why nothing is learned at present, if so; or what is not as safe as it should be."""
        return [f"applications: {self._fault}"] if self._fault else []

    def _run(self) -> None:
        self._again = None
        try:
            if self._copies is None:
                self._copies = Copies(self._group)
            self._process = _Process(
                self._command, self._copies.fileno(), self._silence_s, self._hear, self._ended
            )
        except (Error, OSError) as refusal:
            self._fail(f"cannot be recognised: {refusal}")
            return
        self._runs += 1
        self._started = self._loop.time()

    def _hear(self, said: Said) -> None:
        if isinstance(said, Finding):
            self._findings += 1
            self._on_finding(
                lessons.Finding(
                    said.protocol,
                    (ip_address(said.server[0]), said.server[1]),
                    (ip_address(said.client[0]), said.client[1]),
                    said.applications,
                    said.host,
                )
            )
        elif isinstance(said, Counted):
            self._counted = {"copies": said.copies, "lost": said.lost}
        elif isinstance(said, Hello):
            self.known = frozenset(said.applications)
            self.version = said.version
            self._fault = said.unconfined
            if said.unconfined:
                log.warning("applications: %s", said.unconfined)

    def _ended(self, why: str) -> None:
        """Called when the process is no more, unless `stop` ended it."""
        self._process = None
        self._sum_up()
        if self._loop.time() - self._started >= WELL_AFTER_S:
            self._pause_s = self._first_pause_s
        self._fail(f"the recogniser {why}")

    def _fail(self, words: str) -> None:
        level = logging.DEBUG if words == self._fault else logging.WARNING
        log.log(level, "applications: %s; again in %g s", words, self._pause_s)
        self._fault = words
        self._again = self._loop.call_later(self._pause_s, self._run)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _sum_up(self) -> None:
        self._before.update(self._counted)
        self._counted = {}


class _Process:
    """One process, from its start to its end. OSError if it cannot be started."""

    def __init__(
        self,
        command: Sequence[str],
        copies: int,
        silence_s: float,
        hear: Callable[[Said], None],
        ended: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._silence_s = silence_s
        self._hear, self._tell_ended = hear, ended
        self.ready = False
        self._rest = b""
        self._why = ""
        self._gone = asyncio.Event()
        self._pause: asyncio.TimerHandle | None = None
        with contextlib.ExitStack() as failed:
            self._reading, writing = os.pipe()
            failed.callback(os.close, self._reading)
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=copies,
                    stdout=writing,
                    stderr=subprocess.DEVNULL,
                    env={"PYTHONPATH": _PACKAGE_PARENT},
                    cwd="/",
                    start_new_session=True,
                )
            finally:
                os.close(writing)
            failed.callback(self._process.kill)
            self._watching = os.pidfd_open(self._process.pid)
            failed.pop_all()
        os.set_blocking(self._reading, False)
        self._loop.add_reader(self._watching, self._see_end)
        self._listen()
        self._silence = self._loop.call_later(silence_s, self._kill, self._silent())

    def _silent(self) -> str:
        return f"was silent for {self._silence_s:g} s"

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._reading, self._read)

    def _read(self) -> None:
        try:
            piece = os.read(self._reading, PIECE)
        except BlockingIOError:
            return
        if not piece:
            # It ends, and then it is known how. One that does not is silent.
            self._loop.remove_reader(self._reading)
            return
        if len(piece) == PIECE:
            self._loop.remove_reader(self._reading)
            self._pause = self._loop.call_later(PAUSE_S, self._listen)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        try:
            for text in lines:
                self._take(text)
        except NonsenseError as fault:
            self._kill("said nonsense")
            log.debug("%s", printable(str(fault)))
            return
        if len(self._rest) > LONGEST_LINE:
            self._kill("said a line without end")

    def _take(self, text: bytes) -> None:
        if len(text) > LONGEST_LINE:
            raise NonsenseError("the recogniser said too long a line")
        said = read(text)
        if self.ready == isinstance(said, Hello):
            raise NonsenseError("the recogniser said hello not first, or twice")
        self.ready = True
        self._silence.cancel()
        self._silence = self._loop.call_later(self._silence_s, self._kill, self._silent())
        self._hear(said)

    def _kill(self, why: str) -> None:
        """Its end is heard of later. The reason that is given first counts."""
        self._why = self._why or why
        self._deaf()
        if self._process.returncode is None:
            signal.pidfd_send_signal(self._watching, signal.SIGKILL)

    def _deaf(self) -> None:
        self._loop.remove_reader(self._reading)
        self._silence.cancel()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _see_end(self) -> None:
        self._loop.remove_reader(self._watching)
        status = self._process.wait()
        why = self._why or _words(status)
        self._close()
        self._gone.set()
        self._tell_ended(why)

    def _close(self) -> None:
        self._deaf()
        os.close(self._reading)
        os.close(self._watching)

    async def end(self) -> None:
        """Ends it without a word to anybody."""
        self._tell_ended = lambda _: None
        self._kill("was told to")
        await self._gone.wait()


def _words(status: int) -> str:
    if status == NOT_BUILT:
        return "cannot load nDPI: it is not installed, or was not when Evenlink was built"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"
