"""Does a web server answer? Only its first line counts; of the rest as little as possible is read.

httpx makes the request. It gets its connection from here, so that the socket leaves by the link
and goes to the address that was asked, whatever the URL's name resolves to.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterable
from functools import cache
from typing import Any

import httpcore
import httpx

from dataplane import __version__
from dataplane.config.model import Target
from dataplane.system.probe.asker import Address, Exit, Told, family_of, open_socket, place
from dataplane.system.probe.conversation import Conversations

# What may come before the end of the headers. A small window keeps a long body at the sender.
_READ_BYTES = 64 << 10
_WINDOW_BYTES = 16 << 10
_HEADERS = {
    "User-Agent": f"evenlink/{__version__}",
    "Accept-Encoding": "identity",
    "Connection": "close",
}

# They say every request, at the level info.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@cache
def _trust() -> ssl.SSLContext:
    """Reads all the machine's certificates: tens of milliseconds, and megabytes."""
    return ssl.create_default_context()


class HttpAsker(Conversations):
    """A status below 400 is an answer. `trust` is for those with certificates of their own."""

    def __init__(self, by: Exit, told: Told, trust: ssl.SSLContext | None = None) -> None:
        super().__init__(by, told)
        self._trust = trust

    async def _converse(self, target: Target, address: Address) -> str:
        url = httpx.URL(target.text)
        if self._trust is None and url.scheme == "https":
            self._trust = await asyncio.to_thread(_trust)
        way = _Way(self._by, address)
        # A client of its own: nothing is kept from one question to the next.
        client = httpx.AsyncClient(
            transport=_Transport(way, self._trust), trust_env=False, timeout=None
        )
        try:
            request = client.build_request("GET", url, headers=_HEADERS)
            response = await client.send(request, stream=True, follow_redirects=False)
            await response.aclose()
        except ssl.SSLCertVerificationError as fault:
            what = fault.verify_message
            return f"certificate: {what[:1].lower()}{what[1:]}"
        except ssl.SSLError as fault:
            return f"TLS: {(fault.reason or str(fault)).lower().replace('_', ' ')}"
        finally:
            way.close()
        return "" if response.status_code < 400 else f"HTTP status {response.status_code}"


class _Transport(httpx.AsyncBaseTransport):
    """Over a way of ours; of the answer only the status goes on to httpx."""

    def __init__(self, way: _Way, trust: ssl.SSLContext | None) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trust, max_keepalive_connections=0, network_backend=way
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        asked = httpcore.Request(request.method, url, headers=request.headers.raw)
        answer = await self._pool.handle_async_request(asked)
        await answer.aclose()
        return httpx.Response(answer.status, stream=_Unread())


class _Unread(httpx.AsyncByteStream):
    """The body, which nobody reads."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        return
        yield b""


class _Way(httpcore.AsyncNetworkBackend):
    """Gives connections by the link to the address, whatever name they are for."""

    def __init__(self, by: Exit, address: Address) -> None:
        self._by = by
        self._address = address
        self._streams: list[_Stream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        made = open_socket(self._by, family_of(self._address), socket.SOCK_STREAM)
        stream = _Stream(made)
        self._streams.append(stream)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW_BYTES)
        await asyncio.get_running_loop().sock_connect(made, place(self._address, port))
        return stream

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


class _Stream(httpcore.AsyncNetworkStream):
    """One connection. Whether it speaks TLS is known only after it was made."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._left = _READ_BYTES
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self._open = await asyncio.open_connection(
            sock=self._socket,
            limit=_WINDOW_BYTES,
            ssl=ssl_context,
            server_hostname=server_hostname or "",
        )
        return self

    async def _streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._open is None:
            self._open = await asyncio.open_connection(sock=self._socket, limit=_WINDOW_BYTES)
        return self._open

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._left:
            raise httpcore.ReadError(f"the headers do not end within {_READ_BYTES >> 10} KiB")
        reader, _ = await self._streams()
        got = await reader.read(min(max_bytes, self._left))
        self._left -= len(got)
        return got

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            _, writer = await self._streams()
            writer.write(buffer)
            await writer.drain()

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """At once: without TLS's farewell, for which the other side could let us wait."""
        if self._open is None:
            self._socket.close()
        else:
            self._open[1].transport.abort()
