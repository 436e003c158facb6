"""`evenlink demo`: several shaped providers in namespaces, working as one, before your eyes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dataplane.errors import MachineError, UsageError
from dataplane.tools.demo_options import DEFAULT_PICTURE
from dataplane.tools.demo_result import DemoResult
from dataplane.tools.demo_run import PARTS, Report, experiment, layout

_PICTURES = (".png", ".svg")


def run_demo(chosen: argparse.Namespace) -> int:
    """Runs the demo with the options of `demo_options`. 0 when every reach came true, else 1."""
    picture = chosen.picture or (None if chosen.json else DEFAULT_PICTURE)
    if picture is not None:
        _check_picture(picture)
    if os.geteuid() != 0:
        raise MachineError("demo: needs root, since it makes network namespaces; try sudo")
    topology = layout(chosen.links_bps, chosen.pairs, chosen.ipv6_only)
    messages = Console(stderr=True)
    with _terminated_as_interrupted(), _progress(messages) as report:
        result = experiment(topology, chosen.seconds, report)
    if chosen.json:
        print(json.dumps(result.as_json()))
    else:
        _show(result, Console())
    if picture is not None:
        from dataplane.tools.picture import draw

        draw(result, picture)
        messages.print(f"The picture is in {picture.resolve()}", soft_wrap=True)
    missed = result.missed()
    for figures in missed:
        messages.print(f"evenlink: demo: missed: {figures}", style="red", soft_wrap=True)
    for note in result.notes:
        messages.print(f"evenlink: demo: {note}", soft_wrap=True, markup=False, highlight=False)
    return 1 if missed else 0


def _check_picture(picture: Path) -> None:
    """Says so before the work, not after it, if the picture cannot be written."""
    if picture.suffix.lower() not in _PICTURES:
        raise UsageError(f'demo: --picture: expected a name in .png or .svg, got "{picture}"')
    folder = picture.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"demo: --picture: cannot write into {folder}")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that the lab is removed."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    """One bar a part on standard error; without a terminal, one line a part."""
    if not console.is_terminal:
        said: set[str] = set()

        def line(part: str, _done: float, _text: str) -> None:
            if part not in said:
                said.add(part)
                print(f"evenlink: demo: {part}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        TextColumn("{task.fields[text]}", style="dim"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks = {part: bars.add_task(part, total=1.0, start=False, text="") for part in PARTS}

        def advance(part: str, done: float, text: str) -> None:
            task = tasks[part]
            bars.start_task(task)
            bars.update(task, completed=done, text=text)

        yield advance


def _show(result: DemoResult, console: Console) -> None:
    sum_mbit = result.capacity_sum_bps / 1e6
    table = Table(
        title=f"{len(result.links)} links as one of {sum_mbit:g} Mbit/s",
        title_style="bold",
        title_justify="left",
        show_footer=True,
    )
    numbers = (
        ("capacity", f"{sum_mbit:.1f}"),
        ("carried", f"[bold]{result.carried_bps / 1e6:.1f}[/]"),
        ("share wanted", ""),
        ("slots", ""),
        ("connections", f"{result.connections}"),
        ("bytes", ""),
    )
    table.add_column("link", footer="all")
    for name, footer in numbers:
        table.add_column(name, footer=footer, justify="right")
    for link in result.links:
        table.add_row(
            link.name,
            f"{link.capacity_bps / 1e6:.1f}",
            f"{link.carried_bps / 1e6:.1f}",
            f"{link.share_wanted:.3%}",
            f"{link.share_slots[0]:.3%}",
            f"{link.share_connections:.1%}",
            f"{link.share_bytes:.1%}",
        )
    console.print(table)
    for met, figures in (*result.reaches(), *result.failover.times()):
        sign = "[green]✓[/]" if met else "[bold red]✗[/]"
        console.print(f" {sign} {figures}", highlight=False)
    console.print(
        f" Rates in Mbit/s, Ethernet bytes as the providers passed them; "
        f"{result.goodput_bps / 1e6:.1f} of them reached the applications. "
        f"{result.seconds:.0f} seconds in all.",
        style="dim",
        highlight=False,
    )
