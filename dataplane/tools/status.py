"""How a terminal shows what `status` and `explain` answered."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataplane.daemon.messages import printable

_UNITS = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_COLOURS = {"up": "green", "drained": "yellow", "down": "bold red"}
# What a pipe gets: wide enough for every column.
_PIPE_WIDTH = 160


def rate(bps: float) -> str:
    """A rate as people read it: "19.6 Mbit/s"."""
    for size, unit in _UNITS:
        if bps >= size:
            return f"{bps / size:.1f} {unit}"
    return f"{bps:.0f} bit/s"


def age(seconds: float) -> str:
    """A duration in its largest whole unit: "3 min"."""
    for size, unit in _AGES:
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return "0 s"


def show(answer: dict[str, Any], *, verbose: bool = False, whole: bool = True) -> None:
    """The links as a table, their targets, then, if `whole`, the queue and what is wrong.

    Targets of links that are up are shown only if `verbose`.
    """
    console = _console()
    table = _table(("link", "state", "for"), ("wanted", "slots", "flows", "down", "up"))
    now = datetime.now(UTC)
    for link in answer["links"]:
        table.add_row(
            link["name"],
            _state(link["state"]),
            age((now - datetime.fromisoformat(link["since"])).total_seconds()),
            f"{link['share_wanted']:.2%}",
            f"{link['share_slots']:.3%}",
            str(link["connections"]),
            rate(link["rx_bps"]),
            rate(link["tx_bps"]),
        )
    console.print(table)
    for link in answer["links"]:
        if verbose or link["state"] != "up":
            _show_targets(console, link)
    if not whole:
        return
    _show_groups(console, answer.get("groups", []))
    _show_rules(console, answer.get("rules", []))
    _show_learning(console, answer)
    queue = answer["queue"]
    console.print(
        f"queue: {queue['packets']} decided, {queue['fallback']} settled by the kernel, "
        f"{queue['dropped']} dropped, {queue['errors']} errors; "
        f"wrong sources stopped: {answer['wrong_source']}",
        soft_wrap=True,
    )
    # What is said above already.
    told = tuple(f"link {x['name']} is {x['state']}" for x in answer["links"] if x["state"] != "up")
    for fault in answer["faults"]:
        if told and fault.startswith(told):
            continue
        console.print(Text(f"fault: {printable(fault)}", "bold red"), soft_wrap=True)


def _show_groups(console: Console, groups: Sequence[dict[str, Any]]) -> None:
    """Nothing for the default group alone, where it spreads by the hash."""
    if not groups or (len(groups) == 1 and groups[0]["method"] == "pcc"):
        return
    table = _table(("group", "method", "links", "prefers"), ())
    for group in groups:
        preferred = dict.fromkeys(filter(None, group["preferred"].values()))
        links = ", ".join(group["links"])
        table.add_row(group["name"], group["method"], links, " / ".join(preferred))
    console.print(table)


def _show_rules(console: Console, rules: Sequence[dict[str, Any]]) -> None:
    """Nothing where there is only what no rule takes."""
    if len(rules) < 2:
        return
    table = _table(("rule", "line", "use"), ("packets",))
    for rule in rules:
        line = str(rule["line"] or "")
        table.add_row(rule["name"], line, rule["use"], str(rule["packets"]))
    console.print(table)


def _show_learning(console: Console, answer: dict[str, Any]) -> None:
    for one in answer.get("lists", []):
        console.print(
            f"list {one['name']}: {one['ranges']} ranges, {one['names']} names, "
            f"{one['learned']} learned",
            soft_wrap=True,
        )
    if recogniser := answer.get("recogniser"):
        running = "" if recogniser["running"] else " (not running)"
        console.print(
            f"applications{running}: {recogniser['copies']} packets looked at, "
            f"{recogniser['findings']} findings, {recogniser['lost']} copies lost",
            soft_wrap=True,
        )


def _show_targets(console: Console, link: dict[str, Any]) -> None:
    """Why the link is as it is, and what each target said last."""
    state = Text.assemble((link["name"], "bold"), " is ", _state(link["state"]))
    if link["why"]:
        state.append(f": {printable(link['why'])}")
    if link["state"] != "up" and link.get("serves"):
        state.append("; it stays in use, since no other link is better")
    if hold_ms := link.get("hold_ms", 0):
        state.append(f"; has to answer well for another {hold_ms / 1000:.1f} s")
    console.print(state, soft_wrap=True)
    if not link["targets"]:
        return
    table = _table(("  target", "kind", "", "answer"), ("round trip", "loss"))
    for target in link["targets"]:
        round_trip, loss = target["rtt_ms"], target["loss"]
        table.add_row(
            f"  {printable(target['target'])}",
            target["kind"],
            f"ipv{target['family']}",
            _answer(target),
            "" if round_trip is None else f"{round_trip:.1f} ms",
            "" if loss is None else f"{loss:.0%}",
        )
    console.print(table)


def _answer(target: dict[str, Any]) -> Text:
    said = printable(target["said"])
    match target["ok"]:
        case True:
            return Text(said or "well", "green")
        case False:
            return Text(said or "silent", "bold red")
        case _:
            return Text(said or "not asked yet", "yellow")


def show_transition(transition: dict[str, Any]) -> None:
    """One line, at once: when, in local time, which link, what it is now, and why."""
    at = datetime.fromisoformat(transition["at"]).astimezone()
    line = Text(f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}  {transition['link']}  ")
    line.append_text(_state(transition["state"]))
    if transition["why"]:
        line.append(f"  {printable(transition['why'])}")
    _console().print(line, soft_wrap=True)
    sys.stdout.flush()


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _state(state: str) -> Text:
    return Text(state, _COLOURS.get(state, ""))


def show_explanation(answer: dict[str, Any]) -> None:
    """The decision in one line, then how it came about."""
    console = _console()
    names = [one["name"] for one in answer.get("candidates", ())]
    decided = answer["link"] or " or ".join(names)
    if not decided:
        decided = "main" if answer.get("table", "main") == "main" else "reject"
    console.print(Text.assemble((decided, "bold"), f": {answer['reason']}"), soft_wrap=True)
    for number, step in enumerate(answer["steps"], 1):
        console.print(f"  {number}. {step}", soft_wrap=True)


def _console() -> Console:
    """Text stays what it is: ":abc:" in an IPv6 address is no picture, "[b]" in a name no style."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)
