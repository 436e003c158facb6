"""[list.NAME] → address lists, with what their files say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from dataplane.config import keys, list_files, spans, units
from dataplane.config.model import Addresses, AddressList, Config
from dataplane.config.tables import Table, judge_names
from dataplane.errors import ConfigError, Fault

MOST_LISTS = 1000
MOST_FILES = 100
MOST_FILE_BYTES = 256 << 20
# Of all lists together: 64 MB of ranges.
MOST_RANGES = 8_000_000
MOST_NAMES = 100_000

# The bytes of a file, at most one more than MOST_FILE_BYTES. Raises OSError.
ReadFile = Callable[[Path], bytes]

_TOO_LONG = f"expected at most {MOST_FILE_BYTES >> 20} MB, the file is longer"
_FILE = "the name of a file"


@dataclass(frozen=True, slots=True)
class Files:
    """How files of lists are read, and the directory that relative names begin at."""

    read: ReadFile
    directory: Path


class Reader:
    """Reads files of lists. `faults` are of the files' own lines."""

    def __init__(self, read: ReadFile) -> None:
        self._read = read
        self.faults: list[Fault] = []

    def contents(self, path: Path) -> list_files.Contents:
        """What a file says. Raises ValueError with the reason if it cannot be read."""
        try:
            data = self._read(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
        if len(data) > MOST_FILE_BYTES:
            raise ValueError(f"{path}: {_TOO_LONG}")
        contents = list_files.parse(data)
        name = str(path)
        self.faults += [Fault(name, line, "", message) for line, message in contents.faults]
        if contents.more:
            self.faults.append(Fault(name, 0, "", f"and {contents.more} more such lines"))
        return contents


def read_lists(tables: Table, files: Files) -> tuple[tuple[AddressList, ...], list[Fault]]:
    """All lists, in the order of the file; and the faults that are in their files."""
    reader = Reader(files.read)
    lists = tuple(
        _read_list(name, tables.table(name), files.directory, reader) for name in tables.names()
    )
    judge_names(tables, {}, "list")
    if len(lists) > MOST_LISTS:
        beyond = lists[MOST_LISTS].name
        tables.fault(beyond, f"expected at most {MOST_LISTS} lists, got {len(lists)}")
    if found := _too_much(lists):
        name, message = found
        tables.fault(name, message)
    return lists, reader.faults


def reread(config: Config, read: ReadFile) -> Config:
    """The same with the files of watched lists read again. Raises ConfigError with all faults."""
    reader = Reader(read)
    lists = []
    for one in config.lists:
        if not one.watch:
            lists.append(one)
            continue
        contents = []
        for path in one.files:
            try:
                contents.append(reader.contents(path))
            except ValueError as error:
                message = str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")
                reader.faults.append(Fault(str(path), 0, "", message))
        lists.append(_with_contents(one, contents))
    if found := _too_much(lists):
        name, message = found
        path = next(iter(config.list_named(name).files), Path())
        reader.faults.append(Fault(str(path), 0, f"list.{name}", message))
    if reader.faults:
        raise ConfigError(tuple(reader.faults))
    return replace(config, lists=tuple(lists))


def _read_list(name: str, table: Table, directory: Path, reader: Reader) -> AddressList:
    table.refuse_others(keys.LIST)
    found: list[spans.Span] = []
    names: dict[str, None] = {}
    for _, entry in table.take_all("entries", "addresses, prefixes, ranges or names", _entry):
        if isinstance(entry, str):
            names[entry] = None
        else:
            found.append(entry)
    taken = table.take_all("names", "domain names", _name, alone=True)
    names.update(dict.fromkeys(one for _, one in taken))
    paths: list[Path] = []
    contents = []
    for index, value in table.take_all("files", "names of files", _file, alone=True):
        path = directory / value
        if path in paths:
            table.fault("files", f"expected each file once, got {units.show(value)} again", index)
            continue
        paths.append(path)
        if len(paths) > MOST_FILES:
            continue
        try:
            contents.append(reader.contents(path))
        except ValueError as error:
            table.fault("files", str(error), index)
    if (length := table.length("files")) > MOST_FILES:
        table.fault("files", f"expected at most {MOST_FILES}, got {length}")
    watch = table.take("watch", units.flag, False)
    if watch and table.demanding and "files" not in table:
        table.fault("watch", "expected files beside it, else there is nothing to watch")
    if table.demanding and not any(key in table for key in ("entries", "files", "names")):
        table.fault_here("expected entries, files or names, got none of them")
    own = AddressList(
        name=name,
        entries=Addresses.of(found),
        entry_names=tuple(names),
        files=tuple(paths),
        watch=watch,
    )
    return _with_contents(own, contents)


def _with_contents(one: AddressList, contents: Iterable[list_files.Contents]) -> AddressList:
    """The list with all that its table and its files say."""
    names = dict.fromkeys(one.entry_names)
    ranges4, ranges6 = [one.entries.ranges4], [one.entries.ranges6]
    for each in contents:
        names.update(dict.fromkeys(each.names))
        ranges4.append(each.addresses.ranges4)
        ranges6.append(each.addresses.ranges6)
    # Of one part alone, join makes no copy.
    addresses = Addresses(b"".join(filter(None, ranges4)), b"".join(filter(None, ranges6)))
    return replace(one, addresses=addresses, names=tuple(names))


def _too_much(lists: Iterable[AddressList]) -> tuple[str, str] | None:
    """The first list with which there are more ranges or names than are taken, and a message."""
    ranges = names = 0
    for one in lists:
        ranges += len(one.addresses.ranges4) // 8 + len(one.addresses.ranges6) // 32
        names += len(one.names)
        if ranges > MOST_RANGES:
            return one.name, f"expected at most {MOST_RANGES} ranges in all lists, got {ranges}"
        if names > MOST_NAMES:
            return one.name, f"expected at most {MOST_NAMES} names in all lists, got {names}"
    return None


def _entry(value: object) -> spans.Span | str:
    span = spans.find_span(value)
    return spans.domain(spans.ENTRY, value) if span is None else span


def _name(value: object) -> str:
    return spans.domain(spans.NAME, value)


def _file(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or value.endswith("/"):
        raise units.refuse(_FILE, value)
    if not value.isprintable():
        raise units.refuse(f"{_FILE} without control characters", value)
    return value
