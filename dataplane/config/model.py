"""The operator's file as frozen values. Units are in the names; nothing here can be half valid."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Literal


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
    """Links used together, with a method. `[balance]` is the group named "default"."""

    name: str
    links: tuple[str, ...]
    method: Method = Method.PCC
    fields: Fields = Fields.BOTH_ADDRESSES
    symmetric: bool = False


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
    kept in `state_dir`. `links` is in the order of the file. `on_change` is the command that runs
    on a transition, empty for none. `hold_ms` is the longest that a flapping link has to answer
    well before it is taken back.
    """

    lan: tuple[str, ...]
    links: tuple[Link, ...]
    balance: Group
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
