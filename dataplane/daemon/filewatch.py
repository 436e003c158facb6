"""Files that are looked at again and again, since somebody may write them anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

EVERY_S = 2.0

Look = tuple[int, int, int] | None


class FileWatch:
    """Calls `changed` once a file is another one, and was left alone for one look.

    inotify would be quicker, but does not see what happens on network file systems, nor a file
    that is renamed into its place from elsewhere without watching all of the directory.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._seen: dict[Path, Look] = {}
        self._told: dict[Path, Look] = {}
        self._timer: asyncio.TimerHandle | None = None

    def looks(self) -> dict[Path, Look]:
        """The files as they are now: to be asked before they are read, for `take` afterwards."""
        return {file: _look(file) for file in self._seen}

    def take(self, files: Collection[Path], read: Mapping[Path, Look] | None = None) -> None:
        """These files and no others, as they were when they were `read`, or as they are now.

        Reading may take seconds, in which a file is written again.
        """
        self.close()
        self._seen = {file: _look(file) for file in files}
        self._told = self._seen | {
            file: look for file, look in (read or {}).items() if file in self._seen
        }
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


def _look(file: Path) -> Look:
    """What changes with a file's content; None while there is no file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
