"""How many new connections a second are tracked, translated and sent to a link?

    sender ──veth──► router: conntrack, a mark ──► route by it, masquerade ──veth──► sink: counted

Every packet is the first of a connection that was not there before: from 4,096 hosts, each to one
of 1,024 addresses again and again, by another port each time. The daemon is the real one as
`evenlink run` starts it; its rivals track and translate as it does, and differ in who decides. The
sender's core also does all work up to the queue; what a full queue left to the kernel's fallback is
not counted.

Evenlink remembers address pairs, so it matters how often one comes again. In the rows with
`-new-pairs` none does: each connection is the first of its pair.
"""

from __future__ import annotations

from functools import partial

from bench import sender
from bench.connections import room_for_connections
from bench.measure import OURS, Options, Result, Sample, in_turn
from bench.path import Path3, missing
from bench.rivals import Rival
from bench.rivals.daemon import RIVALS
from bench.run import WARM_UP_S, one_run
from dataplane.errors import Error

UNIT = "connections/s"
KERNEL = "hmark+connmark"
NEW_PAIRS = "-new-pairs"
_FASTEST = 500_000  # a second; a full table would be measured above


def measure(options: Options) -> Result:
    """Connections a second of each rival; then of two of them with pairs that never come again."""
    why = missing() or sender.missing()
    room = int(_FASTEST * (options.seconds + 2 * WARM_UP_S))
    known = {rival.name: rival for rival in RIVALS}
    compared = (known[OURS], known[KERNEL])
    reasons = {name: reason for name, rival in known.items() if (reason := why or rival.missing())}
    reasons |= {f"{r.name}{NEW_PAIRS}": reasons[r.name] for r in compared if r.name in reasons}
    if why:
        return Result([], reasons)
    try:
        with room_for_connections(room), Path3(links=2) as path:
            runs = {name: partial(_run, path, rival, options) for name, rival in known.items()}
            runs |= {
                f"{rival.name}{NEW_PAIRS}": partial(_run, path, rival, options, True)
                for rival in compared
            }
            new = f"{OURS}{NEW_PAIRS}"
            against = {new: None, f"{KERNEL}{NEW_PAIRS}": new}
            return in_turn(runs, UNIT, options, against=against, left_out=reasons)
    except Error as fault:
        names = [*known, *(f"{rival.name}{NEW_PAIRS}" for rival in compared)]
        return Result([], reasons | {n: str(fault) for n in names if options.wants(n)})


def _run(path: Path3, rival: Rival, options: Options, new_pairs: bool = False) -> Sample:
    """The table is empty before, and afterwards: what is left would be in the way of others."""
    path.forget_connections()
    try:
        run = one_run(path, rival, options.seconds, new_connections=True, new_pairs=new_pairs)
        return run.sample
    finally:
        path.forget_connections()
