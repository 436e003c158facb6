"""Does a name server answer? It is asked for the root's name servers, which every one knows."""

from __future__ import annotations

import socket

import dns.message
import dns.rcode

from dataplane.config.model import Target
from dataplane.system.probe.asker import Address, family_of, is_from, open_socket, place
from dataplane.system.probe.conversation import Conversations

_PORT = 53
# No answer to a question without EDNS is longer than 512.
_READ_BYTES = 4096
# One that gets more wrong answers than this is being flooded.
_HEARD = 16
# linux/in.h and in6.h: what ICMP says reaches a socket that is not connected, too.
_TELL_ERRORS = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}


class DnsAsker(Conversations):
    """An answer counts if it is the asked server's to this very question, without an error."""

    async def _converse(self, target: Target, address: Address) -> str:
        question = dns.message.make_query(".", "NS")
        family = family_of(address)
        port = target.port or _PORT
        with open_socket(self._by, family, socket.SOCK_DGRAM) as asking:
            asking.setsockopt(*_TELL_ERRORS[family], 1)
            asking.sendto(question.to_wire(), place(address, port))
            for _ in range(_HEARD):
                heard, sender = await self._loop.sock_recvfrom(asking, _READ_BYTES)
                if sender[1] == port and is_from(sender[0], address):
                    said, wrong = _judged(question, heard)
                    if not wrong:
                        return said
                else:
                    wrong = f"an answer came from {sender[0]} port {sender[1]} instead"
                self.remarks[target.text] = wrong
        return "too many wrong answers"


def _judged(question: dns.message.Message, heard: bytes) -> tuple[str, str]:
    """The server's error or none, and what is wrong with the answer or nothing."""
    try:
        answer = dns.message.from_wire(heard)
        rcode = answer.rcode()
    except Exception:  # Hostile bytes; the library does not say what else it may raise.
        return "", "an answer came that is no DNS message"
    if answer.id != question.id:
        return "", "an answer came with a wrong identifier"
    if not question.is_response(answer):
        return "", "an answer came to another question"
    return "" if rcode == dns.rcode.NOERROR else dns.rcode.to_text(rcode), ""
