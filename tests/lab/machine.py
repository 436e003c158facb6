"""What a router holds, as one text that is compared whole, and how a refusal has to look."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from dataplane.lab import Lab

COMMAND = (sys.executable, "-m", "dataplane.tools.cli")

_HELD = r"""
nft list ruleset
for family in -4 -6; do ip $family rule; ip $family route show table all; done
iptables-save | grep -v '^#'; ip6tables-save | grep -v '^#'
cd /proc/sys
grep -rs . net/ipv4/ip_forward net/ipv4/conf net/ipv6/conf | sed 's,:, = ,' | sort
"""


def held(lab: Lab) -> str:
    """Rules, routes, filters and settings of the router."""
    return lab.router.run("bash", "-c", _HELD, check=False).stdout


def put_settings_back(lab: Lab, before: str) -> None:
    """The settings of what `held` gave earlier; those that sweep others first."""
    lab.router.set({"net/ipv4/ip_forward": 0, "net/ipv6/conf/all/forwarding": 0})
    with lab.router.inside():
        for line in before.splitlines():
            if line.startswith("net/"):
                key, _, value = line.partition(" = ")
                with suppress(OSError):  # Some cannot be written.
                    Path("/proc/sys", key).write_text(value)


def live_in(lab: Lab) -> None:
    """Makes the router one that somebody uses: settings, filters, rules and routes of their own."""
    isp = lab.topology.links[0]
    script = f"""
        echo 0 > /proc/sys/net/ipv4/conf/all/accept_redirects
        echo 1 > /proc/sys/net/ipv4/conf/{isp.interface}/forwarding
        echo 1 > /proc/sys/net/ipv6/conf/{isp.interface}/forwarding
        echo 1 > /proc/sys/net/ipv4/conf/{isp.interface}/rp_filter
        ip route add default via {isp.gateway(4)} dev {isp.interface} metric 500
        ip route add 10.99.0.0/16 via {isp.gateway(4)} dev {isp.interface} table 88
        ip rule add fwmark 0x100/0xff00 lookup 88 priority 1000
        ip rule add from 10.99.0.0/16 lookup 88 priority 30600
        nft add table inet filter
        nft add chain inet filter input '{{ type filter hook input priority 0; }}'
        nft add rule inet filter input tcp dport 22 accept
        iptables-nft -t mangle -A PREROUTING -s 10.99.0.0/16 -j MARK --set-mark 0x100
    """
    lab.router.run("bash", "-e", "-c", script)


def under(lab: Lab, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the evenlink command on the router after `script`, whose mounts only it sees."""
    shell = f'{script}\nexec "$@"'
    return lab.router.run(
        "bash", "-e", "-c", shell, "bash", *COMMAND, *arguments, check=False, timeout_s=30
    )


def wrapper(lab: Lab, tool: str, pattern: str, words: str) -> str:
    """Shell lines that make `tool` refuse with `words` when its arguments match the pattern.

    The tool may be one of several names of one program, as iptables' are.
    """
    real = lab.router.run("readlink", "-f", f"/usr/sbin/{tool}").stdout.strip()
    kept, script = lab.directory / f"{tool}.kept", lab.directory / f"{tool}.refusing"
    kept.write_bytes(Path(real).read_bytes())
    kept.chmod(0o755)
    script.write_text(
        "#!/bin/bash\n"
        f'case "${{0##*/}} $*" in {pattern}) echo "{words}" >&2; exit 1;; esac\n'
        f'exec -a "${{0##*/}}" {kept} "$@"\n'
    )
    script.chmod(0o755)
    return f"mount --bind {script} {real}"


def check_refusal(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One message on standard error that has these words, no data, no traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("evenlink: ")
    for word in words:
        assert word in done.stderr
