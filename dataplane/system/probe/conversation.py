"""What tcp, dns and http have in common: a question is a task, with an end."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod

from dataplane.config.model import Target
from dataplane.system.probe.asker import Address, Exit, Told, words

# Of one target and family; a target that hangs must not gather sockets. At the usual pace a
# question is over before so many more were asked.
_AT_ONCE = 24
_WORDS_LENGTH = 120


class Conversations(ABC):
    """An asker whose questions each take a socket and some time.

    If a target has too many, its oldest is given up, and of that one nothing is told.
    """

    def __init__(self, by: Exit, told: Told) -> None:
        self.remarks: dict[str, str] = {}
        self._by = by
        self._told = told
        self._closed = False
        # By target and family, then by token, oldest first: what is still to be told.
        self._running: dict[tuple[str, int], dict[int, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    @abstractmethod
    async def _converse(self, target: Target, address: Address) -> str:
        """Asks and hears: words, or none when all is well. Anything may be raised."""

    def ask(self, token: int, target: Target, address: Address, limit_s: float) -> None:
        if self._closed:
            return
        running = self._running.setdefault((target.text, address.version), {})
        if len(running) >= _AT_ONCE:
            running.pop(next(iter(running))).cancel()
        task = self._loop.create_task(self._answer(token, target, address, limit_s))
        running[token] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, token: int, target: Target, address: Address, limit_s: float) -> None:
        began_ns = time.monotonic_ns()
        try:
            async with asyncio.timeout(limit_s):
                said = await self._converse(target, address)
        except TimeoutError:
            said = f"no answer within {limit_s:g} s"
        except OSError as refusal:
            said = words(refusal)
        except Exception as fault:
            # Whatever a library makes of bytes that a stranger chose, it is only a bad answer.
            said = str(fault) or type(fault).__name__
        # Before it is told: the next question may come at once.
        still_asked = self._running[target.text, address.version].pop(token, None)
        if self._closed or still_asked is None:
            return
        if said:
            said = said[:1].lower() + said[1:] if said[1:2].islower() else said
            self._told(token, None, said[:_WORDS_LENGTH].rstrip("."))
        else:
            self.remarks.pop(target.text, None)
            self._told(token, (time.monotonic_ns() - began_ns) / 1e6, "")

    def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
