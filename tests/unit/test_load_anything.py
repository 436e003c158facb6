"""Files that are not TOML, not text, or anything at all: read or refused, always in words."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.config import load, places
from dataplane.errors import ConfigError, Fault
from tests.files import MINIMAL, faults_of, said


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a = ", [1]),
        ("\n[x", [2]),
        ("a = 20Mbit", [1]),
        ("lan = [\n'a',\n20M,\n]\nb = 5M\n", [3, 5]),
        ("\0", [1]),
        ('a = "\\q"', [1]),
        ("a = 1\n[a]\nb = 2\n[a.c]\n", [2, 4]),
        ('a = """\n\n', [3]),
    ],
)
def test_lines_that_are_not_toml(text: str, lines: list[int]) -> None:
    """The reasons are tomllib's, in words that change from one Python to the next."""
    found = [fault for fault in faults_of(text) if fault.message.startswith("not TOML: ")]
    assert [(fault.line, fault.key) for fault in found] == [(line, "") for line in lines]


def test_lines_that_are_not_toml_do_not_hide_the_others() -> None:
    text = """\
lan = [br-lan]
[link.fibre]
interface = eth1
gateway = "here"
capacity = "20"
[link.fibre]
interface = "eth1"
[balance]
method = "nth"
method = "nth"
symmetric =
colour = 1
"""
    assert [(line, key) for line, key, _ in said(text)] == [
        (1, ""),
        (3, ""),
        (4, "link.fibre.gateway"),
        (5, "link.fibre.capacity"),
        (6, ""),
        (10, ""),
        (11, ""),
        (12, "balance.colour"),
    ]


def test_nothing_is_guessed_behind_an_open_bracket() -> None:
    found = said('lan = ["br-lan",\n[link.fibre]\ncapacity = 1\n')
    assert [(line, key) for line, key, _ in found] == [(2, "")]


def test_a_long_line_is_refused_before_it_is_read() -> None:
    expected = [(2, "", "expected lines of at most 4096 characters")]
    assert said("a = 1\n[" + "a." * 400_000 + "a]\n") == expected


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "evenlink.toml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load.read_file(file) == load.read(MINIMAL, "evenlink.toml")


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"lan = 1\n\xff\xfe", 2, "expected TOML, which is UTF-8, got other bytes"),
        (b"\x7fELF\x02\x01\x01\x00\xf0", 1, "expected TOML, which is UTF-8, got other bytes"),
        (b"#\n" * (1 << 20), 0, "expected at most 1048576 bytes, the file is longer"),
    ],
)
def test_files_that_are_none_of_ours(tmp_path: Path, data: bytes, line: int, message: str) -> None:
    file = tmp_path / "evenlink.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load.read_file(file)
    assert caught.value.faults == (Fault(str(file), line, "", message),)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / "none", "cannot be read: No such file or directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            load.read_file(path)


def test_text_that_no_file_can_hold() -> None:
    expected = [(2, "", "expected TOML, which is UTF-8, got other bytes")]
    assert said("a = 1\nb = '\ud800'") == expected


def test_places() -> None:
    document = places.parse(
        """\
"a b".c = [ # one
  1,
  # two
  { x.y = 2 }]
[link.a]
b = \"\"\"
[link.c]
\"\"\"
[[rule]]
u = 1
[[rule]]
[rule.sub]
u = 2
[ link . "\\u0064" ]
'e' = 1
"""
    )
    assert document.syntax == ()
    assert document.lines == {
        ("a b",): 1,
        ("a b", "c"): 1,
        ("a b", "c", 0): 2,
        ("a b", "c", 1): 4,
        ("a b", "c", 1, "x"): 4,
        ("a b", "c", 1, "x", "y"): 4,
        ("link",): 5,
        ("link", "a"): 5,
        ("link", "a", "b"): 6,
        ("rule",): 9,
        ("rule", 0): 9,
        ("rule", 0, "u"): 10,
        ("rule", 1): 11,
        ("rule", 1, "sub"): 12,
        ("rule", 1, "sub", "u"): 13,
        ("link", "d"): 14,
        ("link", "d", "e"): 15,
    }


KEYS = st.sampled_from(
    ["lan", "key", "link", "queue", "balance", "links", "a", "a.b", '"x y"', "link.a", "capacity",
     "on_change", "probe", "link.a.probe", "resolvers", "targets", '"\\u0007"', "group", "group.a",
     "group.fibre", "method", "sticky", "full", "list", "list.a", "entries", "files", "names",
     "watch", "rule", "use", "else", "source", "destination_port", "application", "fields", "in"]
)  # fmt: skip
VALUES = st.sampled_from(
    ["1", "-1", "0x7f", "1e400", "nan", "true", '"x"', "'20Mbit'", "[]", '["a"]', "[1, {a = 1}]",
     "{}", "{a.b = [[]]}", "2020-01-01", '"""\nx\n"""', "x", "[", "{", '"', "", "'lte'",
     "['fibre', 'lte']", "'nth'", "'overflow'", "'@a'", "'10.0.0.0/8'", "{ host = ['a.b'] }"]
)  # fmt: skip
LINES = st.one_of(
    st.builds("{} = {}".format, KEYS, VALUES),
    st.builds("[{}]".format, KEYS),
    st.builds("[[{}]]".format, KEYS),
    st.sampled_from([*MINIMAL.splitlines(), "# c", "", "]", "\0", "=", "\t \r"]),
    st.text(max_size=8),
)


@settings(deadline=None)
@given(st.lists(LINES, max_size=12).map("\n".join))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    found = faults_of(text)
    assert found == faults_of(text)
    assert [fault.line for fault in found] == sorted(fault.line for fault in found)
    assert all(0 <= fault.line <= text.count("\n") + 1 for fault in found)
    assert all(str(fault).isprintable() for fault in found)


@settings(deadline=None)
@given(st.data())
def test_any_bytes_of_a_good_file_may_be_wrong(data: st.DataObject) -> None:
    text = list(MINIMAL)
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 3))] = data.draw(st.text(max_size=2))
    for fault in faults_of("".join(text)):
        assert fault.message
