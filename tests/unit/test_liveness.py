"""Who serves, whatever happens to the links."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.load import read
from dataplane.decide.liveness import (
    Condition,
    Judgement,
    LinkState,
    Way,
    judged,
    link_states,
    serving,
)
from dataplane.decide.slots import SLOTS, home, overlay
from dataplane.decide.wish import Before, make_wish
from tests.golden.cases import KEY, MACHINE, interface, two, with_interface

NAMES = ("a", "b", "c")
CONDITIONS = st.sampled_from(list(Condition))


def states(*conditions: Condition) -> dict[str, LinkState]:
    return {
        name: LinkState(name, (Way(condition), Way(Condition.ABSENT)))
        for name, condition in zip(NAMES, conditions, strict=False)
    }


def served(*conditions: Condition, before: str = "") -> str:
    return "".join(sorted(serving(states(*conditions), 4, NAMES, before)))


def test_the_living_serve_and_nobody_else() -> None:
    up, poor, silent = Condition.LIVING, Condition.POOR, Condition.SILENT
    drained, cut, absent = Condition.DRAINED, Condition.CUT, Condition.ABSENT
    assert served(up, poor, silent) == "a"
    assert served(up, drained, up, before="b") == "ac"
    assert served(poor, silent, cut) == "a", "answers badly, but answers"
    assert served(poor, drained, cut) == "b", "well, though taken out by hand"
    assert served(silent, cut, absent) == "a"
    assert served(cut, cut, absent) == "ab"
    assert served(absent, absent, absent) == ""


def test_the_last_one_stays() -> None:
    """Nothing moves to a link that is no better off."""
    silent = Condition.SILENT
    assert served(silent, silent, silent, before="b") == "b"
    assert served(silent, silent, silent) == "abc"
    assert served(silent, Condition.POOR, silent, before="a") == "b"


@given(st.lists(st.tuples(CONDITIONS, CONDITIONS, CONDITIONS), min_size=1, max_size=30))
def test_never_fewer_than_one(history: list[tuple[Condition, ...]]) -> None:
    """Whatever the links go through, somebody serves as long as one is set up, and all slots are
    held; a living link serves and is at home.
    """
    weights = {name: Fraction(n) for n, name in enumerate(NAMES, 1)}
    table = home(weights)
    at_home = table.counts()
    before: frozenset[str] = frozenset()
    for conditions in history:
        now = states(*conditions)
        found = serving(now, 4, NAMES, before)
        usable = {name for name in NAMES if now[name].way(4).usable}
        living = {name for name in NAMES if now[name].way(4).alive}
        assert bool(found) == bool(usable)
        assert found <= usable
        assert not living or found == living
        if found:
            held = overlay(table, found, weights).counts()
            assert sum(held.values()) == SLOTS
            assert all(held[name] >= at_home[name] for name in found)
            assert all(not held.get(name) for name in set(NAMES) - found)
        before = found


CONFIG = read(two(), "evenlink.toml")


def test_health_and_the_operator_have_their_say() -> None:
    plain = link_states(CONFIG, MACHINE)
    silent = Judgement(Condition.SILENT, "no answer")
    found = judged(plain, {("isp-a", 4): silent}, {"isp-b"})
    assert found["isp-a"].way(4).condition is Condition.SILENT
    assert found["isp-a"].way(6).alive
    assert found["isp-a"].alive
    assert found["isp-b"].drained
    assert found["isp-b"].why == "drained by hand"
    # A judgement from when it was cut is not proof that it is cut now, nor that it is well.
    cut = judged(plain, {("isp-a", 4): Judgement(Condition.CUT, "no carrier")}, ())
    assert cut["isp-a"].way(4).condition is Condition.SILENT


def test_the_machine_has_the_last_word() -> None:
    down = replace(interface("wan1", 2, "192.0.2.2/24", "2001:db8:1::2/64"), carrier=False)
    plain = link_states(CONFIG, with_interface(down))
    living = {("isp-a", family): Judgement(Condition.LIVING) for family in (4, 6)}
    assert not judged(plain, living, ())["isp-a"].alive  # type: ignore[arg-type]


def test_a_gateway_out_of_reach_keeps_its_link_out() -> None:
    """Else the kernel would refuse its route, and all that goes with it."""
    moved = with_interface(interface("wan2", 3, "203.0.113.2/24", ""))
    found = link_states(CONFIG, moved)["isp-b"]
    assert not found.way(4).usable
    assert found.way(4).why == "gateway 198.51.100.1 is in no network of wan2"
    alone = with_interface(interface("wan2", 3, "203.0.113.2/32", ""))
    assert link_states(CONFIG, alone)["isp-b"].way(4).alive


def test_what_keeps_its_connections() -> None:
    """A drained link does, the last one does; one that lost its slots to another does not."""
    silent = Judgement(Condition.SILENT, "no answer")
    both = {(name, family): silent for name in ("isp-a", "isp-b") for family in (4, 6)}
    first = make_wish(CONFIG, MACHINE, KEY, Before(), judgements={("isp-b", 4): silent})
    assert first.serving[4] == {"isp-a"}
    assert not first.keeps("isp-b", 4)
    assert first.keeps("isp-b", 6)
    last = make_wish(CONFIG, MACHINE, KEY, first.before, judgements=both)  # type: ignore[arg-type]
    assert last.serving[4] == {"isp-a"}, "the last one stays"
    assert last.keeps("isp-a", 4)
    drained = make_wish(CONFIG, MACHINE, KEY, Before(), drained=["isp-b"])
    assert drained.serving[4] == {"isp-a"}
    assert drained.keeps("isp-b", 4)
