"""The feed of transitions: nobody holds up the one who tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.daemon.events import MOST_UNREAD, Feed, Follower, Transition
from dataplane.daemon.messages import printable
from dataplane.errors import DaemonError

T = TypeVar("T")
PATIENCE_S = 30


def transition(number: int) -> Transition:
    return Transition(f"l{number}", "up", "down", "", (), 0.0)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, PATIENCE_S))


async def all_of(follower: Follower) -> list[str]:
    return [one.link async for one in follower]


def names(first: int, end: int) -> list[str]:
    return [f"l{n}" for n in range(first, end)]


def test_a_transition_as_json() -> None:
    one = Transition("isp-b", "up", "drained", "by hand", ("ipv4",), 1_700_000_000.25)
    assert json.loads(json.dumps(one.as_dict())) == {
        "link": "isp-b",
        "before": "up",
        "state": "drained",
        "why": "by hand",
        "carries": ["ipv4"],
        "at": "2023-11-14T22:13:20.250+00:00",
    }


def test_each_hears_what_is_told_while_it_follows() -> None:
    async def talk() -> None:
        feed = Feed()
        feed.tell(transition(0))
        with feed.follow() as first:
            feed.tell(transition(1))
            with feed.follow() as second:
                feed.tell(transition(2))
                assert (await anext(second)).link == "l2"
            feed.tell(transition(3))
            hearing = asyncio.create_task(all_of(first))
            await asyncio.sleep(0)
            feed.tell(transition(4))
            feed.close()
            assert await hearing == names(1, 5)
            assert await all_of(first) == []
        feed.tell(transition(5))
        with feed.follow() as late:
            feed.tell(transition(6))
            assert await all_of(late) == []

    run(talk())


def test_one_that_does_not_read_is_cut_off() -> None:
    """And told so; the others hear everything."""

    async def talk() -> None:
        feed = Feed()
        with feed.follow() as idle, feed.follow() as busy:
            heard = []
            for number in range(MOST_UNREAD + 1):
                feed.tell(transition(number))
                heard.append((await anext(busy)).link)
            feed.tell(transition(0))
            with pytest.raises(DaemonError, match="cut off: more than 256 transitions"):
                await anext(idle)
            assert await all_of(idle) == []
            assert heard == names(0, MOST_UNREAD + 1)

    run(talk())


def test_as_many_as_may_be_left_unread() -> None:
    async def talk() -> None:
        feed = Feed()
        with feed.follow() as follower:
            for number in range(MOST_UNREAD):
                feed.tell(transition(number))
            feed.close()
            assert await all_of(follower) == names(0, MOST_UNREAD)

    run(talk())


@given(st.text())
def test_printable_text(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text.strip()
