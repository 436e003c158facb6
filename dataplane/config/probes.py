"""[probe] and [[link.NAME.probe]] → probes: what is asked, how often, what answers decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from ipaddress import IPv6Address
from typing import TypeVar

from dataplane.config import keys, units
from dataplane.config.model import Config, Group, Probe, ProbeKind, Target
from dataplane.config.tables import Table
from dataplane.config.targets import DEFAULTS, LEGAL, READERS, identity

Threshold = TypeVar("Threshold", int, float)

MOST_PROBES = 8
MOST_TARGETS = 16
# How often is asked where each byte costs, or each question is a whole connection.
SPARING_INTERVAL_MS = 5000
MOST_HOLD_MS = 24 * 3600 * 1000

_PLAIN = Probe()
_PLAIN_HOLD_MS = Config(lan=(), links=(), balance=Group("default", ())).hold_ms


@dataclass(frozen=True, slots=True)
class Default:
    """What [probe] says: the probe of each link that has none of its own, and the longest hold."""

    probe: Probe
    interval_given: bool
    hold_ms: int

    def of(self, metered: bool) -> Probe:
        """The probe of a link."""
        if metered and not self.interval_given:
            return replace(self.probe, interval_ms=SPARING_INTERVAL_MS)
        return self.probe


def read_default(table: Table, ipv6: bool) -> Default:
    """[probe]. `ipv6` is what the file says of it: whether IPv6 targets are ever asked."""
    table.refuse_others(keys.DEFAULT_PROBE)
    return Default(
        probe=_read_probe(table, metered=False, ipv6=ipv6),
        interval_given="interval_ms" in table,
        hold_ms=table.take("hold_ms", units.integer(0, MOST_HOLD_MS), _PLAIN_HOLD_MS),
    )


def read_probes(link: Table, default: Default, *, metered: bool, ipv6: bool) -> tuple[Probe, ...]:
    """The probes of one link: its own ones, or else what [probe] says, or none."""
    probing = link.take("probes", _probing, True)
    tables = link.tables("probe")
    if "probe" in link and not probing:
        link.fault("probes", "expected true, since probes of this link are in the file, got false")
    if len(tables) > MOST_PROBES:
        link.fault("probe", f"expected at most {MOST_PROBES}, got {len(tables)}", MOST_PROBES)
    own = []
    for table in tables:
        table.refuse_others(keys.PROBE)
        own.append(_read_probe(table, metered=metered, ipv6=ipv6))
    if own:
        return tuple(own)
    return (default.of(metered),) if probing else ()


def _probing(value: object) -> bool:
    if isinstance(value, dict | list):
        raise units.refuse("true or false, with what is asked in [[link.NAME.probe]]", value)
    return units.flag(value)


def _read_probe(table: Table, *, metered: bool, ipv6: bool) -> Probe:
    # By a kind that is wrong, or was on a line that is not TOML, no target is judged.
    known = "kind" not in table and table.demanding
    kind = table.take("kind", units.member(ProbeKind), _PLAIN.kind if known else None)
    targets = _read_targets(table, kind, ipv6) if kind else None
    need = table.take("need", units.integer(1, MOST_TARGETS), _PLAIN.need)
    if targets is not None and need > (most := _most_of_a_family(targets)):
        table.fault("need", f"expected at most {most}, the targets of one family, got {need}")
    timeout_ms = table.take("timeout_ms", units.integer(10, 60_000), _PLAIN.timeout_ms)
    loss_down, loss_up = _read_thresholds(
        table,
        ("loss_down", units.number(Decimal("0.001"), Decimal(1))),
        ("loss_up", units.number(Decimal(0), Decimal(1))),
        lambda down: down / 2,
    )
    latency = units.integer(1, 60_000)
    latency_down_ms, latency_up_ms = _read_thresholds(
        table,
        ("latency_down_ms", latency),
        ("latency_up_ms", latency),
        lambda down: max(down * 3 // 4, 1),
    )
    if timeout_ms is not None and latency_down_ms is not None and latency_down_ms > timeout_ms:
        table.fault(
            "latency_down_ms",
            f"expected at most timeout_ms, which is {timeout_ms}: a later answer is none; "
            f"got {latency_down_ms}",
        )
    sparing = metered or kind is ProbeKind.HTTP
    usual_ms = SPARING_INTERVAL_MS if sparing else _PLAIN.interval_ms
    return Probe(
        kind=kind or _PLAIN.kind,
        targets=targets or (),
        need=need,
        interval_ms=table.take("interval_ms", units.integer(100, 3_600_000), usual_ms),
        timeout_ms=timeout_ms,
        down=table.take("down", units.integer(1, 100), _PLAIN.down),
        up=table.take("up", units.integer(1, 100), _PLAIN.up),
        loss_down=loss_down,
        loss_up=loss_up,
        latency_down_ms=latency_down_ms,
        latency_up_ms=latency_up_ms,
    )


def _read_thresholds(
    table: Table,
    leave: tuple[str, Callable[[object], Threshold]],
    come_back: tuple[str, Callable[[object], Threshold]],
    usual: Callable[[Threshold], Threshold],
) -> tuple[Threshold | None, Threshold | None]:
    """A pair of keys; the first may be alone, and `usual` then makes the second of it."""
    (down, read_down), (up, read_up) = leave, come_back
    worst = table.take(down, read_down, None)
    best = table.take(up, read_up, None)
    if up in table:
        table.demand(down, f"what takes the link out, since {up} is given")
        if worst is not None and best is not None and best > worst:
            table.fault(up, f"expected at most {down}, which is {worst:g}, got {best:g}")
    elif worst is not None:
        best = usual(worst)
    return worst, best


def _read_targets(table: Table, kind: ProbeKind, ipv6: bool) -> tuple[Target, ...] | None:
    """None where it is not known which targets there are, because some are wrong or missing."""
    if "targets" not in table:
        if kind not in DEFAULTS:
            table.demand("targets", f"a list of {LEGAL[kind]}")
        return DEFAULTS.get(kind)
    taken = table.take_all("targets", "targets", READERS[kind])
    if table.length("targets") > MOST_TARGETS:
        table.fault("targets", f"expected at most {MOST_TARGETS}, got {table.length('targets')}")
    seen = set()
    for index, target in taken:
        same = identity(target)
        if same in seen:
            got = units.show(target.text)
            table.fault("targets", f"expected each target once, got {got} again", index)
        seen.add(same)
    if not taken or len(taken) < table.length("targets"):
        return None
    targets = tuple(target for _, target in taken)
    beyond = [target for target in targets if not target.gateway]
    if not ipv6 and beyond and all(isinstance(one.address, IPv6Address) for one in beyond):
        table.fault(
            "targets",
            "expected an IPv4 address or a host name among them, since ipv6 = false, "
            "got IPv6 addresses alone",
        )
    return targets


def _most_of_a_family(targets: tuple[Target, ...]) -> int:
    """How many targets can be asked by one family; a name may have addresses of both."""
    beyond = [target for target in targets if not target.gateway]
    six = sum(isinstance(target.address, IPv6Address) for target in beyond)
    names = sum(target.name is not None for target in beyond)
    return max(len(beyond) - six, six + names, 1)
