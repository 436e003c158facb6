"""How many packets a second get a mark: when all are asked for, and when only the first is?

    sender ──veth──► router: prerouting, a mark ──► route ──veth──► sink: counted

64-byte UDP of 1,024 address pairs, as fast as one core can send them. On that core all work up to
the queue is done, too; what serves the queue runs on the other, and with it reinjection, routing
and transmission. So the fastest behind the queue come near to what the sender can do. Counted is
what arrives with a decision: what a full queue let pass without one, or dropped, is not done. There
is one link, whatever the mark; `ecmp` has two.

The rows `evenlink-first` and `hmark+connmark` are the daemon as `evenlink run` starts it, and the
same work done by the kernel alone: two links, masquerade, 1,024 established connections.
`dropped_at_80_percent` is what Evenlink loses at 80 % of the rate it reached.

With `--offload` the source is one that costs less than the router: the kernel cuts its packets up
64 at a time. Then the worker's core is the limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from bench import sender
from bench.connections import establish
from bench.measure import OURS, Options, Result, Sample, in_turn
from bench.path import Path3, missing
from bench.rivals import Rival, daemon, kernel, queued
from bench.run import one_run
from dataplane.errors import Error

UNIT = "packets/s"
FIRST = "evenlink-first"
EVERY_PACKET = (*queued.RIVALS, *kernel.RIVALS)
OFFLOAD = ("evenlink", "callback", "nfq-c-perpacket", "netfilterqueue-python", "forward", "hmark")
FIRST_PACKET = (
    Rival(FIRST, daemon.evenlink, daemon.needs_conntrack, links=2),
    Rival("hmark+connmark", daemon.hmark, daemon.needs_conntrack, links=2),
)
_SHARE = 0.8


def measure(options: Options) -> Result:
    """Packets a second of each rival; with `options.offload`, the other table."""
    rivals = [r for r in EVERY_PACKET if not options.offload or r.name in OFFLOAD]
    why = missing(*(["ethtool"] if options.offload else [])) or sender.missing()
    if why:
        more = () if options.offload else FIRST_PACKET
        return Result([], {rival.name: why for rival in (*rivals, *more)})
    with Path3() as path, Path3(links=2) as wide:
        if options.offload:
            sender.plain_sender(path)
        result = _table({1: path, 2: wide}, rivals, options)
        if not options.offload:
            try:
                result.extra.update(_below_its_limit(path, result, options))
            except (Error, OSError) as fault:  # what was measured stays
                result.left_out[f"{OURS} at {_SHARE:.0%}"] = str(fault)
            result.add(_first_packet(wide, options))
    return result


def _table(paths: Mapping[int, Path3], rivals: Iterable[Rival], options: Options) -> Result:
    wanted = [rival for rival in rivals if options.wants(rival.name)]
    reasons = {rival.name: why for rival in wanted if (why := rival.missing())}

    def run(rival: Rival) -> Sample:
        path = paths[rival.links]
        return one_run(path, rival, options.seconds, offload=options.offload).sample

    return in_turn(
        {rival.name: partial(run, rival) for rival in wanted}, UNIT, options, left_out=reasons
    )


def _below_its_limit(path: Path3, result: Result, options: Options) -> dict[str, object]:
    """What is lost at 80 % of the median, exactly."""
    ours = result.row(OURS)
    if ours is None:
        return {}
    rate = int(ours.median * _SHARE)
    options.progress.expect(1)
    options.progress.step(f"{OURS} at {_SHARE:.0%} of its rate")
    rival = next(rival for rival in EVERY_PACKET if rival.name == OURS)
    run = one_run(path, rival, 2 * options.seconds, rate=rate)
    return {
        "dropped_at_80_percent": run.lost,
        "at_80_percent": {"rate": rate, "sent": run.sent, "drops": dict(run.drops)},
    }


def _first_packet(path: Path3, options: Options) -> Result:
    def run(rival: Rival) -> Sample:
        path.forget_connections()
        try:
            return one_run(path, rival, options.seconds, prepare=establish).sample
        finally:
            path.forget_connections()

    reasons = {rival.name: why for rival in FIRST_PACKET if (why := rival.missing())}
    return in_turn(
        {rival.name: partial(run, rival) for rival in FIRST_PACKET},
        UNIT,
        options,
        against={FIRST: None, "hmark+connmark": FIRST},
        left_out=reasons,
    )
