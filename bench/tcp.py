"""How much of one TCP stream passes?

    sender ──veth──► router: conntrack or not, a mark or not ──veth──► sink      one path for each

With segmentation offload, so that a packet has up to 64 KiB. The sender and the router run on one
core, the sink and the queue's worker on the other. What comes in by an interface is steered to the
core that it belongs to (RPS), as the queues of a network card do with the packets of one stream.
Without that, the rows `-unsteered`, both cores work on a stream at a time and get it out of order:
segments are sent again by the thousand, and plain forwarding has two cores, of which a queue's
worker needs one.

All rivals stand ready at the same time and send in turn, a twentieth of a second each. Every run
makes its paths anew: one path may be a few percent faster than its equal, as memory happened to be.

`evenlink` and its rivals get every packet of the sender's. `evenlink-first` is the daemon as
`evenlink run` starts it, `hmark+connmark` the same done by the kernel alone, and
`forward+conntrack` the same path, tracked and masqueraded, with nothing marked.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from bench import native
from bench.measure import OURS, Options, Result, Row, Sample
from bench.path import SERVER, Path3, missing
from bench.rivals import Rival, daemon, kernel, queued
from bench.sender import sender_core, worker_core
from bench.turns import Standing, lines, stand
from dataplane.lab.namespaces import LabError

UNIT = "Gbit/s"
FORWARD, FIRST, TRACKED = "forward", "evenlink-first", "forward+conntrack"
MARKED = "hmark+connmark"
UNSTEERED = "-unsteered"
_TURN_MS = 50
_TURNS_A_SECOND = 20  # of each row, by `seconds`
_FEWEST = 5
_LONGEST_TURN_S = 5.0
_SEGMENT_BYTES = 1448  # what a packet on a wire holds of the stream
_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn did, as native/stream.c says it."""

    bytes: int
    took_ns: int
    sender_ns: int
    reader_ns: int
    again: int

    @property
    def gbit_s(self) -> float:
        return self.bytes * 8 / self.took_ns


def _known() -> dict[str, Rival]:
    every = {rival.name: rival for rival in (*kernel.RIVALS, *queued.RIVALS)}
    first = {rival.name: rival for rival in daemon.RIVALS}
    names = (FORWARD, OURS, "nfq-c-perpacket", "netfilterqueue-python")
    chosen = {name: every[name] for name in names}
    return {**chosen, FIRST: first[OURS], MARKED: first[MARKED], TRACKED: first[FORWARD]}


def _against(name: str) -> str | None:
    """The row of ours that this one is compared with."""
    plain = name.removesuffix(UNSTEERED)
    if plain in (OURS, FIRST):
        return None
    ours = FIRST if plain in (MARKED, TRACKED) else OURS
    return ours + name[len(plain) :]


def steer(path: Path3) -> None:
    """Each interface's packets to one core: the sink's to the worker's, all others to the
    sender's. LabError where the kernel cannot."""
    near, far = f"{1 << sender_core():x}", f"{1 << worker_core():x}"
    links = range(1, path.links + 1)
    for space, name, mask in (
        (path.sender, "right", near),
        (path.router, "left", near),
        *((path.router, f"right{link}", near) for link in links),
        *((path.sink, f"left{link}", far) for link in links),
    ):
        file = f"/sys/class/net/{name}/queues/rx-0/rps_cpus"
        if space.run("tee", file, stdin=mask, check=False).returncode:
            raise LabError("this kernel steers no packets (CONFIG_RPS)")


def keep_window(path: Path3) -> None:
    """A stream that had no turn for a while does not begin anew."""
    path.sender.set({"net/ipv4/tcp_slow_start_after_idle": 0})


def _prepared(path: Path3) -> None:
    keep_window(path)
    steer(path)


def take_turns(standing: Mapping[str, Standing], rounds: int) -> dict[str, list[Turn]]:
    """One stream through each path, and so many turns of each; by row."""
    spaces = [s.name for one in standing.values() for s in (one.path.sender, one.path.sink)]
    said = lines(
        native.build("stream.c", "-pthread"),
        (sender_core(), worker_core(), SERVER, rounds, _TURN_MS, *spaces),
        rounds * len(standing) * _LONGEST_TURN_S,
    )
    return {
        name: [Turn(*numbers[place * _COLUMNS : (place + 1) * _COLUMNS]) for numbers in said]
        for place, name in enumerate(standing)
    }


def levelled(turns: Mapping[str, list[Turn]]) -> dict[str, float]:
    """Each row's rate, from its turns' parts of their round's mean: a machine that is slow for a
    second is so to all who have a turn in it."""
    columns = [[turn.gbit_s for turn in row] for row in turns.values()]
    means = [statistics.fmean(rates) for rates in zip(*columns, strict=True)]
    return {
        name: statistics.fmean(means)
        * statistics.median(rate / mean for rate, mean in zip(rates, means, strict=True))
        for name, rates in zip(turns, columns, strict=True)
    }


def _sample(rate: float, turns: list[Turn], worker_s: float) -> Sample:
    packets = sum(turn.bytes for turn in turns) / _SEGMENT_BYTES
    spent_us = {
        "sender": sum(turn.sender_ns for turn in turns) / 1e3 / packets,
        "receiver": sum(turn.reader_ns for turn in turns) / 1e3 / packets,
        "worker": worker_s * 1e6 / packets,
    }
    return Sample(rate, sum(spent_us.values()), spent_us)


def measure(options: Options) -> Result:
    """Steered, and, unless a quick answer is wanted, unsteered."""
    rivals = _known()
    prepare = dict.fromkeys(rivals, _prepared)
    if not options.quick:
        for name in (FORWARD, OURS, FIRST, MARKED, TRACKED):
            rivals[name + UNSTEERED], prepare[name + UNSTEERED] = rivals[name], keep_window
    rivals = {name: rival for name, rival in rivals.items() if options.wants(name)}
    why = missing("tee") or native.missing("stream.c")
    reasons = {name: said for name, rival in rivals.items() if (said := why or rival.missing())}
    rows = {name: Row(name, UNIT, against=_against(name)) for name in rivals}
    again: dict[str, int] = defaultdict(int)
    rounds = max(_FEWEST, round(_TURNS_A_SECOND * options.seconds))
    options.progress.expect(options.runs)
    for run in range(options.runs):
        options.progress.step(f"{run + 1} of {options.runs}")
        with ExitStack() as stack:
            standing = stand(stack, rivals, reasons, prepare)
            before = {name: one.worker_s() for name, one in standing.items()}
            taken = take_turns(standing, rounds) if standing else {}
            spent = {name: one.worker_s() - before[name] for name, one in standing.items()}
        for name, rate in levelled(taken).items() if taken else ():
            rows[name].samples.append(_sample(rate, taken[name], spent[name]))
            again[name] += sum(turn.again for turn in taken[name])
    for name, row in rows.items():
        row.extra["sent_again"] = again[name]
    return Result(
        [row for row in rows.values() if row.samples and row.name not in reasons], reasons
    )
