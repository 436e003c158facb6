"""TOML → Config, with the line of every key. Every fault is found, not only the first."""

from __future__ import annotations

from errno import EINVAL
from pathlib import Path
from typing import Literal

from dataplane.config import groups, keys, lists, places, rules, units
from dataplane.config.links import Surroundings, read_links
from dataplane.config.marks import Marks
from dataplane.config.model import Config, Engine, Group, Queue, QueueMode
from dataplane.config.probes import read_default
from dataplane.config.tables import Faults, Table
from dataplane.errors import ConfigError, Fault

MOST_BYTES = 1 << 20
# Each has an ip rule, and behind these stand others: priorities 30010 to 30099.
MOST_EXEMPT_MARKS = 90
MOST_ARGUMENTS = 64

_TOO_LONG = f"expected at most {MOST_BYTES} bytes, the file is longer"
_NOT_TEXT = "expected TOML, which is UTF-8, got other bytes"

# What a file that says nothing gets.
_PLAIN = Config(lan=(), links=(), balance=Group("default", ()))


def read_file(path: str | Path) -> Config:
    """Read the operator's file. Raises ConfigError with all its faults, also if it is no file."""
    name = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise _refuse_file(name, f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise _refuse_file(name, "cannot be read: the name holds a zero byte") from None
    if len(data) > MOST_BYTES:
        raise _refuse_file(name, _TOO_LONG)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _refuse_file(name, _NOT_TEXT, line) from None
    return read(text, name)


def read_list_file(path: Path) -> bytes:
    """The bytes of a list's file, one more than a list may have at most. Raises OSError."""
    if path.exists() and not path.is_file():
        raise OSError(EINVAL, "it is no regular file")
    with open(path, "rb") as file:
        return file.read(lists.MOST_FILE_BYTES + 1)


def read(text: str, name: str, read_list: lists.ReadFile = read_list_file) -> Config:
    """Read the text of a file that messages call `name`. Raises ConfigError with all its faults.

    `read_list` gives the bytes of a list's file; relative names begin where `name` is.
    """
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise _refuse_file(name, _NOT_TEXT, line) from None
    if length > MOST_BYTES:
        raise _refuse_file(name, _TOO_LONG)
    document = places.parse(text)
    faults = Faults(name, document)
    for line, message in document.syntax:
        faults.add_line(line, message)
    if not document.complete:
        raise ConfigError(faults.in_order())
    # What stood on a line that is not TOML is unknown: nothing is called missing then.
    top = Table(faults, (), document.values, demanding=not document.syntax)
    config, of_lists = _read_top(top, lists.Files(read_list, Path(name).parent))
    if faults or of_lists:
        raise ConfigError((*faults.in_order(), *of_lists))
    return config


def _refuse_file(name: str, message: str, line: int = 0) -> ConfigError:
    return ConfigError((Fault(name, line, "", message),))


def _read_top(top: Table, files: lists.Files) -> tuple[Config, list[Fault]]:
    """What the file says, and the faults in its lists' files."""
    top.refuse_others(keys.TOP, keys.TOP_LATER)
    lan = _read_lan(top)
    # A mask that is wrong, or was on a line that is not TOML, is not judged against others.
    known = "mark_mask" not in top and top.demanding
    mask = top.take("mark_mask", units.mark_mask, _PLAIN.mark_mask if known else None)
    ipv6 = top.take("ipv6", units.flag, _PLAIN.ipv6)
    probing = read_default(top.table("probe"), ipv6)
    around = Surroundings(lan, probing, ipv6)
    links = read_links(top.table("link"), around, Marks(mask).last_link if mask else None)
    queue = _read_queue(top.table("queue"))
    around_groups = groups.Around(links, queue, mask)
    balance, named = groups.read_groups(top.table("balance"), top.table("group"), around_groups)
    before = top.fault_count
    address_lists, faults = lists.read_lists(top.table("list"), files)
    lists_known = not faults and top.fault_count == before
    around_rules = rules.Around(lan, links, named, address_lists, ipv6)
    config = Config(
        lan=lan,
        links=links,
        balance=balance,
        groups=named,
        lists=address_lists,
        rules=rules.read_rules(top.tables("rule"), balance, around_rules, lists_known=lists_known),
        key=top.take("key", units.hash_key, None),
        mark_mask=mask or _PLAIN.mark_mask,
        exempt_marks=_read_exempt_marks(top, mask or 0),
        ipv6=ipv6,
        own_traffic=top.take("own_traffic", units.word("balance", "main"), _PLAIN.own_traffic),
        on_stop=top.take("on_stop", units.word("keep", "undo"), _PLAIN.on_stop),
        state_dir=top.take("state_dir", units.absolute_path, _PLAIN.state_dir),
        control_socket=top.take("control_socket", units.socket_path, _PLAIN.control_socket),
        control_group=top.take("control_group", units.group_name, None),
        on_change=_read_on_change(top),
        hold_ms=probing.hold_ms,
        queue=queue,
        log_level=_read_log_level(top.table("log")),
    )
    return config, faults


def _read_lan(top: Table) -> tuple[str, ...]:
    top.demand("lan", 'a list of interface names such as ["br-lan"]')
    return _each_once(top, "lan", top.take_all("lan", "interface names", units.interface))


def _read_exempt_marks(top: Table, mask: int) -> tuple[int, ...]:
    if "exempt_marks" not in top:
        for mark in _PLAIN.exempt_marks:
            if mark & mask:
                top.fault(
                    "mark_mask",
                    f"expected none of the bits of {mark:#x}, the mark that is exempt unless "
                    f"exempt_marks says otherwise, got {mask:#x}",
                )
        return _PLAIN.exempt_marks
    taken = top.take_all("exempt_marks", "marks", units.mark, empty=True)
    for index, mark in taken:
        if mark & mask:
            top.fault(
                "exempt_marks",
                f"expected none of the bits of mark_mask {mask:#x}, which are ours to set: "
                f"a packet with {mark:#x} would look decided",
                index,
            )
    marks = tuple(dict.fromkeys(mark for _, mark in taken))
    if len(marks) > MOST_EXEMPT_MARKS:
        top.fault("exempt_marks", f"expected at most {MOST_EXEMPT_MARKS} marks, got {len(marks)}")
    return marks


def _read_on_change(top: Table) -> tuple[str, ...]:
    taken = top.take_all("on_change", "a program and its arguments", units.argument)
    for index, value in taken[:1]:
        try:
            if index == 0:
                units.program(value)
        except ValueError as error:
            top.fault("on_change", str(error), index)
    if (length := top.length("on_change")) > MOST_ARGUMENTS:
        top.fault("on_change", f"expected at most {MOST_ARGUMENTS} strings, got {length}")
    return tuple(value for _, value in taken)


def _read_queue(table: Table) -> Queue:
    table.refuse_others(keys.QUEUE)
    plain = _PLAIN.queue
    number = table.take("number", units.integer(0, 65535), plain.number)
    workers = table.take("workers", units.integer(1, 64), plain.workers)
    if number + workers > 65536:
        table.fault(
            "workers",
            f"expected queues up to number 65535, got {workers} workers from number {number} on",
        )
    return Queue(
        number=number,
        workers=workers,
        engine=table.take("engine", units.member(Engine), plain.engine),
        mode=table.take("mode", units.member(QueueMode), plain.mode),
        length=table.take("length", units.integer(16, 1 << 20), plain.length),
        copy_bytes=table.take("copy_bytes", units.integer(64, 65531), plain.copy_bytes),
        spin_us=table.take("spin_us", units.integer(0, 10_000), plain.spin_us),
    )


def _read_log_level(table: Table) -> Literal["debug", "info", "warning", "error"]:
    table.refuse_others(keys.LOG, keys.LOG_LATER)
    return table.take("level", units.word("debug", "info", "warning", "error"), _PLAIN.log_level)


def _each_once(table: Table, key: str, taken: list[tuple[int, str]]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for index, name in taken:
        if name in names:
            table.fault(key, f"expected each name once, got {units.show(name)} again", index)
        names[name] = None
    return tuple(names)
