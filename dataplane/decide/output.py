"""What the output chains of our nft table say: the router's own packets."""

from __future__ import annotations

from dataplane.config.marks import PROBE_PRIORITY
from dataplane.decide.plan import Plan
from dataplane.decide.spelling import (
    address_maps,
    assign,
    base,
    decided,
    exempt_marks,
    link_interfaces,
    one_of,
    ours,
    resolver_maps,
    restore_map,
)

# As nft spells it, in two halves of 16 bits.
_PROBES = f"{PROBE_PRIORITY >> 16:04x}:{PROBE_PRIORITY & 0xFFFF:04x}"


def output_restore(plan: Plan) -> list[str]:
    """The router's own packets. A socket that set our bits itself has chosen its link.

    So have probes, but their connections are not the link's: nobody counts or forgets them. Who
    chose an ecmp group keeps the link that it was given.
    """
    rules = [base("route", "output", "mangle - 5")]
    if 6 not in plan.families:
        rules.append("meta nfproto ipv6 accept")
    probe = plan.marks.mark(plan.marks.probe)
    spread = one_of(f"{group.mark:#010x}" for group in plan.groups)
    kept = [f"{ours('meta', plan)} == {spread} {restore_map(plan)}"] if plan.groups else []
    return [
        *rules,
        f"meta priority {_PROBES} {ours('ct', plan)} == 0x00000000 {assign('ct', plan, probe)}",
        *kept,
        f"{decided(plan)} accept",
        *exempt_marks(plan),
        restore_map(plan),
        f"{ours('ct', plan)} != {probe:#010x} ct state established,related goto adopt",
        *_pinned(plan),
    ]


def _pinned(plan: Plan) -> list[str]:
    """By their source, and new ones to a link's resolver.

    Where main's default route decides, an unbound socket has the address of that route's link as
    its source, like a bound one: there the resolver comes first, if its link translates.
    """
    sources = address_maps(plan, lambda ip: f"{ip} saddr", "mark")
    resolvers = [f"ct state new {rule}" for rule in resolver_maps(plan)]
    if plan.balance_own:
        return [*sources, *resolvers]
    first = [f"ct state new {rule}" for rule in resolver_maps(plan, translated_only=True)]
    later = resolvers if first != resolvers else []
    return [*first, *sources, *later]


def output_ask(plan: Plan) -> list[str]:
    """Apart from restore, since a change of mark in a route chain would be routed at once."""
    rules = [base("filter", "output", "mangle - 4")]
    if 6 not in plan.families:
        rules.append("meta nfproto ipv6 accept")
    return [
        *rules,
        f"{decided(plan)} accept",
        *exempt_marks(plan),
        "ct state != new accept",
        f"oifname != {link_interfaces(plan)} accept",
        "jump exempt",
        assign("meta", plan, plan.marks.mark(plan.marks.ask)),
    ]
