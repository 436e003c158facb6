"""[balance] and [group.NAME]: what they give, and every fault with its line and key."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.config import load, units
from dataplane.config.model import Config, Failback, Fields, Group, Method, Sticky
from tests.files import MINIMAL, said

ABOVE = len(MINIMAL.splitlines())


def read(lines: str, above: str = MINIMAL) -> Config:
    return load.read(above + lines, "evenlink.toml")


def group(lines: str) -> Group:
    """What a [group.x] of these lines is."""
    (one,) = read(f'[group.x]\nlinks = ["lte", "fibre"]\n{lines}').groups
    return one


def test_a_file_without_groups() -> None:
    config = read("")
    assert config.groups == ()
    assert config.all_groups == (Group("default", ("fibre", "lte")),)


def test_every_key() -> None:
    config = read(
        """\
[balance]
links = ["lte"]
method = "nth"
sticky = "pair"
failback = "kill"
[group.one]
links = ["lte", "fibre"]
method = "pcc"
fields = "src-port"
symmetric = true
[group.two]
links = ["fibre"]
method = "overflow"
sticky = "source"
sticky_time = "1h30m"
full = "75%"
[group.three]
links = ["fibre", "lte"]
method = "lowest-latency"
margin_ms = 0
"""
    )
    assert config.balance == Group(
        "default", ("lte",), Method.NTH, sticky=Sticky.PAIR, failback=Failback.KILL
    )
    assert config.groups == (
        Group("one", ("lte", "fibre"), fields=Fields.SRC_PORT, symmetric=True),
        Group("two", ("fibre",), Method.OVERFLOW, sticky=Sticky.SOURCE, sticky_ms=5_400_000,
              full=0.75),
        Group("three", ("fibre", "lte"), Method.LOWEST_LATENCY, margin_ms=0),
    )  # fmt: skip


@pytest.mark.parametrize("method", list(Method))
def test_every_method_stands_alone(method: Method) -> None:
    assert group(f'method = "{method}"').method is method
    assert read(f'[balance]\nmethod = "{method}"').balance.method is method


@pytest.mark.parametrize(
    ("value", "full"),
    [("0.1", 0.1), ("1", 1.0), ("0.85", 0.85), ('"90%"', 0.9), ('"12.5 %"', 0.125)],
)
def test_full(value: str, full: float) -> None:
    assert group(f'method = "overflow"\nfull = {value}').full == full


NO_FULL = 'expected a number from 0.1 to 1, or a percentage such as "90%", got '


@pytest.mark.parametrize(
    "value",
    ["0.09", "1.1", "0", "90", "nan", "inf", "true", '"0.9"', '"9%"', '"101%"', '"%"', "[]"],
)
def test_not_full(value: str) -> None:
    ((line, key, message),) = said(
        f'{MINIMAL}[balance]\nmethod = "overflow"\nfull = {value}'
    )  # fmt: skip
    assert (line, key) == (ABOVE + 3, "balance.full")
    assert message.startswith(NO_FULL)


@given(st.integers(1, 86_400))
def test_every_time_in_seconds_is_itself(seconds: int) -> None:
    hours, minutes = divmod(seconds // 60, 60)
    read_time = units.duration(1, 86_400)
    assert read_time(f"{seconds}s") == read_time(f"{hours}h{minutes}m{seconds % 60}s")
    assert read_time(f"{seconds}s") == 1000 * seconds


@pytest.mark.parametrize(
    "value", ["", "10", "m", "10 m", "1m1h", "-1s", "1.5h", "٣m", "10M", 600, Decimal(1), True]
)
def test_no_time(value: object) -> None:
    with pytest.raises(ValueError, match=r'^expected a time such as "30s", "10m" or "1h30m", got'):
        units.duration(1, 86_400)(value)


@pytest.mark.parametrize("value", ["0s", "24h1s", "1441m", "999999h"])
def test_a_time_out_of_range(value: str) -> None:
    with pytest.raises(ValueError, match="from 1 s to 24 h, got"):
        units.duration(1, 86_400)(value)


SHARED = """\
lan = ["br-lan"]
[link.a]
interface = "eth1"
gateway = "192.0.2.1"
capacity = "1Mbit"
[link.b]
interface = "eth1"
gateway = "192.0.2.2"
capacity = "1Mbit"
[link.c]
interface = "eth2"
capacity = "1Mbit"
probes = false
"""
SHARES = """\
lan = ["br-lan"]
[link.a]
interface = "eth1"
share = 1
[link.b]
interface = "eth2"
download = "1Mbit"
share = 2
"""
BOTH = "links = ['lte', 'fibre']\n"


@pytest.mark.parametrize(
    ("above", "lines", "line", "key", "message"),
    [
        # Groups without links, or with what are none.
        (MINIMAL, "[group.x]\nmethod = 'pcc'", 1, "group.x.links",
         "missing: expected the names of this group's links"),
        (MINIMAL, "[group.x]\nlinks = []", 2, "group.x.links",
         "expected a list of names of links, got an empty list"),
        (MINIMAL, "[group.x]\nlinks = ['lte',\n'lta']", 3, "group.x.links[1]",
         'there is no link "lta"; the nearest one is "lte"'),
        (MINIMAL, "[group.x]\nlinks = ['lte', 'lte']", 2, "group.x.links[1]",
         'expected each name once, got "lte" again'),
        (MINIMAL, "[group]\nx = 3", 2, "group.x", "expected a table [group.x], got 3"),
        # Names.
        (MINIMAL, f"[group.lte]\n{BOTH}", 1, "group.lte",
         "expected another name than that of link lte"),
        (MINIMAL, f"[group.LTE]\n{BOTH}", 1, "group.LTE",
         "expected more than a difference in case to link lte"),
        (MINIMAL, f"[group.x]\n{BOTH}[group.X]\n{BOTH}", 3, "group.X",
         "expected more than a difference in case to group x"),
        (MINIMAL, f"[group.Default]\n{BOTH}", 1, "group.Default",
         'expected a name other than default, main, next or reject, got "Default"'),
        (MINIMAL, f"[group.'a b']\n{BOTH}", 1, 'group."a b"',
         'expected a name of a letter and up to 30 letters, digits, - or _, got "a b"'),
        # Keys and values.
        (MINIMAL, f"[group.x]\n{BOTH}methd = 'pcc'", 3, "group.x.methd",
         'unknown key; the nearest known one is "method"'),
        (MINIMAL, f"[group.x]\n{BOTH}method = 'rr'", 3, "group.x.method",
         'expected "pcc", "nth", "random", "ecmp", "failover", "overflow", "least-used" or '
         '"lowest-latency", got "rr"'),
        (MINIMAL, "sticky = 'pair'", 1, "link.lte.sticky",
         "unknown key here; it belongs in [balance] or [group.NAME]"),
        # Options of other methods.
        (MINIMAL, "[balance]\nmethod = 'ecmp'\nfields = 'src-port'", 3, "balance.fields",
         'expected method = "pcc", got "ecmp", since the kernel hashes what it hashes'),
        (MINIMAL, "[balance]\nmethod = 'nth'\nfields = 'src-port'", 3, "balance.fields",
         'expected method = "pcc", got "nth", which has no use for it'),
        (MINIMAL, "[balance]\nmethod = 'nth'\nsymmetric = true", 3, "balance.symmetric",
         'expected method = "pcc", got "nth", which has no use for it'),
        (MINIMAL, "[balance]\nsticky = 'pair'", 2, "balance.sticky",
         'expected method = "nth", "random", "failover", "overflow", "least-used" or '
         '"lowest-latency", got "pcc", by which the same fields lead to the same link at any '
         "time"),
        (MINIMAL, "[balance]\nmethod = 'ecmp'\nsticky = 'pair'", 3, "balance.sticky",
         'expected method = "nth", "random", "failover", "overflow", "least-used" or '
         '"lowest-latency", got "ecmp", since the kernel decides and remembers nobody'),
        (MINIMAL, "[balance]\nmethod = 'nth'\nsticky_time = '1m'", 3, "balance.sticky_time",
         "expected sticky beside it, else nobody is remembered"),
        (MINIMAL, "[balance]\nmethod = 'nth'\nsticky = 'pair'\nsticky_time = '25h'", 4,
         "balance.sticky_time",
         'expected a time such as "30s", "10m" or "1h30m", from 1 s to 24 h, got "25h"'),
        (MINIMAL, "[balance]\nfull = 0.5", 2, "balance.full",
         'expected method = "overflow", got "pcc", which has no use for it'),
        (MINIMAL, "[balance]\nmargin_ms = 5", 2, "balance.margin_ms",
         'expected method = "lowest-latency", got "pcc", which has no use for it'),
        # What a method needs of the queue.
        (MINIMAL, "[queue]\nworkers = 2\n[balance]\nmethod = 'nth'", 4, "balance.method",
         "expected another method or one worker, since each of 2 workers counts by itself "
         '([queue] workers), got "nth"'),
        (MINIMAL, f"[group.x]\n{BOTH}method = 'random'\n[queue]\nworkers = 2", 3,
         "group.x.method",
         "expected another method or one worker, since each of 2 workers counts by itself "
         '([queue] workers), got "random"'),
        (MINIMAL, "[queue]\nworkers = 2\n[balance]\nmethod = 'failover'\nsticky = 'source'", 5,
         "balance.sticky",
         "expected one worker, since each of 2 workers remembers by itself ([queue] workers), got "
         '"source"'),
        (MINIMAL, "[queue]\nworkers = 2\n[balance]\nmethod = 'failover'\nsticky = 'pair'", 5,
         "balance.sticky",
         "expected one worker, since each of 2 workers remembers by itself ([queue] workers), got "
         '"pair"'),
        (MINIMAL, f"[queue]\nmode = 'every'\n[group.x]\n{BOTH}method = 'nth'\nsticky = 'pair'", 5,
         "group.x.method",
         'expected another method or queue.mode = "first", since "every" does not go with nth: a '
         'connection that pauses would take a turn again, got "nth"'),
        # What a method needs of its links.
        (SHARES, "[group.x]\nlinks = ['a']\nmethod = 'overflow'", 3, "group.x.method",
         'expected capacity or download in [link.a], since "overflow" compares rates, got its '
         "share only"),
        (SHARES, "[balance]\nmethod = 'least-used'", 2, "balance.method",
         'expected capacity or download in [link.a], since "least-used" compares rates, got its '
         "share only"),
        (SHARED, "[group.x]\nlinks = ['a', 'c']\nmethod = 'overflow'", 3, "group.x.method",
         'expected link a to have its interface to itself, since "overflow" measures rates by '
         "interface, got eth1, which is link b's too"),
        (SHARED, "[balance]\nmethod = 'lowest-latency'", 2, "balance.method",
         'expected probes in [link.c], since "lowest-latency" goes by their answers, got '
         "probes = false"),
    ],
)  # fmt: skip
def test_one_fault(above: str, lines: str, line: int, key: str, message: str) -> None:
    assert said(above + lines) == [(len(above.splitlines()) + line, key, message)]


def test_methods_that_need_no_capacity_take_shares() -> None:
    read("[group.x]\nlinks = ['b']\nmethod = 'overflow'", SHARES)
    for method in ("pcc", "nth", "random", "ecmp", "failover", "lowest-latency"):
        assert read(f"[balance]\nmethod = '{method}'", SHARES).balance.method == method


def test_groups_by_ecmp_need_numbers_of_the_mask() -> None:
    links = "".join(f'[link.l{n}]\ninterface = "i{n}"\nshare = 1\n' for n in range(6))
    above = f'lan = ["l"]\nexempt_marks = []\nmark_mask = 0xf0\n{links}'

    def text(count: int) -> str:
        return above + "".join(
            f'[group.g{n}]\nlinks = ["l0"]\nmethod = "ecmp"\n' for n in range(count)
        )

    assert said(text(2)) == []
    message = (
        "expected at most 8 links and groups by ecmp together, as mark_mask can tell, got 6 and 3"
    )
    line = len(text(2).splitlines()) + 3
    assert said(text(3)) == [(line, "group.g2.method", message)]
    assert said(text(2) + '[balance]\nmethod = "ecmp"')[0][2] == message


def test_too_many_groups() -> None:
    text = MINIMAL + "".join(f'[group.g{n}]\nlinks = ["lte"]\n' for n in range(65))
    assert said(text) == [(ABOVE + 129, "group.g64", "expected at most 64 groups, got 65")]
