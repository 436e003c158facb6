"""The commands about links as they are now: `status`, `drain` and `restore`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataplane.daemon.calling import ask, follow
from dataplane.daemon.messages import Drain, Restore, Status
from dataplane.errors import UsageError


def drain(socket: Path, link: str) -> int:
    """No new connections on this link."""
    ask(socket, Drain(link))
    return 0


def restore(socket: Path, link: str) -> int:
    """Puts a drained link back."""
    ask(socket, Restore(link))
    return 0


def status(
    socket: Path, links: Sequence[str], *, as_json: bool, verbose: bool, following: bool
) -> int:
    """Shows these links, or all; 1 if one of `links` is not up. `following` never returns."""
    if not following:
        return _show(socket, links, as_json, verbose)
    # Follows first: what happens between the two is told twice rather than not at all.
    with follow(socket) as transitions:
        _show(socket, links, as_json, verbose, following=True)
        for one in transitions:
            if not links or one.get("link") in links:
                _show_transition(one, as_json)
    raise AssertionError("transitions end with an error")


def _show(
    socket: Path, links: Sequence[str], as_json: bool, verbose: bool, following: bool = False
) -> int:
    answer = ask(socket, Status())
    names = [link["name"] for link in answer["links"]]
    for name in links:
        if name not in names:
            raise UsageError(f"status: there is no link {name!r}; {', '.join(names)}")
    if links:
        answer["links"] = [link for link in answer["links"] if link["name"] in links]
    if as_json:
        print(json.dumps(answer), flush=following)
    else:
        from dataplane.tools.status import show

        show(answer, verbose=verbose, whole=not links)
    return int(any(link["state"] != "up" for link in answer["links"] if links))


def _show_transition(transition: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(transition), flush=True)
    else:
        from dataplane.tools.status import show_transition

        show_transition(transition)
