"""Files that are looked at again and again, since somebody may write them anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

EVERY_S = 2.0

_Look = tuple[int, int, int] | None


class FileWatch:
    """Calls `changed` once a file is another one, and was left alone for one look.

    inotify would be quicker, but does not see what happens on network file systems, nor a file
    that is renamed into its place from elsewhere without watching all of the directory.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._seen: dict[Path, _Look] = {}
        self._told: dict[Path, _Look] = {}
        self._timer: asyncio.TimerHandle | None = None

    def take(self, files: Collection[Path]) -> None:
        """These files, as they are now, and no others."""
        self.close()
        self._seen = {file: _look(file) for file in files}
        self._told = dict(self._seen)
        self._wait()

    def close(self) -> None:
        """Nothing is looked at any more. Again does nothing."""
        self._seen.clear()
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        if self._seen:
            self._timer = self._loop.call_later(EVERY_S, self._again)

    def _again(self) -> None:
        before = self._seen
        self._seen = {file: _look(file) for file in before}
        self._wait()
        # What is being written is told of once it is whole.
        still = {file: look for file, look in self._seen.items() if look == before[file]}
        if any(look != self._told[file] for file, look in still.items()):
            self._told |= still
            self._changed()


def _look(file: Path) -> _Look:
    """What changes with a file's content; None while there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
