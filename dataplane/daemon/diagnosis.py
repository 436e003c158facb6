"""What the machine offers or lacks, and what follows: `evenlink doctor`.

Every check looks, or tries in a network namespace of its own; nothing is changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dataplane.config.load import read_file
from dataplane.config.model import AddressList, Config
from dataplane.daemon import findings
from dataplane.daemon.features import Check, kernel_checks
from dataplane.daemon.learn import unknown_applications
from dataplane.daemon.look import Machine
from dataplane.daemon.recogniser import available
from dataplane.decide.facts import FAMILIES, Facts
from dataplane.decide.fit import absences, conflicts, doubts
from dataplane.decide.liveness import link_states
from dataplane.errors import ConfigError, Error
from dataplane.system import capabilities, sysctl, trials

LEAST_NFT = (1, 0, 6)
# From here on, a full table of connections is near.
_NEARLY_FULL = 0.9
_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")

_PATIENCE_S = 10
# In a process of its own: the daemon's and the command's never load the library.
_ASK_NDPI = """
import sys
sys.path.insert(0, sys.argv[1])
from dataplane import recognise
known = recognise.Recogniser(talks=16, packets=1).applications()
print(f"version {recognise.version()}, {len(known)} applications", *known, sep="\\n")
"""


def diagnose(path: Path | None) -> list[Check]:
    """All checks of the machine; with a file, whether both go together, too."""
    config, found = (None, []) if path is None else _file(path)
    return [*_machine(config), *found, *(_fit(config) if config else ())]


def _machine(config: Config | None) -> Iterator[Check]:
    yield _rights()
    yield Check("kernel", True, f"Linux {trials.kernel()}")
    nft = _nft()
    yield nft
    iptables = trials.version("iptables-nft", "iptables")
    follows = "" if iptables else "needed where nft has no queue statement: see queue rule"
    yield Check("iptables", True, iptables or "missing", follows)
    if nft.ok:
        yield from kernel_checks(config)
    yield _room()
    yield from _recogniser(config)


def _rights() -> Check:
    lacking = capabilities.missing()
    if not trials.settings_writable():
        lacking.append("the right to write below /proc/sys/net")
    if lacking:
        return Check("rights", False, f"missing: {', '.join(lacking)}", "`run` is refused")
    return Check("rights", True, "CAP_NET_ADMIN, CAP_NET_RAW, settings can be written")


def _nft() -> Check:
    said = trials.version("nft")
    if said is None:
        return Check("nft", False, "missing", "`run` is refused: install the package nftables")
    numbers = _NUMBERS.search(said)
    least = ".".join(map(str, LEAST_NFT))
    if numbers and tuple(int(one or 0) for one in numbers.groups()) < LEAST_NFT:
        return Check("nft", False, said, f"older than {least}, with which Evenlink is tested")
    return Check("nft", True, said)


def _room() -> Check:
    """How much of the table of connections is used."""
    count = sysctl.read("net/netfilter/nf_conntrack_count")
    most = sysctl.read("net/netfilter/nf_conntrack_max")
    if not (count and most and count.isdecimal() and most.isdecimal() and int(most)):
        return Check("connection table", True, "not in use yet")
    found = f"{count} of {most} connections"
    if int(count) < _NEARLY_FULL * int(most):
        return Check("connection table", True, found)
    follows = "new connections are dropped when it is full: raise net.netfilter.nf_conntrack_max"
    return Check("connection table", False, found, follows)


def _recogniser(config: Config | None) -> Iterator[Check]:
    """Whether the applications can be recognised. The library is loaded in a process apart only."""
    rules = config.rules if config else ()
    asking = [rule.name for rule in rules if rule.applications or rule.hosts]
    found, known = _ndpi()
    if known:
        yield Check("nDPI", True, found)
        for words in unknown_applications(config, known) if config else ():
            yield Check("application", False, words, "it is never learned")
        return
    follows = "applications cannot be recognised: install libndpi-dev and build again"
    if asking:
        follows += f"; until then they are never learned, which {', '.join(asking)} ask for"
    yield Check("nDPI", not asking, found, follows)


def _ndpi() -> tuple[str, frozenset[str]]:
    """The library's version and the applications that it knows; or why it cannot be used, none."""
    if not available():
        return "not built in", frozenset()
    asked = [sys.executable, "-I", "-c", _ASK_NDPI, str(Path(__file__).parents[2])]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as refusal:
        return f"cannot be asked: {refusal}", frozenset()
    if done.returncode:
        words = done.stderr.strip().rpartition("\n")[2]
        return f"cannot be loaded: {words or f'status {done.returncode}'}", frozenset()
    found, *known = done.stdout.splitlines()
    return found, frozenset(map(findings.name, known))


def _file(path: Path) -> tuple[Config | None, list[Check]]:
    try:
        config = read_file(path)
    except ConfigError as error:
        follows = "`run` and `reload` refuse the file"
        return None, [Check("file", False, str(fault), follows) for fault in error.faults]
    found = f"{path}: {len(config.links)} links, {len(config.rules)} rules"
    return config, [Check("file", True, found), *(_list(one) for one in config.lists)]


def _list(one: AddressList) -> Check:
    """Its files were read along with the file itself."""
    ranges = len(one.addresses.ranges4) // 8 + len(one.addresses.ranges6) // 32
    found = f"{ranges} ranges, {len(one.names)} names, {len(one.files)} files"
    empty = not ranges and not one.names
    follows = "it holds nothing, and no rule with it ever matches" if empty else ""
    return Check(f"list {one.name}", True, found, follows)


def _fit(config: Config) -> Iterator[Check]:
    """Does the file go together with this machine?"""
    try:
        machine = Machine()
        try:
            facts = machine.look(config)
        finally:
            machine.close()
    except Error as refused:
        yield Check("machine", False, str(refused), "whether the file fits it cannot be told")
        return
    for words in conflicts(config, facts):
        yield Check("conflict", False, words, "`run` is refused")
    for words in absences(config, facts):
        yield Check("interface", False, words, "nothing goes by it until it exists")
    for words in doubts(config, facts):
        yield Check("gateway", False, words, "the link is down until it fits")
    yield from _links(config, facts)


def _links(config: Config, facts: Facts) -> Iterator[Check]:
    """What the machine says of each link; whether anybody answers by it is for `status` to say."""
    for name, state in link_states(config, facts).items():
        well = [f"IPv{family}" for family in FAMILIES if state.way(family).alive]
        lacking = [
            f"no IPv{family}: {state.way(family).why}"
            for family in FAMILIES
            if not state.way(family).alive
        ]
        found = "; ".join([*([f"carries {' and '.join(well)}"] if well else []), *lacking])
        follows = "" if well else "no connection goes there"
        yield Check(f"link {name}", bool(well), found, follows)
