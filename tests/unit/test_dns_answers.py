"""DNS that passes by: which answers are believed, and what they teach."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.decide.dns import (
    MOST_QUESTIONS,
    QUESTION_S,
    Answer,
    Questions,
    public,
    read_datagram,
)
from dataplane.decide.wanted import Patterns

CLIENT, RESOLVER = "10.10.1.0", "9.9.9.9"
PORT = 40_000
PATTERNS = Patterns.of([("*.example.org", "wild"), ("www.example.com", "plain")])


def packet(source: str, source_port: int, target: str, target_port: int, data: bytes) -> bytes:
    """A UDP datagram in an IP packet of the addresses' family."""
    here, there = ip_address(source), ip_address(target)
    udp = struct.pack("!HHHH", source_port, target_port, 8 + len(data), 0) + data
    if here.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64)
        return head + here.packed + there.packed + udp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    return head + here.packed + there.packed + udp


def query(name: str = "www.example.org", kind: str = "A", number: int = 7) -> dns.message.Message:
    return dns.message.make_query(name, kind, id=number)


def answering(asked: dns.message.Message, *records: str, ttl: int = 300) -> dns.message.Message:
    """An answer with records such as "www.example.org A 203.0.113.7"."""
    made = dns.message.make_response(asked)
    for record in records:
        owner, kind, data = record.split()
        data += "." if kind == "CNAME" else ""
        made.answer.append(dns.rrset.from_text(f"{owner}.", ttl, "IN", kind, data))
    return made


def out(message: bytes | dns.message.Message, client: str = CLIENT, port: int = PORT) -> bytes:
    """The question's packet."""
    data = message if isinstance(message, bytes) else message.to_wire()
    return packet(client, port, RESOLVER, 53, data)


def back(
    message: bytes | dns.message.Message,
    server: str = RESOLVER,
    port: int = PORT,
    client: str = CLIENT,
) -> bytes:
    """The answer's packet."""
    data = message if isinstance(message, bytes) else message.to_wire()
    return packet(server, 53, client, port, data)


def learned(asked: dns.message.Message, said: dns.message.Message | bytes) -> Answer | None:
    """What is learned from this question and this answer."""
    questions = Questions(PATTERNS.labels)
    questions.question(out(asked), 0)
    return questions.answer(back(said), 1)


def addresses(answer: Answer | None) -> set[str]:
    return {str(one) for one in answer.addresses} if answer else set()


def test_an_answer_to_a_question_that_was_seen() -> None:
    asked = query()
    found = learned(asked, answering(asked, "www.example.org A 203.0.113.7"))
    assert found == Answer(("wild",), (ip_address("203.0.113.7"),), 300)


def test_ipv6_both_below_and_within() -> None:
    questions = Questions(PATTERNS.labels)
    asked = query(kind="AAAA")
    said = answering(asked, "www.example.org AAAA 2001:db8::7")
    questions.question(packet("fd00:db8::100", PORT, "2620:fe::9", 53, asked.to_wire()), 0)
    found = questions.answer(packet("2620:fe::9", 53, "fd00:db8::100", PORT, said.to_wire()), 1)
    assert addresses(found) == {"2001:db8::7"}


def test_who_forges_an_answer_teaches_nothing() -> None:
    """From another server, to another port or client, with another number, of another name."""
    asked = query()
    true = answering(asked, "www.example.org A 203.0.113.7")
    other_number = answering(query(number=8), "www.example.org A 198.51.100.66")
    other_name = answering(query("mail.example.org"), "mail.example.org A 198.51.100.66")
    other_kind = answering(query(kind="AAAA"), "www.example.org AAAA 2001:db8::66")
    questions = Questions(PATTERNS.labels)
    questions.question(out(asked), 0)
    forged = [
        back(true, server="203.0.113.66"),
        back(true, port=PORT + 1),
        back(true, client="10.10.1.1"),
        *(back(one) for one in (other_number, other_name, other_kind)),
    ]
    for one in forged:
        assert questions.answer(one, 1) is None
    assert questions.ignored == len(forged)
    assert addresses(questions.answer(back(true), 1)) == {"203.0.113.7"}, "the true one counts"


def test_an_answer_that_nobody_asked_for() -> None:
    questions = Questions(PATTERNS.labels)
    said = answering(query(), "www.example.org A 203.0.113.7")
    assert questions.answer(back(said), 1) is None
    assert (questions.answered, questions.ignored) == (0, 1)


def test_a_question_counts_once() -> None:
    """The second answer is somebody else's."""
    asked = query()
    questions = Questions(PATTERNS.labels)
    questions.question(out(asked), 0)
    assert questions.answer(back(answering(asked, "www.example.org A 203.0.113.7")), 1)
    assert questions.answer(back(answering(asked, "www.example.org A 203.0.113.8")), 1) is None
    assert len(questions) == 0


def test_an_answer_that_comes_very_late() -> None:
    asked = query()
    said = back(answering(asked, "www.example.org A 203.0.113.7"))
    questions = Questions(PATTERNS.labels)
    questions.question(out(asked), 0)
    assert questions.answer(said, QUESTION_S) is None
    questions.question(out(asked), 100)
    assert questions.answer(said, 100 + QUESTION_S - 0.1)


def test_what_is_no_answer_teaches_nothing() -> None:
    """A question that comes back; an answer from another port; a question that says it answers."""
    asked = query()
    questions = Questions(PATTERNS.labels)
    questions.question(out(asked), 0)
    said = answering(asked, "www.example.org A 203.0.113.7")
    assert questions.answer(back(asked), 1) is None
    assert questions.answer(packet(RESOLVER, 54, CLIENT, PORT, said.to_wire()), 1) is None
    questions = Questions(PATTERNS.labels)
    questions.question(out(said), 0)
    assert len(questions) == 0


def test_a_name_in_any_case() -> None:
    """Resolvers mix cases, so that answers are harder to guess; some servers say it in lower."""
    asked = query("wWw.eXaMpLe.oRg")
    said = answering(query("www.example.org"), "WWW.EXAMPLE.ORG A 203.0.113.7")
    assert addresses(learned(asked, said)) == {"203.0.113.7"}


def test_aliases_are_followed_from_the_name_that_was_asked_for() -> None:
    """In whatever order they come; what else is in the answer is of no interest."""
    asked = query()
    said = answering(
        asked,
        "edge.cdn.test A 203.0.113.7",
        "edge.cdn.test A 203.0.113.8",
        "www.bank.test A 198.51.100.66",
        "alias.cdn.test CNAME edge.cdn.test",
        "www.example.org CNAME alias.cdn.test",
    )
    assert addresses(learned(asked, said)) == {"203.0.113.7", "203.0.113.8"}


def test_an_alias_of_interest_is_not_the_name_that_was_asked_for() -> None:
    asked = query("www.elsewhere.test")
    said = answering(
        asked, "www.elsewhere.test CNAME www.example.org", "www.example.org A 203.0.113.7"
    )
    assert learned(asked, said) is None


def test_aliases_in_a_circle() -> None:
    asked = query()
    said = answering(
        asked, "www.example.org CNAME a.example.org", "a.example.org CNAME www.example.org"
    )
    assert learned(asked, said) is None


def test_the_shortest_time_of_the_chain() -> None:
    asked = query()
    said = answering(asked, "www.example.org CNAME a.test", ttl=3000)
    said.answer.append(dns.rrset.from_text("a.test.", 30, "IN", "A", "203.0.113.7"))
    found = learned(asked, said)
    assert found is not None
    assert found.ttl_s == 30


def test_what_leads_to_hosts_of_ours_is_left_out() -> None:
    """A name's owner may say any address; those that the Internet does not route are not his."""
    asked = query()
    said = answering(
        asked,
        *(f"www.example.org A {one}" for one in ("10.10.1.1", "127.0.0.1", "0.0.0.0")),
        *(f"www.example.org A {one}" for one in ("192.168.1.1", "100.64.0.1", "224.0.0.1")),
        "www.example.org A 203.0.113.7",
    )
    assert addresses(learned(asked, said)) == {"203.0.113.7"}
    private = answering(asked, "www.example.org A 10.10.1.1")
    assert learned(asked, private) is None
    six = ("fd00:db8::1", "fe80::1", "::1", "ff02::1", "::ffff:203.0.113.7")
    assert not any(public(ip_address(one)) for one in six)
    assert public(ip_address("64:ff9b::cb00:7107"))


@pytest.mark.parametrize("code", [dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_refusal(code: dns.rcode.Rcode) -> None:
    asked = query()
    said = answering(asked, "www.example.org A 203.0.113.7")
    said.set_rcode(code)
    assert learned(asked, said) is None


def test_an_answer_that_is_cut_off() -> None:
    """Its client asks again by TCP, which nobody here reads."""
    asked = query()
    said = answering(asked, "www.example.org A 203.0.113.7")
    said.flags |= dns.flags.TC
    assert learned(asked, said) is None


def test_other_names_are_not_even_remembered() -> None:
    questions = Questions(PATTERNS.labels)
    for name in ("example.org", "www.example.net", "xexample.org", "example.com", "."):
        questions.question(out(query(name)), 0)
    questions.question(out(query(kind="MX")), 0)
    assert len(questions) == 0
    said = answering(query("www.example.net"), "www.example.net A 203.0.113.7")
    assert questions.answer(back(said), 0) is None
    assert questions.ignored == 0


def test_a_dot_within_a_label_makes_no_other_name() -> None:
    """The label "www.example" is not two labels."""
    asked = dns.message.make_query(r"www\.example.org.example.org", "A")
    questions = Questions(PATTERNS.labels)
    questions.question(out(asked), 0)
    assert len(questions) == 0


def test_questions_without_end() -> None:
    """The oldest are forgotten."""
    questions = Questions(PATTERNS.labels)
    for number in range(MOST_QUESTIONS + 100):
        questions.question(out(query(number=number & 0xFFFF), port=1024 + number), 0)
    assert len(questions) == MOST_QUESTIONS
    questions.question(out(query()), QUESTION_S)
    assert len(questions) == 1


def test_another_file_asks_for_other_names() -> None:
    asked = query()
    said = back(answering(asked, "www.example.org A 203.0.113.7"))
    questions = Questions(PATTERNS.labels)
    questions.question(out(asked), 0)
    questions.take(Patterns.of([("www.example.org", "new")]).labels)
    assert questions.answer(said, 1) is None
    questions.question(out(asked), 2)
    found = questions.answer(said, 3)
    assert found is not None
    assert found.labels == ("new",)


TRUE = answering(query(), "www.example.org CNAME a.test", "a.test A 203.0.113.7")


@given(st.binary(max_size=200))
def test_bytes_of_any_kind(data: bytes) -> None:
    questions = Questions(PATTERNS.labels)
    questions.question(data, 0)
    questions.question(out(data), 0)
    assert questions.answer(data, 0) is None
    questions.question(out(query()), 0)
    assert questions.answer(back(data), 0) is None


@given(st.data())
@settings(max_examples=300)
def test_an_answer_that_is_broken_somewhere(data: st.DataObject) -> None:
    """It teaches nothing, or what it says; nothing is ever raised."""
    wire = bytearray(TRUE.to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(2, len(wire) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(wire[: data.draw(st.integers(0, len(wire)))])
    questions = Questions(PATTERNS.labels)
    questions.question(out(query()), 0)
    found = questions.answer(back(broken), 1)
    assert found is None or (found.labels == ("wild",) and found.addresses)


def test_an_answer_with_very_many_addresses() -> None:
    asked = query()
    said = answering(asked, *(f"www.example.org A 203.0.113.{last}" for last in range(1, 60)))
    assert len(addresses(learned(asked, said))) == 16


def worst(record: Callable[[int], bytes]) -> bytes:
    """4,096 bytes of records whose names are as long as names may be."""
    name = b"\1a" * 120 + b"\7example\3org\0"
    asked = name + struct.pack("!HH", 1, 1)
    records, number = b"", 0
    while len(records) < 4096 - len(asked) - 50:
        records += record(number)
        number += 1
    return struct.pack("!HHHHHH", 7, 0x8180, 1, number, 0, 0) + asked + records


def test_answers_that_are_made_to_take_long() -> None:
    """Reading ends early. dnspython needs more than half a second for the first of these."""
    chain = worst(lambda _: b"\xc0\x0c" + struct.pack("!HHIH", 5, 1, 60, 2) + b"\xc0\x0c")
    plain = worst(lambda _: b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + b"\xcb\0\x71\7")
    questions = Questions(PATTERNS.labels)
    for number, message in enumerate((chain, plain), 1):
        asked = message[:2] + b"\1\0" + message[4:]
        questions.question(out(asked), 0)
        assert len(questions) == 1
        assert questions.answer(back(message), 1) is None
        assert questions.ignored == number


def test_what_is_no_whole_datagram() -> None:
    whole = out(query())
    assert read_datagram(whole) is not None
    for length in range(len(whole)):
        assert read_datagram(whole[:length]) is None
    fragment = whole[:6] + b"\x20\x00" + whole[8:]
    tcp = whole[:9] + b"\6" + whole[10:]
    assert read_datagram(fragment) is None
    assert read_datagram(tcp) is None
    six = packet("fd00:db8::100", PORT, "2620:fe::9", 53, b"x")
    assert read_datagram(six) is not None
    assert read_datagram(six[:6] + b"\0" + six[7:]) is None, "a header of options comes first"
