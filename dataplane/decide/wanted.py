"""What the file wants to be learned: names of lists, host names, applications.

Only what some rule names is worth learning. In what is learned, a list is known by its name, an
application by "application:NAME", and hosts by "host:PATTERN".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dataplane.config.model import AddressList, Config

_WILDCARD = "*."


def application_label(name: str) -> str:
    """What an application is called among what was learned."""
    return f"application:{name}"


def host_label(pattern: str) -> str:
    """What the hosts of a pattern are called among what was learned."""
    return f"host:{pattern}"


@dataclass(frozen=True, slots=True)
class Patterns:
    """Names and wildcards, each with labels. "*.example.org" is every name below example.org."""

    exact: dict[str, tuple[str, ...]] = field(default_factory=dict)
    below: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Patterns:
        """From each pattern and a label of it."""
        made = cls()
        for pattern, label in pairs:
            name = plain(pattern)
            kind, key = (
                (made.below, name.removeprefix(_WILDCARD))
                if name.startswith(_WILDCARD)
                else (made.exact, name)
            )
            if label not in kind.get(key, ()):
                kind[key] = (*kind.get(key, ()), label)
        return made

    def __bool__(self) -> bool:
        return bool(self.exact or self.below)

    def labels(self, name: str) -> tuple[str, ...]:
        """Those of all patterns that the name fits."""
        name = plain(name)
        found = self.exact.get(name, ())
        if self.below:
            _, _, rest = name.partition(".")
            while rest:
                found += self.below.get(rest, ())
                _, _, rest = rest.partition(".")
        return tuple(dict.fromkeys(found))

    def by_label(self) -> dict[str, set[str]]:
        """Label -> its names and wildcards."""
        found: dict[str, set[str]] = {}
        for prefix, kind in (("", self.exact), (_WILDCARD, self.below)):
            for name, labels in kind.items():
                for label in labels:
                    found.setdefault(label, set()).add(prefix + name)
        return found


def plain(name: str) -> str:
    """A name as it is compared: in lower case, without the dot of the root."""
    return name.lower().rstrip(".")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`names` are of lists, `hosts` of rules; `to_resolve` are the names that the router itself
    asks for, with their lists."""

    names: Patterns = Patterns()
    hosts: Patterns = Patterns()
    applications: frozenset[str] = frozenset()
    to_resolve: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> Wanted:
        """What the rules of this file ask for."""
        pairs = [(name, one.name) for one in _asked_lists(config) for name in one.names]
        names = Patterns.of(pairs)
        hosts = dict.fromkeys(pattern for rule in config.rules for pattern in rule.hosts)
        applications = {name for rule in config.rules for name in rule.applications}
        return cls(
            names=names,
            hosts=Patterns.of((pattern, host_label(pattern)) for pattern in hosts),
            applications=frozenset(applications),
            to_resolve=names.exact,
        )

    @property
    def labels(self) -> frozenset[str]:
        """Everything that may be said of what is learned."""
        of_patterns = (*self.names.by_label(), *self.hosts.by_label())
        return frozenset((*of_patterns, *map(application_label, self.applications)))

    def lost_since(self, before: Wanted) -> frozenset[str]:
        """The lists that had a name which they have no more: nobody knows what it taught."""
        now = self.names.by_label()
        return frozenset(
            label for label, had in before.names.by_label().items() if had - now.get(label, set())
        )

    def labels_of_question(self, name: str) -> tuple[str, ...]:
        """What the addresses that DNS gives for a name are known as."""
        return (*self.names.labels(name), *self.hosts.labels(name))


def learns_packets(config: Config) -> bool:
    """Whether the first packets of connections are of interest."""
    return any(rule.applications or rule.hosts for rule in config.rules)


def learns_answers(config: Config) -> bool:
    """Whether DNS answers are of interest."""
    return any(rule.hosts for rule in config.rules) or any(
        one.names for one in _asked_lists(config)
    )


def _asked_lists(config: Config) -> list[AddressList]:
    """The lists that some rule asks for."""
    asked = {
        name for rule in config.rules for name in (*rule.source.lists, *rule.destination.lists)
    }
    return [one for one in config.lists if one.name in asked]
