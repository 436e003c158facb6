"""Gives the recogniser payloads that were made to break it, and says how many it took.

python -m tests.fuzz.spoiled ROUNDS SEED
"""

from __future__ import annotations

import random
import sys

from dataplane import recognise
from tests import payloads

SAID = (
    payloads.client_hello("www.example.org"),
    payloads.http_request("www.example.org"),
    payloads.bittorrent_handshake(),
    payloads.bittorrent_question(),
    payloads.micro_transport(),
    payloads.quic_initial("www.example.org"),
    payloads.dns_query("www.example.org"),
    payloads.dns_answer("www.example.org", ["192.0.2.1", "192.0.2.2"]),
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello",
)
EDGES = bytes([0, 1, 0x3F, 0x40, 0x7F, 0x80, 0xFE, 0xFF])
PORTS = (22, 25, 53, 67, 80, 123, 137, 443, 514, 1900, 3478, 5060, 5353, 6881, 8080, 51413)


def spoiled(chance: random.Random) -> bytes:
    """A good payload with a few bytes changed, cut, doubled, or random bytes altogether."""
    payload = bytearray(chance.choice(SAID))
    how = chance.randrange(6)
    if how == 0:
        return chance.randbytes(chance.randrange(1500))
    for _ in range(chance.randrange(1, 8)):
        place = chance.randrange(len(payload))
        payload[place] = chance.choice(EDGES) if how < 4 else chance.randrange(256)
    if how in (2, 5):
        del payload[chance.randrange(len(payload)) :]
    if how == 3:
        place = chance.randrange(len(payload))
        payload[place:place] = payload[: chance.randrange(len(payload))]
    return bytes(payload)


def packet(chance: random.Random, payload: bytes) -> bytes:
    """One of few hosts, so that a conversation has many packets; sometimes its headers lie."""
    four = chance.randrange(2)
    client, server = ("192.0.2.1", "192.0.2.2") if four else ("2001:db8::1", "2001:db8::2")
    sport, dport = 40000 + chance.randrange(64), chance.choice(PORTS)
    ends = (client, sport, server, dport)
    if chance.randrange(2):
        ends = (server, dport, client, sport)
    if chance.randrange(2):
        made = payloads.udp(*ends, payload)
    else:
        flags = chance.choice((payloads.SYN, payloads.ACK, payloads.ACK | payloads.PUSH))
        made = payloads.tcp(*ends, payload, flags, chance.randrange(4), chance.randrange(4))
    if chance.randrange(8) == 0:
        bytes_ = bytearray(made)
        bytes_[chance.randrange(min(60, len(bytes_)))] = chance.choice(EDGES)
        made = bytes(bytes_)
    return made[: chance.choice((len(made), len(made), len(made), chance.randrange(1, 80)))]


def main(rounds: int, seed: int) -> int:
    chance = random.Random(seed)
    recogniser = recognise.Recogniser(talks=500, packets=30)
    for round_ in range(rounds):
        prefix = chance.choice((b"lan original", b"wan reply", b"", b"lan"))
        for *_, applications, host in recogniser.feed(
            packet(chance, spoiled(chance)), prefix, round_
        ):
            assert 1 <= len(applications) <= 2
            assert host.isascii()
            assert len(host) < 80
            assert host == host.lower()
    return recogniser.counters()["copies"]


if __name__ == "__main__":
    print(main(int(sys.argv[1]), int(sys.argv[2])))
