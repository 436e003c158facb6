"""The command line: exit statuses, data on standard output, messages on standard error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dataplane import __version__
from dataplane.tools import cli, status

GOOD = """
lan = ["lan0"]
key = "00112233445566ff"
[link.a]
interface = "wan1"
gateway = "192.0.2.1"
capacity = "10Mbit"
"""
FAULTY = GOOD.replace("10Mbit", "10") + "[nothing]\n"


@pytest.fixture
def good(tmp_path: Path) -> str:
    paths = f'state_dir = "{tmp_path}/state"\ncontrol_socket = "{tmp_path}/sock"\n'
    file = tmp_path / "good.toml"
    file.write_text(paths + GOOD)
    return str(file)


@pytest.fixture
def faulty(tmp_path: Path) -> str:
    file = tmp_path / "faulty.toml"
    file.write_text(FAULTY)
    return str(file)


def run(*words: str, stdin: bytes = b"", **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "dataplane.tools.cli", *words],
        input=stdin,
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[2],
        **more,
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr() == (f"evenlink {__version__}\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["check", "a", "b"],
        ["check", "--nothing"],
        ["explain", "10.0.0.1", "1.1.1.1", "--sport", "x"],
        ["explain", "--file", "a", "--config", "b"],
        ["drain"],
        ["restore", "a", "b"],
        ["drain", "a", "--json"],
        ["down", "file"],
    ],
)
def test_wrong_use(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "error: " in said.err


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["explain", "-h"], ["--version"]])
def test_help_is_data(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert said.out
    assert said.err == ""


def test_check(capsys: pytest.CaptureFixture[str], good: str, faulty: str) -> None:
    assert cli.main(["check", good]) == 0
    assert capsys.readouterr() == (f"{good}: well\n", "")
    assert cli.main(["check", "--json", good]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "faults": [], "remarks": []}
    assert cli.main(["check", faulty]) == 2
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert said.err == ""
    assert cli.main(["check", "--json", faulty]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert not answer["ok"]
    assert [fault["key"] for fault in answer["faults"]] == ["link.a.capacity", "nothing"]
    assert [fault["line"] for fault in answer["faults"]] == [7, 8]
    assert {fault["file"] for fault in answer["faults"]} == {faulty}


def test_check_remarks_what_may_not_be_meant(capsys: pytest.CaptureFixture[str], good: str) -> None:
    with open(good, "a") as file:
        file.write("\n[list.office]\nentries = ['192.0.2.0/24']\n")
    remark = "list office is not used by any rule"
    assert cli.main(["check", good]) == 0
    assert capsys.readouterr() == (f"{good}: well\n", f"{good}: remark: {remark}\n")
    assert cli.main(["check", "--json", good]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "faults": [], "remarks": [remark]}


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_faulty_file(capsys: pytest.CaptureFixture[str], faulty: str, command: str) -> None:
    assert cli.main([command, faulty]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "link.a.capacity" in said.err
    assert "nothing: unknown key" in said.err


@pytest.mark.parametrize("command", ["status", "reload", "down", "explain", "drain", "restore"])
def test_a_faulty_file_to_find_the_daemon_by(
    capsys: pytest.CaptureFixture[str], faulty: str, command: str
) -> None:
    pair = {"explain": ["10.0.0.1", "1.1.1.1"], "drain": ["a"], "restore": ["a"]}.get(command, [])
    assert cli.main([command, *pair, "--config", faulty]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "link.a.capacity" in said.err


@pytest.mark.parametrize("command", ["status", "reload", "explain", "drain", "restore"])
def test_no_daemon(capsys: pytest.CaptureFixture[str], good: str, command: str) -> None:
    pair = {"explain": ["10.0.0.1", "1.1.1.1"], "drain": ["a"], "restore": ["a"]}.get(command, [])
    assert cli.main([command, *pair, "--config", good]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("evenlink: no daemon listens on ")
    assert len(said.err.splitlines()) == 1


def test_bare_is_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["status"])
    both = capsys.readouterr().err.splitlines()
    assert both[: len(both) // 2] == both[len(both) // 2 :]


def test_explain_by_a_file(capsys: pytest.CaptureFixture[str], good: str) -> None:
    assert cli.main(["explain", "10.0.0.1", "1.1.1.1", "--file", good, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["link"] == "a"
    assert said.err == ""
    assert cli.main(["explain", "10.0.0.1", "1.1.1.1", "--file", good]) == 0
    assert capsys.readouterr().out.startswith("a: slot ")


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        ((), None, "expected SRC and DST, or --stdin"),
        (("10.0.0.1",), None, "expected SRC and DST, or --stdin"),
        (("10.0.0.1", "x"), None, "'x'"),
        (("10.0.0.1", "::1"), None, "not of the same family"),
        (("10.0.0.1", "1.1.1.1", "--protocol", "nosuch"), None, "tcp, udp"),
        (("10.0.0.1", "1.1.1.1", "--protocol", "256"), None, "0 to 255"),
        (("10.0.0.1", "1.1.1.1", "--sport", "70000"), None, "port from 0 to 65535"),
        (("10.0.0.1", "1.1.1.1", "--dport", "-1"), None, "port from 0 to 65535"),
        (("10.0.0.1", "1.1.1.1", "--stdin"), "", "not both"),
        (("--stdin",), "10.0.0.1 1.1.1.1\n\n\n10.0.0.1\n", "line 4: expected SRC DST"),
        (("--stdin",), "10.0.0.1 1.1.1.1 tcp 1 2 lan0 0 x\n", "line 1: expected SRC DST"),
    ],
)
def test_what_cannot_be_explained(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    good: str,
    words: tuple[str, ...],
    stdin: str | None,
    said: str,
) -> None:
    """By a daemon and by a file alike: it is said before either is asked."""
    for how in ("--config", "--file"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((stdin or "").encode())))
        assert cli.main(["explain", *words, how, good]) == 2
        heard = capsys.readouterr()
        assert heard.out == ""
        assert heard.err.startswith("evenlink: explain: ")
        assert said in heard.err


def test_lines_are_counted_as_they_stand(good: str) -> None:
    done = run("explain", "--stdin", "--file", good, stdin=b"\n\n10.0.0.1 1.1.1.1\n\xff\xfe\n")
    assert done.returncode == 2
    assert done.stderr.startswith(b"evenlink: explain: line 4: expected SRC DST")
    done = run("explain", "--stdin", "--json", "--file", good, stdin=b"10.0.0.1 1.1.1.1\r\n\n")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert run("explain", "--stdin", "--file", good).returncode == 0


def test_a_reader_that_goes_away(good: str) -> None:
    flows = b"10.0.0.1 1.1.1.1\n" * 3000
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dataplane.tools.cli", "explain", "--stdin", "--json",
             "--file", good],
            input=flows, stdout=writing, stderr=subprocess.PIPE, check=False,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == 0


def test_a_full_disk(good: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dataplane.tools.cli", "check", good],
            stdout=full, stderr=subprocess.PIPE, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    assert b"Traceback" not in done.stderr
    assert b"No space left on device" in done.stderr
    assert done.returncode == 3


@pytest.mark.parametrize(
    "fault", [PermissionError(13, "Permission denied", "/x"), OSError("odd"), RuntimeError("odd")]
)
def test_the_unexpected_has_no_traceback(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    def fail(_path: Path) -> None:
        raise fault

    monkeypatch.setattr(cli, "_read", fail)
    assert cli.main(["plan", "x"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert str(fault).split()[-1].strip("'") in said.err


def test_text_stays_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a style nor a picture is read into names and addresses."""
    reason = "2001:db8:abc::100:cd leaves by [red]wan[/red] [/x]"
    status.show_explanation({"link": None, "reason": reason, "steps": [reason + " step" * 60]})
    shown = capsys.readouterr().out
    assert shown == f"main: {reason}\n  1. {reason}{' step' * 60}\n"
