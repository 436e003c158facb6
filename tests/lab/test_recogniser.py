"""Applications learned from copies, by a process that nobody trusts.

client ──► copied ──► log group ──► the process under test ──► lines ──► Recogniser ──► findings
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from dataplane.daemon import findings
from dataplane.daemon.recogniser import Recogniser
from dataplane.decide.lessons import Finding
from dataplane.lab import namespaces
from tests import payloads
from tests.lab.copybox import (
    GROUP,
    SERVER,
    SERVER6,
    CopyBox,
    box,
    comes,
    eventually,
    nothing_left,
    recognising,
)

__all__ = ["box"]

pytest.importorskip("dataplane.recognise", reason="built without nDPI", exc_type=ImportError)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="no root: makes network namespaces")

HELLO = findings.line(findings.Hello("4.2", ("tls",)))
FOUND = findings.line(
    findings.Finding(6, ("192.0.2.1", 443), ("192.168.1.2", 40000), ("tls",), "www.example.org")
)


def says(*lines: bytes, then: str = "time.sleep(600)") -> tuple[str, ...]:
    """A process that says these lines."""
    program = f"import os, time\nfor text in {list(lines)!r}: os.write(1, text)\n{then}"
    return (sys.executable, "-c", program)


def test_what_is_said_first_is_recognised(box: CopyBox) -> None:
    found: list[Finding] = []

    async def learn() -> None:
        async with box.recogniser(found) as recogniser:
            await comes(lambda: recogniser.report()["running"], "it runs")
            ports = [
                box.talk(payloads.client_hello("tls.example.org"), 4430),
                box.talk(payloads.http_request("http.example.org"), 8080),
                box.talk(payloads.bittorrent_handshake(), 6881),
                box.talk(payloads.client_hello("six.example.org"), 4430, SERVER6),
            ]
            box.send(payloads.quic_initial("quic.example.org"), 443)
            await comes(lambda: len(found) >= 5, "five findings")
            await comes(lambda: recogniser.report()["copies"] > 0, "copies are counted")
            assert recogniser.report()["findings"] == 5
            assert recogniser.faults() == []
            assert {"tls", "bittorrent"} <= recogniser.known
            assert recogniser.version
        four, six = ip_address(SERVER), ip_address(SERVER6)
        home = ip_address("127.0.0.1")
        assert sorted(found, key=lambda one: (one.protocol, one.server[1], one.host)) == [
            Finding(6, (six, 4430), (six, ports[3]), ("tls",), "six.example.org"),
            Finding(6, (four, 4430), (home, ports[0]), ("tls",), "tls.example.org"),
            Finding(6, (four, 6881), (home, ports[2]), ("bittorrent",)),
            Finding(6, (four, 8080), (home, ports[1]), ("http",), "http.example.org"),
            Finding(17, (four, 443), (home, 999), ("quic",), "quic.example.org"),
        ]

    with nothing_left(box):
        asyncio.run(learn())


def test_the_process_has_no_rights(box: CopyBox) -> None:
    async def look() -> None:
        async with box.recogniser([]) as recogniser:
            await comes(lambda: recogniser.report()["running"], "it runs")
            (process,) = recognising()
            proc = Path("/proc", str(process))
            status = dict(
                line.split(":\t", 1) for line in (proc / "status").read_text().splitlines()
            )
            assert status["Uid"].split() == status["Gid"].split() == ["65534"] * 4
            assert status["Groups"].strip() == ""
            assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
            assert status["NoNewPrivs"] == "1"
            assert status["Seccomp"] == "2"
            opened = sorted(os.readlink(file).split(":")[0] for file in (proc / "fd").iterdir())
            assert opened == ["/dev/null", "/dev/null", "pipe", "socket"]

    asyncio.run(look())


ATTEMPTS = {
    "opens a file": "open('/etc/passwd')",
    "writes a file": "open('/tmp/evenlink-was-here', 'w')",
    "removes a file": "os.unlink('/tmp')",
    "opens a socket": "socket.socket()",
    "starts a process": "os.fork()",
    "runs a command": "os.execv('/bin/true', ['true'])",
    "kills": "os.kill(os.getppid(), 0)",
    "looks around": "os.listdir('/')",
    "traces": "os.open('/proc/1/mem', os.O_RDONLY)",
    "becomes root again": "os.setuid(0)",
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_process_that_was_taken_over(attempt: str) -> None:
    """Whatever it tries is refused, and it lives on to say so."""
    program = f"""
import os, socket
from dataplane import recognise
assert recognise.confine() == ""
try:
    {ATTEMPTS[attempt]}
except OSError as refusal:
    os.write(1, type(refusal).__name__.encode())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=namespaces.environment(),
    )
    assert (done.returncode, done.stdout) == (0, "PermissionError"), done.stderr


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_is_replaced(box: CopyBox, end: signal.Signals) -> None:
    found: list[Finding] = []

    async def run() -> None:
        async with box.recogniser(found, silence_s=2.5) as recogniser:
            await comes(lambda: recogniser.report()["running"], "it runs")
            (first,) = recognising()
            os.kill(first, end)
            await comes(lambda: not recogniser.report()["running"], "its end is seen")
            expected = "silent" if end is signal.SIGSTOP else end.name
            assert expected in recogniser.faults()[0]
            await comes(lambda: recogniser.report()["running"], "another one runs")
            assert recogniser.report()["restarts"] == 1
            assert recogniser.faults() == []
            assert first not in recognising()
            box.talk(payloads.client_hello("again.example.org"), 4430)
            await comes(lambda: len(found) == 1, "it learns again")

    with nothing_left(box):
        asyncio.run(run())


NONSENSE = {
    "no JSON": b"hello\n",
    "not UTF-8": b"\xff\xfe\n",
    "deep": b"[" * 20_000 + b"\n",
    "no end": b"x" * 100_000,
    "a finding first": FOUND,
    "hello twice": HELLO + HELLO,
    "an unknown key": HELLO + FOUND.replace(b'"host"', b'"ghost"'),
    "another protocol": HELLO + FOUND.replace(b'"protocol":6', b'"protocol":1'),
    "a name for an address": HELLO + FOUND.replace(b"192.0.2.1", b"example.org"),
    "a long address": HELLO + FOUND.replace(b"192.0.2.1", b"1" * 5000),
    "an odd address": HELLO + FOUND.replace(b"192.0.2.1", b"2001:0db8::1"),
    "two families": HELLO + FOUND.replace(b"192.0.2.1", b"2001:db8::1"),
    "a port too high": HELLO + FOUND.replace(b"443", b"65536"),
    "a port below zero": HELLO + FOUND.replace(b"443", b"-1"),
    "no application": HELLO + FOUND.replace(b'["tls"]', b"[]"),
    "a hundred applications": HELLO + FOUND.replace(b'["tls"]', b'["x"' + b',"x"' * 99 + b"]"),
    "an application with an escape": HELLO + FOUND.replace(b'"tls"', rb'"\u001b[2J"'),
    "a host with a line end": HELLO + FOUND.replace(b"www.", rb"www\n."),
    "a host in other letters": HELLO + FOUND.replace(b"www.", "wéw.".encode()),
    "a long host": HELLO + FOUND.replace(b"www.", b"w" * 254),
    "counts that are none": HELLO + b'{"say":"counted","copies":-1}\n',
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_not_believed(box: CopyBox, kind: str) -> None:
    found: list[Finding] = []

    async def run() -> None:
        async with box.recogniser(found, says(NONSENSE[kind])) as recogniser:
            await comes(lambda: recogniser.report()["restarts"] >= 2, "two of them were ended")
            assert "said" in recogniser.faults()[0] or recogniser.report()["running"]

    with nothing_left(box):
        asyncio.run(run())
    assert found == []


def test_a_flood_of_findings_leaves_time_for_others(box: CopyBox) -> None:
    found: list[Finding] = []
    endless = f"while True: os.write(1, {FOUND!r} * 1000)"
    turns = 0

    async def run() -> None:
        nonlocal turns
        async with box.recogniser(found, says(HELLO, then=endless)):
            while len(found) < 5000:
                await asyncio.sleep(0)
                turns += 1

    with nothing_left(box):
        asyncio.run(run())
    assert turns > len(found) / 200


def test_after_each_failure_it_waits_longer(box: CopyBox, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "evenlink")

    async def run() -> None:
        async with box.recogniser([], says(then="raise SystemExit(3)")) as recogniser:
            await comes(lambda: recogniser.report()["restarts"] >= 4, "four attempts more")
            assert recogniser.faults() == ["applications: the recogniser ended with status 3"]

    asyncio.run(run())
    words = [record.getMessage() for record in caplog.records if record.name == "evenlink"]
    pauses = [text.partition("again in ")[2] for text in words if "again in" in text]
    assert pauses[:4] == ["0.01 s", "0.02 s", "0.04 s", "0.08 s"]
    loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(loud) == 1


def test_nonsense_is_told_in_one_line(box: CopyBox, caplog: pytest.LogCaptureFixture) -> None:
    """What a stranger may have taken over does not speak to the terminal of who reads the log."""
    caplog.set_level(logging.DEBUG, "evenlink")
    loud = FOUND.replace(b'"host"', rb'"\u001b[2J\n"')
    assert loud != FOUND

    async def run() -> None:
        async with box.recogniser([], says(HELLO, loud)) as recogniser:
            await comes(lambda: bool(recogniser.faults()), "it is ended")

    asyncio.run(run())
    words = [record.getMessage() for record in caplog.records if record.name == "evenlink"]
    assert any("nonsense: " in text for text in words)
    assert all(text.isprintable() for text in words)


def test_without_ndpi_the_fault_says_so(box: CopyBox) -> None:
    async def run() -> None:
        async with box.recogniser([], says(then="raise SystemExit(4)")) as recogniser:
            await comes(lambda: bool(recogniser.faults()), "it fails")
            assert "cannot load nDPI" in recogniser.faults()[0]

    asyncio.run(run())


def test_a_log_group_that_another_has_is_asked_for_again(box: CopyBox) -> None:
    async def run() -> None:
        other = box.copies()
        async with box.recogniser([]) as recogniser:
            assert "bound by another process" in recogniser.faults()[0]
            other.close()
            with box.space.inside():
                await comes(lambda: recogniser.report()["running"], "it runs")
            assert recogniser.faults() == []
            assert recogniser.report()["restarts"] == 0

    asyncio.run(run())


def test_stop_and_start(box: CopyBox) -> None:
    """What was counted stays."""
    found: list[Finding] = []

    async def run() -> None:
        async with box.recogniser(found) as recogniser:
            for number in (1, 2):
                with box.space.inside():
                    recogniser.start()
                    recogniser.start()
                await comes(lambda: recogniser.report()["running"], "it runs")
                assert len(recognising()) == 1
                box.talk(payloads.client_hello(f"a{number}.example.org"), 4430)
                await comes(lambda n=number: len(found) == n, "a finding")
                await recogniser.stop()
                await recogniser.stop()
                assert recognising() == set()
                assert box.groups() == set()
                assert recogniser.report()["findings"] == number

    asyncio.run(run())


def test_a_daemon_that_is_killed_takes_the_process_with_it(box: CopyBox) -> None:
    program = f"""
import asyncio
from dataplane.daemon.recogniser import Recogniser
async def run():
    recogniser = Recogniser({GROUP}, print)
    recogniser.start()
    while not recogniser.report()["running"]:
        await asyncio.sleep(0.01)
    print(recogniser._process._process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(run())
"""
    daemon = box.space.start(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert daemon.stdout is not None
    process = Path("/proc", daemon.stdout.readline().strip())
    assert (process / "status").exists()
    daemon.kill()
    eventually(lambda: not (process / "fd").exists() or _is_dead(process), "it dies, too")
    daemon.wait()
    daemon.stdout.close()
    eventually(lambda: box.groups() == set(), "the group is free")


def _is_dead(process: Path) -> bool:
    try:
        return "State:\tZ" in (process / "status").read_text()
    except OSError:
        return True


def test_copies_that_find_no_room_are_counted(box: CopyBox) -> None:
    """While the process is stopped, packets go on."""

    async def run() -> None:
        async with box.recogniser([], silence_s=60) as recogniser:
            await comes(lambda: recogniser.report()["running"], "it runs")
            (process,) = recognising()
            box.send(b"first")
            await comes(lambda: recogniser.report()["copies"] > 0, "one is counted")
            os.kill(process, signal.SIGSTOP)
            for _ in range(20_000):
                box.send(bytes(1400))
            os.kill(process, signal.SIGCONT)
            await comes(lambda: recogniser.report()["lost"] > 0, "losses are counted")
            box.send(b"last")
            report = recogniser.report
            await comes(lambda: report()["copies"] + report()["lost"] >= 20_002, "all are counted")

    asyncio.run(run())


def test_the_recogniser_does_not_begin_by_itself() -> None:
    async def make() -> None:
        recogniser = Recogniser(GROUP, print)
        assert recogniser.report() == {
            "running": False,
            "restarts": 0,
            "copies": 0,
            "lost": 0,
            "findings": 0,
        }
        await recogniser.stop()

    asyncio.run(make())
