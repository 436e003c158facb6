"""arp: answers of neighbours, to us, by the asked interface only."""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import IPv4Address

import pytest

from dataplane.config.model import ProbeKind
from dataplane.errors import KernelError
from dataplane.system.probe import Exit, make_asker
from tests.lab.probebox import HOST6, Box, Told, asker, box, eventually, inside, target

__all__ = ["box"]

ARP = ProbeKind.ARP
GATEWAY, SILENT = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.77")
OURS = IPv4Address("192.0.2.2")


def questions(box: Box, link: str) -> list[bytes]:
    """Requests that the provider heard."""
    return [f[14:42] for f in box.frames(link) if f[12:14] == b"\x08\x06" and f[20:22] == b"\0\1"]


def answer(
    box: Box, question: bytes, *, sender: IPv4Address, to: IPv4Address = OURS, to_mac: bytes = b""
) -> None:
    """The provider says that it has the address, to whoever asked."""
    asker_mac = question[8:14]
    own = b"\x02\0\0\0\0\x07"
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + own + sender.packed
    body += (to_mac or asker_mac) + to.packed
    mouth = box.socket("a", socket.AF_PACKET, socket.SOCK_RAW)
    mouth.bind(("link", 0x0806))
    mouth.send(asker_mac + own + b"\x08\x06" + body)


def test_a_neighbour_answers_by_its_link(box: Box) -> None:
    """The kernel's own table has nothing to do with it: it is asked each time."""

    async def work() -> None:
        async with asker(ARP) as (arp, told):
            for token in range(1, 4):
                arp.ask(token, target("gateway"), GATEWAY, 5)
                ms, words = await told.answer(token)
                assert ms is not None
                assert ms > 0
                assert words == ""
            asked = questions(box, "a")
            assert len(asked) == 3
            assert {q[14:18] for q in asked} == {OURS.packed}
            assert {q[24:28] for q in asked} == {GATEWAY.packed}
            assert questions(box, "b") == []

    inside(box, work)


def test_it_asks_from_the_address_that_fits(box: Box) -> None:
    """Of two networks on an interface, the one that the neighbour is in."""
    box.router.run("ip", "address", "add", "198.18.5.2/24", "dev", "up-a")
    box["a"].run("ip", "address", "add", "198.18.5.1/24", "dev", "link")

    async def work() -> None:
        async with asker(ARP) as (arp, told):
            arp.ask(1, target(), IPv4Address("198.18.5.1"), 5)
            assert (await told.answer(1))[1] == ""
            assert questions(box, "a")[0][14:18] == IPv4Address("198.18.5.2").packed

    inside(box, work)


def test_answers_of_and_for_others_do_not_count(box: Box) -> None:
    """Another's address says nothing, an answer for somebody else is remarked, then the truth."""

    async def work() -> None:
        async with asker(ARP) as (arp, told):
            arp.ask(1, target("neighbour"), SILENT, 30)
            question = (await eventually(lambda: questions(box, "a")))[0]
            answer(box, question, sender=IPv4Address("192.0.2.78"))
            answer(box, question, sender=SILENT, to=IPv4Address("192.0.2.9"))
            said = f"an answer came for 192.0.2.9 at {question[8:14].hex(':')} instead"
            await eventually(lambda: arp.remarks.get("neighbour") == said)
            answer(box, question, sender=SILENT, to_mac=b"\x02\0\0\0\0\x08")
            said = "an answer came for 192.0.2.2 at 02:00:00:00:00:08 instead"
            await eventually(lambda: arp.remarks.get("neighbour") == said)
            assert told.all == {}
            answer(box, question, sender=SILENT)
            assert (await told.answer(1))[1] == ""
            assert arp.remarks == {}
            answer(box, question, sender=SILENT)  # Again: told twice would be noticed.
            arp.ask(2, target("gateway"), GATEWAY, 30)
            await told.answer(2)

    inside(box, work)


def test_silence_is_not_told_of(box: Box) -> None:
    async def work() -> None:
        async with asker(ARP) as (arp, told):
            arp.ask(1, target("silent"), SILENT, 5)
            await eventually(lambda: questions(box, "a"))
            arp.ask(2, target("gateway"), GATEWAY, 5)
            await told.answer(2)
            assert 1 not in told.all

    inside(box, work)


def test_after_the_limit_it_is_forgotten(box: Box) -> None:
    async def work() -> None:
        async with asker(ARP) as (arp, told):
            arp.ask(1, target("silent"), SILENT, 0)
            question = (await eventually(lambda: questions(box, "a")))[0]
            answer(box, question, sender=SILENT)
            # Once another asker has heard what came after it, this one has heard it too.
            async with asker(ARP) as (another, heard):
                another.ask(2, target("gateway"), GATEWAY, 5)
                await heard.answer(2)
            assert 1 not in told.all

    inside(box, work)


def test_where_there_is_no_arp(box: Box) -> None:
    """IPv6; an interface that was told to do without; a tunnel."""

    async def work() -> None:
        async with asker(ARP) as (arp, told):
            arp.ask(1, target(), HOST6, 5)
            assert told.all[1] == (None, "ARP is for IPv4 only")
            box.router.run("ip", "link", "set", "up-a", "arp", "off")
            arp.ask(2, target(), GATEWAY, 5)
            assert told.all[2] == (None, "interface up-a has no ARP")

    inside(box, work)


@pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="no /dev/net/tun")
def test_a_tunnel_has_no_arp(box: Box) -> None:
    box.router.run("ip", "tuntap", "add", "dev", "tun0", "mode", "tun")
    box.router.run("ip", "link", "set", "tun0", "up")

    async def work() -> None:
        told = Told()
        arp = make_asker(ARP, Exit("tun0", 0x1000000), told)
        arp.ask(1, target(), GATEWAY, 5)
        assert told.all[1] == (None, "interface tun0 has no ARP")
        arp.close()

    inside(box, work)


def test_an_interface_goes(box: Box) -> None:
    """Down, gone, and back with another index: the old asker says so, a new one works."""

    async def work() -> None:
        async with asker(ARP) as (arp, told):
            box.router.run("ip", "link", "set", "up-a", "down")
            arp.ask(1, target(), GATEWAY, 5)
            assert told.all[1] == (None, "the interface is down")
            box.router.run("ip", "link", "set", "up-a", "up")
            arp.ask(2, target(), GATEWAY, 5)
            assert (await told.answer(2))[1] == ""
            box.router.run("ip", "link", "delete", "up-a")
            arp.ask(3, target(), GATEWAY, 5)
            assert told.all[3] == (None, "the interface is gone")
            with pytest.raises(KernelError, match="arp on up-a: the interface is gone"):
                make_asker(ARP, Exit("up-a", 1), told)
            box.rewire("a")
            arp.ask(4, target(), GATEWAY, 5)
            assert told.all[4] == (None, "the interface is gone")
        async with asker(ARP) as (arp, told):
            arp.ask(1, target(), GATEWAY, 5)
            assert (await told.answer(1))[1] == ""

    inside(box, work)
