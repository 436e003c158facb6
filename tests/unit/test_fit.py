"""What stands against a file on a machine, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataplane.config.load import MOST_EXEMPT_MARKS, read
from dataplane.decide.facts import Facts
from dataplane.decide.fit import absences, conflicts, doubts
from dataplane.decide.plan import PRIORITY_BOUND, PRIORITY_EXEMPT
from tests.golden.cases import MACHINE, interface, two, with_interface

WHOLE = 0xFFFFFFFF
ONE_NETWORK = with_interface(interface("wan1", 2, "192.0.2.2/24", "2001:db8:1::2/64"))
TWO_NETWORKS = with_interface(
    interface("wan1", 2, "192.0.2.2/24 198.51.100.2/24", "2001:db8:1::2/64")
)
SNAT = 'nat = "snat"\naddress = ["192.0.2.77", "2001:db8:1::77"]'


def said(text: str, facts: Facts = MACHINE) -> list[str]:
    return conflicts(read(text, "evenlink.toml"), facts)


def shared(gateway: str, a: str = "", b: str = "") -> str:
    """Both links on wan1, the second by this gateway."""
    return two(a, b, b_interface="wan1").replace('"198.51.100.1"', f'"{gateway}"')


@pytest.mark.parametrize(
    ("mark", "mask", "fits"),
    [
        (0x0100_0000, WHOLE, False),
        (0x7D00_0000, WHOLE, False),
        (0x0100_0000, 0x0100_0000, False),
        (0, 0xFF00_0000, False),
        (0, WHOLE, True),
        (0xCA6C, WHOLE, True),
        (0x0100_CA6C, WHOLE, True),
        (0x8000_0000, WHOLE, True),
        (0x100, 0xFF00, True),
    ],
)
def test_marks_of_others(mark: int, mask: int, fits: bool) -> None:
    found = said(two(), replace(MACHINE, foreign_marks=((1000, mark, mask),)))
    assert found == ([] if fits else [
        f"mark_mask: 0x7f000000 overlaps the mark {mark:#x}/{mask:#x} of another program's rule "
        "(ip rule priority 1000); choose other bits"
    ])  # fmt: skip


def test_routes_of_others_in_our_tables() -> None:
    facts = replace(MACHINE, foreign_routes=((7002, "10.0.0.0/8 proto 3"), (7120, "::/0 proto 4")))
    assert said(two(), facts) == [
        f"routing table {table}: holds another program's route {route}, but tables 7000 to 7120 "
        "are Evenlink's; move it elsewhere"
        for table, route in facts.foreign_routes
    ]


def test_exempt_marks_have_room_among_the_rules() -> None:
    assert PRIORITY_BOUND - PRIORITY_EXEMPT == MOST_EXEMPT_MARKS


def test_a_gateway_in_no_network_of_its_interface() -> None:
    odd = read(two().replace('"198.51.100.1"', '"203.0.113.77"'), "evenlink.toml")
    assert doubts(odd, MACHINE) == [
        "link.isp-b.gateway: 203.0.113.77 is not in a network of wan2 (198.51.100.0/24)"
    ]
    assert doubts(read(two(), "evenlink.toml"), MACHINE) == []
    alone = with_interface(interface("wan2", 3, "198.51.100.2/32", ""))
    assert doubts(odd, alone) == [], "a lease may give an address without a network"


def test_what_is_not_there_yet() -> None:
    nowhere = replace(MACHINE, interfaces=())
    assert absences(read(two(), "evenlink.toml"), nowhere) == [
        "lan: interface lan0 does not exist on this machine",
        "link.isp-a.interface: wan1 does not exist on this machine",
        "link.isp-b.interface: wan2 does not exist on this machine",
    ]
    assert conflicts(read(two(), "evenlink.toml"), nowhere) == []
