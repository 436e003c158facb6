"""DNS that passes the router: questions and answers are read from the kernel's copies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dataplane.decide.copies import ANSWER, QUESTION
from dataplane.decide.dns import Answer, Labels, Questions
from dataplane.errors import Error
from dataplane.system.copies import Copies

log = logging.getLogger("evenlink")

# So many at once, and then a pause: a flood of questions must not keep a core busy.
_COPIES_A_TURN = 64
_PAUSE_S = 0.02
# While the kernel refuses, it is asked again so often.
_AGAIN_S = 10.0


class PassingAnswers:
    """Reads one log group from now on, until `close`."""

    def __init__(self, group: int, labels: Labels, taught: Callable[[Answer], None]) -> None:
        """`labels` says of a name what its addresses are known as; `taught` hears of answers."""
        self.group = group
        self._taught = taught
        self._loop = asyncio.get_running_loop()
        self._questions = Questions(labels)
        self._copies: Copies | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._trouble = ""
        self._lost = 0
        self._open()

    def take(self, labels: Labels) -> None:
        """Another file asks for other names. Of the questions that are open, none counts."""
        self._questions.take(labels)

    def report(self) -> dict[str, int]:
        """What was seen of names that are of interest. `lost` are copies of all kinds."""
        return {
            "questions": self._questions.asked,
            "answers": self._questions.answered,
            "ignored": self._questions.ignored,
            "lost": self._lost + (self._copies.lost if self._copies else 0),
        }

    def faults(self) -> list[str]:
        """What keeps us from reading."""
        return [f"DNS answers are not learned: {self._trouble}"] if self._trouble else []

    def close(self) -> None:
        """Nothing is read any more. Again does nothing."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._copies:
            self._loop.remove_reader(self._copies.fileno())
            self._copies.close()
            self._lost += self._copies.lost
            self._copies = None

    def _open(self) -> None:
        self._timer = None
        try:
            # At once, whatever comes: the connection to what an answer says follows closely.
            self._copies = Copies(self.group, threshold=1, timeout_ms=10)
        except Error as refusal:
            self._fail(refusal)
            return
        self._trouble = ""
        self._listen()

    def _fail(self, refusal: Error) -> None:
        if not self._trouble:
            log.error("DNS answers are not learned: %s", refusal)
        self._trouble = str(refusal)
        self._timer = self._loop.call_later(_AGAIN_S, self._open)

    def _listen(self) -> None:
        self._timer = None
        if self._copies:
            self._loop.add_reader(self._copies.fileno(), self._read)

    def _read(self) -> None:
        assert self._copies is not None, "only an open one is listened to"
        left = _COPIES_A_TURN
        try:
            while left > 0:
                copies = self._copies.receive()
                if not copies:
                    return
                for copy in copies:
                    self._hear(copy.prefix, copy.packet)
                left -= len(copies)
        except Error as refusal:
            self.close()
            self._fail(refusal)
            return
        self._loop.remove_reader(self._copies.fileno())
        self._timer = self._loop.call_later(_PAUSE_S, self._listen)

    def _hear(self, prefix: str, packet: bytes) -> None:
        now_s = self._loop.time()
        if prefix == QUESTION:
            self._questions.question(packet, now_s)
        elif prefix == ANSWER and (answer := self._questions.answer(packet, now_s)):
            self._taught(answer)
