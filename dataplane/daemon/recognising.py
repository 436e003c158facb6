"""The recogniser's process: `python -m dataplane.daemon.recognising`, started by recogniser.py.

Standard input is the socket of a log group, standard output takes lines of findings.py, standard
error goes nowhere. It gives up every right before it reads the first packet.
"""

from __future__ import annotations

import os
import resource
import sys
import time

from dataplane.daemon.findings import Counted, Hello, Said, finding, line, name

# Ended with this status: there is no extension, or its library is gone.
NOT_BUILT = 4

TALKS = 4096
PACKETS = 16
SIGN_OF_LIFE_S = 1.0
MOST_MEMORY_BYTES = 512 << 20
_SOCKET, _TOLD = 0, 3


def main() -> int:
    try:
        from dataplane import recognise
    except ImportError:
        return NOT_BUILT
    recogniser = recognise.Recogniser(talks=TALKS, packets=PACKETS)
    # What the library prints must not be taken for a finding.
    os.dup2(1, _TOLD, inheritable=False)
    os.dup2(2, 1)
    _limit()
    unconfined = recognise.confine()
    names = tuple(name(one) for one in recogniser.applications())
    _tell([Hello(name(recognise.version()), names, unconfined)])
    told = time.monotonic()
    while True:
        found = recogniser.run(_SOCKET, round(1000 * SIGN_OF_LIFE_S))
        said: list[Said] = [
            finding(protocol, (server, sport), (client, cport), applications, host, side)
            for protocol, server, sport, client, cport, side, applications, host in found
        ]
        now = time.monotonic()
        if now - told >= SIGN_OF_LIFE_S:
            said.append(Counted(**recogniser.counters()))
            told = now
        _tell(said)


def _limit() -> None:
    """No file more than those that are open, no core, and memory within bounds."""
    for what, most in (
        (resource.RLIMIT_NOFILE, _TOLD + 1),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_AS, MOST_MEMORY_BYTES),
    ):
        resource.setrlimit(what, (most, most))


def _tell(said: list[Said]) -> None:
    """Waits while nobody listens: copies are lost then, and counted."""
    text = b"".join(map(line, said))
    while text:
        text = text[os.write(_TOLD, text) :]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(0)
