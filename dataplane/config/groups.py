"""[balance] and [group.NAME] → groups: which links, by which method, with which of its options."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches

from dataplane.config import keys, units
from dataplane.config.marks import Marks
from dataplane.config.model import (
    DEFAULT_GROUP,
    Failback,
    Fields,
    Group,
    Link,
    Method,
    Queue,
    QueueMode,
    Sticky,
)
from dataplane.config.tables import Table, judge_names

MOST_GROUPS = 64

_PLAIN = Group(DEFAULT_GROUP, ())
_FULL = 'a number from 0.1 to 1, or a percentage such as "90%"'
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?) ?%", re.ASCII)

# What reads the rates of links, or their probes.
_BY_RATE = frozenset({Method.OVERFLOW, Method.LEAST_USED})
_IN_TURN = frozenset({Method.NTH, Method.RANDOM})

# Options and the methods that have a use for them; the reason why others have none.
_OPTIONS: Mapping[str, frozenset[Method]] = {
    "fields": frozenset({Method.PCC}),
    "symmetric": frozenset({Method.PCC}),
    "sticky": frozenset(Method) - {Method.PCC, Method.ECMP},
    "full": frozenset({Method.OVERFLOW}),
    "margin_ms": frozenset({Method.LOWEST_LATENCY}),
}
_REASONS = {
    ("fields", Method.ECMP): "since the kernel hashes what it hashes",
    ("symmetric", Method.ECMP): "since the kernel hashes what it hashes",
    ("sticky", Method.PCC): "by which the same fields lead to the same link at any time",
    ("sticky", Method.ECMP): "since the kernel decides and remembers nobody",
}


@dataclass(frozen=True, slots=True)
class Around:
    """What the rest of the file says: links, the queue, and the mask if it is known."""

    links: Sequence[Link]
    queue: Queue
    mask: int | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(link.name for link in self.links)


def read_groups(balance: Table, tables: Table, around: Around) -> tuple[Group, tuple[Group, ...]]:
    """The default group, and the named ones in the order of the file."""
    default = _read_group(DEFAULT_GROUP, balance, around)
    groups = []
    for name in tables.names():
        table = tables.table(name)
        if "links" not in table:
            table.demand("links", "the names of this group's links")
        groups.append(_read_group(name, table, around))
    judge_names(tables, {name.lower(): f"link {name}" for name in around.names}, "group")
    if len(groups) > MOST_GROUPS:
        beyond = groups[MOST_GROUPS].name
        tables.fault(beyond, f"expected at most {MOST_GROUPS} groups, got {len(groups)}")
    _judge_marks(balance, tables, (default, *groups), around)
    return default, tuple(groups)


def _read_group(name: str, table: Table, around: Around) -> Group:
    table.refuse_others(keys.GROUP)
    named = table.take_all("links", "names of links", units.text)
    for index, link in named:
        if table.demanding and around.links and link not in around.names:
            table.fault("links", nearest("link", link, around.names), index)
    links = tuple(dict.fromkeys(link for _, link in named))
    if len(links) < len(named):
        for place, (index, link) in enumerate(named):
            if link in [before for _, before in named[:place]]:
                got = units.show(link)
                table.fault("links", f"expected each name once, got {got} again", index)
    if name == DEFAULT_GROUP and not links:
        links = around.names
    # By a method that is wrong, or was on a line that is not TOML, no option is judged.
    known = "method" not in table and table.demanding
    method = table.take("method", units.member(Method), _PLAIN.method if known else None)
    group = Group(
        name=name,
        links=links,
        method=method or _PLAIN.method,
        fields=table.take("fields", units.member(Fields), _PLAIN.fields),
        symmetric=table.take("symmetric", units.flag, _PLAIN.symmetric),
        sticky=table.take("sticky", units.member(Sticky), None),
        sticky_ms=table.take("sticky_time", units.duration(1, 24 * 3600), _PLAIN.sticky_ms),
        full=table.take("full", _full, _PLAIN.full),
        margin_ms=table.take("margin_ms", units.integer(0, 60_000), _PLAIN.margin_ms),
        failback=table.take("failback", units.member(Failback), None),
    )
    if method is not None:
        _judge_options(table, group)
        _judge_queue(table, group, around.queue)
        _judge_links(table, group, around)
    return group


def _full(value: object) -> float:
    if isinstance(value, str):
        if not (found := _PERCENT.fullmatch(value)):
            raise units.refuse(_FULL, value)
        number = Decimal(found[1]) / 100
    elif isinstance(value, int | Decimal) and not isinstance(value, bool):
        number = Decimal(value)
    else:
        raise units.refuse(_FULL, value)
    if not number.is_finite() or not Decimal("0.1") <= number <= 1:
        raise units.refuse(_FULL, value)
    return float(number)


def _judge_options(table: Table, group: Group) -> None:
    """Each option has a use with some methods only."""
    for key, methods in _OPTIONS.items():
        if key not in table or group.method in methods:
            continue
        if key == "symmetric" and not group.symmetric:
            continue
        legal = units.either([units.show(one.value) for one in Method if one in methods])
        reason = _REASONS.get((key, group.method), "which has no use for it")
        table.fault(
            key, f"expected method = {legal}, got {units.show(group.method.value)}, {reason}"
        )
    if "sticky_time" in table and "sticky" not in table and table.demanding:
        table.fault("sticky_time", "expected sticky beside it, else nobody is remembered")


def _judge_queue(table: Table, group: Group, queue: Queue) -> None:
    """Each worker of the queue counts and remembers by itself."""
    got = units.show(group.method.value)
    if group.method is Method.NTH and queue.mode is QueueMode.EVERY:
        table.fault(
            "method",
            'expected another method or queue.mode = "first", since "every" does not go with nth: '
            f"a connection that pauses would take a turn again, got {got}",
        )
    workers = queue.workers
    if workers <= 1:
        return
    apart = f"since each of {workers} workers counts by itself ([queue] workers)"
    if group.method in _IN_TURN:
        table.fault("method", f"expected another method or one worker, {apart}, got {got}")
    if group.sticky is not None:
        # The kernel spreads by addresses and protocol: a pair's TCP and UDP meet different workers.
        apart = f"since each of {workers} workers remembers by itself ([queue] workers)"
        table.fault("sticky", f"expected one worker, {apart}, got {units.show(group.sticky.value)}")


def _judge_links(table: Table, group: Group, around: Around) -> None:
    """What a method must know of each link."""
    if not table.demanding:
        return
    method = units.show(group.method.value)
    for link in around.links:
        if link.name not in group.links:
            continue
        if group.method in _BY_RATE:
            if link.download_bps is None and link.share is not None:
                table.fault(
                    "method",
                    f"expected capacity or download in [link.{link.name}], since {method} "
                    "compares rates, got its share only",
                )
            others = [
                one.name
                for one in around.links
                if one is not link and link.interface and one.interface == link.interface
            ]
            if others:
                table.fault(
                    "method",
                    f"expected link {link.name} to have its interface to itself, since {method} "
                    f"measures rates by interface, got {link.interface}, which is link "
                    f"{others[0]}'s too",
                )
        if group.method is Method.LOWEST_LATENCY and not link.probes:
            table.fault(
                "method",
                f"expected probes in [link.{link.name}], since {method} goes by their answers, "
                "got probes = false",
            )


def _judge_marks(balance: Table, tables: Table, groups: Sequence[Group], around: Around) -> None:
    """Groups by ecmp have numbers of their own, from the same supply as links."""
    if around.mask is None:
        return
    most = Marks(around.mask).last_link
    by_kernel = [group for group in groups if group.method is Method.ECMP]
    if len(around.links) > most or len(around.links) + len(by_kernel) <= most:
        return
    beyond = by_kernel[most - len(around.links)]
    table = balance if beyond.name == DEFAULT_GROUP else tables.table(beyond.name)
    table.fault(
        "method",
        f"expected at most {most} links and groups by ecmp together, as mark_mask can tell, got "
        f"{len(around.links)} and {len(by_kernel)}",
    )


def nearest(what: str, name: str, names: Sequence[str]) -> str:
    """What to say of a name that nothing has."""
    near = get_close_matches(name, names, 1)
    if near:
        legal = f'the nearest one is "{near[0]}"'
    elif len(names) > 8:
        legal = f"expected one of {len(names)}, such as {names[0]}"
    else:
        legal = f"expected {units.either(names)}" if names else f"the file has no {what}"
    return f"there is no {what} {units.show(name)}; {legal}"
