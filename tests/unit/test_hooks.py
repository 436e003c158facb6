"""The operator's command: real programs, most of them bad ones."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dataplane.daemon import hooks
from dataplane.daemon.events import Transition
from dataplane.daemon.hooks import MOST_OUTPUT, MOST_WAITING, Hooks

PATIENCE_S = 30
# Long enough for a shell to begin.
LIMIT_S = 1.5

Make = Callable[..., Hooks]


def transition(link: str = "isp-b", why: str = "nobody answers") -> Transition:
    return Transition(link, "up", "down", why, ("ipv4", "ipv6"), 1_700_000_000.25)


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.01)


def idle(made: Hooks) -> bool:
    return made._work is None or made._work.done()


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """Makes an executable shell script; `$dir` is the test's directory."""

    def make(text: str, name: str = "hook") -> str:
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\ndir={tmp_path}\n{text}\n")
        file.chmod(0o755)
        return str(file)

    return make


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Neither descriptors nor children; what scripts noted in `*.pid` is killed."""
    before = descriptors()
    yield
    assert descriptors() == before
    for file in tmp_path.glob("*.pid"):
        with suppress(ProcessLookupError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    with suppress(ChildProcessError):
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None or reap():
            assert time.monotonic() < deadline, "a child lives on"


def reap() -> bool:
    """Those that were given up: subprocess does it whenever it begins something."""
    gc.collect()
    subprocess._cleanup()  # type: ignore[attr-defined]
    return True


def descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return sorted(one for one in found if "/proc/" not in one)


def during(
    command: list[str], talk: Callable[[Hooks], Awaitable[None]], limit_s: float = PATIENCE_S
) -> list[str]:
    """The faults at the end of `talk`."""

    async def serve() -> list[str]:
        made = Hooks(command, limit_s)
        try:
            await talk(made)
        finally:
            await made.close()
        return made.faults()

    return asyncio.run(serve())


def told(command: list[str], *transitions: Transition, limit_s: float = PATIENCE_S) -> list[str]:
    """The faults when the command has run for all of them."""

    async def talk(made: Hooks) -> None:
        for one in transitions or (transition(),):
            made.tell(one, "wan2")
        await until(lambda: idle(made))

    return during(command, talk, limit_s)


def text(file: Path) -> str:
    return file.read_text().strip()


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_environment(
    program: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the daemon")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("LANG", raising=False)
    why = "it said: \x1b[31m\n\0no\udc80 …" + "x" * 200_000
    assert (
        told([program('env > $dir/env; echo "$1" > $dir/word'), "a b"], transition(why=why)) == []
    )
    heard = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    for ours in ("PWD", "_", "SHLVL", "OLDPWD"):  # the shell's
        heard.pop(ours, None)
    assert heard.pop("EVENLINK_WHY").startswith("it said:  [31m  no  …xxx")
    assert heard == {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "EVENLINK_LINK": "isp-b",
        "EVENLINK_STATE": "down",
        "EVENLINK_BEFORE": "up",
        "EVENLINK_CARRIES": "ipv4 ipv6",
        "EVENLINK_AT": "2023-11-14T22:13:20.250+00:00",
        "EVENLINK_INTERFACE": "wan2",
    }
    assert (tmp_path / "word").read_text() == "a b\n"


def test_what_it_inherits(
    program: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No descriptor of the daemon, not even one that others may inherit; the root as directory."""
    caplog.set_level(logging.DEBUG, "evenlink")
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        facts = "pwd > $dir/pwd; cut -d' ' -f5,6 /proc/$$/stat > $dir/group; echo $$ > $dir/self"
        assert told([program(f"{facts}; exec ls -o /proc/self/fd")]) == []
    finally:
        os.close(reading)
        os.close(writing)
    said = caplog.messages[-1]
    assert re.findall(r"(\d+) -> (\S+?)[:\d\[\] ]", said) == [
        ("0", "/dev/null"),
        ("1", "pipe"),
        ("2", "pipe"),
        ("3", "/proc/"),  # that of ls
    ]
    assert (tmp_path / "pwd").read_text() == "/\n"
    pid = (tmp_path / "self").read_text().strip()
    assert (tmp_path / "group").read_text().split() == [pid, pid]


def test_one_at_a_time_in_order(program: Callable[[str], str], tmp_path: Path) -> None:
    script = "mkdir $dir/busy || exit 9; echo $EVENLINK_LINK >> $dir/out; rmdir $dir/busy"
    assert told([program(script)], *(transition(f"l{n}") for n in range(40))) == []
    assert (tmp_path / "out").read_text().split() == [f"l{n}" for n in range(40)]


def test_no_command_is_none() -> None:
    assert told([]) == []


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("exit 3", "ended with status 3"),
        ("kill -SEGV $$", "ended by SIGSEGV"),
        ("kill -40 $$", "ended by signal 40"),
    ],
)
def test_bad_ends(
    program: Callable[[str], str], caplog: pytest.LogCaptureFixture, script: str, fault: str
) -> None:
    """Logged once, with what it said, and named in `status`."""
    command = program(f"printf 'oh\\033[1m\\nno'; {script}")
    assert told([command], *[transition()] * 3) == [f"on_change {command}: {fault}"]
    assert caplog.messages == [
        f"on_change {command}: {fault} (link isp-b, down); it said: oh [1m no"
    ]


def test_what_cannot_be_run(tmp_path: Path, program: Callable[[str], str]) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    headless = tmp_path / "headless"
    headless.write_text("text")
    headless.chmod(0o755)
    for command, words in (
        (str(tmp_path / "none"), "No such file or directory"),
        (str(plain), "Permission denied"),
        (str(tmp_path), "Permission denied"),
        (str(headless), "Exec format error"),
        ("/x" * 5000, "File name too long"),
        ("/a\0b", "embedded null byte"),
    ):
        assert told([command]) == [f"on_change {command}: cannot be run: {words}"]


def test_a_fault_lasts_until_a_run_goes_well(
    program: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = program("test -e $dir/well")

    async def talk(made: Hooks) -> None:
        for there in (False, True, False):
            if there:
                (tmp_path / "well").touch()
            else:
                (tmp_path / "well").unlink(missing_ok=True)
            made.tell(transition(), "wan2")
            await until(lambda: idle(made))
            assert bool(made.faults()) != there

    during([command], talk)
    assert len(caplog.messages) == 2, "what comes back is told again"


def test_at_the_time_limit(program: Callable[[str], str], tmp_path: Path) -> None:
    """With all that it started, whether they ignore TERM or not."""
    waiting = "while :; do read line; done < $dir/never"
    os.mkfifo(tmp_path / "never")
    for ignoring in ("", "trap '' TERM; "):
        script = f'{ignoring}sh -c "{ignoring}echo \\$\\$ > $dir/child.pid; {waiting}" &\n'
        command = program(f"{script}echo $$ > $dir/hook.pid\n{waiting}")
        assert told([command], limit_s=LIMIT_S) == [
            f"on_change {command}: ended after the time limit of {LIMIT_S} s"
        ]
        for name in ("child", "hook"):
            pid = int((tmp_path / f"{name}.pid").read_text())
            deadline = time.monotonic() + PATIENCE_S
            while alive(pid):
                assert time.monotonic() < deadline, f"{name} lives on"


def test_term_comes_first(program: Callable[[str], str], tmp_path: Path) -> None:
    """Time to clean up, for the command and for what it started."""
    child = "trap 'echo child >> $dir/cleaned; exit' TERM; while :; do sleep 0.05; done"
    script = f"({child}) &\ntrap 'echo hook >> $dir/cleaned; exit' TERM; wait"
    assert len(told([program(script)], limit_s=LIMIT_S)) == 1
    assert sorted((tmp_path / "cleaned").read_text().split()) == ["child", "hook"]


def test_who_leaves_a_child_that_holds_the_pipe(
    program: Callable[[str], str], tmp_path: Path
) -> None:
    """In its own session, too. It is left alone and not waited for."""
    for how in ("", "setsid "):
        script = f"echo said; {how}sleep 1000 & echo $! > $dir/child.pid"
        assert told([program(script)], limit_s=PATIENCE_S / 2) == []
        pid = int((tmp_path / "child.pid").read_text())
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)


def test_endless_output(
    program: Callable[[str], str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It ends by the time limit; nothing but the first 4 KiB is kept, and we do not race it."""
    command = program("exec yes")
    reads = []

    def read(number: int, count: int) -> bytes:
        reads.append(count)
        return os_read(number, count)

    os_read = os.read
    monkeypatch.setattr(hooks.os, "read", read)
    assert told([command], limit_s=LIMIT_S) == [
        f"on_change {command}: ended after the time limit of {LIMIT_S} s"
    ]
    assert len(caplog.messages[0].partition("it said: ")[2]) == MOST_OUTPUT - 1
    assert 3 < len(reads) < 4 * LIMIT_S / hooks.PAUSE_S


def test_much_output_does_not_block(
    program: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "evenlink")
    assert told([program("head -c 1000000 /dev/zero | tr '\\0' x; echo end >&2")]) == []
    assert caplog.messages[-1].endswith("it said: " + "x" * MOST_OUTPUT)


def test_output_of_one_that_ends_at_once(
    program: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "evenlink")
    assert told([program("printf 'out\\377'; echo err >&2")], *[transition()] * 20) == []
    well = [one for one in caplog.messages if "well" in one]
    assert len(well) == 20
    assert all(one.endswith("; it said: out\ufffderr") for one in well)


def test_more_than_may_wait(
    program: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The oldest are left out, the newest are told; that is said once, and over at the end."""
    command = program("echo $EVENLINK_LINK >> $dir/out")
    count = MOST_WAITING + 100

    async def talk(made: Hooks) -> None:
        for n in range(count):
            made.tell(transition(f"l{n}"), "wan2")
        assert made.faults() == [
            f"on_change {command}: too slow: 64 transitions wait, older ones are left out"
        ]
        await until(lambda: idle(made))

    assert during([command], talk) == []
    assert (tmp_path / "out").read_text().split() == [f"l{n}" for n in range(100, count)]
    assert len(caplog.messages) == 1


def test_another_command(program: Callable[[str], str], tmp_path: Path) -> None:
    """What has begun goes on, what waits is for the other one; faults of the old one are gone."""
    os.mkfifo(tmp_path / "go")
    first = program("read line < $dir/go; echo first >> $dir/out; exit 1")
    other = program("echo other $EVENLINK_LINK >> $dir/out", "other")

    async def talk(made: Hooks) -> None:
        made.tell(transition("one"), "wan2")
        made.tell(transition("two"), "wan2")
        await until(lambda: len(made._waiting) == 1)
        made.replace([other])
        await asyncio.to_thread((tmp_path / "go").write_text, "\n")
        await until(lambda: idle(made))
        assert made.faults() == []
        made.replace([str(tmp_path / "none")])
        made.tell(transition(), "wan2")
        await until(made.faults)
        made.replace([str(tmp_path / "none")])
        assert made.faults(), "the same one"
        made.replace([])
        assert made.faults() == []
        made.tell(transition(), "wan2")
        assert idle(made)

    during([first], talk)
    assert (tmp_path / "out").read_text().splitlines() == ["first", "other two"]


def test_closing_ends_what_runs(program: Callable[[str], str], tmp_path: Path) -> None:
    command = program("trap '' TERM; echo $$ > $dir/hook.pid; while :; do sleep 0.05; done")

    async def talk(made: Hooks) -> None:
        made.tell(transition(), "wan2")
        made.tell(transition(), "wan2")
        await until(lambda: (tmp_path / "hook.pid").exists() and text(tmp_path / "hook.pid"))
        await made.close()
        made.tell(transition(), "wan2")
        assert idle(made)

    assert during([command], talk) == []
    assert not alive(int(text(tmp_path / "hook.pid")))


def test_closing_while_it_is_asked_to_end(
    program: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "GRACE_S", 1000)
    command = program("trap 'echo > $dir/asked' TERM; while :; do sleep 0.05; done")

    async def talk(made: Hooks) -> None:
        made.tell(transition(), "wan2")
        await until((tmp_path / "asked").exists)

    during([command], talk, LIMIT_S)


def test_closing_before_anything_began(program: Callable[[str], str], tmp_path: Path) -> None:
    command = program("touch $dir/begun")

    async def at_once(made: Hooks) -> None:
        made.tell(transition(), "wan2")

    assert during([command], at_once) == []
    assert during([command], lambda made: made.close()) == []
    assert not (tmp_path / "begun").exists()


def test_no_more_descriptors(
    program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever step is refused, nothing is left of the run."""
    command = program("sleep 1000")

    def refuse(*_arguments: object) -> int:
        raise OSError(24, "Too many open files")

    for where in ("pipe", "pidfd_open"):
        with monkeypatch.context() as patched:
            patched.setattr(hooks.os, where, refuse)
            assert told([command]) == [f"on_change {command}: cannot be run: Too many open files"]


def test_the_loop_goes_on_meanwhile(program: Callable[[str], str]) -> None:
    """However long the command takes."""
    command = program("sleep 1000")

    async def talk(made: Hooks) -> None:
        made.tell(transition(), "wan2")
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not idle(made)

    during([command], talk)
