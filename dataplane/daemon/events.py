"""Transitions of links, and those who follow them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from dataplane.errors import DaemonError

# What a follower may leave unread. All links of a full table can change twice at once.
MOST_UNREAD = 256

LinkStateName = Literal["up", "down", "drained"]


@dataclass(frozen=True, slots=True)
class Transition:
    """A link became something else. `at_s` is Unix time; `carries` the families, "ipv4", "ipv6".

    `why` is empty where nothing is wrong.
    """

    link: str
    before: LinkStateName
    state: LinkStateName
    why: str
    carries: tuple[str, ...]
    at_s: float

    def as_dict(self) -> dict[str, Any]:
        """What `status --follow --json` prints."""
        return {
            "link": self.link,
            "before": self.before,
            "state": self.state,
            "why": self.why,
            "carries": list(self.carries),
            "at": datetime.fromtimestamp(self.at_s, UTC).isoformat("T", "milliseconds"),
        }


class Follower:
    """The transitions since it began to follow, by `async for`; they end when the feed does.

    DaemonError, once, if more than MOST_UNREAD were left unread: it is told nothing more.
    """

    def __init__(self) -> None:
        self._unread: deque[Transition] = deque()
        self._news = asyncio.Event()
        self._ended = False
        self._behind = False

    def take(self, transition: Transition) -> None:
        if self._ended:
            return
        self._unread.append(transition)
        if len(self._unread) > MOST_UNREAD:
            self._unread.clear()
            self._behind = True
            self.end()
        self._news.set()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Transition:
        while not self._unread:
            if self._behind:
                self._behind = False
                raise DaemonError(
                    f"cut off: more than {MOST_UNREAD} transitions were left unread; ask again"
                )
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._unread.popleft()


class Feed:
    """Tells transitions to all who follow. Everything happens on the event loop's thread."""

    def __init__(self) -> None:
        self._followers: set[Follower] = set()
        self._closed = False

    def tell(self, transition: Transition) -> None:
        """Never waits for anybody."""
        for follower in self._followers:
            follower.take(transition)

    @contextlib.contextmanager
    def follow(self) -> Iterator[Follower]:
        """What is told from now on until the block ends."""
        follower = Follower()
        if self._closed:
            follower.end()
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)

    def close(self) -> None:
        """Those who follow come to an end once they have read what was told."""
        self._closed = True
        for follower in self._followers:
            follower.end()
