"""How a terminal shows what `status` and `explain` answered."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNITS = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))
_AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
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


def show(answer: dict[str, Any]) -> None:
    """The links as a table, then the queue, then what is wrong."""
    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("link", "state", "for"):
        table.add_column(heading, no_wrap=True)
    for heading in ("wanted", "slots", "flows", "down", "up"):
        table.add_column(heading, justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for link in answer["links"]:
        up = link["state"] == "up"
        table.add_row(
            link["name"],
            Text(link["state"], "green" if up else "bold red"),
            age((now - datetime.fromisoformat(link["since"])).total_seconds()),
            f"{link['share_wanted']:.2%}",
            f"{link['share_slots']:.3%}",
            str(link["connections"]),
            rate(link["rx_bps"]),
            rate(link["tx_bps"]),
        )
    console.print(table)
    queue = answer["queue"]
    console.print(
        f"queue: {queue['packets']} decided, {queue['fallback']} settled by the kernel, "
        f"{queue['dropped']} dropped, {queue['errors']} errors; "
        f"wrong sources stopped: {answer['wrong_source']}",
        soft_wrap=True,
    )
    for fault in answer["faults"]:
        console.print(Text(f"fault: {fault}", "bold red"), soft_wrap=True)


def show_explanation(answer: dict[str, Any]) -> None:
    """The decision in one line, then how it came about."""
    console = _console()
    decided = answer["link"] or "main"
    console.print(Text.assemble((decided, "bold"), f": {answer['reason']}"), soft_wrap=True)
    for number, step in enumerate(answer["steps"], 1):
        console.print(f"  {number}. {step}", soft_wrap=True)


def _console() -> Console:
    """Text stays what it is: ":abc:" in an IPv6 address is no picture, "[b]" in a name no style."""
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(highlight=False, markup=False, emoji=False, width=width)
