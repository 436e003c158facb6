"""[list.NAME] and its files: what they give, every fault with its place, and reading again."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config import lists, load
from dataplane.config.model import Addresses, AddressList, Config
from dataplane.errors import ConfigError, Fault
from tests.files import MINIMAL

ABOVE = len(MINIMAL.splitlines())
FILES = {
    "/etc/evenlink/nice.rsc": b"/ip firewall address-list\nadd list=nice address=192.0.2.0/24\n",
    "/srv/office.txt": b"198.51.100.0/24\n2001:db8::/32\noffice.example.org\n",
    "/srv/bad.txt": b"# offices\n198.51.100.0/24\n198.51.100.0/34\nwhat is this\n",
    "/srv/empty.txt": b"# nothing yet\n",
}


def open_file(path: Path) -> bytes:
    if str(path) not in FILES:
        raise FileNotFoundError(2, "No such file or directory")
    return FILES[str(path)]


def read(lines: str) -> Config:
    return load.read(MINIMAL + lines, "/etc/evenlink/evenlink.toml", open_file)


def found(lines: str) -> list[tuple[str, int, str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(lines)
    return [(one.file, one.line, one.key, one.message) for one in caught.value.faults]


def addresses(*texts: str) -> Addresses:
    """Prefixes and first-last ranges."""
    spans = []
    for text in texts:
        if "-" in text:
            first, last = text.split("-")
            spans.append((ip_address(first), ip_address(last)))
        else:
            spans.append((ip_network(text)[0], ip_network(text)[-1]))
    return Addresses.of(spans)


def test_every_key() -> None:
    config = read(
        """\
[list.all]
entries = ["10.0.0.0/8", "2001:db8::1-2001:db8::9", "192.0.2.1", "www.example.net"]
files = ["nice.rsc", "/srv/office.txt"]
names = ["example.org", "*.Example.org", "www.example.net"]
watch = true
[list.few]
names = "example.com"
[list.one]
files = "nice.rsc"
"""
    )
    own = addresses("10.0.0.0/8", "2001:db8::1-2001:db8::9", "192.0.2.1/32")
    nice = Path("/etc/evenlink/nice.rsc")
    names = ("www.example.net", "example.org", "*.example.org")
    assert config.lists == (
        AddressList(
            "all",
            addresses(
                "10.0.0.0/8", "192.0.2.1/32", "192.0.2.0/24", "198.51.100.0/24",
                "2001:db8::1-2001:db8::9", "2001:db8::/32",
            ),
            (*names, "office.example.org"),
            own,
            names,
            (nice, Path("/srv/office.txt")),
            watch=True,
        ),
        AddressList("few", names=("example.com",), entry_names=("example.com",)),
        AddressList("one", addresses("192.0.2.0/24"), files=(nice,)),
    )  # fmt: skip


SPANS = st.builds(
    lambda one, other: (min(one, other), max(one, other)),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, (1 << 32) - 1),
)


@settings(deadline=None)
@given(st.lists(SPANS, min_size=1))
def test_ranges_are_what_was_written(spans: list[tuple[int, int]]) -> None:
    entries = [f"{ip_address(first)}-{ip_address(last)}" for first, last in spans]
    (one,) = read(f"[list.x]\nentries = {entries}").lists
    assert list(one.addresses.spans4()) == spans
    shift = 0x20010DB8 << 96
    entries = [f"{ip_address(shift + first)} - {ip_address(shift + last)}" for first, last in spans]
    (one,) = read(f"[list.x]\nentries = {entries}").lists
    assert [(first - shift, last - shift) for first, last in one.addresses.spans6()] == spans


TOML = "/etc/evenlink/evenlink.toml"
ENTRY = "expected an address, a prefix or a range, or a domain name, got"
NAME = 'expected a domain name such as "example.org" or "*.example.org", got'


@pytest.mark.parametrize(
    ("lines", "line", "key", "message"),
    [
        ("[list.x]\nentries = ['192.0.2.1',\n'192.0.2.1/24']", 3, "list.x.entries[1]",
         'expected no bits after the prefix: "192.0.2.0/24", got "192.0.2.1/24"'),
        ("[list.x]\nentries = ['192.0.2.0/33']", 2, "list.x.entries[0]",
         f'{ENTRY} "192.0.2.0/33"'),
        ("[list.x]\nentries = ['somewhere']", 2, "list.x.entries[0]", f'{ENTRY} "somewhere"'),
        ("[list.x]\nentries = [3]", 2, "list.x.entries[0]", f"{ENTRY} 3"),
        ("[list.x]\nentries = '192.0.2.1'", 2, "list.x.entries",
         'expected a list of addresses, prefixes, ranges or names, got "192.0.2.1"'),
        ("[list.x]\nentries = ['192.0.2.9-192.0.2.1']", 2, "list.x.entries[0]",
         'expected the lower address first: "192.0.2.1-192.0.2.9", got "192.0.2.9-192.0.2.1"'),
        ("[list.x]\nnames = ['192.0.2.1']", 2, "list.x.names[0]", f'{NAME} "192.0.2.1"'),
        ("[list.x]\nnames = ['a', 'b.c']", 2, "list.x.names[0]", f'{NAME} "a"'),
        ("[list.x]\nnames = ['*']", 2, "list.x.names[0]", f'{NAME} "*"'),
        ("[list.x]", 1, "list.x", "expected entries, files or names, got none of them"),
        ("[list.x]\nnames = 'b.c'\nwatch = true", 3, "list.x.watch",
         "expected files beside it, else there is nothing to watch"),
        ("[list.x]\nnames = 'b.c'\nwatch = 1", 3, "list.x.watch",
         "expected true or false, got 1"),
        ("[list.x]\nfile = 'nice.rsc'\nnames = 'b.c'", 2, "list.x.file",
         'unknown key; the nearest known one is "files"'),
        ("[list.x]\nfiles = ['none.txt']", 2, "list.x.files[0]",
         "/etc/evenlink/none.txt cannot be read: No such file or directory"),
        ("[list.x]\nfiles = ['']", 2, "list.x.files[0]", 'expected the name of a file, got ""'),
        ("[list.x]\nfiles = ['a\\u0000b']".replace("'", '"'), 2, "list.x.files[0]",
         'expected the name of a file without control characters, got "a\\u0000b"'),
        ("[list.x]\nfiles = ['nice.rsc',\n'/etc/evenlink/nice.rsc']", 3, "list.x.files[1]",
         'expected each file once, got "/etc/evenlink/nice.rsc" again'),
        ("[list.9]\nnames = 'b.c'", 1, "list.9",
         'expected a name of a letter and up to 30 letters, digits, - or _, got "9"'),
        ("[list.x]\nnames = 'b.c'\n[list.X]\nnames = 'b.c'", 3, "list.X",
         "expected more than a difference in case to list x"),
        ("[list.x]\nentries = []", 2, "list.x.entries",
         "expected a list of addresses, prefixes, ranges or names, got an empty list"),
        ("[list]\nx = ['192.0.2.1']", 2, "list.x", "expected a table [list.x], got a list"),
    ],
)  # fmt: skip
def test_one_fault(lines: str, line: int, key: str, message: str) -> None:
    assert found(lines) == [(TOML, ABOVE + line, key, message)]


def test_faults_of_a_file_have_its_lines_and_hide_no_others() -> None:
    lines = """\
[list.x]
files = ["/srv/bad.txt", "none.txt"]
[balance]
method = "nht"
[[rule]]
destination = "@x"
use = "fibre"
"""
    bad = "/srv/bad.txt"
    assert [(file, line) for file, line, _, _ in found(lines)] == [
        (TOML, ABOVE + 2), (TOML, ABOVE + 4), (bad, 3), (bad, 4),
    ]  # fmt: skip
    assert found(lines)[2:] == [
        (bad, 3, "", f'{ENTRY} "198.51.100.0/34"'),
        (bad, 4, "", f'{ENTRY} "what is this"'),
    ]


def test_more_faults_than_are_said(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"x\n" * 30)
    file = tmp_path / "evenlink.toml"
    file.write_text(f"{MINIMAL}[list.x]\nfiles = 'list'\n")
    with pytest.raises(ConfigError) as caught:
        load.read_file(file)
    faults = caught.value.faults
    assert len(faults) == 21
    assert str(faults[19]) == f'{tmp_path}/list:20: {ENTRY} "x"'
    assert str(faults[20]) == f"{tmp_path}/list: and 10 more such lines"


def test_files_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/one").write_bytes(b"192.0.2.0/24")
    file = tmp_path / "evenlink.toml"
    file.write_text(f"{MINIMAL}[list.x]\nfiles = 'sub/one'\n")
    assert load.read_file(file).lists[0].addresses == addresses("192.0.2.0/24")
    file.write_text(f"{MINIMAL}[list.x]\nfiles = ['sub', 'two', '/dev/zero']\n")
    with pytest.raises(ConfigError) as caught:
        load.read_file(file)
    assert [one.message for one in caught.value.faults] == [
        f"{tmp_path}/sub cannot be read: it is no regular file",
        f"{tmp_path}/two cannot be read: No such file or directory",
        "/dev/zero cannot be read: it is no regular file",
    ]


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MOST_FILE_BYTES", 55)
    too_long = "/etc/evenlink/nice.rsc: expected at most 256 MB, the file is longer"
    assert found("[list.x]\nfiles = ['/srv/office.txt',\n'nice.rsc']") == [
        (TOML, ABOVE + 3, "list.x.files[1]", too_long)
    ]
    monkeypatch.undo()
    monkeypatch.setattr(lists, "MOST_RANGES", 2)
    assert found("[list.x]\nfiles = '/srv/office.txt'\n[list.y]\nentries = ['192.0.2.1']") == [
        (TOML, ABOVE + 3, "list.y", "expected at most 2 ranges in all lists, got 3")
    ]
    monkeypatch.setattr(lists, "MOST_NAMES", 1)
    assert found("[list.x]\nnames = ['a.b', 'a.c']") == [
        (TOML, ABOVE + 1, "list.x", "expected at most 1 names in all lists, got 2")
    ]
    monkeypatch.setattr(lists, "MOST_LISTS", 1)
    assert found("[list.x]\nnames = 'a.b'\n[list.y]\nentries = ['192.0.2.1']") == [
        (TOML, ABOVE + 3, "list.y", "expected at most 1 lists, got 2")
    ]


def test_watched_lists_are_read_again() -> None:
    config = read(
        "[list.x]\nfiles = '/srv/office.txt'\nentries = ['10.0.0.1', 'a.b']\nwatch = true\n"
        "[list.y]\nfiles = 'nice.rsc'\n"
    )
    assert lists.reread(config, open_file) == config

    def changed(path: Path) -> bytes:
        assert path == Path("/srv/office.txt"), "nobody watches the other one"
        return b"203.0.113.0/24\nnew.example.org"

    again = lists.reread(config, changed)
    assert again.lists[0].addresses == addresses("10.0.0.1/32", "203.0.113.0/24")
    assert again.lists[0].names == ("a.b", "new.example.org")
    assert again.lists[0].entries == config.lists[0].entries
    assert again.lists[1] == config.lists[1]
    assert lists.reread(again, open_file) == config


def test_a_file_that_is_bad_now_is_not_taken() -> None:
    config = read(
        "[list.x]\nfiles = ['/srv/office.txt', 'nice.rsc']\nwatch = true\n"
        "[list.y]\nfiles = '/srv/empty.txt'\nwatch = true\n"
    )

    def changed(path: Path) -> bytes:
        if path.name == "nice.rsc":
            raise PermissionError(13, "Permission denied")
        return b"\n192.0.2.0/244\n"

    with pytest.raises(ConfigError) as caught:
        lists.reread(config, changed)
    bad = f'{ENTRY} "192.0.2.0/244"'
    assert caught.value.faults == (
        Fault("/srv/office.txt", 2, "", bad),
        Fault("/etc/evenlink/nice.rsc", 0, "", "cannot be read: Permission denied"),
        Fault("/srv/empty.txt", 2, "", bad),
    )


@settings(deadline=None)
@given(st.one_of(st.binary(), st.text("0123456789./-:\n #;ad").map(str.encode)))
def test_any_file_is_a_list_or_refused(data: bytes) -> None:
    text = f"{MINIMAL}[list.x]\nfiles = 'x'\n[[rule]]\ndestination = '@x'\nuse = 'lte'"
    faults: tuple[Fault, ...] = ()
    try:
        config = load.read(text, "evenlink.toml", lambda path: data)
    except ConfigError as error:
        faults = error.faults
    assert all(str(fault).isprintable() for fault in faults)
    assert faults or config.lists[0].addresses or config.lists[0].names
