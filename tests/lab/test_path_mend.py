"""Another tool changes what is ours: it is noticed and mended, and connections go on.

client ── router ─┬─ isp-a ─┬─ server
                  └─ isp-b ─┘
"""

from __future__ import annotations

import pytest

from dataplane.lab import Daemon, Lab
from tests.lab.talk import call, eventually, link_of, queued, rightful_sources, status

# What others do, by name: commands of a shell on the router.
DEEDS = {
    "a rule is deleted": "ip rule del priority 30302",
    "an IPv6 rule is deleted": "ip -6 rule del priority 30302",
    "all rules are deleted":
        "ip rule flush; ip rule add priority 32766 lookup main; "
        "ip rule add priority 32767 lookup default",
    "a rule of our kind is added": "ip rule add priority 30999 lookup main protocol 201",
    "a link's route is deleted": "ip route del default table 7002 metric 100",
    "a link's IPv6 route is deleted": "ip -6 route del default table 7002 metric 100",
    "a link's route is changed":
        "ip route replace default via 192.0.2.1 dev wan1 table 7002 metric 100 proto 201",
    "a table is flushed": "ip route flush table 7001",
    "the last table is flushed": "ip route flush table 7000; ip -6 route flush table 7000",
    "the nft table is deleted": "nft delete table inet evenlink",
    "the whole ruleset is flushed": "nft flush ruleset",
    "a chain is flushed": "nft flush chain inet evenlink postrouting_nat",
    "one nft rule is deleted":
        "nft delete rule inet evenlink prerouting_restore handle $(nft -a list chain inet evenlink "
        "prerouting_restore | sed -n 's/.*adopt # handle //p')",
    "one nft rule is added": "nft insert rule inet evenlink exempt accept",
    "one nft rule is replaced":
        "nft replace rule inet evenlink mark_1 handle $(nft -a list chain inet evenlink mark_1 | "
        "sed -n 's/.*mark set.*handle //p') meta mark set 0x02000000",
    "a set is deleted with all that uses it":
        "nft 'flush chain inet evenlink settle; flush chain inet evenlink leave_1; "
        "delete set inet evenlink pairs4_1'",
    "the queue's rule is deleted": "iptables -t mangle -F PREROUTING",
    "the queue's IPv6 rule is deleted": "ip6tables -t mangle -F",
    "iptables' tables are deleted": "nft delete table ip mangle; nft delete table ip6 mangle",
}  # fmt: skip

STATE = """
ip -4 rule; ip -6 rule; for table in 7000 7001 7002; do
ip -4 route show table $table; ip -6 route show table $table; done
nft -s -t list table inet evenlink; iptables -t mangle -S; ip6tables -t mangle -S
"""


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Daemon:
    return lab.run(lab.file(key="0123456789abcdef"))


def ours(lab: Lab) -> list[str]:
    said = lab.router.run("sh", "-c", STATE, check=False).stdout
    return sorted(line.strip() for line in said.splitlines())


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS.keys())
def test_mended(lab: Lab, daemon: Daemon, deed: str) -> None:
    before, mended = ours(lab), status(daemon)["mended"]
    talks = [
        call(lab, target, protocol)
        for target in lab.topology.servers
        for protocol in ("udp", "tcp")
    ]
    homes = [link_of(lab, talk.goes_on()) for talk in talks]
    assert set(homes) == {"isp-a", "isp-b"}
    lab.router.run("sh", "-ec", deed)
    assert ours(lab) != before or status(daemon)["mended"] > mended
    eventually(lambda: ours(lab) == before, "not mended")
    eventually(lambda: status(daemon)["mended"] > mended)
    with rightful_sources(lab):
        for talk, home in zip(talks, homes, strict=True):
            assert link_of(lab, talk.goes_on()) == home
            talk.close()
        asked = queued(daemon)
        for target, home in zip(lab.topology.servers, homes[::2], strict=True):
            with call(lab, target) as talk:
                assert link_of(lab, talk.goes_on()) == home
        assert queued(daemon) == asked + len(lab.topology.servers)


def has_rule(lab: Lab) -> bool:
    return "30301:" in lab.router.run("ip", "rule").stdout


def delete_a_rule(lab: Lab) -> None:
    lab.router.run("ip", "rule", "del", "priority", "30301")


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_settings_are_set_again(lab: Lab, daemon: Daemon, family: str) -> None:
    """Nobody tells of a setting; it is found when something else is looked after."""
    key = "ipv4/conf/wan1/rp_filter" if family == "ipv4" else "ipv6/conf/wan1/accept_ra"
    lab.router.set({f"net/{key}": 1})
    delete_a_rule(lab)

    def value() -> str:
        return lab.router.run("cat", f"/proc/sys/net/{key}").stdout.strip()

    eventually(lambda: value() == "2")
    eventually(lambda: has_rule(lab))


def test_other_peoples_things_are_left_alone(lab: Lab, daemon: Daemon) -> None:
    """What is not ours is neither changed nor taken for ours."""
    done = """
    ip rule add priority 100 fwmark 0x42/0xff lookup 77
    ip route add 198.18.99.0/24 via 192.0.2.1 table 77
    ip route add default via 192.0.2.1 dev wan1 metric 5000
    nft add table inet somebody
    nft add chain inet somebody forward '{ type filter hook forward priority 0; }'
    iptables -t mangle -A PREROUTING -m mark --mark 0x42 -j ACCEPT
    iptables -A FORWARD -i lan0 -j ACCEPT
    """
    undone = """
    ip rule del priority 100
    ip route flush table 77
    ip route del default metric 5000
    nft delete table inet somebody
    iptables -t mangle -D PREROUTING -m mark --mark 0x42 -j ACCEPT
    iptables -D FORWARD -i lan0 -j ACCEPT
    """
    kept = "ip rule; ip route; ip route show table 77; nft list table inet somebody; iptables-save"
    lab.router.run("sh", "-ec", done)
    try:
        seen = lab.router.run("sh", "-c", f"{kept} | grep -v '^#'").stdout
        # A deed of ours afterwards: whoever mends it has seen the others' too.
        delete_a_rule(lab)
        eventually(lambda: has_rule(lab))
        now = lab.router.run("sh", "-c", f"{kept} | grep -v '^#'").stdout
        assert sorted(now.splitlines()) == sorted(seen.splitlines())
    finally:
        lab.router.run("sh", "-ec", undone)
