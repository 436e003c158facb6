"""How the rules of our nft table are spelt: what several of its chains say."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dataplane.config.model import QueueMode
from dataplane.decide.plan import Plan
from dataplane.decide.planned import uses_nat

ADDRESS = {4: "ip", 6: "ip6"}
NFPROTO = {4: "meta nfproto ipv4", 6: "meta nfproto ipv6"}


def base(kind: str, hook: str, priority: str) -> str:
    return f"type {kind} hook {hook} priority {priority}; policy accept;"


def assign(register: str, plan: Plan, mark: int) -> str:
    return f"{register} mark set {register} mark & {plan.marks.others:#010x} | {mark:#010x}"


def ours(register: str, plan: Plan) -> str:
    return f"{register} mark & {plan.marks.mask:#010x}"


def decided(plan: Plan) -> str:
    return f"{ours('meta', plan)} != 0x00000000"


def one_of(values: Iterable[str]) -> str:
    """One value is compared, which is cheaper than a look-up in a set."""
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else "{ " + ", ".join(distinct) + " }"


def interfaces(names: Iterable[str]) -> str:
    return one_of(f'"{name}"' for name in names)


def link_interfaces(plan: Plan) -> str:
    return interfaces(planned.link.interface for planned in plan.links)


def restore_map(plan: Plan) -> str:
    entries = [f"{planned.mark:#010x} : goto mark_{planned.id}" for planned in plan.links]
    entries.append(f"{plan.marks.mark(plan.marks.main):#010x} : goto mark_main")
    entries.append(f"{plan.marks.mark(plan.marks.reject):#010x} : goto mark_reject")
    return f"{ours('ct', plan)} vmap {{ {', '.join(entries)} }}"


def address_maps(plan: Plan, expression: Callable[[str], str], chain: str) -> list[str]:
    """One verdict map a family from the links' own addresses to a chain a link."""
    rules = []
    for family in plan.families:
        entries = [
            f"{address} : goto {chain}_{planned.id}"
            for planned in plan.links
            for address in planned.own_addresses
            if address.version == family
        ]
        if entries:
            rules.append(f"{expression(ADDRESS[family])} vmap {{ {', '.join(entries)} }}")
    return rules


def resolver_maps(plan: Plan, translated_only: bool = False) -> list[str]:
    """One verdict map a family from the living links' resolvers to the link's mark."""
    rules = []
    for family in plan.families:
        entries = [
            f"{address} : goto mark_{planned.id}"
            for planned in plan.links
            if uses_nat(planned) or not translated_only
            for address in planned.resolvers
            if address.version == family
        ]
        if entries:
            rules.append(f"{ADDRESS[family]} daddr vmap {{ {', '.join(entries)} }}")
    return rules


def every(plan: Plan) -> bool:
    return plan.queue.mode is QueueMode.EVERY


def exempt_marks(plan: Plan, verdict: str = "accept") -> list[str]:
    if not plan.exempt_marks:
        return []
    return [f"meta mark {one_of(f'{mark:#010x}' for mark in plan.exempt_marks)} {verdict}"]
