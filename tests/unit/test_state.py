"""The state directory: whole files, old or new, and nothing in it is believed blindly."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from dataplane.errors import MachineError
from dataplane.system.state import State, StateDirectory

FULL = State(
    ids={"a": 1, "b": 2},
    homes={"default": (("a", "b"), bytes([0, 1] * 32768))},
    sysctls={"net/ipv4/ip_forward": "0", "net/netfilter/nf_conntrack_acct": "0"},
    listing="ab" * 32,
    mangle_before=("4", "4 OUTPUT"),
    silent=(("a", 4),),
    drained=("b",),
)

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "deep" / "state")


def test_nothing_is_an_empty_state(directory: StateDirectory) -> None:
    assert directory.load() == State()
    assert directory.holder() is None
    assert directory.peek_key(None) is None
    assert not directory.path.exists(), "looking makes nothing"


def test_what_is_stored_is_loaded(directory: StateDirectory) -> None:
    directory.lock()
    directory.store(FULL)
    assert directory.load() == msgspec.structs.replace(FULL, boot=BOOT)
    assert directory.path.stat().st_mode & 0o777 == 0o700
    assert (directory.path / "state.json").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(directory.path)) == ["lock", "state.json"]
    directory.remove()
    directory.remove()
    assert directory.load() == State()
    directory.unlock()


@pytest.mark.parametrize("boot", ["", "90d4a0f0-0000-4000-8000-000000000000"])
def test_after_a_boot_what_was_seen_before_is_left_out(
    directory: StateDirectory, boot: str
) -> None:
    """The old boot's settings are nobody's originals; numbers and slots stay for ever."""
    directory.store(FULL)
    file = directory.path / "state.json"
    file.write_text(file.read_text().replace(BOOT, boot))
    kept = State(
        ids=FULL.ids,
        homes=FULL.homes,
        drained=FULL.drained,
    )
    assert directory.load() == kept
    directory.store(msgspec.structs.replace(FULL, boot=boot))
    assert directory.load().sysctls == FULL.sysctls


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\xff\x00",
        b"null",
        b"[]",
        b"{",
        b'{"ids": []}',
        b'{"ids": {"a": 0}}',
        b'{"ids": {"a": 256}}',
        b'{"ids": {"a": 3, "b": 3}}',
        b'{"ids": {"a": 1e30}}',
        b'{"homes": {"default": [["a"]]}}',
        b'{"homes": {"default": [["a"], "AAAA"]}}',
        b'{"homes": {"default": [["a"], "%"]}}',
        b'{"sysctls": {"kernel/core_pattern": "x"}}',
        b'{"sysctls": {"net/ipv4/../../kernel/core_pattern": "x"}}',
        b'{"sysctls": {"/etc/passwd": "x"}}',
        b'{"sysctls": {"net/netfilter/nf_conntrack_max": "x"}}',
        b"[" * 100_000,
        b'{"ids":' * 100_000,
    ],
)
def test_garbage_is_refused_and_kept(directory: StateDirectory, stored: bytes) -> None:
    directory.path.mkdir(parents=True)
    file = directory.path / "state.json"
    file.write_bytes(stored)
    with pytest.raises(MachineError, match=r"state\.json cannot be read .*; remove it"):
        directory.load()
    assert file.read_bytes() == stored


def test_a_slot_of_no_link_is_refused(directory: StateDirectory) -> None:
    directory.lock()
    directory.store(State(homes={"default": (("a",), bytes(65535) + b"\1")}))
    with pytest.raises(MachineError, match="homes: default"):
        directory.load()
    directory.store(State(homes={"default": (("b", "a"), bytes(65536))}))
    with pytest.raises(MachineError, match="homes: default: expected links sorted by name"):
        directory.load()
    directory.unlock()


def test_one_holder(directory: StateDirectory) -> None:
    directory.lock()
    other = StateDirectory(directory.path)
    assert other.holder() == os.getpid()
    with pytest.raises(MachineError, match=f"process {os.getpid()}"):
        other.lock()
    directory.unlock()
    directory.unlock()
    assert other.holder() is None
    other.lock()
    other.unlock()


def test_the_lock_ends_with_its_holder(directory: StateDirectory) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dataplane.system.state import StateDirectory\n"
        "directory = StateDirectory(Path(sys.argv[1]))\n"
        "directory.lock()\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(directory.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        assert directory.holder() == holder.pid
        holder.kill()
        holder.wait()
    directory.lock()
    directory.unlock()


def test_a_key_is_made_once(directory: StateDirectory) -> None:
    key = directory.key(None)
    assert 0 <= key < 1 << 64
    assert directory.key(None) == directory.peek_key(None) == key
    assert (directory.path / "key").stat().st_mode & 0o777 == 0o600
    directory.remove()
    assert directory.key(None) == key, "removal keeps the key"
    assert directory.key(7) == 7


@pytest.mark.parametrize("content", [b"", b"1" * 15, b"1" * 17, b"g" * 16, b"\xff" * 16, b"\0"])
def test_a_key_file_with_wrong_content(directory: StateDirectory, content: bytes) -> None:
    directory.path.mkdir(parents=True)
    for path in (directory.path / "key", directory.path / "other"):
        path.write_bytes(content)
    for configured in (None, directory.path / "other"):
        with pytest.raises(MachineError, match="key: "):
            directory.key(configured)
    assert (directory.path / "key").read_bytes() == content


def test_a_key_file_is_read_as_people_write_it(directory: StateDirectory) -> None:
    directory.path.mkdir(parents=True)
    (directory.path / "other").write_text(" 00000000000000FF\n")
    assert directory.key(directory.path / "other") == 255
    with pytest.raises(MachineError, match="does not exist"):
        directory.key(directory.path / "none")
    with pytest.raises(MachineError, match="Is a directory"):
        directory.key(directory.path)


def test_paths_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(MachineError, match="state_dir"):
            StateDirectory(path).lock()
        with pytest.raises(MachineError):
            StateDirectory(path).key(None)


def test_a_directory_that_somebody_deleted_is_made_again(directory: StateDirectory) -> None:
    directory.lock()
    shutil.rmtree(directory.path)
    directory.store(FULL)
    assert directory.load().ids == FULL.ids
    directory.unlock()
