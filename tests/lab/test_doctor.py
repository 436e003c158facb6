"""`doctor` tells what is there and what is not, and leaves no trace."""

from __future__ import annotations

import json

import pytest

from dataplane.lab import Lab
from tests.lab.machine import held, under

CHECKS = ["name", "ok", "found", "follows"]
TRIED = {
    "nf_tables", "IPv6 NAT", "queue", "queue rule", "policy routing", "connections",
    "multipath routes", "packet copies",
}  # fmt: skip


def ask(lab: Lab, *words: str, script: str = "") -> tuple[int, dict[str, dict[str, object]]]:
    done = under(lab, script, "doctor", "--json", *words)
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert list(answer) == ["checks"]
    assert all(list(one) == CHECKS for one in answer["checks"])
    return done.returncode, {one["name"]: one for one in answer["checks"]}


def test_a_machine_that_serves(lab: Lab) -> None:
    """The lab's router can run Evenlink, so nothing is lacking; and asking changes nothing."""
    before = held(lab)
    status, checks = ask(lab, str(lab.file()))
    assert {name for name, one in checks.items() if not one["ok"]} == set()
    assert status == 0
    assert checks.keys() >= {"rights", "nft", "table", "file", "link isp-a", "link isp-b", *TRIED}
    assert checks["link isp-a"]["found"] == "carries IPv4 and IPv6"
    assert held(lab) == before


def test_without_a_file(lab: Lab) -> None:
    status, checks = ask(lab, script="mount -t tmpfs none /etc")
    assert status == 0
    assert checks.keys() >= TRIED
    assert "file" not in checks


def test_for_people(lab: Lab) -> None:
    done = under(lab, "", "doctor", str(lab.file()))
    assert done.stdout.startswith("well   rights: ")
    assert "\x1b" not in done.stdout
    assert "FAULT" not in done.stdout


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"lan": ["lan9"]}, "interface", "lan9"),
        ({"nothing": 1}, "file", "nothing: unknown key"),
    ],
)
def test_a_file_that_does_not_fit(
    lab: Lab, changes: dict[str, object], name: str, said: str
) -> None:
    status, checks = ask(lab, str(lab.file(name="unfit.toml", **changes)))
    assert status == 1
    assert not checks[name]["ok"]
    assert said in str(checks[name]["found"])
    assert checks[name]["follows"]


def test_an_application_that_nobody_knows(lab: Lab) -> None:
    """`check` judges the file alone, and cannot know."""
    text = lab.file().read_text()
    rules = (f'[[rule]]\napplication = "{one}"\nuse = "isp-a"\n' for one in ("tls", "bittorent"))
    file = lab.file(name="unknown.toml", text="\n".join([text, *rules]))
    assert under(lab, "", "check", str(file)).returncode == 0
    status, checks = ask(lab, str(file))
    assert status == 1
    assert checks["nDPI"]["ok"]
    assert [name for name, one in checks.items() if not one["ok"]] == ["application"]
    said = "rule 2: the application bittorent is unknown to nDPI"
    assert checks["application"]["found"] == said


def test_without_rights(lab: Lab) -> None:
    """Nothing can be tried then, and that is said."""
    dropped = "setpriv --bounding-set=-all --inh-caps=-all --reuid=65534 --clear-groups"
    status, checks = ask(lab, script=f'set -- {dropped} "$@"')
    assert status == 1
    assert "CAP_NET_ADMIN" in str(checks["rights"]["found"])
    assert "not tried" in str(checks["kernel features"]["found"])


def test_a_tool_that_is_missing(lab: Lab) -> None:
    status, checks = ask(lab, script="mount --bind /dev/null /usr/sbin/nft")
    assert status == 1
    assert not checks["nft"]["ok"]
    assert "install" in str(checks["nft"]["follows"])
