"""One table of the operator's file: typed reads that collect faults instead of stopping."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from dataplane.config import keys, places, units
from dataplane.errors import Fault

Value = TypeVar("Value")
Default = TypeVar("Default")

_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class Faults:
    """The faults of one file, in whatever order they are found."""

    def __init__(self, name: str, document: places.Document) -> None:
        self._name = name
        self._document = document
        self._found: list[Fault] = []

    def add(self, path: places.Path, message: str) -> None:
        """A fault at the key of `path`, or at the nearest thing around it that is in the file."""
        line = self._document.line(path)
        # Names of links stand in messages as they are, also those that are refused.
        message = units.printable(message)
        self._found.append(Fault(self._name, line, _dotted(path), message))

    def line(self, path: places.Path) -> int:
        """The line of a key, or of the nearest thing around it that is in the file."""
        return self._document.line(path)

    def add_line(self, line: int, message: str) -> None:
        """A fault of a line that has no key."""
        self._found.append(Fault(self._name, line, "", message))

    def in_order(self) -> tuple[Fault, ...]:
        """By line; those of one line as they were found, none twice."""
        return tuple(dict.fromkeys(sorted(self._found, key=lambda fault: fault.line)))

    def __len__(self) -> int:
        return len(self._found)


class Table:
    """A table's keys. What is asked for is taken; what nobody may ask for is refused at the end."""

    def __init__(
        self,
        faults: Faults,
        path: places.Path,
        values: Mapping[str, Any],
        *,
        demanding: bool = True,
    ) -> None:
        """With `demanding` false, not everything was read: nothing is called missing."""
        self._faults = faults
        self._path = path
        self.demanding = demanding
        self._values = values
        self._misspelt: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def names(self) -> tuple[str, ...]:
        """The keys that are in the file, in its order."""
        return tuple(self._values)

    @property
    def line(self) -> int:
        """Where the table begins; 0 if it is not in the file."""
        return self._faults.line(self._path)

    @property
    def fault_count(self) -> int:
        """How many faults were found so far, in the whole file."""
        return len(self._faults)

    def length(self, key: str) -> int:
        """How many elements the list of `key` has; 0 if it is none."""
        values = self._values.get(key)
        return len(values) if isinstance(values, list) else 0

    def is_table(self, key: str) -> bool:
        """Whether the value of `key` is a table."""
        return isinstance(self._values.get(key), dict)

    def fault(self, key: str, message: str, index: int | None = None) -> None:
        """`key`, or the element `index` of its list, is wrong or missing."""
        values = self._values.get(key)
        inside = index is not None and isinstance(values, list)
        self._faults.add((*self._path, key, *((index,) if inside else ())), message)

    def demand(self, key: str, expected: str) -> None:
        """`key` must be in the file. One that is only misspelt is reported as that."""
        if self.demanding and key not in self._values and key not in self._misspelt:
            self.fault(key, f"missing: expected {expected}")

    def fault_here(self, message: str) -> None:
        """The table as a whole is wrong."""
        self._faults.add(self._path, message)

    def take(self, key: str, read: Callable[[object], Value], default: Default) -> Value | Default:
        """The value of `key`; the default if it is missing, or is not what `read` accepts."""
        if key not in self._values:
            return default
        try:
            return read(self._values[key])
        except ValueError as error:
            self.fault(key, str(error))
            return default

    def take_all(
        self,
        key: str,
        what: str,
        read: Callable[[object], Value],
        *,
        alone: bool = False,
        empty: bool = False,
    ) -> list[tuple[int, Value]]:
        """The elements of a list that `read` accepts, each with its place in the list.

        `what` names them in messages. With `alone`, one string or number may stand without a
        list; with `empty`, the list may be empty.
        """
        values = self._values.get(key, [])
        if alone and isinstance(values, str | int) and not isinstance(values, bool):
            values = [values]
        if not isinstance(values, list) or not (values or empty or key not in self._values):
            self.fault(key, str(units.refuse(f"a list of {what}", values)))
            return []
        taken = []
        for index, value in enumerate(values):
            try:
                taken.append((index, read(value)))
            except ValueError as error:
                self.fault(key, str(error), index)
        return taken

    def table(self, key: str) -> Table:
        """The table below `key`; an empty one if it is missing or is none."""
        values = self._values.get(key, {})
        path = (*self._path, key)
        if isinstance(values, dict):
            return Table(self._faults, path, values, demanding=self.demanding)
        self.fault(key, str(units.refuse(f"a table [{_dotted(path)}]", values)))
        return Table(self._faults, path, {}, demanding=False)

    def tables(self, key: str) -> list[Table]:
        """The tables of the array below `key`, in the order of the file; none if it is missing.

        One that is written as a plain table is a fault, and read all the same.
        """
        values = self._values.get(key, [])
        path = (*self._path, key)
        legal = f"an array of tables [[{_dotted(path)}]]"
        if isinstance(values, dict):
            self.fault(key, str(units.refuse(legal, values)))
            return [Table(self._faults, path, values, demanding=self.demanding)]
        if not isinstance(values, list) or not (values or key not in self._values):
            self.fault(key, str(units.refuse(legal, values)))
            return []
        tables = []
        for index, value in enumerate(values):
            if isinstance(value, dict):
                within = (*path, index)
                tables.append(Table(self._faults, within, value, demanding=self.demanding))
            else:
                self.fault(key, str(units.refuse(f"a table [[{_dotted(path)}]]", value)), index)
        return tables

    def refuse_others(self, known: Collection[str], later: Collection[str] = ()) -> None:
        """Refuse what is not `known`, and name what may have been meant.

        `later` are keys that other versions know.
        """
        for key in self._values:
            if key in known:
                continue
            if key in later:
                self.fault(key, "not known in this version of Evenlink")
                continue
            message = "unknown key"
            near = get_close_matches(key, known, 1)
            if key in keys.HOME:
                message += f" here; it belongs {keys.HOME[key]}"
            elif not near:
                message += f"; known here: {', '.join(known)}"
            if near:
                message += f'; the nearest known one is "{near[0]}"'
                self._misspelt.add(near[0])
            self.fault(key, message)


def judge_names(tables: Table, others: Mapping[str, str], what: str) -> None:
    """Each table's name by itself, and names that differ in case only: they read alike everywhere.

    `others` are names in small letters that are taken, each with what has it.
    """
    seen = dict(others)
    for name in tables.names():
        try:
            units.link_name(name)
        except ValueError as error:
            tables.fault(name, str(error))
        other = seen.setdefault(name.lower(), f"{what} {name}")
        if other == f"{what} {name}":
            continue
        if other.endswith(f" {name}"):
            tables.fault(name, f"expected another name than that of {other}")
        else:
            tables.fault(name, f"expected more than a difference in case to {other}")


def _dotted(path: places.Path) -> str:
    """("link", "a b", 3) → link."a b"[3]."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE.fullmatch(part) else units.show(part))
    return text
