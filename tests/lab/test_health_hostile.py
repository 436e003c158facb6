"""Targets and hooks that mean harm, or are just broken: named in `status`, nothing else harmed.

client ── router ─┬─ isp-a ─┬─ server, and public resolvers
                  └─ isp-b ─┘
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dataplane.lab import Daemon, Lab, faults
from tests.lab.talk import call, eventually, link_of, rightful_sources, status

KEY = "0123456789abcdef"
SERVER = "203.0.113.1"
ECHO_REPLY, ECHO_REQUEST = 0, 8


def file_with_probe(lab: Lab, lines: str, **top: object) -> Path:
    """isp-b is probed by this alone."""
    text = lab.file(key=KEY, **top).read_text()
    return lab.file(text=f"{text}\n[[link.isp-b.probe]]\n{lines}\n")


def target(daemon: Daemon, name: str = "isp-b") -> dict[str, Any]:
    """The first target of a link."""
    found = next(one for one in status(daemon)["links"] if one["name"] == name)["targets"]
    return dict(found[0]) if found else {}


def state(daemon: Daemon) -> dict[str, str]:
    return {one["name"]: one["state"] for one in status(daemon)["links"]}


def goes_on(lab: Lab) -> set[str]:
    """Connections of all pairs work; the links that they took."""
    used = set()
    for source, destination in lab.topology.pairs():
        with call(lab, destination, source=source) as talk:
            used.add(link_of(lab, talk.goes_on()))
    return used


@contextmanager
def serving(lab: Lab, port: int, answer: Callable[[socket.socket], None]) -> Iterator[list[int]]:
    """A TCP server that gives each connection to `answer`; the list grows with each."""
    with lab.server.inside():
        listener = socket.create_server((SERVER, port))
    served: list[int] = []
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with suppress(OSError), listener.accept()[0] as accepted:
                accepted.settimeout(5)
                served.append(1)
                answer(accepted)

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(4)]
    listener.settimeout(0.2)
    for thread in threads:
        thread.start()
    try:
        yield served
    finally:
        over.set()
        for thread in threads:
            thread.join()
        listener.close()


def certificate(lab: Lab) -> tuple[Path, Path]:
    """One that nobody vouches for."""
    key, made = lab.directory / "tls.key", lab.directory / "tls.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", f"/CN={SERVER}"]
    command += ["-keyout", str(key), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    return key, made


def test_a_certificate_that_nobody_vouches_for(two_links: Lab) -> None:
    lab = two_links
    key, made = certificate(lab)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)

    def answer(accepted: socket.socket) -> None:
        context.wrap_socket(accepted, server_side=True).close()

    lines = f'kind = "http"\ntargets = ["https://{SERVER}/"]\ninterval_ms = 200'
    with serving(lab, 443, answer), rightful_sources(lab):
        daemon = lab.run(file_with_probe(lab, lines))
        eventually(lambda: state(daemon) == {"isp-a": "up", "isp-b": "down"})
        assert "certificate" in target(daemon)["said"]
        assert target(daemon)["ok"] is False
        assert goes_on(lab) == {"isp-a"}


def test_a_body_without_end(two_links: Lab) -> None:
    """The status line is the answer; of the body nothing is read, and nothing kept."""
    lab = two_links

    def answer(accepted: socket.socket) -> None:
        accepted.recv(4096)
        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            accepted.sendall(b"and so on " * 4096)

    lines = f'kind = "http"\ntargets = ["http://{SERVER}/"]\ninterval_ms = 100'
    with serving(lab, 80, answer) as served, rightful_sources(lab):
        daemon = lab.run(file_with_probe(lab, lines))
        eventually(lambda: len(served) > 5)
        before = kept(daemon)
        eventually(lambda: len(served) > 50)
        after = kept(daemon)
        assert state(daemon) == {"isp-a": "up", "isp-b": "up"}
        assert target(daemon)["ok"] is True
        assert goes_on(lab) == {"isp-a", "isp-b"}
        assert after[0] <= before[0] + 8, "descriptors"
        assert after[1] <= before[1] + 8192, "KiB of memory"


def kept(daemon: Daemon) -> tuple[int, int]:
    """Descriptors, and resident memory in KiB."""
    process = Path(f"/proc/{daemon.process.pid}")
    lines = (process / "status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return len(list((process / "fd").iterdir())), resident


def test_answers_from_others_and_with_wrong_identifiers(two_links: Lab) -> None:
    """A host beyond the gateway that answers every ping, but never what was asked."""
    lab = two_links
    lab.server.set({"net/ipv4/icmp_echo_ignore_all": 1})
    with lab.server.inside():
        liar = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    liar.settimeout(0.2)
    over = threading.Event()

    def lie() -> None:
        while not over.is_set():
            with suppress(OSError):
                packet, (asker, _) = liar.recvfrom(2048)
                header = (packet[0] & 15) * 4
                kind, _, _, identifier, sequence = struct.unpack_from("!BBHHH", packet, header)
                if kind == ECHO_REQUEST:
                    liar.sendto(reply(identifier + 1, sequence, packet[header + 8 :]), (asker, 0))
                    # Right, but from an address that was not asked.
                    liar.sendto(reply(identifier, sequence, packet[header + 8 :]), (asker, 0))

    thread = threading.Thread(target=lie)
    thread.start()
    try:
        with rightful_sources(lab):
            daemon = lab.run(file_with_probe(lab, 'targets = ["9.9.9.9"]'))
            eventually(lambda: state(daemon)["isp-b"] == "down")
            found = eventually(
                lambda: "an answer came" in target(daemon)["said"] and target(daemon)
            )
            assert found["said"].startswith("no answer within 500 ms")
            assert found["ok"] is False
    finally:
        over.set()
        thread.join()
        liar.close()


def reply(identifier: int, sequence: int, payload: bytes) -> bytes:
    body = struct.pack("!BBHHH", ECHO_REPLY, 0, 0, identifier & 0xFFFF, sequence) + payload
    total = sum(struct.unpack(f"!{len(body) // 2}H", body[: len(body) & ~1]))
    total += body[-1] << 8 if len(body) & 1 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]


def test_a_hook_that_hangs(two_links: Lab) -> None:
    """Links are followed, connections go on, questions are answered; the hook is ended."""
    lab = two_links
    program = lab.directory / "hanging"
    program.write_text(f"#!/bin/sh\necho $EVENLINK_LINK $EVENLINK_STATE >> {lab.directory}/ran\n"
                       "trap '' TERM\nsleep 600 & wait; sleep 600\n")  # fmt: skip
    program.chmod(0o755)
    daemon = lab.run(lab.file(key=KEY, on_change=[str(program)]))
    with rightful_sources(lab):
        for _ in range(2):
            with faults.no_carrier(lab, "isp-b"):
                eventually(lambda: state(daemon)["isp-b"] == "down")
                assert goes_on(lab) == {"isp-a"}
            eventually(lambda: state(daemon)["isp-b"] == "up")
    ran = lab.directory / "ran"
    assert ran.read_text().splitlines()[0] == "isp-b down"
    eventually(
        lambda: any("on_change" in fault for fault in status(daemon)["faults"]), timeout_s=40
    )
    assert daemon.stop() == 0
    assert not any(b"hanging" in command for command in commands()), "it went with the daemon"


def commands() -> list[bytes]:
    """The command lines of all processes."""
    found = []
    for one in os.listdir("/proc"):
        if one.isdigit():
            with suppress(OSError):
                found.append(Path("/proc", one, "cmdline").read_bytes())
    return found


def test_a_hook_hears_of_each_transition_once(two_links: Lab) -> None:
    lab = two_links
    program, said = lab.directory / "hook", lab.directory / "said"
    program.write_text(
        f"#!/bin/sh\necho $EVENLINK_LINK $EVENLINK_INTERFACE $EVENLINK_BEFORE $EVENLINK_STATE "
        f'"$EVENLINK_WHY" >> {said}\n'
    )
    program.chmod(0o755)
    daemon = lab.run(lab.file(key=KEY, on_change=[str(program)]))

    def lines() -> list[str]:
        return said.read_text().splitlines() if said.exists() else []

    with faults.dropping(lab, "isp-b"):
        eventually(lambda: len(lines()) == 1)
    eventually(lambda: len(lines()) == 2)
    assert lines() == [
        "isp-b wan2 up down no answer from 1.1.1.1 and 9.9.9.9; the gateway answers",
        "isp-b wan2 down up ",
    ]
    assert status(daemon)["faults"] == []
