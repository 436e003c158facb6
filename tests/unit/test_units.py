"""What one value of the file may be, and what is said when it is not."""

from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config import units
from dataplane.config.model import Fields

ANY_VALUE = st.one_of(
    st.text(), st.integers(), st.booleans(), st.decimals(), st.just([]), st.just({}), st.dates()
)


@pytest.mark.parametrize(
    ("text", "bps"),
    [
        ("20Mbit", 20_000_000),
        ("20 Mbit", 20_000_000),
        ("20mbit", 20_000_000),
        ("1.5Gbit", 1_500_000_000),
        ("0.5Mbit", 500_000),
        ("1000bit", 1_000),
        ("1kbit", 1_000),
        ("100Tbit", 10**14),
    ],
)
def test_rate(text: str, bps: int) -> None:
    assert units.rate(text) == bps


@pytest.mark.parametrize(
    "value",
    ["20", "", "Mbit", "20MB", "20 M", "-1Mbit", "1e3bit", "٣Mbit", "20Mbit ", "20Mbit\n",
     "1,5Mbit", ".5Mbit", 20_000_000, True, Decimal("2.5"), ["20Mbit"]],
)  # fmt: skip
def test_no_rate(value: object) -> None:
    with pytest.raises(ValueError, match=r'^expected a rate such as "20Mbit", got '):
        units.rate(value)


@pytest.mark.parametrize("text", ["0bit", "999bit", "100.1Tbit", "999999999999999Tbit"])
def test_a_rate_out_of_range(text: str) -> None:
    with pytest.raises(ValueError, match=f'from 1kbit to 100Tbit, got "{text}"'):
        units.rate(text)


def test_a_rate_that_is_no_whole_number_of_bits() -> None:
    with pytest.raises(ValueError, match=r"a whole number of bits per second"):
        units.rate("1000.5bit")


@settings(deadline=None)
@given(st.integers(min_value=1_000, max_value=10**14))
def test_every_rate_in_bits_is_itself(bps: int) -> None:
    assert units.rate(f"{bps}bit") == bps


@pytest.mark.parametrize(
    ("value", "share"),
    [
        (2, Fraction(2)),
        (Decimal("0.1"), Fraction(1, 10)),
        (Decimal("1e3"), Fraction(1000)),
        (10**12, Fraction(10**12)),
    ],
)
def test_share_is_exact(value: object, share: Fraction) -> None:
    assert units.share(value) == share


@pytest.mark.parametrize(
    "value",
    [0, -1, Decimal("0"), Decimal("nan"), Decimal("inf"), Decimal("1e-7"), Decimal("1e-999999999"),
     Decimal("1e999999999"), True, "2", 10**13],
)  # fmt: skip
def test_no_share(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a .*number"):
        units.share(value)


@pytest.mark.parametrize(
    ("value", "mask"),
    [
        (0x7F000000, 0x7F000000),
        ("0x7f000000", 0x7F000000),
        ("0XF", 0xF),
        (0xFF00, 0xFF00),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xF0000000, 0xF0000000),
    ],
)
def test_mark_mask(value: object, mask: int) -> None:
    assert units.mark_mask(value) == mask


@pytest.mark.parametrize("value", [0x7, 0xE, 0x1700, 0x10001000, 0xF0F0, 1])
def test_a_mask_is_one_run_of_four_bits_or_more(value: int) -> None:
    with pytest.raises(ValueError, match=f"^expected one run of at least 4 set bits.*{value:#x}$"):
        units.mark_mask(value)


@pytest.mark.parametrize("value", [0, -1, 1 << 32, "7f000000", "0x", "0xg", True, Decimal(1)])
def test_no_mark(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a 32-bit number above zero"):
        units.mark(value)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("0123456789abcdef", 0x0123456789ABCDEF),
        ("FFFFFFFFFFFFFFFF", (1 << 64) - 1),
        ("/etc/evenlink/key", Path("/etc/evenlink/key")),
    ],
)
def test_hash_key(value: object, key: int | Path) -> None:
    assert units.hash_key(value) == key


@pytest.mark.parametrize("value", ["123", "0123456789abcdeg", "key", "", "/", 123, "/a\0b"])
def test_no_hash_key(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected "):
        units.hash_key(value)


def test_a_socket_path_fits_its_address() -> None:
    assert units.socket_path("/" + "a" * 106) == Path("/" + "a" * 106)
    with pytest.raises(ValueError, match=r"^expected a path of at most 107 bytes, got 108$"):
        units.socket_path("/" + "a" * 107)
    with pytest.raises(ValueError, match=r"got 109$"):
        units.socket_path("/" + "ü" * 54)


@pytest.mark.parametrize(
    "name", ["eth0", "br-lan", "ppp0", "eth0.100", "enp3s0f1np1", "veth_a", "é"]
)
def test_interface(name: str) -> None:
    assert units.interface(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a" * 16, "é" * 8, "a b", "a\tb", "a/b", "a:b", 'a"b', "a'b", "a\\b", "eth*", "eth+", ".",
     "..", "lo", "a\x00", "a\x1b", "a\u2028", "a\u00a0", 5, ["eth0"]],
)  # fmt: skip
def test_no_interface(name: object) -> None:
    with pytest.raises(ValueError, match=r"^expected an interface"):
        units.interface(name)


@settings(deadline=None)
@given(ANY_VALUE)
def test_an_interface_can_stand_in_an_nft_string(value: object) -> None:
    try:
        name = units.interface(value)
    except ValueError:
        return
    assert 1 <= len(name.encode()) <= 15
    assert name.isprintable()
    assert not set(name) & set('"\\/*: ')


@pytest.mark.parametrize("name", ["fibre", "A", "a-b_c9", "a" * 31])
def test_link_name(name: str) -> None:
    assert units.link_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "9a", "-a", "a" * 32, "a b", "é", "a.b", "a\n", "main", "Reject", "default", "next"],
)
def test_no_link_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a name"):
        units.link_name(name)


def test_addresses() -> None:
    assert units.ipv4("x", "192.0.2.1") == IPv4Address("192.0.2.1")
    assert units.ipv6("x", "2001:db8::1") == IPv6Address("2001:db8::1")
    assert units.ipv6("x", "fe80::1") == IPv6Address("fe80::1")


@pytest.mark.parametrize(
    "value",
    ["224.0.0.1", "127.0.0.1", "0.0.0.0", "0.1.2.3", "255.255.255.255", "192.0.2", "192.0.2.256",
     "192.0.2.1/24", "2001:db8::1", "", 3232235777, None],
)  # fmt: skip
def test_no_ipv4_address(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a gateway"):
        units.ipv4("a gateway", value)


@pytest.mark.parametrize(
    "value", ["ff02::1", "::1", "::", "::ffff:192.0.2.1", "fe80::1%eth0", "192.0.2.1", "x", 1]
)
def test_no_ipv6_address(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a gateway"):
        units.ipv6("a gateway", value)


def test_addresses_of_either_family() -> None:
    assert units.address("x", "192.0.2.1") == IPv4Address("192.0.2.1")
    assert units.address("x", "2001:db8::1") == IPv6Address("2001:db8::1")
    for value in ("x", "::1", "127.0.0.1", 1, ["192.0.2.1"]):
        with pytest.raises(ValueError, match=r"^expected a resolver"):
            units.address("a resolver", value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("example.org", "example.org"),
        ("WWW.Example.ORG.", "www.example.org"),
        ("3com", "3com"),
        ("a-b.c1", "a-b.c1"),
        ("1.2.3.a4", "1.2.3.a4"),
        ("xn--mller-kva.example", "xn--mller-kva.example"),
        (f"{'a' * 63}.example", f"{'a' * 63}.example"),
        (".".join(["a" * 49] * 5) + ".abc.", ".".join(["a" * 49] * 5) + ".abc"),
    ],
)
def test_host_name(value: str, name: str) -> None:
    assert units.host_name("a name", value) == name


@pytest.mark.parametrize(
    "value",
    ["", ".", "a..b", "a.b..", ".a", "-a.b", "a-.b", "a_b.c", "a b", "a\n", "müller.example",
     "\u212aelvin.example", "a" * 64, ".".join(["a" * 49] * 5) + ".abcd", "192.0.2.1",
     "192.0.2.256", "1", "127.1", "0x7f000001", "a.0x1", "a.0x", "localhost", "LocalHost.",
     "x.localhost", "a/b", "a:1", "*.example.org", 3, None, ["a.b"]],
)  # fmt: skip
def test_no_host_name(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a name"):
        units.host_name("a name", value)


@settings(deadline=None)
@given(ANY_VALUE)
def test_a_host_name_is_one_that_can_be_asked_for(value: object) -> None:
    try:
        name = units.host_name("a name", value)
    except ValueError:
        return
    assert 1 <= len(name) <= 253
    assert all(1 <= len(label) <= 63 for label in name.split("."))
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


def test_provider_prefix() -> None:
    assert units.provider_prefix("2001:db8:a::/56") == IPv6Network("2001:db8:a::/56")
    assert units.provider_prefix("2001:db8::/64") == IPv6Network("2001:db8::/64")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("2001:db8::/65", "from /16 to /64"),
        ("2000::/3", "from /16 to /64"),
        ("2001:db8::1/64", r'no bits after the prefix: "2001:db8::/64"'),
        ("192.0.2.0/24", "expected an IPv6 prefix"),
        ("fe80::/64", "that hosts can have"),
        ("ff02::/16", "that hosts can have"),
        ("2001:db8::/x", "expected an IPv6 prefix"),
        ("/64", "expected an IPv6 prefix"),
    ],
)
def test_no_provider_prefix(value: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        units.provider_prefix(value)


def test_words() -> None:
    read = units.word("keep", "undo")
    assert read("undo") == "undo"
    with pytest.raises(ValueError, match=r'^expected "keep" or "undo", got "stop"$'):
        read("stop")
    assert units.member(Fields)("src-port") is Fields.SRC_PORT
    with pytest.raises(ValueError, match=r"^expected .*, got 3$"):
        units.member(Fields)(3)


def test_integers() -> None:
    read = units.integer(1, 64)
    assert (read(1), read(64)) == (1, 64)
    for value in (0, 65, True, "1", Decimal(1)):
        with pytest.raises(ValueError, match=r"^expected a whole number from 1 to 64, got "):
            read(value)


def test_numbers() -> None:
    read = units.number(Decimal("0.001"), Decimal(1))
    assert (read(1), read(Decimal("0.001")), read(Decimal("0.3"))) == (1.0, 0.001, 0.3)
    for value in (0, 2, 10**400, Decimal("0.0009"), Decimal("nan"), Decimal("inf"), True, "0.3"):
        with pytest.raises(ValueError, match=r"^expected a number from 0.001 to 1, got "):
            read(value)


def test_programs_and_their_arguments() -> None:
    assert units.program("/usr/bin/logger") == "/usr/bin/logger"
    for value in ("logger", "/", "/usr/bin/", "/a\nb", "", 3):
        with pytest.raises(ValueError, match=r"^expected "):
            units.program(value)
    for text in ("", "a b", "a\nb", "ü" * 2048):
        assert units.argument(text) == text
    for value in ("a\0", "ü" * 2049, 3, ["a"]):
        with pytest.raises(ValueError, match=r"^expected "):
            units.argument(value)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", r'"a\nb"'),
        ("x" * 100, '"' + "x" * 56 + "..."),
        (True, "true"),
        (10**4000, "a number of more than 30 digits"),
        ([], "an empty list"),
        ([1], "a list"),
        ({}, "a table"),
    ],
)
def test_values_in_messages(value: object, shown: str) -> None:
    assert units.show(value) == shown


@pytest.mark.parametrize(
    "read",
    [units.flag, units.integer(0, 9), units.word("a"), units.member(Fields), units.rate,
     units.share, units.mark, units.mark_mask, units.hash_key, units.absolute_path,
     units.socket_path, units.interface, units.group_name, units.text, units.program,
     units.argument, units.number(Decimal(0), Decimal(1))],
)  # fmt: skip
@settings(deadline=None)
@given(ANY_VALUE)
def test_every_reader_answers_or_says_what_is_legal(read: object, value: object) -> None:
    assert callable(read)
    message = "expected nothing else"
    try:
        read(value)
    except ValueError as error:
        message = str(error)
    assert message.startswith("expected ")
    assert message.isprintable()
