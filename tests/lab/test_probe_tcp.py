"""tcp: an established connection, and nothing more of it."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from dataplane.config.model import ProbeKind
from tests.lab.probebox import (
    HOST4,
    HOSTS,
    SILENT4,
    Address,
    Box,
    asker,
    box,
    eventually,
    inside,
    target,
)

__all__ = ["box"]

TCP = ProbeKind.TCP
AT_ONCE = 24


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@HOSTS
def test_a_port_answers_by_its_link(box: Box, host: Address) -> None:
    """From the SYN to the reset, by one link, with mark and priority; no byte is sent."""
    listener = box.bound("a", socket.SOCK_STREAM, host)
    box.bound("b", socket.SOCK_STREAM, host, listener.getsockname()[1])

    async def work() -> None:
        async with asker(TCP) as (tcp, told):
            tcp.ask(1, target(port=listener.getsockname()[1]), host, 5)
            ms, words = await told.answer(1)
            assert ms is not None
            assert ms > 0
            assert words == ""

    inside(box, work)
    accepted, _ = listener.accept()
    with accepted:
        accepted.setblocking(True)
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)
    assert box.packets_to("a", host) == box.counted()["a"] >= 3
    assert box.packets_to("b", host) == 0
    assert box.counted()["strange"] == box.counted()["b"] == 0


@HOSTS
def test_a_closed_port_refuses(box: Box, host: Address) -> None:
    async def work() -> None:
        async with asker(TCP) as (tcp, told):
            tcp.ask(1, target(port=9), host, 5)
            assert await told.answer(1) == (None, "refused")

    inside(box, work)


def test_an_unreachable_host(box: Box) -> None:
    """The provider says so by ICMP."""
    box["a"].run("ip", "route", "add", "unreachable", f"{SILENT4}/32")
    box["a"].set({"net/ipv4/ip_forward": 1})

    async def work() -> None:
        async with asker(TCP) as (tcp, told):
            tcp.ask(1, target(port=80), SILENT4, 5)
            assert await told.answer(1) == (None, "host unreachable")

    inside(box, work)


def test_silence_ends_and_does_not_gather(box: Box) -> None:
    """Of too many the oldest are given up and not told; others are asked; then it goes on."""
    listener = box.bound("a", socket.SOCK_STREAM, HOST4)
    kept = range(100 - AT_ONCE, 100)

    async def work() -> None:
        async with asker(TCP) as (tcp, told):
            before = descriptors()
            for token in range(100):
                tcp.ask(token, target("silent", 80), SILENT4, 1)
                await asyncio.sleep(0)
            assert told.all == {}
            await eventually(lambda: descriptors() - before == AT_ONCE)
            assert len(asyncio.all_tasks()) == AT_ONCE + 1
            tcp.ask(200, target("other", listener.getsockname()[1]), HOST4, 5)
            assert (await told.answer(200))[1] == ""
            for token in kept:
                assert await told.answer(token) == (None, "no answer within 1 s")
            assert set(told.all) == {200, *kept}
            await eventually(lambda: descriptors() == before)
            tcp.ask(300, target("silent", 80), SILENT4, 0.1)
            assert await told.answer(300) == (None, "no answer within 0.1 s")

    inside(box, work)


def test_an_interface_that_is_gone(box: Box) -> None:
    async def work() -> None:
        async with asker(TCP) as (tcp, told):
            box.router.run("ip", "link", "delete", "up-a")
            tcp.ask(1, target(port=80), HOST4, 5)
            assert await told.answer(1) == (None, "the interface is gone")

    inside(box, work)


def test_closed_is_closed(box: Box) -> None:
    """What is under way is given up, with its socket."""

    async def work() -> None:
        async with asker(TCP) as (tcp, told):
            tcp.ask(1, target(port=80), SILENT4, 600)
            await eventually(lambda: box.packets_to("a", SILENT4))
            tcp.close()
            tcp.ask(2, target(port=80), HOST4, 5)
        assert told.all == {}

    inside(box, work)
