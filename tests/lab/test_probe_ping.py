"""ping: what counts as an answer, what does not, and by which link it leaves."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from dataplane.config.model import ProbeKind
from dataplane.errors import KernelError
from dataplane.system.probe import Exit, make_asker
from tests.lab.probebox import (
    HOST4,
    HOSTS,
    OTHER,
    PATIENCE_S,
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

PING = ProbeKind.PING


class Liar:
    """Answers pings by hand, where the provider's kernel does not."""

    def __init__(self, box: Box, host: Address) -> None:
        box.deaf("a")
        self._box = box
        self._four = host.version == 4
        self._family = socket.AF_INET if self._four else socket.AF_INET6
        self._protocol = socket.IPPROTO_ICMP if self._four else socket.IPPROTO_ICMPV6
        self._ears = box.socket("a", self._family, socket.SOCK_RAW, self._protocol)

    async def hears(self) -> bytes:
        """The next echo request."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                packet = await loop.sock_recv(self._ears, 2048)
                echo = packet[20:] if self._four else packet
                if echo[0] == (8 if self._four else 128):
                    return echo

    def says(
        self,
        request: bytes,
        source: Address,
        *,
        identifier: int = 0,
        sequence: int = 0,
        code: int = 0,
        payload: bytes | None = None,
    ) -> None:
        """The reply to a request, or with this added to its identifier and sequence."""
        kind, _, _, its, number = struct.unpack_from("!BBHHH", request)
        kind = 0 if self._four else 129
        its, number = (its + identifier) & 0xFFFF, (number + sequence) & 0xFFFF
        body = request[8:] if payload is None else payload
        reply = struct.pack("!BBHHH", kind, code, 0, its, number) + body
        if self._four:
            reply = reply[:2] + struct.pack("!H", checksum(reply)) + reply[4:]
        mouth = self._box.socket("a", self._family, socket.SOCK_RAW, self._protocol)
        mouth.bind((str(source), 0))
        mouth.sendto(reply, ("192.0.2.2" if self._four else "2001:db8:1::2", 0))


def checksum(packet: bytes) -> int:
    total = sum(struct.unpack(f"!{len(packet) // 2}H", packet))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@HOSTS
def test_an_answer_has_a_time(box: Box, host: Address) -> None:
    async def work() -> None:
        async with asker(PING) as (ping, told):
            for token in range(1, 6):
                ping.ask(token, target(), host, 5)
            for token in range(1, 6):
                ms, words = await told.answer(token)
                assert ms is not None
                assert 0 < ms < PATIENCE_S * 1000
                assert words == ""
            assert ping.remarks == {}

    inside(box, work)


@HOSTS
def test_each_link_has_its_own(box: Box, host: Address) -> None:
    """Only its provider sees it; mark and priority are on every packet of it."""

    async def work() -> None:
        async with asker(PING, "a") as (by_a, told_a), asker(PING, "b") as (by_b, told_b):
            for token in range(3):
                by_a.ask(token, target(), host, 5)
                await told_a.answer(token)
            assert box.packets_to("a", host) == 3
            assert box.packets_to("b", host) == 0
            by_b.ask(7, target(), host, 5)
            await told_b.answer(7)
            assert box.packets_to("a", host) == 0
            assert box.packets_to("b", host) == 1
            assert 7 not in told_a.all

    inside(box, work)
    assert box.counted() == {"a": 3, "b": 1, "strange": 0}


def test_a_silent_host_is_not_told_of(box: Box) -> None:
    async def work() -> None:
        async with asker(PING) as (ping, told):
            ping.ask(1, target("silent"), SILENT4, 5)
            await eventually(lambda: box.packets_to("a", SILENT4))
            ping.ask(2, target(), HOST4, 5)
            assert (await told.answer(2))[1] == ""
            assert 1 not in told.all
            assert ping.remarks == {}

    inside(box, work)


@HOSTS
def test_a_late_answer_counts_until_the_limit(box: Box, host: Address) -> None:
    """The first question's answer comes after the second's, the third's after its limit."""
    liar = Liar(box, host)

    async def work() -> None:
        async with asker(PING) as (ping, told):
            ping.ask(1, target(), host, 30)
            first = await liar.hears()
            ping.ask(2, target(), host, 30)
            liar.says(await liar.hears(), host)
            await told.answer(2)
            liar.says(first, host)
            assert (await told.answer(1))[1] == ""
            liar.says(first, host)  # Again: told twice would be noticed.
            ping.ask(3, target(), host, 0.001)
            third = await liar.hears()
            began = asyncio.get_running_loop().time()
            await eventually(lambda: asyncio.get_running_loop().time() > began + 0.01)
            liar.says(third, host)
            # Once another asker has heard what came after it, this one has heard it too.
            async with asker(PING) as (another, heard):
                another.ask(4, target(), host, 30)
                liar.says(await liar.hears(), host)
                await heard.answer(4)
            assert 3 not in told.all

    inside(box, work)


@HOSTS
def test_what_is_not_the_answer_is_remarked(box: Box, host: Address) -> None:
    """Each lie alone, in the words that `status` has; the truth takes the remark away."""
    liar = Liar(box, host)

    async def work() -> None:
        async with asker(PING) as (ping, told):
            ping.ask(1, target("one"), host, 30)
            request = await liar.hears()

            async def remark(is_now: str) -> None:
                await eventually(lambda: ping.remarks.get("one") == is_now)
                assert told.all == {}

            liar.says(request, OTHER[host])
            await remark(f"an answer came from {OTHER[host]} instead")
            liar.says(request, host, identifier=1)
            await remark("an answer came with a wrong identifier")
            liar.says(request, host, payload=bytes(16))
            await remark("an answer came with another payload than was sent")
            ping.remarks.clear()
            liar.says(request, host, payload=request[8:] + bytes(1200))
            await remark("an answer came with another payload than was sent")
            ping.remarks.clear()
            liar.says(request, host, payload=b"")
            await remark("an answer came with another payload than was sent")
            liar.says(request, host)
            assert (await told.answer(1))[1] == ""
            assert ping.remarks == {}

    inside(box, work)


@HOSTS
def test_what_is_nobodys_answer_says_nothing(box: Box, host: Address) -> None:
    """Another's ping, a sequence that was not asked, a reply to nothing: no answer, no remark."""
    liar = Liar(box, host)

    async def work() -> None:
        async with asker(PING) as (ping, told):
            ping.ask(1, target("one"), host, 30)
            request = await liar.hears()
            liar.says(request, host, identifier=1, payload=b"another's.")
            liar.says(request, host, sequence=1)
            liar.says(request, OTHER[host], payload=b"a guess.")
            ping.ask(2, target("two"), host, 30)
            liar.says(await liar.hears(), host)
            await told.answer(2)
            assert 1 not in told.all
            assert ping.remarks == {}

    inside(box, work)


@HOSTS
def test_questions_cannot_be_guessed(box: Box, host: Address) -> None:
    """Sequences follow, payloads do not; two askers have two identifiers."""
    liar = Liar(box, host)

    async def work() -> None:
        async with asker(PING) as (one, _), asker(PING) as (another, _):
            requests = []
            for token in range(20):
                one.ask(token, target(), host, 5)
                requests.append(await liar.hears())
            assert len({request[8:] for request in requests}) == 20
            assert len({request[6:8] for request in requests}) == 20
            assert len({request[4:6] for request in requests}) == 1
            another.ask(1, target(), host, 5)
            assert (await liar.hears())[4:6] != requests[0][4:6]

    inside(box, work)


def test_sequences_come_round(box: Box) -> None:
    """More than 65,536 questions without an answer: the old ones make room for the new."""

    async def work() -> None:
        async with asker(PING) as (ping, told):
            for token in range(70_000):
                ping.ask(token, target("silent"), SILENT4, 600)
            ping.ask(-1, target(), HOST4, 600)
            assert (await told.answer(-1))[1] == ""

    inside(box, work)


@HOSTS
def test_a_refusal_is_told_at_once(box: Box, host: Address) -> None:
    """A filter, no route, an interface that is down, one that is gone: each in words."""

    async def work() -> None:
        async with asker(PING) as (ping, told):

            def refusal(token: int) -> str:
                ping.ask(token, target(), host, 5)
                ms, words = told.all[token]
                assert ms is None
                return words

            rule = ("leaving", "ip6" if host.version == 6 else "ip", "daddr", str(host), "drop")
            box.router.run("nft", "insert", "rule", "inet", "seen", *rule)
            assert refusal(1) == "a packet filter of this machine drops it"
            box.router.run("nft", "flush", "chain", "inet", "seen", "leaving")
            if host.version == 6:  # IPv4 takes it for a neighbour then.
                box.router.run("ip", "-6", "route", "flush", "table", "101")
                assert refusal(2) == "network unreachable"
            box.router.run("ip", "link", "set", "up-a", "down")
            assert refusal(3) in ("network unreachable", "the interface is down")
            box.router.run("ip", "link", "delete", "up-a")
            assert refusal(4) in ("network unreachable", "the interface is gone")
            with pytest.raises(KernelError, match="ping on up-a: the interface is gone"):
                make_asker(PING, Exit("up-a", 1), told)

    inside(box, work)


def test_a_flood_of_answers_does_not_hold_the_loop(box: Box) -> None:
    """More replies than one reading takes wait at once; the true one is found behind them."""
    liar = Liar(box, HOST4)

    async def work() -> None:
        async with asker(PING) as (ping, told):
            ping.ask(1, target(), HOST4, 30)
            request = await liar.hears()
            for _ in range(150):
                liar.says(request, HOST4, identifier=1)
            liar.says(request, HOST4)
            assert (await told.answer(1))[1] == ""

    inside(box, work)


def test_closed_is_closed(box: Box) -> None:
    async def work() -> None:
        async with asker(PING) as (ping, told):
            ping.ask(1, target(), HOST4, 5)
            ping.close()
            async with asker(PING) as (another, heard):
                another.ask(1, target(), HOST4, 5)
                await heard.answer(1)
            assert told.all == {}

    inside(box, work)
