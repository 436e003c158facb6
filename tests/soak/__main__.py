"""`make soak`, or `python -m tests.soak [PART…] [--minutes N] [--seed N]`.

Each part lasts that many minutes. Exit status 1 if one of them found a fault.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping

from dataplane.lab import Lab, Topology
from tests.soak import flapping, load, overflow, still
from tests.soak.watching import Outcome, Say

LINKS = 64
DAMPED_MS = 20_000
Part = Callable[[Lab, float, int, Say], Outcome]


def _damped(lab: Lab, minutes: float, seed: int, say: Say) -> Outcome:
    return flapping.run(lab, minutes, seed, say, hold_ms=DAMPED_MS)


def _short_lived(lab: Lab, minutes: float, _: int, say: Say) -> Outcome:
    return overflow.run(lab, minutes, say, lasting=False)


PARTS: Mapping[str, tuple[Topology, Part]] = {
    "still": (still.TOPOLOGY, lambda lab, minutes, _, say: still.run(lab, minutes, say)),
    "flapping": (flapping.topology(LINKS), flapping.run),
    "damped": (flapping.topology(LINKS), _damped),
    "load": (load.TOPOLOGY, load.run),
    "overflow": (overflow.TOPOLOGY, lambda lab, minutes, _, say: overflow.run(lab, minutes, say)),
    "overflow-short": (overflow.TOPOLOGY, _short_lived),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=5.0, help="of each part")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16))
    given = parser.parse_args(arguments)
    unknown = [name for name in given.parts if name not in PARTS]
    if unknown:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if given.minutes <= 0:
        parser.error(f"--minutes: expected more than 0, got {given.minutes:g}")
    print(f"seed {given.seed}", flush=True)
    faults = 0
    for name in given.parts or PARTS:
        faults += _soak(name, given.minutes, given.seed)
    return 1 if faults else 0


def _soak(name: str, minutes: float, seed: int) -> int:
    """Runs one part; the number of its faults."""

    def say(words: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {name}: {words}", flush=True)

    topology, part = PARTS[name]
    say(f"{len(topology.links)} links, {minutes:g} minutes")
    with Lab(topology) as lab:
        found = part(lab, minutes, seed, say)
    for words in found.told:
        say(words)
    for words in found.faults:
        say(f"FAULT: {words}")
    say("well" if not found.faults else f"{len(found.faults)} faults")
    return len(found.faults)


if __name__ == "__main__":
    sys.exit(main())
