"""What is learned while the daemon runs, from three teachers: names that the router resolves, DNS
answers that pass it, and applications that are recognised. Lives on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from dataplane.config.model import AddressList, Config
from dataplane.daemon.names import Names
from dataplane.daemon.passing import PassingAnswers
from dataplane.daemon.recogniser import Recogniser, available
from dataplane.decide.copies import answers_group, packets_group
from dataplane.decide.dns import Answer
from dataplane.decide.learned import Address, Known, Learned
from dataplane.decide.lessons import Finding, Lesson, of_answer, of_finding, of_name
from dataplane.decide.wanted import Wanted, learns_answers, learns_packets

log = logging.getLogger("evenlink")

# A new program is made for each change that is handed over.
HAND_OVER_S = 0.2
# What is over goes within so long; of many, a part is looked at each time.
AGE_S = 5.0
_AGE_AT_ONCE = 4096
# Of names that do not resolve, of each list.
_MOST_TOLD = 5


class Learning:
    """Learns what the file's rules ask for, from `start` to `stop`.

    `on_change` is called on the loop with all that is known, when that changed: at once, but not
    more often than every fifth of a second.
    """

    def __init__(self, config: Config, on_change: Callable[[Known], None]) -> None:
        self._config = config
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._wanted = Wanted.of(config)
        self._learned = Learned()
        self._names = Names(self._resolved)
        self._answers: PassingAnswers | None = None
        self._recogniser: Recogniser | None = None
        self._recogniser_group = 0
        self._handing: asyncio.TimerHandle | None = None
        self._handed_s = float("-inf")
        self._ageing: asyncio.TimerHandle | None = None
        self.known = Known()
        """What was handed over last."""

    async def start(self) -> None:
        """Begins. What cannot be learned at present is told by `faults`, and tried again."""
        self._ageing = self._loop.call_later(AGE_S, self._age)
        await self._teach()

    async def take(self, config: Config) -> None:
        """Another file is in force. What was learned stays, as far as it asks for that too.

        A list that lost a name begins anew.
        """
        before, self._wanted = self._wanted, Wanted.of(config)
        self._config = config
        lost = self._wanted.lost_since(before)
        self._learned.keep(self._wanted.labels - lost)
        anew = {
            name
            for name, lists in self._wanted.to_resolve.items()
            if lists != before.to_resolve.get(name) or not lost.isdisjoint(lists)
        }
        await self._teach(anew)
        self._changed()

    async def stop(self) -> None:
        """Learns nothing any more. Again does nothing."""
        for timer in (self._handing, self._ageing):
            if timer:
                timer.cancel()
        self._handing = self._ageing = None
        self._names.close()
        if self._answers:
            self._answers.close()
            self._answers = None
        await self._recognise_nothing()

    def report(self) -> dict[str, Any]:
        """What `status` tells. `dns` and `recogniser` are None while the file needs neither."""
        counts = self._learned.counts()
        return {
            "lists": [_report(one, counts.get(one.name, 0)) for one in self._config.lists],
            "learned": {
                "entries": len(self._learned),
                "oldest_out": self._learned.oldest_out,
            },
            "dns": self._answers.report() if self._answers else None,
            "recogniser": self._recogniser.report() if self._recogniser else None,
        }

    def faults(self) -> list[str]:
        """What cannot be learned at present, and why."""
        faults = _unresolved(self._wanted, self._names.faults())
        if self._answers:
            faults += self._answers.faults()
        if self._recogniser:
            faults += self._recogniser.faults()
            faults += unknown_applications(self._config, self._recogniser.known)
        return faults

    async def _teach(self, anew: Collection[str] = ()) -> None:
        """Has each teacher work, or not, as the file asks. These names are asked for at once."""
        self._names.take(self._wanted.to_resolve, anew)
        group = answers_group(self._config.queue)
        if self._answers and not (learns_answers(self._config) and self._answers.group == group):
            self._answers.close()
            self._answers = None
        if self._answers:
            self._answers.take(self._wanted.labels_of_question)
        elif learns_answers(self._config):
            labels = self._wanted.labels_of_question
            self._answers = PassingAnswers(group, labels, self._heard)
        group = packets_group(self._config.queue)
        if not learns_packets(self._config) or group != self._recogniser_group:
            await self._recognise_nothing()
        if learns_packets(self._config) and not self._recogniser:
            self._recogniser, self._recogniser_group = Recogniser(group, self._found), group
            self._recogniser.start()
            if not available():
                log.warning("%s", _unrecognised(self._config))

    async def _recognise_nothing(self) -> None:
        recogniser, self._recogniser = self._recogniser, None
        if recogniser:
            await recogniser.stop()

    def _resolved(self, name: str, addresses: Sequence[Address], ttl_s: float) -> None:
        self._learn(of_name(name, addresses, ttl_s, self._wanted), held=True)

    def _heard(self, answer: Answer) -> None:
        self._learn(of_answer(answer))

    def _found(self, finding: Finding) -> None:
        self._learn(of_finding(finding, self._wanted))

    def _learn(self, lessons: Iterable[Lesson], held: bool = False) -> None:
        now_s = self._loop.time()
        for key, labels, keep_s in lessons:
            self._learned.teach(key, labels, now_s + keep_s, now_s, held=held)
        self._changed()

    def _age(self) -> None:
        parts = max(1.0, len(self._learned) / _AGE_AT_ONCE)
        self._ageing = self._loop.call_later(AGE_S / parts, self._age)
        self._learned.age(self._loop.time(), _AGE_AT_ONCE)
        self._changed()

    def _changed(self) -> None:
        if self._ageing and not self._handing:
            due_s = max(self._loop.time(), self._handed_s + HAND_OVER_S)
            self._handing = self._loop.call_at(due_s, self._hand_over)

    def _hand_over(self) -> None:
        self._handing = None
        known = self._learned.snapshot()
        if known is not None:
            self._handed_s = self._loop.time()
            self.known = known
            self._on_change(known)


def _report(one: AddressList, learned: int) -> dict[str, Any]:
    return {
        "name": one.name,
        "ranges": len(one.addresses.ranges4) // 8 + len(one.addresses.ranges6) // 32,
        "names": len(one.names),
        "learned": learned,
    }


def _unresolved(wanted: Wanted, troubles: Mapping[str, str]) -> list[str]:
    """The first of each list, and how many more there are."""
    by_list: dict[str, list[str]] = {}
    for name, trouble in troubles.items():
        for of in wanted.to_resolve.get(name, ()):
            by_list.setdefault(of, []).append(f"{name} {trouble}")
    faults = []
    for of, words in by_list.items():
        faults += [f"list {of}: {one}" for one in words[:_MOST_TOLD]]
        if len(words) > _MOST_TOLD:
            faults.append(f"list {of}: {len(words) - _MOST_TOLD} more names do not resolve")
    return faults


def _unrecognised(config: Config) -> str:
    """What follows from a build without the recogniser's library."""
    names = ", ".join(rule.name for rule in config.rules if rule.applications or rule.hosts)
    return (
        f"nDPI is not built in: what {names} ask for is never recognised; "
        "install libndpi-dev and build again"
    )


def unknown_applications(config: Config, known: frozenset[str]) -> list[str]:
    """What rules ask for and is never found. Until the recogniser says what it knows: nothing."""
    return [
        f"{rule.name}: the application {name} is unknown to nDPI"
        for rule in config.rules
        for name in rule.applications
        if known and name not in known
    ]
