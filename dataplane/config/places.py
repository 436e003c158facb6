"""TOML text → values, and the line of each key.

tomllib says what is TOML and what the values are. The syntax tree of tree-sitter says where the
keys stand; nothing else is taken from it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import tree_sitter
import tree_sitter_toml

Path = tuple[str | int, ...]

MOST_SYNTAX_FAULTS = 20

# tomllib takes time with the square of a key's parts: half a megabyte of dots would take hours.
MOST_LINE_CHARACTERS = 4096

_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
# How tomllib begins all its messages about what is there already, and how we say it.
_TWICE = "Cannot"
_AGAIN = "this key or table is in the file already"

_LANGUAGE = tree_sitter.Language(tree_sitter_toml.language())


@dataclass(frozen=True, slots=True)
class Document:
    """A file as far as it is TOML.

    `values` are Python's, with Decimal for floats. `syntax` are the lines that are not TOML and
    why; they are left out of `values`. With `complete` false, nothing is known about what follows
    the last of them.
    """

    values: dict[str, Any]
    syntax: tuple[tuple[int, str], ...]
    complete: bool
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """The line of a key, a table's header or a list's element; 0 if it is not in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


def parse(text: str) -> Document:
    """Read TOML. Never raises; what is not TOML is in the result."""
    rows = text.split("\n")
    if long := [n for n, row in enumerate(rows, 1) if len(row) > MOST_LINE_CHARACTERS]:
        expected = f"expected lines of at most {MOST_LINE_CHARACTERS} characters"
        return Document({}, tuple((line, expected) for line in long), False, {})
    syntax: list[tuple[int, str]] = []
    while True:
        source = "\n".join(rows)
        try:
            values = tomllib.loads(source, parse_float=Decimal)
            return Document(values, tuple(syntax), True, dict(_places(_tree(source))))
        except RecursionError:
            syntax.append((0, "not TOML that can be read: nested too deeply"))
            break
        except ValueError as error:
            line, column, reason = _explain(error, len(rows))
        syntax.append((line, f"not TOML: {reason}" + (f", at column {column}" if column else "")))
        if len(syntax) == MOST_SYNTAX_FAULTS:
            break
        culprit = _culprit(rows, source, line, reason)
        if not culprit:
            break
        for row in culprit:
            rows[row] = ""
    return Document({}, tuple(syntax), False, {})


def _explain(error: ValueError, last_line: int) -> tuple[int, int, str]:
    """Line, column and reason of tomllib's message; 0 where it does not say."""
    message = str(error)
    place = _PLACE.search(message)
    if not place:
        return 0, 0, message
    reason = message[: place.start()]
    if reason.startswith(_TWICE):
        return int(place[1] or last_line), 0, _AGAIN
    if place[1] is None:
        return last_line, 0, f"{reason}: the file ends too early"
    return int(place[1]), int(place[2]), reason


def _culprit(rows: list[str], source: str, line: int, reason: str) -> range:
    """The rows to leave out so that what follows can be judged; empty if that cannot be told.

    A line that is not TOML by itself can be left out alone. One that is, is at fault for what
    stands before it: a key or a table that is there already can be left out whole, but where a
    bracket or a quote was not closed, all that follows is guesswork.
    """
    if not 1 <= line <= len(rows) or not rows[line - 1]:
        return range(0)
    if reason == _AGAIN:
        return _statement(_tree(source), line - 1)
    try:
        tomllib.loads(rows[line - 1])
    except (ValueError, RecursionError):
        return range(line - 1, line)
    return range(0)


def _statement(tree: tree_sitter.Tree, row: int) -> range:
    """The rows of the table whose header, or else of the pair that, stands on a row."""
    for node in tree.root_node.children:
        for inner in (node, *node.children):
            whole = inner.type == "pair" and inner.start_point.row <= row <= inner.end_point.row
            header = inner.type.startswith("table") and inner.start_point.row == row
            if whole or header:
                # A table's node ends in the row of what comes next.
                beyond = inner.end_point.column > 0
                return range(inner.start_point.row, inner.end_point.row + beyond)
    return range(row, row + 1)


def _tree(source: str) -> tree_sitter.Tree:
    return tree_sitter.Parser(_LANGUAGE).parse(source.encode())


def _places(tree: tree_sitter.Tree) -> Iterator[tuple[Path, int]]:
    """Path and line of every key, header and element, the first mention of each."""
    elements: dict[Path, int] = {}
    seen: set[Path] = set()
    pending: list[tuple[tree_sitter.Node, Path]] = [(tree.root_node, ())]
    while pending:
        node, path = pending.pop()
        inside: list[tuple[tree_sitter.Node, Path]] = []
        match node.type:
            case "document" | "inline_table":
                inside = [(child, path) for child in node.named_children]
            case "table" | "table_array_element":
                names = _names(node.named_children[0])
                for name in names[:-1]:
                    path = _newest((*path, name), elements)
                path = (*path, names[-1])
                if node.type == "table_array_element":
                    elements[path] = elements.get(path, -1) + 1
                    path = (*path, elements[path])
                inside = [(child, path) for child in node.named_children[1:]]
            case "pair":
                path = (*path, *_names(node.named_children[0]))
                inside = [(node.named_children[-1], path)]
            case "array":
                values = [child for child in node.named_children if child.type != "comment"]
                inside = [(child, (*path, index)) for index, child in enumerate(values)]
        for length in range(1, len(path) + 1):
            if path[:length] not in seen:
                seen.add(path[:length])
                yield path[:length], node.start_point.row + 1
        pending += reversed(inside)


def _newest(path: Path, elements: dict[Path, int]) -> Path:
    """A header below `[[path]]` belongs to its newest element."""
    return (*path, elements[path]) if path in elements else path


def _names(key: tree_sitter.Node) -> list[str]:
    """The parts of a key, bare, quoted or dotted."""
    names: list[str] = []
    pending = [key]
    while pending:
        node = pending.pop()
        if node.type == "dotted_key":
            pending += reversed(node.named_children)
        elif node.text is not None:
            quoted = node.type == "quoted_key"
            names.append(_unquoted(node.text.decode()) if quoted else node.text.decode())
    return names


def _unquoted(key: str) -> str:
    return next(iter(tomllib.loads(f"{key} = 0")))
