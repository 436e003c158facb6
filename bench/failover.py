"""How soon does a dead link's traffic flow by another, and how soon does it return?

    client ── router ─┬─ isp-a ─┬─ server, 1.1.1.1
                      └─ isp-b ─┘          isp-b dies

Every trial kills isp-b at a random moment and counts until a new UDP connection of an address pair
that was at home there is answered by isp-a; one is begun every 5 ms. Then isp-b is revived, and
the same is counted until such a pair is answered by isp-b. `evenlink` and `mwan3-timing` have a
path that is silently dead beyond the gateway, the `carrier` rows a lost carrier. `udp` is the time
until the last of eight old UDP flows is answered again.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

from bench.measure import OURS, Options, Result, Row, Sample
from bench.path import missing
from bench.rivals import tracking
from dataplane.errors import Error
from dataplane.lab import Lab, faults, uplinks
from dataplane.lab.calling import Caller
from dataplane.lab.failover import KEPT, NeverError, Outage, Told, outage
from dataplane.lab.faults import Fault
from dataplane.lab.namespaces import PYTHON, LabError
from dataplane.lab.traffic import serve
from dataplane.lab.witness import Witness

TOPOLOGY = uplinks(10_000_000, 20_000_000, shaped=False, families=(4,))
DYING = "isp-b"
NEVER_S, QUICK_NEVER_S = 20.0, 2.0
CARRIER, PATH = "evenlink-carrier", OURS
_PORT = 5001
_MANY, _QUICK_LIMIT_S, _LIMIT_S = 10, 30.0, 120.0
_UNKNOWN = "nexthop"

NOTES = [
    "Evenlink's file has `hold_ms = 0`, so that a link that dies in every trial is taken back "
    "without a hold; all else is as it comes. A link is back after five good rounds.",
    "`nexthop-carrier` is one multipath route with `ignore_routes_with_linkdown`, and address "
    "translation. `mwan3-timing` is a loop with mwan3's default timing, and no more of it: a ping "
    "to 1.1.1.1 by each link, 4 s of patience, 10 s of sleep, down after five. It is started anew "
    "after each trial, so its return is not measured.",
]


@contextmanager
def _evenlink(lab: Lab) -> Iterator[Told]:
    lab.run(lab.file(probe={"hold_ms": 0}))
    yield lambda _: None


@contextmanager
def _nexthop(lab: Lab) -> Iterator[Told]:
    """One route over both links, by the address pair; a hop without carrier is left out."""
    _forwarding(lab)
    lab.router.set({"net/ipv4/fib_multipath_hash_policy": 0})
    for which in ("all", "default", *(link.interface for link in TOPOLOGY.links)):
        lab.router.set({f"net/ipv4/conf/{which}/ignore_routes_with_linkdown": 1})
    hops = [tracking.Tracked(*each) for each in _hops()]
    lab.router.run("ip", *tracking.route(hops))
    yield lambda _: None


@contextmanager
def _mwan3(
    lab: Lab, interval_s: float = tracking.INTERVAL_S, timeout_s: float = tracking.TIMEOUT_S
) -> Iterator[Told]:
    """The tracker; it is started anew when the fault is mended, else it would need a minute."""
    _forwarding(lab)
    running: list[subprocess.Popen[str]] = []

    def start() -> None:
        words = [",".join(map(str, each)) for each in _hops()]
        command = (PYTHON, "-m", "bench.rivals.tracking", f"{interval_s:g}", f"{timeout_s:g}")
        tracker = lab.router.start(*command, *words, stdout=subprocess.PIPE)
        running.append(tracker)
        assert tracker.stdout is not None
        if tracker.stdout.readline().strip() != "ready":
            raise LabError("the tracker did not start")

    def end() -> None:
        for tracker in running:
            tracker.kill()
            tracker.wait()
        running.clear()

    def told(stage: str) -> None:
        if stage == "mended":
            end()
            start()

    start()
    try:
        yield told
    finally:
        end()


def _hops() -> list[tuple[str, str, int]]:
    """Interface, gateway and weight of each link."""
    least = min(link.capacity_bps for link in TOPOLOGY.links)
    return [
        (link.interface, str(link.gateway(4)), link.capacity_bps // least)
        for link in TOPOLOGY.links
    ]


def _forwarding(lab: Lab) -> None:
    """Packets are forwarded, and get the address of the link that they leave by."""
    lab.router.set({"net/ipv4/ip_forward": 1})
    for link in TOPOLOGY.links:
        rule = f"-t nat -A POSTROUTING -o {link.interface} -j MASQUERADE"
        lab.router.run("iptables", *rule.split())


@dataclass(frozen=True, slots=True)
class Subject:
    """One who serves in a lab of its own, and one way of dying.

    `rows`: which figure of an outage goes into which row; `against` which of ours they compare
    with. Of `_MANY` trials it takes `share_of_many`.
    """

    serve: Callable[[Lab], AbstractContextManager[Told]]
    fault: Fault
    rows: Mapping[str, Callable[[Outage], float]]
    against: Mapping[str, str] = field(default_factory=dict)
    kept: int = 0
    within_s: float = 1.0
    share_of_many: int = _MANY
    quick: bool = True

    def trials(self, runs: int) -> int:
        return max(1, runs * self.share_of_many // _MANY)


SUBJECTS = (
    Subject(
        _evenlink,
        faults.dropping,
        {
            PATH: lambda seen: seen.detected_ms,
            "evenlink-udp": lambda seen: seen.udp_back_ms,
            "evenlink-return": lambda seen: seen.returned_ms,
        },
        kept=KEPT,
    ),
    Subject(
        _evenlink,
        faults.no_carrier,
        {
            CARRIER: lambda seen: seen.detected_ms,
            f"{CARRIER}-udp": lambda seen: seen.udp_back_ms,
            f"{CARRIER}-return": lambda seen: seen.returned_ms,
        },
        kept=KEPT,
    ),
    Subject(
        _nexthop,
        faults.no_carrier,
        {
            "nexthop-carrier": lambda seen: seen.detected_ms,
            "nexthop-carrier-return": lambda seen: seen.returned_ms,
        },
        {"nexthop-carrier": CARRIER, "nexthop-carrier-return": f"{CARRIER}-return"},
    ),
    Subject(
        _mwan3,
        faults.dropping,
        {"mwan3-timing": lambda seen: seen.detected_ms},
        {"mwan3-timing": PATH},
        within_s=tracking.INTERVAL_S,
        share_of_many=1,
        quick=False,
    ),
)


@dataclass(slots=True)
class Standing:
    """A subject that serves."""

    subject: Subject
    caller: Caller
    told: Told

    def trial(self, limit_s: float, fault: Fault | None = None) -> Outage:
        subject = self.subject
        with outage(
            self.caller,
            DYING,
            fault or subject.fault,
            limit_s=limit_s,
            within_s=subject.within_s,
            kept=subject.kept,
            told=self.told,
        ) as found:
            pass
        return found


def stand(stack: ExitStack, subject: Subject) -> Standing:
    """Builds its lab, and lets it serve there until the stack is closed."""
    lab = stack.enter_context(Lab(TOPOLOGY))
    serve(lab, _PORT)
    witness = stack.enter_context(Witness(lab))
    caller = stack.enter_context(Caller(lab, witness, _PORT))
    return Standing(subject, caller, stack.enter_context(subject.serve(lab)))


def measure(options: Options) -> Result:
    """Trials in turn; the tracker, which needs a minute for one, has one of ten."""
    rows = {
        name: Row(name, "ms", against=subject.against.get(name))
        for subject in SUBJECTS
        for name in subject.rows
    }
    reasons: dict[str, str] = {}
    why = missing("iptables", "conntrack", "ping")
    wanted = [s for s in SUBJECTS if any(options.wants(name) for name in s.rows)]
    if why:
        return Result([], {name: why for name in rows if options.wants(name)})
    for subject in [s for s in wanted if options.quick and not s.quick]:
        reasons.update(dict.fromkeys(subject.rows, "a trial takes a minute; not in a quick run"))
        wanted.remove(subject)
    options.progress.expect(sum(subject.trials(options.runs) for subject in wanted))
    limit_s = _QUICK_LIMIT_S if options.quick else _LIMIT_S
    with ExitStack() as stack:
        standing: dict[int, Standing] = {}
        for number in range(options.runs):
            for place, subject in enumerate(wanted):
                if number >= subject.trials(options.runs) or not reasons.keys().isdisjoint(
                    subject.rows
                ):
                    continue
                first = next(iter(subject.rows))
                options.progress.step(f"{first}, {number + 1} of {subject.trials(options.runs)}")
                try:
                    if place not in standing:
                        standing[place] = stand(stack, subject)
                    seen = standing[place].trial(limit_s)
                except (Error, OSError, subprocess.SubprocessError) as fault:
                    reasons.update(dict.fromkeys(subject.rows, str(fault)))
                    continue
                for name, figure in subject.rows.items():
                    rows[name].samples.append(Sample(figure(seen)))
        for one in standing.values():
            if one.subject.serve is _nexthop and options.wants(_UNKNOWN):
                reasons[_UNKNOWN] = _never(one, QUICK_NEVER_S if options.quick else NEVER_S)
    found = [row for row in rows.values() if row.samples and options.wants(row.name)]
    left_out = {name: text for name, text in reasons.items() if options.wants(name)}
    return Result(
        [row for row in found if row.name not in left_out],
        left_out,
        {"lower_is_better": True, "notes": NOTES},
    )


def _never(standing: Standing, limit_s: float) -> str:
    """Carrier says nothing of a path that is dead beyond its gateway."""
    try:
        seen = standing.trial(limit_s, faults.dropping)
    except NeverError:
        return (
            f"never within {limit_s:g} s of a path's death beyond the gateway, which keeps carrier"
        )
    except Error as fault:
        return str(fault)
    return f"a path that is dead beyond its gateway was left after {seen.detected_ms:.0f} ms"
