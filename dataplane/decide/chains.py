"""What each chain of our nft table says, in the order that a packet meets them.

Every chain that sets a mark is one small chain a decision, reached through a verdict map, since
nft 1.0.6 cannot combine two registers bitwise.
"""

from __future__ import annotations

from dataplane.config.model import Fields, Nat
from dataplane.decide.copies import copy_chains
from dataplane.decide.facts import Family
from dataplane.decide.output import output_ask, output_restore
from dataplane.decide.plan import Plan, slots_balanced
from dataplane.decide.planned import PlannedLink, uses_nat
from dataplane.decide.slots import SLOTS
from dataplane.decide.spelling import (
    ADDRESS,
    NFPROTO,
    address_maps,
    assign,
    base,
    every,
    exempt_marks,
    interfaces,
    link_interfaces,
    one_of,
    ours,
    resolver_maps,
    restore_map,
)

FALLBACK_COUNTER = "fallback"
WRONG_SOURCE_COUNTER = "wrong_source"
PAIR_TIMEOUT = "10m"

# Not routed in the Internet: RFC 1918, 6598, 3927, 4193.
_PRIVATE = {
    4: "{ 10.0.0.0/8, 100.64.0.0/10, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16 }",
    6: "fc00::/7",
}
_PORT_PROTOCOLS = "meta l4proto { tcp, udp, udplite, sctp, dccp }"
_HASHED: dict[Fields, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Fields.BOTH_ADDRESSES: (("saddr", "daddr"), ()),
    Fields.BOTH_PORTS: ((), ("sport", "dport")),
    Fields.BOTH_ADDRESSES_AND_PORTS: (("saddr", "daddr"), ("sport", "dport")),
    Fields.SRC_ADDRESS: (("saddr",), ()),
    Fields.SRC_PORT: ((), ("sport",)),
    Fields.SRC_ADDRESS_AND_PORT: (("saddr",), ("sport",)),
    Fields.DST_ADDRESS: (("daddr",), ()),
    Fields.DST_PORT: ((), ("dport",)),
    Fields.DST_ADDRESS_AND_PORT: (("daddr",), ("dport",)),
}


def all_chains(plan: Plan) -> list[tuple[str, list[str]]]:
    """All chains; those that are jumped to come before those that jump."""
    chains = [*_mark_chains(plan), *_link_chains(plan)]
    chains += [
        ("adopt", _adopt(plan)),
        ("inbound", _inbound(plan)),
        ("elsewhere", _elsewhere(plan)),
        ("exempt", _exempt()),
        ("settle", _settle(plan)),
        ("prerouting_restore", _prerouting_restore(plan)),
    ]
    if plan.native_queue:
        chains.append(("prerouting_queue", _queue(plan, "prerouting")))
    chains.append(("prerouting_settle", _settle_hook(plan, "filter", "prerouting")))
    chains.append(("output_restore", output_restore(plan)))
    if plan.balance_own:
        chains.append(("output_ask", output_ask(plan)))
        if plan.native_queue:
            chains.append(("output_queue", _queue(plan, "output")))
        chains.append(("output_settle", _settle_hook(plan, "route", "output")))
    clamped = _forward_mss(plan)
    if clamped:
        chains.append(("forward_mss", clamped))
    chains += copy_chains(plan)
    if plan.groups:
        chains.append(("postrouting_spread", _postrouting_spread(plan)))
    chains.append(("postrouting_nat", _postrouting_nat(plan)))
    chains.append(("save", _save(plan)))
    if any(uses_nat(planned) for planned in plan.links):
        chains.append(("guard", _guard(plan)))
    chains.append(("postrouting_leave", _postrouting_leave(plan)))
    return chains


def remembers_pairs(plan: Plan) -> bool:
    """Whether a pair's link is worth remembering: not where ports take part in the hash."""
    return not _HASHED[plan.balance.fields][1]


def pair_set(planned: PlannedLink, family: Family) -> str:
    """The name of the set that holds the pairs which a link served last."""
    return f"pairs{family}_{planned.id}"


def _mark_chains(plan: Plan) -> list[tuple[str, list[str]]]:
    """One chain a decision, which puts it into the packet's mark."""
    decisions = [(f"mark_{planned.id}", planned.mark) for planned in plan.links]
    decisions += [(f"mark_{group.id}", group.mark) for group in plan.groups]
    decisions.append(("mark_main", plan.marks.mark(plan.marks.main)))
    decisions.append(("mark_reject", plan.marks.mark(plan.marks.reject)))
    return [(name, [assign("meta", plan, mark), "accept"]) for name, mark in decisions]


def _link_chains(plan: Plan) -> list[tuple[str, list[str]]]:
    """Three chains a link: a connection that came in by it, an older one, one that leaves by it."""
    chains = []
    for planned in plan.links:
        save = assign("ct", plan, planned.mark)
        leave = [save]
        if remembers_pairs(plan):
            for family in plan.families:
                address = ADDRESS[family]
                pair = f"ct original {address} saddr . ct original {address} daddr"
                leave.append(
                    f"ct state new ct direction original {NFPROTO[family]} "
                    f"update @{pair_set(planned, family)} {{ {pair} timeout {PAIR_TIMEOUT} }}"
                )
        chains.append((f"inbound_{planned.id}", [save, "accept"]))
        chains.append((f"adopt_{planned.id}", [save, assign("meta", plan, planned.mark), "accept"]))
        chains.append((f"leave_{planned.id}", leave))
    return chains


def _adopt(plan: Plan) -> list[str]:
    """Connections older than the table: known by the address that NAT gave or was asked for."""
    return [
        *address_maps(plan, lambda ip: f"ct reply {ip} daddr", "adopt"),
        *address_maps(plan, lambda ip: f"ct original {ip} daddr", "adopt"),
        "accept",
    ]


def _inbound(plan: Plan) -> list[str]:
    """What came in by a link. A new connection from outside keeps the link that it came by."""
    rules = ["ct state != new accept", f"{ours('ct', plan)} != 0x00000000 accept"]
    for planned in plan.links:
        if planned.shared:
            rules += [
                f'iifname "{planned.link.interface}" ether saddr {mac} goto inbound_{planned.id}'
                for mac in planned.gateway_macs
            ]
        else:
            rules.append(f'iifname "{planned.link.interface}" goto inbound_{planned.id}')
    return [*rules, "accept"]


def _exempt() -> list[str]:
    """What no balancing may touch, whatever the routes say."""
    return [
        "fib daddr type { local, broadcast, anycast, multicast } accept",
        "ip saddr { 0.0.0.0, 169.254.0.0/16 } accept",
        "ip daddr 169.254.0.0/16 accept",
        "ip6 saddr { ::, fe80::/10 } accept",
        "ip6 daddr fe80::/10 accept",
        "udp dport { 67, 68, 546, 547 } accept",
        "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, "
        "nd-neighbor-advert, nd-redirect, mld-listener-query, mld-listener-report, "
        "mld-listener-done, mld2-listener-report, destination-unreachable, packet-too-big, "
        "time-exceeded, parameter-problem } accept",
    ]


def _restore(plan: Plan) -> list[str]:
    """What a connection decided stays decided; an older one is adopted."""
    return [
        *exempt_marks(plan),
        f"ct direction reply {restore_map(plan)}" if every(plan) else restore_map(plan),
        f"{ours('ct', plan)} == 0x00000000 ct state established,related goto adopt",
    ]


def _elsewhere(plan: Plan) -> list[str]:
    """What does not come from the LAN is never balanced."""
    return [f"iifname {link_interfaces(plan)} goto inbound", *_restore(plan), "accept"]


def _prerouting_restore(plan: Plan) -> list[str]:
    rules = [base("filter", "prerouting", "mangle - 5")]
    if 6 not in plan.families:
        rules.append("meta nfproto ipv6 accept")
    rules += [f"iifname != {interfaces(plan.lan)} goto elsewhere", *_restore(plan)]
    if not every(plan):
        rules.append("ct state != new accept")
    rules += [
        "jump exempt",
        assign("meta", plan, plan.marks.mark(plan.marks.ask)),
        "fib daddr . mark oif exists goto mark_main",
    ]
    pinned = [
        f"{planned.link.prefix6} : goto mark_{planned.id}"
        for planned in plan.links
        if planned.link.prefix6 and planned.link.nat is not Nat.PREFIX
    ]
    if pinned and 6 in plan.families:
        rules.append(f"ip6 saddr vmap {{ {', '.join(pinned)} }}")
    return [*rules, *resolver_maps(plan)]


def _queue(plan: Plan, hook: str) -> list[str]:
    queue = plan.queue
    last = queue.number + queue.workers - 1
    to = f"{queue.number}-{last}" if queue.workers > 1 else f"{queue.number}"
    asked = f"{ours('meta', plan)} == {plan.marks.mark(plan.marks.ask):#010x}"
    return [base("filter", hook, "mangle"), f"{asked} queue flags bypass to {to}"]


def _settle_hook(plan: Plan, kind: str, hook: str) -> list[str]:
    """A packet that still asks had no listener, met a full queue or could not be read."""
    asked = f"{plan.marks.mark(plan.marks.ask):#010x}"
    rules = [base(kind, hook, "mangle + 5")]
    if every(plan):
        # Every packet was asked about, but a connection keeps its link: the queue's word counts
        # for the first one only. Packets of the links carry no mark and are not restored.
        rules += [f"{ours('meta', plan)} == 0x00000000 accept", restore_map(plan)]
    return [
        *rules,
        f"{ours('meta', plan)} != {asked} accept",
        f"counter name {FALLBACK_COUNTER}",
        "goto settle",
    ]


def _settle(plan: Plan) -> list[str]:
    """The pair's remembered link while it lives, else jhash with the same shares.

    Where the kernel's multipath route spreads the default group, it does so here, too.
    """
    rules = []
    for family in plan.families:
        address = ADDRESS[family]
        for planned in plan.links:
            if remembers_pairs(plan) and planned.slots_of(family):
                rules.append(
                    f"{address} saddr . {address} daddr @{pair_set(planned, family)} "
                    f"goto mark_{planned.id}"
                )
    spread = plan.spread
    for family in plan.families:
        if spread and family in spread.families:
            rules.append(f"{NFPROTO[family]} goto mark_{spread.id}")
        elif slots_balanced(plan, family):
            rules += _jhash(plan, family)
    return [*rules, "goto mark_main"]


def _jhash(plan: Plan, family: Family) -> list[str]:
    """jhash over the balance's own fields; over the addresses where a packet has no ports."""
    address = ADDRESS[family]
    of_addresses, of_ports = _HASHED[plan.balance.fields]
    shares, first = [], 0
    for planned in plan.links:
        count = planned.slots_of(family)
        if count:
            span = f"{first}-{first + count - 1}" if count > 1 else f"{first}"
            shares.append(f"{span} : goto mark_{planned.id}")
            first += count
    rules = []
    for match, ports in ((_PORT_PROTOCOLS, of_ports), ("", ())) if of_ports else (("", ()),):
        addresses = of_addresses or (() if ports else ("saddr", "daddr"))
        hashed = [f"{address} {name}" for name in addresses] + [f"th {name}" for name in ports]
        prefix = f"{NFPROTO[family]} {match} " if match else f"{NFPROTO[family]} "
        rules.append(
            f"{prefix}jhash {' . '.join(hashed)} mod {SLOTS} seed {plan.seed:#x} "
            f"vmap {{ {', '.join(shares)} }}"
        )
    return rules


def _forward_mss(plan: Plan) -> list[str]:
    """Both directions by a constant: `rt mtu` would mend the SYN but not the SYN-ACK."""
    rules = []
    for planned in plan.links:
        if planned.mss is None:
            continue
        for family in plan.families:
            # An IPv6 header is 20 bytes longer.
            mss = planned.mss if family == 4 else planned.mss - 20
            for direction in ("iifname", "oifname"):
                rules.append(
                    f'{direction} "{planned.link.interface}" {NFPROTO[family]} '
                    f"tcp flags syn / syn,rst tcp option maxseg size > {mss} "
                    f"tcp option maxseg size set {mss}"
                )
    return [base("filter", "forward", "mangle"), *rules] if rules else []


def _postrouting_spread(plan: Plan) -> list[str]:
    """Once a multipath route has chosen, an ecmp group's mark becomes that of the link.

    Where links share an interface, the route's nexthop tells. Nothing is routed anew here.
    """
    marks = one_of(f"{group.mark:#010x}" for group in plan.groups)
    alone = [
        f'"{planned.link.interface}" : goto mark_{planned.id}'
        for planned in plan.links
        if not planned.shared
    ]
    rules = [
        base("filter", "postrouting", "mangle - 5"),
        f"{ours('meta', plan)} != {marks} accept",
    ]
    if alone:
        rules.append(f"oifname vmap {{ {', '.join(alone)} }}")
    for planned in plan.links:
        rules += [
            f'oifname "{planned.link.interface}" rt {ADDRESS[family]} nexthop '
            f"{planned.gateway(family)} goto mark_{planned.id}"
            for family in plan.families
            if planned.shared and planned.gateway(family)
        ]
    return rules


def _by_link(planned: PlannedLink, plan: Plan) -> str:
    """Matches what leaves by the link; where an interface is shared, the mark tells."""
    match = f'oifname "{planned.link.interface}"'
    return f"{match} {ours('meta', plan)} == {planned.mark:#010x}" if planned.shared else match


def _postrouting_nat(plan: Plan) -> list[str]:
    rules = [base("nat", "postrouting", "srcnat"), "rt ipsec exists accept"]
    for planned in plan.links:
        link, match = planned.link, _by_link(planned, plan)
        if link.nat is Nat.NONE:
            continue
        if link.prefix6 and 6 in plan.families:
            rules.append(f"{match} ip6 saddr {link.prefix6} accept")
            if link.nat is Nat.PREFIX:
                rules += [
                    f"{match} snat ip6 prefix to ip6 saddr map {{ {inside} : {outside} }}"
                    for inside, outside in _translated(plan, planned)
                ]
        if link.nat is Nat.SNAT and link.snat_address:
            rules.append(f"{match} meta nfproto ipv4 snat ip to {link.snat_address}")
        if link.nat is Nat.SNAT and link.snat_address6 and 6 in plan.families:
            rules.append(f"{match} meta nfproto ipv6 snat ip6 to {link.snat_address6}")
        if planned.shared:
            # masquerade would take the interface's first address for all of its links.
            rules += [
                f"{match} {NFPROTO[address.version]} snat {ADDRESS[address.version]} to {address}"
                for address in planned.own_addresses
                if address.version in plan.families
            ]
        rules.append(
            f"{match} masquerade" if 6 in plan.families else f"{match} {NFPROTO[4]} masquerade"
        )
    return rules


def _translated(plan: Plan, planned: PlannedLink) -> list[tuple[str, str]]:
    """LAN prefixes beside the provider's subnets of the same length, in order (RFC 6296)."""
    prefix = planned.link.prefix6
    if prefix is None:
        return []
    inside = [lan for lan in plan.lan_prefixes6 if lan.prefixlen >= prefix.prefixlen]
    pairs = []
    taken: set[object] = set()
    for lan in inside:
        for outside in prefix.subnets(new_prefix=lan.prefixlen):
            if not any(outside.overlaps(other) for other in taken):  # type: ignore[arg-type]
                taken.add(outside)
                pairs.append((str(lan), str(outside)))
                break
    return pairs


def _postrouting_leave(plan: Plan) -> list[str]:
    """The last that every packet meets: save and guard in one chain, since each hook costs."""
    rules = [base("filter", "postrouting", "300")]
    if 6 not in plan.families:
        rules.append("meta nfproto ipv6 accept")
    rules.append(f"{ours('ct', plan)} == 0x00000000 jump save")
    if any(uses_nat(planned) for planned in plan.links):
        rules.append("goto guard")
    return rules


def _save(plan: Plan) -> list[str]:
    """Before routing one cannot know the link of specific routes and of bound sockets."""
    main = plan.marks.mark(plan.marks.main)
    return [
        *exempt_marks(plan, "return"),
        *(f"{_by_link(planned, plan)} goto leave_{planned.id}" for planned in plan.links),
        f"{ours('meta', plan)} == {main:#010x} {assign('ct', plan, main)}",
    ]


def _guard(plan: Plan) -> list[str]:
    """After NAT, a source that is not on the interface is nobody's: it is counted and dropped.

    INVALID packets skip NAT and would leave with a private address. Public addresses that the
    provider routes here answer by the link that they were asked by.
    """
    guarded = [planned for planned in plan.links if uses_nat(planned)]
    rules = [
        f"oifname != {interfaces(planned.link.interface for planned in guarded)} accept",
        "fib saddr . oif type local accept",
        "rt ipsec exists accept",
        "ip saddr 0.0.0.0 accept",
        "ip6 saddr { ::, fe80::/10 } accept",
    ]
    for planned in guarded:
        match = f'oifname "{planned.link.interface}"'
        if planned.link.prefix6 and 6 in plan.families:
            rules.append(f"{match} ip6 saddr {planned.link.prefix6} accept")
        # fib finds an address that two interfaces have on the first one only.
        rules += [
            f"{match} {ADDRESS[address.version]} saddr {address} accept"
            for address in planned.doubtful_addresses
            if address.version in plan.families
        ]
        if planned.link.snat_address:
            rules.append(f"{match} ip saddr {planned.link.snat_address} accept")
        if planned.link.snat_address6 and 6 in plan.families:
            rules.append(f"{match} ip6 saddr {planned.link.snat_address6} accept")
        # What came in by the link is no answer: it is for hosts that are not there any more.
        other = f'iifname != "{planned.link.interface}"'
        saved = f"{ours('ct', plan)} == {planned.mark:#010x}"
        answers = f"{match} {other} ct direction reply {saved}"
        rules += [
            f"{answers} {ADDRESS[family]} saddr != {_PRIVATE[family]} accept"
            for family in plan.families
        ]
    return [*rules, f"counter name {WRONG_SOURCE_COUNTER} drop"]
