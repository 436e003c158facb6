"""What a rule takes, and whether another one takes all of it.

Each condition is a set, and a packet is taken when it is in all of them. What cannot be known from
the file is opaque: addresses of names, and lists that are watched, which change while the file
does not. Opaque things are equal to themselves alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from dataplane.config import ranges
from dataplane.config.model import AddressList, Rule, Selection
from dataplane.config.protocols import WITH_PORTS
from dataplane.config.ranges import Range

# Selections with more ranges are compared by the names of their lists alone, and so are those with
# which more would be kept for all rules together: a range takes some 130 bytes.
MOST_RANGES = 100_000
MOST_KEPT = 500_000

_ALL: Mapping[int, list[Range]] = {4: [(0, (1 << 32) - 1)], 6: [(0, (1 << 128) - 1)]}
_EVERY_DSCP = frozenset(range(64))
_EVERY_PROTOCOL = frozenset(range(256))


@dataclass(frozen=True, slots=True)
class Hosts:
    """The addresses of a selection, by family in merged ranges: its own ones, and with them those
    of the lists that are not opaque. With `too_many` ranges in its lists, all of them are.
    """

    own: Mapping[int, list[Range]]
    known: Mapping[int, list[Range]]
    opaque: frozenset[str]
    lists: frozenset[str]
    too_many: bool = False

    @property
    def families(self) -> frozenset[int]:
        """The families it may have addresses of."""
        return frozenset(family for family in (4, 6) if self.known[family] or self.opaque)


@dataclass(frozen=True, slots=True)
class Reach:
    """All that a rule takes. Of the small conditions, None is anything."""

    source: Hosts
    destination: Hosts
    interfaces: frozenset[str] | None
    protocols: frozenset[int] | None
    source_ports: list[Range] | None
    destination_ports: list[Range] | None
    dscp: frozenset[int] | None
    applications: frozenset[str] | None

    @property
    def families(self) -> frozenset[int]:
        return self.source.families & self.destination.families


class Reaches:
    """Rules → what they take, with the lists that they name."""

    def __init__(
        self, lists: Iterable[AddressList], *, all_opaque: bool = False, as_now: bool = False
    ) -> None:
        """With `all_opaque`, what lists hold is not known: their files have faults. `as_now`: by
        the ranges that they hold now, be they watched or not.
        """
        self._lists = {one.name: one for one in lists}
        self._opaque = {
            name
            for name, one in self._lists.items()
            if all_opaque or (not as_now and (one.watch or one.names))
        }
        self._seen: dict[frozenset[str], Mapping[int, list[Range]] | None] = {}
        self._made: dict[Selection, Hosts] = {}
        self._kept = 0

    def of(self, rule: Rule) -> Reach:
        """What a rule takes whose lists are all there."""
        protocols = frozenset(rule.protocols) or None
        if rule.source_ports or rule.destination_ports:
            protocols = WITH_PORTS if protocols is None else protocols & WITH_PORTS
        elif protocols == _EVERY_PROTOCOL:
            protocols = None
        dscp = frozenset(rule.dscp) or None
        return Reach(
            source=self.hosts(rule.source),
            destination=self.hosts(rule.destination),
            interfaces=frozenset(rule.interfaces) or None,
            protocols=protocols,
            source_ports=ranges.merge(rule.source_ports) or None,
            destination_ports=ranges.merge(rule.destination_ports) or None,
            dscp=None if dscp == _EVERY_DSCP else dscp,
            applications=frozenset(
                (
                    *(f"name {one}" for one in rule.applications),
                    *(f"host {one}" for one in rule.hosts),
                )
            )
            or None,
        )

    def hosts(self, selection: Selection) -> Hosts:
        """The addresses of a selection."""
        if selection not in self._made:
            self._made[selection] = self._make(selection)
        return self._made[selection]

    def _make(self, selection: Selection) -> Hosts:
        lists = frozenset(selection.lists)
        if not selection:
            return Hosts(_ALL, _ALL, frozenset(), lists)
        of_file = selection.addresses
        own = {4: ranges.merge(of_file.spans4()), 6: ranges.merge(of_file.spans6())}
        known = self._ranges_of(lists)
        if known is not None and selection.addresses and not self._keep(known):
            known = None
        if known is None:
            return Hosts(own, own, lists, lists, too_many=True)
        both = {
            family: ranges.merge([*own[family], *known[family]]) if own[family] else known[family]
            for family in (4, 6)
        }
        return Hosts(own, both, lists & self._opaque, lists)

    def _ranges_of(self, names: frozenset[str]) -> Mapping[int, list[Range]] | None:
        """What is known of lists; None where it is too much to compare."""
        if names not in self._seen:
            known = [self._lists[name].addresses for name in names - self._opaque]
            count = sum(len(one.ranges4) // 8 + len(one.ranges6) // 32 for one in known)
            merged = None
            if count <= min(MOST_RANGES, MOST_KEPT - self._kept):
                merged = {
                    4: ranges.merge(span for one in known for span in one.spans4()),
                    6: ranges.merge(span for one in known for span in one.spans6()),
                }
                self._keep(merged)
            self._seen[names] = merged
        return self._seen[names]

    def _keep(self, known: Mapping[int, list[Range]]) -> bool:
        """Whether there is room for as many ranges; it is taken then."""
        count = len(known[4]) + len(known[6])
        if self._kept + count > MOST_KEPT:
            return False
        self._kept += count
        return True


def covers(outer: Reach, inner: Reach, families: Collection[int] | None = None) -> bool:
    """Whether a rule takes all that another one would, as far as that can be known. `families` are
    those of the other one that there are; None: all that it may have.
    """
    if families is None:
        families = inner.families
    return (
        _all_in(outer.interfaces, inner.interfaces)
        and _all_in(outer.protocols, inner.protocols)
        and _all_in(outer.dscp, inner.dscp)
        and _ports_in(outer.source_ports, inner.source_ports)
        and _ports_in(outer.destination_ports, inner.destination_ports)
        and _applications_in(outer.applications, inner.applications)
        and _hosts_in(outer.source, inner.source, families)
        and _hosts_in(outer.destination, inner.destination, families)
    )


def _all_in(outer: Collection[object] | None, inner: Collection[object] | None) -> bool:
    return outer is None or (inner is not None and all(one in outer for one in inner))


def _ports_in(outer: list[Range] | None, inner: list[Range] | None) -> bool:
    return outer is None or (inner is not None and ranges.contains(outer, inner))


def _applications_in(outer: frozenset[str] | None, inner: frozenset[str] | None) -> bool:
    if outer is None or inner is None:
        return outer is None
    return all(one in outer or any(_below(one, other) for other in outer) for one in inner)


def _below(name: str, wildcard: str) -> bool:
    """Whether "host *.example.org" matches all that "host a.example.org" does."""
    return wildcard.startswith("host *.") and name.endswith(wildcard[len("host *") :])


def _hosts_in(outer: Hosts, inner: Hosts, families: Collection[int]) -> bool:
    if all(outer.known[family] == _ALL[family] for family in families):
        return True
    # Lists that both name need no comparing.
    wanted = inner.own if inner.lists <= outer.lists else inner.known
    return inner.opaque <= outer.lists and all(
        ranges.contains(outer.known[family], wanted[family]) for family in families
    )
