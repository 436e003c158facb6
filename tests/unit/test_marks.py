"""Our bits of the mark, and the numbers that links keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config.marks import MOST_LINKS, Marks
from dataplane.decide.wish import number_links

MASKS = st.integers(4, 16).flatmap(
    lambda width: st.integers(0, 32 - width).map(lambda shift: ((1 << width) - 1) << shift)
)
NAMES = st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=8)


def test_the_default_mask() -> None:
    marks = Marks()
    assert (marks.shift, marks.values, marks.last_link) == (24, 128, 120)
    assert (marks.probe, marks.ask, marks.main, marks.reject) == (124, 125, 126, 127)
    assert marks.mark(1) == 0x01000000
    assert marks.mark(marks.reject) == 0x7F000000
    assert marks.others == 0x80FFFFFF


def test_the_smallest_mask() -> None:
    marks = Marks(0xF0)
    assert (marks.values, marks.last_link) == (16, 8)
    assert (marks.probe, marks.ask, marks.main, marks.reject) == (12, 13, 14, 15)


@given(MASKS, st.integers(0, 0xFFFFFFFF))
def test_marks_and_decisions(mask: int, packet: int) -> None:
    marks = Marks(mask)
    reserved = {marks.probe, marks.ask, marks.main, marks.reject}
    assert len(reserved) == 4
    assert 1 <= marks.last_link < min(reserved)
    assert marks.last_link <= MOST_LINKS
    for decision in (0, 1, marks.last_link, *reserved):
        mark = marks.mark(decision)
        assert mark & marks.others == 0
        assert mark <= 0xFFFFFFFF
        assert marks.decision(mark | (packet & marks.others)) == decision


@given(NAMES, st.dictionaries(st.sampled_from("abcdefghijklm"), st.integers(-1, 300)))
def test_numbers_are_legal_and_each_its_own(names: list[str], known: dict[str, int]) -> None:
    """Whatever a state directory says."""
    numbers = number_links(names, known, last=8)
    assert set(numbers) == set(names)
    assert len(set(numbers.values())) == len(names)
    assert all(1 <= number <= 8 for number in numbers.values())


@given(st.lists(NAMES, max_size=6))
def test_a_link_that_stays_keeps_its_number(files: list[list[str]]) -> None:
    known: dict[str, int] = {}
    for names in files:
        numbers = number_links(names, known, last=120)
        assert {name: known[name] for name in names if name in known}.items() <= numbers.items()
        known |= numbers
        assert len(set(known.values())) == len(known)


def test_numbers_of_links_that_went_are_taken_last() -> None:
    known = {"a": 1, "b": 2, "gone": 3}
    assert number_links(["a", "new"], known, last=8) == {"a": 1, "new": 4}
    assert number_links(["a", "x", "y"], known, last=4) == {"a": 1, "x": 4, "y": 2}
    many = {f"old{number}": number for number in range(1, 121)}
    assert number_links(["new"], many, last=120) == {"new": 1}


def test_a_narrower_mask_numbers_afresh() -> None:
    assert number_links(["a", "b"], {"a": 100, "b": 7}, last=8) == {"a": 1, "b": 7}


@pytest.mark.parametrize("mark", [0xCA6C, 0xFF0000, 0x3F00, 0x80000000])
def test_others_bits_are_not_ours(mark: int) -> None:
    assert Marks().decision(mark) == 0
