"""Files that are looked at again and again, since somebody may write them anew."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from threading import Thread

EVERY_S = 2.0
# How long a reload waits for a file system that does not answer.
PATIENCE_S = 1.0

Look = tuple[int, int, int] | None
Looks = dict[Path, Look]


def in_thread(look: Callable[[], Looks]) -> asyncio.Future[Looks]:
    """Looks in a thread of its own, which does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Looks] = loop.create_future()

    def work() -> None:
        found = look()
        with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
            loop.call_soon_threadsafe(answer.set_result, found)

    Thread(target=work, name="files", daemon=True).start()
    return answer


class FileWatch:
    """Calls `changed` once a file is another one, and was left alone for one look.

    inotify would be quicker, but does not see what happens on network file systems, nor a file
    that is renamed into its place from elsewhere without watching all of the directory. Such a
    file system may also not answer at all. So `apart` looks away from the event loop, and there is
    never more than one look at the files that were taken: the next one begins after its end.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        apart: Callable[[Callable[[], Looks]], asyncio.Future[Looks]] = in_thread,
    ) -> None:
        self._changed = changed
        self._apart = apart
        self._loop = asyncio.get_running_loop()
        self._files: list[Path] = []
        self._seen: Looks = {}
        self._told: Looks = {}
        self._looking: asyncio.Future[Looks] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def looks(self) -> Looks:
        """The files as they are now: to be asked before they are read, for `take` afterwards.

        Where the file system does not answer soon: as they were when it did. Then they are read
        once more than they need be.
        """
        if not self._files:
            return {}
        try:
            return await asyncio.wait_for(asyncio.shield(self._look()), PATIENCE_S)
        except TimeoutError:
            return self._seen

    def take(self, files: Collection[Path], read: Mapping[Path, Look] | None = None) -> None:
        """These files and no others, as they were when they were `read`, or as they are now.

        Reading may take seconds, in which a file is written again.
        """
        self.close()
        self._files = list(files)
        self._told = {file: look for file, look in (read or {}).items() if file in self._files}
        if self._files:
            self._again()

    def close(self) -> None:
        """Nothing is looked at any more, nor told of a look under way. Again does nothing."""
        self._files = []
        self._seen = {}
        self._looking = None
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> asyncio.Future[Looks]:
        """The look that is under way, else a new one."""
        if self._looking is None or self._looking.done():
            files = self._files
            self._looking = self._apart(lambda: {file: _look(file) for file in files})
        return self._looking

    def _again(self) -> None:
        files = self._files
        self._look().add_done_callback(lambda looked: self._see(files, looked.result()))

    def _see(self, files: list[Path], seen: Looks) -> None:
        if files is not self._files:
            return
        before, self._seen = self._seen, seen
        self._timer = self._loop.call_later(EVERY_S, self._again)
        self._told = seen | self._told
        # What is being written is told of once it is whole.
        still = {
            file: look for file, look in seen.items() if file in before and look == before[file]
        }
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
