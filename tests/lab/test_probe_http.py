"""http: a status from the asked address by the asked link; certificates; servers that hold on."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dataplane.config.model import ProbeKind
from dataplane.system.probe.http import HttpAsker
from tests.lab.probebox import (
    HOST4,
    HOSTS,
    SILENT4,
    Address,
    Box,
    asker,
    box,
    eventually,
    inside,
    target,
)

__all__ = ["box"]

HTTP = ProbeKind.HTTP
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(
    box: Box,
    serve: Serve,
    host: Address = HOST4,
    link: str = "a",
    port: int = 80,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    """Serves with every connection; the connections end with the block."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    listener = box.bound(link, socket.SOCK_STREAM, host, port)
    served = await asyncio.start_server(connected, sock=listener, ssl=tls)
    try:
        yield
    finally:
        served.close()
        for task in tasks:
            task.cancel()


class Says:
    """Hears a request and says the same to each. `heard` are the requests."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.heard: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self.answer.encode())
        await writer.drain()


WELL = "HTTP/1.1 204 No Content\r\n\r\n"


@HOSTS
def test_the_address_is_asked_by_its_link(box: Box, host: Address) -> None:
    """The URL's name is in the Host header and nowhere else: it is resolved by nobody."""
    says, other = Says(WELL), Says(WELL)

    async def work() -> None:
        async with (
            server(box, says, host),
            server(box, other, host, "b"),
            asker(HTTP) as (http, told),
        ):
            for token in (1, 2):
                http.ask(token, target("http://no.such.name.example/path?query"), host, 5)
                ms, words = await told.answer(token)
                assert words == ""
                assert ms is not None
                assert ms > 0

    inside(box, work)
    assert len(says.heard) == 2
    lines = says.heard[0].splitlines()
    assert lines[0] == "GET /path?query HTTP/1.1"
    assert "Host: no.such.name.example" in lines
    assert "Connection: close" in lines
    assert other.heard == []
    assert box.packets_to("a", host) == box.counted()["a"] >= 8
    assert box.packets_to("b", host) == 0
    assert box.counted()["strange"] == box.counted()["b"] == 0


@pytest.mark.parametrize("status", [200, 204, 302, 399])
def test_a_status_below_400_counts(box: Box, status: int) -> None:
    """Nothing is followed, and no cookie comes back."""
    away = f"Location: http://{HOST4}/elsewhere\r\nSet-Cookie: a=b; Path=/\r\n"
    says = Says(f"HTTP/1.1 {status} Well\r\n{away}Content-Length: 0\r\n\r\n")

    async def work() -> None:
        async with server(box, says), asker(HTTP) as (http, told):
            for token in (1, 2):
                http.ask(token, target(f"http://{HOST4}/"), HOST4, 5)
                assert (await told.answer(token))[1] == ""

    inside(box, work)
    assert len(says.heard) == 2
    assert "cookie" not in says.heard[1].lower()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("HTTP/1.1 404 Not Found\r\n\r\n", "HTTP status 404"),
        ("HTTP/1.1 503 No\r\n\r\n", "HTTP status 503"),
        ("", "server disconnected without sending a response"),
        ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "illegal status line"),
        ("HTTP/1.1 200 Well\r\nno header\r\n\r\n", "illegal header line"),
        ("HTTP/1.1 200 Well\r\nLong: " + "x" * 200_000, "the headers do not end within 64 KiB"),
        ("HTTP/1.1 100 Wait\r\n\r\n" * 20_000, "the headers do not end within 64 KiB"),
    ],
    ids=["404", "503", "nothing", "no-http", "no-header", "long-header", "many-interim"],
)
def test_what_does_not_count_is_named(box: Box, answer: str, words: str) -> None:
    async def work() -> None:
        async with server(box, Says(answer)), asker(HTTP) as (http, told):
            http.ask(1, target(f"http://{HOST4}/"), HOST4, 30)
            ms, said = await told.answer(1)
            assert ms is None
            assert said.startswith(words)
            assert len(said) <= 120

    inside(box, work)


def test_refused_and_silent(box: Box) -> None:
    async def work() -> None:
        async with asker(HTTP) as (http, told):
            http.ask(1, target("http://host/"), HOST4, 5)
            assert await told.answer(1) == (None, "refused")
            http.ask(2, target("http://host/"), SILENT4, 0.2)
            assert await told.answer(2) == (None, "no answer within 0.2 s")
            http.ask(3, target("http://[not a url"), HOST4, 5)
            ms, words = await told.answer(3)
            assert ms is None
            assert words

    inside(box, work)


def test_an_endless_body_is_not_read(box: Box) -> None:
    """The answer counts; the server finds the connection closed before much of it was taken."""
    sent: list[int] = []

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, 4096
        )
        writer.transport.set_write_buffer_limits(0)
        writer.write(b"HTTP/1.1 200 Well\r\n\r\n")
        taken = 0
        try:
            while True:
                writer.write(bytes(4096))
                await writer.drain()
                taken += 4096
        finally:
            sent.append(taken)

    async def work() -> None:
        async with server(box, endless), asker(HTTP) as (http, told):
            http.ask(1, target("http://host/"), HOST4, 30)
            assert (await told.answer(1))[1] == ""
            await eventually(lambda: sent)
            assert sent[0] < 512 << 10

    inside(box, work)


def test_dripping_headers_end_with_the_limit(box: Box) -> None:
    dripped: list[int] = []

    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 Well\r\n")
        while True:
            writer.write(b"X: y\r\n")
            await writer.drain()
            dripped.append(1)
            await asyncio.sleep(0.02)

    async def work() -> None:
        async with server(box, dripping), asker(HTTP) as (http, told):
            http.ask(1, target("http://host/"), HOST4, 0.5)
            assert await told.answer(1) == (None, "no answer within 0.5 s")
            assert len(dripped) > 3

    inside(box, work)


def test_it_does_not_gather(box: Box) -> None:
    """Of more than 24 at once the oldest are given up, and nothing is told of them."""

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def work() -> None:
        async with server(box, mute), asker(HTTP) as (http, told):
            for token in range(30):
                http.ask(token, target("http://host/"), HOST4, 1)
                await asyncio.sleep(0)
            for token in range(6, 30):
                assert await told.answer(token) == (None, "no answer within 1 s")
            assert set(told.all) == set(range(6, 30))

    inside(box, work)


def test_proxies_of_the_environment_are_not_asked(
    box: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does each request appear in the log."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{SILENT4}:3128")
    caplog.set_level(logging.INFO)

    async def work() -> None:
        async with server(box, Says(WELL)), asker(HTTP) as (http, told):
            http.ask(1, target("http://host/"), HOST4, 5)
            assert (await told.answer(1))[1] == ""

    inside(box, work)
    assert caplog.records == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of good.example, signed by itself, in one file."""
    directory = tmp_path_factory.mktemp("certificate")
    key, signed = directory / "key", directory / "signed"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=good.example"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-addext", f"subjectAltName=DNS:good.example,IP:{HOST4}"),
            *("-keyout", str(key), "-out", str(signed)),
        ],
        check=True,
        capture_output=True,
    )
    both = directory / "both"
    both.write_text(key.read_text() + signed.read_text())
    return both


def presented(certificate: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate)
    return made


@pytest.mark.parametrize("name", ["good.example", str(HOST4)])
def test_a_good_certificate(box: Box, certificate: Path, name: str) -> None:
    """Judged by the URL's name, which the server is told; the address is the asked one."""
    trust = ssl.create_default_context(cafile=str(certificate))
    tls, names = presented(certificate), []
    tls.set_servername_callback(lambda _, name, __: names.append(name))

    async def work() -> None:
        async with (
            server(box, Says(WELL), port=443, tls=tls),
            asker(lambda by, told: HttpAsker(by, told, trust)) as (http, told),
        ):
            http.ask(1, target(f"https://{name}/"), HOST4, 10)
            assert (await told.answer(1))[1] == ""
            assert names == [name if name == "good.example" else None]

    inside(box, work)
    assert box.counted()["strange"] == 0


def test_a_bad_certificate_is_named(box: Box, certificate: Path) -> None:
    """For another name; by nobody whom the machine trusts; no TLS at all."""
    trust = ssl.create_default_context(cafile=str(certificate))
    says = Says(WELL)

    async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()

    async def work() -> None:
        async with server(box, says, port=443, tls=presented(certificate)):
            async with asker(lambda by, told: HttpAsker(by, told, trust)) as (http, told):
                http.ask(1, target("https://bad.example/"), HOST4, 10)
                ms, words = await told.answer(1)
                assert ms is None
                assert words.startswith("certificate: hostname mismatch")
                assert "bad.example" in words
            async with asker(HTTP) as (http, told):
                http.ask(1, target("https://good.example/"), HOST4, 10)
                assert await told.answer(1) == (None, "certificate: self-signed certificate")
        async with server(box, greets, port=8443), asker(HTTP) as (http, told):
            http.ask(1, target("https://good.example:8443/"), HOST4, 10)
            assert await told.answer(1) == (None, "TLS: wrong version number")

    inside(box, work)
    assert says.heard == []


def test_a_handshake_that_never_ends(box: Box) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def work() -> None:
        async with server(box, mute, port=443), asker(HTTP) as (http, told):
            http.ask(1, target("https://good.example/"), HOST4, 0.5)
            assert await told.answer(1) == (None, "no answer within 0.5 s")

    inside(box, work)


def test_closed_is_closed(box: Box) -> None:
    async def work() -> None:
        async with asker(HTTP) as (http, told):
            http.ask(1, target("http://host/"), SILENT4, 600)
            await eventually(lambda: box.packets_to("a", SILENT4))
            http.close()
        assert told.all == {}

    inside(box, work)
