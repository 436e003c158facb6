"""What is refused: one clear message, the exit status of the contract, the machine as it was.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘

The router is somebody's: it has rules, filters and settings that are not ours.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.lab import Lab
from tests.lab.machine import check_refusal, held, live_in, under, wrapper

# Another user who can read what we can: only the right to change the network is missing.
NOBODY = 'exec setpriv --reuid=65534 --regid=65534 --clear-groups \
    --inh-caps=-all,+dac_read_search --ambient-caps=+dac_read_search --bounding-set=-net_admin \
    "$@"'
NO_NET_ADMIN = 'exec setpriv --inh-caps=-net_admin --bounding-set=-net_admin "$@"'
# Root reads everything, unless it gives that up.
NO_OVERRIDE = (
    "exec setpriv --inh-caps=-dac_override,-dac_read_search "
    '--bounding-set=-dac_override,-dac_read_search "$@"'
)
READ_ONLY_SYSCTLS = """
    mount --bind /proc/sys /proc/sys
    mount -o remount,ro,bind /proc/sys
"""

TEN_FAULTS = """\
lan = "br-lan"
mark_mask = 5
ipv6 = "yes"
own_trafic = "main"

[queue]
number = 70000
engine = "fast"

[link.a]
interface = "wan1"
gateway = "192.0.2.300"
capacity = "20"

[link.b]
interface = "wan2/x"
capacity = "-1Mbit"
"""


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    live_in(lab)
    return lab


@pytest.fixture
def unchanged(lab: Lab) -> Iterator[None]:
    """The machine is afterwards what it was before."""
    before = held(lab)
    yield
    assert held(lab) == before


def in_the_way(lab: Lab, key: str) -> Path:
    """A path that cannot be made: what should be a directory above it is a file."""
    stone = lab.directory / f"stone-{key}"
    stone.write_text("stone\n")
    return stone / "below"


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("command", [("run",), ("plan",), ("down", "--config")])
@pytest.mark.parametrize("lacking", [NOBODY, NO_NET_ADMIN], ids=["nobody", "no CAP_NET_ADMIN"])
def test_missing_rights(lab: Lab, lacking: str, command: tuple[str, ...]) -> None:
    done = under(lab, lacking, *command, str(lab.file()))
    check_refusal(done, 3, "CAP_NET_ADMIN", "missing: run as root")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("command", ["run", "plan"])
def test_everything_that_does_not_fit_is_said_at_once(lab: Lab, command: str) -> None:
    text = lab.file().read_text()
    text = text.replace('"wan2"', '"wan9"').replace('"192.0.2.1"', '"203.0.113.77"')
    text = text.replace("lan = [", 'lan = ["br-none", ')
    lab.router.run("bash", "-c", "ip rule add fwmark 0x1000000/0xff000000 lookup 88 priority 1001")
    done = under(lab, "", command, str(lab.file(name="misfit.toml", text=text)))
    lab.router.run("ip", "rule", "del", "priority", "1001")
    check_refusal(
        done,
        3,
        "lan: interface br-none does not exist",
        "link.isp-b.interface: wan9 does not exist",
        "link.isp-a.gateway: 203.0.113.77 is not in a network of wan1 (192.0.2.0/24)",
        "mark_mask: 0x7f000000 overlaps the mark 0x1000000/0xff000000",
        "(ip rule priority 1001); choose other bits",
    )


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("tool", "pattern", "said"),
    [
        ("nft", '"nft -f -"', "Error: Could not process rule: Operation not supported"),
        ("iptables-nft", '"iptables-nft"*" -A "*', "missing kernel module xt_NFQUEUE"),
        ("iptables-nft", '"ip6tables-nft"*" -A OUTPUT"*', "missing kernel module ip6t_NFQUEUE"),
    ],
)
def test_what_the_kernel_lacks_undoes_the_rest(
    lab: Lab, tool: str, pattern: str, said: str
) -> None:
    file = str(lab.file())
    steps = json.loads(lab.evenlink("plan", "--json", file).stdout)["steps"]
    tools = {step["tool"] for step in steps}
    if tool == "iptables-nft" and "iptables" not in tools:
        pytest.skip("this kernel's nft has the queue statement: iptables is not used")
    done = under(lab, wrapper(lab, tool, pattern, said), "run", file)
    check_refusal(done, 3, said, "what was done before is undone")
    assert not (lab.directory / "state" / "state.json").exists()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("tool", ["nft", "iptables-nft"])
def test_tool_is_not_installed(lab: Lab, tool: str) -> None:
    none = lab.directory / "none"
    none.touch(mode=0o644)
    names = [tool, "iptables-legacy"] if tool == "iptables-nft" else [tool]
    hidden = "\n".join(f"mount --bind {none} $(readlink -f /usr/sbin/{name})" for name in names)
    done = under(lab, hidden, "run", str(lab.file()))
    check_refusal(done, 3, "command is missing; install the package")


@pytest.mark.usefixtures("unchanged")
def test_settings_are_read_only(lab: Lab) -> None:
    """As in a container without privileges for it."""
    done = under(lab, READ_ONLY_SYSCTLS, "run", str(lab.file()))
    check_refusal(done, 3, "sysctl", "Read-only file system")


@pytest.mark.usefixtures("unchanged")
def test_queue_is_bound_by_another_program(lab: Lab) -> None:
    script = (
        "import netfilterqueue, time\n"
        "queue = netfilterqueue.NetfilterQueue()\n"
        "queue.bind(7477, lambda packet: None)\n"
        "print('bound', flush=True)\n"
        "time.sleep(60)\n"
    )
    other = lab.router.start(sys.executable, "-c", script, stdout=-1)
    assert other.stdout is not None
    assert other.stdout.readline() == "bound\n"
    done = under(lab, "", "run", str(lab.file()))
    other.kill()
    other.wait()
    check_refusal(done, 3, "queue 7477 is bound by another process")


def test_second_daemon(lab: Lab) -> None:
    """With the same state directory; with another; and with nothing at all in common."""
    before = held(lab)
    daemon = lab.run()
    serving = held(lab)
    other = {
        "state_dir": str(lab.directory / "state-2"),
        "control_socket": str(lab.directory / "control-2.sock"),
    }
    check_refusal(
        under(lab, "", "run", str(daemon.file)), 3, "another evenlink daemon (process ", "holds"
    )
    same_socket = lab.file(name="two.toml", state_dir=other["state_dir"])
    check_refusal(under(lab, "", "run", str(same_socket)), 3, "another evenlink daemon (process ")
    text = lab.file(name="three.toml", **other).read_text() + "\n[queue]\nnumber = 99\n"
    foreign = lab.file(name="three.toml", text=text)
    check_refusal(under(lab, "", "run", str(foreign)), 3, "another evenlink daemon (process ")
    # Removal by the wrong file would fight with the daemon, which mends.
    check_refusal(under(lab, "", "down", "--config", str(foreign)), 3, "--config")
    assert held(lab) == serving
    assert daemon.status()["faults"] == []
    daemon.stop(signal.SIGINT)
    assert held(lab) == before


def a_file(lab: Lab) -> dict[str, Any]:
    path = lab.directory / "a-file"
    path.write_text("not ours\n")
    return {"control_socket": str(path)}


def a_directory(lab: Lab) -> dict[str, Any]:
    (lab.directory / "a-directory").mkdir(exist_ok=True)
    return {"control_socket": str(lab.directory / "a-directory")}


def below_a_file(lab: Lab) -> dict[str, Any]:
    return {"control_socket": str(in_the_way(lab, "socket"))}


def no_such_group(lab: Lab) -> dict[str, Any]:
    return {"control_group": "nosuchgroup"}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (a_file, "a-file: is there and is no socket"),
        (a_directory, "a-directory: is there and is no socket"),
        (below_a_file, "stone-socket is no directory"),
        (no_such_group, "control_group: there is no group nosuchgroup"),
    ],
)
def test_control_socket_cannot_be_made(
    lab: Lab, keys: Callable[[Lab], dict[str, Any]], said: str
) -> None:
    done = under(lab, "", "run", str(lab.file(**keys(lab))))
    check_refusal(done, 3, said)


def test_failed_restart_leaves_the_kernel_serving(lab: Lab) -> None:
    before = held(lab)
    lab.run().stop(signal.SIGTERM)
    serving = held(lab)
    check_refusal(under(lab, "", "run", str(lab.file(**a_file(lab)))), 3, "is no socket")
    assert held(lab) == serving
    lab.evenlink("down", "--config", str(lab.file()))
    assert held(lab) == before


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\xff\x00 garbage",
        b'{"ids": {"isp-a": 1, "isp-b": 1}}',
        b"[" * 100_000,
    ],
)
def test_state_is_garbage(lab: Lab, stored: bytes) -> None:
    state = lab.directory / "garbage"
    state.mkdir(exist_ok=True)
    (state / "state.json").write_bytes(stored)
    done = under(lab, "", "run", str(lab.file(state_dir=str(state))))
    check_refusal(done, 3, "garbage/state.json cannot be read", "remove it to start afresh")
    assert (state / "state.json").read_bytes() == stored


@pytest.mark.usefixtures("unchanged")
def test_state_directory_is_read_only(lab: Lab) -> None:
    state = lab.directory / "read-only"
    state.mkdir()
    script = f"mount --bind {state} {state}; mount -o remount,ro,bind {state}"
    done = under(lab, script, "run", str(lab.file(state_dir=str(state))))
    check_refusal(done, 3, f"state_dir {state}: Read-only file system")
    done = under(lab, "", "run", str(lab.file(state_dir=str(in_the_way(lab, "state")))))
    check_refusal(done, 3, "stone-state/below: Not a directory")


@pytest.mark.usefixtures("unchanged")
def test_state_directory_is_full(lab: Lab) -> None:
    state = lab.directory / "full"
    state.mkdir()
    script = f"mount -t tmpfs -o size=4k none {state}; echo 1234567890123456 > {state}/key"
    done = under(lab, script, "run", str(lab.file(state_dir=str(state))))
    check_refusal(done, 3, f"{state}/", "No space left on device")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("content", [b"", b"\xff\xfe" * 8, b"0" * 99999])
def test_key_file_has_wrong_content(lab: Lab, content: bytes) -> None:
    key = lab.directory / "key"
    key.write_bytes(content)
    for command in ("run", "plan"):
        done = under(lab, "", command, str(lab.file(key=str(key))))
        check_refusal(done, 3, f"key: {key}")


@pytest.mark.usefixtures("unchanged")
def test_key_file_is_missing_or_a_directory(lab: Lab) -> None:
    done = under(lab, "", "run", str(lab.file(key=str(lab.directory / "nokey"))))
    check_refusal(done, 3, "nokey does not exist")
    done = under(lab, "", "run", str(lab.file(key=str(lab.directory))))
    check_refusal(done, 3, "Is a directory")


@pytest.mark.usefixtures("unchanged")
def test_file_with_ten_faults(lab: Lab) -> None:
    file = lab.file(name="ten.toml", text=TEN_FAULTS)
    judged = lab.evenlink("check", "--json", str(file), check=False)
    assert judged.returncode == 2
    answer = json.loads(judged.stdout)
    assert not answer["ok"]
    assert len(answer["faults"]) >= 10
    assert [fault["line"] for fault in answer["faults"][:3]] == [1, 2, 3]
    assert all(set(fault) == {"file", "line", "key", "message"} for fault in answer["faults"])
    for command in ("run", "plan"):
        done = under(lab, "", command, str(file))
        check_refusal(done, 2, *(fault["key"] for fault in answer["faults"]))


@pytest.mark.usefixtures("unchanged")
def test_file_cannot_be_read(lab: Lab) -> None:
    secret = lab.file(name="secret.toml")
    os.chown(secret, 65534, 65534)
    secret.chmod(0)
    binary = lab.directory / "binary.toml"
    binary.write_bytes(bytes(range(256)) * 16)
    check_refusal(under(lab, NO_OVERRIDE, "run", str(secret)), 2, "Permission denied")
    check_refusal(under(lab, "", "run", str(lab.directory)), 2, "Is a directory")
    check_refusal(under(lab, "", "run", "/nowhere.toml"), 2, "No such file")
    check_refusal(under(lab, "", "run", str(binary)), 2, "UTF-8")
