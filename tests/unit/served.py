"""A control socket with a feed of transitions, and no router behind it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataplane.daemon.control import ControlServer, Handler
from dataplane.daemon.events import Feed, Transition
from dataplane.daemon.messages import Request

PATIENCE_S = 30


async def echo(request: Request) -> Any:
    return repr(request)


class Served:
    """A server on a thread of its own, with a feed that is told from here."""

    def __init__(self, path: Path, handler: Handler = echo) -> None:
        self.path = path
        self._handler = handler
        self.feed = Feed()
        self.server: ControlServer | None = None
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        self.server = ControlServer(self.path, None, self._handler, self.feed)
        self.server.bind()
        await self.server.start()
        self._ready.set()
        await self._end.wait()
        await self.server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), PATIENCE_S)

    def call(self, what: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(what, *arguments)

    def tell(self, *links: int | str, why: str = "") -> None:
        """All at once."""
        names = [f"l{link}" if isinstance(link, int) else link for link in links]
        told = [Transition(name, "up", "down", why, ("ipv4",), 0.0) for name in names]
        self.call(lambda: [self.feed.tell(one) for one in told])

    @property
    def connections(self) -> int:
        assert self.server is not None
        return len(self.server._connections)

    def end(self) -> None:
        if self._thread.is_alive():
            self.call(self._end.set)
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive()
            self._loop.close()
