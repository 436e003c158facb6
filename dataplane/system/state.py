"""The state directory: whole files, old or new, never half.

lock         held by the daemon that owns the directory; its process id is inside
key          the hash key, 16 hex digits, mode 0600
state.json   link numbers, the running home tables, settings as they were before the first start
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

import msgspec

from dataplane.decide.facts import Family
from dataplane.decide.slots import SlotTable
from dataplane.errors import MachineError

_OUR_SETTINGS = ("net/ipv4/", "net/ipv6/", "net/netfilter/nf_conntrack_acct")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class State(msgspec.Struct, frozen=True):
    """What a later start has to know. Everything else is seen on the machine.

    `ids`: name of a link, or "@" and that of an ecmp group -> number; `homes`: group -> its running
    home table, links and slots; `sysctls`: key -> value before the first change; `listing`: digest
    of the table's listing after it was loaded; `mangle_before`: what was there of iptables' mangle
    tables; `silent`: (link, family) of what did not answer; `boot`: the boot of the machine that
    the last four are about, as the kernel names it. `drained`: links that were taken out by hand.
    """

    ids: dict[str, int] = {}
    homes: dict[str, tuple[tuple[str, ...], bytes]] = {}
    sysctls: dict[str, str] = {}
    listing: str = ""
    mangle_before: tuple[str, ...] = ()
    silent: tuple[tuple[str, Family], ...] = ()
    boot: str = ""
    drained: tuple[str, ...] = ()


def _sound(state: State) -> State:
    """The same; ValueError if no daemon of ours can have written it."""
    for group, (links, slots) in state.homes.items():
        try:
            SlotTable(links, slots)
        except ValueError as fault:
            raise ValueError(f"homes: {group}: {fault}") from fault
    numbers = list(state.ids.values())
    if len(set(numbers)) != len(numbers) or not all(1 <= number <= 255 for number in numbers):
        raise ValueError("ids are not numbers of their own from 1 to 255")
    for key in state.sysctls:
        if not key.startswith(_OUR_SETTINGS) or ".." in key.split("/"):
            raise ValueError(f"sysctls: {key!r} is no setting of ours")
    return state


def _boot() -> str:
    """The kernel's name for this boot; empty if it does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


class StateDirectory:
    """One state directory. Made with mode 0700 when it is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        # What we wrote last, and the file as it was then.
        self._stored: tuple[State, tuple[int, int]] | None = None

    def lock(self) -> None:
        """Takes the directory for this process; MachineError if another daemon has it."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as refusal:
            raise MachineError(f"state_dir {self.path}: {refusal.strerror}") from refusal
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise MachineError(
                f"another evenlink daemon (process {holder}) holds {self.path}; "
                "stop it first, or use another state_dir"
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as refusal:
            os.close(descriptor)
            raise MachineError(f"{self.path / 'lock'}: {refusal.strerror}") from refusal
        self._lock = descriptor

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def holder(self) -> int | None:
        """The process that holds the directory now, if any."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            return int(text) if text.isdecimal() else None
        finally:
            os.close(descriptor)
        return None

    def load(self) -> State:
        """What is stored; an empty State when there is nothing.

        After a boot, what was true of the machine before it is left out. MachineError if the file
        cannot be read, or is none that we can have written.
        """
        try:
            data = (self.path / "state.json").read_bytes()
            state = _sound(msgspec.json.decode(data, type=State))
        except FileNotFoundError:
            return State()
        except (OSError, ValueError, RecursionError) as fault:
            raise MachineError(
                f"{self.path / 'state.json'} cannot be read ({fault}); remove it to start afresh"
            ) from fault
        if state.boot == _boot():
            return state
        return State(
            ids=state.ids,
            homes=state.homes,
            drained=state.drained,
        )

    def store(self, state: State) -> None:
        """Puts the state in the place of what was stored, with this boot's name."""
        state = msgspec.structs.replace(state, boot=_boot())
        if self._stored == (state, self._seen()):
            return
        self._write("state.json", msgspec.json.format(msgspec.json.encode(state), indent=1))
        self._stored = state, self._seen()

    def _seen(self) -> tuple[int, int]:
        """What changes when another hand replaces or rewrites the file."""
        try:
            found = (self.path / "state.json").stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def key(self, configured: int | Path | None) -> int:
        """The 64-bit hash key: as configured, from a file, or made at the first start."""
        known = self.peek_key(configured)
        if known is not None:
            return known
        key = secrets.randbits(64)
        self._write("key", f"{key:016x}\n".encode())
        return key

    def peek_key(self, configured: int | Path | None) -> int | None:
        """The same without making one: None if it has not been made yet."""
        if isinstance(configured, int):
            return configured
        path = configured or self.path / "key"
        try:
            text = path.read_text().strip()
        except FileNotFoundError:
            if configured is None:
                return None
            raise MachineError(f"key: {path} does not exist") from None
        except (OSError, UnicodeDecodeError) as refusal:
            raise MachineError(f"key: {path}: {refusal}") from refusal
        if len(text) != 16 or not all(digit in "0123456789abcdefABCDEF" for digit in text):
            raise MachineError(f"key: {path}: expected 16 hex digits")
        return int(text, 16)

    def put_back(self, state: State) -> None:
        """Stores what was loaded before, or removes the file if there was nothing."""
        if state == State():
            self.remove()
        else:
            self.store(state)

    def remove(self) -> None:
        """Forgets what was stored, but for the key: decisions stay the same at the next start."""
        try:
            (self.path / "state.json").unlink(missing_ok=True)
        except OSError as refusal:
            raise MachineError(f"{self.path / 'state.json'}: {refusal.strerror}") from refusal

    def _write(self, name: str, data: bytes) -> None:
        fresh = self.path / f".{name}.new"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path / name)
        except OSError as refusal:
            raise MachineError(f"{self.path / name}: {refusal.strerror}") from refusal
