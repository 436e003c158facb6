"""Does a port take connections? Nothing is sent over them; a reset ends them."""

from __future__ import annotations

import socket
import struct

from dataplane.config.model import Target
from dataplane.system.probe.asker import Address, family_of, open_socket, place
from dataplane.system.probe.conversation import Conversations

# On, with no time to linger: closing sends a reset, and nobody waits for the rest.
_RESET = struct.pack("ii", 1, 0)


class TcpAsker(Conversations):
    """An established connection is an answer."""

    async def _converse(self, target: Target, address: Address) -> str:
        assert target.port is not None, "a tcp target has a port"
        with open_socket(self._by, family_of(address), socket.SOCK_STREAM) as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            await self._loop.sock_connect(asking, place(address, target.port))
        return ""
