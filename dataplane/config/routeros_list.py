"""A RouterOS script, as exchanges publish their address lists: what it adds to address lists.

    /ip firewall address-list
    add list=nice address=192.0.2.0/24 comment="example"
    :do { add list=nice address=198.51.100.0/24 } on-error={}

`add` is all that is obeyed; other commands are passed over.
"""

from __future__ import annotations

import re

# The first line that says something; addresses of IPv6 may begin with a colon.
_FIRST = re.compile(
    rb"\s*(?:[#;][^\n]*\n\s*)*+(?:/|:[a-z]|(?:add|remove|set|do|foreach|if|local|global)[ \t{\\])"
)

_VALUE = rb'(?:"[^"\\\n]*"|[^\s"\\{};\[\]$]+)'
_LIST, _COMMENT = rb" list=" + _VALUE, rb"(?: comment=" + _VALUE + rb")?+"
_ADDRESS = rb' address="?([0-9A-Fa-f.:/]+)"?'
_MENU = rb"/ip(?:v6)?[ /]firewall[ /]address-list[ /]"
# An `add` of the common kind, alone on its line, with the address behind the list or before it; not
# where the line before goes on in this one.
_ADD = re.compile(
    rb"^(?<!\\\n)(?::?do ?\{ ?)?+(?:%(menu)s)?+add%(comment)s"
    rb"(?:%(list)s%(comment)s%(address)s|%(address)s%(comment)s%(list)s)%(comment)s"
    rb"(?: ?\}(?: ?on-error=\{ ?\})?)?+[ \t]*$"
    % {b"menu": _MENU, b"comment": _COMMENT, b"list": _LIST, b"address": _ADDRESS},
    re.MULTILINE,
)

# What is quoted and does not end holds the rest of the line.
_TOKEN = re.compile(r'(?:[^\s{}\[\];"]|"(?:[^"\\]|\\.)*+"?)++|[{}\[\];]', re.DOTALL)
_PARAMETER = re.compile(r"([a-z0-9-]+)=(.*)", re.DOTALL)
_PATH = re.compile(r"ip(?:v6)?/firewall/address-list")
_COMMANDS = frozenset(
    {
        "add", "break", "comment", "continue", "delay", "disable", "do", "edit", "else", "enable",
        "error", "execute", "export", "find", "for", "foreach", "get", "global", "if", "import",
        "local", "log", "move", "on-error", "parse", "print", "put", "remove", "reset", "retry",
        "return", "set", "terminal", "unset", "where", "while",
    }
)  # fmt: skip

EXPECTED = "a command of RouterOS such as add list=nice address=192.0.2.0/24"
_EXPECTED_LIST = "list= in what is added to an address list"
_EXPECTED_ADDRESS = "address= in what is added to an address list"


def is_script(data: bytes) -> bool:
    """Whether the first line that is no comment is a command of RouterOS."""
    return _FIRST.match(data) is not None


def simplify(lines: bytes) -> bytes:
    """Whole lines; those that only add an address are exchanged for that address."""
    return _ADD.sub(rb"\1\2", lines)


class Script:
    """A script, line by line."""

    def __init__(self) -> None:
        self._in_address_list = True

    def added(self, line: str) -> list[str]:
        """The addresses that a line adds, as they are written. ValueError says what is wrong.

        A line that is continued comes whole.
        """
        if line.lstrip().startswith("#"):
            return []
        found = []
        for command in _commands(line):
            address = self._address(command)
            if address is not None:
                found.append(address)
        return found

    def _address(self, words: list[str]) -> str | None:
        """What one command adds; None if it adds nothing to an address list."""
        known = words[0].startswith(("/", ":"))
        inside = self._in_address_list
        if words[0].startswith("/"):
            path, words = _path(words)
            inside = _PATH.fullmatch("/".join(path)) is not None
            if not words:
                # The menu of the commands that follow; /log and the like are none.
                self._in_address_list = inside or (self._in_address_list and len(path) < 2)
                return None
        if words[0] != "add":
            if not known and words[0] not in _COMMANDS and "=" not in words[0]:
                raise ValueError(f"expected {EXPECTED}")
            return None
        given = {found[1]: found[2] for word in words[1:] if (found := _PARAMETER.fullmatch(word))}
        if "list" not in given or "address" not in given:
            if inside:
                raise ValueError(
                    f"expected {_EXPECTED_ADDRESS if 'list' in given else _EXPECTED_LIST}"
                )
            return None
        if _unquoted(given.get("disabled", "no")) in ("yes", "true"):
            return None
        return _unquoted(given["address"])


def _commands(line: str) -> list[list[str]]:
    """The commands of a line in words, without those in brackets, whose value is used."""
    commands: list[list[str]] = [[]]
    depth = 0
    for token in _TOKEN.findall(line):
        if token in ("[", "]"):
            depth = max(depth + (1 if token == "[" else -1), 0)
        elif depth:
            continue
        elif token in ("{", "}", ";"):
            commands.append([])
        else:
            commands[-1].append(token)
    return [command for command in commands if command]


def _path(words: list[str]) -> tuple[list[str], list[str]]:
    """("/ip", "firewall/address-list/add", "list=x") → the menu's path; command and parameters."""
    path: list[str] = []
    for place, word in enumerate(words):
        parts = [part for part in word.split("/") if part]
        for index, part in enumerate(parts):
            if part in _COMMANDS or "=" in part or '"' in part:
                return path, ["/".join(parts[index:]), *words[place + 1 :]]
            path.append(part)
    return path, []


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value
