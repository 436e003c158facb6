"""What is learned is handed over in time, and not too often; and who teaches when.

The teachers are false ones here: the test says what they find.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise

import pytest

from dataplane.config.load import read
from dataplane.config.model import Addresses, AddressList, Config, Queue, Rule, Selection
from dataplane.daemon.learn import Learning
from dataplane.daemon.passing import PassingAnswers
from dataplane.decide.copies import ANSWER, QUESTION
from dataplane.decide.dns import Answer, Labels
from dataplane.decide.learned import Known, address_key
from dataplane.decide.lessons import Finding
from dataplane.errors import Error, KernelError, MachineError
from dataplane.system.copies import Copy
from tests.golden.cases import two
from tests.unit import clockwork
from tests.unit.clockwork import clocked, now_ms, until_ms
from tests.unit.test_dns_answers import answering, back, out, query
from tests.unit.test_learned import said

PLAIN = read(two(), "evenlink.toml")
SHOPS = AddressList(
    "shops",
    Addresses.of([(ip_address("192.0.2.0"), ip_address("192.0.2.255"))]),
    names=("*.example.org", "shop.test"),
)
ASKS = Rule(1, "isp-a", destination=Selection(lists=("shops",)))
SHARES = Rule(2, "isp-b", applications=("bittorrent", "martian"))


def file_with(*rules: Rule, number: int = 7477) -> Config:
    return replace(PLAIN, rules=rules, lists=(SHOPS,), queue=Queue(number=number))


class FalseAnswers:
    """DNS that passes by."""

    made: list[FalseAnswers]

    def __init__(self, group: int, labels: Labels, taught: Callable[[Answer], None]) -> None:
        self.group, self.labels, self.taught, self.closed = group, labels, taught, False
        self.made.append(self)

    def take(self, labels: Labels) -> None:
        self.labels = labels

    def says(self, name: str, address: str, ttl_s: int = 600) -> None:
        self.taught(Answer(self.labels(name), (ip_address(address),), ttl_s))

    def report(self) -> dict[str, int]:
        return {"questions": 3}

    def faults(self) -> list[str]:
        return ["DNS answers are not learned: refused"]

    def close(self) -> None:
        self.closed = True


class FalseRecogniser:
    """Applications."""

    made: list[FalseRecogniser]

    def __init__(self, group: int, found: Callable[[Finding], None]) -> None:
        self.group, self.found, self.state = group, found, "made"
        self.known = frozenset[str]()
        self.made.append(self)

    def start(self) -> None:
        self.state = "started"

    async def stop(self) -> None:
        self.state = "stopped"

    def report(self) -> dict[str, int]:
        return {"copies": 5}

    def faults(self) -> list[str]:
        return []


@pytest.fixture(autouse=True)
def names() -> Iterator[clockwork.Names]:
    """Where names lead; and no teacher is a true one."""
    made = clockwork.Names()
    for family in (4, 6):
        made.known["shop.test", family] = MachineError("does not resolve: NXDOMAIN")
    FalseAnswers.made, FalseRecogniser.made = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataplane.daemon.names.addresses", made.addresses)
        patch.setattr("dataplane.daemon.learn.PassingAnswers", FalseAnswers)
        patch.setattr("dataplane.daemon.learn.Recogniser", FalseRecogniser)
        yield made


class Heard:
    """What was handed over, and when."""

    def __init__(self) -> None:
        self.at: list[int] = []
        self.known = Known()

    def __call__(self, known: Known) -> None:
        self.at.append(now_ms())
        self.known = known

    def labels(self, address: str) -> tuple[str, ...]:
        return said(self.known).get(address_key(ip_address(address)), ())


def test_the_first_is_handed_over_at_once_and_others_gathered() -> None:
    async def work() -> None:
        heard = Heard()
        learning = Learning(file_with(ASKS), heard)
        await learning.start()
        (answers,) = FalseAnswers.made
        await until_ms(1_000)
        for number in range(100):
            answers.says("www.example.org", f"203.0.113.{number}")
            await until_ms(1_000 + 10 * number)
        await until_ms(3_000)
        assert heard.at == [1_000, 1_200, 1_400, 1_600, 1_800, 2_000]
        assert heard.labels("203.0.113.99") == ("shops",)
        assert len(said(heard.known)) == 100
        assert learning.known is heard.known
        await learning.stop()

    clocked(work)


def test_nothing_new_is_not_handed_over() -> None:
    async def work() -> None:
        heard = Heard()
        learning = Learning(file_with(ASKS), heard)
        await learning.start()
        for _ in range(10):
            FalseAnswers.made[0].says("www.example.org", "203.0.113.7")
            await until_ms(now_ms() + 1_000)
        assert len(heard.at) == 1
        await learning.stop()

    clocked(work)


def test_what_is_over_is_forgotten() -> None:
    """After its time and the grace, with the next look at all of them."""

    async def work() -> None:
        heard = Heard()
        learning = Learning(file_with(ASKS), heard)
        await learning.start()
        FalseAnswers.made[0].says("www.example.org", "203.0.113.7", ttl_s=60)
        await until_ms(359_000)
        assert heard.labels("203.0.113.7") == ("shops",)
        await until_ms(366_000)
        assert heard.labels("203.0.113.7") == ()
        await learning.stop()

    clocked(work)


def test_names_that_the_router_resolves(names: clockwork.Names) -> None:
    """An address that a name leads to no more stays for its grace; one that it leads to, for good.

    A resolver that falls silent changes nothing for as long.
    """
    names.known["shop.test", 4] = [ip_address("203.0.113.7")]
    names.keep_s = 60

    async def work() -> None:
        heard = Heard()
        learning = Learning(file_with(ASKS), heard)
        await learning.start()
        await until_ms(100)
        assert heard.labels("203.0.113.7") == ("shops",)
        assert learning.report()["lists"] == [
            {"name": "shops", "ranges": 1, "names": 2, "learned": 1}
        ]
        names.known["shop.test", 4] = [ip_address("203.0.113.8")]
        await until_ms(61_000)
        assert heard.labels("203.0.113.7") == heard.labels("203.0.113.8") == ("shops",)
        await until_ms(400_000)
        assert heard.labels("203.0.113.7") == ()
        assert heard.labels("203.0.113.8") == ("shops",)
        names.known["shop.test", 4] = MachineError("does not resolve: no answer within 5 s")
        await until_ms(700_000)
        assert heard.labels("203.0.113.8") == ("shops",)
        assert "list shops: shop.test does not resolve: no answer within 5 s" in learning.faults()
        await until_ms(1_100_000)
        assert heard.labels("203.0.113.8") == ()
        await learning.stop()

    clocked(work)


def test_of_many_names_that_do_not_resolve_a_few_are_told(names: clockwork.Names) -> None:
    many = tuple(f"n{number}.test" for number in range(100))
    for name in many:
        for family in (4, 6):
            names.known[name, family] = MachineError("does not resolve: NXDOMAIN")
    config = replace(file_with(ASKS), lists=(replace(SHOPS, names=many),))

    async def work() -> None:
        learning = Learning(config, Heard())
        await learning.start()
        await until_ms(1_000)
        faults = [fault for fault in learning.faults() if fault.startswith("list ")]
        assert faults == [
            *(f"list shops: n{number}.test does not resolve: NXDOMAIN" for number in range(5)),
            "list shops: 95 more names do not resolve",
        ]
        await learning.stop()

    clocked(work)


def test_applications() -> None:
    async def work() -> None:
        heard = Heard()
        learning = Learning(file_with(SHARES), heard)
        await learning.start()
        assert FalseAnswers.made == []
        (recogniser,) = FalseRecogniser.made
        assert (recogniser.group, recogniser.state) == (7477, "started")
        ends = (ip_address("203.0.113.7"), 6881), (ip_address("10.10.1.0"), 51413)
        recogniser.found(Finding(17, *ends, ("bittorrent",)))
        await until_ms(1_000)
        assert len(said(heard.known)) == 2
        assert set(said(heard.known).values()) == {("application:bittorrent",)}
        assert learning.report()["learned"] == {"entries": 2, "oldest_out": 0}
        assert learning.report()["dns"] is None
        assert learning.report()["recogniser"] == {"copies": 5}
        await until_ms(3_606_000)
        assert said(heard.known) == {}
        await learning.stop()
        assert recogniser.state == "stopped"

    clocked(work)


def test_what_nobody_can_recognise_is_told() -> None:
    """Once it is known what can be."""

    async def work() -> None:
        learning = Learning(file_with(SHARES), Heard())
        await learning.start()
        assert learning.faults() == []
        FalseRecogniser.made[0].known = frozenset({"bittorrent", "tls"})
        assert learning.faults() == ["rule 2: the application martian is unknown to nDPI"]
        await learning.stop()

    clocked(work)


def test_another_file() -> None:
    """What it asks for too stays; the rest is forgotten, and who taught it ends."""

    async def work() -> None:
        heard = Heard()
        learning = Learning(file_with(ASKS, SHARES), heard)
        await learning.start()
        (answers,), (recogniser,) = FalseAnswers.made, FalseRecogniser.made
        answers.says("www.example.org", "203.0.113.7")
        ends = (ip_address("203.0.113.7"), 6881), (ip_address("10.10.1.0"), 51413)
        recogniser.found(Finding(6, *ends, ("bittorrent",)))
        await until_ms(1_000)
        assert len(said(heard.known)) == 3
        await learning.take(file_with(ASKS))
        await until_ms(2_000)
        assert set(said(heard.known)) == {address_key(ip_address("203.0.113.7"))}
        assert not answers.closed
        assert recogniser.state == "stopped"
        await learning.take(file_with(ASKS, SHARES, number=100))
        assert answers.closed
        assert (FalseAnswers.made[1].group, FalseRecogniser.made[1].group) == (101, 100)
        await learning.take(file_with())
        await until_ms(3_000)
        assert said(heard.known) == {}
        assert FalseAnswers.made[1].closed
        assert FalseRecogniser.made[1].state == "stopped"
        await learning.stop()

    clocked(work)


def test_a_list_that_loses_a_name(names: clockwork.Names) -> None:
    """What that name taught is forgotten, and the other names are asked for at once.

    A list that gains one keeps what it has; one that is called otherwise has all of it, too.
    """
    for name, last in (("a.test", 1), ("b.test", 2), ("c.test", 3)):
        names.known[name, 4] = [ip_address(f"203.0.113.{last}")]
        names.known[name, 6] = MachineError("does not resolve: it has no IPv6 address")

    def lists(*listed: str, called: str = "shops") -> Config:
        rule = replace(ASKS, destination=Selection(lists=(called,)))
        return replace(file_with(rule), lists=(AddressList(called, names=listed),))

    async def work() -> None:
        heard = Heard()
        learning = Learning(lists("a.test", "b.test"), heard)
        await learning.start()
        await until_ms(1_000)
        assert heard.labels("203.0.113.1") == heard.labels("203.0.113.2") == ("shops",)
        names.asked.clear()
        await learning.take(lists("a.test", "b.test", "c.test"))
        await until_ms(2_000)
        assert {name for _, name, _ in names.asked} == {"c.test"}
        assert len(said(heard.known)) == 3
        await learning.take(lists("a.test", "c.test"))
        await until_ms(3_000)
        assert heard.labels("203.0.113.1") == heard.labels("203.0.113.3") == ("shops",)
        assert heard.labels("203.0.113.2") == ()
        await learning.take(lists("a.test", "c.test", called="stores"))
        await until_ms(4_000)
        assert heard.labels("203.0.113.1") == heard.labels("203.0.113.3") == ("stores",)
        await learning.stop()

    clocked(work)


def test_nothing_is_handed_over_after_the_end() -> None:
    async def work() -> None:
        heard = Heard()
        learning = Learning(file_with(ASKS), heard)
        await learning.start()
        (answers,) = FalseAnswers.made
        answers.says("www.example.org", "203.0.113.7")
        await learning.stop()
        answers.says("www.example.org", "203.0.113.8")
        await until_ms(10_000)
        assert heard.at == []
        assert answers.closed

    clocked(work)


class FalseCopies:
    """A log group with what the test puts into it. A socket pair wakes its reader."""

    made: list[FalseCopies]
    refusals: list[Error]

    def __init__(self, group: int, *, threshold: int, timeout_ms: int) -> None:
        if self.refusals:
            raise self.refusals.pop()
        self.lost = 0
        self.waiting: list[Copy] = []
        self.broken = False
        self._near, self._far = socket.socketpair()
        self._far.send(b"x")
        self.made.append(self)

    def fileno(self) -> int:
        return self._near.fileno()

    def receive(self) -> list[Copy]:
        if self.broken:
            raise KernelError("log group 7478: broken")
        return [self.waiting.pop(0)] if self.waiting else []

    def close(self) -> None:
        self._near.close()
        self._far.close()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> type[FalseCopies]:
    FalseCopies.made, FalseCopies.refusals = [], []
    monkeypatch.setattr("dataplane.daemon.passing.Copies", FalseCopies)
    return FalseCopies


def test_a_flood_of_questions_leaves_time_for_others(copies: type[FalseCopies]) -> None:
    """So many at once, then a pause."""

    async def work() -> None:
        answers = PassingAnswers(7478, lambda _: ("shops",), lambda _: None)
        (group,) = copies.made
        group.waiting = [Copy(out(query(number=n)), QUESTION) for n in range(1_000)]
        seen = []
        for at in range(100):
            await until_ms(20 * at + 5)
            seen.append(answers.report()["questions"])
        steps = {after - before for before, after in pairwise(seen)}
        assert max(steps) <= 64
        assert seen[-1] == 1_000
        answers.close()

    clocked(work)


def test_questions_and_answers_by_their_prefix(copies: type[FalseCopies]) -> None:
    """What a rule calls a question never is an answer."""

    async def work() -> None:
        found: list[Answer] = []
        answers = PassingAnswers(7478, lambda _: ("shops",), found.append)
        (group,) = copies.made
        asked = query()
        told = back(answering(asked, "www.example.org A 203.0.113.7"))
        group.waiting = [Copy(out(asked), QUESTION), Copy(told, QUESTION), Copy(told, "other")]
        await until_ms(100)
        assert found == []
        group.waiting = [Copy(told, ANSWER), Copy(told, ANSWER)]
        await until_ms(200)
        assert len(found) == 1
        assert answers.report() == {"questions": 1, "answers": 1, "ignored": 1, "lost": 0}
        answers.close()

    clocked(work)


def test_a_group_that_is_refused_is_tried_again(copies: type[FalseCopies]) -> None:
    copies.refusals = [MachineError("log group 7478 is bound by another process")] * 2

    async def work() -> None:
        answers = PassingAnswers(7478, lambda _: (), lambda _: None)
        assert answers.faults() == [
            "DNS answers are not learned: log group 7478 is bound by another process"
        ]
        await until_ms(15_000)
        assert answers.faults()
        await until_ms(25_000)
        assert answers.faults() == []
        copies.made[0].broken = True
        copies.made[0].lost = 5
        await until_ms(26_000)
        assert answers.faults() == ["DNS answers are not learned: log group 7478: broken"]
        await until_ms(40_000)
        assert answers.faults() == []
        assert answers.report()["lost"] == 5
        answers.close()
        answers.close()

    clocked(work)


def test_no_socket_left_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process has no descriptor left, copies are asked for again later."""

    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    async def work() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", refuse)
            answers = PassingAnswers(7478, lambda _: (), lambda _: None)
        assert answers.faults() == [
            "DNS answers are not learned: log group 7478: Too many open files"
        ]
        answers.close()

    clocked(work)
