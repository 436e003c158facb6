"""Small losses move nobody: links that lose something, and should not go down for it.

client ── router ─┬─ one-loses ──────┬─ server     30 % lost on the way to one target of three
                  ├─ one-dead ───────┤             one target of three answers nothing
                  ├─ gateway-silent ─┤             the gateway answers no pings
                  └─ all-lose ───────┘             30 % of everything lost: told, not judged
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dataplane.config.model import PUBLIC_RESOLVERS
from dataplane.lab import Daemon, Lab, Topology, faults, lan, link, servers
from tests.soak.watching import Minutes, Outcome, Say, Transitions, complaints, links_of

LOSS = 0.3
STILL = ("one-loses", "one-dead", "gateway-silent")
SHAKEN = "all-lose"
TOPOLOGY = Topology(
    tuple(
        link(name, number, 10_000_000, shaped=False)
        for number, name in enumerate((*STILL, SHAKEN), 1)
    ),
    (lan(),),
    servers(2),
)
_LOOK_S = 0.5


@contextmanager
def small_losses(lab: Lab) -> Iterator[None]:
    """The first resolver of each family is the target that loses, or is dead."""
    four, six = (next(a for a in PUBLIC_RESOLVERS if a.version == v) for v in (4, 6))
    with (
        faults.losing(lab, "one-loses", LOSS, four),
        faults.losing(lab, "one-loses", LOSS, six),
        faults.silent_target(lab, four, "one-dead"),
        faults.silent_target(lab, six, "one-dead"),
        faults.shy_gateway(lab, "gateway-silent"),
        faults.losing(lab, SHAKEN, LOSS),
    ):
        yield


def run(lab: Lab, minutes: float, say: Say) -> Outcome:
    """Watches for that long. `lab` has TOPOLOGY."""
    daemon = lab.run(lab.file(probe={"hold_ms": 0}))
    found = Outcome()
    with small_losses(lab):
        transitions = Transitions(daemon)
        clock = Minutes(minutes, say)
        down_s, looked_s = 0.0, time.monotonic()
        while clock.tick(lambda: _counts(transitions)):
            time.sleep(min(_LOOK_S, max(clock.left_s(), 0.0)))
            shaken = links_of(daemon)[SHAKEN]["state"] != "up"
            now_s = time.monotonic()
            down_s += (now_s - looked_s) * shaken
            looked_s = now_s
        lines = transitions.lines()
        found.faults += _unhurt(daemon)
    found.faults += [line for line in lines if any(f"link {name} " in line for name in STILL)]
    found.faults += complaints(daemon)
    shaken_lines = [line for line in lines if f"link {SHAKEN} " in line]
    found.told.append(
        f"30 % of everything lost: {len(shaken_lines)} transitions in {minutes:g} minutes, "
        f"{down_s / (minutes * 60):.1%} of the time not up"
    )
    found.told += [f"  {line.partition(' evenlink ')[2]}" for line in shaken_lines]
    return found


def _counts(transitions: Transitions) -> str:
    counted = transitions.by_link()
    return ", ".join(f"{name} {counted[name]}" for name in (*STILL, SHAKEN)) + " transitions"


def _unhurt(daemon: Daemon) -> Iterator[str]:
    """A soak that lost nothing shows nothing."""
    # Of a window of a minute; what a short soak began with was still answered.
    expected = {"one-loses": (0.1, 0.6), "one-dead": (0.8, 1.0), "gateway-silent": (0.8, 1.0)}
    for name, (least, most) in expected.items():
        for family in (4, 6):
            heard = [one for one in links_of(daemon)[name]["targets"] if one["family"] == family]
            losses = [one["loss"] for one in heard]
            worst = max(loss for loss in losses if loss is not None)
            if not least <= worst <= most or sum(bool(loss) for loss in losses) != 1:
                yield (
                    f"{name}, IPv{family}: of one target, {least:.0%} to {most:.0%} should be "
                    + (f"lost, not {losses}")
                )
