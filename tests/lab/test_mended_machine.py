"""What a look at the machine finds, in whatever state others left it; and how looking fails.

Most of it is asked of one small namespace: `one`, an interface with a living peer.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkDumpInterrupted, NetlinkError

from dataplane.decide.facts import Destination, Facts
from dataplane.decide.plan import LAST_TABLE, QueueRule, Route, Rule
from dataplane.decide.ruleset import render
from dataplane.errors import KernelError, MachineError
from dataplane.lab import Lab, Namespace, namespaces, uplinks
from dataplane.system import conntrack, iptables, netlink, nft
from dataplane.system.changes import ChangeListener
from dataplane.system.netlink import Netlink
from tests.golden.cases import CASES, plan_of
from tests.lab.conftest import MakeLab
from tests.lab.machine import check_refusal, under
from tests.lab.talk import eventually

_numbers = itertools.count(1)
ASK = 0x7D00_0000
ROUTE = Route(4, 7001, 100, "unicast", "one", "192.0.2.1")
# For a socket on which everything fails: the interface is there all the same.
ON_LOOPBACK = replace(ROUTE, interface="lo")
RULE = Rule(4, 30301, 7001, 0x0100_0000, 0x7F00_0000)


@pytest.fixture
def box() -> Iterator[Namespace]:
    made = Namespace(namespaces.name(next(_numbers), "mended"))
    try:
        made.run("ip", "link", "add", "one", "type", "veth", "peer", "name", "other")
        made.set({f"net/ipv6/conf/{name}/accept_dad": 0 for name in ("one", "other")})
        ip(made, "link set lo up", "link set one up", "link set other up")
        ip(made, "addr add 192.0.2.2/24 dev one", "-6 addr add 2001:db8::2/64 dev one")
        yield made
    finally:
        made.remove()


@pytest.fixture
def asking(box: Namespace) -> Iterator[Netlink]:
    """Asks the namespace, in which the test's thread is meanwhile."""
    with box.inside():
        made = Netlink()
        yield made
        made.close()


def ip(box: Namespace, *lines: str) -> None:
    for line in lines:
        box.run("ip", *line.split())


def facts(asking: Netlink, learn: bool = False) -> Facts:
    return asking.facts(frozenset({"one"}), frozenset({"one"} if learn else ()), False)


class Refusing:
    """A route socket on which everything fails."""

    def __init__(self, fault: Exception) -> None:
        self._fault = fault

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def refuse(*_: object, **__: object) -> None:
            raise self._fault

        return refuse


@pytest.mark.parametrize(
    "fault",
    [
        NetlinkError(105, "No buffer space available"),
        NetlinkDumpInterrupted(),
        NetlinkDecodeError(ValueError("odd")),
        OSError(24, "Too many open files"),
        TimeoutError(),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_every_method_raises_a_kernel_error(fault: Exception) -> None:
    methods: list[Callable[[Netlink], object]] = [
        facts,
        lambda asking: asking.gateway_mac("192.0.2.1", 2),
        lambda asking: asking.ask_neighbour("192.0.2.1", 2),
        Netlink.routes,
        Netlink.rules,
        Netlink.foreign_marks,
        lambda asking: asking.add_route(ON_LOOPBACK),
        lambda asking: asking.delete_route(ON_LOOPBACK),
        lambda asking: asking.add_rule(RULE),
        lambda asking: asking.delete_rule(RULE),
        lambda asking: asking.destination("192.0.2.9", ASK),
        lambda asking: asking.counters(frozenset({"one"})),
        Netlink.close,
    ]
    for method in methods:
        asking = Netlink()
        asking.close()
        asking._ipr = Refusing(fault)
        with pytest.raises(KernelError) as refused:
            method(asking)
        assert str(refused.value)


@pytest.mark.parametrize("use", [Netlink, ChangeListener, conntrack.count, conntrack.forget])
def test_no_socket_is_a_kernel_error(
    use: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(netlink, "IPRoute", refuse)
    arguments = {conntrack.count: (1, 1), conntrack.forget: (1, 1, 4)}.get(use, ())
    with pytest.raises(KernelError, match="Too many open files"):
        use(*arguments)


def test_a_silent_conntrack_is_a_kernel_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    class Silent(real):  # type: ignore[misc, valid-type]
        def send(self, data: bytes) -> int:
            self.settimeout(0.01)
            return len(data)

    monkeypatch.setattr(socket, "socket", Silent)
    for use in (lambda: conntrack.count(1, 1), lambda: conntrack.forget(1, 1, 4)):
        with pytest.raises(KernelError, match="conntrack: timed out"):
            use()


TOOLS = {
    nft: [nft.read, nft.delete, nft.knows_queue, lambda: nft.load("")],
    iptables: [
        iptables.rules,
        iptables.mangle_chains,
        lambda: iptables.tidy(()),
        lambda: iptables.add(QueueRule(4, "PREROUTING", 1, 1, 7, 7)),
    ],
}


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_a_command_that_cannot_be_run(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there when it is looked for, and gone, or not for this machine, when it is run."""
    assert nft.PATH == iptables.PATH
    for name in ("nft", "iptables-nft", "ip6tables-nft"):
        (tmp_path / name).write_bytes(b"\x7fELF of another machine")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(tool, "PATH", str(tmp_path))
    for use in TOOLS[tool]:
        with pytest.raises(MachineError, match=r"nft: Exec format error"):
            use()


def test_nft_speaks_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nft"
    command.write_text('#!/bin/sh\necho "the language is $LC_ALL" >&2; printf "\\377"; exit 1\n')
    command.chmod(0o755)
    monkeypatch.setattr(nft, "PATH", f"{tmp_path}:{os.defpath}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with pytest.raises(KernelError, match=r"the language is C$"):
        nft.read()


def test_addresses_that_pass_away_are_the_last_choice(box: Namespace, asking: Netlink) -> None:
    """The kernel lists the latest first: the deprecated and the temporary one."""
    box.set({"net/ipv6/conf/one/use_tempaddr": 2})
    ip(box, "-6 addr del 2001:db8::2/64 dev one")
    ip(box, "-6 addr add 2001:db8:1::1/64 dev one valid_lft 9000 preferred_lft 9000 mngtmpaddr")
    ip(box, "-6 addr add 2001:db8:2::1/64 dev one preferred_lft 0")

    def seen() -> tuple[Any, ...]:
        return facts(asking).interfaces[0].addresses6

    eventually(lambda: len(seen()) == 3, "the kernel makes a temporary address")
    lasting, temporary, deprecated = seen()
    assert lasting == ip_interface("2001:db8:1::1/64")
    assert temporary.network == lasting.network
    assert deprecated == ip_interface("2001:db8:2::1/64")


def test_routes_are_filtered_by_the_kernel(
    box: Namespace, asking: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full table of somebody's, which is all but ours and main's default, is not decoded."""
    many = "\n".join(f"route add 10.{n}.0.0/16 via 192.0.2.1 table 55" for n in range(200))
    more = many.replace("table 55", "table main")
    box.run("ip", "-batch", "-", stdin=f"{many}\n{more}\n")
    ip(box, "route add default via 192.0.2.7", "route add default via 192.0.2.8 table 55")
    asking.add_route(ROUTE)
    decoded: list[bytes] = []
    real = netlink._decoded

    def count(message: bytes) -> Any:
        decoded.append(message)
        return real(message)

    monkeypatch.setattr(netlink, "_decoded", count)
    assert asking.routes() == {ROUTE}
    assert str(facts(asking, learn=True).interfaces[0].learned_gateway4) == "192.0.2.7"
    assert len(decoded) == 2


def test_routes_of_others_in_our_tables_are_seen(box: Namespace, asking: Netlink) -> None:
    asking.add_route(ROUTE)
    assert facts(asking).foreign_routes == ()
    ip(box, f"route add 10.0.0.0/8 dev one table {LAST_TABLE - 1}")
    ip(box, f"route add 10.0.0.0/8 dev one table {LAST_TABLE + 121}")
    assert facts(asking).foreign_routes == ()
    ip(box, f"route add default dev one table {LAST_TABLE} proto static")
    ip(box, "route add 10.0.0.0/8 dev one table 7001", "route add 10.9.0.0/16 dev one table 7001")
    ip(box, "-6 route add 2001:db8:9::/48 dev one table 7120 proto 186")
    assert facts(asking).foreign_routes == (
        (7000, "0.0.0.0/0 proto 4"),
        (7001, "10.0.0.0/8 proto 3"),
        (7120, "2001:db8:9::/48 proto 186"),
    )


def test_a_destination_costs_one_question(
    box: Namespace, asking: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And names are never stale."""

    def refuse() -> None:
        raise AssertionError("all interfaces are listed")

    monkeypatch.setattr(asking, "_names", refuse)
    assert asking.destination("192.0.2.9", 0) == Destination("specific", "one")
    ip(box, "link set one down", "link set one name renamed", "link set renamed up")
    assert asking.destination("192.0.2.9", 0) == Destination("specific", "renamed")
    ip(box, "route add prohibit 10.1.0.0/16", "route add blackhole 10.2.0.0/16")
    ip(box, "route add unreachable 10.3.0.0/16")
    for address, kind in (
        ("10.1.0.1", "prohibit"),
        ("10.2.0.1", "blackhole"),
        ("10.3.0.1", "unreachable"),
        ("10.4.0.1", ""),
        ("127.0.0.1", "local"),
    ):
        assert asking.destination(address, 0).kind == kind


@pytest.mark.parametrize(
    "change",
    [
        "link set one mtu 1400",
        "addr add 192.0.2.3/24 dev one",
        "-6 addr add 2001:db8::3/64 dev one",
        "route add default dev one",
        "-6 route add default dev one",
        "rule add fwmark 7 lookup 88",
        "-6 rule add fwmark 7 lookup 88",
    ],
)
def test_changes_are_told(box: Namespace, change: str) -> None:
    with box.inside():
        listener = ChangeListener()
    told, _ = listener.sockets
    listener.drain(told)
    assert not listener.drain(told)
    ip(box, change)
    eventually(lambda: listener.drain(told), change)
    listener.close()


def test_full_sets_are_not_fetched(box: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for a table, nft fetches every element; our table is cut out of all instead."""
    asked: list[list[str]] = []
    real = nft._nft

    def note(arguments: list[str], text: str | None = None) -> Any:
        asked.append(arguments)
        return real(arguments, text)

    monkeypatch.setattr(nft, "_nft", note)
    others = """
        table inet a { chain c { comment "table inet evenlink {"; counter; }; }
        table ip evenlink { chain x { }; }
        table inet evenlink_too { set s { type ipv4_addr; }; chain c { }; }
        """
    with box.inside():
        assert nft.read() is None
        assert nft.counters() == {}
        box.run("nft", "-f", "-", stdin=others)
        assert nft.read() is None
        nft.load(render(plan_of(CASES["two-links"].text)))
        empty = nft.read()
        box.run("nft", "-f", "-", stdin="table inet z { chain c { counter; }; }")
        pairs = ", ".join(f"10.{n >> 8}.{n & 255}.1 . 10.0.0.1" for n in range(3000))
        box.run("nft", "-f", "-", stdin=f"add element inet evenlink pairs4_1 {{ {pairs} }}")
        whole = box.run("nft", "list", "table", "inet", "evenlink").stdout
        asked.clear()
        assert nft.read() == empty
        assert nft.counters() == {"fallback": 0, "wrong_source": 0}
    assert not [words for words in asked if "table" in words or "counters" in words]
    assert empty is not None
    assert empty.listing.startswith("table inet evenlink {\n")
    assert empty.listing.endswith("\n}\n")
    assert empty.sets == {"pairs4_1", "pairs4_2", "pairs6_1", "pairs6_2"}
    assert "10.11.183.1 . 10.0.0.1" in whole
    assert "10.11.183.1" not in empty.listing


def test_what_would_interfere_is_refused(two_links: Lab) -> None:
    ip(two_links.router, "route add 10.9.0.0/16 dev wan1 table 7002")
    ip(two_links.router, "rule add fwmark 0x1000000 lookup main priority 1001")
    check_refusal(
        under(two_links, "", "plan", str(two_links.file())),
        3,
        "routing table 7002: holds another program's route 10.9.0.0/16 proto 3",
        "mark_mask: 0x7f000000 overlaps the mark 0x1000000/0xffffffff",
    )


def test_another_namespaces_daemon_keeps_its_socket(two_links: Lab, make_lab: MakeLab) -> None:
    first = two_links.run()
    path = str(two_links.directory / "control.sock")
    second = make_lab(uplinks(10_000_000, 20_000_000, shaped=False))
    done = under(second, "", "run", str(second.file(control_socket=path)))
    check_refusal(done, 3, f"control_socket {path}: another daemon listens there")
    assert first.status()["faults"] == []
