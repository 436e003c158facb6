"""Rules and lists change while connections run: none of them moves, and faults change nothing.

client ── router ─┬─ isp-a ─┐
                  ├─ isp-b ─┼─ server
                  └─ isp-c ─┘

What no rule takes leaves by isp-a.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from dataplane.config.load import read_file
from dataplane.daemon.calling import ask
from dataplane.daemon.messages import Reload
from dataplane.decide.balance import all_alive
from dataplane.decide.compiled import compiled
from dataplane.decide.facts import Facts
from dataplane.decide.wish import Before, make_wish
from dataplane.lab import Daemon, Lab, UnavailableError, faults, uplinks
from dataplane.lab.topology import MBIT
from tests.lab.links import FAST, KEY, becomes
from tests.lab.machine import check_refusal, held, under
from tests.lab.talk import (
    Talk,
    call,
    counted,
    eventually,
    link_of,
    rightful_sources,
    status,
)

DEFAULT = '\n[balance]\nlinks = ["isp-a"]\n'
PREFIXES = 1_000_000
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    try:
        with Lab(uplinks(10 * MBIT, 20 * MBIT, 30 * MBIT, shaped=False)) as built:
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    before = held(lab)
    started = lab.run(lab.file(key=KEY, probe=FAST))
    yield started
    assert "Traceback" not in started.log
    assert started.stop(signal.SIGINT) == 0
    assert held(lab) == before


@pytest.fixture(autouse=True)
def _watched(lab: Lab, daemon: Daemon) -> Iterator[None]:
    with rightful_sources(lab):
        yield
    assert counted(lab, "wrong_source") == 0


def serving_now(lab: Lab) -> str:
    """All that the router holds, but for what its rules have counted and seen."""
    seen = r"packets \d+ bytes \d+|\s*elements = \{[^}]*expires[^}]*\}"
    return re.sub(seen, "", held(lab))


def write(lab: Lab, *lines: str) -> Path:
    """The topology's file with these lines added."""
    path = lab.file(key=KEY, probe=FAST)
    path.write_text("".join((path.read_text(), DEFAULT, *lines)))
    return path


def take(lab: Lab, *lines: str) -> None:
    """Has the daemon take that file."""
    ask(write(lab, *lines).parent / "control.sock", Reload())


def rule(conditions: str, use: str = "isp-b") -> str:
    return f'\n[[rule]]\n{conditions}\nuse = "{use}"\n'


def by(lab: Lab, target: int = 1, family: int = 4) -> str:
    """The link that a new connection to a server takes; the first is number 1."""
    address = ("203.0.113." if family == 4 else "2001:db8:53::") + str(target)
    with call(lab, ip_address(address)) as talk:
        return link_of(lab, talk.goes_on())


@contextmanager
def opened(lab: Lab) -> Iterator[Callable[[], list[str]]]:
    """Connections of both protocols to all servers; gives how to have them go on, and by what.

    Half of the datagrams' have been answered before.
    """
    with ExitStack() as stack:
        talks = [
            stack.enter_context(call(lab, target, protocol))
            for target in lab.topology.servers
            for protocol in ("tcp", "udp")
        ]
        unanswered = [stack.enter_context(call(lab, target)) for target in lab.topology.servers]

        def go_on() -> list[str]:
            links = [link_of(lab, talk.goes_on()) for talk in talks]
            return links + [link_of(lab, talk.says()) for talk in unanswered]

        go_on()
        yield go_on


EVERYTHING = 'protocol = ["tcp", "udp"]'
OFFICE = '\n[list.office]\nentries = ["203.0.113.0/24", "2001:db8:53::/64"]\n'
SPARE = '\n[group.spare]\nlinks = ["isp-b", "isp-c"]\nmethod = "failover"\n'

# What the file said when the connections began, and what it says then; all begin by isp-b.
CHANGES: dict[str, tuple[Sequence[str], Sequence[str], str]] = {
    "another link": ([rule(EVERYTHING)], [rule(EVERYTHING, "isp-c")], "isp-c"),
    "no rule": ([rule(EVERYTHING)], [], "isp-a"),
    "main": ([rule(EVERYTHING)], [rule(EVERYTHING, "main")], "isp-a"),
    "a rule before it": (
        [rule(EVERYTHING)],
        [rule('source = "10.10.0.0/16"', "isp-c"), rule(EVERYTHING)],
        "isp-c",
    ),
    "other conditions": ([rule(EVERYTHING)], [rule('protocol = "icmp"')], "isp-a"),
    "a group that goes": ([SPARE, rule(EVERYTHING, "spare")], [], "isp-a"),
    "a group of other links": (
        [SPARE, rule(EVERYTHING, "spare")],
        [SPARE.replace('"isp-b", ', ""), rule(EVERYTHING, "spare")],
        "isp-c",
    ),
    "another method": (
        [SPARE, rule(EVERYTHING, "spare")],
        [SPARE.replace("failover", "ecmp").replace('"isp-b", ', ""), rule(EVERYTHING, "spare")],
        "isp-c",
    ),
    "a list of another name": (
        [OFFICE, rule('destination = "@office"')],
        [OFFICE.replace("office", "house"), rule('destination = "@house"')],
        "isp-b",
    ),
    "a list of other addresses": (
        [OFFICE, rule('destination = "@office"')],
        [OFFICE.replace("203.0.113.", "192.0.2."), rule('destination = "@office"')],
        "isp-a",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_policy_is_for_new_connections_only(lab: Lab, daemon: Daemon, name: str) -> None:
    before, after, new = CHANGES[name]
    take(lab, *before)
    with opened(lab) as go_on:
        assert set(go_on()) == {"isp-b"}
        take(lab, *after)
        assert set(go_on()) == {"isp-b"}
        assert by(lab) == new
        take(lab, *before)
        assert set(go_on()) == {"isp-b"}
        assert by(lab) == "isp-b"


def test_what_is_refused_from_now_on_goes_on_where_it_runs(lab: Lab, daemon: Daemon) -> None:
    take(lab, rule(EVERYTHING))
    with opened(lab) as go_on:
        take(lab, rule(EVERYTHING, "reject"))
        with pytest.raises(OSError):  # noqa: PT011
            Talk(lab.client, "10.10.1.0", lab.server, "203.0.113.1", protocol="tcp")
        assert set(go_on()) == {"isp-b"}


def test_one_bad_line_of_a_list_changes_nothing(lab: Lab, daemon: Daemon) -> None:
    """The file, the line and its text are said; rules, routes and connections are as before."""
    office = lab.directory / "office.txt"
    listed = '\n[list.office]\nfiles = ["office.txt"]\n'
    lines = ["203.0.113.2  # ours", "", "2001:db8:53::2", "203.0.113.3/33", "203.0.113.1"]
    office.write_text("\n".join(lines[:3]) + "\n")
    take(lab, listed, rule('destination = "@office"'))
    serving = serving_now(lab)
    with opened(lab) as go_on:
        used = go_on()
        assert set(used) == {"isp-a", "isp-b"}
        office.write_text("\n".join(lines) + "\n")
        path = write(lab, listed, rule('destination = "@office"', "isp-c"))
        said = f"{office}:4: "
        done = under(lab, "", "reload", "--config", str(path))
        check_refusal(done, 2, said, "203.0.113.3/33")
        refused = daemon.log.count("reload refused")
        daemon.reload()
        eventually(lambda: daemon.log.count("reload refused") > refused)
        assert said in daemon.log
        assert serving_now(lab) == serving
        assert go_on() == used
        assert [by(lab, number) for number in (1, 2, 3)] == ["isp-a", "isp-b", "isp-a"]
        assert by(lab, 2, 6) == "isp-b"
        assert status(daemon)["faults"] == []
        office.write_text("\n".join([*lines[:3], *lines[4:]]) + "\n")
        ask(path.parent / "control.sock", Reload())
        assert go_on() == used
        assert [by(lab, number) for number in (1, 2, 3)] == ["isp-c", "isp-c", "isp-a"]


def test_a_watched_file_is_followed(lab: Lab, daemon: Daemon) -> None:
    """One that is put into its place is read; a bad one leaves what was read before."""
    office, other = lab.directory / "watched.txt", lab.directory / "other.txt"
    office.write_text("203.0.113.2\n")
    listed = f'\n[list.office]\nfiles = ["{office}"]\nwatch = true\n'
    take(lab, listed, rule('destination = "@office"'))
    serving = serving_now(lab)
    with opened(lab) as go_on:
        used = go_on()
        other.write_text("203.0.113.3\n2001:db8:53::3\n")
        other.rename(office)
        eventually(lambda: "lists are read again" in daemon.log)
        assert [by(lab, 3), by(lab, 2), by(lab, 3, 6)] == ["isp-b", "isp-a", "isp-b"]
        assert go_on() == used
        office.write_text("203.0.113.2\n203.0.113.\n")
        eventually(lambda: "the old ones stay in force" in daemon.log)
        assert f"{office}:2: " in daemon.log
        assert [by(lab, number) for number in (1, 2, 3)] == ["isp-a", "isp-a", "isp-b"]
        assert go_on() == used
    assert serving_now(lab) == serving


class Busy:
    """A connection of each protocol by each of two links, which ask and are answered all the time.

    `longest_s` is how long the slowest answer took.
    """

    def __init__(self, lab: Lab) -> None:
        self.longest_s = 0.0
        self.turns = 0
        self._lab = lab
        self._stack = ExitStack()
        self._talks = [
            self._stack.enter_context(call(lab, ip_address(f"203.0.113.{n}"), protocol))
            for n in (1, 2)
            for protocol in ("tcp", "udp")
        ]
        self._fault: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            used: set[tuple[str, ...]] = set()
            while not self._over.wait(0.005):
                begun = time.monotonic()
                used.add(tuple(link_of(self._lab, talk.goes_on()) for talk in self._talks))
                self.longest_s = max(self.longest_s, time.monotonic() - begun)
                self.turns += 1
            assert used == {("isp-a", "isp-a", "isp-b", "isp-b")}
        except BaseException as fault:
            self._fault = fault

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._stack.close()
        assert self.turns
        if self._fault:
            raise self._fault


def a_million(path: Path) -> None:
    """Each second address from 64.0.0.0 on: nothing can be merged. And one server."""
    first = int(IPv4Address("64.0.0.0"))
    high = [f"{number >> 8 & 255}.{number & 255}." for number in range(1 << 16)]
    with path.open("w") as out:
        out.write("203.0.113.2\n")
        for number in range(0, 2 * PREFIXES, 512):
            at = first + number
            start = f"{at >> 24}.{high[at >> 8 & 0xFFFF]}"
            out.writelines(f"{start}{low}\n" for low in range(0, 256, 2))
            at += 256
            start = f"{at >> 24}.{high[at >> 8 & 0xFFFF]}"
            out.writelines(f"{start}{low}\n" for low in range(0, 256, 2))


def test_a_million_prefixes(lab: Lab, daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """While they are read, links are watched and connections run; once they are, links die as ever.

    What it took is printed.
    """
    many = lab.directory / "many.txt"
    a_million(many)
    small = [OFFICE.replace("203.0.113.0/24", "203.0.113.2"), rule('destination = "@office"')]
    large = [f'\n[list.office]\nfiles = ["{many}"]\n', rule('destination = "@office"')]
    take(lab, *small)
    without_s = failover_s(lab, daemon)
    with Busy(lab) as busy:
        links = status(daemon)["links"]
        log = daemon.log
        path, begun = write(lab, *large), time.monotonic()
        ask(path.parent / "control.sock", Reload())
        read_s = time.monotonic() - begun
        assert [by(lab, 1), by(lab, 2)] == ["isp-a", "isp-b"]
        assert [one["since"] for one in status(daemon)["links"]] == [one["since"] for one in links]
        assert "is down" not in daemon.log[len(log) :]
        rest_s = busy.longest_s
    with_s = failover_s(lab, daemon)
    with capsys.disabled():
        print(
            f"\nread in {read_s:.2f} s, slowest answer meanwhile {rest_s * 1e3:.0f} ms; a link's "
            f"death without {without_s * 1e3:.0f} ms, with {with_s * 1e3:.0f} ms"
        )
    now = make_wish(
        read_file(path), Facts((), True), 1, Before(), states=all_alive(read_file(path))
    )
    assert compiled(now).lists is compiled(now.without(["isp-b"])).lists, "made once"
    take(lab)


def failover_s(lab: Lab, daemon: Daemon) -> float:
    """Seconds from the loss of a carrier until new connections leave by another link."""
    with faults.no_carrier(lab, "isp-b"):
        begun = time.monotonic()
        eventually(lambda: by_or_none(lab) == "isp-a")
        took = time.monotonic() - begun
        # The kernel may have been quicker: routes by an interface without a carrier are dead.
        becomes(daemon, "isp-b")
    becomes(daemon, "isp-b", 4, 6)
    eventually(lambda: by_or_none(lab) == "isp-b")
    return took


def by_or_none(lab: Lab) -> str:
    """The link of a new connection that the rule takes, if it gets through."""
    try:
        with Talk(lab.client, "10.10.1.0", lab.server, "203.0.113.2", patience_s=0.02) as talk:
            return link_of(lab, talk.goes_on())
    except TimeoutError:
        return "none"
