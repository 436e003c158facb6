"""Answers to `status` and `explain`, on a thread of their own.

Whoever asks much waits for himself: following links and mending go on beside it. Only values that
the router replaces whole are read here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dataplane.daemon.report import status_report
from dataplane.daemon.router import Router
from dataplane.decide.explain import Situation, explain
from dataplane.decide.flow import parse_flow
from dataplane.errors import UsageError
from dataplane.system.netlink import Netlink

# Letters of steps, after which an answer ends: far below LONGEST_ANSWER, and the work of a second.
_LONG = 2 * 1024 * 1024


class Answers:
    """Answers for one router. All calls come from one thread, which is not the router's."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._netlink: Netlink | None = None

    def status(
        self,
        health: Mapping[str, dict[str, Any]],
        learned: Mapping[str, Any],
        faults: Collection[str],
    ) -> dict[str, Any]:
        """The answer of `evenlink status`.

        `health` is the report of those who watch, `learned` of those who learn; `faults` are
        those of the hooks and of who learns.
        """
        router = self._router
        answer = status_report(
            router.wish,
            router.history,
            health,
            router.engine,
            router.rates,
            router.mended,
            router.tally,
        )
        answer["faults"] += faults
        return {**answer, **learned}

    def explain(self, flows: list[list[str]], dead: list[str]) -> list[dict[str, Any]]:
        """The decisions for these flows, as it is now or as if these links were dead.

        With many rules the steps are long: as many of the flows, from the first on, as fit into
        one answer, and at least one.
        """
        wish = self._router.wish
        for name in dead:
            if name not in wish.ids:
                raise UsageError(f"--dead: there is no link {name!r}; {', '.join(wish.ids)}")
        if self._netlink is None:
            self._netlink = Netlink()
        situation = Situation.of(wish.without(dead), self._router.known)
        ask = situation.marks.mark(situation.marks.ask)
        answers: list[dict[str, Any]] = []
        length = 0
        for words in flows:
            if length > _LONG:
                break
            try:
                flow = parse_flow(words)
            except ValueError as fault:
                raise UsageError(f"explain: {' '.join(words)}: {fault}") from fault
            destination = self._netlink.destination(str(flow.destination), ask)
            answer = explain(situation, flow, destination)
            length += sum(len(step) for step in answer.steps)
            answers.append(answer.as_dict())
        return answers

    def close(self) -> None:
        if self._netlink:
            self._netlink.close()
