"""What the kernel can do: each feature is really tried, in a network namespace of its own.

At most, a kernel module is loaded that `run` would load too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Literal

from dataplane.config.model import Config, Group, Link, Method, Queue
from dataplane.daemon.engine import QueueEngine
from dataplane.decide.balance import all_alive
from dataplane.decide.compiled import program_of
from dataplane.decide.facts import FAMILIES, Facts
from dataplane.decide.plan import MAIN_TABLE, QueueRule, Rule
from dataplane.decide.ruleset import render
from dataplane.decide.wish import Before, Wish, make_wish
from dataplane.errors import Error, KernelError
from dataplane.system import conntrack, iptables, nft, trials
from dataplane.system.copies import Copies
from dataplane.system.netlink import Netlink


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, and what follows from it; `follows` may be empty.

    Not `ok`: Evenlink, or the file in question, does not work as it should.
    """

    name: str
    ok: bool
    found: str
    follows: str = ""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of our table, small enough to tell which feature the kernel lacks."""

    name: str
    options: str
    statement: str
    chain: Literal["filter", "nat"] = "filter"


_PIECES = (
    _Piece("connection marks", "NFT_CT, NF_CONNTRACK_MARK", "ct mark set mark and 0x7f000000"),
    _Piece("fib", "NFT_FIB_INET", "fib daddr . mark oif exists accept"),
    _Piece(
        "jhash",
        "NFT_HASH",
        "meta nfproto ipv4 jhash ip saddr . ip daddr mod 65536 seed 0x1 "
        "vmap { 0-32767 : accept, 32768-65535 : drop }",
    ),
    _Piece("masquerade", "NFT_MASQ", "meta nfproto ipv4 masquerade", "nat"),
    _Piece("snat", "NFT_NAT", "meta nfproto ipv4 snat ip to 192.0.2.1", "nat"),
)
_NAT6 = _Piece("IPv6 NAT", "NFT_MASQ, IPV6", "meta nfproto ipv6 masquerade", "nat")
_COPY = _Piece("packet copies", "NFT_LOG", "log group 7477 snaplen 1024")
_HOOKS = {
    "filter": "type filter hook prerouting priority -155",
    "nat": "type nat hook postrouting priority 100",
}
_TABLE = "inet evenlink_trial"
_LOG_GROUP = 7477
_LITTLE = Config(
    lan=("lan",),
    links=(Link("a", "wan", share=Fraction(1)),),
    balance=Group("default", ("a",)),
)


def kernel_checks(config: Config | None) -> list[Check]:
    """Every feature that is tried; with `config`, its own table too."""
    try:
        return trials.apart(lambda: list(_try_all(config)))
    except KernelError as refusal:
        words = f"not tried: {refusal}"
        return [Check("kernel features", True, words, "run doctor as root to have them tried")]


def _try_all(config: Config | None) -> Iterator[Check]:
    native = nft.knows_queue()
    wish = _wish(_LITTLE, native)
    yield _pieces()
    yield _nat6(config)
    yield _queue(config.queue if config else Queue(), wish)
    yield _queue_rule(native)
    yield _routing()
    yield _connections()
    yield _multipath(config)
    yield _copies(config)
    if config is not None:
        yield _table(_wish(config, native))


def _wish(config: Config, native_queue: bool) -> Wish:
    """What the file asks for with all links alive, on a machine that was not looked at."""
    facts = Facts((), native_queue)
    return make_wish(config, facts, 0, Before(), states=all_alive(config))


def _refusal(trial: Callable[[], object]) -> str:
    """Why the trial failed; empty when it went well."""
    try:
        trial()
    except Error as refused:
        return str(refused)
    return ""


def _load(piece: _Piece) -> None:
    nft.load(
        f"add table {_TABLE}\ndelete table {_TABLE}\nadd table {_TABLE}\n"
        f"add chain {_TABLE} trial {{ {_HOOKS[piece.chain]}; }}\n"
        f"add rule {_TABLE} trial {piece.statement}\n"
    )


def _pieces() -> Check:
    found = {piece: _refusal(partial(_load, piece)) for piece in _PIECES}
    lacking = [f"{one.name} ({one.options}): {words}" for one, words in found.items() if words]
    if lacking:
        return Check("nf_tables", False, "; ".join(lacking), "`run` is refused by this kernel")
    return Check("nf_tables", True, ", ".join(piece.name for piece in _PIECES))


def _nat6(config: Config | None) -> Check:
    words = _refusal(partial(_load, _NAT6))
    if not words:
        return Check(_NAT6.name, True, "masquerade")
    needed = config is None or config.ipv6
    follows = "`run` is refused unless the file says ipv6 = false" if needed else ""
    return Check(_NAT6.name, not needed, f"{words} ({_NAT6.options})", follows)


def _queue(queue: Queue, wish: Wish) -> Check:
    """Binds the queues of the file, in a namespace where they cannot be another's."""
    try:
        engine = QueueEngine(queue, program_of(wish))
    except Error as refused:
        words = f"{refused} (NETFILTER_NETLINK_QUEUE)"
        return Check("queue", False, words, "`run` is refused; only this queue can ask the daemon")
    granted = engine.granted()[queue.number]
    engine.stop()
    found = f"length {granted['length']}, {', '.join(granted['flags']) or 'no flags'}"
    if "fail-open" in granted["flags"]:
        return Check("queue", True, found)
    return Check("queue", True, found, "packets that find the queue full are dropped")


def _queue_rule(native: bool) -> Check:
    """By nft's queue statement, else by iptables."""
    if native:
        return Check("queue rule", True, "nft's queue statement")
    rules = [
        QueueRule(family, chain, 0x7D000000, 0x7F000000, 7477, 7477)
        for family in FAMILIES
        for chain in ("PREROUTING", "OUTPUT")
    ]
    words = next((words for rule in rules if (words := _refusal(partial(iptables.add, rule)))), "")
    if words:
        found = (
            f"nft has no queue statement, and {words} (NFT_QUEUE; or NETFILTER_XT_TARGET_NFQUEUE)"
        )
        return Check("queue rule", False, found, "`run` is refused: packets cannot be queued")
    found = "iptables' NFQUEUE, since nft has no queue statement here"
    return Check("queue rule", True, found)


def _routing() -> Check:
    """Rules by mark of both families."""
    netlink = Netlink()
    try:
        lacking = [
            f"IPv{family}: {words}"
            for family in FAMILIES
            if (words := _refusal(partial(netlink.add_rule, Rule(family, 30300, MAIN_TABLE, 1, 1))))
        ]
    finally:
        netlink.close()
    if lacking:
        found = f"{'; '.join(lacking)} (IP_MULTIPLE_TABLES, IPV6_MULTIPLE_TABLES)"
        return Check("policy routing", False, found, "`run` is refused by this kernel")
    return Check("policy routing", True, "rules by mark, IPv4 and IPv6")


def _connections() -> Check:
    words = _refusal(partial(conntrack.count, 1, 1))
    if words:
        found = f"{words} (NF_CT_NETLINK)"
        follows = "connections of a dead link cannot be forgotten, and `run` is refused"
        return Check("connections", False, found, follows)
    return Check("connections", True, "can be listed and forgotten by their mark")


def _multipath(config: Config | None) -> Check:
    words = _refusal(trials.multipath)
    if not words:
        return Check("multipath routes", True, "weighted")
    found = f"{words} (IP_ROUTE_MULTIPATH)"
    needing = [
        group.name for group in (config.all_groups if config else ()) if group.method is Method.ECMP
    ]
    if needing:
        return Check("multipath routes", False, found, f"groups {', '.join(needing)} cannot serve")
    return Check("multipath routes", True, found, "method ecmp cannot be used")


def copies_needed(config: Config) -> bool:
    """Whether packets have to be copied: where applications or names are to be learned."""
    by_rules = any(rule.applications or rule.hosts for rule in config.rules)
    return by_rules or any(one.names for one in config.lists)


def _copies(config: Config | None) -> Check:
    """The statement that copies packets, and the socket that reads the copies."""
    words = _refusal(partial(_load, _COPY)) or _refusal(lambda: Copies(_LOG_GROUP).close())
    if not words:
        return Check(_COPY.name, True, "log groups can be set up and read")
    follows = "neither applications nor names from DNS answers can be learned"
    needed = config is not None and copies_needed(config)
    return Check(_COPY.name, not needed, f"{words} ({_COPY.options})", follows)


def _table(wish: Wish) -> Check:
    """The file's own table, whole."""
    words = _refusal(lambda: nft.load(render(wish.plan())))
    if words:
        return Check("table", False, words, "`run` is refused")
    return Check("table", True, "the kernel takes the table of this file")
