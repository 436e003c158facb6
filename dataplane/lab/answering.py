"""The lab's server: `python -m dataplane.lab.answering PORT ADDRESS…`, TCP and UDP on each.

Prints "ready" when it listens, and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import cast

from dataplane.lab import exchange

_BACKLOG = 2048


class _Stream(asyncio.Protocol):
    """Answers every request of a TCP connection, in order."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) >= exchange.REQUEST_BYTES:
            asked = bytes(self._pending[: exchange.REQUEST_BYTES])
            del self._pending[: exchange.REQUEST_BYTES]
            try:
                self._transport.writelines(exchange.answer(asked))
            except ValueError:
                self._transport.abort()
                return


class _Datagrams(asyncio.DatagramProtocol):
    """Answers every request that comes to one address."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) >= exchange.REQUEST_BYTES:
            self._transport.sendto(b"".join(exchange.answer(data)), addr)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


async def _serve(port: int, addresses: list[str]) -> None:
    loop = asyncio.get_running_loop()
    for address in addresses:
        await loop.create_server(_Stream, address, port, backlog=_BACKLOG)
        await loop.create_datagram_endpoint(
            _Datagrams, local_addr=(address, port), family=_family(address)
        )
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2:]))
