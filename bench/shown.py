"""The progress bar of a benchmark, on standard error where that is a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)


class Bar:
    """A measure.Progress: one line, which says what is measured now, and is gone afterwards."""

    def __init__(self, name: str) -> None:
        console = Console(stderr=True)
        self._shown = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[what]}"),
            console=console,
            transient=True,
            # What is printed meanwhile goes where it was meant to go.
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._task = self._shown.add_task(name, total=None, what="")
        self._expected = self._started = 0
        self._what = ""

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._shown.stop()

    def expect(self, runs: int) -> None:
        self._expected += runs
        self._update()

    def step(self, what: str) -> None:
        self._started += 1
        self._what = what
        self._update()

    def _update(self) -> None:
        # The run that goes on is not done yet.
        done = max(0, self._started - 1)
        self._shown.update(self._task, total=self._expected, completed=done, what=self._what)
