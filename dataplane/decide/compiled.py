"""Wish -> the program that the workers run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

from dataplane.config.marks import Marks
from dataplane.config.model import Addresses
from dataplane.decide.learned import Known
from dataplane.decide.policy import member_applications, member_lists, policy
from dataplane.decide.program import compile_program
from dataplane.decide.wish import Wish
from dataplane.errors import ConfigError, Fault
from dataplane.hotpath import Learned, Lists, Program


@dataclass(frozen=True, slots=True)
class Compiled:
    """The compiled policy of a wish, without what is learned: that changes much more often.

    `members` are the names of the lists and the labels of the applications, as they are numbered.
    """

    block: bytes
    lists: Lists | None
    members: tuple[str, ...]

    def program(self, known: Known | None = None) -> Program:
        """With what is known of names and applications now. ConfigError if it is too much."""
        learned = self._learned(known) if known else None
        with _refusing():
            return Program(self.block, self.lists, learned)

    def _learned(self, known: Known) -> Learned:
        """Labels that no member has are of a file that is not in force any more: nobody asks."""
        numbers = {name: number for number, name in enumerate(self.members)}
        sets = [[numbers[label] for label in labels if label in numbers] for labels in known.sets]
        return Learned(known.entries, sets)


def compiled(wish: Wish) -> Compiled:
    """The policy as it is now, for any number of programs. ConfigError if it is too much."""
    lists = member_lists(wish.config)
    applications = member_applications(wish.config)
    with _refusing():
        block = compile_program(
            marks=Marks(wish.config.mark_mask),
            key=wish.key,
            rules=[rule.compiled for rule in policy(wish)],
            lists=list(lists),
            applications=applications,
        )
        made = _lists(tuple(lists.values())) if lists else None
    return Compiled(block, made, (*lists, *applications))


def program_of(wish: Wish, known: Known | None = None) -> Program:
    """The program for the wish, with what is known of names and applications."""
    return compiled(wish).program(known)


@contextmanager
def _refusing() -> Iterator[None]:
    """What is legal one by one may be too much together: lists that overlap in too many ways."""
    try:
        yield
    except ValueError as fault:
        raise ConfigError((Fault("the policy", 0, "", str(fault)),)) from None


@lru_cache(maxsize=2)
def _lists(addresses: tuple[Addresses, ...]) -> Lists:
    """Made once, not again for each death of a link. Two, since a reload compares old and new."""
    return Lists([one.ranges4 for one in addresses], [one.ranges6 for one in addresses])
