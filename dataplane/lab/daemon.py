"""The real evenlink daemon on the lab's router: its file, its start, its end.

The command runs in a process of its own, so nothing of the daemon is imported here.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataplane.lab.namespaces import PYTHON, LabError, Namespace
from dataplane.lab.topology import Link, Topology

COMMAND = (PYTHON, "-m", "dataplane.tools.cli")
_READY_S = 30.0


def toml(topology: Topology, directory: Path, **top: object) -> str:
    """The topology as an evenlink file; `top` are more keys of the top level.

    `links`, a list of names, keeps to those links. A mapping is a section: `probe={"hold_ms": 0}`.
    """
    names = top.pop("links", None)
    sections = {key: value for key, value in top.items() if isinstance(value, Mapping)}
    for key in sections:
        del top[key]
    keys: dict[str, object] = {
        "lan": [lan.interface for lan in topology.lans],
        "state_dir": str(directory / "state"),
        "control_socket": str(directory / "control.sock"),
        **top,
    }
    lines = [f"{key} = {_value(value)}" for key, value in keys.items()]
    for link in topology.links:
        if not isinstance(names, (list, tuple)) or link.name in names:
            lines += ["", f"[link.{link.name}]", *_link(link)]
    for section, inside in sections.items():
        lines += [
            "",
            f"[{section}]",
            *(f"{key} = {_value(value)}" for key, value in inside.items()),
        ]
    return "\n".join(lines) + "\n"


def _link(link: Link) -> list[str]:
    keys: dict[str, object] = {"interface": link.interface}
    if not link.point_to_point:
        for gateway in link.gateways:
            keys["gateway" if gateway.version == 4 else "gateway6"] = str(gateway)
    if link.upload_bps:
        keys["download"] = rate(link.capacity_bps)
        keys["upload"] = rate(link.upload_bps)
    else:
        keys["capacity"] = rate(link.capacity_bps)
    if link.delegated:
        keys["address"] = [str(link.delegated)]
    return [f"{key} = {_value(value)}" for key, value in keys.items()]


def rate(bps: int) -> str:
    """A rate as a file says it: "20Mbit"."""
    for unit, size in (("Mbit", 1_000_000), ("kbit", 1000)):
        if bps % size == 0:
            return f"{bps // size}{unit}"
    return f"{bps}bit"


def _value(value: object) -> str:
    """TOML's spelling of a string, number, truth or list, which is JSON's."""
    return json.dumps(value)


class Daemon:
    """`evenlink run FILE` in `namespace`. What it says goes to FILE with the suffix .log."""

    def __init__(self, namespace: Namespace, file: Path, *arguments: str) -> None:
        self.namespace = namespace
        self.file = file
        self._log = file.with_suffix(".log")
        with self._log.open("a") as log:
            self._from = log.tell()
            self.process = namespace.start(
                *COMMAND, "run", str(file), *arguments, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        """Everything that it has said."""
        with self._log.open() as log:
            log.seek(self._from)
            return log.read()

    def wait_ready(self, timeout_s: float = _READY_S) -> None:
        """Returns when it answers `status`. LabError, with its words, if it ends or is late."""
        deadline = time.monotonic() + timeout_s
        asked = 0.0
        while True:
            if self.process.poll() is not None:
                status = self.process.returncode
                raise LabError(f"evenlink run ended with status {status}: {self.log.strip()}")
            now = time.monotonic()
            # Asking costs an interpreter's start: ask when it says that it is ready, else seldom.
            if ("ready" in self.log and now - asked > 0.2) or now - asked > 2.0:
                if self._answers():
                    return
                asked = time.monotonic()
            if now > deadline:
                raise LabError(f"evenlink run is not ready after {timeout_s} s: {self.log.strip()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        command = (*COMMAND, "status", "--json", "--config", str(self.file))
        return self.namespace.run(*command, check=False).returncode == 0

    def status(self) -> dict[str, Any]:
        """What `evenlink status --json` says."""
        return self._ask("status", "--json")

    def explain(self, flows: list[str]) -> list[dict[str, Any]]:
        """One answer for each line `SRC DST [PROTOCOL [SPORT [DPORT]]]`."""
        command = (*COMMAND, "explain", "--stdin", "--json", "--config", str(self.file))
        done = self.namespace.run(*command, stdin="".join(f"{flow}\n" for flow in flows))
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        if len(answers) != len(flows):
            raise LabError(f"explain answered {len(answers)} of {len(flows)} questions")
        return answers

    def _ask(self, *arguments: str) -> dict[str, Any]:
        command = (*COMMAND, *arguments, "--config", str(self.file))
        answer = json.loads(self.namespace.run(*command).stdout)
        assert isinstance(answer, dict)
        return answer

    def reload(self) -> None:
        """SIGHUP: take the file again."""
        self.process.send_signal(signal.SIGHUP)

    def stop(self, sent: signal.Signals = signal.SIGTERM, timeout_s: float = 15) -> int:
        """Sends the signal and waits; gives the exit status. SIGINT undoes what was applied."""
        if self.process.poll() is None:
            self.process.send_signal(sent)
        try:
            return self.process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            message = f"evenlink outlives {sent.name} by {timeout_s} s: {self.log.strip()}"
            raise LabError(message) from None

    def kill(self) -> int:
        """kill -9, and its exit status."""
        return self.stop(signal.SIGKILL)
