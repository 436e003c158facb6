"""`explain` foretells: what it says of a connection is what the provider's side then sees.

client ── router ─┬─ isp-a ─┬─ server
   dmz ──┘        └─ isp-b ─┘
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from dataplane.lab import Daemon, Lab, Topology, UnavailableError, faults, lan, link, servers
from dataplane.lab.topology import MBIT
from dataplane.lab.traffic import Load, connections, serve
from dataplane.lab.witness import Witness
from tests.lab.machine import check_refusal, under

KEYS = [
    "link", "group", "method", "rule", "fields", "hash", "slot", "mark", "table",
    "source_address", "candidates", "reason", "steps",
]  # fmt: skip
KEY = "00112233445566ff"
PORT = 5001
# Main knows some specific routes, and somewhere to go for the rest.
ROUTES = """
ip route add 203.0.113.128/25 via 192.0.2.1 dev wan1
ip route add blackhole 203.0.114.0/24
ip route add unreachable 203.0.115.0/24
ip route add prohibit 2001:db8:dead::/64
ip route add default via 198.51.100.1 dev wan2 metric 900
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    links = tuple(
        link(name, n, n * 10 * MBIT, shaped=False) for n, name in enumerate(("isp-a", "isp-b"), 1)
    )
    try:
        with Lab(Topology(links, (lan(hosts=8), lan("dmz", 1, hosts=2)), servers(8))) as built:
            built.router.run("bash", "-e", "-c", ROUTES)
            yield built
    except UnavailableError as lacking:
        pytest.skip(str(lacking))


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return lab.run(lab.file(key=KEY))


def one(lab: Lab, daemon: Daemon, *words: str) -> dict[str, object]:
    done = lab.evenlink("explain", "--json", *words, "--config", str(daemon.file))
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert list(answer) == KEYS
    assert isinstance(answer, dict)
    return answer


def test_foretells_every_connection(lab: Lab, daemon: Daemon) -> None:
    pairs = lab.topology.pairs()
    wanted = [x for x in connections(pairs, PORT, each=2, heavy=0) if not x.late]
    foretold = daemon.explain([connection.flow for connection in wanted])
    serve(lab, PORT)
    with Witness(lab) as witness:
        load = Load(lab, wanted, load_s=0.5, light_interval_s=0.2)
        for _ in load.events():
            pass
        seen = witness.testimony()
    assert load.failures == {}
    assert not seen.wrong_source_packets, seen.examples
    expected = {x.number: {a["link"]} for x, a in zip(wanted, foretold, strict=True)}
    assert dict(seen.links) == expected
    assert set().union(*expected.values()) == {"isp-a", "isp-b"}
    # The file alone gives the same, with the key that it names.
    text = "".join(f"{connection.flow}\n" for connection in wanted)
    alone = lab.evenlink("explain", "--json", "--stdin", "--file", str(daemon.file), stdin=text)
    answers = [json.loads(line) for line in alone.stdout.splitlines()]
    assert [a["link"] for a in answers] == [a["link"] for a in foretold]
    assert [a["hash"] for a in answers] == [a["hash"] for a in foretold]


LEFT_TO_MAIN = [
    ("10.10.0.11 10.11.0.11", "a connected network or a specific route to 10.11.0.11 by lan1"),
    ("10.10.0.11 192.0.2.1", "a connected network or a specific route to 192.0.2.1 by wan1"),
    ("10.10.0.11 203.0.113.200", "specific route to 203.0.113.200 by wan1"),
    ("10.10.0.11 10.10.0.1", "10.10.0.1 is an address of this router"),
    ("10.10.0.11 192.0.2.2", "192.0.2.2 is an address of this router"),
    ("10.10.0.11 127.0.0.1", "127.0.0.1 is an address of this router"),
    ("10.10.0.11 10.10.255.255", "10.10.255.255 is not a unicast address"),
    ("10.10.0.11 255.255.255.255", "255.255.255.255 is not a unicast address"),
    ("10.10.0.11 0.1.2.3", "0.1.2.3 is not a unicast address"),
    ("10.10.0.11 203.0.114.1", "main has a specific route to 203.0.114.1 that refuses it"),
    ("10.10.0.11 203.0.115.1", "main has a specific route to 203.0.115.1 that refuses it"),
    ("fd00:10::11 2001:db8:dead::1", "main has a specific route to 2001:db8:dead::1 that"),
    ("10.10.0.11 224.0.0.251", "224.0.0.251 is not a unicast address"),
    ("10.10.0.11 169.254.1.1", "link-local"),
    ("169.254.1.1 203.0.113.1", "link-local"),
    ("10.10.0.11 203.0.113.1 udp 68 67", "DHCP"),
    ("10.10.0.11 203.0.113.1 tcp 0 0 wan1", "wan1, which is not of the LAN side"),
    ("10.10.0.11 203.0.113.1 tcp 0 0 [/b]", "[/b], which is not of the LAN side"),
    ("fd00:10::11 ff02::1", "ff02::1 is not a unicast address"),
    ("fe80::1 fe80::2", "link-local"),
]


def test_left_to_main(lab: Lab, daemon: Daemon) -> None:
    answers = daemon.explain([words for words, _ in LEFT_TO_MAIN])
    for (words, reason), answer in zip(LEFT_TO_MAIN, answers, strict=True):
        assert list(answer) == KEYS
        assert reason in answer["reason"], words
        assert answer["link"] is None
        assert answer["table"] == "main"
        assert answer["steps"]
    text = "".join(f"{words}\n" for words, _ in LEFT_TO_MAIN)
    plain = lab.evenlink("explain", "--stdin", "--config", str(daemon.file), stdin=text)
    assert plain.stdout.count("main: ") == len(LEFT_TO_MAIN)
    assert all(answer["reason"] in plain.stdout for answer in answers)
    assert plain.stderr == ""


def test_the_routers_own_addresses(lab: Lab, daemon: Daemon) -> None:
    """A socket that is bound to one of them leaves by its link."""
    own = {"isp-a": ("192.0.2.2", "2001:db8:1::2"), "isp-b": ("198.51.100.2", "2001:db8:2::2")}
    for name, addresses in own.items():
        for source, target in zip(addresses, ("203.0.113.1", "2001:db8:5::1"), strict=True):
            answer = one(lab, daemon, source, target)
            assert answer["link"] == name
            assert answer["source_address"] == source
            assert "this router's own address" in str(answer["reason"])


def test_what_main_leaves_is_balanced(lab: Lab, daemon: Daemon) -> None:
    """Its default route does not count, and neither does the interface where it is of the LAN."""
    for interface in ((), ("--in", "lan0"), ("--in", "lan1")):
        answer = one(lab, daemon, "10.10.0.11", "203.0.113.1", *interface)
        assert answer["link"] in ("isp-a", "isp-b")
        assert answer["group"] == answer["rule"] == "default"
        assert answer["fields"] == "both-addresses"
        assert answer["method"] == "pcc"
        assert int(str(answer["hash"]), 16) >> 48 == answer["slot"]


def test_protocols_and_ports(lab: Lab, daemon: Daemon) -> None:
    """Names and numbers are the same; ports do not matter to addresses."""
    pair = ("10.10.0.11", "203.0.113.1")
    answers = [
        one(lab, daemon, *pair, *more)
        for more in (
            (),
            ("--protocol", "tcp", "--sport", "1", "--dport", "65535"),
            ("--protocol", "6"),
            ("--protocol", "UDP", "--dport", "53"),
            ("--protocol", "icmp"),
            ("--protocol", "gre"),
        )
    ]
    assert all(answer == answers[0] for answer in answers)


def test_ipv6(lab: Lab, daemon: Daemon) -> None:
    source = str(lab.topology.lans[0].clients(6)[0])
    answers = daemon.explain([f"{source} {x}" for x in lab.topology.serving(6)])
    assert {answer["link"] for answer in answers} <= {"isp-a", "isp-b"}
    for answer in answers:
        expected = {"isp-a": "2001:db8:1::2", "isp-b": "2001:db8:2::2"}[answer["link"]]
        assert answer["source_address"] == expected
    # Terminals show what was asked, though ":abc:" may be a picture's name elsewhere.
    shown = lab.evenlink("explain", source, "2a00:abc:100::cd:1", "--config", str(daemon.file))
    assert "2a00:abc:100::cd:1" in shown.stdout


def test_dead(lab: Lab, daemon: Daemon) -> None:
    flows = [f"10.10.0.{n} 203.0.113.{m}" for n in range(1, 30) for m in range(1, 9)]
    text = "\n".join(flows)
    lines = {}
    for dead in ("isp-a", "isp-b"):
        for how in ("--config", "--file"):
            done = lab.evenlink(
                "explain", "--json", "--stdin", "--dead", dead, how, str(daemon.file), stdin=text
            )
            lines[dead, how] = {json.loads(line)["link"] for line in done.stdout.splitlines()}
    assert lines == {
        ("isp-a", "--config"): {"isp-b"}, ("isp-a", "--file"): {"isp-b"},
        ("isp-b", "--config"): {"isp-a"}, ("isp-b", "--file"): {"isp-a"},
    }  # fmt: skip
    both = ("--dead", "isp-a", "--dead", "isp-b")
    for how in ("--config", "--file"):
        done = lab.evenlink("explain", *flows[0].split(), *both, how, str(daemon.file))
        assert "unreachable until it is back" in done.stdout
        done = under(lab, "", "explain", *flows[0].split(), "--dead", "x", how, str(daemon.file))
        check_refusal(done, 2, "--dead: there is no link 'x'")


def test_dead_is_what_happens(lab: Lab, daemon: Daemon) -> None:
    """What `--dead` foretells comes true when the carrier goes, and ends when it is back."""
    flows = [f"10.10.0.{n} 203.0.113.{m}" for n in range(1, 30) for m in range(1, 9)]
    at_home = [answer["slot"] and answer["link"] for answer in daemon.explain(flows)]
    with faults.no_carrier(lab, "isp-b"):
        until(daemon, "isp-b", "down")
        assert {answer["link"] for answer in daemon.explain(flows)} == {"isp-a"}
    until(daemon, "isp-b", "up")
    assert [answer["link"] for answer in daemon.explain(flows)] == at_home


def until(daemon: Daemon, name: str, state: str) -> None:
    """Polls; each question takes an interpreter's start."""
    for _ in range(60):
        links = {one["name"]: one for one in daemon.status()["links"]}
        if links[name]["state"] == state and len(links[name]["carries"]) in (0, 2):
            return
    raise AssertionError(f"{name} is not {state}: {daemon.log}")


def test_binary_on_standard_input(lab: Lab, daemon: Daemon) -> None:
    script = f'head -c 4096 /dev/urandom > {lab.directory}/noise; exec "$@" < {lab.directory}/noise'
    done = under(lab, script, "explain", "--stdin", "--config", str(daemon.file))
    check_refusal(done, 2, "explain: line ")


def test_without_a_daemon_or_a_key(lab: Lab) -> None:
    """By a file that is not running: no key has been made, so nothing can be foretold."""
    file = str(lab.file(name="new.toml", state_dir=str(lab.directory / "new")))
    done = under(lab, "", "explain", "10.0.0.1", "1.1.1.1", "--file", file)
    check_refusal(done, 3, "no key")
    gone = str(lab.file(name="gone.toml", control_socket=str(lab.directory / "gone.sock")))
    done = under(lab, "", "explain", "10.0.0.1", "1.1.1.1", "--config", gone)
    check_refusal(done, 3, "no daemon listens on")


def test_thousands_of_lines(lab: Lab, daemon: Daemon) -> None:
    """More than the daemon takes at once."""
    flows = [f"10.10.{n >> 8}.{n & 255} 203.0.113.1" for n in range(2500)]
    assert len(daemon.explain(flows)) == 2500


def test_explaining_changes_nothing(lab: Lab, daemon: Daemon) -> None:
    assert lab.evenlink("plan", str(daemon.file)).stdout == ""
    assert daemon.status()["faults"] == []
    assert daemon.stop(signal.SIGINT) == 0
