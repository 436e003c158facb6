"""How much of one TCP stream passes?

    sender: iperf3 ──veth──► router: conntrack or not, a mark or not ──veth──► sink: iperf3

With segmentation offload, so that a packet has up to 64 KiB. The sender and the router run on one
core, the sink and the queue's worker on the other. What comes in by an interface is steered to the
core that it belongs to (RPS), as the queues of a network card do with the packets of one stream.
Without that, the rows `-unsteered`, both cores work on the stream at a time and get it out of
order: the sender repeats thousands of segments a second, and plain forwarding has two cores where
a queue's worker needs one of them.

`evenlink` and its rivals get every packet of the sender's. `evenlink-first` is the daemon as
`evenlink run` starts it, `forward+conntrack` the same path, tracked and masqueraded.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.cpu import spent_s
from bench.measure import OURS, Options, Result, Sample, in_turn
from bench.path import SERVER, Path3, missing
from bench.rivals import Rival, Serving, daemon, kernel, queued
from bench.sender import sender_core, worker_core
from dataplane.lab.namespaces import LabError

UNIT = "Gbit/s"
FORWARD, FIRST, TRACKED = "forward", "evenlink-first", "forward+conntrack"
UNSTEERED = "-unsteered"
_SEGMENT_BYTES = 1448  # what a packet on a wire holds of the stream
_PORT = 5201
_STARTS_S = 5.0
_LOOK_S = 0.01


@dataclass(frozen=True, slots=True)
class Stream:
    """What iperf3 saw of one stream."""

    gbit_s: float
    packets: float
    retransmits: int
    cpu_s: dict[str, float]


def _known() -> dict[str, Rival]:
    every = {rival.name: rival for rival in (*kernel.RIVALS, *queued.RIVALS)}
    first = {rival.name: rival for rival in daemon.RIVALS}
    names = (FORWARD, OURS, "nfq-c-perpacket", "netfilterqueue-python")
    chosen = {name: every[name] for name in names}
    return {**chosen, FIRST: first[OURS], TRACKED: first[FORWARD]}


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


def stream(path: Path3, seconds: int) -> Stream:
    """One stream from the sender to the sink. LabError with iperf3's words."""
    server = path.sink.start("iperf3", "--server", "--one-off", stderr=subprocess.PIPE)
    try:
        _wait_listening(path)
        command = ["iperf3", "--client", SERVER, "--json", "--time", str(seconds)]
        command += ["--affinity", f"{sender_core()},{worker_core()}"]
        done = path.sender.run(*command, check=False)
    finally:
        server.kill()
        server.wait()
        assert server.stderr is not None
        server.stderr.close()
    said: dict[str, Any] = json.loads(done.stdout or "{}")
    if done.returncode or "end" not in said:
        raise LabError(f"iperf3: {said.get('error') or done.stderr.strip()}")
    received, cpu = said["end"]["sum_received"], said["end"]["cpu_utilization_percent"]
    return Stream(
        received["bits_per_second"] / 1e9,
        received["bytes"] / _SEGMENT_BYTES,
        said["end"]["sum_sent"]["retransmits"],
        {
            "sender": cpu["host_total"] / 100 * received["seconds"],
            "receiver": cpu["remote_total"] / 100 * received["seconds"],
        },
    )


def _wait_listening(path: Path3) -> None:
    end = time.monotonic() + _STARTS_S
    filters = ("state", "listening", "sport", "=", f":{_PORT}")
    while not path.sink.run("ss", "-Hnt", *filters).stdout:
        if time.monotonic() > end:
            raise LabError("iperf3 does not listen")
        time.sleep(_LOOK_S)


def _run(path: Path3, rival: Rival, seconds: int, retransmits: list[int]) -> Sample:
    with rival.serve(path) as serving:
        before = _worker_s(serving)
        seen = stream(path, seconds)
        spent = {**seen.cpu_s}
        spent |= {who: now - before[who] for who, now in _worker_s(serving).items()}
    retransmits.append(seen.retransmits)
    each = {who: spent_s_ * 1e6 / seen.packets for who, spent_s_ in spent.items()}
    return Sample(seen.gbit_s, sum(each.values()), each)


def _worker_s(serving: Serving) -> dict[str, float]:
    """The processes that serve, and the kernel's threads that do what no process did."""
    return {who: s for who, s in spent_s(serving.processes).items() if who != "softirq"}


def measure(options: Options) -> Result:
    """Steered, and, unless a quick answer is wanted, unsteered."""
    rivals = _known()
    rows = {name: (rival, True) for name, rival in rivals.items()}
    if not options.quick:
        for name in (FORWARD, OURS, FIRST, TRACKED):
            rows[name + UNSTEERED] = rivals[name], False
    why = missing("iperf3", "ss", "tee")
    reasons = {name: said for name, (rival, _) in rows.items() if (said := why or rival.missing())}
    seconds = max(1, round(options.seconds))
    repeated: dict[str, list[int]] = {name: [] for name in rows}
    runs: dict[str, Callable[[], Sample]] = {}
    with ExitStack() as stack:
        for name, (rival, steered) in rows.items():
            if name in reasons or not options.wants(name):
                continue
            # One each: where rules for routing were once, the kernel looks for them for ever.
            path = stack.enter_context(Path3(links=2))
            try:
                if steered:
                    steer(path)
            except LabError as fault:
                reasons[name] = str(fault)
            runs[name] = partial(_run, path, rival, seconds, repeated[name])
        result = in_turn(runs, UNIT, options, against=_against(), left_out=reasons)
    for row in result.rows:
        row.extra["retransmits"] = int(statistics.median(repeated[row.name]))
    return result


def _against() -> dict[str, str | None]:
    ours = {FIRST: None, TRACKED: FIRST}
    for name in (FORWARD, TRACKED):
        ours[name + UNSTEERED] = (ours.get(name) or OURS) + UNSTEERED
    return {**ours, OURS + UNSTEERED: None, FIRST + UNSTEERED: None}
