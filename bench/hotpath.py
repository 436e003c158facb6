"""How many nanoseconds does a decision take in process, without the kernel?

Packets of 64 bytes, UDP, each of another address pair, lie one behind the other, and are decided in
one call. Rows are times, so a ratio above 1 says how many times as long Evenlink takes:

    evenlink    two links, IPv4, 4,096 packets, which stay in the processor's caches
    floor       C that hashes the address pair and looks the slot up: no checks, no counters
    oracle      tests/reference.py: plain Python and the xxhash package
    scapy       the same, where scapy reads the packet

Behind the name: -ipv6; -1M, a million packets, which no cache holds; -sizes, 65,536 packets of 64
to 1,514 bytes, as captures have them; -100-rules, as many rules on lists of 100 prefixes each,
which most packets pass all; -list-10k and -list-1M, one rule on a list of so many prefixes, which
takes every other packet; -16-rules-1M, as many rules on lists of a million prefixes in all, each
packet going anywhere. The curves are medians against the number of packets, and against the number
of links.

`--pcap FILE` decides the packets of a capture, too, and says where they went.
"""

from __future__ import annotations

import os
import statistics
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from timeit import Timer

from bench import capture, deciders, native
from bench.deciders import Call, Packets
from bench.measure import OURS, Options, Result, Sample, in_turn
from dataplane.decide.facts import Family
from dataplane.errors import MachineError
from dataplane.hotpath import Classifier

UNIT = "ns/packet"
RATIOS = "Ratios are of times: how many times as long Evenlink takes; less is better."
IN_CACHE, IN_MEMORY, OF_ALL_SIZES = 4096, 1 << 20, 1 << 16
SIZES = tuple(1 << power for power in range(6, 21, 2))
LINKS = (2, 4, 8, 16, 32, 64)
BEHIND: dict[Family, str] = {4: "", 6: "-ipv6"}
# By row: lists, and prefixes in all of them.
LISTS = {
    "100-rules": (100, 10_000),
    "list-10k": (1, 10_000),
    "list-1M": (1, 1_000_000),
    "16-rules-1M": (16, 1_000_000),
}

# Longer runs gave the same medians.
_LONGEST_S = 0.2
# The slow ones: so many packets a call.
_FEW = 64

Curves = dict[str, list[list[float]]]


def measure(options: Options) -> Result:
    """Nanoseconds a packet of each row, and the curves."""
    with one_core():
        many = {family: Packets.random(family, IN_MEMORY) for family in BEHIND}
        result = _rows(many, options)
        if not options.only:
            result.extra["curves"] = {
                "working_set": _working_set(many, options),
                "links": _links(many, options),
            }
        notes = [RATIOS]
        for path in options.pcaps:
            captured = _capture(path, options)
            notes += captured.extra.pop("notes", [])
            result.add(captured)
    result.extra.update(lower_is_better=True, notes=notes)
    return result


@contextmanager
def one_core() -> Iterator[None]:
    """Everything from here on runs on one core, and so do the processes that are started."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def timed(call: Call, packets: int, options: Options) -> float:
    """Nanoseconds a packet of a call that decides so many."""
    timer = Timer(call)
    once_s = min(timer.repeat(3, 1))
    times = max(1, int(min(options.seconds, _LONGEST_S) / once_s))
    return timer.timeit(times) / times / packets * 1e9


def _rows(many: Mapping[Family, Packets], options: Options) -> Result:
    calls: dict[str, tuple[Call, int]] = {}
    against: dict[str, str | None] = {}
    left_out: dict[str, str] = {}
    table = deciders.slots(2)
    for what, family in product(("", "-1M", "-sizes"), BEHIND):
        behind = what + BEHIND[family]
        against[f"floor{behind}"] = f"{OURS}{behind}"
        against[f"{OURS}{behind}"] = None
        if why := native.missing("floor.c"):
            left_out[f"floor{behind}"] = why
        if not options.wants(f"floor{behind}") and not options.wants(f"{OURS}{behind}"):
            continue
        packets = many[family] if what else many[family].first(IN_CACHE)
        if what == "-sizes":
            packets = Packets.of_all_sizes(family, OF_ALL_SIZES)
        for name, call in _with_floor(packets, table).items():
            calls[f"{name}{behind}"] = call, packets.count
    for name, rival in (("oracle", deciders.oracle), ("scapy", deciders.scapy)):
        try:
            calls[name] = rival(many[4].first(_FEW), table), _FEW
        except ImportError as fault:
            left_out[name] = f"the Python package {fault.name} is missing"
    for name, (lists, prefixes) in LISTS.items():
        row = f"{OURS}-{name}"
        against[row] = None
        if options.quick and prefixes > 10_000:
            left_out[row] = "its list takes seconds to build: not with --quick"
        elif options.wants(row):
            calls[row] = _through_lists(lists, prefixes, table), IN_CACHE

    def run(call: Call, count: int) -> Sample:
        return Sample(timed(call, count, options))

    runs = {name: partial(run, *call) for name, call in calls.items()}
    return in_turn(runs, UNIT, options, against=against, left_out=left_out)


def _with_floor(packets: Packets, table: bytes) -> dict[str, Call]:
    """Ours, and the floor where it can be compiled."""
    calls: dict[str, Call] = {OURS: deciders.ours(packets, deciders.program(table))}
    if not native.missing("floor.c"):
        calls["floor"] = deciders.floor(packets, table)
    return calls


def _through_lists(lists: int, prefixes: int, table: bytes) -> Call:
    program, spans = deciders.program_with_lists(lists, prefixes, table)
    return deciders.ours(Packets.random(4, IN_CACHE, spans if lists == 1 else ()), program)


def _working_set(many: Mapping[Family, Packets], options: Options) -> Curves:
    curves: Curves = {}
    for family, count in product(BEHIND, SIZES[:: 3 if options.quick else 1]):
        calls = _with_floor(many[family].first(count), deciders.slots(2))
        _add_points(curves, BEHIND[family], count, calls, count, options)
    return curves


def _links(many: Mapping[Family, Packets], options: Options) -> Curves:
    curves: Curves = {}
    for family, links in product(BEHIND, LINKS[:: 5 if options.quick else 1]):
        calls = _with_floor(many[family].first(IN_CACHE), deciders.slots(links))
        _add_points(curves, BEHIND[family], links, calls, IN_CACHE, options)
    return curves


def _add_points(
    curves: Curves, behind: str, x: int, calls: Mapping[str, Call], packets: int, options: Options
) -> None:
    """The median of each call, run in turn."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    options.progress.expect(options.runs)
    for number in range(options.runs):
        options.progress.step(f"curves at {x:,}, {number + 1} of {options.runs}")
        for name, call in calls.items():
            samples[name].append(timed(call, packets, options))
    for name, found in samples.items():
        curves.setdefault(f"{name}{behind}", []).append([x, round(statistics.median(found), 3)])


def _capture(path: Path, options: Options) -> Result:
    """One row of the packets of a file; beside it where they went, for people in `notes`."""
    row = f"{OURS}-{path.name}"
    try:
        found = capture.read(path)
        if not found.packets:
            raise MachineError(f"{path}: no IP packets")
    except MachineError as fault:
        return Result([], {row: str(fault)})
    classifier = Classifier(deciders.program(deciders.slots(2)))
    marks = array("I", bytes(4 * found.packets))
    decided = classifier.classify_batch(found.buffer, found.offsets, marks)
    counted = classifier.counters()
    reasons = {reason: count for reason, count in counted["reasons"].items() if count}
    shares = {
        f"link {link}": round(count / decided, 4) for link, count in counted["decisions"].items()
    }

    def run() -> Sample:
        call = partial(classifier.classify_batch, found.buffer, found.offsets, marks)
        return Sample(timed(call, found.packets, options))

    result = in_turn({row: run}, UNIT, options, against={row: None})
    for measured in result.rows:
        measured.extra = {"reasons": reasons, "shares": shares, "skipped": dict(found.skipped)}
    result.extra["notes"] = [
        f"{path.name}: {found.packets:,} packets; {_listed(reasons)}; {_listed(shares)}",
        *(f"{path.name}: {n:,} frames skipped: {kind}" for kind, n in found.skipped.items()),
    ]
    return result


def _listed(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
