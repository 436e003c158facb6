"""The operator's file as frozen values. Units are in the names; nothing here can be half valid."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Literal, NamedTuple, Self


class Fields(StrEnum):
    """The header fields that are hashed: RouterOS's nine sets."""

    BOTH_ADDRESSES = "both-addresses"
    BOTH_PORTS = "both-ports"
    BOTH_ADDRESSES_AND_PORTS = "both-addresses-and-ports"
    SRC_ADDRESS = "src-address"
    SRC_PORT = "src-port"
    SRC_ADDRESS_AND_PORT = "src-address-and-port"
    DST_ADDRESS = "dst-address"
    DST_PORT = "dst-port"
    DST_ADDRESS_AND_PORT = "dst-address-and-port"


class Method(StrEnum):
    """How a group picks a link for a new connection."""

    PCC = "pcc"
    NTH = "nth"
    RANDOM = "random"
    ECMP = "ecmp"
    FAILOVER = "failover"
    OVERFLOW = "overflow"
    LEAST_USED = "least-used"
    LOWEST_LATENCY = "lowest-latency"


class Sticky(StrEnum):
    """Whose new connections go where the last one went, for a time."""

    PAIR = "pair"
    SOURCE = "source"


class Nat(StrEnum):
    """What a link does to the source address of what leaves by it."""

    MASQUERADE = "masquerade"
    SNAT = "snat"
    PREFIX = "prefix"
    NONE = "none"


class Engine(StrEnum):
    """Who reads the queue: the batch loop in C, or NetfilterQueue's own loop."""

    BATCH = "batch"
    CALLBACK = "callback"


class QueueMode(StrEnum):
    """Which packets are queued: the first of a connection, or every one."""

    FIRST = "first"
    EVERY = "every"


class ProbeKind(StrEnum):
    """How a target is asked."""

    PING = "ping"
    ARP = "arp"
    TCP = "tcp"
    DNS = "dns"
    HTTP = "http"


class Failback(StrEnum):
    """What becomes of the connections that moved away from a link, once it is back."""

    KEEP = "keep"
    DRAIN = "drain"
    KILL = "kill"


AUTO: Literal["auto"] = "auto"
Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class Target:
    """One host that a probe asks; `text` is what the file says.

    Exactly one of `address`, `name` and `gateway` says who: an address, a name to be resolved, or
    the link's own gateway of either family. `port` is that of tcp, dns and http.
    """

    text: str
    address: IPv4Address | IPv6Address | None = None
    name: str | None = None
    gateway: bool = False
    port: int | None = None


# Public resolvers that answer everywhere: Cloudflare's and Quad9's.
PUBLIC_RESOLVERS: tuple[IPv4Address | IPv6Address, ...] = (
    IPv4Address("1.1.1.1"),
    IPv4Address("9.9.9.9"),
    IPv6Address("2606:4700:4700::1111"),
    IPv6Address("2620:fe::9"),
)
DEFAULT_TARGETS = (
    Target("gateway", gateway=True),
    *(Target(str(address), address=address) for address in PUBLIC_RESOLVERS),
)


@dataclass(frozen=True, slots=True)
class Probe:
    """One check of a link's path.

    A round asks all targets at once. It is good for a family when `need` of its targets beyond
    the gateway answer; the gateway counts only where nothing else is asked. `timeout_ms` None
    follows the measured round trip. `loss_down` and `loss_up` are shares from 0 to 1; a threshold
    is None where it is not watched.
    """

    kind: ProbeKind = ProbeKind.PING
    targets: tuple[Target, ...] = DEFAULT_TARGETS
    need: int = 1
    interval_ms: int = 500
    timeout_ms: int | None = None
    down: int = 3
    up: int = 5
    loss_down: float | None = None
    loss_up: float | None = None
    latency_down_ms: int | None = None
    latency_up_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """One uplink.

    `gateway` None: the interface is point-to-point, or the link carries no IPv4. `gateway6`
    defaults to "auto": what router advertisements say. `download_bps` and `share`: at least one
    of them is given; `share` wins. Without `probes`, carrier, address and gateway alone say whether
    the link is up. Connections to its `resolvers` leave by it while it is up.
    """

    name: str
    interface: str
    gateway: IPv4Address | Auto | None = None
    gateway6: IPv6Address | Auto | None = AUTO
    download_bps: int | None = None
    upload_bps: int | None = None
    share: Fraction | None = None
    metered: bool = False
    nat: Nat = Nat.MASQUERADE
    snat_address: IPv4Address | None = None
    snat_address6: IPv6Address | None = None
    prefix6: IPv6Network | None = None
    mss: int | None = None
    resolvers: tuple[IPv4Address | IPv6Address, ...] = ()
    probes: tuple[Probe, ...] = (Probe(),)
    failback: Failback = Failback.KEEP

    @property
    def weight(self) -> Fraction:
        """What the link's share is proportional to."""
        if self.share is not None:
            return self.share
        assert self.download_bps is not None, "the loader demands a capacity or a share"
        return Fraction(self.download_bps)


@dataclass(frozen=True, slots=True)
class Group:
    """Links used together, with a method. `[balance]` is the group named "default".

    `links` are in the order of preference. With `sticky`, connections that begin within
    `sticky_ms` of the last one follow it. `full` is the part of its capacity, 0 to 1, from which
    overflow calls a link full; `margin_ms` is by how much another link must answer sooner before
    lowest-latency changes to it. `failback` None leaves it to each link.
    """

    name: str
    links: tuple[str, ...]
    method: Method = Method.PCC
    fields: Fields = Fields.BOTH_ADDRESSES
    symmetric: bool = False
    sticky: Sticky | None = None
    sticky_ms: int = 600_000
    full: float = 0.9
    margin_ms: int = 10
    failback: Failback | None = None


DEFAULT_GROUP = "default"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Ranges of addresses, in no order; they may overlap.

    Packed in the machine's own byte order, since a list may hold a million: `ranges4` as pairs of
    32-bit numbers (first, last), `ranges6` as four 64-bit numbers each (the halves of the first
    address, the high one before the low one, then those of the last). Both ends are included.
    """

    ranges4: bytes = b""
    ranges6: bytes = b""

    def __bool__(self) -> bool:
        return bool(self.ranges4 or self.ranges6)

    @classmethod
    def of(
        cls, spans: Iterable[tuple[IPv4Address | IPv6Address, IPv4Address | IPv6Address]]
    ) -> Self:
        """The ranges from each first to each last address, which are of one family."""
        packed4, packed6 = array("I"), array("Q")
        for first, last in spans:
            if first.version == 4:
                packed4.extend((int(first), int(last)))
            else:
                for end in (int(first), int(last)):
                    packed6.extend((end >> 64, end & _LOW_HALF))
        return cls(packed4.tobytes(), packed6.tobytes())

    def spans4(self) -> Iterator[tuple[int, int]]:
        """First and last addresses of the IPv4 ranges, as numbers."""
        numbers = iter(memoryview(self.ranges4).cast("I"))
        return zip(numbers, numbers, strict=True)

    def spans6(self) -> Iterator[tuple[int, int]]:
        """The same of the IPv6 ranges."""
        halves = iter(memoryview(self.ranges6).cast("Q"))
        for high, low, last_high, last_low in zip(halves, halves, halves, halves, strict=True):
            yield high << 64 | low, last_high << 64 | last_low


_LOW_HALF = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class AddressList:
    """A list by its name. `addresses` and `names` hold all of it, what its files say too.

    `names` are domain names, and wildcards such as "*.example.org". `entries` and `entry_names`
    are what the table itself says, so that the files alone can be read again; `watch` asks for
    that whenever one of them changes.
    """

    name: str
    addresses: Addresses = Addresses()
    names: tuple[str, ...] = ()
    entries: Addresses = Addresses()
    entry_names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    watch: bool = False


class Ports(NamedTuple):
    """A range of ports, both ends included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which addresses a rule takes: those of its own ranges and of lists. Neither: all."""

    addresses: Addresses = Addresses()
    lists: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.addresses or self.lists)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the policy; a condition that is empty holds for everything.

    `number` counts from 1 in the order of the file, and `line` is where the rule begins. `use`
    names a link, a group, "main" or "reject"; `otherwise` says what happens while all links of
    `use` are dead: "next" (as if the rule were not there), "default", "reject", or a group.
    `interfaces` are of the LAN side. `protocols` are IP protocol numbers. `applications` are names
    as the recogniser has them, in lower case, and `hosts` are host names or wildcards; one of both
    must hold. `fields` replaces the group's.
    """

    number: int
    use: str
    otherwise: str = DEFAULT_GROUP
    line: int = 0
    interfaces: tuple[str, ...] = ()
    source: Selection = Selection()
    destination: Selection = Selection()
    protocols: tuple[int, ...] = ()
    source_ports: tuple[Ports, ...] = ()
    destination_ports: tuple[Ports, ...] = ()
    dscp: tuple[int, ...] = ()
    applications: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    fields: Fields | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"rule {self.number}"


@dataclass(frozen=True, slots=True)
class Queue:
    """How packets reach userspace. `length` in packets, `copy_bytes` of each, `spin_us` a wait."""

    number: int = 7477
    workers: int = 1
    engine: Engine = Engine.BATCH
    mode: QueueMode = QueueMode.FIRST
    length: int = 1024
    copy_bytes: int = 128
    spin_us: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """A whole file that has no faults.

    `key` is the 64-bit hash key, or the file that holds it, or None: made at the first start and
    kept in `state_dir`. `links`, `groups`, `lists` and `rules` are in the order of the file;
    `balance` is the group of what no rule takes. `on_change` is the command that runs on a
    transition, empty for none. `hold_ms` is the longest that a flapping link has to answer well
    before it is taken back.
    """

    lan: tuple[str, ...]
    links: tuple[Link, ...]
    balance: Group
    groups: tuple[Group, ...] = ()
    lists: tuple[AddressList, ...] = ()
    rules: tuple[Rule, ...] = ()
    key: int | Path | None = None
    mark_mask: int = 0x7F000000
    exempt_marks: tuple[int, ...] = (0xCA6C,)
    ipv6: bool = True
    own_traffic: Literal["balance", "main"] = "balance"
    on_stop: Literal["keep", "undo"] = "keep"
    state_dir: Path = Path("/var/lib/evenlink")
    control_socket: Path = Path("/run/evenlink/control.sock")
    control_group: str | None = None
    on_change: tuple[str, ...] = ()
    hold_ms: int = 300_000
    queue: Queue = field(default_factory=Queue)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def link(self, name: str) -> Link:
        """The link of that name; KeyError if there is none."""
        for link in self.links:
            if link.name == name:
                return link
        raise KeyError(name)

    def list_named(self, name: str) -> AddressList:
        """The list of that name; KeyError if there is none."""
        for one in self.lists:
            if one.name == name:
                return one
        raise KeyError(name)

    @property
    def watched_files(self) -> frozenset[Path]:
        """The files of the lists that are to be read again whenever one changes."""
        return frozenset(file for one in self.lists if one.watch for file in one.files)

    @property
    def all_groups(self) -> tuple[Group, ...]:
        """The default group and the named ones."""
        return (self.balance, *self.groups)
