"""A name server behind the providers, and hosts that ask it through the router."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from dataplane.lab import Lab, Namespace
from dataplane.lab.topology import Address
from tests.lab.talk import PATIENCE_S

SERVER = "203.0.113.1"
PORT = 53


class Zone:
    """Answers at the first server's address, of both families' records, until `close`.

    `names`: name -> seconds that it holds, and addresses; what is not there does not exist.
    `silent`: questions are heard, and not answered. `heard` are the names that were asked for.
    """

    def __init__(self, lab: Lab, names: Mapping[str, tuple[int, Sequence[Address | str]]]) -> None:
        self.names = dict(names)
        self.silent = False
        self.heard: list[str] = []
        self.askers: list[tuple[str, int]] = []
        with lab.server.inside():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((SERVER, PORT))
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._over.is_set():
            with suppress(TimeoutError):
                heard, asker = self._socket.recvfrom(4096)
                question = dns.message.from_wire(heard)
                self.heard.append(str(question.question[0].name).rstrip("."))
                self.askers.append(asker)
                if not self.silent:
                    self._socket.sendto(self.answer(question).to_wire(), asker)

    def answer(self, question: dns.message.Message) -> dns.message.Message:
        asked = question.question[0]
        said = dns.message.make_response(question)
        held_s, addresses = self.names.get(str(asked.name).rstrip("."), (0, ()))
        if not addresses:
            said.set_rcode(dns.rcode.NXDOMAIN)
        version = 4 if asked.rdtype == dns.rdatatype.A else 6
        texts = [str(one) for one in addresses if ip_address(str(one)).version == version]
        if texts:
            kind = dns.rdatatype.to_text(asked.rdtype)
            said.answer.append(dns.rrset.from_text(asked.name, held_s, "IN", kind, *texts))
        return said

    def __enter__(self) -> Zone:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


def ask(
    lab: Lab, name: str, *, version: int = 4, near: Namespace | None = None, source: str = ""
) -> list[str]:
    """A host of the LAN asks the name server; the addresses that it hears."""
    with (near or lab.client).inside():
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(PATIENCE_S)
        asking.bind((source or str(lab.topology.lans[0].clients(4)[0]), 0))
        asking.connect((SERVER, PORT))
        question = dns.message.make_query(name, "A" if version == 4 else "AAAA")
        asking.send(question.to_wire())
        answer = dns.message.from_wire(asking.recv(4096))
    return [record.address for found in answer.answer for record in found]


@contextmanager
def resolving(lab: Lab) -> Iterator[None]:
    """The router's own resolver is the name server: /etc/resolv.conf of what starts meanwhile."""
    directory = Path("/etc/netns", lab.router.name)
    made = not directory.parent.exists()
    directory.mkdir(parents=True)
    try:
        (directory / "resolv.conf").write_text(f"nameserver {SERVER}\n")
        yield
    finally:
        (directory / "resolv.conf").unlink(missing_ok=True)
        directory.rmdir()
        if made:
            with suppress(OSError):
                directory.parent.rmdir()
