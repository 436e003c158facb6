"""dns: a server's answer to this question, and what strangers and liars send instead."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import dns.flags
import dns.message
import dns.rcode
import pytest

from dataplane.config.model import ProbeKind
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

DNS = ProbeKind.DNS


class Server:
    """Answers by hand, on port 53."""

    def __init__(self, box: Box, host: Address, link: str = "a") -> None:
        self._socket = box.bound(link, socket.SOCK_DGRAM, host, 53)
        self._other = box.bound(link, socket.SOCK_DGRAM, OTHER[host], 53)
        self._elsewhere = box.bound(link, socket.SOCK_DGRAM, host, 5300)

    async def hears(self) -> tuple[dns.message.Message, tuple[str, int]]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(PATIENCE_S):
            heard, sender = await loop.sock_recvfrom(self._socket, 4096)
        return dns.message.from_wire(heard), sender

    def says(self, answer: bytes, to: tuple[str, int]) -> None:
        self._socket.sendto(answer, to)

    def says_from_elsewhere(self, answer: bytes, to: tuple[str, int]) -> None:
        self._elsewhere.sendto(answer, to)

    def another_says(self, answer: bytes, to: tuple[str, int]) -> None:
        self._other.sendto(answer, to)


def reply(question: dns.message.Message, rcode: int = dns.rcode.NOERROR) -> dns.message.Message:
    made = dns.message.make_response(question)
    made.set_rcode(dns.rcode.Rcode(rcode))
    return made


@HOSTS
def test_a_server_answers_by_its_link(box: Box, host: Address) -> None:
    """One packet each, by the asked link, with mark and priority; ids and ports are random."""
    server, other = Server(box, host), Server(box, host, "b")

    async def work() -> None:
        async with asker(DNS, "a") as (by_a, told_a), asker(DNS, "b") as (by_b, told_b):
            ids, ports = set(), set()
            for token in range(1, 9):
                by_a.ask(token, target(), host, 5)
                question, sender = await server.hears()
                assert question.question[0].to_text() == ". IN NS"
                assert question.flags & dns.flags.RD
                ids.add(question.id)
                ports.add(sender[1])
                server.says(reply(question).to_wire(), sender)
                ms, words = await told_a.answer(token)
                assert ms is not None
                assert ms > 0
                assert words == ""
            assert len(ids) > 4
            assert len(ports) > 4
            assert box.packets_to("a", host) == 8
            assert box.packets_to("b", host) == 0
            by_b.ask(1, target(), host, 5)
            question, sender = await other.hears()
            other.says(reply(question).to_wire(), sender)
            await told_b.answer(1)
            assert box.packets_to("a", host) == 0
            assert box.packets_to("b", host) == 1

    inside(box, work)
    assert box.counted() == {"a": 8, "b": 1, "strange": 0}


@pytest.mark.parametrize("rcode", ["REFUSED", "SERVFAIL", "NOTIMP", "NXDOMAIN"])
def test_an_error_is_named(box: Box, rcode: str) -> None:
    server = Server(box, HOST4)

    async def work() -> None:
        async with asker(DNS) as (asks, told):
            asks.ask(1, target(), HOST4, 5)
            question, sender = await server.hears()
            server.says(reply(question, dns.rcode.from_text(rcode)).to_wire(), sender)
            assert await told.answer(1) == (None, rcode)

    inside(box, work)


@HOSTS
def test_a_closed_port_refuses(box: Box, host: Address) -> None:
    async def work() -> None:
        async with asker(DNS) as (asks, told):
            asks.ask(1, target(port=5353), host, 5)
            assert await told.answer(1) == (None, "refused")

    inside(box, work)


def test_silence(box: Box) -> None:
    async def work() -> None:
        async with asker(DNS) as (asks, told):
            asks.ask(1, target(), SILENT4, 0.2)
            assert await told.answer(1) == (None, "no answer within 0.2 s")

    inside(box, work)


def test_all_that_wait_are_heard(box: Box) -> None:
    """A round trip of many intervals: none fails for being many, up to 24 at once."""
    server = Server(box, HOST4)

    async def work() -> None:
        async with asker(DNS) as (asks, told):
            for token in range(26):
                asks.ask(token, target(), HOST4, 30)
            heard = [await server.hears() for _ in range(24)]
            assert told.all == {}
            for question, sender in heard:
                server.says(reply(question).to_wire(), sender)
            for token in range(2, 26):
                assert (await told.answer(token))[1] == ""
            assert set(told.all) == set(range(2, 26))

    inside(box, work)


def wrong_id(question: dns.message.Message) -> bytes:
    made = reply(question)
    made.id ^= 1
    return made.to_wire()


def other_question(question: dns.message.Message) -> bytes:
    another = dns.message.make_query("example.org", "NS", id=question.id)
    return reply(another).to_wire()


def looped(question: dns.message.Message) -> bytes:
    """A name that points to itself."""
    return question.to_wire()[:2] + b"\x80\0\0\1\0\0\0\0\0\0" + b"\xc0\x0c" + b"\0\2\0\1"


def cut(question: dns.message.Message) -> bytes:
    """Says that there are 65,535 records, and has none."""
    wire = reply(question).to_wire()
    return wire[:6] + b"\xff\xff" + wire[8:]


LIES: dict[str, tuple[Callable[[dns.message.Message], bytes], str]] = {
    "wrong-id": (wrong_id, "an answer came with a wrong identifier"),
    "other-question": (other_question, "an answer came to another question"),
    "echo": (lambda question: question.to_wire(), "an answer came to another question"),
    "empty": (lambda _: b"", "an answer came that is no DNS message"),
    "garbage": (lambda _: os.urandom(300), "an answer came that is no DNS message"),
    "huge": (lambda q: reply(q).to_wire() + bytes(60_000), "an answer came that is no DNS message"),
    "loop": (looped, "an answer came that is no DNS message"),
    "cut": (cut, "an answer came that is no DNS message"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_remarked_and_the_truth_still_heard(box: Box, lie: str) -> None:
    server = Server(box, HOST4)
    made, words = LIES[lie]

    async def work() -> None:
        async with asker(DNS) as (asks, told):
            asks.ask(1, target("server"), HOST4, 30)
            question, sender = await server.hears()
            server.says(made(question), sender)
            await eventually(lambda: asks.remarks.get("server") == words)
            assert told.all == {}
            server.says(reply(question).to_wire(), sender)
            assert (await told.answer(1))[1] == ""
            assert asks.remarks == {}

    inside(box, work)


@HOSTS
def test_answers_from_others_are_remarked(box: Box, host: Address) -> None:
    """From another address, from another port; then the truth, then a failure keeps the remark."""
    server = Server(box, host)

    async def work() -> None:
        async with asker(DNS) as (asks, told):
            asks.ask(1, target("server"), host, 30)
            question, sender = await server.hears()
            server.another_says(reply(question).to_wire(), sender)
            words = f"an answer came from {OTHER[host]} port 53 instead"
            await eventually(lambda: asks.remarks.get("server") == words)
            server.says_from_elsewhere(reply(question).to_wire(), sender)
            words = f"an answer came from {host} port 5300 instead"
            await eventually(lambda: asks.remarks.get("server") == words)
            assert told.all == {}
            server.says(reply(question).to_wire(), sender)
            assert (await told.answer(1))[1] == ""
            assert asks.remarks == {}

    inside(box, work)


def test_a_flood_of_lies_ends_the_question(box: Box) -> None:
    server = Server(box, HOST4)

    async def work() -> None:
        async with asker(DNS) as (asks, told):
            asks.ask(1, target("server"), HOST4, 30)
            question, sender = await server.hears()
            for _ in range(100):
                server.says(wrong_id(question), sender)
            assert await told.answer(1) == (None, "too many wrong answers")
            assert asks.remarks == {"server": "an answer came with a wrong identifier"}

    inside(box, work)
