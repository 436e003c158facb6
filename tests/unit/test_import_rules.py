"""The house stays as drawn: who may import whom, and which rooms never touch the machine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dataplane

ROOT = Path(dataplane.__file__).parent
ROOMS = ["errors", "config", "decide", "system", "daemon", "tools"]
PURE = ["config", "decide"]
# What a pure room has no business with: the machine, the clock, chance.
IMPURE = {
    "asyncio", "ctypes", "fcntl", "glob", "io", "multiprocessing", "os", "platform", "random",
    "secrets", "select", "selectors", "shutil", "signal", "socket", "subprocess", "sys",
    "tempfile", "threading", "time", "uuid", "pyroute2", "netfilterqueue", "scapy", "logging",
}  # fmt: skip
HOT_PATH = {
    "decide/explain.py", "daemon/engine.py", "daemon/router.py", "daemon/forecast.py",
    "daemon/connections.py", "decide/compiled.py", "tools/simulate.py",
}  # fmt: skip
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imports(file: str) -> Iterator[str]:
    """The full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(), file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            # A file taken out of its package is imported itself, which is no import of the rest.
            yield from (name if as_file(name) else node.module for name in names)


def room(name: str) -> str:
    """dataplane.decide.plan -> decide; empty for what is not ours."""
    parts = name.split(".")
    return parts[1] if parts[0] == "dataplane" and len(parts) > 1 else ""


@pytest.mark.parametrize("file", FILES)
def test_direction(file: str) -> None:
    """A room imports only from rooms to its left, and from itself."""
    own = Path(file).with_suffix("").parts[0]
    if own in ROOMS:
        allowed = {*ROOMS[: ROOMS.index(own) + 1], "hotpath", "__version__"}
        if own == "tools":
            allowed.add("lab")
    elif own == "lab":
        allowed = {"lab", "config", "errors"}
    else:
        allowed = set()
    assert {room(name) for name in imports(file)} - {""} <= allowed


@pytest.mark.parametrize("file", [file for file in FILES if file.split("/")[0] in PURE])
def test_pure(file: str) -> None:
    assert not {name.split(".")[0] for name in imports(file)} & IMPURE


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith("system/")])
def test_rooms_of_system_do_not_import_one_another(file: str) -> None:
    """Files of one package are one room."""
    others = {as_file(name) for name in imports(file) if room(name) == "system"}
    package = file.rpartition("/")[0] + "/"
    assert package != "system/" or not others
    assert all(other.startswith(package) for other in others)


@pytest.mark.parametrize("file", FILES)
def test_few_touch_the_hot_path(file: str) -> None:
    touches = any(room(name) == "hotpath" for name in imports(file))
    assert not touches or file in HOT_PATH


def test_no_circles() -> None:
    graph = {file: {one for name in imports(file) if (one := as_file(name))} for file in FILES}
    done: set[str] = set()
    while ready := {file for file, needs in graph.items() if needs <= done} - done:
        done |= ready
    assert not graph.keys() - done


def as_file(name: str) -> str:
    """dataplane.decide.plan -> decide/plan.py, if that is a file of ours."""
    path = "/".join(name.split(".")[1:])
    for candidate in (f"{path}.py", f"{path}/__init__.py".lstrip("/")):
        if name.startswith("dataplane.") and candidate in FILES:
            return candidate
    return ""


def test_no_room_is_a_lumber_room() -> None:
    names = {part for file in FILES for part in Path(file).with_suffix("").parts}
    assert not names & {"utils", "helpers", "common", "manager", "base", "misc"}
