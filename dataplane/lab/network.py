"""The lab itself: a topology that stands while the `with` block runs, and is gone afterwards."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from dataplane.lab import daemon, namespaces, wiring
from dataplane.lab.namespaces import LabError, Namespace, UnavailableError
from dataplane.lab.topology import Topology

_numbers = itertools.count(1)
_LACKING = {
    "type vlan": "802.1Q VLANs (CONFIG_VLAN_8021Q)",
    "type bridge": "Ethernet bridges (CONFIG_BRIDGE)",
    "type veth": "virtual Ethernet pairs (CONFIG_VETH)",
    " tbf ": "the token bucket filter (CONFIG_NET_SCH_TBF)",
}


class Lab:
    """A built topology.

    `router`, `server`, `client` (the first LAN) and `[role]` are namespaces: `lab["isp-a"]` is
    that link's provider. `directory` is a temporary directory of the lab's own. Raises
    MachineError without root, UnavailableError where the kernel lacks what the topology asks for.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._number = next(_numbers)
        self._namespaces: dict[str, Namespace] = {}
        self._daemons: list[daemon.Daemon] = []
        self.directory = Path(tempfile.gettempdir(), self._name("files"))

    def _name(self, role: str) -> str:
        return namespaces.name(self._number, role)

    def __enter__(self) -> Self:
        namespaces.sweep()
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getitem__(self, role: str) -> Namespace:
        return self._namespaces[role]

    @property
    def router(self) -> Namespace:
        """The router under test."""
        return self["router"]

    @property
    def client(self) -> Namespace:
        """The first LAN's hosts."""
        return self[self.topology.lans[0].name]

    @property
    def server(self) -> Namespace:
        """Every server."""
        return self["server"]

    @property
    def roles(self) -> tuple[str, ...]:
        """Every namespace's role."""
        return tuple(self._namespaces)

    def _build(self) -> None:
        for role in wiring.roles(self.topology):
            self._namespaces[role] = Namespace(self._name(role))
        self.directory.mkdir(mode=0o700)
        self.take(wiring.steps(self.topology, self._name))
        for link in self.topology.links:
            if self.topology.translates(link):
                # Providers with the same network each give their customer another address.
                for table in ("ip", "ip6"):
                    _masquerade(self[link.name], table, "core")

    def take(self, steps: Iterable[wiring.Step]) -> None:
        """Performs them in order. LabError with what the tool said if one fails."""
        for (role, tool), group in itertools.groupby(steps, key=lambda s: (s.role, s.tool)):
            self._take(role, tool, [step.line for step in group])

    def rewire(self, link: str) -> None:
        """Makes the wire of a link anew that was deleted: other indices, all else as before."""
        self.take(wiring.rewired(self.topology, self.topology.link(link), self._name))

    def _take(self, role: str, tool: str, lines: Sequence[str]) -> None:
        namespace = self[role]
        if tool == "sysctl":
            namespace.set(dict(line.split("=", 1) for line in lines))
            return
        if tool == "ethtool":
            for line in lines:
                namespace.run("ethtool", *line.split())
            return
        done = subprocess.run(
            [tool, "-n", namespace.name, "-batch", "-"],
            input="\n".join(lines) + "\n",
            capture_output=True,
            text=True,
            env=namespaces.environment(),
        )
        if done.returncode == 0:
            return
        said = done.stderr.strip()
        for needle, capability in _LACKING.items():
            if any(needle in line for line in lines) and (
                "Unknown device type" in said or "Unknown qdisc" in said or "not supported" in said
            ):
                raise UnavailableError(f"this kernel lacks {capability}")
        raise LabError(f"{namespace.name}: {tool}: {said}\n" + "\n".join(lines))

    def file(self, *, name: str = "evenlink.toml", text: str | None = None, **top: object) -> Path:
        """Writes a file for the daemon, the topology's own unless `text` is given."""
        path = self.directory / name
        if text is None:
            text = daemon.toml(self.topology, self.directory, **top)
        path.write_text(text)
        return path

    def run(self, file: Path | None = None, *arguments: str, wait: bool = True) -> daemon.Daemon:
        """Starts `evenlink run FILE` on the router; with `wait`, when this returns it serves."""
        started = daemon.Daemon(self.router, file or self.file(), *arguments)
        self._daemons.append(started)
        if wait:
            started.wait_ready()
        return started

    def evenlink(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs the evenlink command on the router, to its end."""
        command = (*daemon.COMMAND, *arguments)
        return self.router.run(*command, stdin=stdin, check=check)

    def plain(self, link: str) -> None:
        """Makes the router a plain one: everything leaves by `link`, translated."""
        self.router.set({"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})
        chosen = self.topology.link(link)
        for family, table in ((4, "ip"), (6, "ip6")):
            if family in chosen.families:
                via = chosen.gateway(6 if family == 6 else 4)
                prefix = "::/0" if family == 6 else "0.0.0.0/0"
                line = f"route replace {prefix} via {via} dev {chosen.interface}"
                self.router.run("ip", *line.split())
                _masquerade(self.router, table, chosen.interface)

    def close(self) -> None:
        """Removes everything, whatever state it is in. Again does nothing."""
        with _undisturbed():
            for namespace in reversed(list(self._namespaces.values())):
                namespace.remove()
            self._namespaces.clear()
            self._daemons.clear()
            with suppress(FileNotFoundError):
                shutil.rmtree(self.directory)


def _masquerade(namespace: Namespace, table: str, interface: str) -> None:
    rules = (
        f"add table {table} plain\n"
        f"add chain {table} plain post {{ type nat hook postrouting priority srcnat; }}\n"
        f"flush chain {table} plain post\n"
        f'add rule {table} plain post oifname "{interface}" masquerade\n'
    )
    namespace.run("nft", "-f", "-", stdin=rules)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave half a lab behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    restore = partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        restore()
