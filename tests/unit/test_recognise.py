"""What nDPI makes of the first packets of connections, and what we make of what it says."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from tests import payloads, quic
from tests.payloads import Conversation

recognise = pytest.importorskip(
    "dataplane.recognise", reason="built without nDPI", exc_type=ImportError
)

CLIENT, SERVER = "192.168.1.10", "203.0.113.5"
CLIENT6, SERVER6 = "fd00::10", "2001:db8::5"
LONG = ".".join(["l" * 30] * 4) + ".www.example.org"


def talk(port: int = 443, *, sport: int = 40000, inbound: bool = False) -> Conversation:
    return Conversation(CLIENT, sport, SERVER, port, inbound)


def found(recogniser: recognise.Recogniser, *talks: Conversation, now_ms: int = 1) -> list:
    return [
        finding
        for one in talks
        for packet, prefix in one.copies
        for finding in recogniser.feed(packet, prefix, now_ms)
    ]


def names(findings: list) -> list[tuple[tuple[str, ...], str]]:
    return [(applications, host) for *_, applications, host in findings]


TCP = {
    "tls": (payloads.client_hello("www.example.org"), ("tls",), "www.example.org"),
    "tls, an app": (payloads.client_hello("www.youtube.com"), ("tls", "youtube"), None),
    "tls, no name": (payloads.client_hello(None), ("tls",), ""),
    "http": (payloads.http_request("www.example.org"), ("http",), "www.example.org"),
    "http, port": (payloads.http_request("a.example.org:8080"), ("http",), "a.example.org"),
    "http, letters": (payloads.http_request("A.Example.ORG"), ("http",), "a.example.org"),
    "bittorrent": (payloads.bittorrent_handshake(), ("bittorrent",), ""),
}
UDP = {
    "quic": (payloads.quic_initial("www.example.org"), ("quic",), "www.example.org"),
    "quic, an app": (payloads.quic_initial("www.youtube.com"), ("quic", "youtube"), None),
    "bittorrent": (payloads.bittorrent_question(), ("bittorrent",), ""),
    "dns": (payloads.dns_query("www.youtube.com"), ("dns",), ""),
}


@pytest.mark.parametrize("kind", TCP)
@pytest.mark.parametrize("port", [80, 443, 6881, 50001])
def test_a_connection_is_known_by_its_first_payload(kind: str, port: int) -> None:
    """On whatever port."""
    payload, applications, host = TCP[kind]
    (finding,) = found(recognise.Recogniser(), talk(port).open().say(payload))
    assert finding[:6] == (
        6,
        ip_address(SERVER).packed,
        port,
        ip_address(CLIENT).packed,
        40000,
        "lan",
    )
    assert finding[6] == applications
    assert host is None or finding[7] == host


@pytest.mark.parametrize("kind", UDP)
def test_a_datagram_is_known_at_once(kind: str) -> None:
    payload, applications, host = UDP[kind]
    port = {"dns": 53, "bittorrent": 6881}.get(kind, 443)
    (finding,) = found(recognise.Recogniser(), talk(port).datagram(payload))
    assert (finding[0], finding[6]) == (17, applications)
    assert host is None or finding[7] == host


def test_ipv6() -> None:
    one = Conversation(CLIENT6, 40000, SERVER6, 443)
    one.open().say(payloads.client_hello("six.example.org"))
    (finding,) = found(recognise.Recogniser(), one)
    assert finding[1:5] == (ip_address(SERVER6).packed, 443, ip_address(CLIENT6).packed, 40000)
    assert finding[7] == "six.example.org"


def test_what_is_encrypted_in_a_quic_initial_is_as_the_standard_says() -> None:
    """RFC 9001, appendix A.2: begin and end of the datagram."""
    hello = (
        "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c000004"
        "13011302010000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d00170018"
        "00100007000504616c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba75"
        "3de171fa71f50f1ce15d43e994ec74d748002b0003020304000d0010000e040305030603020308040805080600"
        "2d00020101001c00024001003900320408ffffffffffffffff05048000ffff07048000ffff0801100104800075"
        "300901100f088394c8f03e51570806048000ffff"
    )
    frames = bytes.fromhex(hello).ljust(1162, b"\0")
    opening = bytes.fromhex("c300000001088394c8f03e5157080000")
    datagram = quic.protect(opening, frames, bytes.fromhex("8394c8f03e515708"), 2)
    assert len(datagram) == 1200
    assert datagram.startswith(
        bytes.fromhex("c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11")
    )
    assert datagram.endswith(bytes.fromhex("e221af44860018ab0856972e194cd934"))


@pytest.mark.parametrize("most", [100, 200, 300])
def test_a_client_hello_in_several_segments(most: int) -> None:
    hello = payloads.client_hello("www.example.org")
    assert names(found(recognise.Recogniser(), talk().open().say(hello, most=most))) == [
        (("tls",), "www.example.org")
    ]


@pytest.mark.parametrize("kind", TCP)
def test_packets_without_a_payload_need_not_be_copied(kind: str) -> None:
    payload, applications, _ = TCP[kind]
    one = talk().open().say(payload)
    one.copies = [(packet, prefix) for packet, prefix in one.copies if len(packet) > 40]
    ((known, _),) = names(found(recognise.Recogniser(), one))
    assert known == applications


@pytest.mark.parametrize("most", range(16, 60, 4))
def test_half_a_host_is_none(most: int) -> None:
    """Wherever the request is torn."""
    one = talk(80).open().say(payloads.http_request("www.example.org"), most=most)
    for known, host in names(found(recognise.Recogniser(), one)):
        assert (known, host) in [(("http",), ""), (("http",), "www.example.org")]


@pytest.mark.parametrize("payload", [payloads.client_hello(LONG), payloads.http_request(LONG)])
def test_of_a_long_host_the_last_labels_count(payload: bytes) -> None:
    """nDPI keeps 79 letters. A wildcard finds them all the same."""
    (finding,) = found(recognise.Recogniser(), talk().open().say(payload))
    host = finding[7]
    assert LONG.endswith("." + host)
    assert host.endswith(".www.example.org")


@pytest.mark.parametrize("host", ["a b", "a/b", "ä.example", "<x>", "%00", "a,b"])
def test_a_host_that_is_no_name_is_none(host: str) -> None:
    (finding,) = found(
        recognise.Recogniser(), talk(80).open().say(payloads.http_request(host.strip()))
    )
    assert finding[7] in ("", *([] if " " not in host else ["a"]))


def test_a_resolver_is_not_what_is_asked_for() -> None:
    """nDPI calls the question "dns" and "youtube"; the server is no server of that."""
    one = talk(53).datagram(payloads.dns_query("www.youtube.com"))
    one.datagram(payloads.dns_answer("www.youtube.com", ["192.0.2.1"]), by_client=False)
    assert names(found(recognise.Recogniser(), one)) == [(("dns",), "")]


def test_a_proxy_is_not_what_is_asked_for() -> None:
    request = b"GET http://www.youtube.com/ HTTP/1.1\r\nHost: www.youtube.com\r\n\r\n"
    connect = b"CONNECT www.youtube.com:443 HTTP/1.1\r\nHost: www.youtube.com:443\r\n\r\n"
    for payload in (request, connect):
        for applications, host in names(
            found(recognise.Recogniser(), talk(3128).open().say(payload))
        ):
            assert "youtube" not in applications
            assert host == ""


def test_who_the_client_is() -> None:
    """By a SYN or the answer to one, else by who was seen first, unless the kernel says it."""
    hello = payloads.client_hello("www.example.org")
    end = (ip_address(CLIENT).packed, 40000)

    def client(one: Conversation) -> tuple[bytes, int, str]:
        (finding,) = found(recognise.Recogniser(), one)
        return finding[3], finding[4], finding[5]

    whole = talk().open().say(hello)
    assert client(whole) == (*end, "lan")
    from_the_answer = talk().open().say(hello)
    del from_the_answer.copies[0]
    assert client(from_the_answer) == (*end, "lan")
    inbound = talk(inbound=True).open().say(hello)
    assert client(inbound) == (*end, "wan")

    hello_alone = [(packet, prefix) for packet, prefix in whole.copies if hello in packet]
    acknowledged = whole.copies[-1:]
    wrong = talk()
    wrong.copies = acknowledged + hello_alone
    assert client(wrong) == (ip_address(SERVER).packed, 443, "wan")
    wrong.copies = [(packet, prefix + b" reply") for packet, prefix in acknowledged]
    wrong.copies += [(packet, prefix + b" original") for packet, prefix in hello_alone]
    assert client(wrong) == (*end, "lan")


def test_no_more_talks_are_kept_than_asked_for() -> None:
    """The oldest is forgotten, so what it says last is not understood."""
    hello = payloads.client_hello("www.example.org")
    recogniser = recognise.Recogniser(talks=8)
    first, second = talk(sport=1), talk(sport=2)
    halves = hello[:200], hello[200:]
    for one in (first, second):
        found(recogniser, one.open().say(halves[0]))
        one.copies.clear()
    for sport in range(100, 107):
        found(recogniser, talk(sport=sport).open())
    assert recogniser.counters()["pushed_out"] == 1
    assert found(recogniser, first.say(halves[1])) == []
    assert recogniser.counters()["talks"] == 10
    last = talk(sport=106).open()
    last.copies.clear()
    assert names(found(recogniser, last.say(hello))) == [(("tls",), "www.example.org")]


def test_of_a_talk_no_more_is_looked_at_than_asked_for() -> None:
    recogniser = recognise.Recogniser(packets=5)
    one = talk(7).open()
    for _ in range(4):
        one.say(b"nothing that anybody knows")
    assert found(recogniser, one.say(payloads.bittorrent_handshake())) == []
    counted = recogniser.counters()
    assert (counted["copies"], counted["ignored"]) == (13, 8)


def test_the_same_is_not_said_again_for_a_while() -> None:
    """Of a server that is asked often; peers of BitTorrent are told apart by their own ends."""
    recogniser = recognise.Recogniser()
    hello, handshake = payloads.client_hello("www.example.org"), payloads.bittorrent_handshake()
    talks = [talk(sport=sport).open().say(hello) for sport in range(1000, 1010)]
    assert len(found(recogniser, *talks[:9], now_ms=10_000)) == 1
    assert recogniser.counters()["repeated"] == 8
    assert len(found(recogniser, talks[9], now_ms=15_000)) == 1
    peers = [talk(6881, sport=sport).open().say(handshake) for sport in range(1000, 1010)]
    assert len(found(recogniser, *peers)) == 10


def test_ports_that_are_used_again() -> None:
    recogniser = recognise.Recogniser()
    hellos = [payloads.client_hello(name) for name in ("a.example.org", "b.example.org")]
    hosts = [
        host for hello in hellos for _, host in names(found(recogniser, talk().open().say(hello)))
    ]
    assert hosts == ["a.example.org", "b.example.org"]
    initials = [payloads.quic_initial(name) for name in ("a.example.org", "b.example.org")]
    for now_ms, expected in ((1, 1), (2, 0), (70_000, 1)):
        one = talk().datagram(initials[now_ms == 70_000])
        assert len(found(recogniser, one, now_ms=now_ms)) == expected


def test_a_copy_that_was_cut_is_read_as_far_as_it_goes() -> None:
    """The kernel joins segments, and copies their beginning."""
    hello = payloads.client_hello("www.example.org")
    one = talk().open().say(hello + bytes(30_000), most=40_000)
    one.copies = [(packet[:2048], prefix) for packet, prefix in one.copies]
    assert names(found(recognise.Recogniser(), one)) == [(("tls",), "www.example.org")]


def message(packet: bytes, prefix: bytes = b"lan", number: int = 0) -> bytes:
    """As the kernel writes a copy."""
    attributes = b""
    for kind, value in ((10, prefix + b"\0"), (12, struct.pack("!I", number)), (9, packet)):
        attributes += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    body = struct.pack("!BBH", 2, 0, 7478) + attributes
    return struct.pack("=IHHII", 16 + len(body), 4 << 8, 0, 0, 0) + body


def test_the_kernels_messages() -> None:
    """Many in a datagram; gaps in their numbers are losses, across the end of the numbers too."""
    recogniser = recognise.Recogniser()
    talks = [
        talk(sport=sport).open().say(payloads.client_hello(f"h{sport}.example.org"))
        for sport in range(1000, 1090)
    ]
    numbers = iter(range(2**32 - 100, 2**33))
    said = []
    for at, one in enumerate(talks):
        if at == 50:
            for _ in range(7):
                next(numbers)
        datagram = b"".join(
            message(packet, prefix, next(numbers) % 2**32) for packet, prefix in one.copies
        )
        said += recogniser.read(datagram, 1)
    assert [host for _, host in names(said)] == [f"h{n}.example.org" for n in range(1000, 1090)]
    assert recogniser.counters()["lost"] == 7
    assert recogniser.read(b"junk") == []
    assert recogniser.counters()["unreadable"] == 1


def test_more_findings_in_a_datagram_than_are_kept_at_a_time() -> None:
    handshake = payloads.bittorrent_handshake()
    datagram = b""
    for sport in range(1000, 1200):
        one = talk(6881, sport=sport).open().say(handshake)
        datagram += b"".join(message(*copy) for copy in one.copies if handshake in copy[0])
    assert len(recognise.Recogniser().read(datagram)) == 200


def test_packets_that_are_none() -> None:
    recogniser = recognise.Recogniser()
    for packet in (
        b"",
        b"\x45",
        bytes(40),
        b"\x60" + bytes(60),
        payloads.udp("::1", 1, "::2", 2, b"")[:47],
    ):
        assert recogniser.feed(packet) == []
    assert recogniser.counters()["unreadable"] + recogniser.counters()["ignored"] <= 5


def test_all_names_are_in_lower_case() -> None:
    known = recognise.Recogniser().applications()
    assert {"tls", "quic", "http", "dns", "bittorrent", "youtube"} <= set(known)
    assert all(name == name.lower() for name in known)


@pytest.mark.parametrize(
    "options", [{"talks": 0}, {"talks": 1 << 21}, {"packets": 0}, {"packets": 256}]
)
def test_options_out_of_bounds(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="legal are"):
        recognise.Recogniser(**options)
