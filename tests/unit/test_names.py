"""Names of lists: when they are asked for, how many at once, and what becomes of failures.

And files that are watched, by the same clock, which never waits.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from dataplane.daemon.filewatch import FileWatch, Looks, in_thread
from dataplane.daemon.names import Names
from dataplane.errors import MachineError
from tests.unit import clockwork
from tests.unit.clockwork import Address, clocked, now_ms, until_ms

FOUR, SIX = ip_address("203.0.113.7"), ip_address("2001:db8::7")
NOBODY = MachineError("does not resolve: NXDOMAIN")
NO_SIX = MachineError("does not resolve: it has no IPv6 address")


@pytest.fixture
def world() -> Iterator[clockwork.Names]:
    """Where names lead."""
    made = clockwork.Names()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataplane.daemon.names.addresses", made.addresses)
        yield made


Told = list[tuple[int, str, Sequence[Address], float]]


@asynccontextmanager
async def names(*taken: str) -> AsyncIterator[tuple[Names, Told]]:
    told: Told = []
    made = Names(lambda *said: told.append((now_ms(), *said)))
    made.take(taken)
    try:
        yield made, told
    finally:
        made.close()


def leads(world: clockwork.Names, name: str, four: object = FOUR, six: object = SIX) -> None:
    for family, found in ((4, four), (6, six)):
        world.known[name, family] = found if isinstance(found, MachineError) else [found]  # type: ignore[list-item]


def test_a_name_is_asked_for_again_before_it_is_over(world: clockwork.Names) -> None:
    """What is told is told again each time, so that it begins anew."""
    leads(world, "a.test")
    world.keep_s = 30

    async def work() -> None:
        async with names("a.test") as (_, told):
            await until_ms(65_000)
            assert [(at, one, *found) for at, one, found, _ in told] == [
                (at, "a.test", found) for at in (0, 30_000, 60_000) for found in (FOUR, SIX)
            ]
            assert all(keep_s == 30 for *_, keep_s in told)

    clocked(work)


def test_what_a_name_leads_to_may_change(world: clockwork.Names) -> None:
    leads(world, "a.test", six=NO_SIX)
    world.keep_s = 30

    async def work() -> None:
        async with names("a.test") as (_, told):
            await until_ms(1_000)
            other = ip_address("203.0.113.8")
            leads(world, "a.test", other, NO_SIX)
            await until_ms(31_000)
            assert [list(found) for _, _, found, _ in told] == [[FOUR], [other]]

    clocked(work)


def test_a_failure_is_tried_again_more_and_more_seldom(world: clockwork.Names) -> None:
    leads(world, "a.test", NOBODY, NOBODY)

    async def work() -> None:
        async with names("a.test") as (made, told):
            await until_ms(1_000_000)
            asked = [at // 1000 for at, _, family in world.asked if family == 4]
            assert asked == [0, 10, 30, 70, 150, 310, 610, 910]
            assert told == []
            assert made.faults() == {"a.test": "does not resolve: NXDOMAIN"}
            leads(world, "a.test")
            await until_ms(1_300_000)
            assert told
            assert made.faults() == {}
            leads(world, "a.test", NOBODY, NOBODY)
            world.asked.clear()
            await until_ms(1_400_000)
            gaps = [at for at, _, family in world.asked if family == 4]
            assert round(gaps[1] - gaps[0], -3) == 10_000, "it begins with a short wait again"

    clocked(work)


def test_one_family_is_enough(world: clockwork.Names) -> None:
    leads(world, "four.test", six=NO_SIX)
    leads(world, "six.test", four=NOBODY)
    leads(world, "none.test", NOBODY, NO_SIX)

    async def work() -> None:
        async with names("four.test", "six.test", "none.test") as (made, _):
            assert made.faults() == {}, "nobody was asked yet"
            await until_ms(1)
            assert made.faults() == {"none.test": "does not resolve: NXDOMAIN"}

    clocked(work)


def test_a_thousand_names_do_not_burst(world: clockwork.Names) -> None:
    """Eight at a time, however slow they are; and all of them get their turn."""
    many = [f"n{number}.test" for number in range(1000)]
    for name in many:
        leads(world, name)
    world.after_s = 0.1
    world.keep_s = 3600

    async def work() -> None:
        async with names(*many) as (_, told):
            await until_ms(50)
            assert len(world.asked) == 8
            await until_ms(101)
            assert len(world.asked) == 16
            await until_ms(2000 / 8 * 100 + 200)
            assert len(told) == 2000
            assert len({(name, found[0]) for _, name, found, _ in told}) == 2000

    clocked(work)


def test_another_file_has_other_names(world: clockwork.Names) -> None:
    """What stays is not asked for anew; what goes is asked for no more, nor told."""
    for name in ("old.test", "both.test", "new.test"):
        leads(world, name)
    world.after_s = 1.0

    async def work() -> None:
        async with names("old.test", "both.test") as (made, told):
            await until_ms(500)
            made.take(["both.test", "new.test"])
            await until_ms(10_000)
            assert {name for _, name, _, _ in told} == {"both.test", "new.test"}
            assert sum(name == "both.test" for _, name, _ in world.asked) == 2
            made.take([])
            world.asked.clear()
            await until_ms(100_000)
            assert world.asked == []

    clocked(work)


def test_a_name_that_is_asked_for_anew(world: clockwork.Names) -> None:
    """Once more at once, and then at its own pace again."""
    for name in ("a.test", "b.test"):
        leads(world, name)

    async def work() -> None:
        async with names("a.test", "b.test") as (made, told):
            await until_ms(1_000)
            made.take(["a.test", "b.test"], ["a.test"])
            await until_ms(62_000)
            assert [at // 1000 for at, name, _, _ in told[::2] if name == "a.test"] == [0, 1, 61]
            assert [at // 1000 for at, name, _, _ in told[::2] if name == "b.test"] == [0, 60]

    clocked(work)


def test_a_name_that_comes_back_meanwhile(world: clockwork.Names) -> None:
    leads(world, "a.test")
    world.after_s = 1.0

    async def work() -> None:
        async with names("a.test") as (made, told):
            await until_ms(500)
            made.take([])
            made.take(["a.test"])
            await until_ms(5_000)
            assert len(told) == 2

    clocked(work)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "list.txt"
    made.write_text("192.0.2.0/24\n")
    return made


def at_once(look: Callable[[], Looks]) -> asyncio.Future[Looks]:
    """Looks on the loop: the clock would not wait for a thread."""
    answer = asyncio.get_running_loop().create_future()
    answer.set_result(look())
    return answer


def watching(
    file: Path,
    work: Callable[[FileWatch, list[int]], Awaitable[None]],
    apart: Callable[[Callable[[], Looks]], asyncio.Future[Looks]] = at_once,
) -> None:
    async def watched() -> None:
        told: list[int] = []
        made = FileWatch(lambda: told.append(now_ms()), apart)
        made.take([file])
        try:
            await work(made, told)
        finally:
            made.close()

    clocked(watched)


def test_a_file_that_changes(file: Path) -> None:
    """It is told of once, when it was left alone for one look."""

    async def work(_: FileWatch, told: list[int]) -> None:
        await until_ms(5_000)
        file.write_text("198.51.100.0/24\n192.0.2.0/24\n")
        await until_ms(20_000)
        assert told == [8_000]

    watching(file, work)


def test_a_file_that_is_being_written(file: Path) -> None:
    async def work(_: FileWatch, told: list[int]) -> None:
        for at in range(1, 10):
            with file.open("a") as writing:
                writing.write("198.51.100.0/24\n")
            await until_ms(2_000 * at + 1_000)
        assert told == []
        await until_ms(30_000)
        assert told == [20_000]

    watching(file, work)


def test_a_file_that_another_takes_the_place_of(file: Path) -> None:
    """Of the same size and time."""

    async def work(_: FileWatch, told: list[int]) -> None:
        seen = file.stat()
        fresh = file.with_suffix(".new")
        fresh.write_text("192.0.3.0/24\n")
        os.utime(fresh, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        fresh.replace(file)
        await until_ms(20_000)
        assert len(told) == 1

    watching(file, work)


def test_a_file_that_goes_and_comes_back(file: Path) -> None:
    async def work(_: FileWatch, told: list[int]) -> None:
        text = file.read_text()
        file.unlink()
        await until_ms(10_000)
        assert len(told) == 1
        file.write_text(text)
        await until_ms(20_000)
        assert len(told) == 2

    watching(file, work)


def test_files_are_as_they_are_when_they_are_taken(file: Path) -> None:
    async def work(made: FileWatch, told: list[int]) -> None:
        file.write_text("198.51.100.0/24 \n")
        made.take([file])
        await until_ms(20_000)
        assert told == []
        made.take([])
        file.unlink()
        await until_ms(40_000)
        assert told == []

    watching(file, work)


def test_a_file_that_is_written_while_it_is_read(file: Path) -> None:
    """Reading takes a while: what is written meanwhile is read as well, a moment later."""

    async def work(made: FileWatch, told: list[int]) -> None:
        read = await made.looks()
        file.write_text("198.51.100.0/24\n192.0.2.0/24\n")
        made.take([file], read)
        await until_ms(20_000)
        assert len(told) == 1
        made.take([file], await made.looks())
        await until_ms(40_000)
        assert len(told) == 1

    watching(file, work)


class Hung:
    """A file system that answers when it is told to."""

    def __init__(self) -> None:
        self.looks: list[tuple[Callable[[], Looks], asyncio.Future[Looks]]] = []

    def __call__(self, look: Callable[[], Looks]) -> asyncio.Future[Looks]:
        self.looks.append((look, asyncio.get_running_loop().create_future()))
        return self.looks[-1][1]

    def answers(self) -> None:
        look, answer = self.looks[-1]
        answer.set_result(look())


def test_a_file_system_that_does_not_answer(file: Path) -> None:
    """One look waits for it, nothing else does; a reload goes on with what was seen last."""
    hung = Hung()

    async def work(made: FileWatch, told: list[int]) -> None:
        hung.answers()
        await until_ms(1_000)
        before = await at_once(hung.looks[0][0])
        file.write_text("198.51.100.0/24\n192.0.2.0/24\n")
        await until_ms(60_000)
        assert len(hung.looks) == 2
        assert await made.looks() == before
        assert now_ms() >= 61_000
        assert len(hung.looks) == 2
        hung.answers()
        await until_ms(now_ms() + 10_000)
        assert len(hung.looks) == 3
        assert told == []
        hung.answers()
        await until_ms(now_ms() + 10_000)
        assert len(told) == 1

    watching(file, work, hung)


def test_what_a_look_brings_too_late(file: Path) -> None:
    """After another file was taken, or none, nobody hears of the file before."""
    hung = Hung()

    async def work(made: FileWatch, told: list[int]) -> None:
        hung.answers()
        await until_ms(3_000)
        for files in ([file.with_suffix(".other")], []):
            late = hung.looks[-1]
            file.write_text(file.read_text() + "198.51.100.0/24\n")
            made.take(files)
            late[1].set_result(late[0]())
            await until_ms(now_ms() + 10_000)
        assert told == []
        assert await made.looks() == {}

    watching(file, work, hung)


def test_looks_are_made_in_a_thread(file: Path) -> None:
    threads: list[str] = []

    def look() -> Looks:
        threads.append(threading.current_thread().name)
        return {file: None}

    async def work() -> None:
        assert await in_thread(look) == {file: None}

    asyncio.run(work())
    assert threads == ["files"]
