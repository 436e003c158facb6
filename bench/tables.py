"""What do rules, prefixes and links cost: a packet, in process; a start, from the file; in memory?

Each row is a policy whose name says how it differs from the smallest: no rules, no list, two links.
Packets are UDP, 64 bytes, 262,144 of random addresses. No rule takes them but the last one, which
asks for the list, if there is one: every other packet goes to one of its prefixes.

    0-rules, 1-rule, 16-rules, 256-rules
    1k-prefixes, 1M-prefixes      in a list; 16 rules
    8-links, 64-links             16 rules

Behind the name: -ipv6, packets and prefixes of IPv6; -load, milliseconds from the file to the
program; -memory, MiB that the process takes more than before. look-up-1k and look-up-1M: finding
the lists that hold an address, and nothing else, for many addresses as a batch of packets does;
-waiting, each begins when the one before has ended. The curves go along rules, prefixes and links.
"""

from __future__ import annotations

import ctypes
import random
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import deciders, native
from bench.deciders import Call, Packets
from bench.hotpath import BEHIND, one_core, timed
from bench.measure import Options, Result, Row, Sample, in_turn
from bench.policies import Setup, opened, opening
from dataplane.decide.facts import Family
from dataplane.errors import Error

PACKETS = ADDRESSES = 1 << 18
MILLION = 1_000_000
SETUPS = {
    "0-rules": Setup(),
    "1-rule": Setup(1),
    "16-rules": Setup(16),
    "256-rules": Setup(256),
    "1k-prefixes": Setup(16, 1000),
    "1M-prefixes": Setup(16, MILLION),
    "8-links": Setup(16, links=8),
    "64-links": Setup(16, links=64),
}
# What the curves go along: how many, of which rows.
ALONG: dict[str, dict[int, str]] = {
    "rules": {0: "0-rules", 1: "1-rule", 16: "16-rules", 256: "256-rules"},
    "prefixes": {0: "16-rules", 1000: "1k-prefixes", MILLION: "1M-prefixes"},
    "links": {2: "16-rules", 8: "8-links", 64: "64-links"},
}
LOOK_UPS = {"look-up-1k": 1000, "look-up-1M": MILLION}
WAITING = "-waiting"

_NONE = ctypes.c_uint64(0)
_LOW_HALF = (1 << 64) - 1
_BYTES: dict[Family, int] = {4: 4, 6: 16}
_SLOW = "its list takes seconds to make: not with --quick"
# The first octet of an address, as one of global unicast has it; and where a packet has it.
_GLOBAL = bytes(0x20 | octet & 0x1F for octet in range(256))
_DESTINATION6 = 24


def measure(options: Options) -> Result:
    """Costs of packets, look-ups and starts, and the curves along rules, prefixes and links."""
    setups = {
        f"{name}{behind}": replace(setup, family=family)
        for name, setup in SETUPS.items()
        for family, behind in BEHIND.items()
    }
    slow = {n: _SLOW for n, s in setups.items() if options.quick and s.prefixes == MILLION}
    with TemporaryDirectory() as directory, one_core():
        files = {name: Path(directory, name) for name in setups if name not in slow}
        for name, below in files.items():
            below.mkdir()
            files[name] = setups[name].write(below)
        result = _packets(setups, files, slow, options)
        result.add(_look_ups(options))
        result.add(_starts(setups, files, slow, options))
    notes = list(_notes(result))
    result.extra.update(lower_is_better=True, notes=notes)
    if not options.only:
        result.extra["curves"] = _curves(result)
    return result


def _run(call: Call, count: int, options: Options) -> Sample:
    return Sample(timed(call, count, options))


def _packets(
    setups: Mapping[str, Setup],
    files: Mapping[str, Path],
    slow: Mapping[str, str],
    options: Options,
) -> Result:
    """Nanoseconds a packet."""
    sent: dict[tuple[Family, int], Packets] = {}
    runs: dict[str, Callable[[], Sample]] = {}
    for name, file in files.items():
        if options.wants(name):
            setup = setups[name]
            aim = setup.family, setup.prefixes
            sent[aim] = sent.get(aim) or _to(setup)
            call = deciders.ours(sent[aim], opened(file)[1])
            runs[name] = partial(_run, call, PACKETS, options)
    return in_turn(runs, "ns/packet", options, against=dict.fromkeys(runs), left_out=slow)


def _to(setup: Setup) -> Packets:
    """Every other packet goes to the list, and the others where its prefixes could be."""
    packets = Packets.random(setup.family, PACKETS, setup.spans())
    if setup.family == 6:
        octets = packets.buffer[_DESTINATION6 :: deciders.PACKET_BYTES]
        octets[:] = bytes(octets).translate(_GLOBAL)
    return packets


def _look_ups(options: Options) -> Result:
    """Nanoseconds an address."""
    setups = {
        f"{name}{how}{behind}": Setup(prefixes=count, family=family)
        for name, count in LOOK_UPS.items()
        for how in ("", WAITING)
        for family, behind in BEHIND.items()
        if options.wants(f"{name}{how}{behind}")
    }
    if setups and (why := native.missing("lookup.c")):
        return Result([], dict.fromkeys(setups, why))
    slow = {n: _SLOW for n, s in setups.items() if options.quick and s.prefixes == MILLION}
    with ExitStack() as stack:
        runs = {
            name: partial(_run, _finder(setup, stack, WAITING in name), ADDRESSES, options)
            for name, setup in setups.items()
            if name not in slow
        }
        return in_turn(runs, "ns/look-up", options, against=dict.fromkeys(runs), left_out=slow)


def _finder(setup: Setup, stack: ExitStack, waiting: bool) -> Call:
    """A call that looks addresses up, every other one of the list."""
    library = ctypes.CDLL(str(native.build("lookup.c", "-O3", "-shared", "-fPIC")))
    spans = setup.spans()
    ends = chain.from_iterable(spans)
    halves = (half for end in ends for half in (end >> 64, end & _LOW_HALF))
    packed = array("I", ends) if setup.family == 4 else array("Q", halves)
    family = f"ipv{setup.family}"
    make = getattr(library, f"lookup_open{setup.family}")
    make.restype = ctypes.c_void_p
    first, _ = packed.buffer_info()
    lists = ctypes.c_void_p(make(ctypes.c_void_p(first), ctypes.c_uint64(len(spans))))
    stack.callback(library.lookup_close, lists)
    found = ctypes.c_char_p(_addresses(setup.family, spans)), ctypes.c_uint64(ADDRESSES)
    if waiting:
        return partial(getattr(library, f"lookup_waiting_{family}"), lists, *found, _NONE)
    return partial(getattr(library, f"lookup_{family}"), lists, *found)


def _addresses(family: Family, spans: list[tuple[int, int]]) -> bytes:
    """One behind the other."""
    chance = random.Random(family)
    found = bytearray(chance.randbytes(ADDRESSES * _BYTES[family]))
    if family == 6:
        found[::16] = found[::16].translate(_GLOBAL)
    for at in range(0, len(found), 2 * _BYTES[family]):
        address = chance.randint(*chance.choice(spans))
        found[at : at + _BYTES[family]] = address.to_bytes(_BYTES[family], "big")
    return bytes(found)


def _starts(
    setups: Mapping[str, Setup],
    files: Mapping[str, Path],
    slow: Mapping[str, str],
    options: Options,
) -> Result:
    """Milliseconds from the file to the program, and MiB, each in a process of its own."""
    rows: dict[str, tuple[Row, Row]] = {}
    left_out = {}
    for name, setup in setups.items():
        both = f"{name}-load", f"{name}-memory"
        # Without a list, a policy is of both families.
        if not any(map(options.wants, both)) or (setup.family == 6 and not setup.prefixes):
            continue
        if name in slow:
            left_out.update(dict.fromkeys(both, slow[name]))
        else:
            rows[name] = Row(both[0], "ms", against=None), Row(both[1], "MiB", against=None)
    options.progress.expect(options.runs * len(rows))
    for number in range(options.runs):
        for name, (load, memory) in rows.items():
            options.progress.step(f"{load.name}, {number + 1} of {options.runs}")
            if load.name in left_out:
                continue
            try:
                found = opening(files["0-rules"], files[name])
            except Error as fault:
                left_out.update(dict.fromkeys((load.name, memory.name), str(fault)))
                continue
            load.samples.append(Sample(found.seconds * 1000))
            memory.samples.append(Sample(found.resident_mib))
            memory.extra = {"peak_mib": found.peak_mib, "lists_mib": found.lists_mib}
    made = [pair[kind] for kind in range(2) for pair in rows.values()]
    kept = [row for row in made if options.wants(row.name) and row.name not in left_out]
    return Result(kept, left_out)


def _curves(result: Result) -> dict[str, dict[str, list[list[float]]]]:
    """By what is counted and what it goes along, e.g. "load_by_rules": points of each series."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for what, along in ((what, along) for what in ("cost", "load", "memory") for along in ALONG):
        tail = "" if what == "cost" else f"-{what}"
        series = {"IPv4": ("", tail), "IPv6": (BEHIND[6], tail)}
        if what != "cost" and along != "prefixes":
            series = {"": ("", tail)}
        found[f"{what}_by_{along}"] = {
            label: points
            for label, behind in series.items()
            if (points := list(_points(result, ALONG[along], behind)))
        }
    for label, behind in (("look-up, IPv4", ""), ("look-up, IPv6", BEHIND[6])):
        places = {count: name for name, count in LOOK_UPS.items()}
        if points := list(_points(result, places, (behind, ""))):
            found["cost_by_prefixes"][label] = points
    return found


def _points(
    result: Result, places: Mapping[int, str], behind: tuple[str, str]
) -> Iterator[list[float]]:
    for count, name in places.items():
        family, tail = behind
        # Without a list, there is one row for both families.
        row = result.row(f"{name}{family}{tail}") or (result.row(f"{name}{tail}") if tail else None)
        if row is not None:
            yield [count, round(row.median, 3)]


def _notes(result: Result) -> Iterator[str]:
    """What one more rule costs."""
    costs = [row.median for name in ALONG["rules"].values() if (row := result.row(name))]
    if len(costs) == len(ALONG["rules"]):
        more = (rules - fewer for fewer, rules in pairwise(ALONG["rules"]))
        first, some, many = (
            f"{(cost - before) / rules:.2g} ns"
            for (before, cost), rules in zip(pairwise(costs), more, strict=True)
        )
        yield (
            f"The first rule costs {first} a packet, since packets are then read whole; each of "
            f"the next 15 {some}, and each of the next 240 {many}."
        )
