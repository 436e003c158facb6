"""Files of lists: every form of a line, scripts of RouterOS, faults, and anything at all."""

import random
import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config import list_files
from dataplane.config.list_files import Contents


def spans(data: bytes) -> list[str]:
    """What a file without faults holds, each range as first-last, IPv4 before IPv6."""
    contents = list_files.parse(data)
    assert contents.faults == []
    return [*_spans(contents), *contents.names]


def _spans(contents: Contents) -> list[str]:
    found = []
    for first, last in contents.addresses.spans4():
        found.append(f"{ip_address(first)}-{ip_address(last)}")
    for first, last in contents.addresses.spans6():
        found.append(f"{ip_address(first.to_bytes(16))}-{ip_address(last.to_bytes(16))}")
    return found


def faults(data: bytes) -> list[tuple[int, str]]:
    return list_files.parse(data).faults


@pytest.mark.parametrize(
    ("line", "span"),
    [
        ("192.0.2.0/24", "192.0.2.0-192.0.2.255"),
        ("192.0.2.7", "192.0.2.7-192.0.2.7"),
        ("192.0.2.7/32", "192.0.2.7-192.0.2.7"),
        ("0.0.0.0/0", "0.0.0.0-255.255.255.255"),
        ("192.0.2.1/24", "192.0.2.0-192.0.2.255"),
        ("192.0.2.9-192.0.2.17", "192.0.2.9-192.0.2.17"),
        ("192.0.2.9 - 192.0.2.17", "192.0.2.9-192.0.2.17"),
        ("2001:db8::/32", "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("2001:DB8::1", "2001:db8::1-2001:db8::1"),
        ("1:2:3:4:5:6:7:8/127", "1:2:3:4:5:6:7:8-1:2:3:4:5:6:7:9"),
        ("::/0", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("::1", "::1-::1"),
        ("::192.0.2.1/128", "::c000:201-::c000:201"),
        ("1::8/64", "1::-1::ffff:ffff:ffff:ffff"),
        ("2001:db8::1-2001:db8::ff", "2001:db8::1-2001:db8::ff"),
        ("example.org", "example.org"),
        ("Example.ORG.", "example.org"),
        ("*.example.org", "*.example.org"),
        ("192.0.2.0/24 # a comment", "192.0.2.0-192.0.2.255"),
        ("192.0.2.0/24 ; SBL1", "192.0.2.0-192.0.2.255"),
        ("  192.0.2.0/24\t", "192.0.2.0-192.0.2.255"),
        ("192.0.2.0/24\r", "192.0.2.0-192.0.2.255"),
    ],
)
def test_one_line(line: str, span: str) -> None:
    for data in (line, f"{line}\n", f"\n# x\n; y\n{line}\n\n", f"\ufeff{line}"):
        assert spans(data.encode()) == [span]


ENTRY = "expected an address, a prefix or a range, or a domain name, got "


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("192.0.2.0/33", f'{ENTRY}"192.0.2.0/33"'),
        ("192.0.2.256", f'{ENTRY}"192.0.2.256"'),
        ("192.0.2/24", f'{ENTRY}"192.0.2/24"'),
        ("192.0.2.0/", f'{ENTRY}"192.0.2.0/"'),
        ("192.0.2.0/ 24", f'{ENTRY}"192.0.2.0/ 24"'),
        ("192.0.2.01", f'{ENTRY}"192.0.2.01"'),
        ("010.0.0.0/8", f'{ENTRY}"010.0.0.0/8"'),
        ("192.0.2.0/024", f'{ENTRY}"192.0.2.0/024"'),
        ("192.0.2.0/255.255.255.0", f'{ENTRY}"192.0.2.0/255.255.255.0"'),
        ("192.0.2.0/24 x", f'{ENTRY}"192.0.2.0/24 x"'),
        ("2001:db8::/129", f'{ENTRY}"2001:db8::/129"'),
        ("2001:db8:::1", f'{ENTRY}"2001:db8:::1"'),
        ("1::2::3", f'{ENTRY}"1::2::3"'),
        ("1:2:3:4:5:6:7", f'{ENTRY}"1:2:3:4:5:6:7"'),
        ("1:2:3:4::5:6:7:8", f'{ENTRY}"1:2:3:4::5:6:7:8"'),
        ("12345::", f'{ENTRY}"12345::"'),
        (":", f'{ENTRY}":"'),
        ("fe80::1%eth0", 'expected an address without a zone, got "fe80::1%eth0"'),
        ("192.0.2.9-192.0.2.8",
         'expected the lower address first: "192.0.2.8-192.0.2.9", got "192.0.2.9-192.0.2.8"'),
        ("192.0.2.9-2001:db8::1", 'expected a range of one family, got "192.0.2.9-2001:db8::1"'),
        ("nonsense", f'{ENTRY}"nonsense"'),
        ("a_b.example", f'{ENTRY}"a_b.example"'),
        ("*.*.example.org", f'{ENTRY}"*.*.example.org"'),
        ("<!DOCTYPE html>", f'{ENTRY}"<!DOCTYPE html>"'),
        ("\x1b[2J", f'{ENTRY}"\\u001b[2J"'),
        ("x" * 5000, "expected lines of at most 4096 bytes"),
    ],
)  # fmt: skip
def test_one_bad_line(line: str, message: str) -> None:
    assert faults(f"192.0.2.0/24\n{line}\n192.0.2.0/24".encode()) == [(2, message)]
    many = b"192.0.2.0/24\n" * 30_000
    assert faults(many + line.encode() + b"\r\n" + many) == [(30_001, message)]


def test_bytes_that_are_no_text() -> None:
    assert faults(b"192.0.2.0/24\n\xff\x00\n") == [(2, f'{ENTRY}"\\\\xff\\u0000"')]


def test_no_more_faults_than_can_be_read() -> None:
    contents = list_files.parse(b"bad\n" * 25 + b"192.0.2.0/24\n")
    assert [line for line, _ in contents.faults] == list(range(1, 21))
    assert contents.more == 5


SCRIPT = """\
# 2026-01-01
/log info "loading the list"
/ip firewall address-list remove [/ip firewall address-list find list=nice]
/ip firewall address-list
add list=nice address=192.0.2.0/24
add list="nice" address="192.0.3.1/24" comment="a; b { \\" # c"
add address=192.0.4.0/24 comment=x list=nice
:do { add list=nice address=192.0.5.0/24 } on-error={ }
:do {
    add list=nice address=192.0.6.1-192.0.6.9
} on-error={:log error "no"}
add list=nice \\
    address=192.0.7.0/24 \\
    comment=\\
    x
add list=nice address=192.0.8.8 timeout=1d; add list=nice address=www.example.org
add list=nice address=192.0.9.0/24 disabled=yes
set [find where list=nice] comment=y
:if ([:len [find list=nice]] > 0) do={ :put "add list=nice address=9.9.9.9" } else={ }
/ip firewall filter
add chain=forward action=accept src-address=192.0.10.0/24
/interface list member add list=LAN interface=ether1
/ip address add address=192.0.11.1/24 interface=ether1
/ip/firewall/address-list/add list=other address=192.0.12.0/24
/ip/firewall/address-list add list=other address=192.0.13.0/24
/ipv6 firewall address-list
add list=nice address=2001:db8::/32
"""


def test_a_script_of_routeros() -> None:
    wanted = [
        "192.0.2.0-192.0.2.255", "192.0.3.0-192.0.3.255", "192.0.4.0-192.0.4.255",
        "192.0.5.0-192.0.5.255", "192.0.6.1-192.0.6.9", "192.0.7.0-192.0.7.255",
        "192.0.8.8-192.0.8.8", "192.0.12.0-192.0.12.255", "192.0.13.0-192.0.13.255",
        "2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "www.example.org",
    ]  # fmt: skip
    assert spans(SCRIPT.encode()) == wanted
    assert spans(SCRIPT.replace("\n", "\r\n").encode()) == wanted


def test_what_is_added_may_be_behind_a_line_that_goes_on() -> None:
    assert spans(b":do { \\\nadd list=x address=192.0.2.0/24 } on-error={}\n") == [
        "192.0.2.0-192.0.2.255"
    ]


@given(
    st.lists(
        st.sampled_from(
            [*SCRIPT.splitlines(), "\\", ":do { \\", "x" * 5000, "#" * 5000, "192.0.2.0/33"]
        )
    ),
    st.sampled_from([1, 64, 1000]),
)
def test_portions_make_no_difference(lines: list[str], size: int) -> None:
    data = "\n".join(["/ip firewall address-list", *lines]).encode()
    whole = list_files.parse(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_files, "_PORTION_BYTES", size)
        patch.setattr(list_files, "_MOST_PORTION_BYTES", size + list_files.MOST_LINE_BYTES + 1)
        parted = list_files.parse(data)
    # One portion of simple lines is taken at once, and the order of ranges says nothing.
    assert sorted(_spans(parted)) == sorted(_spans(whole))
    assert (parted.names, parted.faults, parted.more) == (whole.names, whole.faults, whole.more)


def test_a_script_may_begin_with_what_it_adds() -> None:
    assert spans(b"add list=x address=192.0.2.0/24\n") == ["192.0.2.0-192.0.2.255"]
    assert spans(b"\n# x\n\n /ip firewall address-list\n") == []


COMMAND = "expected a command of RouterOS such as add list=nice address=192.0.2.0/24, got "


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("add list=nice address=192.0.2.0/33", f'{ENTRY}"192.0.2.0/33"'),
        ("add list=nice address=192.0.2.300 comment=x", f'{ENTRY}"192.0.2.300"'),
        ("add list=nice address=$ip", f'{ENTRY}"$ip"'),
        ("add list=nice address=*.example.org", f'{ENTRY}"*.example.org"'),
        ("add list=nice address=", f'{ENTRY}""'),
        ("add list=nice adress=192.0.2.0/24",
         "expected address= in what is added to an address list, got "
         '"add list=nice adress=192.0.2.0/24"'),
        ("add address=192.0.2.0/24 comment=x",
         "expected list= in what is added to an address list, got "
         '"add address=192.0.2.0/24 comment=x"'),
        ('add list=nice comment="a address=192.0.2.0/24',
         "expected address= in what is added to an address list, got "
         '"add list=nice comment=\\"a address=192.0.2.0/24"'),
        ("nonsense here", f'{COMMAND}"nonsense here"'),
        ("ad list=nice address=192.0.2.0/24", f'{COMMAND}"ad list=nice address=192.0.2.0/24"'),
        ("add list=nice \\\naddress=x", f'{ENTRY}"x"'),
        ("add comment=" + "x" * 5000, "expected lines of at most 4096 bytes"),
        ("add \\\n" + "x \\\n" * 3000, "expected lines of at most 4096 bytes"),
    ],
)  # fmt: skip
def test_one_bad_command(line: str, message: str) -> None:
    good = b"/ip firewall address-list\n" + b"add list=nice address=192.0.2.0/24\n" * 9000
    found = faults(good + line.encode() + b"\n")
    assert found[0] == (9002, message)
    assert line.startswith("add \\") or len(found) == 1


NETWORKS4 = st.builds(
    lambda number, length: IPv4Network((number, length), strict=False),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 32),
)
NETWORKS6 = st.builds(
    lambda number, length: IPv6Network((number, length), strict=False),
    st.one_of(st.integers(0, (1 << 128) - 1), st.sampled_from([0, 1, 0x20010DB8 << 96])),
    st.integers(0, 128),
)
NETWORKS = st.lists(st.one_of(NETWORKS4, NETWORKS6))
WRITTEN = st.sampled_from(
    ["{0}", " {0}", "{0} # x", "{0};", "\n{0}", "{0}\r", "{1}-{2}", "# x\n{0}"]
)


@given(NETWORKS, st.data())
def test_every_prefix_is_read_as_ipaddress_has_it(
    networks: list[IPv4Network | IPv6Network], data: st.DataObject
) -> None:
    lines = [data.draw(WRITTEN).format(one, one[0], one[-1]) for one in networks]
    inside = sorted(networks, key=lambda network: network.version)
    assert spans("\n".join(lines).encode()) == [f"{one[0]}-{one[-1]}" for one in inside]


COMMANDS = st.sampled_from(
    ["add list=x address={}", 'add address="{}" list="a b" comment="c # d"',
     ":do {{ add list=x address={} }} on-error={{}}", "add list=x \\\n  address={}",
     "/ip firewall address-list add list=x address={}", "/log info x\nadd list=x address={}",
     "add comment=c address={} list=x timeout=1d"]
)  # fmt: skip


@given(NETWORKS, st.data())
def test_a_script_says_the_same_as_its_prefixes(
    networks: list[IPv4Network | IPv6Network], data: st.DataObject
) -> None:
    lines = [data.draw(COMMANDS).format(network) for network in networks]
    script = "\n".join(["/ip firewall address-list", *lines])
    assert spans(script.encode()) == spans("\n".join(map(str, networks)).encode())


@settings(deadline=None)
@given(st.text("0123456789abcdef.:/-", max_size=45))
def test_what_nearly_is_an_address_is_judged_as_ipaddress_does(text: str) -> None:
    contents = list_files.parse(text.encode())
    if not contents.faults and not contents.names and text and "-" not in text:
        network = ip_network(text, strict=False)
        assert _spans(contents) == [f"{network[0]}-{network[-1]}"]
        return
    # ipaddress takes masks too, and zeros in front of a length.
    if contents.faults and "-" not in text and re.fullmatch(r"[^/]*(/(0|[1-9][0-9]*))?", text):
        with pytest.raises(ValueError):  # noqa: PT011
            ip_network(text, strict=False)


PIECES = st.sampled_from(
    [b"192.0.2.0/24", b"192.0.2.1", b"2001:db8::/32", b"example.org", b"*.x.y", b"-", b"/", b":",
     b"add list=x address=", b"add", b" ", b"\n", b"\r\n", b"\\\n", b"{", b"}", b"[", b"]", b'"',
     b";", b"#", b"=", b"/ip firewall address-list\n", b"/log x\n", b":do {", b"on-error={}",
     b"\xff", b"\x00", b"\xef\xbb\xbf", b"comment=\"a\\\"b\""]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.one_of(PIECES, st.binary(max_size=6))).map(b"".join))
def test_any_bytes_are_a_list_or_have_faults(data: bytes) -> None:
    contents = list_files.parse(data)
    assert len(contents.addresses.ranges4) % 8 == 0
    assert len(contents.addresses.ranges6) % 32 == 0
    assert all(first <= last for first, last in contents.addresses.spans4())
    assert all(first <= last for first, last in contents.addresses.spans6())
    for line, message in contents.faults:
        assert 1 <= line <= data.count(b"\n") + 1
        assert message.isprintable()


def test_a_million_lines() -> None:
    chance = random.Random(7)
    numbers = [chance.getrandbits(24) << 8 for _ in range(1_000_000)]
    data = "".join(
        f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.0/24\n" for n in numbers
    )  # fmt: skip
    contents = list_files.parse(data.encode())
    assert contents.faults == []
    assert list(contents.addresses.spans4()) == [(n, n + 255) for n in numbers]


SHORT = st.builds(
    lambda number, length: IPv6Network((number << 64, length), strict=False),
    st.one_of(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1 << 48, 0x20010DB8 << 32])),
    st.integers(0, 64),
)


@given(st.lists(SHORT, min_size=1))
def test_ipv6_prefixes_that_are_read_all_at_once(networks: list[IPv6Network]) -> None:
    data = "\n".join(map(str, networks)).encode()
    assert spans(data) == [f"{one[0]}-{one[-1]}" for one in networks]
    assert faults(data + b"\n2000::/65x") == [(len(networks) + 1, f'{ENTRY}"2000::/65x"')]


def test_a_line_without_end_is_refused_at_once() -> None:
    assert faults(b"1" * (8 << 20)) == [(1, "expected lines of at most 4096 bytes")]
    assert faults(b"add list=" + b'"' * (4 << 20)) == [(1, "expected lines of at most 4096 bytes")]
    assert faults(b"#" + b" " * (8 << 20)) == []
    assert faults(b" " * (8 << 20) + b"#") == [(1, "expected lines of at most 4096 bytes")]
    assert faults(b" " * (8 << 20) + b"x#") == [(1, "expected lines of at most 4096 bytes")]
