"""benchmarks.md and its pictures, from the JSON of the benchmarks that were run.

A benchmark that was not run has no section. Each section says when, where and how it was run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import picture
from bench.measure import shown

PAGE = "benchmarks.md"

# By benchmark: the heading, what was asked, and the picture's title.
SECTIONS: dict[str, tuple[str, str, str]] = {
    "hotpath": (
        "In process",
        "Nanoseconds for one packet, from its bytes to its mark, without the kernel: parsing, "
        "hashing, looking up; 4,096 packets in the processor's caches, or as the name says. "
        "`floor` is C that hashes and looks up, and nothing else.",
        "Cost of a decision",
    ),
    "tables": (
        "Rules, lists, links",
        "What a policy costs: nanoseconds for one of 262,144 packets, as above; with `-load`, "
        "milliseconds from the file to the program, as the daemon goes; with `-memory`, MiB of the "
        "whole process that this takes. Rules ask for interfaces, ports, DSCP and destinations; "
        "the last of 16 asks for a list of 1,000 or a million prefixes (/24 or /48), to which "
        "every other packet goes. `look-up`: finding the lists that hold an address, and nothing "
        "else, where what the next ones need is fetched meanwhile, as for a batch of packets; in "
        "`waiting` each begins when the one before has ended.",
        "Rules, lists, links",
    ),
    "queue": (
        "Packets through the router",
        "64-byte UDP in frames from a driver, 1,024 address pairs. All get a mark, or in the rows "
        "`evenlink-first` and `hmark+connmark` the first of each connection does and conntrack "
        "remembers. Counted is what arrives with a decision. The sender and all that the kernel "
        "does before the queue run on one core, what serves the queue on the other, and the "
        "fastest behind the queue come near to what that sender can do. In-kernel rivals use one "
        "core where a queue uses two, so the CPU time stands beside the rate: the sender's for a "
        "packet that it sent, the worker's for one that is done. Most of the kernel's softirq work "
        "is done in their time. `evenlink` is the daemon's engine behind one rule, as the other "
        "queues are; `callback` is its other engine; NetfilterQueue has neither fail-open nor GSO. "
        "`forward` marks nothing.",
        "Packets a second with a decision",
    ),
    "queue-offload": (
        "Packets from a cheaper source",
        "The same with packets that the sender's kernel cuts up 64 at a time, which costs less "
        "than the router: the core of the queue's worker is the limit. The 64 are of one address "
        "pair, as in the trains that large downloads make; in the table above no two neighbours "
        "are.",
        "Packets a second from a cheaper source",
    ),
    "newconn": (
        "New connections",
        "Every packet is a connection of its own, from 4,096 hosts to 1,024 addresses, tracked and "
        "masqueraded. The daemon is the real one; `forward` tracks and translates, and marks "
        "nothing.",
        "New connections a second",
    ),
    "tcp": (
        "One TCP stream",
        "One stream through the router, with segmentation offload; a packet in the CPU columns is "
        "1,448 bytes of it. Every packet is queued, or in `evenlink-first` the first one, by the "
        "whole daemon, against the same path tracked and masqueraded. For NetfilterQueue, which "
        "cannot ask for GSO, the kernel cuts the packets up before it queues them.",
        "One TCP stream",
    ),
    "latency": (
        "Latency",
        "What the queue adds to the round trip of a connection's first packet on an idle machine: "
        "`evenlink` sleeps between packets, `evenlink-spin` has `spin_us` set and keeps a core "
        "busy. `forward` and `forward+conntrack` are whole round trips.",
        "Latency",
    ),
    "footprint": (
        "Memory and start",
        "The daemon's resident memory, and the time from its start to its first verdict.",
        "Memory and start",
    ),
    "failover": (
        "A link dies and returns",
        "isp-b dies at a random moment; a trial counts until a new UDP connection of an address "
        "pair that was at home there is answered by isp-a, one being begun every 5 ms, and in the "
        "rows `return` from its revival until it is answered by isp-b again. `evenlink` and "
        "`mwan3-timing`: packets are silently dropped beyond the gateway; `carrier`: the carrier "
        "is lost. `udp`: until the last of eight old UDP flows is answered again.",
        "A link dies and returns",
    ),
}
BARS = ("queue", "newconn", "tcp")


def write(results: Path, where: Path) -> list[Path]:
    """Writes the page and its pictures there; their paths. MachineError without matplotlib."""
    found = {
        name: json.loads((results / f"{name}.json").read_text())
        for name in SECTIONS
        if (results / f"{name}.json").exists()
    }
    written = []
    pictures: dict[str, str] = {}
    for name, result in found.items():
        file = where / f"bench-{name}.svg"
        if name in BARS and result["rows"]:
            picture.bars(result, file, SECTIONS[name][2])
        elif result.get("curves"):
            picture.curves(result, file, SECTIONS[name][2])
        else:
            continue
        pictures[name] = file.name
        written.append(file)
    page = where / PAGE
    page.write_text("\n".join(_page(found, pictures)))
    return [page, *written]


def _page(found: Mapping[str, Any], pictures: Mapping[str, str]) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield "Rates are of the machine that is named; the ratios are what to believe. To repeat them:"
    yield ""
    yield "```sh"
    yield "make bench"
    yield "```"
    yield ""
    yield (
        "Rivals take turns, A B A B, in one run. A row is the median of all its runs, with the "
        "least and the most; a ratio is the median of ours to the rival's."
    )
    for name, result in found.items():
        heading, asked, _ = SECTIONS[name]
        yield from ("", f"## {heading}", "", asked, "", _machine(result["machine"]), "")
        if name in pictures:
            yield from (f"![{SECTIONS[name][2]}]({pictures[name]})", "")
        if result["rows"]:
            yield from _table(result)
        if result.get("dropped_at_80_percent") is not None:
            lost = result["dropped_at_80_percent"]
            sent = result["at_80_percent"]["sent"]
            yield from ("", f"At 80 % of its own rate, Evenlink lost {lost:,} of {sent:,} packets.")
        for note in result.get("notes", []):
            yield from ("", note)
        if result.get("left_out"):
            yield ""
            for row, why in result["left_out"].items():
                yield f"- Left out: `{row}`: {why}"
    yield ""


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['date'][:10]}, {machine['processor']}, {machine['cores']} cores, "
        f"Linux {machine['kernel'].split('-')[0]}, {machine.get('system', 'unknown')}, "
        f"Python {machine['python']}: `{machine['command']}`"
    )


def _table(result: Mapping[str, Any]) -> Iterator[str]:
    rows = result["rows"]
    ratios = {}
    for name, ratio in result["ratios"].items():
        ours, _, rival = name.partition("/")
        ratios[rival] = shown(ratio) if ours == "evenlink" else f"{shown(ratio)} ({ours})"
    spent = any(row.get("cpu_us_per_packet") for row in rows)
    known = {who for row in rows for who in row.get("cpu_us", {})}
    parts = [
        who for who in ("sender", "worker", "receiver", "ksoftirqd", "softirq") if who in known
    ]
    lost = any(row.get("dropped") is not None for row in rows)
    titles = ["", "median", "least", "most", "unit", "ours / it"]
    titles += (["CPU µs a packet"] if spent else []) + [f"of these {who}" for who in parts]
    titles += ["lost a run"] if lost else []
    yield f"| {' | '.join(titles)} |"
    yield "|---" + "|---:" * 3 + "|---" + "|---:" * (len(titles) - 5) + "|"
    for row in rows:
        cells = [f"`{row['name']}`"]
        cells += [_number(row[key]) for key in ("median", "min", "max")]
        cells += [row["unit"], ratios.get(row["name"], "")]
        if spent:
            cells.append(_number(row.get("cpu_us_per_packet")))
        cells += [_number(row.get("cpu_us", {}).get(who)) for who in parts]
        if lost:
            cells.append(_number(row.get("dropped")))
        yield f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    """Three digits that say something, at least."""
    if value is None:
        return ""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
