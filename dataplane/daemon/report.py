"""What `status` answers, gathered from the wish in force, the workers and the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dataplane.config.marks import Marks
from dataplane.config.model import DEFAULT_GROUP
from dataplane.daemon.engine import QueueEngine
from dataplane.daemon.history import LinkHistory, in_words, state_name, why
from dataplane.daemon.tally import Tally
from dataplane.decide.balance import GroupNow, weights
from dataplane.decide.chains import FALLBACK_COUNTER, WRONG_SOURCE_COUNTER
from dataplane.decide.copies import NOT_COPIED_COUNTER
from dataplane.decide.facts import FAMILIES
from dataplane.decide.wish import Wish
from dataplane.system import conntrack, nft


class RateMeter:
    """Rates from two readings of the interface counters."""

    def __init__(self) -> None:
        self._readings: list[tuple[float, dict[str, tuple[int, int]]]] = []

    def sample(self, now_s: float, counters: dict[str, tuple[int, int]]) -> None:
        """Takes a reading: interface -> bytes received and sent."""
        self._readings = [*self._readings[-1:], (now_s, counters)]

    def bits_per_second(self, interface: str) -> tuple[int, int]:
        """Received and sent between the last two readings; 0 until there are two."""
        if len(self._readings) < 2:
            return 0, 0
        (first_s, first), (last_s, last) = self._readings
        if interface not in first or interface not in last or last_s <= first_s:
            return 0, 0
        received, sent = (
            max(0, round((after - before) * 8 / (last_s - first_s)))
            for before, after in zip(first[interface], last[interface], strict=True)
        )
        return received, sent


def status_report(
    wish: Wish,
    history: Mapping[str, LinkHistory],
    health: Mapping[str, Mapping[str, Any]],
    engine: QueueEngine,
    rates: RateMeter,
    mended: int,
    tally: Tally,
) -> dict[str, Any]:
    """What `status --json` prints; docs/operate/commands.md lists its keys.

    `health` has by link what its targets said, the hold that is left, and faults.
    """
    marks = Marks(wish.config.mark_mask)
    wanted = weights(wish.config, wish.config.balance)
    total = sum(wanted.values())
    held = {family: table.shares() for family, table in wish.tables.items()}
    links = []
    for link in wish.config.links:
        state = wish.states[link.name]
        since = history[link.name].since
        heard = health.get(link.name, {})
        received, sent = rates.bits_per_second(link.interface)
        shares = {family: held[family].get(link.name, 0.0) for family in held}
        links.append(
            {
                "name": link.name,
                "interface": link.interface,
                "state": state_name(state),
                "since": datetime.fromtimestamp(since, UTC).isoformat("T", "seconds"),
                "why": why(state),
                "share_wanted": float(wanted.get(link.name, 0) / total),
                "share_slots": shares.get(4, shares.get(6, 0.0)),
                "share_slots_ipv6": shares.get(6, 0.0),
                "serves": any(wish.serves(link.name, family) for family in FAMILIES),
                "carries": [f"ipv{family}" for family in FAMILIES if state.way(family).alive],
                "connections": conntrack.count(marks.mark(wish.ids[link.name]), marks.mask),
                "rx_bps": received,
                "tx_bps": sent,
                "hold_ms": heard.get("hold_ms", 0),
                "targets": heard.get("targets", []),
            }
        )
    counted = engine.counters()
    kernel = nft.counters()
    return {
        "links": links,
        "queue": {
            "packets": counted["packets"],
            "dropped": counted["kernel_dropped"],
            "errors": counted["verdict_errors"] + counted["recv_errors"] + counted["enobufs"],
            "fallback": kernel.get(FALLBACK_COUNTER, 0),
            "waiting": counted["waiting"],
            "refused": counted["refused"],
            "decisions": {
                link.name: counted["decisions"].get(wish.ids[link.name], 0)
                for link in wish.config.links
            },
            "reasons": counted["reasons"],
            "granted": {str(number): one for number, one in engine.granted().items()},
        },
        "wrong_source": kernel.get(WRONG_SOURCE_COUNTER, 0),
        "not_copied": kernel.get(NOT_COPIED_COUNTER, 0),
        "mended": mended,
        "rules": _rules(wish, tally.totals(counted["rules"])),
        "groups": [_group(now) for now in wish.groups.values()],
        "faults": [*_faults(wish, engine, kernel), *_target_faults(health)],
    }


def _rules(wish: Wish, packets: Mapping[str, int]) -> list[dict[str, Any]]:
    """The rules in their order, and the default group, which takes what they leave."""
    found = [
        {
            "name": rule.name,
            "line": rule.line,
            "use": rule.use,
            "packets": packets.get(rule.name, 0),
        }
        for rule in wish.config.rules
    ]
    rest = packets.get(DEFAULT_GROUP, 0)
    return [*found, {"name": DEFAULT_GROUP, "line": 0, "use": DEFAULT_GROUP, "packets": rest}]


def _group(now: GroupNow) -> dict[str, Any]:
    return {
        "name": now.group.name,
        "method": now.group.method.value,
        "links": list(now.group.links),
        "preferred": {f"ipv{family}": now.preferred.get(family) for family in FAMILIES},
    }


def _faults(wish: Wish, engine: QueueEngine, kernel: Mapping[str, int]) -> list[str]:
    found = [
        f"link {name} is {in_words(wish, name)}"
        for name, state in wish.states.items()
        if state_name(state) == "down" or (state.alive and why(state))
    ]
    if not engine.alive():
        found.append("a queue worker has stopped; the kernel settles new connections by itself")
    if not kernel:
        found.append("the nft table cannot be read")
    return found


def _target_faults(health: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"link {name}: {fault}" for name, heard in health.items() for fault in heard["faults"]]
