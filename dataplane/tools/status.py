"""How a terminal shows what `status` and `explain` answered."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNITS = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))


def rate(bps: float) -> str:
    """A rate as people read it: "19.6 Mbit/s"."""
    for size, unit in _UNITS:
        if bps >= size:
            return f"{bps / size:.1f} {unit}"
    return f"{bps:.0f} bit/s"


def show(answer: dict[str, Any]) -> None:
    """The links as a table, then the queue, then what is wrong."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("link", "interface", "state"):
        table.add_column(heading)
    for heading in ("wanted", "slots", "connections", "down", "up"):
        table.add_column(heading, justify="right")
    table.add_column("since")
    for link in answer["links"]:
        up = link["state"] == "up"
        table.add_row(
            link["name"],
            link["interface"],
            Text(link["state"], "green" if up else "bold red"),
            f"{link['share_wanted']:.2%}",
            f"{link['share_slots']:.3%}",
            str(link["connections"]),
            rate(link["rx_bps"]),
            rate(link["tx_bps"]),
            link["since"] + ("" if up else f"  {link['why']}"),
        )
    console.print(table)
    queue = answer["queue"]
    console.print(
        f"queue: {queue['packets']} packets decided, {queue['dropped']} dropped, "
        f"{queue['errors']} errors, {queue['fallback']} settled by the kernel; "
        f"wrong sources stopped: {answer['wrong_source']}"
    )
    for fault in answer["faults"]:
        console.print(Text(f"fault: {fault}", "bold red"))


def show_explanation(answer: dict[str, Any]) -> None:
    """The decision in one line, then how it came about."""
    console = Console(highlight=False)
    decided = answer["link"] or "main"
    console.print(Text.assemble((decided, "bold"), f": {answer['reason']}"))
    for number, step in enumerate(answer["steps"], 1):
        console.print(f"  {number}. {step}", soft_wrap=True)
