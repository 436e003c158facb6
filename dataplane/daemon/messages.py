"""What is said on the control socket: one JSON object a line in each direction.

A request is {"ask": NAME, …}; the answer {"ok": true, "answer": …}, or {"ok": false, "error": …,
"exit": the status that the command should end with}. After `follow`, an answer {"following": true}
is followed by one {"ok": true, "answer": …} a transition, and, when the daemon ends it, by one
with "error".
"""

from __future__ import annotations

import msgspec

# A thousand flows a request, with room for the longest addresses.
LONGEST_REQUEST = 256 * 1024
MOST_FLOWS = 1024
# An answer to a thousand flows takes about a megabyte.
LONGEST_ANSWER = 16 * 1024 * 1024


class Status(msgspec.Struct, tag="status", tag_field="ask", forbid_unknown_fields=True):
    """Links, shares, rates, queue, faults."""


class Explain(msgspec.Struct, tag="explain", tag_field="ask", forbid_unknown_fields=True):
    """The decision for flows, each a list of words as `parse_flow` takes them.

    Where the steps are long, only the first of the flows are answered; who asks goes on behind.
    """

    flows: list[list[str]]
    dead: list[str] = []


class Reload(msgspec.Struct, tag="reload", tag_field="ask", forbid_unknown_fields=True):
    """Read the file again."""


class Stop(msgspec.Struct, tag="stop", tag_field="ask", forbid_unknown_fields=True):
    """End the daemon; with `undo`, remove all that is ours first."""

    undo: bool = False


class Drain(msgspec.Struct, tag="drain", tag_field="ask", forbid_unknown_fields=True):
    """No new connections on this link, until it is restored."""

    link: str


class Restore(msgspec.Struct, tag="restore", tag_field="ask", forbid_unknown_fields=True):
    """Take a drained link back."""

    link: str


class Follow(msgspec.Struct, tag="follow", tag_field="ask", forbid_unknown_fields=True):
    """Every transition from now on. Nothing may be asked on that connection any more."""


# What has one answer.
Request = Status | Explain | Reload | Stop | Drain | Restore


def printable(text: str) -> str:
    """The text in one line. Words of a stranger's host must not speak to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()
