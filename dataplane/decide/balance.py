"""Config and link states -> slot tables by family -> the program that the workers run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from fractions import Fraction

from dataplane.config.marks import Marks
from dataplane.config.model import Config
from dataplane.decide.facts import FAMILIES, Family
from dataplane.decide.liveness import Condition, LinkState, Way, serving
from dataplane.decide.program import ProgramRule, compile_program
from dataplane.decide.slots import SLOTS, SlotTable, home, overlay, reweight


def weights(config: Config) -> dict[str, Fraction]:
    """What the shares of the balanced links are in proportion to."""
    return {name: config.link(name).weight for name in config.balance.links}


def home_table(config: Config, running: SlotTable | None) -> SlotTable:
    """The home table: fresh, or the running one moved as little as the new weights demand."""
    wanted = weights(config)
    return home(wanted) if running is None else reweight(running, wanted)


def families_serving(
    config: Config,
    states: Mapping[str, LinkState],
    before: Mapping[Family, frozenset[str]],
) -> dict[Family, frozenset[str]]:
    """By family, the balanced links that hold slots now.

    A family that no link is set up for is left out: it is left to main. `before` is what this
    said of the states before.
    """
    among = config.balance.links
    found = {
        family: serving(states, family, among, before.get(family, frozenset()))
        for family in FAMILIES
    }
    return {family: names for family, names in found.items() if names}


def family_tables(
    config: Config, table: SlotTable, serving: Mapping[Family, frozenset[str]]
) -> dict[Family, SlotTable]:
    """The slots as they are now, by family: the others' are lent to those that serve."""
    wanted = weights(config)
    return {family: overlay(table, names, wanted) for family, names in serving.items()}


def program_block(
    config: Config, ids: Mapping[str, int], tables: Mapping[Family, SlotTable], key: int
) -> bytes:
    """The flat program: today one rule without conditions, the default group."""
    marks = Marks(config.mark_mask)
    numbered = {
        family: table.slots.translate(bytes(ids[name] for name in table.links).ljust(256, b"\0"))
        for family, table in tables.items()
    }
    main_only = bytes([marks.main]) * SLOTS
    return compile_program(
        marks=marks,
        key=key,
        rules=[
            ProgramRule(
                name=config.balance.name,
                fields=config.balance.fields,
                symmetric=config.balance.symmetric,
                tables={family: numbered.get(family, main_only) for family in FAMILIES},
            )
        ],
    )


def without(states: Mapping[str, LinkState], dead: Collection[str]) -> dict[str, LinkState]:
    """The same states, as if these links were dead."""
    return {
        name: LinkState(name, (_dead(state.way(4)), _dead(state.way(6)))) if name in dead else state
        for name, state in states.items()
    }


def _dead(way: Way) -> Way:
    return replace(
        way, condition=min(way.condition, Condition.CUT), why=way.why or "assumed to be dead"
    )


def all_alive(config: Config) -> dict[str, LinkState]:
    """Every link as the file hopes for it: what is explained when no machine is asked."""
    off = Way(Condition.ABSENT, "IPv6 is switched off in the file")
    living = Way(Condition.LIVING)
    return {
        link.name: LinkState(link.name, (living, living if config.ipv6 else off))
        for link in config.links
    }
