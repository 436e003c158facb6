"""What one finding, one answer or one name teaches: keys, labels, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dataplane.decide.dns import Answer
from dataplane.decide.learned import Address, Kind, address_key, endpoint_key
from dataplane.decide.wanted import Wanted, application_label

# Seen again, it begins anew.
APPLICATION_S = 3600.0
# A name's addresses count for as long as DNS says, within these bounds, and a little longer: hosts
# keep what they were told, and ask no sooner.
TTL_S = (60.0, 86400.0)
GRACE_S = 300.0

# Its client listens where it sends from; others take a new port each time.
_CLIENTS_TOO = "bittorrent"


class Lesson(NamedTuple):
    """The labels count for the key for so long."""

    key: bytes
    labels: tuple[str, ...]
    keep_s: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What a connection was recognised as: names of applications in lower case, a host or "".

    `server` and `client` are address and port; `protocol` is the IP protocol's number.
    """

    protocol: int
    server: tuple[Address, int]
    client: tuple[Address, int]
    applications: tuple[str, ...] = ()
    host: str = ""


def of_finding(finding: Finding, wanted: Wanted) -> Iterator[Lesson]:
    """Only what some rule asks for."""
    named = [name for name in finding.applications if name in wanted.applications]
    labels = (*map(application_label, named), *wanted.hosts.labels(finding.host))
    if labels:
        server = endpoint_key(Kind.SERVER, finding.server[0], finding.protocol, finding.server[1])
        yield Lesson(server, labels, APPLICATION_S)
    if _CLIENTS_TOO in named:
        client = endpoint_key(Kind.CLIENT, finding.client[0], finding.protocol, finding.client[1])
        yield Lesson(client, (application_label(_CLIENTS_TOO),), APPLICATION_S)


def of_answer(answer: Answer) -> Iterator[Lesson]:
    """The addresses that DNS gave to somebody."""
    return _of_addresses(answer.addresses, answer.labels, answer.ttl_s)


def of_name(
    name: str, addresses: Sequence[Address], ttl_s: float, wanted: Wanted
) -> Iterator[Lesson]:
    """The addresses that the router resolved itself."""
    said = (one for one in addresses if _somebody(one))
    return _of_addresses(said, wanted.labels_of_question(name), ttl_s)


def _of_addresses(
    addresses: Iterable[Address], labels: tuple[str, ...], ttl_s: float
) -> Iterator[Lesson]:
    shortest, longest = TTL_S
    keep_s = min(max(ttl_s, shortest), longest) + GRACE_S
    for address in addresses:
        yield Lesson(address_key(address), labels, keep_s)


def _somebody(address: Address) -> bool:
    """Whether a host elsewhere may have it; filters say 0.0.0.0 or 127.0.0.1 for "nobody"."""
    return not (
        address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
    )
