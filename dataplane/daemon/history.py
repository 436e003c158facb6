"""What links were before, and what they became."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dataplane.daemon.events import LinkStateName, Transition
from dataplane.decide.facts import FAMILIES
from dataplane.decide.liveness import LinkState
from dataplane.decide.wish import Wish


@dataclass(frozen=True, slots=True)
class LinkHistory:
    """What a link is, and since when, in seconds of Unix time."""

    state: LinkStateName
    carries: tuple[str, ...]
    since: float


def followed(
    history: Mapping[str, LinkHistory], wish: Wish, now_s: float
) -> tuple[dict[str, LinkHistory], list[Transition]]:
    """The history with this wish in it, and what changed.

    A link of which nothing is known is believed to have been up.
    """
    after, transitions = {}, []
    for name, state in wish.states.items():
        now = LinkHistory(state_name(state), _carries(state), now_s)
        old = history.get(name)
        if old is not None and (old.state, old.carries) == (now.state, now.carries):
            after[name] = old
            continue
        before: LinkStateName = old.state if old else "up"
        same = old is not None and old.state == now.state
        after[name] = LinkHistory(now.state, now.carries, old.since if old and same else now_s)
        transitions.append(Transition(name, before, now.state, why(state), now.carries, now_s))
    return after, transitions


def state_name(state: LinkState) -> LinkStateName:
    """What `status` calls it."""
    return "up" if state.alive else "drained" if state.drained else "down"


def why(state: LinkState) -> str:
    """Why it is not up, or does not carry a family though it is set up for it; else empty."""
    lacking = (
        f"no IPv{family}: {state.way(family).why}"
        for family in FAMILIES
        if state.way(family).usable and not state.way(family).alive
    )
    return state.why or "; ".join(lacking)


def in_words(wish: Wish, name: str) -> str:
    """The link's state and the reason for it."""
    state = wish.states[name]
    words = f"{state_name(state)}: {why(state)}" if why(state) else state_name(state)
    kept = not state.alive and any(wish.in_use(name, family) for family in FAMILIES)
    return f"{words}; it stays in use, since no other link is better" if kept else words


def _carries(state: LinkState) -> tuple[str, ...]:
    return tuple(f"ipv{family}" for family in FAMILIES if state.way(family).alive)
