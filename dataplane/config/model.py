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


AUTO: Literal["auto"] = "auto"
Auto = Literal["auto"]


@dataclass(frozen=True, slots=True)
class Link:
    """One uplink.

    `gateway` None: the interface is point-to-point, or the link carries no IPv4. `gateway6`
    defaults to "auto": what router advertisements say. `download_bps` and `share`: at least one
    of them is given; `share` wins.
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
    kept in `state_dir`. `links` is in the order of the file.
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
    queue: Queue = field(default_factory=Queue)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def link(self, name: str) -> Link:
        """The link of that name; KeyError if there is none."""
        for link in self.links:
            if link.name == name:
                return link
        raise KeyError(name)
