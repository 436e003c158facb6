"""Plan -> the text of our one nft table.

The text replaces rules and chains and leaves the sets of remembered pairs and the counters as they
are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from dataplane.decide.chains import (
    FALLBACK_COUNTER,
    PAIR_TIMEOUT,
    WRONG_SOURCE_COUNTER,
    all_chains,
    pair_set,
    remembers_pairs,
)
from dataplane.decide.copies import NOT_COPIED_COUNTER
from dataplane.decide.facts import Family
from dataplane.decide.plan import Plan

TABLE = "evenlink"
# For each link and family. A full set refuses more, and what it refuses is settled by jhash.
REMEMBERED_PAIRS = 65536

_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}


def render(plan: Plan, chains_there: Collection[str] = (), sets_there: Collection[str] = ()) -> str:
    """The nft commands that make the table what the plan says, in one transaction.

    What was seen in our table is named by `chains_there` and `sets_there`; what the plan has not
    is deleted. Two digests are written into the table as names of empty chains: the plan's, by
    which a later look tells whether the table is this one, and the slots', by which remembered
    pairs are kept as long as no slot has moved.
    """
    chains = all_chains(plan)
    wanted_sets = {name for name, _ in _pair_sets(plan)}
    lines = [f"add table inet {TABLE}", f"flush table inet {TABLE}"]
    kept = {name for name, _ in chains} | {digest_chain(plan), slots_chain(plan)}
    stale = set(chains_there) - kept
    lines += [f"delete chain inet {TABLE} {name}" for name in sorted(stale)]
    lines += [f"delete set inet {TABLE} {name}" for name in sorted(set(sets_there) - wanted_sets)]
    if slots_chain(plan) not in chains_there:
        lines += [
            f"flush set inet {TABLE} {name}" for name in sorted(set(sets_there) & wanted_sets)
        ]
    return "\n".join(lines) + "\n" + _table(plan, chains)


def digest_chain(plan: Plan) -> str:
    """The name of the empty chain that says which plan the table holds."""
    text = _table(plan, all_chains(plan), tagged=False)
    return "plan_" + hashlib.sha256(text.encode()).hexdigest()[:16]


def slots_chain(plan: Plan) -> str:
    """The name of the empty chain that says by which slots pairs are remembered."""
    return f"slots_{plan.slots_digest}"


def _table(plan: Plan, chains: list[tuple[str, list[str]]], tagged: bool = True) -> str:
    lines = [f"table inet {TABLE} {{"]
    copies = plan.copies_packets or plan.copies_answers
    copied = (NOT_COPIED_COUNTER,) if copies else ()
    for counter in (FALLBACK_COUNTER, WRONG_SOURCE_COUNTER, *copied):
        lines += [f"\tcounter {counter} {{", "\t}", ""]
    for name, family in _pair_sets(plan):
        lines += [
            f"\tset {name} {{",
            f"\t\ttype {_TYPE[family]} . {_TYPE[family]}",
            f"\t\tsize {REMEMBERED_PAIRS}",
            "\t\tflags dynamic,timeout",
            f"\t\ttimeout {PAIR_TIMEOUT}",
            "\t}",
            "",
        ]
    if tagged:
        for name in (digest_chain(plan), slots_chain(plan)):
            lines += [f"\tchain {name} {{", "\t}", ""]
    for name, rules in chains:
        lines += [f"\tchain {name} {{", *(f"\t\t{rule}" for rule in rules), "\t}", ""]
    lines[-1] = "}"
    return "\n".join(lines) + "\n"


def _pair_sets(plan: Plan) -> list[tuple[str, Family]]:
    """One set a link and family. A map from pairs to marks would do with one a family, but
    nft 1.0.6 has too few registers for a map with an IPv6 pair as its key.
    """
    if not remembers_pairs(plan):
        return []
    return [
        (pair_set(planned, family), family) for family in plan.families for planned in plan.links
    ]
